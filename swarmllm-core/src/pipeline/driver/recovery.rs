//! Recovery: how a driver replaces a failed route, and how its session ends.

use std::time::Instant;

use super::{Action, SessionDriver, State};
use crate::base::{ErrorKind, Fault, NodeId};
use crate::pipeline::route::OpenRoute;
use crate::pipeline::route::active::ActiveRoute;
use crate::pipeline::route::manager::{RouteEvent, Routed, Verdict};
use crate::pipeline::route::search::RouteFailure;
use crate::pipeline::session::SessionEnd;
use crate::pipeline::session::prefix::EXACT_BLOCK;
use crate::wire::control::Host;
use crate::wire::prefix::Prefix;

impl SessionDriver {
    /// Looks for another route.
    pub(super) fn recover(&mut self, failure: RouteFailure, now: Instant) {
        if failure.nodes.is_empty() {
            return self.finish(Err(failure.fault));
        }
        if !failure.may_return {
            failure.nodes.iter().for_each(|host| self.routes.record(*host, Verdict::Failed));
        }
        self.routes.release(self.route.epoch, &self.route.nodes, &Prefix::default());
        self.steps.lose();
        self.probes.void_probe();
        let text = self.session.text();
        let takeover = self.route.takeover(&failure.nodes);
        // Generated tokens of an exact answer were computed in other steps than those of any prompt.
        let named = if self.routes.params().exact { &text[..self.config.prompt] } else { &text };
        let asks = (self.hashes(named), text.len() as u32 + u32::from(!self.config.is_embedding));
        self.actions.push_back(Action::RouteFailed(failure.fault.clone()));
        self.state = State::Recovering(failure.fault.clone());
        let routed = self.routes.reopen(failure, takeover, asks, now);
        self.routed(routed, now);
    }

    pub(super) fn on_route(&mut self, event: RouteEvent, now: Instant) {
        let routed = self.routes.on(event, now);
        self.routed(routed, now);
    }

    fn routed(&mut self, routed: Routed, now: Instant) {
        match routed {
            Some(Ok(open)) => self.resume(open, now),
            Some(Err(fault)) => self.finish(Err(fault)),
            None => {}
        }
    }

    /// Resumes the session on another route.
    fn resume(&mut self, open: OpenRoute, now: Instant) {
        let State::Recovering(cause) = &self.state else { return };
        let (cause, lost, exact) = (cause.clone(), open.lost.clone(), self.routes.params().exact);
        let (mut route, reports) = ActiveRoute::new(open, self.routes.local());
        let chunk = route.keep_step_size(&self.route, exact);
        self.route = route;
        self.routes.dismiss(self.route.epoch, self.route.unused(), true);
        self.steps.resume(reports, now);
        self.probes.restart(now);
        let Some(chunk) = chunk else { return self.finish(Err(cause)) };
        let kept = self.config.reusable(&self.route, exact, chunk, self.session.text().len());
        self.state = State::Running;
        self.actions.push_back(Action::Rerouted { epoch: self.route.epoch, kept, cause });
        #[cfg(test)]
        self.keep_late_answers();
        self.use_route();
        self.session.limit(self.route.context.saturating_sub(self.config.prompt as u32));
        let actions = self.session.resume(kept, self.route.max_rows, chunk, exact);
        self.enqueue(actions);
        self.lose_all(lost);
    }

    pub(super) fn use_route(&mut self) {
        let nobody = || Host { node: self.routes.local(), addresses: Vec::new() };
        let first = self.route.stages.first().map_or_else(nobody, |stage| stage.host.clone());
        let copy = self.route.first_standby().cloned();
        self.actions.push_back(Action::UseRoute { first, copy, hosts: self.route.hosts(self.config.max_answer_bytes) });
    }

    /// Ends the session and releases its stages, which may keep the KV after a good end.
    pub(super) fn finish(&mut self, end: Result<SessionEnd, Fault>) {
        self.clear_queues();
        let keep = if end.is_ok() { self.keep() } else { Prefix::default() };
        self.routes.end(self.route.epoch, &self.route.nodes, &keep);
        if end.is_ok() {
            // Steps in flight at a good end are most likely computed. Unanswered steps of a failed route are not paid.
            self.actions.extend(self.steps.owed(&self.route).into_iter().map(Action::Owe));
            let worked = self.route.nodes.iter().filter(|host| self.route.includes(**host));
            worked.for_each(|host| self.routes.record(*host, Verdict::Worked));
        }
        self.state = State::Over(end);
    }

    /// The text whose KV hosts may keep; in exact mode the prompt, if it was computed in whole chunks of the plain
    /// run's size.
    fn keep(&self) -> Prefix {
        let text = match self.routes.params().exact {
            false => self.session.computed(),
            true if self.route.max_rows == EXACT_BLOCK => self.session.prompt_sent().to_vec(),
            true => Vec::new(),
        };
        self.hashes(&text)
    }

    fn hashes(&self, text: &[u32]) -> Prefix {
        let params = self.routes.params();
        self.config.prefix_hasher.hashes(params.model, params.exact, text)
    }

    /// Records a host that ended its stage for want of room.
    pub(super) fn record_full(&mut self, host: NodeId, fault: &Fault) {
        if fault.kind() == ErrorKind::Overloaded {
            self.routes.record(host, Verdict::Full);
        }
    }
}
