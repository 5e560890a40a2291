//! A session at one stage, as its steps come: whose they are, which is the next, and what is passed on. Pure.

use crate::base::{ErrorKind, Fault, NodeId};
use crate::engine::{Reduce, Row, StepJob, StepOutput, WANTED_ROWS};
use crate::pipeline::message::{Message, shape_of};
use crate::wire::control::OpenSession;
use crate::wire::job::{LogitsHeader, StepHeader, Want};

/// The steps of one session at one stage.
pub struct Turns {
    open: OpenSession,
    /// Floats of a state.
    width: u32,
    next_step: u32,
    /// Positions that the slot holds.
    held: u32,
    /// Of which so many are of the text for certain, by the last step that was computed.
    certain: u32,
}

impl Turns {
    /// Of a session whose slot holds the first `held` positions.
    pub fn new(open: OpenSession, width: u32, held: u32) -> Self {
        Self { open, width, next_step: 0, held, certain: held }
    }

    /// What was asked for.
    pub fn open(&self) -> &OpenSession {
        &self.open
    }

    /// Whether a step was computed.
    pub fn begun(&self) -> bool {
        self.next_step > 0
    }

    /// Positions that the slot holds.
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Positions of the text that the slot holds: what is left for the session's next route. Of guesses nobody can tell here
    /// which were right, the less so where steps are waiting that go back behind them.
    pub fn lasting(&self) -> u32 {
        self.held.min(self.certain)
    }

    /// Whether messages from this peer are of the session.
    pub fn admits(&self, from: NodeId) -> bool {
        self.open.previous == from
    }

    /// What a step makes the engine compute in this slot. Refuses what the engine cannot know to be wrong: that it is not
    /// the session's next step, or beyond what was asked for. What it rewinds counts as gone from then on: it may be given
    /// up before it is computed.
    pub fn job(&mut self, header: &StepHeader, hidden: Vec<f32>, slot: u32) -> Result<StepJob, Fault> {
        self.check(header)?;
        let (first, want_from) = (header.pos, header.want_from);
        let wants = |index: u32| index >= want_from && !self.open.stands_by;
        let row = |index: u32| Row { slot, pos: first.saturating_add(index), want: wants(index) };
        let rows = (0..header.rows).map(row).collect();
        let reduce = match (self.open.head, header.want) {
            (false, _) => Reduce::Hidden,
            (true, Want::Top { k }) => Reduce::Top(k),
            (true, Want::Full) => Reduce::Full,
            (true, Want::State) => Reduce::State,
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
            // Over a link that broke in between; who sent it may not know yet.
            let text = format!("the steps from {} to {} were lost on the way", self.next_step, header.step);
            return Err(Fault::new(ErrorKind::PeerLost, text));
        }
        if header.step != self.next_step || header.width != self.width {
            let text = format!("step {} of width {} where step {} follows", header.step, header.width, self.next_step);
            return Err(Fault::new(ErrorKind::BadFrame, text));
        }
        check_wanted(header)
    }

    /// A step was computed; gives what the next stage or the coordinator is told, which is nothing where this host only
    /// stands by.
    pub fn done(&mut self, mut header: StepHeader, output: StepOutput, compute_us: u32) -> Option<Message> {
        header.compute_us.push(compute_us);
        self.next_step += 1;
        self.held = header.pos + header.rows;
        self.certain = header.certain;
        if self.open.stands_by {
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

    /// What the coordinator is told where a step failed.
    pub fn failed(&self, fault: Fault) -> Message {
        let OpenSession { session, epoch, stage, .. } = self.open;
        Message::Failed { session, epoch, stage, fault }
    }
}

/// Each wanted row is a row of the whole vocabulary before it is reduced, whatever the engine: of 262,144 tokens, 512 of
/// them would be 512 MiB that no budget counts.
fn check_wanted(header: &StepHeader) -> Result<(), Fault> {
    match header.rows.saturating_sub(header.want_from) {
        0..=WANTED_ROWS => Ok(()),
        wanted => {
            let text = format!("a step wants {wanted} rows of output, at most {WANTED_ROWS} are given");
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
    fn a_step_that_wants_more_output_than_is_counted_is_refused_whatever_the_engine() {
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
            want: Want::Full,
            certain: 0,
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
