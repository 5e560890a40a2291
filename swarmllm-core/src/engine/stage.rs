//! What an engine is: the contract of stages and embedders, and what they are loaded with.

use std::sync::Arc;

use super::gate::GATE;
use super::{CutRules, EngineError};
use crate::base::LayerRange;
use crate::model::{EmbeddingSource, Manifest, StageSource};

/// Rows of one step of which output may be wanted of a stage with the head, where its steps have so many.
pub const WANTED_ROWS: u32 = 64;

/// What a stage is loaded with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageConfig {
    /// Positions that each session may have; the stage keeps KV cells for `context * max_sessions`.
    pub context: u32,
    /// Sessions that may be live at once; slots are `0..max_sessions`.
    pub max_sessions: u32,
    /// Rows that one step may have.
    pub max_rows: u32,
    /// Compute threads.
    pub threads: u32,
    /// How keys and values are kept.
    pub kv: KvCache,
    /// Layers that an accelerator computes, at most, the head being one; the rest is the processor's. Without effect where
    /// the build or the machine has none.
    pub gpu_layers: u32,
    /// Whether the cores are kept awake between steps that come from afar, which costs power.
    pub keep_awake: bool,
}

/// How a stage keeps keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvCache {
    /// As the engine computes them: llama.cpp in f16, candle in f32.
    #[default]
    Full,
    /// In blocks of 32 with 8 bits each and a scale, llama.cpp's `q8_0`: 34 bytes where f16 has 64. Answers differ from
    /// those of the plain model, so that none can be exact.
    Q8,
}

impl StageConfig {
    /// Rows of one prefill chunk: llama.cpp's results are equal for chunks of 64 and of 512 rows, and 512 is its own
    /// default, so that a split prefill has the shapes of the whole model's.
    pub const DEFAULT_MAX_ROWS: u32 = 512;
}

impl Default for StageConfig {
    fn default() -> Self {
        let (max_rows, kv, gpu_layers) = (Self::DEFAULT_MAX_ROWS, KvCache::Full, u32::MAX);
        Self { context: 4096, max_sessions: 4, max_rows, threads: 1, kv, gpu_layers, keep_awake: false }
    }
}

impl std::str::FromStr for KvCache {
    type Err = String;

    /// `full` or `q8_0`.
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "full" => Ok(Self::Full),
            "q8_0" => Ok(Self::Q8),
            _ => Err(format!("keys and values are kept `full` or in `q8_0`, not in `{name}`")),
        }
    }
}

/// What a loaded stage is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageSpec {
    /// Name of the engine.
    pub engine: &'static str,
    /// Layers of the model that the stage computes.
    pub layers: LayerRange,
    /// Floats in one hidden state.
    pub width: u32,
    /// Logits in one row, where the stage holds the head.
    pub vocab: Option<u32>,
    /// As configured (or less, where the model was trained for less).
    pub config: StageConfig,
    /// Bytes of memory that weights and KV take, as far as the engine tells.
    pub memory: u64,
}

/// One row of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The session's slot in this stage.
    pub slot: u32,
    /// Position in the session, from 0, without gaps.
    pub pos: u32,
    /// Whether logits of the row are wanted. Only a stage with the head looks at it.
    pub want: bool,
}

/// How a step is computed. By default as in a plain run: whole, for logits, bit by bit.
#[derive(Clone, Copy, Default)]
pub struct Terms<'a> {
    /// Of each wanted row of a stage with the head, give in place of its logits the `width` floats behind the output norm
    /// that logits are made of.
    pub states: bool,
    /// The numbers may differ from a plain run's by rounding: the engine may compute with as many threads as it finds
    /// fastest, and multiply as it finds fastest.
    pub free: bool,
    /// Says whether nobody wants the result any more. Asked now and then in the middle of a computation; must not block.
    pub abandoned: Option<&'a (dyn Fn() -> bool + Sync)>,
}

impl Terms<'_> {
    /// Whether nobody wants the result any more, or the process is ending.
    pub fn is_abandoned(&self) -> bool {
        GATE.is_shut() || self.abandoned.is_some_and(|abandoned| abandoned())
    }
}

/// A range of layers, loaded. Owned by one OS thread.
pub trait Stage: Send {
    /// What it is.
    fn spec(&self) -> &StageSpec;

    /// Refuses a step as [`step`](Stage::step) would, without computing it.
    fn check(&self, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError>;

    /// Computes one step. `hidden` is `rows.len() * width` finite floats, row after row. Appends to the cleared `out`:
    /// without the head every row's hidden state, with it what `terms` ask of each wanted row, in row order.
    ///
    /// Rows of several sessions may be computed at once where they lie session by session and by rising slots; results may
    /// then differ, in the rounding of sums, from those of a step of each. A session whose numbers overflow there gets
    /// them as they are, so that it alone fails; one that is computed by itself gets an error.
    ///
    /// A refused step (shape, position, slot, non-finite input) changes nothing. A step that fails, or ends as
    /// [`EngineError::Abandoned`], leaves each of its sessions with what it held before, or with nothing where the engine
    /// cannot go back.
    fn compute(&mut self, hidden: &[f32], rows: &[Row], terms: Terms, out: &mut Vec<f32>) -> Result<(), EngineError>;

    /// Computes one step as a plain run does.
    fn step(&mut self, hidden: &[f32], rows: &[Row], out: &mut Vec<f32>) -> Result<(), EngineError> {
        self.compute(hidden, rows, Terms::default(), out)
    }

    /// Keeps the first `len` positions of a session and forgets the rest.
    fn truncate(&mut self, slot: u32, len: u32) -> Result<(), EngineError>;

    /// Forgets a session. Unknown slots are ignored.
    fn release(&mut self, slot: u32);

    /// The session's KV state; only an equal engine build with equal layers can restore it.
    fn snapshot(&mut self, slot: u32) -> Result<Vec<u8>, EngineError>;

    /// Replaces the session's KV state; `len` is how many positions it holds.
    fn restore(&mut self, slot: u32, len: u32, state: &[u8]) -> Result<(), EngineError>;
}

/// Looks up the rows of an embedding matrix, with the engine's own dequantisation and the architecture's scale.
pub trait Embedder: Send + Sync {
    /// Floats in one row.
    fn width(&self) -> u32;

    /// Appends `tokens.len() * width` floats to the cleared `out`.
    fn embed(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<(), EngineError>;
}

/// One way to run models.
pub trait Engine: Send + Sync {
    /// `llama.cpp`, `candle` or `echo`.
    fn name(&self) -> &'static str;

    /// The cut rules of a model that the engine serves; an error says why it does not serve it.
    fn cuts(&self, manifest: &Manifest) -> Result<CutRules, EngineError>;

    /// Bytes that a stage takes: weights, KV of all sessions, and what a step needs beside them. Asked before a stage is
    /// loaded, of models that the engine serves; of others it may give any number.
    fn memory(&self, manifest: &Manifest, layers: LayerRange, head: bool, config: &StageConfig) -> u64;

    /// Loads a stage. Blocks for as long as reading its weights takes; called on the thread that will own it.
    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError>;

    /// What computes beside the processor in this build on this machine, by name.
    fn accelerators(&self) -> Vec<String> {
        Vec::new()
    }

    /// Loads an embedding. Blocks.
    fn load_embedder(&self, source: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError>;
}

/// Bytes of a stage's shards, and of the hidden states that one step of it has at once.
pub(super) fn tensors_and_scratch(manifest: &Manifest, layers: LayerRange, head: bool, config: &StageConfig) -> u64 {
    /// Activations and graph of a step: about this many hidden states per row.
    const SCRATCH_STATES: u64 = 16;
    let tensors: u64 = manifest.stage_shards(layers, head).map(|shard| shard.size).sum();
    let states = u64::from(config.max_rows).saturating_mul(u64::from(manifest.width)).saturating_mul(SCRATCH_STATES);
    tensors.saturating_add(states.saturating_mul(size_of::<f32>() as u64))
}

/// KV cells of a stage's sessions in all its layers.
pub(super) fn cells(layers: LayerRange, context: u32, sessions: u32) -> u64 {
    u64::from(layers.len()).saturating_mul(u64::from(context)).saturating_mul(u64::from(sessions))
}
