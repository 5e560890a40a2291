//! The planner: which nodes compute which layers. Pure: facts in, plan out.
//!
//! One machine where it fits, else the fewest stages, and among those the least time for a token: what the hosts compute,
//! by the pace that each has shown, and the way to each of them. A stage never breaks the architecture's cut rules, and the
//! stages of a host fit into its free memory together.
//!
//! What the way from one host to the next counts for is said in [`hops`](super::hops).

use crate::base::{LayerRange, ModelId, NodeId, missing_ranges};
use crate::engine::CutRules;
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
    /// Everything is held, but cut rules or memory forbid every chain.
    #[error("every chain of stages breaks a cut rule or a memory bound ({rules}); free memory or hold longer ranges")]
    NoChain { rules: String },
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

/// What every candidate would need for a stage: asked once, since there may be thousands of candidates.
#[derive(Clone, Copy)]
struct Need {
    memory: u64,
    weight: u64,
}

/// A way to compute the layers up to some boundary: its last stage, and which way to the beginning of that.
#[derive(Clone, Copy)]
struct Way {
    cost: Cost,
    stage: PlanStage,
    /// Which of the candidates has the last stage, and what it takes there.
    host: usize,
    memory: u64,
    before: usize,
}

/// The cheapest ways to each boundary, cheapest first and each with another last host.
type Ways = Vec<Vec<Way>>;

/// A way that is to be extended.
struct Begun {
    start: u32,
    which: usize,
    cost: Cost,
    /// What its hosts have given to its stages.
    taken: Vec<(usize, u64)>,
}

/// Ways that are kept for each boundary, one for each bit of [`Near::known`]. A dearer one may be the better for its last
/// host's way to the next: in swarms where more hosts than these may end at a boundary, such a one may be missed.
const KEPT: usize = u64::BITS as usize;
/// Ways behind which each host is tried where the cheapest have led nowhere.
const MANY: usize = 6;

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
/// extended, where a dearer one can; only if that has happened more than the cheapest are tried. Whether there is any way is
/// then a question that takes too long to be answered always: one that leads over many half-full hosts may be missed.
pub fn plan(request: &PlanRequest) -> Result<Plan, NoPlan> {
    check_holders(request)?;
    let hops = Hops::new(request.candidates, request.told);
    let (mut ways, crowded) = chains(request, &hops, 1);
    if crowded && ways.last().is_none_or(Vec::is_empty) {
        (ways, _) = chains(request, &hops, MANY);
    }
    let mut stages = Vec::new();
    let token_us = ways.last().and_then(|ways| ways.first()).map_or(0, |way| way.cost.1.div_ceil(1000));
    let (mut end, mut which) = (request.layers, 0);
    while end > 0 {
        let Some(way) = ways[end as usize].get(which) else {
            return Err(NoPlan::NoChain { rules: describe(request.cuts) });
        };
        stages.push(way.stage);
        (end, which) = (way.stage.layers.start, way.before);
    }
    stages.reverse();
    Ok(Plan { model: request.model, stages, token_us })
}

/// The cheapest ways to each boundary, each host tried behind the `tried` cheapest before it and the one that is best for the
/// way between the two; and whether one was not extended because a host of it had no more room.
fn chains(request: &PlanRequest, hops: &Hops, tried: usize) -> (Ways, bool) {
    let mut ways: Ways = vec![Vec::new(); request.layers as usize + 1];
    let mut near = vec![Near::default(); request.candidates.len()];
    let mut crowded = false;
    for start in 0..request.layers {
        let begun: Vec<Begun> = match start {
            0 => vec![Begun { start, which: 0, cost: (0, 0), taken: Vec::new() }],
            _ => (0..ways[start as usize].len()).map(|which| begun(&ways, start, which)).collect(),
        };
        if begun.is_empty() {
            continue;
        }
        near.fill(Near::default());
        find_near(request, hops, &ways[start as usize], &mut near);
        let needs = needs_from(request, start);
        for (host, candidate) in request.candidates.iter().enumerate() {
            let rtt_ns = u64::from(candidate.rtt_us) * 1000;
            let Some(range) = candidate.layers.iter().find(|range| range.start <= start && start < range.end) else {
                continue;
            };
            let there = There { host, candidate, range: *range };
            let far = begun.iter().filter(|begun| near[host].known & (1 << begun.which) == 0).take(tried);
            for begun in far {
                crowded |= extend(begun, begun.cost.1.saturating_add(rtt_ns), there, &needs, &mut ways);
            }
            if let Some((cost, which)) = near[host].best {
                crowded |= extend(&begun[which], cost.1.saturating_add(rtt_ns / 2), there, &needs, &mut ways);
            }
        }
    }
    (ways, crowded)
}

/// Notes, for each host that the last hosts of these ways know a way to, what it may be extended from.
fn find_near(request: &PlanRequest, hops: &Hops, ways: &[Way], near: &mut [Near]) {
    for (which, way) in ways.iter().enumerate() {
        // A token that goes on does not come back from here.
        let back_ns = u64::from(request.candidates[way.host].rtt_us) * 500;
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
        (end, at) = (way.stage.layers.start, way.before);
    }
    Begun { start, which, cost, taken }
}

fn check_holders(request: &PlanRequest) -> Result<(), NoPlan> {
    let held: Vec<LayerRange> = request.candidates.iter().flat_map(|candidate| candidate.layers.clone()).collect();
    let missing = missing_ranges(&held, request.layers);
    if !missing.is_empty() {
        return Err(NoPlan::NoHolder { layers: missing });
    }
    let last_layer = request.layers.saturating_sub(1);
    let last = LayerRange::new(last_layer, request.layers);
    let holds_end = |candidate: &Candidate| candidate.head && candidate.layers.iter().any(|range| range.covers(last));
    match request.candidates.iter().any(holds_end) {
        true => Ok(()),
        false => Err(NoPlan::NoHead { last_layer }),
    }
}

/// What the stages need that begin at `start`, by their length less one; nothing where there may be none.
fn needs_from(request: &PlanRequest, start: u32) -> Vec<Option<Need>> {
    let need = |end: u32| {
        let (layers, head) = (LayerRange::new(start, end), end == request.layers);
        let need = || Need { memory: (request.memory)(layers, head), weight: (request.weight)(layers, head) };
        request.cuts.refuses(layers).is_none().then(need)
    };
    (start + 1..=request.layers).map(need).collect()
}

/// A host of the next stage, and those of its layers that the stage may have.
#[derive(Clone, Copy)]
struct There<'a> {
    host: usize,
    candidate: &'a Candidate,
    range: LayerRange,
}

/// Extends a way by each stage that the candidate may have, where it takes so many nanoseconds to go there and back beside
/// what is computed; says whether there was one that would fit but for those that it has already.
fn extend(begun: &Begun, way_ns: u64, there: There, needs: &[Option<Need>], ways: &mut Ways) -> bool {
    let (start, There { host, candidate, range }) = (begun.start, there);
    let taken: u64 = begun.taken.iter().filter(|(other, _)| *other == host).map(|(_, memory)| memory).sum();
    let free = candidate.free_memory.saturating_sub(taken);
    let (layers, mut crowded) = (ways.len() as u32 - 1, false);
    for (end, need) in (start + 1..=range.end.min(layers)).zip(needs) {
        let (stage, head) = (LayerRange::new(start, end), end == layers);
        let Some(need) = need.filter(|_| !head || candidate.head) else { continue };
        let memory = if candidate.loaded.contains(&(stage, head)) { 0 } else { need.memory };
        if memory > free {
            crowded |= memory <= candidate.free_memory;
            continue;
        }
        let cost = (begun.cost.0 + 1, way_ns.saturating_add(need.weight.saturating_mul(candidate.pace_ns)));
        let stage = PlanStage { node: candidate.node, layers: stage, head };
        keep(&mut ways[end as usize], Way { cost, stage, host, memory, before: begun.which });
    }
    crowded
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
        assert!(matches!(run(12, &whole_only, &hosts, 150), Err(NoPlan::NoChain { .. })));
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
        assert!(matches!(run(12, &CutRules::free(), &[near(&[(0, 12)])], 100), Err(NoPlan::NoChain { .. })));
        let apart = [near(&[(0, 4), (8, 12)]), candidate(2, &[(4, 8)], false, 9)];
        assert_eq!(run(12, &CutRules::free(), &apart, 100), Ok(vec![(1, 0, 4), (2, 4, 8), (1, 8, 12)]));
        assert!(run(12, &CutRules::free(), &apart, 101).is_err());
    }

    #[test]
    fn a_stage_that_is_loaded_takes_no_more_memory() {
        let full = Candidate { free_memory: 0, ..candidate(1, &[(0, 12)], true, 0) };
        assert!(run(12, &CutRules::free(), std::slice::from_ref(&full), 100).is_err());
        let loaded = Candidate { loaded: vec![(LayerRange::new(0, 12), true)], ..full };
        assert_eq!(run(12, &CutRules::free(), &[loaded], 100), Ok(vec![(1, 0, 12)]));
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
    }
}
