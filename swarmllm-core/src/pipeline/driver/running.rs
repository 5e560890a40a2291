//! How a driver handles events while its session has a route.

use std::time::Instant;

use super::host_probes::{DueAction, STALL_DEADLINE};
use super::{Action, Event, SessionDriver};
use crate::base::{ErrorKind, Fault, NodeId};
use crate::pipeline::link::message::Message;
use crate::pipeline::link::request::is_loss;
use crate::pipeline::link::router::Delivery;
use crate::pipeline::route::active::{ActiveRoute, MessageClass};
use crate::pipeline::route::losses::HostLoss;
use crate::pipeline::route::manager::{RouteEvent, SearchPurpose, Verdict};
use crate::pipeline::route::search::RouteFailure;
use crate::pipeline::route::watch::UnresponsiveHosts;
use crate::pipeline::session::limits::deadline_fault;
use crate::pipeline::session::{self, Session, SessionEnd};
use crate::wire::job::StepHeader;

impl SessionDriver {
    pub(super) fn while_running(&mut self, event: Event, now: Instant) {
        match event {
            Event::Delivered(delivery) => self.on_delivery(delivery, now),
            Event::Lost { loss, link_ended } => self.on_loss(loss, link_ended),
            Event::SendFailed(fault) => {
                self.steps.drop_last();
                let nodes = self.route.host(0).into_iter().collect();
                self.fail_route(RouteFailure { nodes, may_return: is_loss(fault.kind()), fault });
            }
            Event::SendAborted => self.steps.drop_last(),
            Event::Drafted(drafted) => {
                let (draft, drafting) = drafted.unzip();
                self.steps.drafted(drafting.unwrap_or_default());
                let actions = self.session.on_draft(draft);
                self.enqueue(actions);
            }
            Event::ReaderStopped => {
                // Tokens sampled behind it are not part of the answer.
                self.session.stop_after(self.emitted);
                self.clear_queues();
                self.finish(Ok(SessionEnd::Stop));
            }
            Event::LocalFailure(fault) => self.fail_route(RouteFailure { nodes: Vec::new(), may_return: false, fault }),
            Event::Cancelled => self.end_with(|session| session.stop(SessionEnd::Cancelled)),
            Event::DeadlinePassed => self.end_with(|session| session.on_fault(deadline_fault())),
            Event::HostsProbed { probe, unresponsive } if probe == self.probes.current_probe() => {
                self.on_hosts_probed(probe, unresponsive, now);
            }
            Event::Route(RouteEvent::Found { purpose: SearchPurpose::AvoidSilent { probe }, found }) => {
                self.on_alternative(probe, found.is_ok(), now);
            }
            Event::Wake => self.on_wake(now),
            Event::HostsProbed { .. } | Event::Route(_) => {}
        }
    }

    fn on_delivery(&mut self, delivery: Option<Delivery>, now: Instant) {
        let Some((from, message)) = delivery else {
            let text = "the last stage sent more than was requested";
            let actions = self.session.on_fault(Fault::new(ErrorKind::BadFrame, text));
            return self.enqueue(actions);
        };
        #[cfg(test)]
        let message = self.mutated(message);
        match (self.route.classify(from, &message), message) {
            (MessageClass::Answer, Message::Logits { header, rows }) => {
                let (timing, time, sent) = self.steps.answered(&header, self.session.in_prefill(), now);
                self.probes.record(time, now);
                let actions = self.session.on_logits(header.step, &rows, timing);
                // A malformed answer is not paid.
                if !actions.iter().any(|action| matches!(action, session::Action::Fail(_))) {
                    let owed = sent.iter().flat_map(|sent| sent.owed(&self.route));
                    self.actions.extend(owed.map(Action::Owe));
                }
                self.enqueue(actions);
            }
            (MessageClass::Failed, Message::Failed { stage, fault, .. }) => {
                self.record_full(from, &fault);
                self.fail_route(self.route.stage_failure(from, stage, fault));
            }
            (MessageClass::StandbyFailed, Message::Failed { stage, fault, .. }) => {
                self.record_full(from, &fault);
                self.drop_standby(|route| route.drop_standby(from, Some(stage)));
                self.progressed = true;
            }
            // Late or foreign.
            _ => {}
        }
    }

    fn on_loss(&mut self, loss: HostLoss, link_ended: bool) {
        if !self.route.is_affected_by(loss) {
            return;
        }
        self.progressed = true;
        let broken = link_ended && !self.steps.is_idle();
        let failure = self.drop_standby(|route| route.on_loss(loss, broken));
        failure.into_iter().for_each(|failure| self.fail_route(failure));
    }

    /// Applies the losses during the opening to the route.
    pub(super) fn lose_all(&mut self, lost: impl IntoIterator<Item = NodeId>) {
        lost.into_iter().for_each(|peer| self.on_loss(HostLoss::Peer(peer), false));
    }

    /// Changes the standbys; stops the copies where the first stage has none any more.
    fn drop_standby<T>(&mut self, change: impl FnOnce(&mut ActiveRoute) -> T) -> T {
        let has_standby = |route: &ActiveRoute| route.first_standby().is_some();
        let before = has_standby(&self.route);
        let changed = change(&mut self.route);
        if before && !has_standby(&self.route) {
            self.actions.push_back(Action::StopCopies);
        }
        changed
    }

    fn on_wake(&mut self, now: Instant) {
        match self.probes.due(now) {
            Some(DueAction::Stalled) => {
                // The stage at fault is unknown; later answers avoid all hosts where they can.
                self.route.nodes.iter().for_each(|host| self.routes.record(*host, Verdict::Failed));
                let text = format!("the stages gave no answer for {STALL_DEADLINE:?}");
                self.end_with(|session| session.on_fault(Fault::new(ErrorKind::Timeout, text)));
            }
            Some(DueAction::Probe { probe }) => {
                let stages = self.route.peer_stages(self.routes.params().session);
                if !stages.is_empty() {
                    self.actions.push_back(Action::ProbeHosts { probe, stages });
                }
            }
            None => {}
        }
    }

    /// Handles the result of a probe. The route is left where hosts have lost their stages, or where another route
    /// avoids the silent ones.
    fn on_hosts_probed(&mut self, probe: u32, UnresponsiveHosts { gone, silent }: UnresponsiveHosts, now: Instant) {
        if let Some(failure) = RouteFailure::stages_lost(gone) {
            return self.fail_route(failure);
        }
        if silent.is_empty() {
            return self.probes.all_alive(now);
        }
        match self.route.takeover(&silent) {
            Some(_) => RouteFailure::unresponsive(silent).into_iter().for_each(|failure| self.fail_route(failure)),
            None => {
                self.routes.search_without(&silent, SearchPurpose::AvoidSilent { probe });
                self.probes.set_silent(silent);
            }
        }
    }

    fn on_alternative(&mut self, probe: u32, found: bool, now: Instant) {
        let silent = self.probes.take_silent(probe);
        match RouteFailure::unresponsive(silent) {
            Some(failure) if found => self.fail_route(failure),
            Some(_) => self.probes.no_alternative(now),
            None => {}
        }
    }

    /// Queues actions of the session: steps first, so that the stages work while a token is processed.
    pub(super) fn enqueue(&mut self, actions: Vec<session::Action>) {
        self.progressed = true;
        let is_step = |action: &session::Action| matches!(action, session::Action::Step { .. });
        let (steps, rest): (Vec<_>, Vec<_>) = actions.into_iter().partition(is_step);
        self.outbox.extend(steps);
        self.deferred.extend(rest);
    }

    /// Ends the session, after the emission of sampled tokens.
    fn end_with(&mut self, ask: impl FnOnce(&mut Session) -> Vec<session::Action>) {
        self.drop_steps();
        let actions = ask(&mut self.session);
        self.enqueue(actions);
    }

    /// Marks the route as failed; sampled tokens are emitted before the search for another.
    pub(super) fn fail_route(&mut self, failure: RouteFailure) {
        self.drop_steps();
        self.failure.get_or_insert(failure);
    }

    /// Drops queued steps and drafts.
    fn drop_steps(&mut self) {
        use session::Action::{Draft, DraftAhead, Step};
        self.outbox.clear();
        self.deferred.retain(|action| !matches!(action, Step { .. } | Draft(_) | DraftAhead { .. }));
    }

    pub(super) fn clear_queues(&mut self) {
        self.outbox.clear();
        self.deferred.clear();
        self.failure = None;
    }

    /// The step as sent to the first stage.
    pub(super) fn send(&mut self, step: session::Action, now: Instant) -> Option<Action> {
        let session::Action::Step { step, pos, tokens, want_from, want, committed } = step else { return None };
        let (params, rows) = (self.routes.params(), tokens.len() as u32);
        let header = StepHeader {
            session: params.session,
            epoch: self.route.epoch,
            stage: 0,
            step,
            pos,
            rows,
            width: params.width,
            codec: self.config.codec,
            want_from,
            want,
            committed,
            compute_us: Vec::with_capacity(self.route.stages.len()),
        };
        self.steps.sends(rows, rows.saturating_sub(want_from), now);
        Some(Action::Send { header, tokens })
    }

    pub(super) fn perform_deferred(&mut self, action: session::Action, now: Instant) -> Option<Action> {
        match action {
            session::Action::Emit(sampled) => {
                self.first_token.get_or_insert(now);
                self.emitted += 1;
                return Some(Action::Emit(sampled));
            }
            session::Action::Draft(limits) => return Some(Action::Draft { text: self.session.text(), limits }),
            session::Action::DraftAhead { text, max_tokens } => return Some(Action::DraftAhead { text, max_tokens }),
            session::Action::End(end) => self.finish(Ok(end)),
            // Malformed reply. Tokens already emitted stand.
            session::Action::Fail(fault) if fault.kind() == ErrorKind::BadFrame => {
                self.fail_route(self.route.malformed_answer(fault))
            }
            session::Action::Fail(fault) => self.finish(Err(fault)),
            session::Action::Step { .. } => {}
        }
        None
    }
}
