//! A session as its coordinator drives it, without IO, clock or chance: events in, actions out, and time is an argument.
//!
//! The driver owns all that is decided of a session: the text ([`Session`]), the route and whose word counts on it ([`Way`]),
//! the routes that are tried ([`RouteManager`]), the steps under way and what they took, when hosts are asked whether they
//! are there, and what is owed, released and remembered. A host that is lost, fails or falls silent costs time, not the
//! answer: the session gets another route and goes on with it. What was said stays said; in the exact mode the new stages
//! compute what is known of the text in the very steps of the old ones, so that what follows is what would have followed.
//!
//! Whoever performs the actions takes them one by one ([`SessionDriver::next_action`]) until there is none, then waits for an event
//! and says so ([`SessionDriver::on`]). The runner does that with network, engine and timers, the simulation with its own.

mod attendance;
mod events;
mod lessons;
#[cfg(test)]
mod mutant;
mod opening;
mod recovery;
mod routes;
mod running;
mod steps;

use std::collections::VecDeque;
use std::time::Instant;

pub use events::{Action, Event, Lessons, SessionConfig, Start};
#[cfg(test)]
pub(super) use mutant::Mutant;
pub use opening::Place;
pub use routes::{Purpose, RouteAction, RouteEvent, RouteManager, Routed, Verdict};
pub use steps::Debt;

use crate::base::{Fault, ModelId, NodeId};
use crate::pipeline::job::{StageReport, late};
use crate::pipeline::losses::Loss;
use crate::pipeline::message::Message;
use crate::pipeline::route::OpenRoute;
use crate::pipeline::search::Blame;
use crate::pipeline::session::{self, End, Session};
use crate::pipeline::way::{Heard, Way};
use attendance::Attendance;
use steps::Steps;

/// See the module.
pub struct SessionDriver {
    config: SessionConfig,
    session: Session,
    routes: RouteManager,
    way: Way,
    steps: Steps,
    attendance: Attendance,
    state: State,
    /// What the session wants to send.
    outbox: VecDeque<session::Action>,
    /// What else the session wants: it comes behind the steps, so that stages work while a token is looked at.
    wishes: VecDeque<session::Action>,
    /// What comes before both.
    actions: VecDeque<Action>,
    /// Why the route is of no use any more, once what was chosen on it is said.
    broken: Option<Blame>,
    /// Whether something has happened since the session last waited.
    restless: bool,
    paused: bool,
    /// Tokens of the prompt that the first route did not compute.
    cached: u32,
    /// Tokens that were taken to be said, and when the first was.
    emitted: usize,
    first_token: Option<Instant>,
}

enum State {
    Running,
    /// Another route is sought, for this reason.
    Recovering(Fault),
    Over(Result<End, Fault>),
}

impl SessionDriver {
    /// Drives the session that `make` makes over a route that is open. The routes are those that opened it.
    pub fn new(
        config: SessionConfig,
        routes: RouteManager,
        open: OpenRoute,
        make: impl FnOnce(Start) -> Session,
        now: Instant,
    ) -> Self {
        let lost = open.lost.clone();
        let (way, reports) = Way::new(open, routes.local());
        let cached = config.usable(&way, routes.params().exact, way.max_rows, config.prompt);
        let mut session = make(Start { stages: way.stages.len(), max_rows: way.max_rows, cached });
        session.limit(way.context.saturating_sub(config.prompt as u32));
        let wishes = session.start();
        let mut driver = Self {
            config,
            session,
            routes,
            way,
            steps: Steps::new(reports, now),
            attendance: Attendance::new(now),
            state: State::Running,
            outbox: VecDeque::new(),
            wishes: VecDeque::new(),
            actions: VecDeque::new(),
            broken: None,
            restless: true,
            paused: false,
            cached,
            emitted: 0,
            first_token: None,
        };
        driver.routes.dismiss(driver.way.epoch, driver.way.unused(), false);
        driver.follow();
        driver.wants(wishes);
        driver.lose_all(lost);
        driver
    }

    /// What is to be done next; nothing where the session waits for an event, or is over.
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
            } else if let Some(wish) = self.wishes.pop_front() {
                if let Some(action) = self.wish(wish, now) {
                    return Some(action);
                }
            } else if let Some(blame) = self.broken.take() {
                self.recover(blame, now);
            } else {
                if std::mem::take(&mut self.restless) {
                    self.attendance.waits(now);
                }
                return None;
            }
        }
    }

    /// Something has happened.
    pub fn on(&mut self, event: Event, now: Instant) {
        match (&self.state, event) {
            (State::Over(_), _) => {}
            (State::Running, event) => self.while_running(event, now),
            (State::Recovering(_), Event::Route(event)) => self.on_route(event, now),
            (State::Recovering(_), Event::Time) => self.on_route(RouteEvent::Time, now),
            (State::Recovering(_), Event::Lost { loss: Loss::Peer(peer), .. }) => {
                self.on_route(RouteEvent::Lost(peer), now);
            }
            (State::Recovering(_), Event::Cancelled) => self.finish(Ok(End::Cancelled)),
            (State::Recovering(_), Event::Overdue) => self.finish(Err(late())),
            // Of the route that broke.
            (State::Recovering(_), _) => {}
        }
    }

    /// When [`Event::Time`] is waited for.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Running => self.attendance.wake_at(),
            State::Recovering(_) => self.routes.wake_at(),
            State::Over(_) => None,
        }
    }

    /// Whether the reader has no room, so that answers are left where they are.
    pub fn pause(&mut self, paused: bool, now: Instant) {
        if self.paused && !paused {
            self.steps.begin_again(now);
            self.attendance.waits(now);
        }
        self.paused = paused;
        self.attendance.pause(paused);
    }

    /// Whether steps are sent and answers heard: the session has a route, which is not broken.
    pub fn is_running(&self) -> bool {
        matches!(self.state, State::Running) && self.broken.is_none()
    }

    /// How the session ended, where it has.
    pub fn end(&self) -> Option<&Result<End, Fault>> {
        match &self.state {
            State::Over(end) => Some(end),
            State::Running | State::Recovering(_) => None,
        }
    }

    /// Whether a message is of the route, and no late or foreign one.
    pub fn hears(&self, from: NodeId, message: &Message) -> bool {
        !matches!(self.way.hears(from, message), Heard::Late | Heard::Foreign)
    }

    /// Whether a loss may take something from the route, or from the attempt at one.
    pub fn is_concerned(&self, loss: Loss) -> bool {
        !self.is_running() || self.way.is_concerned(loss)
    }

    /// The number of the question whose answer counts; what others ask is of no use any more.
    pub fn question(&self) -> u32 {
        self.attendance.question()
    }

    /// The session.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Its model.
    pub fn model(&self) -> ModelId {
        self.routes.params().model
    }

    /// The present route.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// Tokens of the prompt that the first route did not compute.
    pub fn cached(&self) -> u32 {
        self.cached
    }

    /// When the first token was taken to be said.
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
