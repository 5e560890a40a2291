//! How a mutated driver treats late answers.

use super::{Action, SessionDriver};
use crate::pipeline::link::message::Message;
use crate::pipeline::route::mutant::Mutant;

impl SessionDriver {
    /// Keeps queued answers of the earlier route, where the mutation accepts them.
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
            header.epoch = self.route.epoch;
        }
        message
    }
}
