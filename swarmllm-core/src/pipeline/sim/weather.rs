//! What befalls a simulated swarm: nodes die, lose power, leave, come, freeze and thaw; connections are cut and heal.

use std::collections::BTreeSet;

use super::chance::Chance;
use super::host::{Facts, Node, memory};
use super::session::{SimSession, Timer};
use super::swarm::{Event, MILLI, Micros, SECOND, Swarm, pair, side};
use super::truth::Request;
use crate::base::{LayerRange, merge_ranges};
use crate::engine::CutRules;
use crate::rt::TaskSet;

/// What happens outside the program.
pub enum Weather {
    /// A process ends; `dark` where its machine loses power, so that nobody is told.
    Kill {
        node: usize,
        dark: bool,
    },
    /// A process starts, again or for the first time.
    Rise {
        node: usize,
    },
    Freeze {
        node: usize,
    },
    Thaw {
        node: usize,
    },
    Cut {
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
    /// The swarm of a seed, and all that will befall it.
    pub fn of(seed: u64, tasks: &TaskSet, traced: bool) -> Self {
        let mut chance = Chance::new(seed);
        let layers = chance.between(2, 9) as u32;
        let align = if chance.one_in(5) { 2 } else { 1 };
        let cuts = CutRules { align, ..CutRules::free() };
        let count = chance.between(2, 8) as usize;
        let facts = holdings(&mut chance, count, layers, align);
        let mut swarm = Swarm::new(chance, layers, cuts, traced);
        swarm.tasks = Some(tasks.clone());
        for (index, facts) in facts.into_iter().enumerate() {
            swarm.nodes.push(Node::new(index, facts, tasks));
            for other in 0..index {
                let (delay, jitter) = (swarm.chance.between(200, 30 * MILLI), swarm.chance.below(10 * MILLI));
                swarm.wire(index, other, delay, jitter);
                swarm.at(0, Event::Hello { one: other, other: index });
            }
        }
        swarm.ask_for_answers();
        if !swarm.chance.one_in(5) {
            swarm.forecast();
        }
        swarm
    }

    fn ask_for_answers(&mut self) {
        for session in 0..self.chance.between(1, 4) as usize {
            let node = self.chance.index(self.nodes.len());
            let request = Request::of(&mut self.chance, self.layers);
            self.sessions.push(SimSession::new(session, node, request));
            let begins = SECOND + self.chance.below(SECOND);
            self.at(begins, Event::Timer { session, timer: Timer::Begin });
            if self.chance.one_in(8) {
                let when = begins + self.chance.below(SECOND);
                self.at(when, Event::Timer { session, timer: Timer::Cancel });
            }
        }
    }

    /// Draws what will happen.
    fn forecast(&mut self) {
        for _ in 0..self.chance.between(1, 7) {
            let when = SECOND + self.chance.below(2 * SECOND);
            let node = self.chance.index(self.nodes.len());
            let lasts = match self.chance.below(3) {
                0 => self.chance.between(10, 800) * MILLI,
                1 => self.chance.between(800, 8000) * MILLI,
                _ => self.chance.between(8, 45) * SECOND,
            };
            match self.chance.below(5) {
                0 => {
                    let dark = self.chance.one_in(3);
                    self.at(when, Event::Weather(Weather::Kill { node, dark }));
                    if self.chance.one_in(2) {
                        self.at(when + lasts, Event::Weather(Weather::Rise { node }));
                    }
                }
                1 => {
                    self.at(when, Event::Weather(Weather::Freeze { node }));
                    self.at(when + lasts, Event::Weather(Weather::Thaw { node }));
                }
                2 => {
                    let others: Vec<usize> = (0..self.nodes.len()).filter(|other| *other != node).collect();
                    for other in others {
                        self.at(when, Event::Weather(Weather::Cut { one: node, other, lasts }));
                    }
                }
                3 => {
                    let other = self.chance.index(self.nodes.len());
                    if other != node {
                        self.at(when, Event::Weather(Weather::Cut { one: node, other, lasts }));
                    }
                }
                // One that comes later.
                _ => {
                    self.at(0, Event::Weather(Weather::Kill { node, dark: false }));
                    self.at(when, Event::Weather(Weather::Rise { node }));
                }
            }
        }
    }

    /// Something is done to a node.
    pub fn touch(&mut self, node: usize) {
        self.touched.push((self.now, node));
        self.calm = self.now;
    }

    pub fn weather(&mut self, weather: Weather) {
        match weather {
            Weather::Kill { node, dark } => self.kill(node, dark),
            Weather::Rise { node } => self.rise(node),
            Weather::Freeze { node } => {
                self.touch(node);
                self.note(|| format!("{node} freezes"));
                self.nodes[node].frozen = self.nodes[node].alive;
            }
            Weather::Thaw { node } => {
                self.touch(node);
                self.thawed.push((self.now, node));
                self.note(|| format!("{node} thaws"));
                self.nodes[node].frozen = false;
                for event in std::mem::take(&mut self.nodes[node].waiting) {
                    self.at(self.now, event);
                }
            }
            Weather::Cut { one, other, lasts } => self.cut(one, other, lasts),
            Weather::Heal { one, other } => self.heal(one, other),
        }
    }

    fn kill(&mut self, node: usize, dark: bool) {
        if !self.nodes[node].alive {
            return;
        }
        self.touch(node);
        self.note(|| format!("{node} dies{}", if dark { " in the dark" } else { "" }));
        let dead = &mut self.nodes[node];
        (dead.alive, dead.dark, dead.frozen) = (false, dark, false);
        dead.waiting.clear();
        self.sessions.iter_mut().filter(|session| session.node == node).for_each(SimSession::die);
        for peer in self.peers(node) {
            let after = if dark { self.chance.between(15, 40) * SECOND } else { self.chance.below(6 * MILLI) };
            let Some(wire) = self.wires.get_mut(&pair(node, peer)) else { continue };
            wire.open[side(node, peer)] = false;
            wire.held.clear();
            let (number, when) = (wire.number, self.now + wire.delay + after);
            let life = self.nodes[peer].life;
            self.at(when, Event::Noticed { node: peer, life, peer: node, wire: number });
        }
    }

    fn rise(&mut self, node: usize) {
        let Some(tasks) = self.tasks.clone().filter(|_| !self.nodes[node].alive) else { return };
        self.touch(node);
        self.note(|| format!("{node} starts"));
        self.nodes[node] = self.nodes[node].reborn(node, &tasks);
        for peer in self.peers(node) {
            // Its machine says of the connections of its earlier life that it does not know them.
            let (wire, life) = (self.wires[&pair(node, peer)].number, self.nodes[peer].life);
            self.at(self.now + 40 * MILLI, Event::Noticed { node: peer, life, peer: node, wire });
            let when = self.now + self.chance.between(50, 1000) * MILLI;
            self.at(when, Event::Hello { one: node, other: peer });
        }
    }

    fn cut(&mut self, one: usize, other: usize, lasts: Micros) {
        let notices = [one, other].map(|node| (node, self.now + self.chance.between(12, 40) * SECOND));
        let wire = self.wires.get_mut(&pair(one, other)).unwrap();
        if wire.cut {
            return;
        }
        wire.cut = true;
        let (number, heals) = (wire.number, self.now + lasts);
        self.touch(one);
        self.touch(other);
        self.note(|| format!("{one} and {other} are cut off"));
        self.at(heals, Event::Weather(Weather::Heal { one, other }));
        for (node, when) in notices.into_iter().filter(|(_, when)| *when < heals) {
            let (life, peer) = (self.nodes[node].life, one + other - node);
            self.at(when, Event::Noticed { node, life, peer, wire: number });
        }
    }

    fn heal(&mut self, one: usize, other: usize) {
        self.touch(one);
        self.touch(other);
        self.note(|| format!("{one} and {other} have each other back"));
        let late = self.chance.between(0, 100) * MILLI;
        let met = self.now + self.chance.between(100, 1500) * MILLI;
        let lives = (self.nodes[one].life, self.nodes[other].life);
        let wire = self.wires.get_mut(&pair(one, other)).unwrap();
        wire.cut = false;
        let (when, number, open) = (self.now + wire.delay, wire.number, wire.open);
        wire.hold_until(when);
        for event in std::mem::take(&mut wire.held) {
            self.at(when, event);
        }
        // Who still thinks that it is connected, and is not, is told by the other's machine.
        for (node, peer, life) in [(one, other, lives.0), (other, one, lives.1)] {
            if open[side(node, peer)] && !open[side(peer, node)] {
                self.at(when + late, Event::Noticed { node, life, peer, wire: number });
            }
        }
        self.at(met, Event::Hello { one, other });
        if self.chance.one_in(3) {
            let (ends, keeps) = if self.chance.one_in(2) { (one, other) } else { (other, one) };
            self.replace(ends, keeps, number);
        }
    }

    /// One end closes a connection that was of no use and makes another; the other end was connected all the time.
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

/// Nodes that hold a model together, one to three times, most of it or all.
fn holdings(chance: &mut Chance, count: usize, layers: u32, align: u32) -> Vec<Facts> {
    let mut held: Vec<BTreeSet<u32>> = vec![BTreeSet::new(); count];
    let mut head = vec![false; count];
    // One swarm in six has each layer once only.
    let copies = if chance.one_in(6) { 1 } else { chance.between(2, 5) };
    for _ in 0..copies {
        let mut start = 0;
        while start < layers {
            let end = (start + align * chance.between(1, 6) as u32).min(layers);
            let node = chance.index(count);
            held[node].extend(start..end);
            head[node] |= end == layers;
            start = end;
        }
    }
    let most = if chance.one_in(4) { 512 } else { 16 };
    let facts = |(held, head): (BTreeSet<u32>, bool)| Facts {
        layers: merge_ranges(held.into_iter().collect()),
        head,
        memory: match chance.one_in(6) {
            true => memory(LayerRange::new(0, chance.between(1, u64::from(layers) + 1) as u32), true),
            false => 2 * memory(LayerRange::new(0, layers), true),
        },
        slots: chance.between(1, 4) as usize,
        max_rows: if chance.one_in(12) { 4 } else { most },
        pace: chance.between(20, 600),
        load: chance.below(400) * MILLI,
        fails_at: chance.one_in(16).then(|| chance.between(1, 60)),
    };
    held.into_iter().zip(head).map(facts).collect()
}
