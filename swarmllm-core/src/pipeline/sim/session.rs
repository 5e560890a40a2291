//! A simulated coordinator's session. All decisions are those of the real [`SessionDriver`] and [`RouteManager`]; this
//! module performs their actions and reports events to them, as the runner does.

use std::time::{Duration, Instant};

use futures::FutureExt;

use super::host::HostRequest;
use super::model::{MODEL, VOCAB, WIDTH, embed};
use super::oracle::SimRequest;
use super::swarm::{self, Micros, Mutation, Swarm, unreachable};
use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::pipeline::driver::{Action, Event, FirstRoute, SessionConfig, SessionDriver};
use crate::pipeline::link::message::Message;
use crate::pipeline::link::request::ANSWER_TIMEOUT;
use crate::pipeline::link::request::is_loss;
use crate::pipeline::link::router::{CoordinatorInbox, SessionStage};
use crate::pipeline::route::losses::HostLoss;
use crate::pipeline::route::manager::{RouteAction, RouteEvent, RouteManager, SearchPurpose};
use crate::pipeline::route::opening::Place;
use crate::pipeline::route::watch::UnresponsiveHosts;
use crate::pipeline::route::{OPEN_DEADLINE, OpenParams, OpenRoute, RELEASE_DEADLINE, RELEASES};
use crate::pipeline::session::SessionEnd;
use crate::pipeline::session::prefix::PrefixHasher;
use crate::wire::codec::Codec;
use crate::wire::control::{Host, OpenSession, Opened};
use crate::wire::job::StepHeader;
use crate::wire::prefix::Prefix;

mod planning;

/// A timed event of a coordinator's session.
pub enum SessionTimer {
    Begin,
    /// The driver's wake-up time.
    Wake {
        when: Instant,
    },
    /// A dial failed.
    DialFailed {
        epoch: u32,
        place: Place,
        to: usize,
    },
    /// A probe of a host that loads a stage timed out.
    ProbeTimedOut {
        epoch: u32,
        place: Place,
    },
    /// A probe of the hosts ended; `mute` did not reply at first.
    ProbeEnded {
        probe: u32,
        stages: Vec<(NodeId, SessionStage)>,
        mute: Vec<NodeId>,
    },
    /// A step could not be sent on the route of this epoch.
    SendFailed {
        epoch: u32,
        fault: Fault,
    },
    Cancel,
}

/// State of a session.
enum SessionPhase {
    Waiting,
    /// Its first route is being opened.
    StageReservation(Box<RouteManager>),
    Running(Box<SessionDriver>),
    Over,
}

/// See the module.
pub struct SimSession {
    pub node: usize,
    pub id: SessionId,
    pub request: SimRequest,
    pub began: Micros,
    pub ended: Option<(Micros, Result<SessionEnd, Fault>)>,
    /// Emitted tokens, with their log-probabilities.
    pub emitted: Vec<(u32, f32)>,
    /// Rows of a chunk on the first route.
    pub chunk: u32,
    /// Whether it failed because other hosts admit shorter steps.
    pub shorter: bool,
    /// Nodes that refused this session without being out of reach.
    pub refused: Vec<NodeId>,
    pub epochs: u32,
    /// Epoch of the last attempt.
    epoch: u32,
    /// Later routes that reused KV.
    pub reused: u32,
    /// Takeovers by standbys.
    pub takeovers: u32,
    /// Whether its coordinator is dead.
    pub died: bool,
    phase: SessionPhase,
    inbox: Option<CoordinatorInbox>,
    /// Target of steps, and of copies until one cannot be sent.
    first: Option<usize>,
    copies: Option<usize>,
    /// Whether a search ran since the last attempt.
    searched: bool,
    /// Peers that are asked to open stages in the current attempt.
    asked: Vec<(Place, NodeId)>,
    /// Its next wake-up.
    next_wake: Option<Instant>,
}

impl SimSession {
    pub fn new(index: usize, node: usize, request: SimRequest) -> Self {
        Self {
            node,
            id: SessionId([index as u8; 16]),
            request,
            began: 0,
            ended: None,
            emitted: Vec::new(),
            chunk: 1,
            shorter: false,
            refused: Vec::new(),
            epochs: 0,
            epoch: 0,
            reused: 0,
            takeovers: 0,
            died: false,
            phase: SessionPhase::Waiting,
            inbox: None,
            first: None,
            copies: None,
            searched: false,
            asked: Vec::new(),
            next_wake: None,
        }
    }

    /// Its coordinator dies.
    pub fn die(&mut self) {
        (self.died, self.phase, self.inbox) = (true, SessionPhase::Over, None);
    }

    pub fn is_over(&self) -> bool {
        matches!(self.phase, SessionPhase::Over)
    }

    fn driver(&mut self) -> Option<&mut SessionDriver> {
        match &mut self.phase {
            SessionPhase::Running(driver) => Some(driver),
            _ => None,
        }
    }

    fn is_running(&self) -> bool {
        matches!(&self.phase, SessionPhase::Running(driver) if driver.is_running())
    }

    fn wake_at(&self) -> Option<Instant> {
        match &self.phase {
            SessionPhase::StageReservation(routes) => routes.wake_at(),
            SessionPhase::Running(driver) => driver.wake_at(),
            SessionPhase::Waiting | SessionPhase::Over => None,
        }
    }

    fn open_params(&self) -> OpenParams {
        let prompt = self.request.prompt.len() as u32;
        OpenParams {
            session: self.id,
            model: MODEL,
            engine: String::new(),
            exact: self.request.exact,
            context: prompt + self.request.max_tokens,
            least: prompt + 1,
            width: WIDTH,
            vocab: VOCAB,
        }
    }

    fn config(&self) -> SessionConfig {
        SessionConfig {
            codec: Codec::F32,
            prefix_hasher: prefix_hasher(self.node),
            needs_all_states: false,
            is_embedding: false,
            prompt: self.request.prompt.len(),
            max_answer_bytes: usize::MAX,
        }
    }
}

fn prefix_hasher(node: usize) -> PrefixHasher {
    PrefixHasher::new([node as u8; 32])
}

fn micros(time: Duration) -> Micros {
    time.as_micros() as Micros
}

impl Swarm {
    pub fn timer(&mut self, index: usize, timer: SessionTimer) {
        let one = &mut self.sessions[index];
        if !self.nodes[one.node].alive || one.is_over() {
            return;
        }
        let from = one.node;
        let event = match timer {
            SessionTimer::Begin => return self.begin(index),
            SessionTimer::Cancel => return self.cancel(index),
            SessionTimer::Wake { when } if one.next_wake == Some(when) => {
                one.next_wake = None;
                Event::Wake
            }
            SessionTimer::Wake { .. } => return,
            SessionTimer::DialFailed { epoch, place, to } => {
                Event::Route(RouteEvent::Connected { epoch, place, connected: Err(unreachable(to)) })
            }
            SessionTimer::ProbeTimedOut { epoch, place } => {
                Event::Route(RouteEvent::Probed { epoch, place, silent: true })
            }
            SessionTimer::ProbeEnded { probe, stages, mute } => {
                Event::HostsProbed { probe, unresponsive: self.unresponsive(from, &stages, &mute) }
            }
            SessionTimer::SendFailed { epoch, fault } => match one.driver() {
                Some(driver) if driver.route().epoch == epoch => Event::SendFailed(fault),
                _ => return,
            },
        };
        self.on_event(index, event);
    }

    fn set(&mut self, index: usize, after: Micros, timer: SessionTimer) {
        self.at(self.now + after, swarm::Event::Timer { session: index, timer });
    }

    fn begin(&mut self, index: usize) {
        let one = &mut self.sessions[index];
        let node = &self.nodes[one.node];
        one.began = self.now;
        one.inbox = Some(node.router.register_coordinator(one.id));
        let mut routes = Box::new(RouteManager::new(one.open_params(), node.id));
        routes.mutant = self.mutation.and_then(Mutation::driver_mutant);
        let prefix = prefix_hasher(one.node).hashes(MODEL, one.request.exact, &one.request.prompt);
        match self.find(index, &[]) {
            Ok(route) => {
                routes.open(route, prefix);
                self.sessions[index].phase = SessionPhase::StageReservation(routes);
                self.progress(index);
            }
            Err(fault) => self.finish(index, Err(fault)),
        }
    }

    fn cancel(&mut self, index: usize) {
        if let SessionPhase::StageReservation(routes) = &mut self.sessions[index].phase {
            routes.abandon();
            self.perform_all(index);
            return self.finish(index, Ok(SessionEnd::Cancelled));
        }
        self.on_event(index, Event::Cancelled);
    }

    /// Starts a session on its first open route.
    fn start(&mut self, index: usize, open: OpenRoute) {
        let now = self.instant();
        let one = &mut self.sessions[index];
        let phase = std::mem::replace(&mut one.phase, SessionPhase::Waiting);
        let SessionPhase::StageReservation(routes) = phase else { return };
        let (config, request, chunk) = (one.config(), one.request.clone(), &mut one.chunk);
        let make = |start: FirstRoute| {
            *chunk = start.max_rows;
            request.session(start.max_rows, start.cached)
        };
        let driver = SessionDriver::new(config, *routes, open, make, now);
        one.phase = SessionPhase::Running(Box::new(driver));
    }

    /// Reports an event, and performs what follows.
    fn on_event(&mut self, index: usize, event: Event) {
        self.report(index, event);
        self.progress(index);
    }

    fn report(&mut self, index: usize, event: Event) {
        let now = self.instant();
        let one = &mut self.sessions[index];
        match (&mut one.phase, event) {
            (SessionPhase::Running(driver), event) => driver.on(event, now),
            (SessionPhase::StageReservation(routes), event) => {
                let Some(event) = event.into_route_event() else { return };
                let routed = routes.on(event, now);
                self.routed(index, routed);
            }
            (SessionPhase::Waiting | SessionPhase::Over, _) => {}
        }
    }

    fn routed(&mut self, index: usize, routed: Option<Result<OpenRoute, Fault>>) {
        match routed {
            Some(Ok(open)) => self.start(index, open),
            Some(Err(fault)) => {
                self.perform_all(index);
                self.finish(index, Err(fault));
            }
            None => {}
        }
    }

    /// Performs pending actions, reads messages, and schedules the next wake-up.
    fn progress(&mut self, index: usize) {
        loop {
            self.perform_all(index);
            let one = &mut self.sessions[index];
            if let Some(end) = one.driver().and_then(|driver| driver.end().cloned()) {
                return self.finish(index, end);
            }
            let running = one.is_running();
            let delivery = one.inbox.as_mut().filter(|_| running).and_then(|inbox| inbox.next().now_or_never());
            match delivery {
                Some(delivery) => self.report(index, Event::Delivered(delivery)),
                None => break,
            }
        }
        let one = &mut self.sessions[index];
        if let Some(when) = one.wake_at().filter(|when| one.next_wake.is_none_or(|wakes| *when < wakes)) {
            one.next_wake = Some(when);
            let event = swarm::Event::Timer { session: index, timer: SessionTimer::Wake { when } };
            self.at(self.micros(when), event);
        }
    }

    fn perform_all(&mut self, index: usize) {
        let now = self.instant();
        loop {
            let action = match &mut self.sessions[index].phase {
                SessionPhase::StageReservation(routes) => routes.next_action().map(Action::Route),
                SessionPhase::Running(driver) => driver.next_action(now),
                SessionPhase::Waiting | SessionPhase::Over => None,
            };
            match action {
                Some(action) => self.perform(index, action),
                None => return,
            }
        }
    }

    fn perform(&mut self, index: usize, action: Action) {
        let one = &mut self.sessions[index];
        match action {
            Action::Rerouted { kept, .. } => {
                one.reused += u32::from(kept > 0);
                drop(one.inbox.take());
                one.inbox = Some(self.nodes[one.node].router.register_coordinator(one.id));
            }
            Action::UseRoute { first, copy, hosts } => {
                self.nodes[one.node].router.set_hosts(one.id, hosts);
                let (first, copy) = (self.node(first.node), copy.map(|host| self.node(host.node)));
                let one = &mut self.sessions[index];
                (one.first, one.copies) = (Some(first), copy);
            }
            Action::StopCopies => one.copies = None,
            Action::Send { header, tokens } => self.send_step(index, header, &tokens),
            Action::Emit(sampled) => one.emitted.push((sampled.token, sampled.logprob)),
            Action::RouteFailed(_) => {}
            Action::Draft { text, limits } => {
                let drafted = one.request.draft(&text, limits.max_tokens, &mut self.rng);
                self.report(index, Event::Drafted(drafted.map(|draft| (draft, Duration::ZERO))));
            }
            Action::ProbeHosts { probe, stages } => {
                let from = one.node;
                let peers = stages.iter().map(|(peer, _)| *peer);
                let mute = peers.filter(|peer| self.is_mute(from, *peer)).collect();
                self.set(index, micros(ANSWER_TIMEOUT), SessionTimer::ProbeEnded { probe, stages, mute });
            }
            Action::Route(action) => self.perform_route(index, action),
            Action::DraftAhead { .. } | Action::Owe(_) => {}
        }
    }

    fn perform_route(&mut self, index: usize, action: RouteAction) {
        let from = self.sessions[index].node;
        match action {
            RouteAction::Find { purpose, without, .. } => {
                self.sessions[index].searched |= purpose == SearchPurpose::Open;
                let found = self.find(index, &without);
                self.report(index, Event::Route(RouteEvent::Found { purpose, found }));
            }
            RouteAction::BeginAttempt { epoch, .. } => {
                let one = &mut self.sessions[index];
                (one.epoch, one.epochs) = (epoch, one.epochs + 1);
                // An attempt without a search is a takeover by a standby.
                one.takeovers += u32::from(one.epochs > 1 && !std::mem::take(&mut one.searched));
                one.asked.clear();
                self.note(|| format!("session {index} at {from} opens epoch {epoch}"));
            }
            RouteAction::Connect { epoch, place, host } => self.connect_for(index, epoch, place, &host),
            RouteAction::Open { place, node, open } => self.ask_to_open(index, place, node, open),
            RouteAction::Probe { place, node, stage } => {
                let (to, epoch) = (self.node(node), stage.epoch);
                match self.answers(from, to) {
                    true => {
                        let probed = RouteEvent::Probed { epoch, place, silent: false };
                        self.report(index, Event::Route(probed));
                    }
                    false => self.set(index, micros(ANSWER_TIMEOUT), SessionTimer::ProbeTimedOut { epoch, place }),
                }
            }
            RouteAction::EndAttempt => self.sessions[index].asked.clear(),
            RouteAction::Release { epoch, nodes, keep } => self.release(index, epoch, &nodes, &keep),
            RouteAction::Record { .. } => {}
        }
    }

    fn connect_for(&mut self, index: usize, epoch: u32, place: Place, host: &Host) {
        let (from, to) = (self.sessions[index].node, self.node(host.node));
        match self.connect(from, to) {
            Some(_) => {
                let connected = RouteEvent::Connected { epoch, place, connected: Ok(()) };
                self.report(index, Event::Route(connected));
            }
            None => {
                let after = self.dial(from, to);
                self.set(index, after, SessionTimer::DialFailed { epoch, place, to });
            }
        }
    }

    fn ask_to_open(&mut self, index: usize, place: Place, node: NodeId, open: Box<OpenSession>) {
        let (from, to) = (self.sessions[index].node, self.node(node));
        self.sessions[index].asked.push((place, node));
        self.note(|| format!("session {index} asks {to} for {} ({place:?})", open.layers));
        self.ask(from, to, micros(OPEN_DEADLINE), HostRequest::Open { asker: index, open, reservation: None });
    }

    pub fn replied(&mut self, index: usize, epoch: u32, place: Place, reply: Result<Opened, Fault>) {
        let one = &mut self.sessions[index];
        if epoch == one.epoch
            && let Some((_, node)) = one.asked.iter().find(|(asked, _)| *asked == place)
            && reply.as_ref().is_err_and(|fault| !place.is_standby && !is_loss(fault.kind()))
        {
            one.refused.push(*node);
        }
        self.on_event(index, Event::Route(RouteEvent::Replied { epoch, place, reply }));
    }

    /// An answer may have arrived.
    pub fn on_answer(&mut self, session: SessionId) {
        let index = session.0[0] as usize;
        if index < self.sessions.len() && !self.sessions[index].is_over() {
            self.progress(index);
        }
    }

    /// Reports the loss of a peer, or of a link to it, and fails the open requests to the peer.
    pub fn lost(&mut self, node: usize, peer: usize, gone: bool) {
        let id = self.nodes[peer].id;
        for index in 0..self.sessions.len() {
            if self.sessions[index].node != node || self.sessions[index].is_over() {
                continue;
            }
            let one = &self.sessions[index];
            let epoch = one.epoch;
            let asked: Vec<Place> =
                one.asked.iter().filter(|(_, asked)| *asked == id).map(|(place, _)| *place).collect();
            let loss = if gone { HostLoss::Peer(id) } else { HostLoss::PeerLink(id) };
            self.on_event(index, Event::Lost { loss, link_ended: true });
            for place in asked {
                let fault = Fault::new(ErrorKind::PeerLost, format!("node {peer} is gone"));
                self.on_event(index, Event::Route(RouteEvent::Replied { epoch, place, reply: Err(fault) }));
            }
        }
    }

    fn send_step(&mut self, index: usize, mut header: StepHeader, tokens: &[u32]) {
        if self.mutation == Some(Mutation::DraftsAsFinal) {
            header.committed = u32::MAX;
        }
        let one = &self.sessions[index];
        let (from, copies, Some(to), epoch) = (one.node, one.copies, one.first, header.epoch) else { return };
        let message = Message::Step { header, hidden: embed(tokens) };
        if copies.is_some_and(|to| self.send(from, to, message.clone()).is_err()) {
            self.sessions[index].copies = None;
        }
        if let Err(when) = self.send(from, to, message) {
            let fault = unreachable(to);
            self.at(when, swarm::Event::Timer { session: index, timer: SessionTimer::SendFailed { epoch, fault } });
        }
    }

    /// Whether a peer is connected and does not reply.
    fn is_mute(&self, from: usize, peer: NodeId) -> bool {
        let to = self.node(peer);
        self.thinks_connected(from, to) && !self.answers(from, to)
    }

    /// Hosts that reply that they lost their stages, and hosts that were silent all the time.
    fn unresponsive(&self, from: usize, stages: &[(NodeId, SessionStage)], mute: &[NodeId]) -> UnresponsiveHosts {
        let coordinator = self.nodes[from].id;
        let gone = |(peer, key): &&(NodeId, SessionStage)| {
            let to = self.node(*peer);
            self.answers(from, to) && !self.nodes[to].router.serves(*key, coordinator)
        };
        let gone = stages.iter().filter(gone).map(|(peer, _)| *peer).collect();
        let mut silent: Vec<NodeId> = mute.iter().copied().filter(|peer| self.is_mute(from, *peer)).collect();
        silent.dedup();
        UnresponsiveHosts { gone, silent }
    }

    /// Tells hosts to end the session.
    fn release(&mut self, index: usize, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        let (session, from) = (self.sessions[index].id, self.sessions[index].node);
        let local = self.nodes[from].id;
        let patience = micros(RELEASE_DEADLINE * RELEASES);
        for node in nodes {
            match self.node(*node) {
                to if to == from => self.end_session(from, session, epoch, local, keep),
                to => {
                    let ask = HostRequest::Release { session, epoch, keep: keep.clone() };
                    self.send_release(from, to, self.now + patience, ask);
                }
            }
        }
    }

    fn finish(&mut self, index: usize, end: Result<SessionEnd, Fault>) {
        self.note(|| format!("session {index} ends: {end:?}"));
        let one = &mut self.sessions[index];
        let rows = one.driver().map(|driver| driver.route().max_rows);
        one.shorter = one.request.exact && rows.is_some_and(|rows| rows < one.chunk);
        (one.phase, one.inbox) = (SessionPhase::Over, None);
        one.ended = Some((self.now, end));
        self.check_end(index);
    }
}
