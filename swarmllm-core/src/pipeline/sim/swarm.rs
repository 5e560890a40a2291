//! The simulated swarm: time, ordered events, and the connections between nodes.
//!
//! Two nodes have one connection at a time. Stage frames keep their order on it; requests go beside them and may
//! overtake. A partition holds everything in flight until it heals, or until a node notices that the connection is
//! gone: then it is lost. Events of a frozen node wait until it thaws.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::faults::InjectedFault;
use super::host::{HostRequest, Node};
use super::rng::Rng;
use super::session::{SessionTimer, SimSession};
use crate::base::{ErrorKind, Fault, NodeId};
use crate::engine::CutRules;
use crate::pipeline::link::message::Message;
use crate::pipeline::link::router::SessionStage;
use crate::pipeline::route::RELEASE_DEADLINE;
use crate::pipeline::route::mutant::Mutant;
use crate::pipeline::route::opening::Place;
use crate::rt::TaskSet;
use crate::wire::control::Opened;

/// Microseconds since the start.
pub type Micros = u64;
pub const MILLI: Micros = 1000;
pub const SECOND: Micros = 1_000_000;
/// Time of a failing dial that nothing refuses.
const DIAL: Micros = 3 * SECOND;
/// One of this many frames is delayed by a retransmission.
const AGAIN: u64 = 50;
/// A peer that is silent for this long is disconnected.
const SILENCE: Micros = 40 * SECOND;
/// More events than any correct run has.
const MAX_EVENTS: u64 = 400_000;
/// Lines of the trace that a failure shows.
const TRACE: usize = 80;

/// A timed event.
pub enum Event {
    /// A stage frame arrives.
    Frame { from: usize, to: usize, connection: u32, message: Message },
    /// A request arrives, unless its sender has given it up by then.
    Request { from: usize, to: usize, connection: u32, since: Micros, until: Micros, ask: HostRequest },
    /// A coordinator repeats a release.
    Release { from: usize, incarnation: u32, to: usize, until: Micros, ask: HostRequest },
    /// A request for a slot polls again at its host.
    Waited { node: usize, incarnation: u32, from: usize, connection: u32, until: Micros, ask: HostRequest },
    /// A stage is loaded.
    Loaded { node: usize, incarnation: u32, ticket: u64 },
    /// The reply to a request for a stage arrives.
    Reply {
        to: usize,
        from: usize,
        connection: u32,
        asker: usize,
        epoch: u32,
        place: Place,
        reply: Result<Opened, Fault>,
    },
    /// A step is computed.
    Computed { node: usize, incarnation: u32, key: SessionStage, duration: Micros },
    /// A host fails to send a result.
    Unsent { node: usize, incarnation: u32, key: SessionStage, to: usize },
    /// A node notices that a connection is gone.
    Noticed { node: usize, incarnation: u32, peer: usize, connection: u32 },
    /// A node notices that its link to a peer is gone while another connection to it stands.
    Broke { node: usize, incarnation: u32, peer: usize },
    /// Two nodes say hello, connecting if necessary.
    Hello { one: usize, other: usize },
    /// A timed event of a session.
    Timer { session: usize, timer: SessionTimer },
    /// A fault.
    Fault(InjectedFault),
}

/// The connection of two nodes.
pub struct Connection {
    pub number: u32,
    /// Whether each side considers it open.
    pub open: [bool; 2],
    /// Whether it is partitioned.
    pub cut: bool,
    pub held: Vec<Event>,
    /// Arrival of the last frame in each direction.
    last: [Micros; 2],
    pub delay: Micros,
    jitter: Micros,
}

impl Connection {
    /// Frames sent from now on arrive no earlier.
    pub fn hold_until(&mut self, when: Micros) {
        self.last = self.last.map(|last| last.max(when));
    }
}

/// A mutation of the code under test, which the simulation must detect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutation {
    /// A recovery does not raise the epoch.
    Epochs,
    /// No host is told that a session has ended.
    Releases,
    /// Answers of an earlier route are accepted.
    LateAnswers,
    /// Coordinators mark draft tokens as final.
    DraftsAsFinal,
    /// Hosts reuse kept KV for prompts with another beginning.
    WrongPrefixes,
}

impl Mutation {
    pub const ALL: [Self; 5] =
        [Self::Epochs, Self::Releases, Self::LateAnswers, Self::DraftsAsFinal, Self::WrongPrefixes];

    /// The mutation of the drivers.
    pub fn driver_mutant(self) -> Option<Mutant> {
        match self {
            Self::Epochs => Some(Mutant::KeepsEpoch),
            Self::Releases => Some(Mutant::ForgetsRelease),
            Self::LateAnswers => Some(Mutant::TakesLate),
            Self::DraftsAsFinal | Self::WrongPrefixes => None,
        }
    }
}

/// See the module.
pub struct Swarm {
    pub now: Micros,
    pub rng: Rng,
    pub layers: u32,
    pub cuts: CutRules,
    pub nodes: Vec<Node>,
    pub sessions: Vec<SimSession>,
    pub connections: BTreeMap<(usize, usize), Connection>,
    /// Faults: time and node.
    pub faults: Vec<(Micros, usize)>,
    /// Thaws: time and node.
    pub thawed: Vec<(Micros, usize)>,
    /// Time of the last fault.
    pub last_fault: Micros,
    /// The first violated invariant.
    pub wrong: Option<String>,
    pub mutation: Option<Mutation>,
    /// Tasks for nodes that start.
    pub tasks: Option<TaskSet>,
    queue: BTreeMap<(Micros, u64), Event>,
    base: Instant,
    count: u64,
    trace: Option<VecDeque<String>>,
}

impl Swarm {
    pub fn new(rng: Rng, layers: u32, cuts: CutRules, traced: bool) -> Self {
        Self {
            now: 0,
            rng,
            layers,
            cuts,
            nodes: Vec::new(),
            sessions: Vec::new(),
            connections: BTreeMap::new(),
            faults: Vec::new(),
            thawed: Vec::new(),
            last_fault: 0,
            wrong: None,
            mutation: None,
            tasks: None,
            queue: BTreeMap::new(),
            // Only differences count.
            base: Instant::now(),
            count: 0,
            trace: traced.then(VecDeque::new),
        }
    }

    /// The current time, for code that takes it as an argument.
    pub fn instant(&self) -> Instant {
        self.base + Duration::from_micros(self.now)
    }

    /// Microseconds of a moment.
    pub fn micros(&self, instant: Instant) -> Micros {
        instant.saturating_duration_since(self.base).as_micros() as Micros
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            if trace.len() == TRACE {
                trace.pop_front();
            }
            trace.push_back(format!("{:>10.3} ms  {}", self.now as f64 / 1e3, line()));
        }
    }

    pub fn trace(&self) -> String {
        self.trace.iter().flatten().map(|line| format!("{line}\n")).collect()
    }

    /// Records a violated invariant; the first one counts.
    pub fn wrong(&mut self, what: impl FnOnce() -> String) {
        if self.wrong.is_none() {
            let what = what();
            self.note(|| format!("WRONG: {what}"));
            self.wrong = Some(what);
        }
    }

    pub fn at(&mut self, when: Micros, event: Event) {
        self.count += 1;
        self.queue.insert((when.max(self.now), self.count), event);
    }

    pub fn node(&self, id: NodeId) -> usize {
        id.0[0] as usize
    }

    /// Runs all events.
    pub fn run(&mut self) {
        while let Some(((when, _), event)) = self.queue.pop_first() {
            self.now = when;
            if self.count > MAX_EVENTS {
                self.wrong(|| "the run does not end".to_owned());
            }
            if self.wrong.is_some() {
                return;
            }
            match self.sleeper(&event) {
                Some(node) => self.nodes[node].waiting.push(event),
                None => self.happen(event),
            }
        }
    }

    /// The frozen node of an event, if it has one.
    fn sleeper(&self, event: &Event) -> Option<usize> {
        let node = match event {
            Event::Frame { to, .. } | Event::Request { to, .. } | Event::Reply { to, .. } => *to,
            Event::Loaded { node, .. } | Event::Computed { node, .. } | Event::Unsent { node, .. } => *node,
            Event::Release { from, .. } => *from,
            Event::Waited { node, .. } | Event::Noticed { node, .. } | Event::Broke { node, .. } => *node,
            Event::Timer { session, .. } => self.sessions[*session].node,
            Event::Hello { .. } | Event::Fault(_) => return None,
        };
        self.nodes[node].frozen.then_some(node)
    }

    fn happen(&mut self, event: Event) {
        let event = match self.carried(event) {
            Some(event) => event,
            None => return,
        };
        let is_incarnation = |swarm: &Self, node: usize, incarnation: u32| {
            swarm.nodes[node].alive && swarm.nodes[node].incarnation == incarnation
        };
        match event {
            Event::Frame { from, to, message, .. } => self.deliver(from, to, message),
            Event::Request { from, to, connection, since, until, .. } if self.now > until => {
                // A connection that is silent for so long is closed.
                for (node, peer) in [(from, to), (to, from)] {
                    if self.now > since + SILENCE {
                        self.noticed(node, peer, connection);
                    }
                }
            }
            Event::Request { from, to, connection, until, ask, .. } => self.asked(from, to, connection, until, ask),
            Event::Waited { node, incarnation, from, connection, until, ask }
                if is_incarnation(self, node, incarnation) =>
            {
                self.asked(from, node, connection, until, ask);
            }
            Event::Loaded { node, incarnation, ticket } if is_incarnation(self, node, incarnation) => {
                self.loaded(node, ticket)
            }
            Event::Reply { asker, epoch, place, reply, .. } => self.replied(asker, epoch, place, reply),
            Event::Computed { node, incarnation, key, duration } if is_incarnation(self, node, incarnation) => {
                self.computed(node, key, duration)
            }
            Event::Unsent { node, incarnation, key, to } if is_incarnation(self, node, incarnation) => {
                self.unsent(node, key, to)
            }
            Event::Noticed { node, incarnation, peer, connection } if is_incarnation(self, node, incarnation) => {
                self.noticed(node, peer, connection)
            }
            Event::Broke { node, incarnation, peer } if is_incarnation(self, node, incarnation) => {
                self.broke(node, peer)
            }
            Event::Hello { one, other } => self.hello(one, other),
            Event::Release { from, incarnation, to, until, ask } if is_incarnation(self, from, incarnation) => {
                self.send_release(from, to, until, ask);
            }
            Event::Timer { session, timer } => self.timer(session, timer),
            Event::Fault(fault) => self.inject(fault),
            _ => {}
        }
    }

    /// Whether an event arrives: over an open connection only, held during a partition. Messages of a node to itself
    /// need none.
    fn carried(&mut self, event: Event) -> Option<Event> {
        let (from, to, number) = match &event {
            Event::Frame { from, to, connection, .. } | Event::Request { from, to, connection, .. } => {
                (*from, *to, *connection)
            }
            Event::Reply { from, to, connection, .. } => (*from, *to, *connection),
            _ => return Some(event),
        };
        if from == to {
            return Some(event).filter(|_| self.nodes[to].alive);
        }
        let alive = self.nodes[to].alive;
        let Some(connection) =
            self.connections.get_mut(&pair(from, to)).filter(|connection| connection.number == number)
        else {
            self.undelivered(event);
            return None;
        };
        match connection.cut {
            true => {
                connection.held.push(event);
                None
            }
            false if connection.open == [true, true] && alive => Some(event),
            false => {
                // The other end replies that it does not know the connection.
                let (delay, incarnation) = (connection.delay, self.nodes[from].incarnation);
                self.at(self.now + delay, Event::Noticed { node: from, incarnation, peer: to, connection: number });
                self.undelivered(event);
                None
            }
        }
    }

    /// The number of the connection to a peer, made if necessary and possible.
    pub fn connect(&mut self, from: usize, to: usize) -> Option<u32> {
        let reachable = self.nodes[to].alive && !self.nodes[to].frozen;
        let connection = self.connections.get_mut(&pair(from, to))?;
        if connection.open[side(from, to)] {
            return Some(connection.number);
        }
        if !reachable || connection.cut {
            return None;
        }
        let stale = connection.open[side(to, from)];
        (connection.number, connection.open, connection.last) = (connection.number + 1, [true, true], [0, 0]);
        let held = std::mem::take(&mut connection.held);
        let (number, met) = (connection.number, self.now + 2 * connection.delay);
        self.at(met, Event::Hello { one: from, other: to });
        if stale {
            let incarnation = self.nodes[to].incarnation;
            self.at(met, Event::Broke { node: to, incarnation, peer: from });
        }
        held.into_iter().for_each(|event| self.undelivered(event));
        self.note(|| format!("{from} connects to {to}"));
        Some(number)
    }

    /// Whether a node considers itself connected to another.
    pub fn thinks_connected(&self, from: usize, to: usize) -> bool {
        self.connections.get(&pair(from, to)).is_some_and(|connection| connection.open[side(from, to)])
    }

    /// The same of this connection.
    pub fn stands(&self, from: usize, to: usize, number: u32) -> bool {
        self.thinks_connected(from, to) && self.connections[&pair(from, to)].number == number
    }

    /// Whether a peer would answer now.
    pub fn answers(&self, from: usize, to: usize) -> bool {
        let open = self
            .connections
            .get(&pair(from, to))
            .is_some_and(|connection| connection.open == [true, true] && !connection.cut);
        open && self.nodes[to].alive && !self.nodes[to].frozen
    }

    /// Sends a stage frame; the error is the time at which a failing dial is known.
    pub fn send(&mut self, from: usize, to: usize, message: Message) -> Result<(), Micros> {
        if from == to {
            self.at(self.now, Event::Frame { from, to, connection: 0, message });
            return Ok(());
        }
        let Some(number) = self.connect(from, to) else { return Err(self.now + self.dial(from, to)) };
        // Now and then a packet is lost and retransmitted, which delays all behind it.
        let again = if self.rng.one_in(AGAIN) { self.rng.below(400 * MILLI) } else { 0 };
        let jitter = self.jitter(from, to) + again;
        let connection = self.connections.get_mut(&pair(from, to)).unwrap();
        let last = &mut connection.last[side(from, to)];
        *last = (*last).max(self.now + connection.delay + jitter);
        let when = *last;
        self.at(when, Event::Frame { from, to, connection: number, message });
        Ok(())
    }

    /// Sends a request over an open connection; returns whether there was one.
    pub fn ask(&mut self, from: usize, to: usize, patience: Micros, ask: HostRequest) -> bool {
        let (until, now) = (self.now + patience, self.now);
        if from == to {
            self.at(now, Event::Request { from, to, connection: 0, since: now, until, ask });
            return true;
        }
        if !self.thinks_connected(from, to) {
            return false;
        }
        // A stream is negotiated before the request is written.
        let duration = self.one_way(from, to) * 2 + self.one_way(from, to);
        let connection = self.connections[&pair(from, to)].number;
        self.at(now + duration, Event::Request { from, to, connection, since: now, until, ask });
        true
    }

    /// Tells a host to end a session, with retries while it is out of reach.
    pub fn send_release(&mut self, from: usize, to: usize, until: Micros, ask: HostRequest) {
        if self.now > until {
            return;
        }
        if self.thinks_connected(from, to) {
            self.ask(from, to, until - self.now, ask);
        } else {
            let (incarnation, again) =
                (self.nodes[from].incarnation, self.now + RELEASE_DEADLINE.as_micros() as Micros);
            self.at(again, Event::Release { from, incarnation, to, until, ask });
        }
    }

    /// Handles an event lost with its connection. Senders notice the loss; only releases are repeated.
    fn undelivered(&mut self, event: Event) {
        if let Event::Request { from, to, until, ask: ask @ HostRequest::Release { .. }, .. } = event {
            let (incarnation, again) =
                (self.nodes[from].incarnation, self.now + RELEASE_DEADLINE.as_micros() as Micros);
            self.at(again, Event::Release { from, incarnation, to, until, ask });
        }
    }

    /// A one-way latency with jitter.
    pub fn one_way(&mut self, from: usize, to: usize) -> Micros {
        let jitter = self.jitter(from, to);
        self.connections.get(&pair(from, to)).map_or(0, |connection| connection.delay + jitter)
    }

    fn jitter(&mut self, from: usize, to: usize) -> Micros {
        let most = self.connections.get(&pair(from, to)).map_or(0, |connection| connection.jitter);
        self.rng.below(most + 1)
    }

    /// Round-trip time as measured.
    pub fn rtt(&self, from: usize, to: usize) -> Micros {
        self.connections.get(&pair(from, to)).map_or(0, |connection| 2 * connection.delay + connection.jitter)
    }

    /// Time of a failing dial: a running machine without the process refuses it at once.
    pub fn dial(&self, from: usize, to: usize) -> Micros {
        let cut = self.connections.get(&pair(from, to)).is_none_or(|connection| connection.cut);
        if !cut && !self.nodes[to].alive && !self.nodes[to].powered_off { self.rtt(from, to) } else { DIAL }
    }

    pub fn add_connection(&mut self, one: usize, other: usize, delay: Micros, jitter: Micros) {
        let (number, open) = (0, [false, false]);
        let connection = Connection { number, open, cut: false, held: Vec::new(), last: [0, 0], delay, jitter };
        self.connections.insert(pair(one, other), connection);
    }

    /// Connects two nodes; both receive the other's announcement.
    fn hello(&mut self, one: usize, other: usize) {
        if self.nodes[one].frozen || self.nodes[other].frozen {
            return self.at(self.now + SECOND, Event::Hello { one, other });
        }
        if !self.nodes[one].alive || self.connect(one, other).is_none() || !self.answers(one, other) {
            return;
        }
        self.nodes[one].known.insert(other);
        self.nodes[other].known.insert(one);
    }

    /// Closes a node's end of a connection. The router is notified only where no other connection to the peer stands.
    pub fn noticed(&mut self, node: usize, peer: usize, number: u32) {
        let Some(connection) = self.connections.get_mut(&pair(node, peer)) else { return };
        if connection.number != number || !connection.open[side(node, peer)] {
            return;
        }
        connection.open[side(node, peer)] = false;
        let held = std::mem::take(&mut connection.held);
        held.into_iter().for_each(|event| self.undelivered(event));
        self.note(|| format!("{node} notices that {peer} is gone"));
        self.disconnected(node, peer);
        let again = self.now + self.rng.between(200, 2000) * MILLI;
        self.at(again, Event::Hello { one: node, other: peer });
    }
}

pub fn pair(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

/// The side of a connection at which a node is.
pub fn side(node: usize, peer: usize) -> usize {
    usize::from(node > peer)
}

pub fn unreachable(peer: usize) -> Fault {
    Fault::new(ErrorKind::PeerUnreachable, format!("node {peer} cannot be dialled"))
}
