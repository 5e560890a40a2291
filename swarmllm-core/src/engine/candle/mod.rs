//! The pure-Rust engine on candle: it needs no C toolchain and verifies llama.cpp's results independently.
//!
//! All architectures share the arithmetic; `architecture` has a description of each. A description is added once tests show
//! that any split equals the whole bit by bit and that the whole equals an independent engine. Unknown keys, tensors and
//! scaling rules are refused.
//!
//! Threads: candle 0.11 has two pools, started once per process and sized by `CANDLE_NUM_THREADS` or `RAYON_NUM_THREADS`,
//! else by the physical cores. All stages share them, and [`StageConfig::threads`] has no effect. Work runs inside candle's
//! pool, so that rayon's global pool, which belongs to the host, is neither sized nor started here.
//!
//! A panic on a candle worker poisons its pool and thereby every stage of the process. So all of candle's assertions are
//! checked before: tensors at load time (`weights`), steps before the computation.
//!
//! Results: rows of a session are never computed together with another session's, so that results do not depend on other
//! sessions. As with llama.cpp they depend on the number of rows of a step. Steps that allow rounding use faster products
//! that differ from those of candle's models (`matrix`).

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

use super::stage::{kv_cells, tensors_and_scratch};
use super::{CutRules, Embedder, Engine, EngineError, Stage, StageConfig};
use crate::base::LayerRange;
use crate::model::{EmbeddingSource, Manifest, StageSource};

/// The candle engine.
#[derive(Debug, Clone, Default)]
pub struct Candle {
    _private: (),
}

impl Candle {
    /// An engine. candle's pools start with the first step.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for Candle {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cuts(&self, manifest: &Manifest) -> Result<CutRules, EngineError> {
        // Layers are identified by their index in the model, never in the stage, so that any cut is legal.
        let shape = Shape::read(manifest)?;
        tensors::check_model(&shape, manifest)?;
        Ok(CutRules::any())
    }

    fn memory(&self, manifest: &Manifest, layers: LayerRange, head: bool, config: &StageConfig) -> u64 {
        let cells = kv_cells(layers, config.context.min(manifest.context), config.max_sessions);
        let own = Shape::read(manifest).map_or(0, |shape| {
            let kv = (shape.cells().floats() * size_of::<f32>()) as u64;
            cells.saturating_mul(kv).saturating_add(shape.matrix_bytes())
        });
        tensors_and_scratch(manifest, layers, head, config).saturating_add(own)
    }

    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        let manifest = &source.manifest;
        // The stage's tensors are validated while they are loaded.
        Shape::read(manifest)?;
        CutRules::any().check(manifest, source.layers)?;
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
