//! Decides whose idle stages are unloaded where sessions use all memory. Pure.
//!
//! The coordinators that have memory or request it have equal shares of the budget. A stage counts in equal parts for
//! the coordinators of its sessions. Where memory is short, a coordinator with more than its share loses idle stages
//! until it has no more than its share. A coordinator with less loses them later, and only to a coordinator without
//! memory. A stage is idle when all of its sessions are. A lone coordinator may use the whole budget.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::base::NodeId;
use crate::pipeline::host::slots::{EVICT_IDLE, EVICT_LAST};

/// A stage that sessions use.
#[derive(Debug, Clone)]
pub(super) struct StageUse {
    /// Bytes that it takes.
    pub memory: u64,
    /// The coordinators of its sessions, each once.
    pub coordinators: Vec<NodeId>,
    /// Since when all of its sessions are idle; nothing where one is not.
    pub idle: Option<Instant>,
}

/// How a stage gets its memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum MemoryDecision {
    /// By unloading these stages, by index.
    Evict(Vec<usize>),
    /// Not before then, unless something changes.
    RetryAt(Instant),
    /// Not at all, unless something changes.
    Refuse,
}

/// Decides which of the stages are unloaded to free `bytes` bytes for this coordinator.
pub(super) fn decide(uses: &[StageUse], budget: u64, coordinator: NodeId, bytes: u64, now: Instant) -> MemoryDecision {
    let mut order = EvictionOrder::new(uses, budget, Some(coordinator));
    let (mut evicted, mut free, mut at) = (Vec::new(), 0_u64, now);
    while free < bytes {
        let Some((due, index)) = order.next(now) else { return MemoryDecision::Refuse };
        free = free.saturating_add(uses[index].memory);
        at = at.max(due);
        evicted.push(index);
    }
    if at > now { MemoryDecision::RetryAt(at) } else { MemoryDecision::Evict(evicted) }
}

/// Bytes of these stages that a coordinator without memory here would get now.
pub(super) fn reclaimable(uses: &[StageUse], budget: u64, now: Instant) -> u64 {
    let mut order = EvictionOrder::new(uses, budget, None);
    let evicted = std::iter::from_fn(|| order.next(now).filter(|(due, _)| *due <= now));
    evicted.map(|(_, index)| uses[index].memory).sum()
}

/// Bytes that each coordinator has in these stages.
pub(super) fn memory_by_coordinator(uses: &[StageUse]) -> BTreeMap<NodeId, u64> {
    let mut memory = BTreeMap::new();
    for stage in uses {
        let part = part_of(stage);
        stage.coordinators.iter().for_each(|coordinator| *memory.entry(*coordinator).or_default() += part);
    }
    memory
}

/// Bytes that a stage counts for each of its coordinators.
fn part_of(stage: &StageUse) -> u64 {
    stage.memory / (stage.coordinators.len() as u64).max(1)
}

/// The order in which stages are evicted for one coordinator.
struct EvictionOrder<'a> {
    uses: &'a [StageUse],
    /// Stages that are not evicted yet.
    remaining: Vec<usize>,
    /// Bytes of each coordinator in these.
    memory: BTreeMap<NodeId, u64>,
    share: u64,
    /// The coordinator that requests memory; nothing stands for any coordinator without memory.
    requester: Option<NodeId>,
    has_none: bool,
}

impl<'a> EvictionOrder<'a> {
    fn new(uses: &'a [StageUse], budget: u64, requester: Option<NodeId>) -> Self {
        let memory = memory_by_coordinator(uses);
        let has_none = requester.is_none_or(|requester| !memory.contains_key(&requester));
        let share = budget / (memory.len() as u64 + u64::from(has_none)).max(1);
        Self { uses, remaining: (0..uses.len()).collect(), memory, share, requester, has_none }
    }

    /// The stage that is evicted next, and when: of the stages that may be evicted now, a stage of the coordinator with
    /// the most memory, and of these the stage that is idle longest.
    fn next(&mut self, now: Instant) -> Option<(Instant, usize)> {
        let rank = |index: &usize| {
            let stage = &self.uses[*index];
            let most = stage.coordinators.iter().map(|coordinator| self.memory_of(coordinator)).max();
            Some((self.due(stage)?.max(now), Reverse(most), stage.idle, *index))
        };
        let (due, _, _, index) = self.remaining.iter().filter_map(rank).min()?;
        self.remaining.retain(|other| *other != index);
        let (stage, part) = (&self.uses[index], part_of(&self.uses[index]));
        for coordinator in &stage.coordinators {
            self.memory.entry(*coordinator).and_modify(|memory| *memory = memory.saturating_sub(part));
        }
        Some((due, index))
    }

    fn memory_of(&self, coordinator: &NodeId) -> u64 {
        self.memory.get(coordinator).copied().unwrap_or(0)
    }

    /// When a stage may be evicted; nothing where it may not.
    fn due(&self, stage: &StageUse) -> Option<Instant> {
        let idle = stage.idle?;
        let own = stage.coordinators.iter().any(|coordinator| self.requester == Some(*coordinator));
        let all_over = stage.coordinators.iter().all(|coordinator| self.memory_of(coordinator) > self.share);
        match all_over {
            _ if own => None,
            true => Some(idle + EVICT_IDLE),
            false if self.has_none => Some(idle + EVICT_LAST),
            false => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn node(name: u8) -> NodeId {
        NodeId([name; 32])
    }

    /// Stages as (bytes, coordinators, idle seconds).
    fn uses(now: Instant, stages: &[(u64, &[u8], Option<u32>)]) -> Vec<StageUse> {
        let stage = |(memory, coordinators, idle): &(u64, &[u8], Option<u32>)| StageUse {
            memory: *memory,
            coordinators: coordinators.iter().map(|name| node(*name)).collect(),
            idle: idle.map(|seconds| now - SECOND * seconds),
        };
        stages.iter().map(stage).collect()
    }

    /// The decision for coordinator 9 within a budget of 100 bytes.
    fn decision(now: Instant, stages: &[(u64, &[u8], Option<u32>)], bytes: u64) -> MemoryDecision {
        decide(&uses(now, stages), 100, node(9), bytes, now)
    }

    fn now() -> Instant {
        Instant::now() + SECOND * 1000
    }

    #[test]
    fn a_coordinator_beyond_its_share_loses_its_longest_idle_stages_first() {
        let now = now();
        let stages: &[(u64, &[u8], Option<u32>)] =
            &[(30, &[1], Some(11)), (30, &[1], Some(12)), (30, &[1], None), (10, &[2], Some(50))];
        assert_eq!(decision(now, stages, 20), MemoryDecision::Evict(vec![1]));
        assert_eq!(decision(now, stages, 60), MemoryDecision::Evict(vec![1, 0]));
        let later = now - SECOND * 50 + EVICT_LAST;
        assert_eq!(
            decision(now, stages, 70),
            MemoryDecision::RetryAt(later),
            "a coordinator within its share keeps its stages for longer"
        );
        assert_eq!(decision(now, stages, 71), MemoryDecision::Refuse, "a stage that computes stays");
    }

    #[test]
    fn a_share_is_lost_only_to_a_coordinator_without_memory() {
        let now = now();
        let long = EVICT_LAST.as_secs() as u32;
        assert_eq!(decision(now, &[(50, &[1], Some(long))], 50), MemoryDecision::Evict(vec![0]));
        assert_eq!(decision(now, &[(50, &[1], Some(long - 1))], 50), MemoryDecision::RetryAt(now + SECOND));
        assert_eq!(decision(now, &[(50, &[1], Some(long)), (10, &[9], None)], 50), MemoryDecision::Refuse);
        assert_eq!(
            decision(now, &[(60, &[1], Some(20)), (10, &[9], None)], 60),
            MemoryDecision::Evict(vec![0]),
            "more than a share"
        );
    }

    #[test]
    fn only_memory_beyond_the_share_is_lost_before_the_long_time() {
        let now = now();
        let stages: &[(u64, &[u8], Option<u32>)] =
            &[(25, &[1], Some(20)), (25, &[1], Some(19)), (25, &[1], Some(18)), (25, &[1], Some(17))];
        assert_eq!(decision(now, stages, 50), MemoryDecision::Evict(vec![0, 1]));
        assert_eq!(decision(now, stages, 75), MemoryDecision::RetryAt(now - SECOND * 18 + EVICT_LAST));
    }

    #[test]
    fn a_shared_stage_stays_while_a_coordinator_is_within_its_share() {
        let now = now();
        let shared: &[(u64, &[u8], Option<u32>)] = &[(60, &[1, 2], Some(20)), (40, &[1], Some(15))];
        assert_eq!(
            decision(now, shared, 30),
            MemoryDecision::Evict(vec![1]),
            "70 bytes are the first's, 30 the second's"
        );
        assert_eq!(decision(now, shared, 50), MemoryDecision::RetryAt(now - SECOND * 20 + EVICT_LAST));
        assert_eq!(
            decision(now, &[(60, &[1, 9], Some(99))], 50),
            MemoryDecision::Refuse,
            "nor is the requester's own stage evicted"
        );
    }

    #[test]
    fn memory_that_a_newcomer_would_get_is_reclaimable() {
        let now = now();
        let reclaimable = |stages| reclaimable(&uses(now, stages), 100, now);
        assert_eq!(reclaimable(&[(40, &[1], Some(11)), (40, &[1], Some(12)), (20, &[2], Some(13))]), 80);
        assert_eq!(reclaimable(&[(40, &[1], Some(9)), (40, &[1], None)]), 0);
        assert_eq!(reclaimable(&[(40, &[1], Some(61)), (40, &[1], Some(70))]), 80);
        assert_eq!(decide(&uses(now, &[(100, &[1], Some(99))]), 100, node(1), 1, now), MemoryDecision::Refuse);
    }
}
