//! A simulated coordinator's session. What it decides is the real [`SessionDriver`] and the real [`RouteManager`]; what is
//! here does what they want and tells them what happens, as the runner does.

use std::time::{Duration, Instant};

use futures::FutureExt;

use super::host::Ask;
use super::model::{MODEL, VOCAB, WIDTH, embed};
use super::swarm::{self, Micros, Sabotage, Swarm, unreachable};
use super::truth::Request;
use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::pipeline::driver::{
    Action, Event, Place, Purpose, RouteAction, RouteEvent, RouteManager, SessionConfig, SessionDriver, Start,
};
use crate::pipeline::links::{CoordinatorInbox, SessionStage};
use crate::pipeline::losses::Loss;
use crate::pipeline::message::Message;
use crate::pipeline::prefix::Namer;
use crate::pipeline::route::{OPEN_DEADLINE, OpenParams, OpenRoute, RELEASE_DEADLINE, RELEASES};
use crate::pipeline::search::is_loss;
use crate::pipeline::session::End;
use crate::pipeline::watch::{ANSWERS, Absent};
use crate::wire::codec::Codec;
use crate::wire::control::{Host, OpenSession, Opened};
use crate::wire::job::StepHeader;
use crate::wire::prefix::Prefix;

mod planning;

/// What happens to a coordinator's session at a moment.
pub enum Timer {
    Begin,
    /// The driver waits for this time.
    Wake {
        when: Instant,
    },
    /// A host cannot be dialled.
    Undialled {
        epoch: u32,
        place: Place,
        to: usize,
    },
    /// A host that loads a stage has not said that it is there.
    Unsaid {
        epoch: u32,
        place: Place,
    },
    /// Hosts that were asked for their stages have said what they say; these did not answer at first.
    Asked {
        question: u32,
        stages: Vec<(NodeId, SessionStage)>,
        mute: Vec<NodeId>,
    },
    /// A step could not be sent on the route of this epoch.
    Unsent {
        epoch: u32,
        fault: Fault,
    },
    Cancel,
}

/// Where a session is.
enum Phase {
    Waiting,
    /// Its first route is being opened.
    Opening(Box<RouteManager>),
    Running(Box<SessionDriver>),
    Over,
}

/// See the module.
pub struct SimSession {
    pub node: usize,
    pub id: SessionId,
    pub request: Request,
    pub began: Micros,
    pub ended: Option<(Micros, Result<End, Fault>)>,
    /// What was said, with its log-probabilities.
    pub said: Vec<(u32, f32)>,
    /// Rows of a chunk on the first route.
    pub chunk: u32,
    /// Whether it ended because other hosts take shorter steps.
    pub shorter: bool,
    /// Who refused this session without having been harmed.
    pub refused: Vec<NodeId>,
    pub epochs: u32,
    /// That of the last attempt, as it was told.
    epoch: u32,
    /// Of its later routes, how many had not to compute all again.
    pub kept: u32,
    /// Times that stand-bys took over.
    pub taken: u32,
    /// Whether its coordinator is dead.
    pub died: bool,
    phase: Phase,
    inbox: Option<CoordinatorInbox>,
    /// Where steps go, and their copies while all of them can be sent.
    first: Option<usize>,
    copies: Option<usize>,
    /// Whether a route was looked for since the last attempt.
    sought: bool,
    /// Peers that are asked to open the stages of the attempt under way.
    asked: Vec<(Place, NodeId)>,
    /// When it is woken next.
    wakes: Option<Instant>,
}

impl SimSession {
    pub fn new(index: usize, node: usize, request: Request) -> Self {
        Self {
            node,
            id: SessionId([index as u8; 16]),
            request,
            began: 0,
            ended: None,
            said: Vec::new(),
            chunk: 1,
            shorter: false,
            refused: Vec::new(),
            epochs: 0,
            epoch: 0,
            kept: 0,
            taken: 0,
            died: false,
            phase: Phase::Waiting,
            inbox: None,
            first: None,
            copies: None,
            sought: false,
            asked: Vec::new(),
            wakes: None,
        }
    }

    /// Its coordinator dies.
    pub fn die(&mut self) {
        (self.died, self.phase, self.inbox) = (true, Phase::Over, None);
    }

    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    fn driver(&mut self) -> Option<&mut SessionDriver> {
        match &mut self.phase {
            Phase::Running(driver) => Some(driver),
            _ => None,
        }
    }

    fn is_running(&self) -> bool {
        matches!(&self.phase, Phase::Running(driver) if driver.is_running())
    }

    fn wake_at(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Opening(routes) => routes.wake_at(),
            Phase::Running(driver) => driver.wake_at(),
            Phase::Waiting | Phase::Over => None,
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
            namer: namer(self.node),
            needs_all: false,
            reads: false,
            prompt: self.request.prompt.len(),
            longest: usize::MAX,
        }
    }
}

fn namer(node: usize) -> Namer {
    Namer::new([node as u8; 32])
}

fn micros(time: Duration) -> Micros {
    time.as_micros() as Micros
}

impl Swarm {
    pub fn timer(&mut self, index: usize, timer: Timer) {
        let one = &mut self.sessions[index];
        if !self.nodes[one.node].alive || one.is_over() {
            return;
        }
        let from = one.node;
        let event = match timer {
            Timer::Begin => return self.begin(index),
            Timer::Cancel => return self.cancel(index),
            Timer::Wake { when } if one.wakes == Some(when) => {
                one.wakes = None;
                Event::Time
            }
            Timer::Wake { .. } => return,
            Timer::Undialled { epoch, place, to } => {
                Event::Route(RouteEvent::Connected { epoch, place, connected: Err(unreachable(to)) })
            }
            Timer::Unsaid { epoch, place } => Event::Route(RouteEvent::Probed { epoch, place, silent: true }),
            Timer::Asked { question, stages, mute } => {
                Event::Present { question, absent: self.absent(from, &stages, &mute) }
            }
            Timer::Unsent { epoch, fault } => match one.driver() {
                Some(driver) if driver.way().epoch == epoch => Event::Unsent(fault),
                _ => return,
            },
        };
        self.happens(index, event);
    }

    fn set(&mut self, index: usize, after: Micros, timer: Timer) {
        self.at(self.now + after, swarm::Event::Timer { session: index, timer });
    }

    fn begin(&mut self, index: usize) {
        let one = &mut self.sessions[index];
        let node = &self.nodes[one.node];
        one.began = self.now;
        one.inbox = Some(node.links.register_coordinator(one.id));
        let mut routes = Box::new(RouteManager::new(one.open_params(), node.id));
        routes.mutant = self.sabotage.and_then(Sabotage::of_driver);
        let prefix = namer(one.node).name(MODEL, one.request.exact, &one.request.prompt);
        match self.find(index, &[]) {
            Ok(route) => {
                routes.open(route, prefix);
                self.sessions[index].phase = Phase::Opening(routes);
                self.go_on(index);
            }
            Err(fault) => self.finish(index, Err(fault)),
        }
    }

    fn cancel(&mut self, index: usize) {
        if let Phase::Opening(routes) = &mut self.sessions[index].phase {
            routes.abandon();
            self.perform_all(index);
            return self.finish(index, Ok(End::Cancelled));
        }
        self.happens(index, Event::Cancelled);
    }

    /// A session's first route is open.
    fn start(&mut self, index: usize, open: OpenRoute) {
        let now = self.instant();
        let one = &mut self.sessions[index];
        let phase = std::mem::replace(&mut one.phase, Phase::Waiting);
        let Phase::Opening(routes) = phase else { return };
        let (config, request, chunk) = (one.config(), one.request.clone(), &mut one.chunk);
        let make = |start: Start| {
            *chunk = start.max_rows;
            request.session(start.max_rows, start.cached)
        };
        let driver = SessionDriver::new(config, *routes, open, make, now);
        one.phase = Phase::Running(Box::new(driver));
    }

    /// Tells what happens, and does what follows.
    fn happens(&mut self, index: usize, event: Event) {
        self.tell(index, event);
        self.go_on(index);
    }

    fn tell(&mut self, index: usize, event: Event) {
        let now = self.instant();
        let one = &mut self.sessions[index];
        match (&mut one.phase, event) {
            (Phase::Running(driver), event) => driver.on(event, now),
            (Phase::Opening(routes), event) => {
                let event = match event {
                    Event::Route(event) => event,
                    Event::Time => RouteEvent::Time,
                    Event::Lost { loss: Loss::Peer(peer), .. } => RouteEvent::Lost(peer),
                    _ => return,
                };
                let routed = routes.on(event, now);
                self.routed(index, routed);
            }
            (Phase::Waiting | Phase::Over, _) => {}
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

    /// Does what is wanted, takes what has come, and waits for more.
    fn go_on(&mut self, index: usize) {
        loop {
            self.perform_all(index);
            let one = &mut self.sessions[index];
            if let Some(end) = one.driver().and_then(|driver| driver.end().cloned()) {
                return self.finish(index, end);
            }
            let running = one.is_running();
            let delivery = one.inbox.as_mut().filter(|_| running).and_then(|inbox| inbox.next().now_or_never());
            match delivery {
                Some(delivery) => self.tell(index, Event::Delivered(delivery)),
                None => break,
            }
        }
        let one = &mut self.sessions[index];
        if let Some(when) = one.wake_at().filter(|when| one.wakes.is_none_or(|wakes| *when < wakes)) {
            one.wakes = Some(when);
            let event = swarm::Event::Timer { session: index, timer: Timer::Wake { when } };
            self.at(self.micros(when), event);
        }
    }

    fn perform_all(&mut self, index: usize) {
        let now = self.instant();
        loop {
            let action = match &mut self.sessions[index].phase {
                Phase::Opening(routes) => routes.next_action().map(Action::Route),
                Phase::Running(driver) => driver.next_action(now),
                Phase::Waiting | Phase::Over => None,
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
                one.kept += u32::from(kept > 0);
                drop(one.inbox.take());
                one.inbox = Some(self.nodes[one.node].links.register_coordinator(one.id));
            }
            Action::Follow { first, copy, hosts } => {
                self.nodes[one.node].links.set_hosts(one.id, hosts);
                let (first, copy) = (self.node(first.node), copy.map(|host| self.node(host.node)));
                let one = &mut self.sessions[index];
                (one.first, one.copies) = (Some(first), copy);
            }
            Action::StopCopies => one.copies = None,
            Action::Send { header, tokens } => self.send_step(index, header, &tokens),
            Action::Emit(sampled) => one.said.push((sampled.token, sampled.logprob)),
            Action::Broken(_) => {}
            Action::Draft { text, horizon } => {
                let drafted = one.request.draft(&text, horizon.most, &mut self.chance);
                self.tell(index, Event::Drafted(drafted.map(|guesses| (guesses, Duration::ZERO))));
            }
            Action::Ask { question, stages } => {
                let from = one.node;
                let peers = stages.iter().map(|(peer, _)| *peer);
                let mute = peers.filter(|peer| self.is_mute(from, *peer)).collect();
                self.set(index, micros(ANSWERS), Timer::Asked { question, stages, mute });
            }
            Action::Route(action) => self.perform_route(index, action),
            Action::Foresee { .. } | Action::Owe(_) => {}
        }
    }

    fn perform_route(&mut self, index: usize, action: RouteAction) {
        let from = self.sessions[index].node;
        match action {
            RouteAction::Find { purpose, without, .. } => {
                self.sessions[index].sought |= purpose == Purpose::Next;
                let found = self.find(index, &without);
                self.tell(index, Event::Route(RouteEvent::Found { purpose, found }));
            }
            RouteAction::Attempt { epoch, .. } => {
                let one = &mut self.sessions[index];
                (one.epoch, one.epochs) = (epoch, one.epochs + 1);
                // Without a search it is a stand-by's turn.
                one.taken += u32::from(one.epochs > 1 && !std::mem::take(&mut one.sought));
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
                        self.tell(index, Event::Route(probed));
                    }
                    false => self.set(index, micros(ANSWERS), Timer::Unsaid { epoch, place }),
                }
            }
            RouteAction::Settled => self.sessions[index].asked.clear(),
            RouteAction::Release { epoch, nodes, keep } => self.release(index, epoch, &nodes, &keep),
            RouteAction::Note { .. } => {}
        }
    }

    fn connect_for(&mut self, index: usize, epoch: u32, place: Place, host: &Host) {
        let (from, to) = (self.sessions[index].node, self.node(host.node));
        match self.connect(from, to) {
            Some(_) => {
                let connected = RouteEvent::Connected { epoch, place, connected: Ok(()) };
                self.tell(index, Event::Route(connected));
            }
            None => {
                let after = self.dial(from, to);
                self.set(index, after, Timer::Undialled { epoch, place, to });
            }
        }
    }

    fn ask_to_open(&mut self, index: usize, place: Place, node: NodeId, open: Box<OpenSession>) {
        let (from, to) = (self.sessions[index].node, self.node(node));
        self.sessions[index].asked.push((place, node));
        self.note(|| format!("session {index} asks {to} for {} ({place:?})", open.layers));
        self.ask(from, to, micros(OPEN_DEADLINE), Ask::Open { asker: index, open, opening: None });
    }

    pub fn replied(&mut self, index: usize, epoch: u32, place: Place, reply: Result<Opened, Fault>) {
        let one = &mut self.sessions[index];
        if epoch == one.epoch
            && let Some((_, node)) = one.asked.iter().find(|(asked, _)| *asked == place)
            && reply.as_ref().is_err_and(|fault| !place.stands_by && !is_loss(fault.kind()))
        {
            one.refused.push(*node);
        }
        self.happens(index, Event::Route(RouteEvent::Replied { epoch, place, reply }));
    }

    /// An answer may have come.
    pub fn hears(&mut self, session: SessionId) {
        let index = session.0[0] as usize;
        if index < self.sessions.len() && !self.sessions[index].is_over() {
            self.go_on(index);
        }
    }

    /// A peer has gone, or a link to it: sessions hear of it, and what it was asked to open it will not.
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
            let loss = if gone { Loss::Peer(id) } else { Loss::Link(id) };
            self.happens(index, Event::Lost { loss, link_ended: true });
            for place in asked {
                let fault = Fault::new(ErrorKind::PeerLost, format!("node {peer} is gone"));
                self.happens(index, Event::Route(RouteEvent::Replied { epoch, place, reply: Err(fault) }));
            }
        }
    }

    fn send_step(&mut self, index: usize, mut header: StepHeader, tokens: &[u32]) {
        if self.sabotage == Some(Sabotage::Guesses) {
            header.certain = u32::MAX;
        }
        let one = &self.sessions[index];
        let (from, copies, Some(to), epoch) = (one.node, one.copies, one.first, header.epoch) else { return };
        let message = Message::Step { header, hidden: embed(tokens) };
        if copies.is_some_and(|to| self.send(from, to, message.clone()).is_err()) {
            self.sessions[index].copies = None;
        }
        if let Err(when) = self.send(from, to, message) {
            let fault = unreachable(to);
            self.at(when, swarm::Event::Timer { session: index, timer: Timer::Unsent { epoch, fault } });
        }
    }

    /// Whether a peer is connected and says nothing.
    fn is_mute(&self, from: usize, peer: NodeId) -> bool {
        let to = self.node(peer);
        self.thinks_connected(from, to) && !self.answers(from, to)
    }

    /// Hosts that say that they have their stages no more, and those that have been silent all the time.
    fn absent(&self, from: usize, stages: &[(NodeId, SessionStage)], mute: &[NodeId]) -> Absent {
        let coordinator = self.nodes[from].id;
        let gone = |(peer, key): &&(NodeId, SessionStage)| {
            let to = self.node(*peer);
            self.answers(from, to) && !self.nodes[to].links.serves(*key, coordinator)
        };
        let gone = stages.iter().filter(gone).map(|(peer, _)| *peer).collect();
        let mut silent: Vec<NodeId> = mute.iter().copied().filter(|peer| self.is_mute(from, *peer)).collect();
        silent.dedup();
        Absent { gone, silent }
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
                    let ask = Ask::Release { session, epoch, keep: keep.clone() };
                    self.tell_release(from, to, self.now + patience, ask);
                }
            }
        }
    }

    fn finish(&mut self, index: usize, end: Result<End, Fault>) {
        self.note(|| format!("session {index} ends: {end:?}"));
        let one = &mut self.sessions[index];
        let rows = one.driver().map(|driver| driver.way().max_rows);
        one.shorter = one.request.exact && rows.is_some_and(|rows| rows < one.chunk);
        (one.phase, one.inbox) = (Phase::Over, None);
        one.ended = Some((self.now, end));
        self.check_end(index);
    }
}
