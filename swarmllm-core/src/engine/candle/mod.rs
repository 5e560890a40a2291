//! The pure-Rust engine, on candle: no C toolchain needed, and a second opinion on what llama.cpp computes.
//!
//! One architecture per file, each on the certified list only once its split was shown to equal candle's own whole
//! model bit by bit. What a file does not know (a key, a tensor, a scaling rule) is refused, never computed wrong.
//!
//! Threads: candle 0.11 has two pools of its own, started once per process and sized by `CANDLE_NUM_THREADS` or
//! `RAYON_NUM_THREADS`, else by the physical cores; all stages share them, and [`StageConfig::threads`] cannot be
//! honoured. Work runs inside candle's pool, so that rayon's global one, which is the host's, is neither sized nor
//! started here.
//!
//! A panic on one of candle's workers poisons its pool and with it every stage of the process. So all that candle asserts
//! is checked before: tensors when they are loaded (`weights`), steps before they are computed.
//!
//! Numbers: rows of one session are computed by themselves, never together with another session's, so that what a
//! session gets does not depend on its neighbours. As with llama.cpp it does depend on how many rows a step has.

mod facts;
mod kv;
mod llama;
mod weights;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::{CutRules, Embedder, Engine, EngineError, Stage, StageConfig};
use crate::base::LayerRange;
use crate::model::{EmbeddingSource, Manifest, StageSource};

/// The engine's name.
const NAME: &str = "candle";

/// Architectures that were shown to be exact.
const CERTIFIED: [&str; 1] = [llama::ARCHITECTURE];

/// The engine.
#[derive(Debug, Clone, Default)]
pub struct Candle {
    _private: (),
}

impl Candle {
    /// The engine. Starts nothing: candle's pools start with the first step.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for Candle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cuts(&self, manifest: &Manifest) -> Result<CutRules, EngineError> {
        if !CERTIFIED.contains(&manifest.architecture.as_str()) {
            return Err(EngineError::UnsupportedArchitecture {
                engine: NAME,
                architecture: manifest.architecture.clone(),
                certified: CERTIFIED.join(", "),
            });
        }
        llama::Shape::read(manifest)?;
        Ok(CutRules::free())
    }

    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        let manifest = &source.manifest;
        self.cuts(manifest)?.check(manifest, source.layers)?;
        Ok(Box::new(llama::LlamaStage::load(&source, config)?))
    }

    fn load_embedder(&self, source: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
        self.cuts(&source.manifest)?;
        Ok(Arc::new(weights::Rows::open(source)?))
    }
}

fn not_loaded(layers: LayerRange, reason: impl ToString) -> EngineError {
    EngineError::Load { engine: NAME, layers, reason: reason.to_string() }
}

fn failed(reason: impl ToString) -> EngineError {
    EngineError::Step { engine: NAME, reason: reason.to_string() }
}

fn bad_model(what: impl Into<String>, reason: impl Into<String>) -> EngineError {
    EngineError::BadModel { what: what.into(), reason: reason.into() }
}
