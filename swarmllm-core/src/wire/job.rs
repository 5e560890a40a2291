//! Stage messages: one way, in order, over the persistent stream of a hop.

use serde::{Deserialize, Serialize};

use crate::base::{Fault, SessionId};
use crate::wire::codec::Codec;

/// How a last stage reduces a row of logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Want {
    /// The `k` largest with their token ids, and the log-sum-exp of the whole row.
    Top { k: u32 },
    /// The full row.
    Full,
    /// The state behind the output norm, in place of logits.
    State,
}

/// The header of a stage frame. The body is little-endian: hidden states (`rows * width`, by their codec) for a `Step`; for a
/// `Logits` row after row as its [`LogitShape`] says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StageHeader {
    /// Compute rows and pass them on.
    Step(StepHeader),
    /// The last stage's answer, to the coordinator.
    Logits(LogitsHeader),
    /// A stage could not do its work; to the coordinator.
    Failed { session: SessionId, epoch: u32, stage: u32, fault: Fault },
}

/// See [`StageHeader::Step`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepHeader {
    /// The session.
    pub session: SessionId,
    /// Frames of another epoch are dropped.
    pub epoch: u32,
    /// Which stage of the plan is to compute it, from 0.
    pub stage: u32,
    /// Number of the step within the session, from 0.
    pub step: u32,
    /// Position of the first row. Positions from there on that were computed before are forgotten.
    pub pos: u32,
    /// Rows.
    pub rows: u32,
    /// Floats per row.
    pub width: u32,
    /// How they are written here, and on the way to all stages behind.
    pub codec: Codec,
    /// Logits are wanted from this row on (`rows` where none).
    pub want_from: u32,
    /// How to reduce them.
    pub want: Want,
    /// Positions of the text that will not change; rows behind them may be guesses. As many of them as are computed may be
    /// kept for the session's next route.
    pub certain: u32,
    /// Microseconds of compute at each stage so far, in stage order.
    pub compute_us: Vec<u32>,
}

/// See [`StageHeader::Logits`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogitsHeader {
    /// The session.
    pub session: SessionId,
    /// Epoch of the step.
    pub epoch: u32,
    /// Number of the step.
    pub step: u32,
    /// Rows in the body; 0 confirms a step that wanted none.
    pub rows: u32,
    /// Shape of each row.
    pub shape: LogitShape,
    /// Microseconds of compute at each stage, in stage order.
    pub compute_us: Vec<u32>,
}

/// Layout of one row of logits in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogitShape {
    /// f32 log-sum-exp, then `k` u32 ids, then `k` f32 logits, largest first.
    Top { k: u32 },
    /// `vocab` f32 logits, or as many floats as a state has.
    Full { vocab: u32 },
}

/// Most stages of a plan, so most entries of `compute_us`.
pub const MAX_STAGES: usize = 256;
/// Longest header, in bytes.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;
/// Longest body, in bytes: 2,048 rows of width 16,384 in f32 are 128 MiB.
pub const MAX_BODY_BYTES: usize = 128 * 1024 * 1024;
