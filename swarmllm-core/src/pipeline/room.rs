//! Memory for a stage: whose idle stages are unloaded where sessions have all memory. Pure.
//!
//! The coordinators that have memory or want some have equal shares of the budget; a stage counts in equal parts for the
//! coordinators of its sessions. Where memory is short, a coordinator that has more than its share loses idle stages until
//! it has no more than that. One that has less loses them later, and only to a coordinator that has nothing. A stage is idle
//! when all of its sessions are. A coordinator that is alone may use the whole budget.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::base::NodeId;
use crate::pipeline::slots::{EVICT_IDLE, EVICT_LAST};

/// A stage that sessions use.
#[derive(Debug, Clone)]
pub(super) struct StageUse {
    /// Bytes that it takes.
    pub memory: u64,
    /// The coordinators of its sessions, each once.
    pub coordinators: Vec<NodeId>,
    /// Since when all of its sessions are idle; nothing where they are not.
    pub idle: Option<Instant>,
}

/// How there is room for a stage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Room {
    /// When these stages are unloaded.
    Evict(Vec<usize>),
    /// Not before then, if nothing else changes.
    Later(Instant),
    /// Not as things are.
    Never,
}

/// Which of the stages make room of so many bytes for this coordinator.
pub(super) fn make_room(uses: &[StageUse], budget: u64, coordinator: NodeId, bytes: u64, now: Instant) -> Room {
    let mut rivals = Rivals::new(uses, budget, Some(coordinator));
    let (mut evicted, mut free, mut at) = (Vec::new(), 0_u64, now);
    while free < bytes {
        let Some((due, index)) = rivals.next(now) else { return Room::Never };
        free = free.saturating_add(uses[index].memory);
        at = at.max(due);
        evicted.push(index);
    }
    if at > now { Room::Later(at) } else { Room::Evict(evicted) }
}

/// Bytes of these stages that a coordinator which has nothing here would get now.
pub(super) fn spare(uses: &[StageUse], budget: u64, now: Instant) -> u64 {
    let mut rivals = Rivals::new(uses, budget, None);
    let evicted = std::iter::from_fn(|| rivals.next(now).filter(|(due, _)| *due <= now));
    evicted.map(|(_, index)| uses[index].memory).sum()
}

/// Bytes that each coordinator has in these stages.
pub(super) fn held(uses: &[StageUse]) -> BTreeMap<NodeId, u64> {
    let mut held = BTreeMap::new();
    for stage in uses {
        let part = part_of(stage);
        stage.coordinators.iter().for_each(|coordinator| *held.entry(*coordinator).or_default() += part);
    }
    held
}

fn part_of(stage: &StageUse) -> u64 {
    stage.memory / (stage.coordinators.len() as u64).max(1)
}

/// The coordinators that have memory, as seen by one that wants some.
struct Rivals<'a> {
    uses: &'a [StageUse],
    /// Stages that are not evicted.
    left: Vec<usize>,
    held: BTreeMap<NodeId, u64>,
    share: u64,
    /// Who wants memory; nothing: somebody who has none.
    coordinator: Option<NodeId>,
    /// Whether it has none.
    has_none: bool,
}

impl<'a> Rivals<'a> {
    fn new(uses: &'a [StageUse], budget: u64, coordinator: Option<NodeId>) -> Self {
        let held = held(uses);
        let has_none = coordinator.is_none_or(|coordinator| !held.contains_key(&coordinator));
        let share = budget / (held.len() as u64 + u64::from(has_none)).max(1);
        Self { uses, left: (0..uses.len()).collect(), held, share, coordinator, has_none }
    }

    /// The stage that is evicted next, and when: of those that may be now, one of the coordinator that has the most, and of
    /// those the one that is idle longest.
    fn next(&mut self, now: Instant) -> Option<(Instant, usize)> {
        let rank = |index: &usize| {
            let stage = &self.uses[*index];
            let most = stage.coordinators.iter().map(|coordinator| self.held_by(coordinator)).max();
            Some((self.due(stage)?.max(now), Reverse(most), stage.idle, *index))
        };
        let (due, _, _, index) = self.left.iter().filter_map(rank).min()?;
        self.left.retain(|left| *left != index);
        let (stage, part) = (&self.uses[index], part_of(&self.uses[index]));
        for coordinator in &stage.coordinators {
            self.held.entry(*coordinator).and_modify(|held| *held = held.saturating_sub(part));
        }
        Some((due, index))
    }

    fn held_by(&self, coordinator: &NodeId) -> u64 {
        self.held.get(coordinator).copied().unwrap_or(0)
    }

    /// From when on a stage may be evicted.
    fn due(&self, stage: &StageUse) -> Option<Instant> {
        let idle = stage.idle?;
        let own = stage.coordinators.iter().any(|coordinator| self.coordinator == Some(*coordinator));
        let all_over = stage.coordinators.iter().all(|coordinator| self.held_by(coordinator) > self.share);
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

    /// Stages of so many bytes, of these coordinators, which are idle for so many seconds.
    fn uses(now: Instant, stages: &[(u64, &[u8], Option<u32>)]) -> Vec<StageUse> {
        let stage = |(memory, coordinators, idle): &(u64, &[u8], Option<u32>)| StageUse {
            memory: *memory,
            coordinators: coordinators.iter().map(|name| node(*name)).collect(),
            idle: idle.map(|seconds| now - SECOND * seconds),
        };
        stages.iter().map(stage).collect()
    }

    /// Of a budget of 100 bytes, for coordinator 9.
    fn room(now: Instant, stages: &[(u64, &[u8], Option<u32>)], bytes: u64) -> Room {
        make_room(&uses(now, stages), 100, node(9), bytes, now)
    }

    fn now() -> Instant {
        Instant::now() + SECOND * 1000
    }

    #[test]
    fn a_coordinator_that_has_more_than_its_share_loses_its_longest_idle_stages_first() {
        let now = now();
        let stages: &[(u64, &[u8], Option<u32>)] =
            &[(30, &[1], Some(11)), (30, &[1], Some(12)), (30, &[1], None), (10, &[2], Some(50))];
        assert_eq!(room(now, stages, 20), Room::Evict(vec![1]));
        assert_eq!(room(now, stages, 60), Room::Evict(vec![1, 0]));
        let later = now - SECOND * 50 + EVICT_LAST;
        assert_eq!(room(now, stages, 70), Room::Later(later), "who has less than a share has it for longer");
        assert_eq!(room(now, stages, 71), Room::Never, "a stage that computes stays");
    }

    #[test]
    fn who_has_no_more_than_a_share_loses_it_only_to_a_coordinator_that_has_nothing() {
        let now = now();
        let long = EVICT_LAST.as_secs() as u32;
        assert_eq!(room(now, &[(50, &[1], Some(long))], 50), Room::Evict(vec![0]));
        assert_eq!(room(now, &[(50, &[1], Some(long - 1))], 50), Room::Later(now + SECOND));
        assert_eq!(room(now, &[(50, &[1], Some(long)), (10, &[9], None)], 50), Room::Never);
        assert_eq!(room(now, &[(60, &[1], Some(20)), (10, &[9], None)], 60), Room::Evict(vec![0]), "more than a share");
    }

    #[test]
    fn nobody_loses_more_than_what_is_beyond_its_share_before_the_long_time() {
        let now = now();
        let stages: &[(u64, &[u8], Option<u32>)] =
            &[(25, &[1], Some(20)), (25, &[1], Some(19)), (25, &[1], Some(18)), (25, &[1], Some(17))];
        assert_eq!(room(now, stages, 50), Room::Evict(vec![0, 1]));
        assert_eq!(room(now, stages, 75), Room::Later(now - SECOND * 18 + EVICT_LAST));
    }

    #[test]
    fn a_stage_that_coordinators_share_stays_while_one_of_them_has_no_more_than_its_share() {
        let now = now();
        let shared: &[(u64, &[u8], Option<u32>)] = &[(60, &[1, 2], Some(20)), (40, &[1], Some(15))];
        assert_eq!(room(now, shared, 30), Room::Evict(vec![1]), "70 bytes are the first's, 30 the second's");
        assert_eq!(room(now, shared, 50), Room::Later(now - SECOND * 20 + EVICT_LAST));
        assert_eq!(room(now, &[(60, &[1, 9], Some(99))], 50), Room::Never, "nor is the asker's own evicted");
    }

    #[test]
    fn what_a_newcomer_would_get_counts_as_spare_and_a_lone_coordinator_has_all() {
        let now = now();
        let spare = |stages| spare(&uses(now, stages), 100, now);
        assert_eq!(spare(&[(40, &[1], Some(11)), (40, &[1], Some(12)), (20, &[2], Some(13))]), 80);
        assert_eq!(spare(&[(40, &[1], Some(9)), (40, &[1], None)]), 0);
        assert_eq!(spare(&[(40, &[1], Some(61)), (40, &[1], Some(70))]), 80);
        assert_eq!(make_room(&uses(now, &[(100, &[1], Some(99))]), 100, node(1), 1, now), Room::Never);
    }
}
