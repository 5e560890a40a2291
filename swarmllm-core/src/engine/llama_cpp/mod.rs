//! The llama.cpp engine: runs a range of layers of a GGUF model on unpatched llama.cpp, through its public C interface.
//!
//! All `unsafe` code that calls llama.cpp is here. A stage is loaded from a *stage image* ([`image`]): a virtual GGUF file
//! whose header is synthesised from validated facts ([`shape`]) and whose tensor bytes are read from the shard files.
//! Hidden states go in through `llama_batch.embd`. A stage without the head takes its last layer's output from the public
//! evaluation callback ([`capture`]), which then stops the graph. Each architecture has one description ([`architecture`]);
//! [`architectures`] is their list.
//!
//! Guarantees: a chain of stages gives the whole model's results bit for bit, for equal step shapes, cell layouts and
//! thread counts. Only validated input reaches llama.cpp, because it aborts the process when it is misused. The engine
//! refuses uncertified architectures, cuts that would abort, and models whose facts or tensors do not match the
//! architecture exactly.
//!
//! llama.cpp has process-wide state: its log callback and its abort callback ([`log`]), and the build of its CPU kernels
//! in use ([`kernels`](mod@kernels)).

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
// Only the build script uses a level's settings.
mod cancellation;
#[allow(dead_code)]
mod levels;
mod limits;
mod log;
mod model;
mod pool;
mod read_at;
mod rope;
mod shape;
mod stage;
mod tensors;
#[cfg(test)]
mod tests;
mod threads;
mod unpacked_weights;
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

/// Initialises llama.cpp for this process, once; otherwise the first load does. A host that uses llama.cpp itself must call
/// this first: models that it loaded before would use kernels that are no longer registered.
pub fn start() {
    log::init();
}

/// The build of llama.cpp's CPU kernels that this machine uses.
pub fn kernels() -> Kernels {
    kernels::selected()
}

/// Refuses CPUs on which llama.cpp's kernels would crash.
fn check_machine() -> Result<(), EngineError> {
    match levels::has_base() {
        true => Ok(()),
        false => Err(EngineError::NoEngine {
            reason: "llama.cpp is built for CPUs with AVX2, FMA, BMI2 and F16C, which this CPU lacks".to_owned(),
        }),
    }
}

/// The llama.cpp engine. Stages of one value share compute threads; two values share only the process's core pool.
#[derive(Debug, Default)]
pub struct LlamaCpp {
    pools: Pools,
}

impl LlamaCpp {
    /// An engine without stages. Compute threads start with the first stage.
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
            |shape| stage::memory(&shape, layers, head, config).saturating_add(Image::placeholder_bytes(&shape, head));
        let engine = read_shape(manifest).map_or(0, own);
        let tensors = manifest.stage_shards(layers, head).flat_map(|shard| &shard.tensors);
        let buffer = match gpu::layers(config.gpu_layers, layers, head) {
            0 => unpacked_weights::buffer_bytes(tensors),
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
        // The first load may create further process-wide tables.
        static LOADED: OnceLock<()> = OnceLock::new();
        exit::register(&LOADED);
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
