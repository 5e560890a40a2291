//! Swarms whose nodes come and go, hear of each other late, and fetch slowly. Each has a seed, and a failure names it.

use std::collections::VecDeque;

use super::*;

const MODEL: ModelId = ModelId([5; 32]);
/// Swarms that are made up.
const SWARMS: u64 = 2000;
/// Rounds in which nodes come and go.
const CHURN: usize = 12;
/// An announcement is at most so many rounds old.
const LATE: usize = 3;
/// Rounds that fetching takes at most.
const SLOW: u64 = 3;
/// Members at most.
const MOST: usize = 8;

/// Chance that is the same for each run of a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = scatter(self.0);
        self.0 % bound
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

struct Machine {
    member: Member,
    /// Layers that its disk has room for beside those that it holds.
    disk: u32,
    /// Whether it places at all.
    active: bool,
    /// What it held after each of the last rounds, the newest first.
    told: VecDeque<Vec<LayerRange>>,
    /// What it saw last, and how often.
    seen: Vec<(NodeId, Vec<LayerRange>)>,
    waited: u32,
    /// What it is fetching, and the round in which it has it.
    fetching: Option<(Move, u64)>,
}

struct Swarm {
    dice: Dice,
    layers: u32,
    holders: u32,
    /// Holders that demand asks for beside those; while nodes come and go each hears of it in its own time.
    demand: u32,
    machines: Vec<Machine>,
    /// Who has left, and is still believed to be there: when, and what it held.
    left: Vec<(u64, Member)>,
    names: u64,
    round: u64,
    /// Layers that were given up, by all together.
    given_up: usize,
}

/// What a node does at the end of a round.
enum Act {
    Fetched(LayerRange),
    GivenUp(Vec<LayerRange>),
}

fn layers_of(ranges: &[LayerRange]) -> Vec<u32> {
    ranges.iter().flat_map(|range| range.start..range.end).collect()
}

/// The layers of `ranges` that `kept` is so for.
fn filtered(ranges: &[LayerRange], kept: impl Fn(u32) -> bool) -> Vec<LayerRange> {
    merge_ranges(layers_of(ranges).into_iter().filter(|layer| kept(*layer)).collect())
}

impl Swarm {
    fn new(seed: u64) -> Swarm {
        let mut dice = Dice(seed);
        let (layers, holders) = (2 + dice.below(7) as u32, 1 + dice.below(2) as u32);
        let mut swarm = Swarm {
            dice,
            layers,
            holders,
            demand: 0,
            machines: Vec::new(),
            left: Vec::new(),
            names: 0,
            round: 0,
            given_up: 0,
        };
        (0..2 + swarm.dice.below(5)).for_each(|_| swarm.join());
        swarm
    }

    fn join(&mut self) {
        self.names += 1;
        let dice = &mut self.dice;
        let room = 1 + dice.below(5) as u32;
        let start = dice.below(self.layers.into()) as u32;
        let held = vec![LayerRange::new(start, (start + dice.below(u64::from(room) + 1) as u32).min(self.layers))];
        let layers = filtered(&held, |_| true);
        // Now and then the host brought some of it.
        let brought = self.names.is_multiple_of(3) && dice.once_in(2);
        let keeps = filtered(&layers, |layer| brought && layer % 2 == 0);
        let mut node = [0; 32];
        node[..8].copy_from_slice(&scatter(self.names).to_le_bytes());
        let (node, refuses, told) = (NodeId(node), Vec::new(), std::iter::repeat_n(layers.clone(), LATE + 1).collect());
        let member = Member { node, layers, head: true, room: room.into(), keeps, refuses };
        let (disk, active) = (dice.below(5) as u32, !dice.once_in(5));
        self.machines.push(Machine { member, disk, active, told, seen: Vec::new(), waited: 0, fetching: None });
    }

    fn leave(&mut self) {
        let gone = self.dice.below(self.machines.len() as u64) as usize;
        let machine = self.machines.remove(gone);
        self.left.push((self.round, machine.member));
    }

    /// How many hold each layer in truth.
    fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.layers as usize];
        for machine in &self.machines {
            layers_of(&machine.member.layers).into_iter().for_each(|layer| counts[layer as usize] += 1);
        }
        counts
    }

    /// What a node has heard of the others, some of it late, and of some who are gone.
    fn hearsay(&mut self, local: usize) -> Vec<Member> {
        let mut members = Vec::new();
        for (at, machine) in self.machines.iter().enumerate() {
            let late = if at == local { 0 } else { self.dice.below(LATE as u64 + 1) as usize };
            let (keeps, refuses) =
                if at == local { (machine.member.keeps.clone(), Vec::new()) } else { Default::default() };
            members.push(Member { layers: machine.told[late].clone(), keeps, refuses, ..machine.member.clone() });
        }
        members.extend(self.left.iter().map(|(_, member)| Member { keeps: Vec::new(), ..member.clone() }));
        members.sort_unstable_by_key(|member| member.node);
        members
    }

    /// The same after each was asked itself: who is gone does not answer.
    fn asked(&self, local: usize) -> Vec<Member> {
        let known = |(at, machine): (usize, &Machine)| {
            let keeps = if at == local { machine.member.keeps.clone() } else { Vec::new() };
            Member { keeps, ..machine.member.clone() }
        };
        self.machines.iter().enumerate().map(known).collect()
    }

    fn with<T>(&self, (members, wanted): (&[Member], u32), use_it: impl FnOnce(&Placement) -> T) -> T {
        let size = |range: LayerRange, _| u64::from(range.len());
        let cuts = CutRules::free();
        let (layers, holders) = (self.layers, wanted);
        use_it(&Placement { model: MODEL, layers, cuts: &cuts, holders, members, size: &size })
    }

    /// What a node may give up of this, once it has asked.
    fn spare(&self, local: usize, wanted: u32, drop: &[LayerRange]) -> Vec<LayerRange> {
        let node = self.machines[local].member.node;
        let spare = self.with((&self.asked(local), wanted), |placement| placement.spare(node));
        filtered(drop, |layer| within(&spare, layer))
    }

    /// What a node does in this round, as the placer does it.
    fn turn(&mut self, local: usize, churn: bool) -> Vec<Act> {
        let heard = if churn { self.dice.below(u64::from(self.demand) + 1) as u32 } else { self.demand };
        let wanted = self.holders + heard;
        if let Some((found, due)) = self.machines[local].fetching.take() {
            if due > self.round {
                self.machines[local].fetching = Some((found, due));
                return Vec::new();
            }
            return vec![Act::GivenUp(self.spare(local, wanted, &found.drop)), Act::Fetched(found.hold)];
        }
        let members = self.hearsay(local);
        let machine = &mut self.machines[local];
        let seen: Vec<_> = members.iter().map(|member| (member.node, member.layers.clone())).collect();
        machine.waited = if machine.seen == seen { machine.waited + 1 } else { 0 };
        machine.seen = seen;
        let (waited, disk, active, held) =
            (machine.waited, machine.disk, machine.active, machine.member.layers.clone());
        let node = machine.member.node;
        let found = self.with((&members, wanted), |placement| placement.decide(node, waited)).filter(|_| active);
        let Some(found) = found else { return Vec::new() };
        let missing = (found.hold.start..found.hold.end).filter(|layer| !within(&held, *layer)).count() as u32;
        let due = self.round + self.dice.below(SLOW);
        if missing <= disk || found.drop.is_empty() {
            self.machines[local].fetching = Some((found, due));
            return Vec::new();
        }
        // No room for both: all of it goes first, or nothing.
        let spare = self.spare(local, wanted, &found.drop);
        if spare != found.drop {
            return Vec::new();
        }
        self.machines[local].fetching = Some((Move { drop: Vec::new(), ..found }, due));
        vec![Act::GivenUp(spare)]
    }

    /// One round: all decide and ask, then some leave, then all act. Says whether anything was done or is under way.
    fn go(&mut self, churn: bool) -> bool {
        self.round += 1;
        let round = self.round;
        if churn {
            self.demand = self.dice.below(3) as u32;
        }
        self.left.retain(|(when, _)| when + LATE as u64 > round);
        let acts: Vec<(NodeId, Vec<Act>)> =
            (0..self.machines.len()).map(|at| (self.machines[at].member.node, self.turn(at, churn))).collect();
        let before = self.counts();
        if churn && self.machines.len() > 1 && self.dice.once_in(4) {
            self.leave();
        }
        let stayed = self.counts();
        let mut moved = false;
        for (node, acts) in acts {
            // Who has just left does nothing more.
            let Some(machine) = self.machines.iter_mut().find(|machine| machine.member.node == node) else { continue };
            let held = &mut machine.member.layers;
            for act in acts {
                moved = true;
                match act {
                    Act::Fetched(range) => *held = merge_ranges([layers_of(held), layers_of(&[range])].concat()),
                    Act::GivenUp(ranges) => {
                        self.given_up += layers_of(&ranges).len();
                        *held = filtered(held, |layer| !within(&ranges, layer));
                    }
                }
            }
        }
        for (layer, after) in self.counts().into_iter().enumerate() {
            // Those who left in this very moment nobody could have asked.
            let left = before[layer] - stayed[layer];
            let enough = stayed[layer].min(self.holders.saturating_sub(left));
            assert!(after >= enough, "layer {layer} has {after} holders in round {round}, had {}", stayed[layer]);
        }
        for machine in &mut self.machines {
            machine.told.push_front(machine.member.layers.clone());
            machine.told.truncate(LATE + 1);
        }
        if churn && self.machines.len() < MOST && self.dice.once_in(3) {
            self.join();
        }
        moved || self.machines.iter().any(|machine| machine.fetching.is_some())
    }

    /// Rounds until nobody does anything any more, whoever is doubted.
    fn settle(&mut self) -> u32 {
        let (mut rounds, mut quiet) = (0, 0);
        let long = self.machines.len() + LATE + SLOW as usize;
        let bound = ((self.holders + self.demand) * self.layers + 1) as usize * (long + 2);
        while quiet <= long {
            quiet = if self.go(false) { 0 } else { quiet + 1 };
            rounds += 1;
            assert!(rounds as usize <= bound, "it never settles");
        }
        rounds
    }
}

#[test]
fn whoever_comes_goes_and_hears_late_nothing_that_is_given_up_is_missed_and_there_is_an_end_to_moving() {
    let (mut given_up, mut longest) = (0, 0);
    for seed in 0..SWARMS {
        let run = std::panic::catch_unwind(|| {
            let mut swarm = Swarm::new(seed);
            for _ in 0..CHURN {
                swarm.go(true);
            }
            let rounds = swarm.settle();
            (swarm.given_up, rounds)
        });
        let Ok((gone, rounds)) = run else { panic!("swarm {seed} failed") };
        given_up += gone;
        longest = longest.max(rounds);
    }
    eprintln!("{given_up} layers given up, at most {longest} rounds until all was quiet");
    assert!(given_up > SWARMS as usize / 4, "hardly anything was tried");
}
