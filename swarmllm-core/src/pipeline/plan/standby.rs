//! Chooses the hosts of a plan's hot standbys. Pure.

use std::collections::HashMap;

use crate::base::NodeId;
use crate::pipeline::plan::{Candidate, PlanRequest, PlanStage};

/// The best standby host of each stage of a plan that has memory for it: hosts without a stage come first, then fast
/// and near hosts.
pub fn choose_standbys(request: &PlanRequest, stages: &[PlanStage]) -> Vec<Option<NodeId>> {
    let need = |stage: &PlanStage| (request.memory)(stage.layers, stage.head);
    let is_loaded = |host: &Candidate, stage: &PlanStage| host.loaded.contains(&(stage.layers, stage.head));
    let host_of = |node: NodeId| request.candidates.iter().find(|candidate| candidate.node == node);
    let mut used: HashMap<NodeId, u64> = HashMap::new();
    for stage in stages {
        let loaded = host_of(stage.node).is_some_and(|host| is_loaded(host, stage));
        *used.entry(stage.node).or_default() += if loaded { 0 } else { need(stage) };
    }
    let mut chosen = Vec::with_capacity(stages.len());
    for stage in stages {
        let weight = (request.weight)(stage.layers, stage.head);
        let fits = |host: &Candidate| {
            let free = host.free_memory.saturating_sub(used.get(&host.node).copied().unwrap_or(0));
            is_loaded(host, stage) || free >= need(stage)
        };
        let holds = |host: &&Candidate| host.node != stage.node && host.holds(stage.layers, stage.head) && fits(host);
        let rank = |host: &&Candidate| {
            let time = weight.saturating_mul(host.ns_per_unit).saturating_add(u64::from(host.rtt_us) * 1000);
            (used.contains_key(&host.node), time, host.node)
        };
        let best = request.candidates.iter().filter(holds).min_by_key(rank);
        if let Some(host) = best {
            *used.entry(host.node).or_default() += if is_loaded(host, stage) { 0 } else { need(stage) };
        }
        chosen.push(best.map(|host| host.node));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{LayerRange, ModelId};
    use crate::engine::CutRules;
    use crate::pipeline::plan::ReportedRoundTrips;

    fn host(name: u8, layers: (u32, u32), head: bool) -> Candidate {
        Candidate {
            node: NodeId([name; 32]),
            layers: vec![LayerRange::new(layers.0, layers.1)],
            head,
            rtt_us: u32::from(name),
            ns_per_unit: 1000,
            free_memory: 10,
            loaded: Vec::new(),
        }
    }

    fn chosen(candidates: &[Candidate], stages: &[(u8, u32, u32)]) -> Vec<Option<u8>> {
        let (memory, weight) = (|layers: LayerRange, _| u64::from(layers.len()), |_, _| 1);
        let (model, cuts) = (ModelId([0; 32]), CutRules::any());
        let round_trips = &ReportedRoundTrips::new();
        let request =
            PlanRequest { model, layers: 8, cuts: &cuts, candidates, memory: &memory, weight: &weight, round_trips };
        let stage = |(name, start, end): &(u8, u32, u32)| PlanStage {
            node: NodeId([*name; 32]),
            layers: LayerRange::new(*start, *end),
            head: *end == 8,
        };
        let stages: Vec<PlanStage> = stages.iter().map(stage).collect();
        choose_standbys(&request, &stages).into_iter().map(|node| node.map(|node| node.0[0])).collect()
    }

    #[test]
    fn each_stage_gets_another_host_that_holds_it_and_has_memory() {
        let all = [host(1, (0, 4), false), host(2, (4, 8), true), host(3, (0, 8), true), host(4, (0, 8), false)];
        assert_eq!(chosen(&all, &[(1, 0, 4), (2, 4, 8)]), [Some(3), Some(3)], "the fourth host has no head");
        assert_eq!(chosen(&all[..2], &[(1, 0, 4), (2, 4, 8)]), [None, None]);
        let small = Candidate { free_memory: 5, ..host(3, (0, 8), true) };
        assert_eq!(chosen(&[small], &[(1, 0, 4), (2, 4, 8)]), [Some(3), None], "two stages do not fit");
        let loaded = Candidate { free_memory: 0, loaded: vec![(LayerRange::new(4, 8), true)], ..host(3, (0, 8), true) };
        assert_eq!(chosen(&[loaded], &[(1, 0, 4), (2, 4, 8)]), [None, Some(3)]);
    }

    #[test]
    fn a_host_with_a_stage_is_a_standby_only_where_no_other_can_be() {
        let all = [host(1, (0, 8), true), host(2, (0, 8), true), host(9, (0, 4), false)];
        assert_eq!(chosen(&all, &[(1, 0, 4), (2, 4, 8)]), [Some(9), Some(1)]);
    }
}
