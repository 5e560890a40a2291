//! Ways to make a driver wrong, to see that simulated swarms find it.

use super::SessionDriver;
use crate::pipeline::message::Message;

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A recovery does not raise the epoch.
    KeepsEpoch,
    /// Nobody is told that the session has ended.
    ForgetsRelease,
    /// An answer of an earlier route is taken.
    TakesLate,
}

impl SessionDriver {
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
