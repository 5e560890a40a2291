//! The planner: which nodes compute which layers. Pure: facts in, plan out.
//!
//! One machine where it fits, else the fewest stages, and among those the least time for a token: what the hosts compute,
//! by the pace that each has shown, and the way to each of them. A stage never breaks the architecture's cut rules nor its
//! host's free memory.
//!
//! The way from one host to the next is not known to the coordinator; it is at most half of what the two take to the
//! coordinator and back, so that the sum of all round trips bounds the whole way, and is what is counted.

use crate::base::{LayerRange, ModelId, NodeId, missing_ranges};
use crate::engine::CutRules;

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
    /// Bytes that a new stage may take there.
    pub free_memory: u64,
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
    /// Microseconds that a token is predicted to take at most, one answer at a time. As good as what is known: of hosts
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
}

/// Cost of a partial plan, compared in this order: stages, and nanoseconds of a token.
type Cost = (u32, u64);

/// What every candidate would need for a stage: asked once, since there may be thousands of candidates.
#[derive(Clone, Copy)]
struct Need {
    memory: u64,
    weight: u64,
}

#[derive(Clone, Copy)]
struct Best {
    cost: Cost,
    stage: PlanStage,
}

/// Finds the plan, by dynamic programming over layer boundaries: `best[end]` is the cheapest chain for `0..end`.
pub fn plan(request: &PlanRequest) -> Result<Plan, NoPlan> {
    check_holders(request)?;
    let layers = request.layers;
    let mut best: Vec<Option<Best>> = vec![None; layers as usize + 1];
    for start in 0..layers {
        let cost = match (start, best[start as usize]) {
            (0, _) => (0, 0),
            (_, Some(best)) => best.cost,
            (_, None) => continue,
        };
        let needs = needs_from(request, start);
        for candidate in request.candidates {
            extend(candidate, start, &needs, cost, &mut best);
        }
    }
    let token_us = best.last().and_then(|last| last.as_ref()).map_or(0, |last| last.cost.1.div_ceil(1000));
    let mut stages = Vec::new();
    let mut end = layers;
    while end > 0 {
        let Some(step) = best[end as usize] else {
            return Err(NoPlan::NoChain { rules: describe(request.cuts) });
        };
        stages.push(step.stage);
        end = step.stage.layers.start;
    }
    stages.reverse();
    Ok(Plan { model: request.model, stages, token_us })
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

fn extend(candidate: &Candidate, start: u32, needs: &[Option<Need>], cost: Cost, best: &mut [Option<Best>]) {
    let Some(range) = candidate.layers.iter().find(|range| range.start <= start && start < range.end) else {
        return;
    };
    let layers = best.len() as u32 - 1;
    let ends = start + 1..=range.end.min(layers);
    for (end, need) in ends.zip(needs) {
        let head = end == layers;
        let Some(need) = need.filter(|need| need.memory <= candidate.free_memory && (!head || candidate.head)) else {
            continue;
        };
        let takes = need.weight.saturating_mul(candidate.pace_ns).saturating_add(u64::from(candidate.rtt_us) * 1000);
        let cost = (cost.0 + 1, cost.1.saturating_add(takes));
        let slot = &mut best[end as usize];
        if slot.is_none_or(|known| cost < known.cost) {
            let layers = LayerRange::new(start, end);
            *slot = Some(Best { cost, stage: PlanStage { node: candidate.node, layers, head } });
        }
    }
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
        Candidate { node: NodeId([name; 32]), layers, head, rtt_us, pace_ns: 1000, free_memory: FREE }
    }

    fn run(
        layers: u32,
        cuts: &CutRules,
        candidates: &[Candidate],
        per_layer: u64,
    ) -> Result<Vec<(u8, u32, u32)>, NoPlan> {
        let memory = |range: LayerRange, _| u64::from(range.len()) * per_layer;
        let weight = |range: LayerRange, head: bool| u64::from(range.len()) + u64::from(head);
        let model = ModelId([0; 32]);
        let plan = plan(&PlanRequest { model, layers, cuts, candidates, memory: &memory, weight: &weight })?;
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
        let plan = run(12, &CutRules::free(), &hosts, 150).unwrap();
        assert_eq!(plan.len(), 2);
        let whole_only = CutRules { min_layers: 12, ..CutRules::free() };
        assert!(matches!(run(12, &whole_only, &hosts, 150), Err(NoPlan::NoChain { .. })));
        let aligned = CutRules { align: 4, ..CutRules::free() };
        let plan = run(12, &aligned, &hosts, 150).unwrap();
        assert!(plan.iter().all(|stage| stage.1 % 4 == 0), "{plan:?}");
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
                Candidate { node: NodeId([index as u8; 32]), layers, head: *head, rtt_us: *rtt, pace_ns: 1000, free_memory: FREE }
            }).collect();
            let Ok(plan) = run(layers, &cuts, &candidates, 100) else { return Ok(()) };
            let mut next = 0;
            for (index, (node, start, end)) in plan.iter().enumerate() {
                prop_assert_eq!(*start, next);
                let range = LayerRange::new(*start, *end);
                prop_assert!(cuts.refuses(range).is_none());
                prop_assert!(u64::from(range.len()) * 100 <= FREE);
                let host = &candidates[*node as usize];
                prop_assert!(host.layers.iter().any(|held| held.covers(range)));
                prop_assert!(index + 1 < plan.len() || host.head);
                next = *end;
            }
            prop_assert_eq!(next, layers);
        }
    }
}
