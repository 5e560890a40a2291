//! The slots of one stage: their sessions, the KV in free slots, and the order of waiting sessions. Pure.
//!
//! A freed slot may keep its KV, which takes no additional memory: the next session whose prompt has the same prefix
//! gets that slot, or the same session on its next route. The next free slot goes to the coordinator with the fewest
//! slots, and among its sessions to the first that came.
//!
//! Where no slot is free, a session that has been idle for some time is evicted for a coordinator that waits: a session
//! of the coordinator with the most slots. A coordinator keeps as many slots as the other would then have. It keeps
//! them for much longer where the other has none.

use std::cmp::Reverse;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::{NodeId, SessionId};
use crate::wire::prefix::Prefix;

/// Idle time after which a session is evicted for a coordinator with fewer slots. At 50 rows a second the previous
/// stage takes this time for a chunk of a prompt (512 rows). A session that waits longer for its chunk loses only what
/// others lack.
pub(super) const EVICT_IDLE: Duration = Duration::from_secs(10);
/// The same where its coordinator has no more than a share, and the other coordinator has none: half of the time for
/// which a coordinator waits for a step (120 s), and as long as an unread answer may pause.
pub(super) const EVICT_LAST: Duration = Duration::from_secs(60);

/// Idle time that one computed row offsets. A session with a row every two seconds is never idle; a reader would not
/// wait for a slower answer. A session that computes a row now and then to keep its slot becomes idle.
const IDLE_PER_ROW: Duration = Duration::from_secs(2);

/// The slots of one stage.
pub(super) struct Slots {
    free: Vec<FreeSlot>,
    /// The sessions in the other slots.
    sessions: Vec<Session>,
    /// The waits for a slot, in the order of their begin: tickets, and coordinators.
    waiting: Vec<(u64, NodeId)>,
    tickets: u64,
    /// When a slot was last taken, by the table's clock.
    last_used: u64,
}

/// A session that has a slot.
struct Session {
    slot: u32,
    owner: SlotOwner,
    activity: Activity,
    /// Cancelled when the session is evicted.
    evicted: CancellationToken,
}

/// A session's activity, which decides on its eviction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    /// It is never evicted.
    Exempt,
    /// It has computed since `begun`, and was idle since `idle` before.
    Computing { begun: Instant, idle: Instant },
    /// It computes nothing, and counts as idle since then.
    Idle { since: Instant },
}

impl Session {
    /// Since when it is idle; nothing where it computes, or is never evicted.
    fn idle(&self) -> Option<Instant> {
        match self.activity {
            Activity::Idle { since } => Some(since),
            Activity::Exempt | Activity::Computing { .. } => None,
        }
    }
}

/// A slot without a session.
struct FreeSlot {
    slot: u32,
    content: SlotContent,
    /// When it was freed, by the table's clock; 0 where it is empty.
    since: u64,
}

/// The KV in a free slot.
pub(super) enum SlotContent {
    /// None.
    Empty,
    /// The remains of a session that was given up before it began.
    Unknown,
    /// The KV of this coordinator's text.
    Kept(NodeId, Prefix),
    /// The first positions of a session whose route broke. Only its next route can use them.
    Broken(SlotOwner, u32),
}

/// The owner of a slot: a session on one of its routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotOwner {
    /// The coordinator, which pays.
    pub coordinator: NodeId,
    /// The session.
    pub session: SessionId,
    /// The route's epoch.
    pub epoch: u32,
}

impl SlotOwner {
    /// Whether `other` is an earlier route of the same session.
    pub fn succeeds(&self, other: &SlotOwner) -> bool {
        (self.coordinator, self.session) == (other.coordinator, other.session) && self.epoch > other.epoch
    }
}

/// A slot that was taken for a session.
pub(super) struct TakenSlot {
    pub slot: u32,
    /// Positions of the prompt whose KV is in the slot.
    pub cached: u32,
    /// Whether the slot holds other KV, which must be released first.
    pub stale: bool,
    /// Cancelled when the session is evicted.
    pub evicted: CancellationToken,
}

impl Slots {
    /// `count` empty slots.
    pub fn new(count: u32) -> Self {
        let free = (0..count).map(|slot| FreeSlot { slot, content: SlotContent::Empty, since: 0 }).collect();
        Self { free, sessions: Vec::new(), waiting: Vec::new(), tickets: 0, last_used: 0 }
    }

    /// When a slot was last taken, by the table's clock.
    pub fn last_used(&self) -> u64 {
        self.last_used
    }

    /// Whether an earlier route of this session has a slot.
    pub fn has_earlier(&self, owner: &SlotOwner) -> bool {
        self.sessions.iter().any(|session| owner.succeeds(&session.owner))
    }

    /// Whether no session waits for a slot.
    pub fn nobody_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Begins a wait for a slot; returns its ticket.
    pub fn begin_wait(&mut self, coordinator: NodeId) -> u64 {
        self.tickets += 1;
        self.waiting.push((self.tickets, coordinator));
        self.tickets
    }

    /// Ends a wait.
    pub fn end_wait(&mut self, ticket: u64) {
        self.waiting.retain(|(other, _)| *other != ticket);
    }

    /// The ticket of the next wait: of the coordinator with the fewest slots, the first that came.
    pub fn next(&self) -> Option<u64> {
        let rank = |(ticket, coordinator): &&(u64, NodeId)| (self.count_of(*coordinator), *ticket);
        self.waiting.iter().min_by_key(rank).map(|(ticket, _)| *ticket)
    }

    /// How many slots a coordinator has.
    fn count_of(&self, coordinator: NodeId) -> usize {
        self.sessions.iter().filter(|session| session.owner.coordinator == coordinator).count()
    }

    /// The coordinators with slots, each once.
    pub fn coordinators(&self) -> Vec<NodeId> {
        let mut all: Vec<NodeId> = self.sessions.iter().map(|session| session.owner.coordinator).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// How many sessions have slots.
    pub fn taken(&self) -> usize {
        self.sessions.len()
    }

    /// Since when all sessions are idle; nothing where a session is not, or is being evicted.
    pub fn idle(&self) -> Option<Instant> {
        let idle = |session: &Session| session.idle().filter(|_| !session.evicted.is_cancelled());
        self.sessions.iter().map(idle).collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// Notes that the session in a slot computes from `now` on.
    pub fn mark_computing(&mut self, slot: u32, now: Instant) {
        let Some(session) = self.session(slot) else { return };
        if let Activity::Idle { since } = session.activity {
            session.activity = Activity::Computing { begun: now, idle: since };
        }
    }

    /// Notes that the session in a slot is idle from `now` on, after `rows` computed rows. The first call ends its
    /// exemption from eviction.
    pub fn mark_idle(&mut self, slot: u32, rows: u32, now: Instant) {
        let Some(session) = self.session(slot) else { return };
        let since = match session.activity {
            Activity::Exempt => now,
            // The time of computing was not idle.
            Activity::Computing { begun, idle } => idle + now.duration_since(begun) + IDLE_PER_ROW.saturating_mul(rows),
            Activity::Idle { since } => since,
        };
        session.activity = Activity::Idle { since: since.min(now) };
    }

    fn session(&mut self, slot: u32) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.slot == slot)
    }

    /// Evicts all sessions.
    pub fn evict_all(&self) {
        self.sessions.iter().for_each(|session| session.evicted.cancel());
    }

    /// Evicts a session for a coordinator that waits, if one may be evicted; else returns when one may be.
    pub fn evict_for(&self, coordinator: NodeId, now: Instant) -> Option<Instant> {
        if self.sessions.iter().any(|session| session.evicted.is_cancelled()) {
            // The slot of that session comes first.
            return None;
        }
        let own = self.count_of(coordinator);
        let due = |session: &Session| {
            let has = self.count_of(session.owner.coordinator);
            let idle_time = match session.owner.coordinator == coordinator {
                true => None,
                false if has > own + 1 => Some(EVICT_IDLE),
                false => (own == 0).then_some(EVICT_LAST),
            };
            Some((session.idle()? + idle_time?, has))
        };
        let all = self.sessions.iter().filter_map(|session| Some((due(session)?, session)));
        let first = all.min_by_key(|((due, has), session)| ((*due).max(now), Reverse(*has), session.idle()));
        let ((due, _), session) = first?;
        if due > now {
            return Some(due);
        }
        session.evicted.cancel();
        None
    }

    /// Takes the free slot with the longest cached prefix of the prompt, else an empty slot, else the slot freed
    /// longest ago; among equals the lowest, so that neighbouring slots are in use, which engines compute together.
    /// `clock` is the table's.
    pub fn take(&mut self, owner: SlotOwner, prefix: &Prefix, clock: u64) -> Option<TakenSlot> {
        self.last_used = clock;
        let common = |free: &FreeSlot| match &free.content {
            SlotContent::Kept(coordinator, text) if *coordinator == owner.coordinator => text.common(prefix),
            SlotContent::Broken(earlier, held) if owner.succeeds(earlier) => *held,
            _ => 0,
        };
        let is_empty = |free: &FreeSlot| matches!(free.content, SlotContent::Empty);
        let rank = |free: &FreeSlot| (Reverse(common(free)), !is_empty(free), free.since, free.slot);
        let (index, _) = self.free.iter().enumerate().min_by_key(|(_, free)| rank(free))?;
        let free = self.free.swap_remove(index);
        let cached = common(&free);
        let (slot, stale, evicted) = (free.slot, !is_empty(&free) && cached == 0, CancellationToken::new());
        self.sessions.push(Session { slot, owner, activity: Activity::Exempt, evicted: evicted.clone() });
        Some(TakenSlot { slot, cached, stale, evicted })
    }

    /// Frees a slot, with its content.
    pub fn free(&mut self, slot: u32, content: SlotContent) {
        // Empty slots are equal, whenever they were freed.
        let since = if matches!(content, SlotContent::Empty) { 0 } else { self.last_used };
        self.sessions.retain(|session| session.slot != slot);
        self.free.push(FreeSlot { slot, content, since });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::prefix::BlockId;

    const SECOND: Duration = Duration::from_secs(1);

    /// Slots that are all taken, by coordinators of these names.
    fn slots_of(names: &[u8]) -> Slots {
        let mut slots = Slots::new(names.len() as u32);
        for name in names {
            let owner = SlotOwner { coordinator: NodeId([*name; 32]), session: SessionId([0; 16]), epoch: 0 };
            slots.take(owner, &Prefix::default(), 0).unwrap();
        }
        slots
    }

    /// Takes slots for these coordinators, idle for these seconds. Returns the slots that are evicted for the
    /// coordinator `name`, or the seconds until one is.
    fn evicted(sessions: &[(u8, Option<u64>)], name: u8) -> (Vec<u32>, Option<u64>) {
        let now = Instant::now() + SECOND * 1000;
        let mut slots = slots_of(&sessions.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for (slot, (_, idle)) in (0..).zip(sessions) {
            if let Some(seconds) = idle {
                slots.mark_idle(slot, 0, now - SECOND * *seconds as u32);
            }
        }
        let later = slots.evict_for(NodeId([name; 32]), now).map(|due| (due - now).as_secs());
        assert_eq!(slots.evict_for(NodeId([name; 32]), now).map(|due| (due - now).as_secs()), later, "one at a time");
        let gone = slots.sessions.iter().filter(|session| session.evicted.is_cancelled());
        (gone.map(|session| session.slot).collect(), later)
    }

    #[test]
    fn the_longest_idle_session_of_the_largest_coordinator_is_evicted() {
        let sessions = [(1, Some(30)), (2, Some(40)), (2, Some(11)), (2, Some(12)), (1, Some(50))];
        assert_eq!(evicted(&sessions, 3), (vec![1], None));
        assert_eq!(evicted(&[(2, Some(9)), (2, None), (1, Some(30)), (1, Some(20))], 3), (vec![2], None));
        assert_eq!(evicted(&[(2, Some(9)), (2, Some(3))], 3), (vec![], Some(1)), "a second later");
    }

    /// The counted idle seconds of a session that pauses for `pause` seconds, then computes `rows` rows in a second,
    /// `steps` times.
    fn idle_after(steps: u32, rows: u32, pause: u32) -> u64 {
        let (mut slots, mut now) = (slots_of(&[1]), Instant::now());
        slots.mark_idle(0, 0, now);
        for _ in 0..steps {
            now += SECOND * pause;
            slots.mark_computing(0, now);
            assert_eq!(slots.idle(), None, "not while it computes");
            now += SECOND;
            slots.mark_idle(0, rows, now);
        }
        (now - slots.idle().unwrap()).as_secs()
    }

    #[test]
    fn an_answer_keeps_its_slot_and_an_occasional_row_does_not() {
        assert_eq!(idle_after(40, 1, 2), 0, "a row every two seconds");
        assert_eq!(idle_after(1, 512, 100), 0, "a chunk of a prompt offsets a long pause");
        assert_eq!(idle_after(2, 512, 9), 0, "and is no credit for later pauses");
        assert_eq!(idle_after(2, 1, 9), 14, "two rows offset four of 18 seconds");
        assert!(Duration::from_secs(idle_after(9, 1, 9)) > EVICT_LAST);
    }

    #[test]
    fn a_computing_or_exempt_session_is_never_evicted() {
        assert_eq!(evicted(&[(1, None), (1, None), (1, None), (1, None)], 2), (vec![], None));
    }

    #[test]
    fn a_coordinator_keeps_as_many_slots_as_the_waiting_one_would_have() {
        let long = EVICT_LAST.as_secs();
        assert_eq!(evicted(&[(1, Some(50)), (1, Some(50)), (2, None)], 2), (vec![], None), "two of three stay");
        assert_eq!(
            evicted(&[(1, Some(long - 7)), (3, Some(30))], 2),
            (vec![], Some(7)),
            "one slot each, and a longer time"
        );
        assert_eq!(evicted(&[(1, Some(long)), (3, Some(30))], 2), (vec![0], None), "than any step takes");
        assert_eq!(evicted(&[(1, Some(500)), (1, Some(500))], 1), (vec![], None), "its own are not evicted for it");
    }

    #[test]
    fn the_coordinator_with_the_fewest_slots_is_next() {
        let [greedy, modest, new] = [1, 2, 3].map(|name| NodeId([name; 32]));
        let mut slots = slots_of(&[1, 1, 2]);
        for coordinator in [greedy, greedy, modest, new, new] {
            slots.begin_wait(coordinator);
        }
        assert_eq!(slots.next(), Some(4));
        slots.waiting.retain(|(_, coordinator)| *coordinator != new);
        assert_eq!(slots.next(), Some(3));
        slots.waiting.retain(|(_, coordinator)| *coordinator == greedy);
        assert_eq!(slots.next(), Some(1));
    }

    #[test]
    fn a_slot_with_the_prompts_kv_is_taken_before_an_empty_slot() {
        let [ours, other] = [1, 2].map(|name| NodeId([name; 32]));
        let owner = |coordinator, epoch| SlotOwner { coordinator, session: SessionId([0; 16]), epoch };
        let text = |ids: &[u8]| Prefix { block: 16, ids: ids.iter().map(|id| BlockId([*id; 16])).collect() };
        let taken = |slots: &mut Slots, owner, prefix| {
            slots.take(owner, &prefix, 9).map(|taken| (taken.slot, taken.cached, taken.stale))
        };
        let mut slots = Slots::new(4);
        (0..3).for_each(|slot| assert_eq!(taken(&mut slots, owner(ours, 0), text(&[])), Some((slot, 0, false))));
        slots.free(2, SlotContent::Kept(ours, text(&[7, 8])));
        slots.free(1, SlotContent::Broken(owner(ours, 0), 40));
        assert_eq!(taken(&mut slots, owner(other, 1), text(&[7, 8])), Some((3, 0, false)), "another's KV is of no use");
        assert_eq!(taken(&mut slots, owner(ours, 0), text(&[7, 9])), Some((2, 16, false)));
        assert_eq!(taken(&mut slots, owner(ours, 1), text(&[7, 9])), Some((1, 40, false)), "its next route");
        slots.free(1, SlotContent::Broken(owner(ours, 1), 50));
        slots.free(0, SlotContent::Unknown);
        assert_eq!(taken(&mut slots, owner(other, 0), text(&[])), Some((0, 0, true)));
        assert_eq!(taken(&mut slots, owner(other, 0), text(&[])), Some((1, 0, true)));
        assert_eq!(taken(&mut slots, owner(other, 0), text(&[])), None);
    }
}
