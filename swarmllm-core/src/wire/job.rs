//! Stage messages: in one direction, in order, over the persistent stream of a hop.

use serde::{Deserialize, Serialize};

use crate::base::{Fault, SessionId};
use crate::wire::codec::Codec;

/// The requested output of the last stage per row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RowOutput {
    /// The `k` largest logits with their token ids, and the log-sum-exp of the whole row.
    Top { k: u32 },
    /// All logits.
    Full,
    /// The hidden state after the output norm instead of logits.
    State,
}

/// The header of a stage frame. The body is little-endian: for `Step` hidden states (`rows * width`, encoded by the codec);
/// for `Logits` rows in the layout of [`LogitShape`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum StageHeader {
    /// Rows to compute and to forward.
    Step(StepHeader),
    /// The last stage's output, to the coordinator.
    Logits(LogitsHeader),
    /// The failure of a stage, to the coordinator.
    Failed { session: SessionId, epoch: u32, stage: u32, fault: Fault },
}

/// See [`StageHeader::Step`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepHeader {
    /// The session.
    pub session: SessionId,
    /// Epoch of the route; frames of another epoch are dropped.
    pub epoch: u32,
    /// Index of the receiving stage in the plan, from 0.
    pub stage: u32,
    /// Number of the step within the session, from 0.
    pub step: u32,
    /// Position of the first row. Truncates the KV to this position first.
    pub pos: u32,
    /// Number of rows.
    pub rows: u32,
    /// Floats per row.
    pub width: u32,
    /// Encoding of the states, here and on all later hops.
    pub codec: Codec,
    /// First row with an output (`rows` for none).
    pub want_from: u32,
    /// The output of those rows.
    pub want: RowOutput,
    /// Final positions of the text; later rows may be draft tokens. The computed ones among them may be reused by the
    /// session's next route.
    pub committed: u32,
    /// Compute time of each stage so far in microseconds, in stage order.
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
    /// Rows in the body; 0 confirms a step without output.
    pub rows: u32,
    /// Shape of each row.
    pub shape: LogitShape,
    /// Compute time of each stage in microseconds, in stage order.
    pub compute_us: Vec<u32>,
}

/// Layout of one row of logits in the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogitShape {
    /// f32 log-sum-exp, then `k` u32 ids, then `k` f32 logits, largest first.
    Top { k: u32 },
    /// `vocab` f32 logits, or the floats of a hidden state.
    Full { vocab: u32 },
}

/// Maximum stages of a plan, and entries of `compute_us`.
pub const MAX_STAGES: usize = 256;
/// Maximum header in bytes.
pub const MAX_HEADER_BYTES: usize = 8 * 1024;
/// Maximum body in bytes: 2,048 rows of width 16,384 in f32 are 128 MiB.
pub const MAX_BODY_BYTES: usize = 128 * 1024 * 1024;
