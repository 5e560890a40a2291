//! Why an engine refused or failed.

use crate::base::{ErrorKind, LayerRange};

/// Why a stage or an engine refused or failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The architecture is not certified for this engine.
    #[error("architecture `{architecture}` is not certified on {engine}")]
    UnsupportedArchitecture { engine: &'static str, architecture: String, certified: String },
    /// The layers cannot be a stage of this architecture.
    #[error("layers {layers} of `{architecture}` cannot be a stage: {rule}")]
    IllegalCut { architecture: String, layers: LayerRange, rule: String },
    /// No engine is built in that serves the model.
    #[error("no engine of this build serves the model: {reason}")]
    NoEngine { reason: String },
    /// The model's tensors or facts are not what the architecture needs.
    #[error("{what} of the model cannot be used: {reason}")]
    BadModel { what: String, reason: String },
    /// The engine could not load the stage.
    #[error("{engine} could not load layers {layers}: {reason}")]
    Load { engine: &'static str, layers: LayerRange, reason: String },
    /// A step has more rows than the stage admits, or none.
    #[error("a step of {rows} rows was given, 1 to {max} are admitted")]
    Rows { rows: usize, max: u32 },
    /// The hidden states are not `rows * width` floats.
    #[error("{given} floats were given for {rows} rows of width {width}")]
    Shape { given: usize, rows: usize, width: u32 },
    /// A hidden state or logit is NaN or infinite.
    #[error("row {row} holds a value that is not finite")]
    NotFinite { row: usize },
    /// A row's position does not follow the one before it in its session.
    #[error("position {given} was given where {expected} follows")]
    Position { given: u32, expected: u32 },
    /// A slot outside `0..max_sessions`.
    #[error("slot {slot} was given, the stage has {slots}")]
    Slot { slot: u32, slots: u32 },
    /// A token outside the vocabulary.
    #[error("token {token} was given, the vocabulary has {vocab}")]
    Token { token: u32, vocab: u32 },
    /// The stage's KV cells are used up.
    #[error("the context of {context} tokens is full")]
    ContextFull { context: u32 },
    /// The engine failed in the middle of a step.
    #[error("{engine} failed at a step: {reason}")]
    Step { engine: &'static str, reason: String },
    /// Whoever asked for the step has gone.
    #[error("nobody waits for the step any more")]
    Abandoned,
    /// A KV snapshot is not one of this stage.
    #[error("the KV snapshot cannot be restored: {reason}")]
    Snapshot { reason: String },
    /// The stage's queue is full.
    #[error("the stage's queue of {depth} jobs is full")]
    Busy { depth: usize },
    /// The stage's thread has ended.
    #[error("the stage has been unloaded")]
    Gone,
}

impl EngineError {
    /// The kind that crosses borders.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::UnsupportedArchitecture { .. } => ErrorKind::UnsupportedArchitecture,
            Self::NoEngine { .. } => ErrorKind::Unsupported,
            Self::IllegalCut { .. } => ErrorKind::NoPlan,
            Self::BadModel { .. } => ErrorKind::BadGguf,
            Self::Load { .. } | Self::Step { .. } => ErrorKind::EngineFailed,
            Self::Rows { .. } | Self::Shape { .. } | Self::NotFinite { .. } | Self::Position { .. } => {
                ErrorKind::BadFrame
            }
            Self::Slot { .. } | Self::Token { .. } | Self::Snapshot { .. } => ErrorKind::InvalidArgument,
            Self::ContextFull { .. } => ErrorKind::ContextOverflow,
            Self::Busy { .. } => ErrorKind::Overloaded,
            Self::Abandoned => ErrorKind::Cancelled,
            Self::Gone => ErrorKind::Closed,
        }
    }
}
