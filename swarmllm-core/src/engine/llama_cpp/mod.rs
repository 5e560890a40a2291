//! llama.cpp as an engine: a range of layers of a GGUF model, unpatched, through its public C interface.
//!
//! Owns every `unsafe` block that touches llama.cpp. A stage is loaded from a *stage image* ([`image`]): a GGUF that
//! exists nowhere but in the answers to llama.cpp's reads, whose header is synthesised from checked facts ([`shape`])
//! and whose tensor bytes come straight from the shard files. Hidden states go in through `llama_batch.embd`; a stage
//! without the head hands out its last layer's output through the public evaluation callback ([`capture`]), which then
//! stops the graph. What is particular about an architecture stands in one description
//! ([`architecture`]), and [`architectures`] is the list of them.
//!
//! Promises: a chain of stages gives bit for bit what the whole model gives, for equal step shapes, cell layouts and
//! thread counts; nothing foreign reaches llama.cpp unchecked, because it aborts the process where it is misused.
//! Refuses: architectures that are not on the certified list, cuts that would abort, and models whose facts and tensors
//! are not exactly what the architecture needs.
//!
//! Process-wide, because llama.cpp has them so: its log callback and its abort callback ([`log`]), and which build of its
//! CPU kernels is used ([`kernels`]).

mod architecture;
mod architectures;
mod capture;
mod embedder;
mod error;
mod exit;
mod facts;
mod file;
mod gpu;
mod header;
mod huge_pages;
mod image;
mod kernels;
mod kv;
// A level's settings are for the build script.
#[allow(dead_code)]
mod levels;
mod limits;
mod log;
mod model;
mod plain;
mod pool;
mod read_at;
mod rope;
mod shape;
mod snapshot;
mod stage;
mod stop;
mod tensors;
#[cfg(test)]
mod tests;
mod threads;
mod window;

use std::sync::{Arc, OnceLock};

use super::stage::tensors_and_scratch;
use super::{CutRules, Embedder, Engine, EngineError, Stage, StageConfig};
use crate::base::LayerRange;
use crate::model::{EmbeddingSource, Manifest, StageSource};

pub use kernels::{Kernels, MissingKernels};

use architectures::read_shape;
use embedder::LlamaEmbedder;
use error::ENGINE;
use image::Image;
use pool::Pools;
use stage::LlamaStage;

/// Starts llama.cpp for this process, once; the first load does it otherwise. A host that uses llama.cpp besides us calls
/// this before: what it had loaded earlier may be with kernels that are then no longer the registered ones.
pub fn start() {
    log::init();
}

/// Which build of llama.cpp's CPU kernels this machine gets.
pub fn kernels() -> Kernels {
    kernels::found()
}

/// Refuses machines that llama.cpp's kernels would end the process on.
fn check_machine() -> Result<(), EngineError> {
    match levels::has_base() {
        true => Ok(()),
        false => Err(EngineError::NoEngine {
            reason: "llama.cpp is built for processors with AVX2, FMA, BMI2 and F16C, which this one has not"
                .to_owned(),
        }),
    }
}

/// The llama.cpp engine. Stages loaded from one value share compute threads; two values share only the process's cores,
/// of which no more are in use at once than there are.
#[derive(Debug, Default)]
pub struct LlamaCpp {
    pools: Pools,
}

impl LlamaCpp {
    /// An engine without stages; compute threads start with the first stage.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Engine for LlamaCpp {
    fn name(&self) -> &'static str {
        ENGINE
    }

    fn cuts(&self, manifest: &Manifest) -> Result<CutRules, EngineError> {
        check_machine()?;
        let shape = read_shape(manifest)?;
        tensors::check_model(&shape, manifest)?;
        Ok(shape.cuts())
    }

    fn accelerators(&self) -> Vec<String> {
        gpu::names().to_vec()
    }

    fn memory(&self, manifest: &Manifest, layers: LayerRange, head: bool, config: &StageConfig) -> u64 {
        let own =
            |shape| stage::memory(&shape, layers, head, config).saturating_add(Image::stand_in_bytes(&shape, head));
        let engine = read_shape(manifest).map_or(0, own);
        let tensors = manifest.stage_shards(layers, head).flat_map(|shard| &shard.tensors);
        let buffer = match gpu::layers(config.gpu_layers, layers, head) {
            0 => plain::buffer_bytes(tensors),
            _ => 0,
        };
        tensors_and_scratch(manifest, layers, head, config).saturating_add(engine).saturating_add(buffer)
    }

    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        check_machine()?;
        let shape = read_shape(&source.manifest)?;
        shape.admit(source.layers, source.head)?;
        tensors::check_stage(&shape, &source)?;
        let image = Image::of_stage(&shape, &source);
        log::init();
        let stage = LlamaStage::load(&shape, &source, &image, config, &self.pools)?;
        // A first load may have made tables that a start does not.
        static LOADED: OnceLock<()> = OnceLock::new();
        exit::guard(&LOADED);
        Ok(Box::new(stage))
    }

    fn load_embedder(&self, source: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
        check_machine()?;
        let shape = read_shape(&source.manifest)?;
        tensors::check_embedding(&shape, &source.tensor.entry)?;
        log::init();
        Ok(Arc::new(LlamaEmbedder::new(&shape, source.tensor)?))
    }
}
