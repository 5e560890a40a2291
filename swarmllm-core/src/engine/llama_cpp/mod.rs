//! (to be written)
use std::sync::Arc;
use super::{CutRules, Embedder, Engine, EngineError, Stage, StageConfig};
use crate::model::{EmbeddingSource, Manifest, StageSource};
/// (to be written)
pub struct LlamaCpp;
impl LlamaCpp {
    /// (to be written)
    pub fn new() -> Self { Self }
}
impl Engine for LlamaCpp {
    fn name(&self) -> &'static str { "llama_cpp" }
    fn cuts(&self, _manifest: &Manifest) -> Result<CutRules, EngineError> { todo!() }
    fn load_stage(&self, _source: StageSource, _config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> { todo!() }
    fn load_embedder(&self, _source: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> { todo!() }
}
