//! The coordinator's decisions of a session, without IO, clock or randomness: events in, actions out. Time is an
//! argument.
//!
//! The driver owns the text ([`Session`]), the current route ([`ActiveRoute`]), the attempts at routes
//! ([`RouteManager`]), the steps in flight and their timing, the probes of hosts, the debts, the releases and the
//! findings. A host that is lost, fails or falls silent costs time and not the answer: the session gets another route
//! and continues on it. Emitted tokens stand. In exact mode the new stages compute the known text in the very steps of
//! the old ones, so that the continuation is bit by bit the same.
//!
//! The caller takes and performs actions one by one ([`SessionDriver::next_action`]) until there is none, then waits
//! for an event and reports it ([`SessionDriver::on`]). The runner does that with network, engine and timers, the
//! simulation with its own.

mod events;
mod findings;
mod host_probes;
#[cfg(test)]
mod mutant;
mod recovery;
mod running;
mod steps;

use std::collections::VecDeque;
use std::time::Instant;

pub use events::{Action, Event, FirstRoute, SessionConfig, SessionFindings};
pub use steps::Debt;

use crate::base::{Fault, ModelId, NodeId};
use crate::pipeline::link::message::Message;
use crate::pipeline::route::OpenRoute;
use crate::pipeline::route::StageReport;
use crate::pipeline::route::active::{ActiveRoute, MessageClass};
use crate::pipeline::route::losses::HostLoss;
use crate::pipeline::route::manager::RouteManager;
use crate::pipeline::route::search::RouteFailure;
use crate::pipeline::session::limits::deadline_fault;
use crate::pipeline::session::{self, Session, SessionEnd};
use host_probes::HostProbes;
use steps::Steps;

/// See the module.
pub struct SessionDriver {
    config: SessionConfig,
    session: Session,
    routes: RouteManager,
    route: ActiveRoute,
    steps: Steps,
    probes: HostProbes,
    state: State,
    /// Steps that the session sends.
    outbox: VecDeque<session::Action>,
    /// Other actions of the session. They come behind the steps, so that stages work while a token is processed.
    deferred: VecDeque<session::Action>,
    /// Actions that come before both.
    actions: VecDeque<Action>,
    /// The failure of the route, handled once the tokens sampled on it are emitted.
    failure: Option<RouteFailure>,
    /// Whether anything has happened since the session last waited.
    progressed: bool,
    paused: bool,
    /// Prompt tokens that the first route did not compute.
    cached: u32,
    /// Tokens handed out for emission, and when the first was.
    emitted: usize,
    first_token: Option<Instant>,
}

enum State {
    Running,
    /// Another route is searched, because of this fault.
    Recovering(Fault),
    Over(Result<SessionEnd, Fault>),
}

impl SessionDriver {
    /// Drives the session that `make` makes, over an open route. `routes` is the manager that opened it.
    pub fn new(
        config: SessionConfig,
        routes: RouteManager,
        open: OpenRoute,
        make: impl FnOnce(FirstRoute) -> Session,
        now: Instant,
    ) -> Self {
        let lost = open.lost.clone();
        let (route, reports) = ActiveRoute::new(open, routes.local());
        let cached = config.reusable(&route, routes.params().exact, route.max_rows, config.prompt);
        let mut session = make(FirstRoute { stages: route.stages.len(), max_rows: route.max_rows, cached });
        session.limit(route.context.saturating_sub(config.prompt as u32));
        let actions = session.start();
        let mut driver = Self {
            config,
            session,
            routes,
            route,
            steps: Steps::new(reports, now),
            probes: HostProbes::new(now),
            state: State::Running,
            outbox: VecDeque::new(),
            deferred: VecDeque::new(),
            actions: VecDeque::new(),
            failure: None,
            progressed: true,
            paused: false,
            cached,
            emitted: 0,
            first_token: None,
        };
        driver.routes.dismiss(driver.route.epoch, driver.route.unused(), false);
        driver.use_route();
        driver.enqueue(actions);
        driver.lose_all(lost);
        driver
    }

    /// The next action; `None` where the session waits for an event, or is over.
    pub fn next_action(&mut self, now: Instant) -> Option<Action> {
        loop {
            if let Some(action) = self.actions.pop_front() {
                return Some(action);
            }
            if let Some(action) = self.routes.next_action() {
                return Some(Action::Route(action));
            }
            if let Some(step) = self.outbox.pop_front() {
                if let Some(send) = self.send(step, now) {
                    return Some(send);
                }
            } else if let Some(action) = self.deferred.pop_front() {
                if let Some(action) = self.perform_deferred(action, now) {
                    return Some(action);
                }
            } else if let Some(failure) = self.failure.take() {
                self.recover(failure, now);
            } else {
                if std::mem::take(&mut self.progressed) {
                    self.probes.start_waiting(now);
                }
                return None;
            }
        }
    }

    /// Handles an event.
    pub fn on(&mut self, event: Event, now: Instant) {
        match (&self.state, event) {
            (State::Over(_), _) => {}
            (State::Running, event) => self.while_running(event, now),
            (State::Recovering(_), Event::Cancelled) => self.finish(Ok(SessionEnd::Cancelled)),
            (State::Recovering(_), Event::DeadlinePassed) => self.finish(Err(deadline_fault())),
            // All other events concern the failed route.
            (State::Recovering(_), event) => {
                event.into_route_event().into_iter().for_each(|event| self.on_route(event, now));
            }
        }
    }

    /// When [`Event::Wake`] is due.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Running => self.probes.wake_at(),
            State::Recovering(_) => self.routes.wake_at(),
            State::Over(_) => None,
        }
    }

    /// Sets whether the reader has no room, so that answers are not read.
    pub fn pause(&mut self, paused: bool, now: Instant) {
        if self.paused && !paused {
            self.steps.restart_timing(now);
            self.probes.start_waiting(now);
        }
        self.paused = paused;
        self.probes.pause(paused);
    }

    /// Whether steps are sent and answers read: the session has a route that has not failed.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running) && self.failure.is_none()
    }

    /// How the session ended; `None` before its end.
    pub fn end(&self) -> Option<&Result<SessionEnd, Fault>> {
        match &self.state {
            State::Over(end) => Some(end),
            State::Running | State::Recovering(_) => None,
        }
    }

    /// Whether a message belongs to the current route, and its sender may send it.
    pub fn accepts(&self, from: NodeId, message: &Message) -> bool {
        !matches!(self.route.classify(from, message), MessageClass::Stale | MessageClass::Foreign)
    }

    /// Whether a loss may affect the route, or the attempt at one.
    pub fn is_affected_by(&self, loss: HostLoss) -> bool {
        !self.is_running() || self.route.is_affected_by(loss)
    }

    /// The number of the current probe; results of earlier ones are void.
    pub fn current_probe(&self) -> u32 {
        self.probes.current_probe()
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Its model.
    pub fn model(&self) -> ModelId {
        self.routes.params().model
    }

    /// The current route.
    pub fn route(&self) -> &ActiveRoute {
        &self.route
    }

    /// Prompt tokens that the first route did not compute.
    pub fn cached(&self) -> u32 {
        self.cached
    }

    /// When the first token was handed out for emission.
    pub fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// The stages of all routes, in order.
    pub fn reports(&self) -> &[StageReport] {
        self.steps.reports()
    }
}

#[cfg(test)]
mod tests;
