//! The planner: which nodes compute which layers. Pure: facts in, plan out.
//!
//! One machine where it fits, else the fewest stages, and among those the least time for a token: what the hosts compute,
//! by the pace that each has shown, and the way to each of them. A stage never breaks the architecture's cut rules, and the
//! stages of a host fit into its free memory together.
//!
//! What the way from one host to the next counts for is said in [`hops`](super::hops).

use std::cmp::Reverse;

use crate::base::{Bytes, LayerRange, ModelId, NodeId, missing_ranges};
use crate::engine::CutRules;
use crate::pipeline::fewest::{self, Choice, Choices};
use crate::pipeline::hops::{Hops, Told};

/// A node that may compute stages of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// Layers it holds, merged and sorted.
    pub layers: Vec<LayerRange>,
    /// Whether it holds what the head needs.
    pub head: bool,
    /// Round-trip time from the coordinator, microseconds; 0 for the coordinator itself.
    pub rtt_us: u32,
    /// Nanoseconds that it takes for a token and a unit of weight.
    pub pace_ns: u64,
    /// Bytes that new stages may take there.
    pub free_memory: u64,
    /// Stages that are in use there already and take no more, as it says.
    pub loaded: Vec<(LayerRange, bool)>,
}

impl Candidate {
    /// Whether it holds what a stage of these layers needs.
    pub fn holds(&self, layers: LayerRange, head: bool) -> bool {
        (self.head || !head) && self.layers.iter().any(|held| held.covers(layers))
    }
}

/// One stage of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct PlanStage {
    /// Its host.
    #[serde(serialize_with = "as_text")]
    pub node: NodeId,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it computes the head.
    pub head: bool,
}

/// Which nodes compute which layers, in order.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The model.
    #[serde(serialize_with = "as_text")]
    pub model: ModelId,
    /// At least one; the last computes the head.
    pub stages: Vec<PlanStage>,
    /// Microseconds that a token is predicted to take, one answer at a time. As good as what is known: of hosts
    /// that have not computed for this node yet, the pace is a guess.
    pub token_us: u64,
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Why no plan is possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    /// Some layers are held by nobody within reach.
    #[error("layers {} are held by no node within reach; let one import or pull them", list(.layers))]
    NoHolder { layers: Vec<LayerRange> },
    /// The head is held by nobody together with the last layer.
    #[error("no node within reach holds the head together with layer {last_layer}; let one pull it")]
    NoHead { last_layer: u32 },
    /// Everything is held, but cut rules forbid every chain.
    #[error("every chain of stages breaks a cut rule ({rules}); hold longer ranges")]
    NoChain { rules: String },
    /// There are legal chains, none of which fits into the memory of its hosts.
    #[error(
        "no chain of stages fits into the memory of the nodes within reach: the whole model takes {whole}, and none of them \
         has more than {free} free"
    )]
    NoMemory { whole: Bytes, free: Bytes },
}

fn list(ranges: &[LayerRange]) -> String {
    ranges.iter().map(LayerRange::to_string).collect::<Vec<_>>().join(", ")
}

/// What the planner decides by.
pub struct PlanRequest<'a> {
    /// The model.
    pub model: ModelId,
    /// Its layers.
    pub layers: u32,
    /// Where it may be cut.
    pub cuts: &'a CutRules,
    /// Who may compute.
    pub candidates: &'a [Candidate],
    /// Bytes that a stage takes.
    pub memory: &'a dyn Fn(LayerRange, bool) -> u64,
    /// What the ledger prices a stage by; it tells how long one takes, too.
    pub weight: &'a dyn Fn(LayerRange, bool) -> u64,
    /// What candidates tell of their round trips to others.
    pub told: &'a Told<'a>,
}

/// Cost of a partial plan, compared in this order: stages, and nanoseconds of a token that came back from its last host.
type Cost = (u32, u64);

/// A way to compute the layers up to some boundary: its last stage, and which way to the beginning of that.
#[derive(Clone, Copy)]
struct Way {
    cost: Cost,
    layers: LayerRange,
    /// Which of the hosts has the last stage, and what it takes there.
    host: usize,
    memory: u64,
    before: usize,
}

/// The cheapest ways to each boundary, cheapest first and each with another last host.
type Ways = Vec<Vec<Way>>;

/// A way that is to be extended.
struct Begun {
    which: usize,
    cost: Cost,
    /// What its hosts have given to its stages.
    taken: Vec<(usize, u64)>,
}

impl Begun {
    /// What a host has given to its stages.
    fn taken_of(&self, host: usize) -> u64 {
        self.taken.iter().filter(|(other, _)| *other == host).map(|(_, memory)| memory).sum()
    }
}

/// Ways that are kept for each boundary, one for each bit of [`Near::known`]. A dearer one may be the better for its last
/// host's way to the next: in swarms where more hosts than these may end at a boundary, such a one may be missed.
const KEPT: usize = u64::BITS as usize;
/// Ways behind which each host is tried where the cheapest have led nowhere.
const MANY: usize = 6;

/// Steps of a search at most: a step tries a host for a stage, mostly behind two ways. A million of them take some 10 ms.
const STEPS: usize = 1 << 20;
/// Steps of each of the three searches that follow where the first finds nothing. All four together take less than twice as
/// long as the first, for each of the four contexts that a model may be planned with.
const STEPS_AGAIN: usize = STEPS / 4;
/// Hosts that are tried at each boundary at least, whatever the number of stages.
const LEAST: usize = 16;

/// Which of the ways to a boundary end at a host that has a known way to some next host.
#[derive(Clone, Copy, Default)]
struct Near {
    /// A bit for each.
    known: u64,
    /// The best of them, and what it costs with the way to the next host, but for what the next takes.
    best: Option<(Cost, usize)>,
}

/// Finds the plan, by dynamic programming over layer boundaries.
///
/// The stages of a host must fit into its memory together. So the cheapest way to a boundary may be one that cannot be
/// extended, where a dearer one can. A search behind the cheapest ways alone is tried first, then one behind more of them;
/// stages that no chain of the fewest stages has are tried last. Whether there is any way is a question that takes too long
/// to be answered always: one that leads over many half-full hosts may be missed, and so may one over hosts that a search has no
/// steps for, where they are thousands.
pub fn plan(request: &PlanRequest) -> Result<Plan, NoPlan> {
    let fewest = fewest::fewest(request);
    // Even without what the stages of a host take from each other there is no chain.
    if fewest.first().is_none_or(Vec::is_empty) {
        return Err(why_not(request));
    }
    let found = search(request, &fewest, 1, STEPS).or_else(|| search(request, &fewest, MANY, STEPS_AGAIN));
    found.or_else(|| search_all(request)).ok_or_else(|| why_not(request))
}

/// The cheapest plan of any number of stages.
fn search_all(request: &PlanRequest) -> Option<Plan> {
    let all = fewest::all(request);
    search(request, &all, 1, STEPS_AGAIN).or_else(|| search(request, &all, MANY, STEPS_AGAIN))
}

/// The cheapest plan of these stages, each host tried behind the `tried` cheapest ways before it and the one that is best for
/// the way between the two, within so many steps.
fn search(request: &PlanRequest, choices: &Choices, tried: usize, steps: usize) -> Option<Plan> {
    let hosts = able(request, choices);
    // Where one stage is all there is no way between two.
    let (alone, nothing) = (choices.iter().skip(1).all(Vec::is_empty), Told::new());
    let hops = Hops::new(&hosts, if alone { &nothing } else { request.told });
    let ways = chains(choices, &hosts, &hops, tried, &Tries::within(steps, choices, &hosts));
    let token_us = ways.last()?.first()?.cost.1.div_ceil(1000);
    let (mut stages, mut end, mut which) = (Vec::new(), request.layers, 0);
    while end > 0 {
        let way = ways[end as usize].get(which)?;
        stages.push(PlanStage { node: hosts[way.host].node, layers: way.layers, head: end == request.layers });
        (end, which) = (way.layers.start, way.before);
    }
    stages.reverse();
    Some(Plan { model: request.model, stages, token_us })
}

/// The candidates, without most of those that can compute none of these stages.
fn able<'a>(request: &PlanRequest<'a>, choices: &Choices) -> Vec<&'a Candidate> {
    let least = choices.iter().flatten().map(|choice| choice.memory).min().unwrap_or(0);
    let able = |candidate: &&Candidate| {
        let room = candidate.free_memory >= least || !candidate.loaded.is_empty();
        room && candidate.layers.iter().any(|range| {
            let mut from = choices.iter().take(range.end as usize).skip(range.start as usize);
            from.any(|choices| choices.first().is_some_and(|shortest| shortest.layers.end <= range.end))
        })
    };
    request.candidates.iter().filter(able).collect()
}

/// The hosts that a search tries: all, unless they are so many that this would take too long.
struct Tries {
    /// In this order.
    order: Vec<usize>,
    /// So many at each boundary.
    most: usize,
}

impl Tries {
    /// Within so many steps, counted as if each host could have each stage. Where that leaves out hosts, the first are those
    /// with the memory for the most layers, since the number of stages counts before all else, and of those the quick and near.
    fn within(steps: usize, choices: &Choices, hosts: &[&Candidate]) -> Self {
        let stages = choices.iter().map(Vec::len).sum::<usize>().max(1);
        let most = (steps / stages).max(LEAST);
        let mut order: Vec<usize> = (0..hosts.len()).collect();
        if order.len() > most {
            let layer = Layer::mean(choices);
            order.sort_by_cached_key(|host| layer.rank(hosts[*host]));
        }
        Self { order, most }
    }
}

/// A layer of a model, as an average of stages has it.
struct Layer {
    memory: u64,
    weight: u64,
}

impl Layer {
    fn mean(choices: &Choices) -> Self {
        let sum = |of: fn(&Choice) -> u64| choices.iter().flatten().map(of).fold(0, u64::saturating_add);
        let layers = sum(|choice| choice.layers.len().into()).max(1);
        Self { memory: sum(|choice| choice.memory) / layers, weight: sum(|choice| choice.weight) / layers }
    }

    /// The rank of a host for the longest stage that it may have.
    fn rank(&self, host: &Candidate) -> (Reverse<u64>, u64) {
        let held = host.layers.iter().map(|range| u64::from(range.len())).max().unwrap_or(0);
        let room = host.free_memory.checked_div(self.memory).unwrap_or(held);
        let layers = if host.loaded.is_empty() { held.min(room) } else { held };
        let computes = self.weight.saturating_mul(layers).saturating_mul(host.pace_ns);
        (Reverse(layers), computes.saturating_add(u64::from(host.rtt_us) * 1000))
    }
}

/// The cheapest ways to each boundary.
fn chains(choices: &Choices, hosts: &[&Candidate], hops: &Hops, tried: usize, tries: &Tries) -> Ways {
    let mut ways: Ways = vec![Vec::new(); choices.len() + 1];
    let mut near = vec![Near::default(); hosts.len()];
    for (start, choices) in (0..).zip(choices) {
        let begun: Vec<Begun> = match start {
            0 => vec![Begun { which: 0, cost: (0, 0), taken: Vec::new() }],
            _ => (0..ways[start as usize].len()).map(|which| begun(&ways, start, which)).collect(),
        };
        if begun.is_empty() || choices.is_empty() {
            continue;
        }
        near.fill(Near::default());
        find_near(hosts, hops, &ways[start as usize], &mut near);
        let there = |host: &usize| There::new(*host, hosts[*host], start, choices);
        for there in tries.order.iter().filter_map(there).take(tries.most) {
            let (host, rtt_ns) = (there.host, u64::from(there.candidate.rtt_us) * 1000);
            let far = begun.iter().filter(|begun| near[host].known & (1 << begun.which) == 0).take(tried);
            for begun in far {
                let taken = begun.taken_of(host);
                extend(begun, begun.cost.1.saturating_add(rtt_ns), there.without(taken), choices, &mut ways);
                if taken == 0 {
                    // A dearer way leads to no stage of this host that this one does not lead to.
                    break;
                }
            }
            if let Some((cost, which)) = near[host].best {
                let (begun, way_ns) = (&begun[which], cost.1.saturating_add(rtt_ns / 2));
                extend(begun, way_ns, there.without(begun.taken_of(host)), choices, &mut ways);
            }
        }
    }
    ways
}

/// Notes, for each host that the last hosts of these ways know a way to, what it may be extended from.
fn find_near(hosts: &[&Candidate], hops: &Hops, ways: &[Way], near: &mut [Near]) {
    for (which, way) in ways.iter().enumerate() {
        // A token that goes on does not come back from here.
        let back_ns = u64::from(hosts[way.host].rtt_us) * 500;
        for (next, us) in hops.known(way.host) {
            let cost = (way.cost.0, way.cost.1.saturating_sub(back_ns).saturating_add(u64::from(us) * 500));
            let near = &mut near[next];
            near.known |= 1 << which;
            if near.best.is_none_or(|best| cost < best.0) {
                near.best = Some((cost, which));
            }
        }
    }
}

fn begun(ways: &Ways, start: u32, which: usize) -> Begun {
    let cost = ways[start as usize][which].cost;
    let (mut taken, mut end, mut at) = (Vec::new(), start, which);
    while end > 0 {
        let way = &ways[end as usize][at];
        taken.push((way.host, way.memory));
        (end, at) = (way.layers.start, way.before);
    }
    Begun { which, cost, taken }
}

/// A host of the next stage, and those of its layers that the stage may have.
#[derive(Clone, Copy)]
struct There<'a> {
    host: usize,
    candidate: &'a Candidate,
    range: LayerRange,
    /// Its memory that is free for the stage.
    free: u64,
}

impl<'a> There<'a> {
    /// Nothing where the host has no stage from `start` on.
    fn new(host: usize, candidate: &'a Candidate, start: u32, choices: &[Choice]) -> Option<Self> {
        let range = candidate.layers.iter().find(|range| range.start <= start && start < range.end)?;
        let there = There { host, candidate, range: *range, free: candidate.free_memory };
        let able = |shortest: &&Choice| shortest.layers.end <= range.end && (candidate.head || !shortest.head);
        choices.first().filter(able).filter(|shortest| there.fits(shortest)).map(|_| there)
    }

    /// Whether there may be room for this stage or a longer one. A stage that is loaded takes no more memory.
    fn fits(&self, choice: &Choice) -> bool {
        choice.least <= self.free || !self.candidate.loaded.is_empty()
    }

    /// The same where so many bytes of its memory are taken.
    fn without(self, taken: u64) -> Self {
        Self { free: self.free.saturating_sub(taken), ..self }
    }
}

/// Extends a way by each stage that the candidate may have, where it takes so many nanoseconds to go there and back beside
/// what is computed.
fn extend(begun: &Begun, way_ns: u64, there: There, choices: &[Choice], ways: &mut Ways) {
    let There { host, candidate, range, free } = there;
    for choice in choices.iter().take_while(|choice| choice.layers.end <= range.end && there.fits(choice)) {
        let Choice { layers, head, .. } = *choice;
        let memory = if candidate.loaded.contains(&(layers, head)) { 0 } else { choice.memory };
        if (head && !candidate.head) || memory > free {
            continue;
        }
        let cost = (begun.cost.0 + 1, way_ns.saturating_add(choice.weight.saturating_mul(candidate.pace_ns)));
        keep(&mut ways[layers.end as usize], Way { cost, layers, host, memory, before: begun.which });
    }
}

/// Keeps a way where it is among the cheapest.
fn keep(ways: &mut Vec<Way>, way: Way) {
    if ways.len() >= KEPT && ways.last().is_some_and(|worst| worst.cost <= way.cost) {
        return;
    }
    match ways.iter().position(|known| known.host == way.host) {
        Some(known) if ways[known].cost <= way.cost => return,
        Some(known) => drop(ways.remove(known)),
        None => ways.truncate(KEPT - 1),
    }
    let place = ways.partition_point(|known| known.cost <= way.cost);
    ways.insert(place, way);
}

/// Says what is missing, where there is no plan.
fn why_not(request: &PlanRequest) -> NoPlan {
    let held = request.candidates.iter().flat_map(|candidate| &candidate.layers);
    let missing = missing_ranges(&held.copied().collect::<Vec<_>>(), request.layers);
    if !missing.is_empty() {
        return NoPlan::NoHolder { layers: missing };
    }
    let last_layer = request.layers.saturating_sub(1);
    let last = LayerRange::new(last_layer, request.layers);
    if !request.candidates.iter().any(|candidate| candidate.holds(last, true)) {
        return NoPlan::NoHead { last_layer };
    }
    // Memory is what is short where there is a chain without its bounds.
    if fewest::fewest(&PlanRequest { memory: &|_, _| 0, ..*request }).first().is_none_or(Vec::is_empty) {
        return NoPlan::NoChain { rules: describe(request.cuts) };
    }
    let free = request.candidates.iter().map(|candidate| candidate.free_memory).max().unwrap_or(0);
    let whole = (request.memory)(LayerRange::new(0, request.layers), true);
    NoPlan::NoMemory { whole: Bytes(whole), free: Bytes(free) }
}

fn describe(cuts: &CutRules) -> String {
    let kinds = if cuts.must_contain.is_empty() { "" } else { ", each with a sliding-window layer" };
    let lengths: Vec<String> = cuts.forbidden.iter().map(u32::to_string).collect();
    let lengths = if lengths.is_empty() { String::new() } else { format!(", never of {}", lengths.join(" or ")) };
    format!("stages of at least {} layers starting on multiples of {}{kinds}{lengths}", cuts.min_layers, cuts.align)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FREE: u64 = 1000;

    fn candidate(name: u8, layers: &[(u32, u32)], head: bool, rtt_us: u32) -> Candidate {
        let layers = layers.iter().map(|(start, end)| LayerRange::new(*start, *end)).collect();
        Candidate {
            node: NodeId([name; 32]),
            layers,
            head,
            rtt_us,
            pace_ns: 1000,
            free_memory: FREE,
            loaded: Vec::new(),
        }
    }

    fn run_told(
        layers: u32,
        cuts: &CutRules,
        candidates: &[Candidate],
        per_layer: u64,
        told: &Told,
    ) -> Result<Plan, NoPlan> {
        let memory = |range: LayerRange, _| u64::from(range.len()) * per_layer;
        let weight = |range: LayerRange, head: bool| u64::from(range.len()) + u64::from(head);
        let model = ModelId([0; 32]);
        plan(&PlanRequest { model, layers, cuts, candidates, memory: &memory, weight: &weight, told })
    }

    fn run(
        layers: u32,
        cuts: &CutRules,
        candidates: &[Candidate],
        per_layer: u64,
    ) -> Result<Vec<(u8, u32, u32)>, NoPlan> {
        let plan = run_told(layers, cuts, candidates, per_layer, &Told::new())?;
        Ok(plan.stages.iter().map(|stage| (stage.node.0[0], stage.layers.start, stage.layers.end)).collect())
    }

    #[test]
    fn one_machine_where_it_fits() {
        let all = candidate(9, &[(0, 12)], true, 5_000);
        let near = candidate(1, &[(0, 6)], false, 10);
        let rest = candidate(2, &[(6, 12)], true, 10);
        assert_eq!(run(12, &CutRules::free(), &[near, rest, all], 1), Ok(vec![(9, 0, 12)]));
    }

    #[test]
    fn the_fewest_stages_then_the_nearest_hosts() {
        let hosts = [
            candidate(1, &[(0, 5)], false, 10),
            candidate(2, &[(0, 5)], false, 5),
            candidate(3, &[(4, 9)], false, 10),
            candidate(4, &[(8, 12)], true, 10),
        ];
        let plan = run(12, &CutRules::free(), &hosts, 1).unwrap();
        assert_eq!(plan.iter().map(|stage| stage.0).collect::<Vec<_>>(), [2, 3, 4]);
    }

    #[test]
    fn among_equally_many_stages_the_quick_and_the_near_are_taken_and_the_time_is_told() {
        let host = |name, pace_ns, rtt_us| Candidate { pace_ns, ..candidate(name, &[(0, 12)], true, rtt_us) };
        let chosen = |hosts: &[Candidate]| {
            let (memory, weight) = (|_, _| 0, |range: LayerRange, _| u64::from(range.len()) * 10);
            let (model, cuts) = (ModelId([0; 32]), CutRules::free());
            let plan = plan(&PlanRequest {
                model,
                layers: 12,
                cuts: &cuts,
                candidates: hosts,
                memory: &memory,
                weight: &weight,
                told: &Told::new(),
            });
            let plan = plan.unwrap();
            (plan.stages[0].node.0[0], plan.token_us)
        };
        // 120 units of weight: 50 us each are 6 ms, 20 us each are 2.4 ms.
        let (slow, quick) = (host(1, 50_000, 1_000), host(2, 20_000, 2_000));
        assert_eq!(chosen(&[slow.clone(), quick.clone()]), (2, 4_400));
        assert_eq!(chosen(&[slow, Candidate { rtt_us: 9_000, ..quick }]), (1, 7_000), "too far to be quick");
    }

    #[test]
    fn of_two_equal_pairs_of_hosts_the_one_with_the_short_way_between_is_taken_and_its_time_is_told() {
        let first = |name| candidate(name, &[(0, 6)], false, 1000);
        let second = |name| candidate(name, &[(6, 12)], true, 1000);
        let hosts = [first(1), first(2), second(3), second(4)];
        let chosen = |told: &[(u8, u8, u32)]| {
            let lists: Vec<_> = told.iter().map(|(from, to, us)| (*from, [(NodeId([*to; 32]), *us)])).collect();
            let told: Told = lists.iter().map(|(from, list)| (NodeId([*from; 32]), &list[..])).collect();
            let plan = run_told(12, &CutRules::free(), &hosts, 1, &told).unwrap();
            (plan.stages.iter().map(|stage| stage.node.0[0]).collect::<Vec<_>>(), plan.token_us)
        };
        // 13 units of weight take 13 us. Over the coordinator the way takes as long as both round trips.
        assert_eq!(chosen(&[]), (vec![1, 3], 2013));
        assert_eq!(chosen(&[(2, 4, 100)]), (vec![2, 4], 1063), "one of the two is enough");
        assert_eq!(chosen(&[(2, 4, 100), (4, 2, 9000)]), (vec![1, 3], 2013), "the longer counts");
        assert_eq!(chosen(&[(1, 3, 9000), (2, 3, 2200)]), (vec![1, 4], 2013), "a long way is gone round");
    }

    #[test]
    fn the_plan_is_the_one_of_least_time_among_all_of_the_fewest_stages() {
        // Three stages of three hosts each, whose ways to each other are as they come.
        let hosts: Vec<Candidate> = (0..9)
            .map(|name| {
                let start = u32::from(name / 3) * 4;
                candidate(name + 1, &[(start, start + 4)], name >= 6, 300 + u32::from(name) * 37 % 100)
            })
            .collect();
        let us = |a: u8, b: u8| (u32::from(a.min(b)) * 7919 + u32::from(a.max(b)) * 104_729) % 900 + 1;
        let lists: Vec<Vec<(NodeId, u32)>> =
            (1..10).map(|a| (a + 1..10).map(|b| (NodeId([b; 32]), us(a, b))).collect()).collect();
        let told = lists.iter().zip(1..).map(|(list, name)| (NodeId([name; 32]), &list[..])).collect();
        let found = run_told(12, &CutRules::free(), &hosts, 1, &told).unwrap();
        let rtt = |name: u8| hosts[usize::from(name) - 1].rtt_us;
        let all = (1..4).flat_map(|a| (4..7).flat_map(move |b| (7..10).map(move |c| (a, b, c))));
        let halves = all.map(|(a, b, c)| rtt(a) + us(a, b) + us(b, c) + rtt(c)).min().unwrap();
        assert_eq!(found.token_us, (u64::from(halves) * 500 + 13_000).div_ceil(1000));
    }

    #[test]
    fn what_nobody_holds_is_named() {
        let hosts = [candidate(1, &[(0, 5)], false, 0), candidate(2, &[(7, 12)], true, 0)];
        let missing = NoPlan::NoHolder { layers: vec![LayerRange::new(5, 7)] };
        assert_eq!(run(12, &CutRules::free(), &hosts, 1), Err(missing));
        let headless = [candidate(1, &[(0, 12)], false, 0)];
        assert_eq!(run(12, &CutRules::free(), &headless, 1), Err(NoPlan::NoHead { last_layer: 11 }));
        assert!(matches!(run(12, &CutRules::free(), &[], 1), Err(NoPlan::NoHolder { .. })));
    }

    #[test]
    fn memory_and_cut_rules_bind() {
        let hosts = [candidate(1, &[(0, 12)], true, 0), candidate(2, &[(0, 12)], true, 9)];
        // 12 layers of 150 exceed 1,000 bytes: six on each host is the only way with two stages of at most six.
        assert_eq!(run(12, &CutRules::free(), &hosts, 150), Ok(vec![(2, 0, 6), (1, 6, 12)]));
        let whole_only = CutRules { min_layers: 12, ..CutRules::free() };
        let refused = run(12, &whole_only, &hosts, 150);
        assert_eq!(refused, Err(NoPlan::NoMemory { whole: Bytes(1800), free: Bytes(FREE) }), "memory is what is short");
        let halves = [candidate(1, &[(0, 6)], false, 0), candidate(2, &[(6, 12)], true, 0)];
        assert!(matches!(run(12, &whole_only, &halves, 1), Err(NoPlan::NoChain { .. })), "no memory would help");
        let aligned = CutRules { align: 4, ..CutRules::free() };
        let plan = run(12, &aligned, &hosts, 125).unwrap();
        assert!(plan.iter().all(|stage| stage.1 % 4 == 0), "{plan:?}");
    }

    #[test]
    fn a_host_never_has_more_stages_than_fit_together_though_it_were_the_nearest() {
        let near = |layers: &[(u32, u32)]| Candidate { free_memory: 800, ..candidate(1, layers, true, 0) };
        let far = Candidate { free_memory: 400, ..candidate(2, &[(0, 4)], false, 9) };
        // The cheapest way to layer 4 is the near host's, which has no room for all that follows.
        assert_eq!(run(12, &CutRules::free(), &[near(&[(0, 12)]), far.clone()], 100), Ok(vec![(2, 0, 4), (1, 4, 12)]));
        assert!(matches!(run(12, &CutRules::free(), &[near(&[(0, 12)])], 100), Err(NoPlan::NoMemory { .. })));
        let apart = [near(&[(0, 4), (8, 12)]), candidate(2, &[(4, 8)], false, 9)];
        assert_eq!(run(12, &CutRules::free(), &apart, 100), Ok(vec![(1, 0, 4), (2, 4, 8), (1, 8, 12)]));
        assert!(run(12, &CutRules::free(), &apart, 101).is_err());
    }

    #[test]
    fn a_plan_has_more_stages_where_the_fewest_do_not_fit_together() {
        // Two stages of six layers are the fewest, and the only host that holds either has room for one of them.
        let large = Candidate { free_memory: 600, ..candidate(1, &[(0, 12)], true, 9) };
        let small = |name, start| Candidate { free_memory: 300, ..candidate(name, &[(start, start + 3)], false, 1) };
        let hosts = [large, small(2, 0), small(3, 3)];
        assert_eq!(run(12, &CutRules::free(), &hosts, 100), Ok(vec![(2, 0, 3), (3, 3, 6), (1, 6, 12)]));
    }

    #[test]
    fn a_stage_that_is_loaded_takes_no_more_memory() {
        let full = Candidate { free_memory: 0, ..candidate(1, &[(0, 12)], true, 0) };
        assert!(run(12, &CutRules::free(), std::slice::from_ref(&full), 100).is_err());
        let loaded = Candidate { loaded: vec![(LayerRange::new(0, 12), true)], ..full };
        assert_eq!(run(12, &CutRules::free(), &[loaded], 100), Ok(vec![(1, 0, 12)]));
    }

    #[test]
    fn a_search_takes_bounded_steps_however_many_hosts_there_are_and_tries_the_best_of_them() {
        let small = |name| Candidate { free_memory: 300, ..candidate(name, &[(0, 12)], true, 9) };
        let (near, large) = (Candidate { rtt_us: 1, ..small(201) }, candidate(202, &[(0, 12)], true, 500));
        // The quickest of all has room for two layers, where the small ones have three.
        let quick = Candidate { free_memory: 200, pace_ns: 0, ..candidate(203, &[(0, 12)], true, 1) };
        let hosts: Vec<Candidate> = (1..=200).map(small).chain([near, large, quick]).collect();
        let (memory, weight) = (|range: LayerRange, _| u64::from(range.len()) * 100, |_, _| 1);
        let (model, cuts, told) = (ModelId([0; 32]), &CutRules::free(), &Told::new());
        let candidates = &hosts[..];
        let request = PlanRequest { model, layers: 12, cuts, candidates, memory: &memory, weight: &weight, told };
        let all = fewest::all(&request);
        let named: Vec<&Candidate> = hosts.iter().collect();
        // 78 stages.
        let tries = |steps| Tries::within(steps, &all, &named);
        assert_eq!((tries(78 * 50).most, tries(78).most), (50, LEAST));
        assert_eq!(tries(78 * 50).order[..3], [201, 200, 0], "the large, and the near of the others");
        assert_eq!(tries(78 * 203).order, (0..203).collect::<Vec<_>>(), "all, as they come");
        let found =
            |steps| search(&request, &all, 1, steps).unwrap().stages.iter().map(|stage| stage.node.0[0]).collect();
        assert_eq!((found(78 * 203), found(78)), (vec![203, 202], vec![201, 202]), "the last is not tried");
    }

    #[test]
    fn hosts_without_the_head_take_no_tries_from_those_that_can_have_the_last_stage() {
        let headless = |name| candidate(name, &[(0, 12)], false, 1);
        let last = Candidate { free_memory: 600, ..candidate(201, &[(0, 12)], true, 500) };
        let hosts: Vec<Candidate> = (1..=200).map(headless).chain([last]).collect();
        let (memory, weight) = (|range: LayerRange, _| u64::from(range.len()) * 100, |_, _| 1);
        let (model, cuts, told) = (ModelId([0; 32]), &CutRules::free(), &Told::new());
        let candidates = &hosts[..];
        let request = PlanRequest { model, layers: 12, cuts, candidates, memory: &memory, weight: &weight, told };
        let found = search(&request, &fewest::fewest(&request), 1, 1).unwrap();
        assert_eq!(
            found.stages.last().map(|stage| stage.node.0[0]),
            Some(201),
            "the last of all, of which 16 are tried"
        );
    }

    /// A host before the model's length is known.
    #[derive(Debug, Clone)]
    struct AnyHost {
        ranges: Vec<(u32, u32)>,
        head: bool,
        rtt_us: u32,
        pace_ns: u64,
        free_memory: u64,
        loaded: Option<(u32, u32, bool)>,
    }

    impl AnyHost {
        fn named(&self, name: u8, layers: u32) -> Candidate {
            let held = self.ranges.iter().flat_map(|(start, len)| *start..start + len).filter(|layer| *layer < layers);
            let loaded = self.loaded.map(|(start, len, head)| (LayerRange::new(start, start + len), head));
            Candidate {
                node: NodeId([name; 32]),
                layers: crate::base::merge_ranges(held.collect()),
                head: self.head,
                rtt_us: self.rtt_us,
                pace_ns: self.pace_ns,
                free_memory: self.free_memory,
                loaded: loaded.into_iter().collect(),
            }
        }
    }

    /// Few different values, so that many ways cost the same.
    fn any_host() -> impl Strategy<Value = AnyHost> {
        let ranges = proptest::collection::vec((0u32..12, 1u32..12), 1..3);
        let loaded = proptest::option::of((0u32..12, 1u32..12, any::<bool>()));
        let rest = (any::<bool>(), 0u32..20, 0u64..4000, 0u64..13, loaded);
        (ranges, rest).prop_map(|(ranges, (head, rtt_us, pace_ns, free_memory, loaded))| AnyHost {
            ranges,
            head,
            rtt_us,
            pace_ns,
            free_memory,
            loaded,
        })
    }

    proptest! {
        #[test]
        fn a_plan_is_a_chain_of_legal_stages_on_holders(
            layers in 1u32..16,
            hosts in proptest::collection::vec((proptest::collection::vec((0u32..16, 1u32..16), 1..3), any::<bool>(), 0u32..100), 0..6),
            align in 1u32..4,
        ) {
            let cuts = CutRules { align, ..CutRules::free() };
            let candidates: Vec<Candidate> = hosts.iter().enumerate().map(|(index, (ranges, head, rtt))| {
                let held = ranges.iter().flat_map(|(start, len)| *start..start + len).filter(|layer| *layer < layers);
                let layers = crate::base::merge_ranges(held.collect());
                Candidate { node: NodeId([index as u8; 32]), layers, head: *head, rtt_us: *rtt, pace_ns: 1000, free_memory: FREE, loaded: Vec::new() }
            }).collect();
            let Ok(plan) = run(layers, &cuts, &candidates, 100) else { return Ok(()) };
            let mut next = 0;
            let mut taken = vec![0; hosts.len()];
            for (index, (node, start, end)) in plan.iter().enumerate() {
                prop_assert_eq!(*start, next);
                let range = LayerRange::new(*start, *end);
                prop_assert!(cuts.refuses(range).is_none());
                taken[*node as usize] += u64::from(range.len()) * 100;
                prop_assert!(taken[*node as usize] <= FREE);
                let host = &candidates[*node as usize];
                prop_assert!(host.layers.iter().any(|held| held.covers(range)));
                prop_assert!(index + 1 < plan.len() || host.head);
                next = *end;
            }
            prop_assert_eq!(next, layers);
        }

        #[test]
        fn a_search_over_all_stages_finds_no_better_plan(
            layers in 1u32..12,
            hosts in proptest::collection::vec(any_host(), 1..9),
            told in proptest::collection::vec((0usize..9, 0usize..9, 0u32..40), 0..20),
            (align, min_layers, forbidden) in (1u32..3, 1u32..3, 1u32..20),
            windowed in proptest::option::of(proptest::collection::vec(0u32..12, 1..4)),
        ) {
            let cuts = CutRules { align, min_layers, forbidden: vec![forbidden], must_contain: windowed.unwrap_or_default() };
            let named = |(host, name): (&AnyHost, u8)| host.named(name, layers);
            let candidates: Vec<Candidate> = hosts.iter().zip(1..).map(named).collect();
            let node = |index: usize| NodeId([index as u8 + 1; 32]);
            let from = |from: usize| told.iter().filter(|of| of.0 == from).map(|(_, to, us)| (node(*to), *us)).collect();
            let lists: Vec<Vec<(NodeId, u32)>> = (0..9).map(from).collect();
            let told = lists.iter().zip(0..).map(|(list, index)| (node(index), &list[..])).collect();
            let (memory, weight) = (|range: LayerRange, _| range.len().into(), |range: LayerRange, _| range.len().into());
            let (model, cuts, candidates, told) = (ModelId([0; 32]), &cuts, &candidates, &told);
            let request = PlanRequest { model, layers, cuts, candidates, memory: &memory, weight: &weight, told };
            let (found, of_all) = (plan(&request).ok(), search_all(&request));
            prop_assert_eq!(found.is_some(), of_all.is_some());
            let cost = |plan: &Plan| (plan.stages.len(), plan.token_us);
            prop_assert!(found.as_ref().map(cost) <= of_all.as_ref().map(cost), "{found:?}, {of_all:?}");
            if let Some(uncrowded) = search(&request, &fewest::fewest(&request), 1, STEPS) {
                prop_assert_eq!(Some(&uncrowded), of_all.as_ref());
                prop_assert_eq!(found, of_all);
            }
        }
    }
}
