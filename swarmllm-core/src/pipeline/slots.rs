//! The slots of one stage: who has them, what is in those that are free, and whose turn is next. Pure.
//!
//! A slot that is given back may keep its KV, which takes no memory that it would not have anyway: the next session whose
//! prompt begins alike gets that slot, or the same session when it comes back by another route. The next free slot is for
//! the coordinator that has the fewest, and among its sessions for the first that came.
//!
//! Where none is free, a session that has been idle for some time is evicted for a coordinator that waits: one of the
//! coordinator that has the most. A coordinator keeps what the other would then have too; for much longer, where the other has
//! nothing.

use std::cmp::Reverse;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::{NodeId, SessionId};
use crate::wire::prefix::Prefix;

/// A session that has been idle for so long is evicted where another coordinator has less than its own. A chunk of a prompt
/// (512 rows) takes the stage before it so long at 50 rows a second. Whoever waits longer for that loses only what others have
/// not.
pub(super) const EVICT_IDLE: Duration = Duration::from_secs(10);
/// The same where its coordinator has no more than a share, and the other nothing: half of the time for which a coordinator waits
/// for a step (120 s), and as long as an answer that nobody reads may pause.
pub(super) const EVICT_LAST: Duration = Duration::from_secs(60);

/// Idleness that a computed row makes up for: a session of a row every two seconds is never idle, since nobody would wait for
/// a slower answer; one that computes a row now and then to keep its slot becomes so.
const ROW_PAYS: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Slots {
    free: Vec<FreeSlot>,
    /// The others.
    sessions: Vec<Session>,
    /// Who waits for one, in the order in which they came: numbers, and coordinators.
    waiting: Vec<(u64, NodeId)>,
    tickets: u64,
    /// When one was last taken, by the table's clock.
    last_used: u64,
}

/// A session that has a slot.
struct Session {
    slot: u32,
    owner: Owner,
    work: Work,
    /// Is cancelled when it is evicted.
    evicted: CancellationToken,
}

/// What a session does, as far as its eviction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// It is not to be evicted.
    Exempt,
    /// It computes since then, and had been idle since before.
    Computes { begun: Instant, idle: Instant },
    /// It computes nothing, and counts as idle since then.
    Rests { idle: Instant },
}

impl Session {
    /// Since when it has been idle; nothing where it computes, or is not to be evicted.
    fn idle(&self) -> Option<Instant> {
        match self.work {
            Work::Rests { idle } => Some(idle),
            Work::Exempt | Work::Computes { .. } => None,
        }
    }
}

/// A slot that no session has.
struct FreeSlot {
    slot: u32,
    content: Content,
    /// When it was given back.
    since: u64,
}

/// What is in a slot.
pub(super) enum Content {
    /// Nothing.
    Empty,
    /// Whatever was left where a session was given up before it began.
    Unknown,
    /// The KV of this coordinator's text.
    Kept(NodeId, Prefix),
    /// So many positions of a session whose route broke. Nobody else can use them.
    Broken(Owner, u32),
}

/// Whose a session is, and which of its routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Who asks, and pays.
    pub coordinator: NodeId,
    /// The session.
    pub session: SessionId,
    /// Its route.
    pub epoch: u32,
}

impl Owner {
    /// Whether the other is an earlier route of the same session.
    pub fn follows(&self, other: &Owner) -> bool {
        (self.coordinator, self.session) == (other.coordinator, other.session) && self.epoch > other.epoch
    }
}

/// A slot that was taken.
pub(super) struct Taken {
    pub slot: u32,
    /// Positions of the prompt that are there.
    pub cached: u32,
    /// Whether other KV is in it, which must go first.
    pub stale: bool,
    /// Is cancelled when the session is evicted.
    pub evicted: CancellationToken,
}

impl Slots {
    /// So many, all empty.
    pub fn new(count: u32) -> Self {
        let free = (0..count).map(|slot| FreeSlot { slot, content: Content::Empty, since: 0 }).collect();
        Self { free, sessions: Vec::new(), waiting: Vec::new(), tickets: 0, last_used: 0 }
    }

    /// When one was last taken, by the table's clock.
    pub fn last_used(&self) -> u64 {
        self.last_used
    }

    /// Whether an earlier route of this session has one.
    pub fn has_earlier(&self, owner: &Owner) -> bool {
        self.sessions.iter().any(|session| owner.follows(&session.owner))
    }

    /// Whether nobody waits for one.
    pub fn nobody_waits(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Begins to wait for one; gives the number of the wait.
    pub fn begin_wait(&mut self, coordinator: NodeId) -> u64 {
        self.tickets += 1;
        self.waiting.push((self.tickets, coordinator));
        self.tickets
    }

    /// Waits no longer.
    pub fn end_wait(&mut self, ticket: u64) {
        self.waiting.retain(|(other, _)| *other != ticket);
    }

    /// Whose turn it is: of who has fewest slots, who came first.
    pub fn next(&self) -> Option<u64> {
        let rank = |(ticket, coordinator): &&(u64, NodeId)| (self.has(*coordinator), *ticket);
        self.waiting.iter().min_by_key(rank).map(|(ticket, _)| *ticket)
    }

    /// Slots that a coordinator has.
    fn has(&self, coordinator: NodeId) -> usize {
        self.sessions.iter().filter(|session| session.owner.coordinator == coordinator).count()
    }

    /// The coordinators that have slots, each once.
    pub fn coordinators(&self) -> Vec<NodeId> {
        let mut all: Vec<NodeId> = self.sessions.iter().map(|session| session.owner.coordinator).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Sessions that have slots.
    pub fn taken(&self) -> usize {
        self.sessions.len()
    }

    /// Since when all sessions have been idle; nothing where one is not, or is being evicted.
    pub fn idle(&self) -> Option<Instant> {
        let idle = |session: &Session| session.idle().filter(|_| !session.evicted.is_cancelled());
        self.sessions.iter().map(idle).collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// The session in a slot computes from then on.
    pub fn compute(&mut self, slot: u32, now: Instant) {
        let Some(session) = self.session(slot) else { return };
        if let Work::Rests { idle } = session.work {
            session.work = Work::Computes { begun: now, idle };
        }
    }

    /// The session in a slot computes nothing from then on, and has computed so many rows. With the first call it is one that
    /// may be evicted.
    pub fn rest(&mut self, slot: u32, rows: u32, now: Instant) {
        let Some(session) = self.session(slot) else { return };
        let idle = match session.work {
            Work::Exempt => now,
            // While it computed it was not idle.
            Work::Computes { begun, idle } => idle + now.duration_since(begun) + ROW_PAYS.saturating_mul(rows),
            Work::Rests { idle } => idle,
        };
        session.work = Work::Rests { idle: idle.min(now) };
    }

    fn session(&mut self, slot: u32) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.slot == slot)
    }

    /// Evicts all sessions.
    pub fn evict_all(&self) {
        self.sessions.iter().for_each(|session| session.evicted.cancel());
    }

    /// Evicts a session for a coordinator that waits, if one may be; else says from when on one may be.
    pub fn evict_for(&self, coordinator: NodeId, now: Instant) -> Option<Instant> {
        if self.sessions.iter().any(|session| session.evicted.is_cancelled()) {
            // Its slot comes first.
            return None;
        }
        let own = self.has(coordinator);
        let due = |session: &Session| {
            let has = self.has(session.owner.coordinator);
            let patience = match session.owner.coordinator == coordinator {
                true => None,
                false if has > own + 1 => Some(EVICT_IDLE),
                false => (own == 0).then_some(EVICT_LAST),
            };
            Some((session.idle()? + patience?, has))
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

    /// The free slot that holds most of the prompt, else an empty one, else the one given back longest ago; among equals
    /// the lowest, so that neighbouring slots are in use, which engines compute together. `clock` is the table's.
    pub fn take(&mut self, owner: Owner, prefix: &Prefix, clock: u64) -> Option<Taken> {
        self.last_used = clock;
        let common = |free: &FreeSlot| match &free.content {
            Content::Kept(coordinator, text) if *coordinator == owner.coordinator => text.common(prefix),
            Content::Broken(earlier, held) if owner.follows(earlier) => *held,
            _ => 0,
        };
        let is_empty = |free: &FreeSlot| matches!(free.content, Content::Empty);
        let rank = |free: &FreeSlot| (Reverse(common(free)), !is_empty(free), free.since, free.slot);
        let (index, _) = self.free.iter().enumerate().min_by_key(|(_, free)| rank(free))?;
        let free = self.free.swap_remove(index);
        let cached = common(&free);
        let (slot, stale, evicted) = (free.slot, !is_empty(&free) && cached == 0, CancellationToken::new());
        self.sessions.push(Session { slot, owner, work: Work::Exempt, evicted: evicted.clone() });
        Some(Taken { slot, cached, stale, evicted })
    }

    /// Takes a slot back, and what is in it.
    pub fn give_back(&mut self, slot: u32, content: Content) {
        // Empty slots are alike, whenever they were given back.
        let since = if matches!(content, Content::Empty) { 0 } else { self.last_used };
        self.sessions.retain(|session| session.slot != slot);
        self.free.push(FreeSlot { slot, content, since });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::prefix::BlockId;

    const SECOND: Duration = Duration::from_secs(1);

    /// Slots that all are taken, by coordinators of these names.
    fn slots_of(names: &[u8]) -> Slots {
        let mut slots = Slots::new(names.len() as u32);
        for name in names {
            let owner = Owner { coordinator: NodeId([*name; 32]), session: SessionId([0; 16]), epoch: 0 };
            slots.take(owner, &Prefix::default(), 0).unwrap();
        }
        slots
    }

    /// Slots that were taken so, idle for so many seconds; and which of them are evicted for a coordinator, or how many seconds
    /// later one is.
    fn evicted(sessions: &[(u8, Option<u64>)], name: u8) -> (Vec<u32>, Option<u64>) {
        let now = Instant::now() + SECOND * 1000;
        let mut slots = slots_of(&sessions.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for (slot, (_, idle)) in (0..).zip(sessions) {
            if let Some(seconds) = idle {
                slots.rest(slot, 0, now - SECOND * *seconds as u32);
            }
        }
        let later = slots.evict_for(NodeId([name; 32]), now).map(|due| (due - now).as_secs());
        assert_eq!(slots.evict_for(NodeId([name; 32]), now).map(|due| (due - now).as_secs()), later, "one at a time");
        let gone = slots.sessions.iter().filter(|session| session.evicted.is_cancelled());
        (gone.map(|session| session.slot).collect(), later)
    }

    #[test]
    fn the_longest_idle_session_of_the_coordinator_with_most_slots_is_evicted() {
        let sessions = [(1, Some(30)), (2, Some(40)), (2, Some(11)), (2, Some(12)), (1, Some(50))];
        assert_eq!(evicted(&sessions, 3), (vec![1], None));
        assert_eq!(evicted(&[(2, Some(9)), (2, None), (1, Some(30)), (1, Some(20))], 3), (vec![2], None));
        assert_eq!(evicted(&[(2, Some(9)), (2, Some(3))], 3), (vec![], Some(1)), "a second later");
    }

    /// Seconds for which a session counts as idle that computes so many rows after each pause of so many seconds, for
    /// a second each time.
    fn idle_after(steps: u32, rows: u32, pause: u32) -> u64 {
        let (mut slots, mut now) = (slots_of(&[1]), Instant::now());
        slots.rest(0, 0, now);
        for _ in 0..steps {
            now += SECOND * pause;
            slots.compute(0, now);
            assert_eq!(slots.idle(), None, "not while it computes");
            now += SECOND;
            slots.rest(0, rows, now);
        }
        (now - slots.idle().unwrap()).as_secs()
    }

    #[test]
    fn a_row_now_and_then_keeps_no_slot_and_an_answer_that_goes_on_does() {
        assert_eq!(idle_after(40, 1, 2), 0, "a row every two seconds");
        assert_eq!(idle_after(1, 512, 100), 0, "a chunk of a prompt makes up for much");
        assert_eq!(idle_after(2, 512, 9), 0, "and is not saved up");
        assert_eq!(idle_after(2, 1, 9), 14, "two rows make up for four of 18 seconds");
        assert!(Duration::from_secs(idle_after(9, 1, 9)) > EVICT_LAST);
    }

    #[test]
    fn a_session_that_computes_or_may_not_be_evicted_never_is() {
        assert_eq!(evicted(&[(1, None), (1, None), (1, None), (1, None)], 2), (vec![], None));
    }

    #[test]
    fn a_coordinator_keeps_as_many_slots_as_the_other_would_have() {
        let long = EVICT_LAST.as_secs();
        assert_eq!(evicted(&[(1, Some(50)), (1, Some(50)), (2, None)], 2), (vec![], None), "two of three stay");
        assert_eq!(evicted(&[(1, Some(long - 7)), (3, Some(30))], 2), (vec![], Some(7)), "one each, and longer");
        assert_eq!(evicted(&[(1, Some(long)), (3, Some(30))], 2), (vec![0], None), "than any step takes");
        assert_eq!(evicted(&[(1, Some(500)), (1, Some(500))], 1), (vec![], None), "its own are not evicted for it");
    }

    #[test]
    fn the_next_slot_is_for_the_coordinator_that_has_the_fewest_then_for_who_came_first() {
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
    fn a_slot_with_kv_of_the_prompt_goes_before_an_empty_one_and_that_before_the_one_longest_free() {
        let [ours, other] = [1, 2].map(|name| NodeId([name; 32]));
        let owner = |coordinator, epoch| Owner { coordinator, session: SessionId([0; 16]), epoch };
        let text = |ids: &[u8]| Prefix { block: 16, ids: ids.iter().map(|id| BlockId([*id; 16])).collect() };
        let taken = |slots: &mut Slots, owner, prefix| {
            slots.take(owner, &prefix, 9).map(|taken| (taken.slot, taken.cached, taken.stale))
        };
        let mut slots = Slots::new(4);
        (0..3).for_each(|slot| assert_eq!(taken(&mut slots, owner(ours, 0), text(&[])), Some((slot, 0, false))));
        slots.give_back(2, Content::Kept(ours, text(&[7, 8])));
        slots.give_back(1, Content::Broken(owner(ours, 0), 40));
        assert_eq!(taken(&mut slots, owner(other, 1), text(&[7, 8])), Some((3, 0, false)), "another's KV is of no use");
        assert_eq!(taken(&mut slots, owner(ours, 0), text(&[7, 9])), Some((2, 16, false)));
        assert_eq!(taken(&mut slots, owner(ours, 1), text(&[7, 9])), Some((1, 40, false)), "its next route");
        slots.give_back(1, Content::Broken(owner(ours, 1), 50));
        slots.give_back(0, Content::Unknown);
        assert_eq!(taken(&mut slots, owner(other, 0), text(&[])), Some((0, 0, true)));
        assert_eq!(taken(&mut slots, owner(other, 0), text(&[])), Some((1, 0, true)));
        assert_eq!(taken(&mut slots, owner(other, 0), text(&[])), None);
    }
}
