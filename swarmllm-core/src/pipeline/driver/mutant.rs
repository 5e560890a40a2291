//! Ways to make a driver wrong, to see that simulated swarms find it.

use super::{Action, SessionDriver};
use crate::pipeline::message::Message;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A recovery does not raise the epoch.
    KeepsEpoch,
    /// Nobody is told that the session has ended.
    ForgetsRelease,
    /// Answers of an earlier route are taken, be they there already or late.
    TakesLate,
}

impl SessionDriver {
    /// Leaves what is there of earlier answers, where they are taken.
    pub(super) fn keep_late_answers(&mut self) {
        if self.routes.mutant == Some(Mutant::TakesLate) {
            self.actions.retain(|action| !matches!(action, Action::Rerouted { .. }));
        }
    }

    /// The message as a driver that takes late answers reads it.
    pub(super) fn mutated(&self, mut message: Message) -> Message {
        if self.routes.mutant == Some(Mutant::TakesLate)
            && let Message::Logits { header, .. } = &mut message
        {
            header.epoch = self.way.epoch;
        }
        message
    }
}
