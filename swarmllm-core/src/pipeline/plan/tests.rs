//! Plans of small swarms, and properties of all plans.

use proptest::prelude::*;

use super::search::{HostSelection, MAX_STEPS, MIN_HOSTS, search, search_all};
use super::*;
use crate::base::{ModelId, NodeId};

const FREE: u64 = 1000;

fn candidate(name: u8, layers: &[(u32, u32)], head: bool, rtt_us: u32) -> Candidate {
    let layers = layers.iter().map(|(start, end)| LayerRange::new(*start, *end)).collect();
    Candidate {
        node: NodeId([name; 32]),
        layers,
        head,
        rtt_us,
        ns_per_unit: 1000,
        free_memory: FREE,
        loaded: Vec::new(),
    }
}

fn run_with(
    layers: u32,
    cuts: &CutRules,
    candidates: &[Candidate],
    per_layer: u64,
    round_trips: &ReportedRoundTrips,
) -> Result<Plan, NoPlan> {
    let memory = |range: LayerRange, _| u64::from(range.len()) * per_layer;
    let weight = |range: LayerRange, head: bool| u64::from(range.len()) + u64::from(head);
    let model = ModelId([0; 32]);
    plan(&PlanRequest { model, layers, cuts, candidates, memory: &memory, weight: &weight, round_trips })
}

fn run(layers: u32, cuts: &CutRules, candidates: &[Candidate], per_layer: u64) -> Result<Vec<(u8, u32, u32)>, NoPlan> {
    let plan = run_with(layers, cuts, candidates, per_layer, &ReportedRoundTrips::new())?;
    Ok(plan.stages.iter().map(|stage| (stage.node.0[0], stage.layers.start, stage.layers.end)).collect())
}

#[test]
fn a_single_machine_is_used_where_the_model_fits() {
    let all = candidate(9, &[(0, 12)], true, 5_000);
    let near = candidate(1, &[(0, 6)], false, 10);
    let rest = candidate(2, &[(6, 12)], true, 10);
    assert_eq!(run(12, &CutRules::any(), &[near, rest, all], 1), Ok(vec![(9, 0, 12)]));
}

#[test]
fn a_plan_has_the_fewest_stages_then_the_nearest_hosts() {
    let hosts = [
        candidate(1, &[(0, 5)], false, 10),
        candidate(2, &[(0, 5)], false, 5),
        candidate(3, &[(4, 9)], false, 10),
        candidate(4, &[(8, 12)], true, 10),
    ];
    let plan = run(12, &CutRules::any(), &hosts, 1).unwrap();
    assert_eq!(plan.iter().map(|stage| stage.0).collect::<Vec<_>>(), [2, 3, 4]);
}

#[test]
fn among_equal_stage_counts_fast_and_near_hosts_win() {
    let host = |name, ns_per_unit, rtt_us| Candidate { ns_per_unit, ..candidate(name, &[(0, 12)], true, rtt_us) };
    let chosen = |hosts: &[Candidate]| {
        let (memory, weight) = (|_, _| 0, |range: LayerRange, _| u64::from(range.len()) * 10);
        let (model, cuts) = (ModelId([0; 32]), CutRules::any());
        let plan = plan(&PlanRequest {
            model,
            layers: 12,
            cuts: &cuts,
            candidates: hosts,
            memory: &memory,
            weight: &weight,
            round_trips: &ReportedRoundTrips::new(),
        });
        let plan = plan.unwrap();
        (plan.stages[0].node.0[0], plan.token_us)
    };
    // 120 units of weight: 50 us each are 6 ms, 20 us each are 2.4 ms.
    let (slow, quick) = (host(1, 50_000, 1_000), host(2, 20_000, 2_000));
    assert_eq!(chosen(&[slow.clone(), quick.clone()]), (2, 4_400));
    assert_eq!(chosen(&[slow, Candidate { rtt_us: 9_000, ..quick }]), (1, 7_000), "too far to be fast");
}

#[test]
fn of_two_equal_pairs_of_hosts_the_closer_pair_wins() {
    let first = |name| candidate(name, &[(0, 6)], false, 1000);
    let second = |name| candidate(name, &[(6, 12)], true, 1000);
    let hosts = [first(1), first(2), second(3), second(4)];
    let chosen = |reported: &[(u8, u8, u32)]| {
        let lists: Vec<_> = reported.iter().map(|(from, to, us)| (*from, [(NodeId([*to; 32]), *us)])).collect();
        let reported: ReportedRoundTrips = lists.iter().map(|(from, list)| (NodeId([*from; 32]), &list[..])).collect();
        let plan = run_with(12, &CutRules::any(), &hosts, 1, &reported).unwrap();
        (plan.stages.iter().map(|stage| stage.node.0[0]).collect::<Vec<_>>(), plan.token_us)
    };
    // 13 units of weight take 13 us. Via the coordinator a token travels for both round trips.
    assert_eq!(chosen(&[]), (vec![1, 3], 2013));
    assert_eq!(chosen(&[(2, 4, 100)]), (vec![2, 4], 1063), "one report is enough");
    assert_eq!(chosen(&[(2, 4, 100), (4, 2, 9000)]), (vec![1, 3], 2013), "the longer report counts");
    assert_eq!(chosen(&[(1, 3, 9000), (2, 3, 2200)]), (vec![1, 4], 2013), "a slow connection is avoided");
}

#[test]
fn the_plan_takes_the_least_time_among_plans_of_the_fewest_stages() {
    // Three stages with three hosts each, and pseudorandom round trips between them.
    let hosts: Vec<Candidate> = (0..9)
        .map(|name| {
            let start = u32::from(name / 3) * 4;
            candidate(name + 1, &[(start, start + 4)], name >= 6, 300 + u32::from(name) * 37 % 100)
        })
        .collect();
    let us = |a: u8, b: u8| (u32::from(a.min(b)) * 7919 + u32::from(a.max(b)) * 104_729) % 900 + 1;
    let lists: Vec<Vec<(NodeId, u32)>> =
        (1..10).map(|a| (a + 1..10).map(|b| (NodeId([b; 32]), us(a, b))).collect()).collect();
    let reported = lists.iter().zip(1..).map(|(list, name)| (NodeId([name; 32]), &list[..])).collect();
    let found = run_with(12, &CutRules::any(), &hosts, 1, &reported).unwrap();
    let rtt = |name: u8| hosts[usize::from(name) - 1].rtt_us;
    let all = (1..4).flat_map(|a| (4..7).flat_map(move |b| (7..10).map(move |c| (a, b, c))));
    let halves = all.map(|(a, b, c)| rtt(a) + us(a, b) + us(b, c) + rtt(c)).min().unwrap();
    assert_eq!(found.token_us, (u64::from(halves) * 500 + 13_000).div_ceil(1000));
}

#[test]
fn unheld_layers_are_named() {
    let hosts = [candidate(1, &[(0, 5)], false, 0), candidate(2, &[(7, 12)], true, 0)];
    let missing = NoPlan::NoHolder { layers: vec![LayerRange::new(5, 7)] };
    assert_eq!(run(12, &CutRules::any(), &hosts, 1), Err(missing));
    let headless = [candidate(1, &[(0, 12)], false, 0)];
    assert_eq!(run(12, &CutRules::any(), &headless, 1), Err(NoPlan::NoHead { last_layer: 11 }));
    assert!(matches!(run(12, &CutRules::any(), &[], 1), Err(NoPlan::NoHolder { .. })));
}

#[test]
fn memory_and_cut_rules_are_respected() {
    let hosts = [candidate(1, &[(0, 12)], true, 0), candidate(2, &[(0, 12)], true, 9)];
    // 12 layers of 150 exceed 1,000 bytes: six on each host is the only plan of two stages with at most six layers.
    assert_eq!(run(12, &CutRules::any(), &hosts, 150), Ok(vec![(2, 0, 6), (1, 6, 12)]));
    let whole_only = CutRules { min_layers: 12, ..CutRules::any() };
    let refused = run(12, &whole_only, &hosts, 150);
    assert_eq!(refused, Err(NoPlan::NoMemory { whole: Bytes(1800), free: Bytes(FREE) }), "memory is short");
    let halves = [candidate(1, &[(0, 6)], false, 0), candidate(2, &[(6, 12)], true, 0)];
    assert!(matches!(run(12, &whole_only, &halves, 1), Err(NoPlan::NoChain { .. })), "more memory would not help");
    let aligned = CutRules { align: 4, ..CutRules::any() };
    let plan = run(12, &aligned, &hosts, 125).unwrap();
    assert!(plan.iter().all(|stage| stage.1 % 4 == 0), "{plan:?}");
}

#[test]
fn a_hosts_stages_fit_into_its_memory_together() {
    let near = |layers: &[(u32, u32)]| Candidate { free_memory: 800, ..candidate(1, layers, true, 0) };
    let far = Candidate { free_memory: 400, ..candidate(2, &[(0, 4)], false, 9) };
    // The cheapest partial plan up to layer 4 uses the near host, which has no memory for the remainder.
    assert_eq!(run(12, &CutRules::any(), &[near(&[(0, 12)]), far.clone()], 100), Ok(vec![(2, 0, 4), (1, 4, 12)]));
    assert!(matches!(run(12, &CutRules::any(), &[near(&[(0, 12)])], 100), Err(NoPlan::NoMemory { .. })));
    let apart = [near(&[(0, 4), (8, 12)]), candidate(2, &[(4, 8)], false, 9)];
    assert_eq!(run(12, &CutRules::any(), &apart, 100), Ok(vec![(1, 0, 4), (2, 4, 8), (1, 8, 12)]));
    assert!(run(12, &CutRules::any(), &apart, 101).is_err());
}

#[test]
fn a_plan_has_more_stages_where_the_fewest_do_not_fit() {
    // Two stages of six layers are the fewest, and the only host that holds either has memory for one of them.
    let large = Candidate { free_memory: 600, ..candidate(1, &[(0, 12)], true, 9) };
    let small = |name, start| Candidate { free_memory: 300, ..candidate(name, &[(start, start + 3)], false, 1) };
    let hosts = [large, small(2, 0), small(3, 3)];
    assert_eq!(run(12, &CutRules::any(), &hosts, 100), Ok(vec![(2, 0, 3), (3, 3, 6), (1, 6, 12)]));
}

#[test]
fn a_loaded_stage_takes_no_more_memory() {
    let full = Candidate { free_memory: 0, ..candidate(1, &[(0, 12)], true, 0) };
    assert!(run(12, &CutRules::any(), std::slice::from_ref(&full), 100).is_err());
    let loaded = Candidate { loaded: vec![(LayerRange::new(0, 12), true)], ..full };
    assert_eq!(run(12, &CutRules::any(), &[loaded], 100), Ok(vec![(1, 0, 12)]));
}

#[test]
fn a_bounded_search_tries_the_best_hosts() {
    let small = |name| Candidate { free_memory: 300, ..candidate(name, &[(0, 12)], true, 9) };
    let (near, large) = (Candidate { rtt_us: 1, ..small(201) }, candidate(202, &[(0, 12)], true, 500));
    // The fastest host has memory for two layers, the small ones for three.
    let quick = Candidate { free_memory: 200, ns_per_unit: 0, ..candidate(203, &[(0, 12)], true, 1) };
    let hosts: Vec<Candidate> = (1..=200).map(small).chain([near, large, quick]).collect();
    let (memory, weight) = (|range: LayerRange, _| u64::from(range.len()) * 100, |_, _| 1);
    let (model, cuts, round_trips) = (ModelId([0; 32]), &CutRules::any(), &ReportedRoundTrips::new());
    let candidates = &hosts[..];
    let request = PlanRequest { model, layers: 12, cuts, candidates, memory: &memory, weight: &weight, round_trips };
    let all = stage_options::all(&request);
    let named: Vec<&Candidate> = hosts.iter().collect();
    // There are 78 legal stages.
    let selection = |steps| HostSelection::within(steps, &all, &named);
    assert_eq!((selection(78 * 50).per_boundary, selection(78).per_boundary), (50, MIN_HOSTS));
    assert_eq!(selection(78 * 50).order[..3], [201, 200, 0], "the large host, then the near one of the others");
    assert_eq!(selection(78 * 203).order, (0..203).collect::<Vec<_>>(), "all, in their order");
    let found = |steps| search(&request, &all, 1, steps).unwrap().stages.iter().map(|stage| stage.node.0[0]).collect();
    assert_eq!((found(78 * 203), found(78)), (vec![203, 202], vec![201, 202]), "the last host is not tried");
}

#[test]
fn headless_hosts_do_not_use_up_the_last_stages_tries() {
    let headless = |name| candidate(name, &[(0, 12)], false, 1);
    let last = Candidate { free_memory: 600, ..candidate(201, &[(0, 12)], true, 500) };
    let hosts: Vec<Candidate> = (1..=200).map(headless).chain([last]).collect();
    let (memory, weight) = (|range: LayerRange, _| u64::from(range.len()) * 100, |_, _| 1);
    let (model, cuts, round_trips) = (ModelId([0; 32]), &CutRules::any(), &ReportedRoundTrips::new());
    let candidates = &hosts[..];
    let request = PlanRequest { model, layers: 12, cuts, candidates, memory: &memory, weight: &weight, round_trips };
    let found = search(&request, &stage_options::fewest(&request), 1, 1).unwrap();
    assert_eq!(
        found.stages.last().map(|stage| stage.node.0[0]),
        Some(201),
        "the last of all hosts, 16 of which are tried"
    );
}

/// A generated host, before the model's length is known.
#[derive(Debug, Clone)]
struct GeneratedHost {
    ranges: Vec<(u32, u32)>,
    head: bool,
    rtt_us: u32,
    ns_per_unit: u64,
    free_memory: u64,
    loaded: Option<(u32, u32, bool)>,
}

impl GeneratedHost {
    fn named(&self, name: u8, layers: u32) -> Candidate {
        let held = self.ranges.iter().flat_map(|(start, len)| *start..start + len).filter(|layer| *layer < layers);
        let loaded = self.loaded.map(|(start, len, head)| (LayerRange::new(start, start + len), head));
        Candidate {
            node: NodeId([name; 32]),
            layers: crate::base::merge_ranges(held.collect()),
            head: self.head,
            rtt_us: self.rtt_us,
            ns_per_unit: self.ns_per_unit,
            free_memory: self.free_memory,
            loaded: loaded.into_iter().collect(),
        }
    }
}

/// Values from small ranges, so that many plans cost the same.
fn generated_host() -> impl Strategy<Value = GeneratedHost> {
    let ranges = proptest::collection::vec((0u32..12, 1u32..12), 1..3);
    let loaded = proptest::option::of((0u32..12, 1u32..12, any::<bool>()));
    let rest = (any::<bool>(), 0u32..20, 0u64..4000, 0u64..13, loaded);
    (ranges, rest).prop_map(|(ranges, (head, rtt_us, ns_per_unit, free_memory, loaded))| GeneratedHost {
        ranges,
        head,
        rtt_us,
        ns_per_unit,
        free_memory,
        loaded,
    })
}

proptest! {
    #[test]
    fn a_plan_is_a_chain_of_legal_stages_on_their_holders(
        layers in 1u32..16,
        hosts in proptest::collection::vec((proptest::collection::vec((0u32..16, 1u32..16), 1..3), any::<bool>(), 0u32..100), 0..6),
        align in 1u32..4,
    ) {
        let cuts = CutRules { align, ..CutRules::any() };
        let candidates: Vec<Candidate> = hosts.iter().enumerate().map(|(index, (ranges, head, rtt))| {
            let held = ranges.iter().flat_map(|(start, len)| *start..start + len).filter(|layer| *layer < layers);
            let layers = crate::base::merge_ranges(held.collect());
            Candidate { node: NodeId([index as u8; 32]), layers, head: *head, rtt_us: *rtt, ns_per_unit: 1000, free_memory: FREE, loaded: Vec::new() }
        }).collect();
        let Ok(plan) = run(layers, &cuts, &candidates, 100) else { return Ok(()) };
        let mut next = 0;
        let mut taken = vec![0; hosts.len()];
        for (index, (node, start, end)) in plan.iter().enumerate() {
            prop_assert_eq!(*start, next);
            let range = LayerRange::new(*start, *end);
            prop_assert!(cuts.violation(range).is_none());
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
        hosts in proptest::collection::vec(generated_host(), 1..9),
        reported in proptest::collection::vec((0usize..9, 0usize..9, 0u32..40), 0..20),
        (align, min_layers, forbidden) in (1u32..3, 1u32..3, 1u32..20),
        windowed in proptest::option::of(proptest::collection::vec(0u32..12, 1..4)),
    ) {
        let cuts = CutRules { align, min_layers, forbidden: vec![forbidden], must_contain: windowed.unwrap_or_default() };
        let named = |(host, name): (&GeneratedHost, u8)| host.named(name, layers);
        let candidates: Vec<Candidate> = hosts.iter().zip(1..).map(named).collect();
        let node = |index: usize| NodeId([index as u8 + 1; 32]);
        let from = |from: usize| reported.iter().filter(|of| of.0 == from).map(|(_, to, us)| (node(*to), *us)).collect();
        let lists: Vec<Vec<(NodeId, u32)>> = (0..9).map(from).collect();
        let reported = lists.iter().zip(0..).map(|(list, index)| (node(index), &list[..])).collect();
        let (memory, weight) = (|range: LayerRange, _| range.len().into(), |range: LayerRange, _| range.len().into());
        let (model, cuts, candidates, round_trips) = (ModelId([0; 32]), &cuts, &candidates, &reported);
        let request = PlanRequest { model, layers, cuts, candidates, memory: &memory, weight: &weight, round_trips };
        let (found, of_all) = (plan(&request).ok(), search_all(&request));
        prop_assert_eq!(found.is_some(), of_all.is_some());
        let cost = |plan: &Plan| (plan.stages.len(), plan.token_us);
        prop_assert!(found.as_ref().map(cost) <= of_all.as_ref().map(cost), "{found:?}, {of_all:?}");
        if let Some(uncrowded) = search(&request, &stage_options::fewest(&request), 1, MAX_STEPS) {
            prop_assert_eq!(Some(&uncrowded), of_all.as_ref());
            prop_assert_eq!(found, of_all);
        }
    }
}
