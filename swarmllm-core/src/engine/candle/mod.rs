//! The pure-Rust engine, on candle: no C toolchain needed, and a second opinion on what llama.cpp computes.
//!
//! The arithmetic is written once; what tells an architecture from the others is a description in `architecture`, there
//! only once it was shown that any split gives the bits of the whole and that the whole is what an independent engine
//! computes. What the description does not know (a key, a tensor, a scaling rule) is refused, never computed wrong.
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
//! session gets does not depend on its neighbours. As with llama.cpp it does depend on how many rows a step has; steps that
//! need not have the bits of candle's own models are moreover multiplied otherwise where that is faster (`matrix`).

mod architecture;
mod attention;
mod device;
mod error;
mod facts;
mod kv;
mod matrix;
mod model;
mod parts;
mod rope;
mod shape;
mod stage;
mod tensors;
mod weights;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use error::NAME;
use shape::Shape;
use stage::CandleStage;
use weights::Rows;

use super::stage::{cells, tensors_and_scratch};
use super::{CutRules, Embedder, Engine, EngineError, Stage, StageConfig};
use crate::base::LayerRange;
use crate::model::{EmbeddingSource, Manifest, StageSource};

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
        // Layers are told apart by their place in the model, never in the stage, so that any cut is legal.
        let shape = Shape::read(manifest)?;
        tensors::check_model(&shape, manifest)?;
        Ok(CutRules::free())
    }

    fn memory(&self, manifest: &Manifest, layers: LayerRange, head: bool, config: &StageConfig) -> u64 {
        let cells = cells(layers, config.context.min(manifest.context), config.max_sessions);
        let own = Shape::read(manifest).map_or(0, |shape| {
            let kv = (shape.cells().floats() * size_of::<f32>()) as u64;
            cells.saturating_mul(kv).saturating_add(shape.matrix_bytes())
        });
        tensors_and_scratch(manifest, layers, head, config).saturating_add(own)
    }

    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        let manifest = &source.manifest;
        // The stage's own tensors are checked as they are taken.
        Shape::read(manifest)?;
        CutRules::free().check(manifest, source.layers)?;
        Ok(Box::new(CandleStage::load(&source, config)?))
    }

    fn accelerators(&self) -> Vec<String> {
        device::name().into_iter().collect()
    }

    fn load_embedder(&self, source: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
        let shape = Shape::read(&source.manifest)?;
        Ok(Arc::new(Rows::open(source, &shape)?))
    }
}
