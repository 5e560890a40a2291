//! Errors of engines and stages.

use crate::base::{ErrorKind, LayerRange};

/// Error of an engine or a stage.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The architecture is not certified for this engine.
    #[error("architecture `{architecture}` is not certified on {engine}")]
    UnsupportedArchitecture { engine: &'static str, architecture: String, certified: String },
    /// The layer range is not a legal stage of this architecture.
    #[error("layers {layers} of `{architecture}` cannot be a stage: {rule}")]
    IllegalCut { architecture: String, layers: LayerRange, rule: String },
    /// No engine of this build supports the model.
    #[error("no engine of this build supports the model: {reason}")]
    NoEngine { reason: String },
    /// A tensor or metadata value of the model does not fit the architecture.
    #[error("{what} of the model cannot be used: {reason}")]
    BadModel { what: String, reason: String },
    /// The engine could not load the stage.
    #[error("{engine} could not load layers {layers}: {reason}")]
    Load { engine: &'static str, layers: LayerRange, reason: String },
    /// A step has no rows or too many.
    #[error("the step has {rows} rows, 1 to {max} are allowed")]
    Rows { rows: usize, max: u32 },
    /// The hidden states are not `rows * width` floats.
    #[error("{given} floats were given for {rows} rows of width {width}")]
    Shape { given: usize, rows: usize, width: u32 },
    /// A hidden state or logit is NaN or infinite.
    #[error("row {row} holds a value that is not finite")]
    NotFinite { row: usize },
    /// A row's position is not the next position of its session.
    #[error("the row's position is {given}, the session's next position is {expected}")]
    Position { given: u32, expected: u32 },
    /// The slot is outside `0..max_sessions`.
    #[error("slot {slot} does not exist, the stage has {slots} slots")]
    Slot { slot: u32, slots: u32 },
    /// The token is outside the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab} tokens")]
    Token { token: u32, vocab: u32 },
    /// The session has no free KV cells.
    #[error("the context of {context} tokens is full")]
    ContextFull { context: u32 },
    /// The engine failed during a step.
    #[error("{engine} failed during a step: {reason}")]
    Step { engine: &'static str, reason: String },
    /// The caller dropped the step.
    #[error("the step was cancelled")]
    Cancelled,
    /// The stage's queue is full.
    #[error("the stage's queue of {depth} jobs is full")]
    Busy { depth: usize },
    /// The stage's thread has ended.
    #[error("the stage has been unloaded")]
    Gone,
}

impl EngineError {
    /// The error kind for wire, C and Python.
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
            Self::Slot { .. } | Self::Token { .. } => ErrorKind::InvalidArgument,
            Self::ContextFull { .. } => ErrorKind::ContextOverflow,
            Self::Busy { .. } => ErrorKind::Overloaded,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Gone => ErrorKind::Closed,
        }
    }
}
