//! Faults of a simulated swarm: nodes die, lose power, leave, join, freeze and thaw; connections are partitioned and
//! heal.

use std::collections::BTreeSet;

use super::host::{Node, NodeSpec, memory};
use super::oracle::SimRequest;
use super::rng::Rng;
use super::session::{SessionTimer, SimSession};
use super::swarm::{Event, MILLI, Micros, SECOND, Swarm, pair, side};
use crate::base::{LayerRange, merge_ranges};
use crate::engine::CutRules;
use crate::rt::TaskSet;

/// An injected fault, or its end.
pub enum InjectedFault {
    /// A process ends. With `dark` its machine loses power, so that no peer is notified.
    Kill {
        node: usize,
        powered_off: bool,
    },
    /// A process starts, again or for the first time.
    Start {
        node: usize,
    },
    Freeze {
        node: usize,
    },
    Thaw {
        node: usize,
    },
    Partition {
        one: usize,
        other: usize,
        lasts: Micros,
    },
    Heal {
        one: usize,
        other: usize,
    },
}

impl Swarm {
    /// The swarm of a seed, with its requests and faults.
    pub fn from_seed(seed: u64, tasks: &TaskSet, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let layers = rng.between(2, 9) as u32;
        let align = if rng.one_in(5) { 2 } else { 1 };
        let cuts = CutRules { align, ..CutRules::any() };
        let count = rng.between(2, 8) as usize;
        let specs = holdings(&mut rng, count, layers, align);
        let mut swarm = Swarm::new(rng, layers, cuts, traced);
        swarm.tasks = Some(tasks.clone());
        for (index, spec) in specs.into_iter().enumerate() {
            swarm.nodes.push(Node::new(index, spec, tasks));
            for other in 0..index {
                let (delay, jitter) = (swarm.rng.between(200, 30 * MILLI), swarm.rng.below(10 * MILLI));
                swarm.add_connection(index, other, delay, jitter);
                swarm.at(0, Event::Hello { one: other, other: index });
            }
        }
        swarm.add_requests();
        if !swarm.rng.one_in(5) {
            swarm.draw_faults();
        }
        swarm
    }

    fn add_requests(&mut self) {
        for session in 0..self.rng.between(1, 4) as usize {
            let node = self.rng.index(self.nodes.len());
            let request = SimRequest::of(&mut self.rng, self.layers);
            self.sessions.push(SimSession::new(session, node, request));
            let begins = SECOND + self.rng.below(SECOND);
            self.at(begins, Event::Timer { session, timer: SessionTimer::Begin });
            if self.rng.one_in(8) {
                let when = begins + self.rng.below(SECOND);
                self.at(when, Event::Timer { session, timer: SessionTimer::Cancel });
            }
        }
    }

    /// Draws the faults.
    fn draw_faults(&mut self) {
        for _ in 0..self.rng.between(1, 7) {
            let when = SECOND + self.rng.below(2 * SECOND);
            let node = self.rng.index(self.nodes.len());
            let lasts = match self.rng.below(3) {
                0 => self.rng.between(10, 800) * MILLI,
                1 => self.rng.between(800, 8000) * MILLI,
                _ => self.rng.between(8, 45) * SECOND,
            };
            match self.rng.below(5) {
                0 => {
                    let powered_off = self.rng.one_in(3);
                    self.at(when, Event::Fault(InjectedFault::Kill { node, powered_off }));
                    if self.rng.one_in(2) {
                        self.at(when + lasts, Event::Fault(InjectedFault::Start { node }));
                    }
                }
                1 => {
                    self.at(when, Event::Fault(InjectedFault::Freeze { node }));
                    self.at(when + lasts, Event::Fault(InjectedFault::Thaw { node }));
                }
                2 => {
                    let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != node).collect();
                    for other in others {
                        self.at(when, Event::Fault(InjectedFault::Partition { one: node, other, lasts }));
                    }
                }
                3 => {
                    let other = self.rng.index(self.nodes.len());
                    if other != node {
                        self.at(when, Event::Fault(InjectedFault::Partition { one: node, other, lasts }));
                    }
                }
                // A node that joins later.
                _ => {
                    self.at(0, Event::Fault(InjectedFault::Kill { node, powered_off: false }));
                    self.at(when, Event::Fault(InjectedFault::Start { node }));
                }
            }
        }
    }

    /// Records a fault at a node.
    pub fn mark_fault(&mut self, node: usize) {
        self.faults.push((self.now, node));
        self.last_fault = self.now;
    }

    pub fn inject(&mut self, fault: InjectedFault) {
        match fault {
            InjectedFault::Kill { node, powered_off } => self.kill(node, powered_off),
            InjectedFault::Start { node } => self.start_node(node),
            InjectedFault::Freeze { node } => {
                self.mark_fault(node);
                self.note(|| format!("{node} freezes"));
                self.nodes[node].frozen = self.nodes[node].alive;
            }
            InjectedFault::Thaw { node } => {
                self.mark_fault(node);
                self.thawed.push((self.now, node));
                self.note(|| format!("{node} thaws"));
                self.nodes[node].frozen = false;
                for event in std::mem::take(&mut self.nodes[node].waiting) {
                    self.at(self.now, event);
                }
            }
            InjectedFault::Partition { one, other, lasts } => self.partition(one, other, lasts),
            InjectedFault::Heal { one, other } => self.heal(one, other),
        }
    }

    fn kill(&mut self, node: usize, powered_off: bool) {
        if !self.nodes[node].alive {
            return;
        }
        self.mark_fault(node);
        self.note(|| format!("{node} dies{}", if powered_off { " without power" } else { "" }));
        let dead = &mut self.nodes[node];
        (dead.alive, dead.powered_off, dead.frozen) = (false, powered_off, false);
        dead.waiting.clear();
        self.sessions.iter_mut().filter(|session| session.node == node).for_each(SimSession::die);
        for peer in self.peers(node) {
            let after = if powered_off { self.rng.between(15, 40) * SECOND } else { self.rng.below(6 * MILLI) };
            let Some(connection) = self.connections.get_mut(&pair(node, peer)) else { continue };
            connection.open[side(node, peer)] = false;
            connection.held.clear();
            let (number, when) = (connection.number, self.now + connection.delay + after);
            let incarnation = self.nodes[peer].incarnation;
            self.at(when, Event::Noticed { node: peer, incarnation, peer: node, connection: number });
        }
    }

    fn start_node(&mut self, node: usize) {
        let Some(tasks) = self.tasks.clone().filter(|_| !self.nodes[node].alive) else { return };
        self.mark_fault(node);
        self.note(|| format!("{node} starts"));
        self.nodes[node] = self.nodes[node].restarted(node, &tasks);
        for peer in self.peers(node) {
            // Its machine replies that it does not know the connections of the earlier process.
            let (connection, incarnation) = (self.connections[&pair(node, peer)].number, self.nodes[peer].incarnation);
            self.at(self.now + 40 * MILLI, Event::Noticed { node: peer, incarnation, peer: node, connection });
            let when = self.now + self.rng.between(50, 1000) * MILLI;
            self.at(when, Event::Hello { one: node, other: peer });
        }
    }

    fn partition(&mut self, one: usize, other: usize, lasts: Micros) {
        let notices = [one, other].map(|node| (node, self.now + self.rng.between(12, 40) * SECOND));
        let connection = self.connections.get_mut(&pair(one, other)).unwrap();
        if connection.cut {
            return;
        }
        connection.cut = true;
        let (number, heals) = (connection.number, self.now + lasts);
        self.mark_fault(one);
        self.mark_fault(other);
        self.note(|| format!("{one} and {other} are cut off"));
        self.at(heals, Event::Fault(InjectedFault::Heal { one, other }));
        for (node, when) in notices.into_iter().filter(|(_, when)| *when < heals) {
            let (incarnation, peer) = (self.nodes[node].incarnation, one + other - node);
            self.at(when, Event::Noticed { node, incarnation, peer, connection: number });
        }
    }

    fn heal(&mut self, one: usize, other: usize) {
        self.mark_fault(one);
        self.mark_fault(other);
        self.note(|| format!("{one} and {other} are connected again"));
        let late = self.rng.between(0, 100) * MILLI;
        let met = self.now + self.rng.between(100, 1500) * MILLI;
        let lives = (self.nodes[one].incarnation, self.nodes[other].incarnation);
        let connection = self.connections.get_mut(&pair(one, other)).unwrap();
        connection.cut = false;
        let (when, number, open) = (self.now + connection.delay, connection.number, connection.open);
        connection.hold_until(when);
        for event in std::mem::take(&mut connection.held) {
            self.at(when, event);
        }
        // A node with only its own end open is notified by the other machine.
        for (node, peer, incarnation) in [(one, other, lives.0), (other, one, lives.1)] {
            if open[side(node, peer)] && !open[side(peer, node)] {
                self.at(when + late, Event::Noticed { node, incarnation, peer, connection: number });
            }
        }
        self.at(met, Event::Hello { one, other });
        if self.rng.one_in(3) {
            let (ends, keeps) = if self.rng.one_in(2) { (one, other) } else { (other, one) };
            self.replace(ends, keeps, number);
        }
    }

    /// One end closes the partitioned connection and makes another; the other end was connected all the time.
    fn replace(&mut self, ends: usize, keeps: usize, number: u32) {
        if self.nodes[ends].alive && !self.nodes[ends].frozen {
            self.noticed(ends, keeps, number);
            self.connect(ends, keeps);
        }
    }

    fn peers(&self, node: usize) -> Vec<usize> {
        (0..self.nodes.len()).filter(|peer| *peer != node).collect()
    }
}

/// Nodes that hold most of a model or all of it together, up to four times.
fn holdings(rng: &mut Rng, count: usize, layers: u32, align: u32) -> Vec<NodeSpec> {
    let mut held: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); count];
    let mut head = vec![false; count];
    // One swarm in six has each layer only once.
    let copies = if rng.one_in(6) { 1 } else { rng.between(2, 5) };
    for _ in 0..copies {
        let mut start = 0;
        while start < layers {
            let end = (start + align * rng.between(1, 6) as u32).min(layers);
            let node = rng.index(count);
            held[node].extend(start..end);
            head[node] |= end == layers;
            start = end;
        }
    }
    let most = if rng.one_in(4) { 512 } else { 16 };
    let spec = |(held, head): (BTreeSet<u32>, bool)| NodeSpec {
        layers: merge_ranges(held.into_iter().collect()),
        head,
        memory: match rng.one_in(6) {
            true => memory(LayerRange::new(0, rng.between(1, u64::from(layers) + 1) as u32), true),
            false => 2 * memory(LayerRange::new(0, layers), true),
        },
        slots: rng.between(1, 4) as usize,
        max_rows: if rng.one_in(12) { 4 } else { most },
        pace: rng.between(20, 600),
        load: rng.below(400) * MILLI,
        fails_at: rng.one_in(16).then(|| rng.between(1, 60)),
    };
    held.into_iter().zip(head).map(spec).collect()
}
