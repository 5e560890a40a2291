//! The search for a plan: dynamic programming over layer boundaries, within a bounded number of steps.

use std::cmp::Reverse;

use crate::base::LayerRange;
use crate::pipeline::plan::request::{Candidate, Plan, PlanRequest, PlanStage, ReportedRoundTrips};
use crate::pipeline::plan::round_trips::RoundTrips;
use crate::pipeline::plan::stage_options::{self, StageOption, StageOptions};

/// Cost of a partial plan, compared in this order: its stages, and nanoseconds per token including the way back from
/// its last host.
type Cost = (u32, u64);

/// A plan for the layers up to a boundary: its last stage, and the partial plan before that stage.
#[derive(Clone, Copy)]
struct PartialPlan {
    cost: Cost,
    layers: LayerRange,
    /// The host of the last stage, and the bytes that the stage takes there.
    host: usize,
    memory: u64,
    /// The partial plan before the last stage, by its index at that boundary.
    base: usize,
}

/// The cheapest partial plans up to each boundary, the cheapest first, each with another last host.
type PartialPlans = Vec<Vec<PartialPlan>>;

/// A partial plan that is to be extended by a stage.
struct BasePlan {
    index: usize,
    cost: Cost,
    /// Bytes that its stages take, by host.
    used: Vec<(usize, u64)>,
}

impl BasePlan {
    /// Bytes that its stages take of a host.
    fn used_of(&self, host: usize) -> u64 {
        self.used.iter().filter(|(other, _)| *other == host).map(|(_, memory)| memory).sum()
    }
}

/// Partial plans that are kept per boundary, one for each bit of [`KnownPredecessors::plans`]. A costlier partial plan
/// may be better because its last host is close to the next host. Where more hosts than these may end at a boundary,
/// such a plan may be missed.
const PLANS_PER_BOUNDARY: usize = u64::BITS as usize;
/// Partial plans behind which a wide search tries each host.
const WIDE: usize = 6;

/// Most steps of a search. A step tries a host for a stage, mostly behind two partial plans; a million steps take about
/// 10 ms.
pub(super) const MAX_STEPS: usize = 1 << 20;
/// Most steps of each of the three searches after a first search without a result. All four together take less than
/// twice the time of the first, for each of the four contexts that a model may be planned with.
const RETRY_STEPS: usize = MAX_STEPS / 4;
/// Hosts that are tried at each boundary at least, whatever the number of stages.
pub(super) const MIN_HOSTS: usize = 16;

/// The partial plans up to a boundary whose last host has a known round trip to some next host.
#[derive(Clone, Copy, Default)]
struct KnownPredecessors {
    /// One bit for each partial plan.
    plans: u64,
    /// The best of them, and its cost with the way to the next host, without the next stage.
    best: Option<(Cost, usize)>,
}

/// The cheapest plan of these stages, searched narrowly, then widely.
pub(super) fn search_fewest(request: &PlanRequest, fewest: &StageOptions) -> Option<Plan> {
    search(request, fewest, 1, MAX_STEPS).or_else(|| search(request, fewest, WIDE, RETRY_STEPS))
}

/// The cheapest plan with any number of stages.
pub(super) fn search_all(request: &PlanRequest) -> Option<Plan> {
    let all = stage_options::all(request);
    search(request, &all, 1, RETRY_STEPS).or_else(|| search(request, &all, WIDE, RETRY_STEPS))
}

/// The cheapest plan of these stages within `steps` steps. Each host is tried behind the `width` cheapest partial plans
/// and behind the best partial plan with a known round trip between the two hosts.
pub(super) fn search(request: &PlanRequest, options: &StageOptions, width: usize, steps: usize) -> Option<Plan> {
    let hosts = able(request, options);
    // Plans of a single stage need no round trips between hosts.
    let (single, none) = (options.iter().skip(1).all(Vec::is_empty), ReportedRoundTrips::new());
    let round_trips = RoundTrips::new(&hosts, if single { &none } else { request.round_trips });
    let selection = HostSelection::within(steps, options, &hosts);
    let plans = partial_plans(options, &hosts, &round_trips, width, &selection);
    let token_us = plans.last()?.first()?.cost.1.div_ceil(1000);
    let (mut stages, mut end, mut index) = (Vec::new(), request.layers, 0);
    while end > 0 {
        let plan = plans[end as usize].get(index)?;
        stages.push(PlanStage { node: hosts[plan.host].node, layers: plan.layers, head: end == request.layers });
        (end, index) = (plan.layers.start, plan.base);
    }
    stages.reverse();
    Some(Plan { model: request.model, stages, token_us })
}

/// The candidates, without most of those that can compute none of these stages.
fn able<'a>(request: &PlanRequest<'a>, options: &StageOptions) -> Vec<&'a Candidate> {
    let least = options.iter().flatten().map(|option| option.memory).min().unwrap_or(0);
    let able = |candidate: &&Candidate| {
        let fits = candidate.free_memory >= least || !candidate.loaded.is_empty();
        fits && candidate.layers.iter().any(|range| {
            let mut from = options.iter().take(range.end as usize).skip(range.start as usize);
            from.any(|options| options.first().is_some_and(|shortest| shortest.layers.end <= range.end))
        })
    };
    request.candidates.iter().filter(able).collect()
}

/// The hosts that a search tries: all, unless they are so many that this would take too long.
pub(super) struct HostSelection {
    /// The hosts in the order in which they are tried.
    pub order: Vec<usize>,
    /// Most hosts that are tried at each boundary.
    pub per_boundary: usize,
}

impl HostSelection {
    /// A selection within `steps` steps, counted as if each host could have each stage. Where hosts must be left out,
    /// hosts with memory for the most layers come first, since plans with fewer stages come first; among these the fast
    /// and near hosts.
    pub fn within(steps: usize, options: &StageOptions, hosts: &[&Candidate]) -> Self {
        let stages = options.iter().map(Vec::len).sum::<usize>().max(1);
        let per_boundary = (steps / stages).max(MIN_HOSTS);
        let mut order: Vec<usize> = (0..hosts.len()).collect();
        if order.len() > per_boundary {
            let layer = MeanLayer::of(options);
            order.sort_by_cached_key(|host| layer.rank(hosts[*host]));
        }
        Self { order, per_boundary }
    }
}

/// The mean memory and weight of a layer over all stages.
struct MeanLayer {
    memory: u64,
    weight: u64,
}

impl MeanLayer {
    fn of(options: &StageOptions) -> Self {
        let sum = |of: fn(&StageOption) -> u64| options.iter().flatten().map(of).fold(0, u64::saturating_add);
        let layers = sum(|option| option.layers.len().into()).max(1);
        Self { memory: sum(|option| option.memory) / layers, weight: sum(|option| option.weight) / layers }
    }

    /// The rank of a host, by the longest stage that it may have.
    fn rank(&self, host: &Candidate) -> (Reverse<u64>, u64) {
        let held = host.layers.iter().map(|range| u64::from(range.len())).max().unwrap_or(0);
        let fitting = host.free_memory.checked_div(self.memory).unwrap_or(held);
        let layers = if host.loaded.is_empty() { held.min(fitting) } else { held };
        let compute_ns = self.weight.saturating_mul(layers).saturating_mul(host.ns_per_unit);
        (Reverse(layers), compute_ns.saturating_add(u64::from(host.rtt_us) * 1000))
    }
}

/// The cheapest partial plans up to each boundary.
fn partial_plans(
    options: &StageOptions,
    hosts: &[&Candidate],
    round_trips: &RoundTrips,
    width: usize,
    selection: &HostSelection,
) -> PartialPlans {
    let mut plans: PartialPlans = vec![Vec::new(); options.len() + 1];
    let mut predecessors = vec![KnownPredecessors::default(); hosts.len()];
    for (start, options) in (0..).zip(options) {
        let bases: Vec<BasePlan> = match start {
            0 => vec![BasePlan { index: 0, cost: (0, 0), used: Vec::new() }],
            _ => (0..plans[start as usize].len()).map(|index| base_plan(&plans, start, index)).collect(),
        };
        if bases.is_empty() || options.is_empty() {
            continue;
        }
        predecessors.fill(KnownPredecessors::default());
        find_predecessors(hosts, round_trips, &plans[start as usize], &mut predecessors);
        let next_host = |host: &usize| NextHost::new(*host, hosts[*host], start, options);
        for next in selection.order.iter().filter_map(next_host).take(selection.per_boundary) {
            let (host, rtt_ns) = (next.host, u64::from(next.candidate.rtt_us) * 1000);
            let unknown = bases.iter().filter(|base| predecessors[host].plans & (1 << base.index) == 0);
            for base in unknown.take(width) {
                let used = base.used_of(host);
                extend(base, base.cost.1.saturating_add(rtt_ns), next.without(used), options, &mut plans);
                if used == 0 {
                    // A costlier partial plan leads to no further stage of this host.
                    break;
                }
            }
            if let Some((cost, index)) = predecessors[host].best {
                let (base, travel_ns) = (&bases[index], cost.1.saturating_add(rtt_ns / 2));
                extend(base, travel_ns, next.without(base.used_of(host)), options, &mut plans);
            }
        }
    }
    plans
}

/// Finds, for each host, the partial plans whose last host has a known round trip to it.
fn find_predecessors(
    hosts: &[&Candidate],
    round_trips: &RoundTrips,
    plans: &[PartialPlan],
    predecessors: &mut [KnownPredecessors],
) {
    for (index, plan) in plans.iter().enumerate() {
        // A token that goes on to another host does not come back from here.
        let back_ns = u64::from(hosts[plan.host].rtt_us) * 500;
        for (next, us) in round_trips.known(plan.host) {
            let cost = (plan.cost.0, plan.cost.1.saturating_sub(back_ns).saturating_add(u64::from(us) * 500));
            let known = &mut predecessors[next];
            known.plans |= 1 << index;
            if known.best.is_none_or(|best| cost < best.0) {
                known.best = Some((cost, index));
            }
        }
    }
}

fn base_plan(plans: &PartialPlans, start: u32, index: usize) -> BasePlan {
    let cost = plans[start as usize][index].cost;
    let (mut used, mut end, mut at) = (Vec::new(), start, index);
    while end > 0 {
        let plan = &plans[end as usize][at];
        used.push((plan.host, plan.memory));
        (end, at) = (plan.layers.start, plan.base);
    }
    BasePlan { index, cost, used }
}

/// A host of the next stage, and its range of layers for that stage.
#[derive(Clone, Copy)]
struct NextHost<'a> {
    host: usize,
    candidate: &'a Candidate,
    range: LayerRange,
    /// Its free bytes for the stage.
    free: u64,
}

impl<'a> NextHost<'a> {
    /// `None` where the host can have no stage from `start` on.
    fn new(host: usize, candidate: &'a Candidate, start: u32, options: &[StageOption]) -> Option<Self> {
        let range = candidate.layers.iter().find(|range| range.start <= start && start < range.end)?;
        let next = NextHost { host, candidate, range: *range, free: candidate.free_memory };
        let able = |shortest: &&StageOption| shortest.layers.end <= range.end && (candidate.head || !shortest.head);
        options.first().filter(able).filter(|shortest| next.may_fit(shortest)).map(|_| next)
    }

    /// Whether this stage or a longer one may fit. A loaded stage takes no more memory.
    fn may_fit(&self, option: &StageOption) -> bool {
        option.least <= self.free || !self.candidate.loaded.is_empty()
    }

    /// The same host with `used` bytes less.
    fn without(self, used: u64) -> Self {
        Self { free: self.free.saturating_sub(used), ..self }
    }
}

/// Extends a partial plan by each stage that the host may have. Beside computing, a token travels for `travel_ns`
/// nanoseconds to the host and back to the coordinator.
fn extend(base: &BasePlan, travel_ns: u64, next: NextHost, options: &[StageOption], plans: &mut PartialPlans) {
    let NextHost { host, candidate, range, free } = next;
    for option in options.iter().take_while(|option| option.layers.end <= range.end && next.may_fit(option)) {
        let StageOption { layers, head, .. } = *option;
        let memory = if candidate.loaded.contains(&(layers, head)) { 0 } else { option.memory };
        if (head && !candidate.head) || memory > free {
            continue;
        }
        let compute_ns = option.weight.saturating_mul(candidate.ns_per_unit);
        let cost = (base.cost.0 + 1, travel_ns.saturating_add(compute_ns));
        insert(&mut plans[layers.end as usize], PartialPlan { cost, layers, host, memory, base: base.index });
    }
}

/// Inserts a partial plan where it is among the cheapest.
fn insert(plans: &mut Vec<PartialPlan>, plan: PartialPlan) {
    if plans.len() >= PLANS_PER_BOUNDARY && plans.last().is_some_and(|worst| worst.cost <= plan.cost) {
        return;
    }
    match plans.iter().position(|known| known.host == plan.host) {
        Some(known) if plans[known].cost <= plan.cost => return,
        Some(known) => drop(plans.remove(known)),
        None => plans.truncate(PLANS_PER_BOUNDARY - 1),
    }
    let place = plans.partition_point(|known| known.cost <= plan.cost);
    plans.insert(place, plan);
}
