//! The simulated swarm: time, events in their order, and the wires between nodes.
//!
//! Two nodes have one connection at a time. Stage frames keep their order on it; requests go beside them and may overtake.
//! A partition holds what is under way until it heals, or until the nodes notice, each by itself, that the connection is
//! gone: then it is lost. What a frozen node is told waits until it thaws.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::chance::Chance;
use super::host::{Ask, Node};
use super::session::{SimSession, Timer};
use super::weather::Weather;
use crate::base::{ErrorKind, Fault, NodeId};
use crate::engine::CutRules;
use crate::pipeline::driver::{Mutant, Place};
use crate::pipeline::links::SessionStage;
use crate::pipeline::message::Message;
use crate::pipeline::route::RELEASE_DEADLINE;
use crate::rt::TaskSet;
use crate::wire::control::Opened;

/// Microseconds since the beginning.
pub type Micros = u64;
pub const MILLI: Micros = 1000;
pub const SECOND: Micros = 1_000_000;
/// What a node takes to find out that a peer cannot be dialled, where nothing refuses it.
const DIAL: Micros = 3 * SECOND;
/// One of so many frames takes much longer.
const AGAIN: u64 = 50;
/// A peer that is silent for so long is disconnected.
const SILENCE: Micros = 40 * SECOND;
/// More events than any swarm here has in earnest.
const MAX_EVENTS: u64 = 400_000;
/// Lines of the trace that a failure shows.
const TRACE: usize = 80;

/// What happens at a moment.
pub enum Event {
    /// A stage frame arrives.
    Frame { from: usize, to: usize, wire: u32, message: Message },
    /// A request arrives, if its asker has not given it up by then.
    Ask { from: usize, to: usize, wire: u32, since: Micros, until: Micros, ask: Ask },
    /// A coordinator tells a host once more to end a session.
    Release { from: usize, life: u32, to: usize, until: Micros, ask: Ask },
    /// A request has waited at its host.
    Waited { node: usize, life: u32, from: usize, wire: u32, until: Micros, ask: Ask },
    /// A stage is loaded, for who asked.
    Loaded { node: usize, life: u32, ticket: u64 },
    /// A reply to an open arrives.
    Reply { to: usize, from: usize, wire: u32, asker: usize, epoch: u32, place: Place, reply: Result<Opened, Fault> },
    /// A step is computed.
    Computed { node: usize, life: u32, key: SessionStage, took: Micros },
    /// A host finds out that it cannot pass a result on.
    Unsent { node: usize, life: u32, key: SessionStage, to: usize },
    /// A node notices that a connection is gone.
    Noticed { node: usize, life: u32, peer: usize, wire: u32 },
    /// A node notices that its link to a peer is gone, to which it has another connection.
    Broke { node: usize, life: u32, peer: usize },
    /// Two nodes may say hello, connecting if need be.
    Hello { one: usize, other: usize },
    /// Something that a coordinator waits for.
    Timer { session: usize, timer: Timer },
    /// Something outside the program.
    Weather(Weather),
}

/// The connection of two nodes.
pub struct Wire {
    pub number: u32,
    /// Whether each side thinks that it stands.
    pub open: [bool; 2],
    /// Whether nothing gets through.
    pub cut: bool,
    pub held: Vec<Event>,
    /// When the last frame of each direction arrives.
    last: [Micros; 2],
    pub delay: Micros,
    jitter: Micros,
}

impl Wire {
    /// Nothing that is sent from now on arrives before then.
    pub fn hold_until(&mut self, when: Micros) {
        self.last = self.last.map(|last| last.max(when));
    }
}

/// How a swarm is made wrong, to see that this is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// A recovery does not raise the epoch.
    Epochs,
    /// Nobody is told that a session has ended.
    Releases,
    /// Answers of an earlier route are taken.
    LateAnswers,
    /// Coordinators take guesses for the text.
    Guesses,
    /// Hosts give the KV that they have kept to sessions whose prompts begin otherwise.
    Names,
}

impl Sabotage {
    pub const ALL: [Self; 5] = [Self::Epochs, Self::Releases, Self::LateAnswers, Self::Guesses, Self::Names];

    /// How drivers are made wrong.
    pub fn of_driver(self) -> Option<Mutant> {
        match self {
            Self::Epochs => Some(Mutant::KeepsEpoch),
            Self::Releases => Some(Mutant::ForgetsRelease),
            Self::LateAnswers => Some(Mutant::TakesLate),
            Self::Guesses | Self::Names => None,
        }
    }
}

/// See the module.
pub struct Swarm {
    pub now: Micros,
    pub chance: Chance,
    pub layers: u32,
    pub cuts: CutRules,
    pub nodes: Vec<Node>,
    pub sessions: Vec<SimSession>,
    pub wires: BTreeMap<(usize, usize), Wire>,
    /// Which nodes something was done to, and when.
    pub touched: Vec<(Micros, usize)>,
    /// Which nodes thawed, and when.
    pub thawed: Vec<(Micros, usize)>,
    /// When the last of that was done.
    pub calm: Micros,
    /// What has gone wrong.
    pub wrong: Option<String>,
    pub sabotage: Option<Sabotage>,
    /// What nodes that start are given.
    pub tasks: Option<TaskSet>,
    queue: BTreeMap<(Micros, u64), Event>,
    base: Instant,
    count: u64,
    trace: Option<VecDeque<String>>,
}

impl Swarm {
    pub fn new(chance: Chance, layers: u32, cuts: CutRules, traced: bool) -> Self {
        Self {
            now: 0,
            chance,
            layers,
            cuts,
            nodes: Vec::new(),
            sessions: Vec::new(),
            wires: BTreeMap::new(),
            touched: Vec::new(),
            thawed: Vec::new(),
            calm: 0,
            wrong: None,
            sabotage: None,
            tasks: None,
            queue: BTreeMap::new(),
            // Only differences are ever looked at.
            base: Instant::now(),
            count: 0,
            trace: traced.then(VecDeque::new),
        }
    }

    /// The moment, for code that is told the time.
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

    /// Something is as it never may be. The first such thing counts.
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

    /// Lets everything happen until nothing more does.
    pub fn run(&mut self) {
        while let Some(((when, _), event)) = self.queue.pop_first() {
            self.now = when;
            if self.count > MAX_EVENTS {
                self.wrong(|| "it goes on and on".to_owned());
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

    /// The frozen node to which the event would happen.
    fn sleeper(&self, event: &Event) -> Option<usize> {
        let node = match event {
            Event::Frame { to, .. } | Event::Ask { to, .. } | Event::Reply { to, .. } => *to,
            Event::Loaded { node, .. } | Event::Computed { node, .. } | Event::Unsent { node, .. } => *node,
            Event::Release { from, .. } => *from,
            Event::Waited { node, .. } | Event::Noticed { node, .. } | Event::Broke { node, .. } => *node,
            Event::Timer { session, .. } => self.sessions[*session].node,
            Event::Hello { .. } | Event::Weather(_) => return None,
        };
        self.nodes[node].frozen.then_some(node)
    }

    fn happen(&mut self, event: Event) {
        let event = match self.carried(event) {
            Some(event) => event,
            None => return,
        };
        let lives = |swarm: &Self, node: usize, life: u32| swarm.nodes[node].alive && swarm.nodes[node].life == life;
        match event {
            Event::Frame { from, to, message, .. } => self.deliver(from, to, message),
            Event::Ask { from, to, wire, since, until, .. } if self.now > until => {
                // A connection that is silent for so long is closed.
                for (node, peer) in [(from, to), (to, from)] {
                    if self.now > since + SILENCE {
                        self.noticed(node, peer, wire);
                    }
                }
            }
            Event::Ask { from, to, wire, until, ask, .. } => self.asked(from, to, wire, until, ask),
            Event::Waited { node, life, from, wire, until, ask } if lives(self, node, life) => {
                self.asked(from, node, wire, until, ask);
            }
            Event::Loaded { node, life, ticket } if lives(self, node, life) => self.loaded(node, ticket),
            Event::Reply { asker, epoch, place, reply, .. } => self.replied(asker, epoch, place, reply),
            Event::Computed { node, life, key, took } if lives(self, node, life) => self.computed(node, key, took),
            Event::Unsent { node, life, key, to } if lives(self, node, life) => self.unsent(node, key, to),
            Event::Noticed { node, life, peer, wire } if lives(self, node, life) => self.noticed(node, peer, wire),
            Event::Broke { node, life, peer } if lives(self, node, life) => self.broke(node, peer),
            Event::Hello { one, other } => self.hello(one, other),
            Event::Release { from, life, to, until, ask } if lives(self, from, life) => {
                self.tell_release(from, to, until, ask);
            }
            Event::Timer { session, timer } => self.timer(session, timer),
            Event::Weather(weather) => self.weather(weather),
            _ => {}
        }
    }

    /// What comes over a wire comes only if it stands, and is held where that is cut. A node's words to itself need none.
    fn carried(&mut self, event: Event) -> Option<Event> {
        let (from, to, number) = match &event {
            Event::Frame { from, to, wire, .. } | Event::Ask { from, to, wire, .. } => (*from, *to, *wire),
            Event::Reply { from, to, wire, .. } => (*from, *to, *wire),
            _ => return Some(event),
        };
        if from == to {
            return Some(event).filter(|_| self.nodes[to].alive);
        }
        let alive = self.nodes[to].alive;
        let Some(wire) = self.wires.get_mut(&pair(from, to)).filter(|wire| wire.number == number) else {
            self.undelivered(event);
            return None;
        };
        match wire.cut {
            true => {
                wire.held.push(event);
                None
            }
            false if wire.open == [true, true] && alive => Some(event),
            false => {
                // Who hears of a connection that it does not know says so.
                let (delay, life) = (wire.delay, self.nodes[from].life);
                self.at(self.now + delay, Event::Noticed { node: from, life, peer: to, wire: number });
                self.undelivered(event);
                None
            }
        }
    }

    /// The connection to a peer, made if need be and possible: its number.
    pub fn connect(&mut self, from: usize, to: usize) -> Option<u32> {
        let reachable = self.nodes[to].alive && !self.nodes[to].frozen;
        let wire = self.wires.get_mut(&pair(from, to))?;
        if wire.open[side(from, to)] {
            return Some(wire.number);
        }
        if !reachable || wire.cut {
            return None;
        }
        let stale = wire.open[side(to, from)];
        (wire.number, wire.open, wire.last) = (wire.number + 1, [true, true], [0, 0]);
        let held = std::mem::take(&mut wire.held);
        let (number, met) = (wire.number, self.now + 2 * wire.delay);
        self.at(met, Event::Hello { one: from, other: to });
        if stale {
            let life = self.nodes[to].life;
            self.at(met, Event::Broke { node: to, life, peer: from });
        }
        held.into_iter().for_each(|event| self.undelivered(event));
        self.note(|| format!("{from} connects to {to}"));
        Some(number)
    }

    /// Whether a node thinks that it is connected to another.
    pub fn thinks_connected(&self, from: usize, to: usize) -> bool {
        self.wires.get(&pair(from, to)).is_some_and(|wire| wire.open[side(from, to)])
    }

    /// Whether it thinks so of this connection.
    pub fn stands(&self, from: usize, to: usize, number: u32) -> bool {
        self.thinks_connected(from, to) && self.wires[&pair(from, to)].number == number
    }

    /// Whether a peer would answer now.
    pub fn answers(&self, from: usize, to: usize) -> bool {
        let open = self.wires.get(&pair(from, to)).is_some_and(|wire| wire.open == [true, true] && !wire.cut);
        open && self.nodes[to].alive && !self.nodes[to].frozen
    }

    /// Sends a stage frame. Where the peer cannot be dialled, says when that will be known.
    pub fn send(&mut self, from: usize, to: usize, message: Message) -> Result<(), Micros> {
        if from == to {
            self.at(self.now, Event::Frame { from, to, wire: 0, message });
            return Ok(());
        }
        let Some(number) = self.connect(from, to) else { return Err(self.now + self.dial(from, to)) };
        // Now and then something is lost on the way and sent again, and all behind it waits.
        let again = if self.chance.one_in(AGAIN) { self.chance.below(400 * MILLI) } else { 0 };
        let jitter = self.jitter(from, to) + again;
        let wire = self.wires.get_mut(&pair(from, to)).unwrap();
        let last = &mut wire.last[side(from, to)];
        *last = (*last).max(self.now + wire.delay + jitter);
        let when = *last;
        self.at(when, Event::Frame { from, to, wire: number, message });
        Ok(())
    }

    /// Asks a peer over a connection that stands; says whether one did.
    pub fn ask(&mut self, from: usize, to: usize, patience: Micros, ask: Ask) -> bool {
        let (until, now) = (self.now + patience, self.now);
        if from == to {
            self.at(now, Event::Ask { from, to, wire: 0, since: now, until, ask });
            return true;
        }
        if !self.thinks_connected(from, to) {
            return false;
        }
        // A stream is negotiated before the request is written.
        let took = self.trip(from, to) * 2 + self.trip(from, to);
        let wire = self.wires[&pair(from, to)].number;
        self.at(now + took, Event::Ask { from, to, wire, since: now, until, ask });
        true
    }

    /// Tells a host to end a session, and again for as long as that lasts if it is out of reach.
    pub fn tell_release(&mut self, from: usize, to: usize, until: Micros, ask: Ask) {
        if self.now > until {
            return;
        }
        if self.thinks_connected(from, to) {
            self.ask(from, to, until - self.now, ask);
        } else {
            let (life, again) = (self.nodes[from].life, self.now + RELEASE_DEADLINE.as_micros() as Micros);
            self.at(again, Event::Release { from, life, to, until, ask });
        }
    }

    /// A connection took this with it. Who asked hears that, and only the end of a session is asked for again.
    fn undelivered(&mut self, event: Event) {
        if let Event::Ask { from, to, until, ask: ask @ Ask::Release { .. }, .. } = event {
            let (life, again) = (self.nodes[from].life, self.now + RELEASE_DEADLINE.as_micros() as Micros);
            self.at(again, Event::Release { from, life, to, until, ask });
        }
    }

    /// One way, this time.
    pub fn trip(&mut self, from: usize, to: usize) -> Micros {
        let jitter = self.jitter(from, to);
        self.wires.get(&pair(from, to)).map_or(0, |wire| wire.delay + jitter)
    }

    fn jitter(&mut self, from: usize, to: usize) -> Micros {
        let most = self.wires.get(&pair(from, to)).map_or(0, |wire| wire.jitter);
        self.chance.below(most + 1)
    }

    /// Round-trip time, as it is measured.
    pub fn rtt(&self, from: usize, to: usize) -> Micros {
        self.wires.get(&pair(from, to)).map_or(0, |wire| 2 * wire.delay + wire.jitter)
    }

    /// How long a dial that fails takes: who is not there but whose machine is refuses it at once.
    pub fn dial(&self, from: usize, to: usize) -> Micros {
        let cut = self.wires.get(&pair(from, to)).is_none_or(|wire| wire.cut);
        if !cut && !self.nodes[to].alive && !self.nodes[to].dark { self.rtt(from, to) } else { DIAL }
    }

    pub fn wire(&mut self, one: usize, other: usize, delay: Micros, jitter: Micros) {
        let (number, open) = (0, [false, false]);
        let wire = Wire { number, open, cut: false, held: Vec::new(), last: [0, 0], delay, jitter };
        self.wires.insert(pair(one, other), wire);
    }

    /// Both learn what the other holds, having connected.
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

    /// A node's end of a connection closes. The room hears of it only where no other connection to the peer stands.
    pub fn noticed(&mut self, node: usize, peer: usize, number: u32) {
        let Some(wire) = self.wires.get_mut(&pair(node, peer)) else { return };
        if wire.number != number || !wire.open[side(node, peer)] {
            return;
        }
        wire.open[side(node, peer)] = false;
        let held = std::mem::take(&mut wire.held);
        held.into_iter().for_each(|event| self.undelivered(event));
        self.note(|| format!("{node} notices that {peer} is gone"));
        self.disconnected(node, peer);
        let again = self.now + self.chance.between(200, 2000) * MILLI;
        self.at(again, Event::Hello { one: node, other: peer });
    }
}

pub fn pair(one: usize, other: usize) -> (usize, usize) {
    (one.min(other), one.max(other))
}

/// Which side of a connection a node is.
pub fn side(node: usize, peer: usize) -> usize {
    usize::from(node > peer)
}

pub fn unreachable(peer: usize) -> Fault {
    Fault::new(ErrorKind::PeerUnreachable, format!("node {peer} cannot be dialled"))
}
