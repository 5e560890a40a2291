//! What a driver makes of events while its session has a route.

use std::time::Instant;

use super::attendance::{Due, STALL_DEADLINE};
use super::{Action, Event, Purpose, RouteEvent, SessionDriver, Verdict};
use crate::base::{ErrorKind, Fault, NodeId};
use crate::pipeline::job::late;
use crate::pipeline::links::Delivery;
use crate::pipeline::losses::Loss;
use crate::pipeline::message::Message;
use crate::pipeline::search::{Blame, is_loss};
use crate::pipeline::session::{self, End, Session};
use crate::pipeline::watch::Absent;
use crate::pipeline::way::{Heard, Way};
use crate::wire::job::StepHeader;

impl SessionDriver {
    pub(super) fn while_running(&mut self, event: Event, now: Instant) {
        match event {
            Event::Delivered(delivery) => self.on_delivery(delivery, now),
            Event::Lost { loss, link_ended } => self.on_loss(loss, link_ended),
            Event::Unsent(fault) => {
                self.steps.not_sent();
                let nodes = self.way.host(0).into_iter().collect();
                self.breaks(Blame { nodes, may_return: is_loss(fault.kind()), fault });
            }
            Event::NotSent => self.steps.not_sent(),
            Event::Drafted(drafted) => {
                let (guesses, guessing) = drafted.unzip();
                self.steps.guessed(guessing.unwrap_or_default());
                let wishes = self.session.on_guesses(guesses);
                self.wants(wishes);
            }
            Event::Enough => {
                // Tokens that were chosen behind it are not part of the answer.
                self.session.stop_after(self.emitted);
                self.drop_wishes();
                self.finish(Ok(End::Stop));
            }
            Event::Failed(fault) => self.breaks(Blame { nodes: Vec::new(), may_return: false, fault }),
            Event::Cancelled => self.ends(|session| session.stop(End::Cancelled)),
            Event::Overdue => self.ends(|session| session.on_fault(late())),
            Event::Present { question, absent } if question == self.attendance.question() => {
                self.on_presence(question, absent, now);
            }
            Event::Route(RouteEvent::Found { purpose: Purpose::Silent { question }, found }) => {
                self.may_avoid(question, found.is_ok(), now);
            }
            Event::Time => self.on_time(now),
            Event::Present { .. } | Event::Route(_) => {}
        }
    }

    fn on_delivery(&mut self, delivery: Option<Delivery>, now: Instant) {
        let Some((from, message)) = delivery else {
            let text = "the last stage sent more than was asked";
            let wishes = self.session.on_fault(Fault::new(ErrorKind::BadFrame, text));
            return self.wants(wishes);
        };
        #[cfg(test)]
        let message = self.mutated(message);
        match (self.way.hears(from, &message), message) {
            (Heard::Answer, Message::Logits { header, rows }) => {
                let (took, time, sent) = self.steps.answered(&header, self.session.in_prefill(), now);
                self.attendance.heard(time, now);
                let wishes = self.session.on_logits(header.step, &rows, took);
                // An answer that is none is not paid.
                if !wishes.iter().any(|wish| matches!(wish, session::Action::Fail(_))) {
                    let owed = sent.iter().flat_map(|sent| sent.owed(&self.way));
                    self.actions.extend(owed.map(Action::Owe));
                }
                self.wants(wishes);
            }
            (Heard::Failed, Message::Failed { stage, fault, .. }) => {
                self.note_full(from, &fault);
                self.breaks(self.way.failed(from, stage, fault));
            }
            (Heard::Unfollowed, Message::Failed { stage, fault, .. }) => {
                self.note_full(from, &fault);
                self.unfollow(|way| way.unfollow(from, Some(stage)));
                self.restless = true;
            }
            // Late or foreign.
            _ => {}
        }
    }

    fn on_loss(&mut self, loss: Loss, link_ended: bool) {
        if !self.way.is_concerned(loss) {
            return;
        }
        self.restless = true;
        let broken = link_ended && !self.steps.is_idle();
        let blame = self.unfollow(|way| way.lose(loss, broken));
        blame.into_iter().for_each(|blame| self.breaks(blame));
    }

    /// What was lost while the route was opened, the route has lost.
    pub(super) fn lose_all(&mut self, lost: impl IntoIterator<Item = NodeId>) {
        lost.into_iter().for_each(|peer| self.on_loss(Loss::Peer(peer), false));
    }

    /// Changes who follows; where nobody follows the first stage any more, copies end.
    fn unfollow<T>(&mut self, change: impl FnOnce(&mut Way) -> T) -> T {
        let follows = |way: &Way| way.first_stand_by().is_some();
        let before = follows(&self.way);
        let changed = change(&mut self.way);
        if before && !follows(&self.way) {
            self.actions.push_back(Action::StopCopies);
        }
        changed
    }

    fn on_time(&mut self, now: Instant) {
        match self.attendance.due(now) {
            Some(Due::Stalled) => {
                // Which of them it was nobody says; the next answer does without all of them where it can.
                self.way.nodes.iter().for_each(|host| self.routes.note(*host, Verdict::Failed));
                let text = format!("the stages gave no answer for {STALL_DEADLINE:?}");
                self.ends(|session| session.on_fault(Fault::new(ErrorKind::Timeout, text)));
            }
            Some(Due::Ask { question }) => {
                let stages = self.way.places(self.routes.params().session);
                if !stages.is_empty() {
                    self.actions.push_back(Action::Ask { question, stages });
                }
            }
            None => {}
        }
    }

    /// An answer is late, and hosts have their stages no more, or do not even say that they are there. The route is left where
    /// there is one without them.
    fn on_presence(&mut self, question: u32, Absent { gone, silent }: Absent, now: Instant) {
        if let Some(blame) = Blame::gone(gone) {
            return self.breaks(blame);
        }
        if silent.is_empty() {
            return self.attendance.all_there(now);
        }
        match self.way.takeover(&silent) {
            Some(_) => Blame::silent(silent).into_iter().for_each(|blame| self.breaks(blame)),
            None => {
                self.routes.look_without(&silent, Purpose::Silent { question });
                self.attendance.are_silent(silent);
            }
        }
    }

    fn may_avoid(&mut self, question: u32, other: bool, now: Instant) {
        let silent = self.attendance.silent(question);
        match Blame::silent(silent) {
            Some(blame) if other => self.breaks(blame),
            Some(_) => self.attendance.bears(now),
            None => {}
        }
    }

    /// Takes what the session wants: steps first, so that the stages work while the token is looked at.
    pub(super) fn wants(&mut self, wishes: Vec<session::Action>) {
        self.restless = true;
        let is_step = |wish: &session::Action| matches!(wish, session::Action::Step { .. });
        let (steps, rest): (Vec<_>, Vec<_>) = wishes.into_iter().partition(is_step);
        self.outbox.extend(steps);
        self.wishes.extend(rest);
    }

    /// The session ends; what was chosen is said before.
    fn ends(&mut self, ask: impl FnOnce(&mut Session) -> Vec<session::Action>) {
        self.keep_said();
        let wishes = ask(&mut self.session);
        self.wants(wishes);
    }

    /// The route is of no use any more; what was chosen on it is said before another is looked for.
    pub(super) fn breaks(&mut self, blame: Blame) {
        self.keep_said();
        self.broken.get_or_insert(blame);
    }

    /// Nothing is sent or guessed any more.
    fn keep_said(&mut self) {
        use session::Action::{Foresee, Guess, Step};
        self.outbox.clear();
        self.wishes.retain(|wish| !matches!(wish, Step { .. } | Guess(_) | Foresee { .. }));
    }

    pub(super) fn drop_wishes(&mut self) {
        self.outbox.clear();
        self.wishes.clear();
        self.broken = None;
    }

    /// The step as it goes to the first stage.
    pub(super) fn send(&mut self, step: session::Action, now: Instant) -> Option<Action> {
        let session::Action::Step { step, pos, tokens, want_from, want, certain } = step else { return None };
        let (params, rows) = (self.routes.params(), tokens.len() as u32);
        let header = StepHeader {
            session: params.session,
            epoch: self.way.epoch,
            stage: 0,
            step,
            pos,
            rows,
            width: params.width,
            codec: self.config.codec,
            want_from,
            want,
            certain,
            compute_us: Vec::with_capacity(self.way.stages.len()),
        };
        self.steps.sends(rows, rows.saturating_sub(want_from), now);
        Some(Action::Send { header, tokens })
    }

    pub(super) fn wish(&mut self, wish: session::Action, now: Instant) -> Option<Action> {
        match wish {
            session::Action::Emit(sampled) => {
                self.first_token.get_or_insert(now);
                self.emitted += 1;
                return Some(Action::Emit(sampled));
            }
            session::Action::Guess(horizon) => return Some(Action::Draft { text: self.session.text(), horizon }),
            session::Action::Foresee { text, most } => return Some(Action::Foresee { text, most }),
            session::Action::End(end) => self.finish(Ok(end)),
            // An answer that is none; what came before it is said.
            session::Action::Fail(fault) if fault.kind() == ErrorKind::BadFrame => self.breaks(self.way.wrong(fault)),
            session::Action::Fail(fault) => self.finish(Err(fault)),
            session::Action::Step { .. } => {}
        }
        None
    }
}
