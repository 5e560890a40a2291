//! Swarms whose nodes join and leave, learn of each other late, and fetch slowly. Each has a seed, which a failure
//! names.

use std::collections::VecDeque;

use super::*;

const MODEL: ModelId = ModelId([5; 32]);
/// Simulated swarms.
const SWARMS: u64 = 2000;
/// Rounds in which nodes join and leave.
const CHURN: usize = 12;
/// Greatest age of an announcement, in rounds.
const MAX_AGE: usize = 3;
/// Most rounds that a fetch takes.
const MAX_FETCH: u64 = 3;
/// Most members.
const MAX_MEMBERS: usize = 8;

/// A deterministic random generator.
struct Rng(u64);

impl Rng {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = mix(self.0);
        self.0 % bound
    }

    fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }
}

struct Machine {
    member: PlacementNode,
    /// Layers that fit on its disk beside the layers that it holds.
    disk: u32,
    /// Whether it places.
    active: bool,
    /// The layers that it held after each of the last rounds, the newest first.
    announced: VecDeque<Vec<LayerRange>>,
    /// The members' layers as it saw them last, and for how many rounds.
    seen: Vec<(NodeId, Vec<LayerRange>)>,
    waited: u32,
    /// Its running fetch, and the round in which it ends.
    fetching: Option<(Reassignment, u64)>,
}

struct Swarm {
    rng: Rng,
    layers: u32,
    holders: u32,
    /// Additional holders by demand; while nodes join and leave each node learns of it at its own time.
    demand: u32,
    machines: Vec<Machine>,
    /// Nodes that have left and are still believed to be there: when they left, and their holding.
    left: Vec<(u64, PlacementNode)>,
    names: u64,
    round: u64,
    /// Layers that all nodes together have dropped.
    dropped: usize,
}

/// A node's action at the end of a round.
enum Act {
    Fetched(LayerRange),
    Dropped(Vec<LayerRange>),
}

fn layers_of(ranges: &[LayerRange]) -> Vec<u32> {
    ranges.iter().flat_map(|range| range.start..range.end).collect()
}

/// The layers of `ranges` that `kept` accepts.
fn filtered(ranges: &[LayerRange], kept: impl Fn(u32) -> bool) -> Vec<LayerRange> {
    merge_ranges(layers_of(ranges).into_iter().filter(|layer| kept(*layer)).collect())
}

impl Swarm {
    fn new(seed: u64) -> Swarm {
        let mut rng = Rng(seed);
        let (layers, holders) = (2 + rng.below(7) as u32, 1 + rng.below(2) as u32);
        let mut swarm = Swarm {
            rng,
            layers,
            holders,
            demand: 0,
            machines: Vec::new(),
            left: Vec::new(),
            names: 0,
            round: 0,
            dropped: 0,
        };
        (0..2 + swarm.rng.below(5)).for_each(|_| swarm.join());
        swarm
    }

    fn join(&mut self) {
        self.names += 1;
        let rng = &mut self.rng;
        let capacity = 1 + rng.below(5) as u32;
        let start = rng.below(self.layers.into()) as u32;
        let held = vec![LayerRange::new(start, (start + rng.below(u64::from(capacity) + 1) as u32).min(self.layers))];
        let layers = filtered(&held, |_| true);
        // Sometimes the owner imported some of the layers.
        let imported = self.names.is_multiple_of(3) && rng.once_in(2);
        let pinned = filtered(&layers, |layer| imported && layer % 2 == 0);
        let mut node = [0; 32];
        node[..8].copy_from_slice(&mix(self.names).to_le_bytes());
        let (node, excluded) = (NodeId(node), Vec::new());
        let announced = std::iter::repeat_n(layers.clone(), MAX_AGE + 1).collect();
        let member = PlacementNode { node, layers, head: true, capacity: capacity.into(), pinned, excluded };
        let (disk, active) = (rng.below(5) as u32, !rng.once_in(5));
        self.machines.push(Machine { member, disk, active, announced, seen: Vec::new(), waited: 0, fetching: None });
    }

    fn leave(&mut self) {
        let gone = self.rng.below(self.machines.len() as u64) as usize;
        let machine = self.machines.remove(gone);
        self.left.push((self.round, machine.member));
    }

    /// The true number of holders of each layer.
    fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.layers as usize];
        for machine in &self.machines {
            layers_of(&machine.member.layers).into_iter().for_each(|layer| counts[layer as usize] += 1);
        }
        counts
    }

    /// The members as a node knows them: some announcements are old, and some nodes are gone.
    fn announced_to(&mut self, local: usize) -> Vec<PlacementNode> {
        let mut members = Vec::new();
        for (at, machine) in self.machines.iter().enumerate() {
            let late = if at == local { 0 } else { self.rng.below(MAX_AGE as u64 + 1) as usize };
            let (pinned, excluded) =
                if at == local { (machine.member.pinned.clone(), Vec::new()) } else { Default::default() };
            members.push(PlacementNode {
                layers: machine.announced[late].clone(),
                pinned,
                excluded,
                ..machine.member.clone()
            });
        }
        members.extend(self.left.iter().map(|(_, member)| PlacementNode { pinned: Vec::new(), ..member.clone() }));
        members.sort_unstable_by_key(|member| member.node);
        members
    }

    /// The members after each was asked itself: nodes that are gone do not answer.
    fn confirmed_to(&self, local: usize) -> Vec<PlacementNode> {
        let known = |(at, machine): (usize, &Machine)| {
            let pinned = if at == local { machine.member.pinned.clone() } else { Vec::new() };
            PlacementNode { pinned, ..machine.member.clone() }
        };
        self.machines.iter().enumerate().map(known).collect()
    }

    fn with<T>(&self, (members, wanted): (&[PlacementNode], u32), use_it: impl FnOnce(&Placement) -> T) -> T {
        let size = |range: LayerRange, _| u64::from(range.len());
        let cuts = CutRules::any();
        let (layers, holders) = (self.layers, wanted);
        use_it(&Placement { model: MODEL, layers, cuts: &cuts, holders, members, size: &size })
    }

    /// The layers of `drop` that a node may drop, once it has asked.
    fn droppable(&self, local: usize, wanted: u32, drop: &[LayerRange]) -> Vec<LayerRange> {
        let node = self.machines[local].member.node;
        let droppable = self.with((&self.confirmed_to(local), wanted), |placement| placement.droppable(node));
        filtered(drop, |layer| within(&droppable, layer))
    }

    /// A node's actions in this round, as the placement task performs them.
    fn turn(&mut self, local: usize, churn: bool) -> Vec<Act> {
        let demand = if churn { self.rng.below(u64::from(self.demand) + 1) as u32 } else { self.demand };
        let wanted = self.holders + demand;
        if let Some((found, due)) = self.machines[local].fetching.take() {
            if due > self.round {
                self.machines[local].fetching = Some((found, due));
                return Vec::new();
            }
            return vec![Act::Dropped(self.droppable(local, wanted, &found.drop)), Act::Fetched(found.hold)];
        }
        let members = self.announced_to(local);
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
        let due = self.round + self.rng.below(MAX_FETCH);
        if missing <= disk || found.drop.is_empty() {
            self.machines[local].fetching = Some((found, due));
            return Vec::new();
        }
        // Both do not fit on the disk: all of the layers are dropped first, or none.
        let droppable = self.droppable(local, wanted, &found.drop);
        if droppable != found.drop {
            return Vec::new();
        }
        self.machines[local].fetching = Some((Reassignment { drop: Vec::new(), ..found }, due));
        vec![Act::Dropped(droppable)]
    }

    /// Runs one round: all nodes decide and ask, then some leave, then all act. Returns whether anything was done or is
    /// running.
    fn run_round(&mut self, churn: bool) -> bool {
        self.round += 1;
        let round = self.round;
        if churn {
            self.demand = self.rng.below(3) as u32;
        }
        self.left.retain(|(when, _)| when + MAX_AGE as u64 > round);
        let acts: Vec<(NodeId, Vec<Act>)> =
            (0..self.machines.len()).map(|at| (self.machines[at].member.node, self.turn(at, churn))).collect();
        let before = self.counts();
        if churn && self.machines.len() > 1 && self.rng.once_in(4) {
            self.leave();
        }
        let stayed = self.counts();
        let mut moved = false;
        for (node, acts) in acts {
            // A node that has just left does nothing more.
            let Some(machine) = self.machines.iter_mut().find(|machine| machine.member.node == node) else { continue };
            let held = &mut machine.member.layers;
            for act in acts {
                moved = true;
                match act {
                    Act::Fetched(range) => *held = merge_ranges([layers_of(held), layers_of(&[range])].concat()),
                    Act::Dropped(ranges) => {
                        self.dropped += layers_of(&ranges).len();
                        *held = filtered(held, |layer| !within(&ranges, layer));
                    }
                }
            }
        }
        for (layer, after) in self.counts().into_iter().enumerate() {
            // Nodes that left in this round could not have been asked.
            let left = before[layer] - stayed[layer];
            let enough = stayed[layer].min(self.holders.saturating_sub(left));
            assert!(after >= enough, "layer {layer} has {after} holders in round {round}, had {}", stayed[layer]);
        }
        for machine in &mut self.machines {
            machine.announced.push_front(machine.member.layers.clone());
            machine.announced.truncate(MAX_AGE + 1);
        }
        if churn && self.machines.len() < MAX_MEMBERS && self.rng.once_in(3) {
            self.join();
        }
        moved || self.machines.iter().any(|machine| machine.fetching.is_some())
    }

    /// Runs rounds until no node acts, whatever moves are expected; returns their number.
    fn run_until_stable(&mut self) -> u32 {
        let (mut rounds, mut quiet) = (0, 0);
        let long = self.machines.len() + MAX_AGE + MAX_FETCH as usize;
        let bound = ((self.holders + self.demand) * self.layers + 1) as usize * (long + 2);
        while quiet <= long {
            quiet = if self.run_round(false) { 0 } else { quiet + 1 };
            rounds += 1;
            assert!(rounds as usize <= bound, "no end to the moves");
        }
        rounds
    }
}

#[test]
fn under_churn_no_dropped_layer_is_missed_and_the_moves_end() {
    let (mut dropped, mut longest) = (0, 0);
    for seed in 0..SWARMS {
        let run = std::panic::catch_unwind(|| {
            let mut swarm = Swarm::new(seed);
            for _ in 0..CHURN {
                swarm.run_round(true);
            }
            let rounds = swarm.run_until_stable();
            (swarm.dropped, rounds)
        });
        let Ok((gone, rounds)) = run else { panic!("swarm {seed} failed") };
        dropped += gone;
        longest = longest.max(rounds);
    }
    eprintln!("{dropped} layers dropped, at most {longest} rounds until the moves ended");
    assert!(dropped > SWARMS as usize / 4, "hardly any layer was dropped");
}
