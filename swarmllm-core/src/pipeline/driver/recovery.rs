//! How a driver leaves a route for another, and how its session ends.

use std::time::Instant;

use super::{Action, RouteEvent, Routed, SessionDriver, State, Verdict};
use crate::base::{ErrorKind, Fault, NodeId};
use crate::pipeline::prefix::EXACT_BLOCK;
use crate::pipeline::route::OpenRoute;
use crate::pipeline::search::Blame;
use crate::pipeline::session::End;
use crate::pipeline::way::Way;
use crate::wire::control::Host;
use crate::wire::prefix::Prefix;

impl SessionDriver {
    /// Looks for another route.
    pub(super) fn recover(&mut self, blame: Blame, now: Instant) {
        if blame.nodes.is_empty() {
            return self.finish(Err(blame.fault));
        }
        if !blame.may_return {
            blame.nodes.iter().for_each(|host| self.routes.note(*host, Verdict::Failed));
        }
        self.routes.release(self.way.epoch, &self.way.nodes, &Prefix::default());
        self.steps.lose();
        self.attendance.ends_question();
        let text = self.session.text();
        let takeover = self.way.takeover(&blame.nodes);
        // What an exact answer has generated was computed in other steps than any prompt is.
        let named = if self.routes.params().exact { &text[..self.config.prompt] } else { &text };
        let asks = (self.name(named), text.len() as u32 + u32::from(!self.config.reads));
        self.actions.push_back(Action::Broken(blame.fault.clone()));
        self.state = State::Recovering(blame.fault.clone());
        let routed = self.routes.reopen(blame, takeover, asks, now);
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

    /// Goes on over another route.
    fn resume(&mut self, open: OpenRoute, now: Instant) {
        let State::Recovering(cause) = &self.state else { return };
        let (cause, lost, exact) = (cause.clone(), open.lost.clone(), self.routes.params().exact);
        let (mut way, reports) = Way::new(open, self.routes.local());
        let chunk = way.follow(&self.way, exact);
        self.way = way;
        self.routes.dismiss(self.way.epoch, self.way.unused(), true);
        self.steps.resume(reports, now);
        self.attendance.restart(now);
        let Some(chunk) = chunk else { return self.finish(Err(cause)) };
        let kept = self.config.usable(&self.way, exact, chunk, self.session.text().len());
        self.state = State::Running;
        self.actions.push_back(Action::Rerouted { epoch: self.way.epoch, kept, cause });
        #[cfg(test)]
        self.keep_late_answers();
        self.follow();
        self.session.limit(self.way.context.saturating_sub(self.config.prompt as u32));
        let wishes = self.session.resume(kept, self.way.max_rows, chunk, exact);
        self.wants(wishes);
        self.lose_all(lost);
    }

    pub(super) fn follow(&mut self) {
        let nobody = || Host { node: self.routes.local(), addresses: Vec::new() };
        let first = self.way.stages.first().map_or_else(nobody, |stage| stage.host.clone());
        let copy = self.way.first_stand_by().cloned();
        self.actions.push_back(Action::Follow { first, copy, hosts: self.way.hosts(self.config.longest) });
    }

    /// The session is over: its stages are released, and may keep the KV of a text that came to a good end.
    pub(super) fn finish(&mut self, end: Result<End, Fault>) {
        self.drop_wishes();
        let keep = if end.is_ok() { self.keep() } else { Prefix::default() };
        self.routes.end(self.way.epoch, &self.way.nodes, &keep);
        if end.is_ok() {
            // Computed, most likely, and needed no more. Of a route that failed, what was not answered is not paid.
            self.actions.extend(self.steps.owed(&self.way).into_iter().map(Action::Owe));
            let worked = self.way.nodes.iter().filter(|host| self.way.has_part(**host));
            worked.for_each(|host| self.routes.note(*host, Verdict::Worked));
        }
        self.state = State::Over(end);
    }

    /// The text whose KV hosts may keep. In the exact mode that is what was computed in whole chunks of the plain run's
    /// size.
    fn keep(&self) -> Prefix {
        let text = match self.routes.params().exact {
            false => self.session.computed(),
            true if self.way.max_rows == EXACT_BLOCK => self.session.prompt_sent().to_vec(),
            true => Vec::new(),
        };
        self.name(&text)
    }

    fn name(&self, text: &[u32]) -> Prefix {
        let params = self.routes.params();
        self.config.namer.name(params.model, params.exact, text)
    }

    /// Remembers, for the sessions to come, a host that has ended its stage for want of room.
    pub(super) fn note_full(&mut self, host: NodeId, fault: &Fault) {
        if fault.kind() == ErrorKind::Overloaded {
            self.routes.note(host, Verdict::Full);
        }
    }
}
