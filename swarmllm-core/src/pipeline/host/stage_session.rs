//! One session at one stage: checks each step's sender, number and shape, and turns its output into the next message.
//! Pure.

use crate::base::{ErrorKind, Fault, NodeId};
use crate::engine::{MAX_OUTPUT_ROWS, Reduce, Row, StepJob, StepOutput};
use crate::pipeline::link::message::{Message, shape_of};
use crate::wire::control::OpenSession;
use crate::wire::job::{LogitsHeader, RowOutput, StepHeader};

/// The state of one session at one stage.
pub struct StageSession {
    open: OpenSession,
    /// Floats of a hidden state.
    width: u32,
    next_step: u32,
    /// Positions whose KV the slot holds.
    held: u32,
    /// How many of these positions are certain to be text, by the last computed step; the rest are draft tokens.
    committed: u32,
}

impl StageSession {
    /// A session whose slot holds the KV of the first `held` positions.
    pub fn new(open: OpenSession, width: u32, held: u32) -> Self {
        Self { open, width, next_step: 0, held, committed: held }
    }

    /// The coordinator's request.
    pub fn open(&self) -> &OpenSession {
        &self.open
    }

    /// Whether the session has computed a step.
    pub fn begun(&self) -> bool {
        self.next_step > 0
    }

    /// Positions whose KV the slot holds.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Positions that the session's next route can reuse: the slot's certain text. A stage does not know which draft
    /// tokens are accepted, less so while queued steps rewind behind them.
    pub fn reusable(&self) -> u32 {
        self.held.min(self.committed)
    }

    /// Whether this peer may send the session's messages.
    pub fn admits(&self, from: NodeId) -> bool {
        self.open.previous == from
    }

    /// The engine's job for a step in this slot. Refuses a step that the engine cannot know to be wrong: one that is
    /// not the session's next step, or exceeds the request. Rewound positions count as gone from then on, since the
    /// step may be given up before it is computed.
    pub fn job(&mut self, header: &StepHeader, hidden: Vec<f32>, slot: u32) -> Result<StepJob, Fault> {
        self.check(header)?;
        let (first, want_from) = (header.pos, header.want_from);
        let wants = |index: u32| index >= want_from && !self.open.is_standby;
        let row = |index: u32| Row { slot, pos: first.saturating_add(index), want: wants(index) };
        let rows = (0..header.rows).map(row).collect();
        let reduce = match (self.open.head, header.want) {
            (false, _) => Reduce::Hidden,
            (true, RowOutput::Top { k }) => Reduce::Top(k),
            (true, RowOutput::Full) => Reduce::Full,
            (true, RowOutput::State) => Reduce::State,
        };
        let rewind = first < self.held;
        self.held = self.held.min(first);
        Ok(StepJob { hidden, rows, reduce, exact: self.open.exact, rewind })
    }

    fn check(&self, header: &StepHeader) -> Result<(), Fault> {
        let end = u64::from(header.pos) + u64::from(header.rows);
        if end > u64::from(self.open.context) {
            let text = format!("positions up to {end} exceed the {} that were admitted", self.open.context);
            return Err(Fault::new(ErrorKind::ContextOverflow, text));
        }
        if header.step > self.next_step {
            // A link broke in between, and the sender may not know that yet.
            let text = format!("the steps from {} to {} were lost on the link", self.next_step, header.step);
            return Err(Fault::new(ErrorKind::PeerLost, text));
        }
        if header.step != self.next_step || header.width != self.width {
            let text = format!("step {} of width {} where step {} follows", header.step, header.width, self.next_step);
            return Err(Fault::new(ErrorKind::BadFrame, text));
        }
        check_wanted(header)
    }

    /// Notes a computed step; returns the message for the next stage or the coordinator. A standby sends none.
    pub fn done(&mut self, mut header: StepHeader, output: StepOutput, compute_us: u32) -> Option<Message> {
        header.compute_us.push(compute_us);
        self.next_step += 1;
        self.held = header.pos + header.rows;
        self.committed = header.committed;
        if self.open.is_standby {
            return None;
        }
        Some(match output {
            StepOutput::Hidden(hidden) => {
                header.stage += 1;
                Message::Step { header, hidden }
            }
            StepOutput::Logits(rows) => {
                let StepHeader { session, epoch, step, compute_us, .. } = header;
                let (shape, count) = (shape_of(&rows), rows.len() as u32);
                Message::Logits { header: LogitsHeader { session, epoch, step, rows: count, shape, compute_us }, rows }
            }
        })
    }

    /// The message for the coordinator where a step failed.
    pub fn failed(&self, fault: Fault) -> Message {
        let OpenSession { session, epoch, stage, .. } = self.open;
        Message::Failed { session, epoch, stage, fault }
    }
}

/// Refuses a step that wants more output rows than are budgeted. Whatever the engine, each wanted row covers the whole
/// vocabulary before it is reduced: with 262,144 tokens, 512 rows would be 512 MiB that no budget counts.
fn check_wanted(header: &StepHeader) -> Result<(), Fault> {
    match header.rows.saturating_sub(header.want_from) {
        0..=MAX_OUTPUT_ROWS => Ok(()),
        wanted => {
            let text = format!("a step wants {wanted} rows of output, {MAX_OUTPUT_ROWS} at most");
            Err(Fault::new(ErrorKind::BadFrame, text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::SessionId;
    use crate::wire::codec::Codec;

    #[test]
    fn a_step_that_wants_too_many_output_rows_is_refused() {
        let header = |rows, want_from| StepHeader {
            session: SessionId([1; 16]),
            epoch: 0,
            stage: 0,
            step: 0,
            pos: 0,
            rows,
            width: 1,
            codec: Codec::F32,
            want_from,
            want: RowOutput::Full,
            committed: 0,
            compute_us: Vec::new(),
        };
        for (rows, want_from) in [(512, 512), (512, 448), (64, 0), (1, u32::MAX)] {
            assert!(check_wanted(&header(rows, want_from)).is_ok(), "{rows} {want_from}");
        }
        for (rows, want_from) in [(65, 0), (512, 447), (u32::MAX, 0)] {
            let refused = check_wanted(&header(rows, want_from)).map_err(|fault| fault.kind());
            assert_eq!(refused, Err(ErrorKind::BadFrame), "{rows} {want_from}");
        }
    }
}
