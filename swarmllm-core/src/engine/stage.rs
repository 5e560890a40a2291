//! The engine interface: engines, stages, embedders and their configuration.

use std::sync::Arc;

use super::exit_gate::EXIT_GATE;
use super::{CutRules, EngineError};
use crate::base::LayerRange;
use crate::model::{EmbeddingSource, Manifest, StageSource};

/// Most rows of one step for which a stage with the head gives output.
pub const MAX_OUTPUT_ROWS: u32 = 64;

/// Configuration of a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageConfig {
    /// Positions of each session; the stage allocates `context * max_sessions` KV cells.
    pub context: u32,
    /// Most concurrent sessions; slots are `0..max_sessions`.
    pub max_sessions: u32,
    /// Most rows of one step.
    pub max_rows: u32,
    /// Compute threads.
    pub threads: u32,
    /// Number format of the KV cache.
    pub kv: KvType,
    /// Most layers on an accelerator; the head counts as one. The CPU computes the rest. Without effect if the build or the
    /// machine has no accelerator.
    pub gpu_layers: u32,
    /// Keeps the cores awake between steps of a distributed generation, at the cost of power; Linux only.
    pub keep_awake: bool,
}

/// Number format of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// The engine's own format: f16 for llama.cpp, f32 for candle.
    #[default]
    Full,
    /// llama.cpp's `q8_0`: blocks of 32 values of 8 bits with one scale, 34 bytes where f16 takes 64. Output differs
    /// from the plain model's, so exact generations are impossible.
    Q8,
}

impl StageConfig {
    /// Rows of one prefill chunk. llama.cpp gives equal results for chunks of 64 and of 512 rows; 512 is its default, so a
    /// split model prefills in the same shapes as the whole model.
    pub const DEFAULT_MAX_ROWS: u32 = 512;
}

impl Default for StageConfig {
    fn default() -> Self {
        let (max_rows, kv, gpu_layers) = (Self::DEFAULT_MAX_ROWS, KvType::Full, u32::MAX);
        Self { context: 4096, max_sessions: 4, max_rows, threads: 1, kv, gpu_layers, keep_awake: false }
    }
}

impl std::str::FromStr for KvType {
    type Err = String;

    /// `full` or `q8_0`.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "full" => Ok(Self::Full),
            "q8_0" => Ok(Self::Q8),
            _ => Err(format!("the KV type is `full` or `q8_0`, not `{name}`")),
        }
    }
}

/// Description of a loaded stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageSpec {
    /// Name of the engine.
    pub engine: &'static str,
    /// Layers that the stage computes.
    pub layers: LayerRange,
    /// Floats of one hidden state.
    pub width: u32,
    /// Logits of one row; `None` without the head.
    pub vocab: Option<u32>,
    /// Effective configuration; its context is at most the model's.
    pub config: StageConfig,
    /// Bytes of weights and KV, as reported by the engine.
    pub memory: u64,
}

/// One row of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The session's slot in this stage.
    pub slot: u32,
    /// Position in the session, from 0, without gaps.
    pub pos: u32,
    /// Whether the stage with the head gives output for the row. Other stages ignore it.
    pub want: bool,
}

/// Options of one step. The default is a plain run: whole, exact, with logits.
#[derive(Clone, Copy, Default)]
pub struct StepOptions<'a> {
    /// A stage with the head gives, for each wanted row, the `width` floats behind the output norm instead of logits.
    pub states: bool,
    /// Allows results that differ from a plain run's by rounding: the engine may choose the fastest number of threads and
    /// the fastest matrix products.
    pub allow_rounding: bool,
    /// Returns true once the result is no longer needed. Polled during a computation; must not block.
    pub cancelled: Option<&'a (dyn Fn() -> bool + Sync)>,
}

impl StepOptions<'_> {
    /// Whether the result is no longer needed, or the process is ending.
    pub fn is_cancelled(&self) -> bool {
        EXIT_GATE.is_closed() || self.cancelled.is_some_and(|cancelled| cancelled())
    }
}

/// A loaded range of layers. Owned by one OS thread.
pub trait Stage: Send {
    /// Description of the stage.
    fn spec(&self) -> &StageSpec;

    /// Validates a step as [`step`](Stage::step) does, without computing it.
    fn check(&self, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError>;

    /// Computes one step. `hidden` is `rows.len() * width` finite floats, row by row. Clears `out` and fills it in row
    /// order: without the head with the hidden state of every row, with the head with the output of each wanted row.
    ///
    /// Rows of several sessions must be grouped by session in ascending slot order. Results of such a step may differ by
    /// rounding from those of separate steps. In such a step a session whose values overflow gets the non-finite values,
    /// so that it alone fails; in a step of one session overflow is an error.
    ///
    /// A refused step (shape, position, slot, non-finite input) changes nothing. A step that fails, or ends with
    /// [`EngineError::Cancelled`], leaves each session at its length before the step, or empty if the engine cannot roll
    /// back.
    fn compute(
        &mut self,
        hidden: &[f32],
        rows: &[Row],
        options: StepOptions,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError>;

    /// Computes one step with the default options.
    fn step(&mut self, hidden: &[f32], rows: &[Row], out: &mut Vec<f32>) -> Result<(), EngineError> {
        self.compute(hidden, rows, StepOptions::default(), out)
    }

    /// Keeps the first `len` positions of a session and drops the rest.
    fn truncate(&mut self, slot: u32, len: u32) -> Result<(), EngineError>;

    /// Drops a session. Ignores unknown slots.
    fn release(&mut self, slot: u32);
}

/// Looks up rows of the embedding matrix, with the engine's dequantisation and the architecture's scale.
pub trait Embedder: Send + Sync {
    /// Floats of one row.
    fn width(&self) -> u32;

    /// Clears `out` and fills it with `tokens.len() * width` floats.
    fn embed(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<(), EngineError>;
}

/// An inference engine.
pub trait Engine: Send + Sync {
    /// `llama.cpp`, `candle` or `echo`.
    fn name(&self) -> &'static str;

    /// Cut rules of a model; the error is the reason why the engine does not support the model.
    fn cuts(&self, manifest: &Manifest) -> Result<CutRules, EngineError>;

    /// Estimated bytes of a stage before it is loaded: weights, KV of all sessions, and step buffers. The result for an
    /// unsupported model is unspecified.
    fn memory(&self, manifest: &Manifest, layers: LayerRange, head: bool, config: &StageConfig) -> u64;

    /// Loads a stage. Blocks while it reads the weights; called on the thread that will own the stage.
    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError>;

    /// Names of the accelerators that this build can use on this machine.
    fn accelerators(&self) -> Vec<String> {
        Vec::new()
    }

    /// Loads an embedding. Blocks.
    fn load_embedder(&self, source: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError>;
}

/// Bytes of a stage's shards and of one step's intermediate states.
pub(super) fn tensors_and_scratch(manifest: &Manifest, layers: LayerRange, head: bool, config: &StageConfig) -> u64 {
    /// Hidden states per row that the activations and the graph of a step take, about.
    const SCRATCH_STATES: u64 = 16;
    let tensors: u64 = manifest.stage_shards(layers, head).map(|shard| shard.size).sum();
    let states = u64::from(config.max_rows).saturating_mul(u64::from(manifest.width)).saturating_mul(SCRATCH_STATES);
    tensors.saturating_add(states.saturating_mul(size_of::<f32>() as u64))
}

/// KV cells of all sessions in all layers of a stage.
pub(super) fn kv_cells(layers: LayerRange, context: u32, sessions: u32) -> u64 {
    u64::from(layers.len()).saturating_mul(u64::from(context)).saturating_mul(u64::from(sessions))
}
