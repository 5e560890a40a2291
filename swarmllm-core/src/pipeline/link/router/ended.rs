//! Tombstones of sessions that their coordinators ended: an end may overtake the opening. Pure.

use std::collections::VecDeque;

use crate::base::{NodeId, SessionId};

/// Tombstones that are kept.
pub(super) const ENDED: usize = 1024;

/// The ended sessions, one tombstone per session and coordinator; at most [`ENDED`], the oldest first.
#[derive(Default)]
pub(super) struct EndedSessions {
    sessions: VecDeque<Tombstone>,
}

struct Tombstone {
    session: SessionId,
    /// The last epoch that has ended.
    epoch: u32,
    coordinator: NodeId,
}

impl EndedSessions {
    /// Whether the coordinator ended this epoch of the session.
    pub fn contains(&self, session: SessionId, epoch: u32, coordinator: NodeId) -> bool {
        let ends =
            |ended: &Tombstone| ended.session == session && ended.epoch >= epoch && ended.coordinator == coordinator;
        self.sessions.iter().any(ends)
    }

    /// Records the end of a session up to this epoch, or up to the later epoch that is recorded already. Evicts the
    /// oldest tombstone where there are too many.
    pub fn insert(&mut self, session: SessionId, epoch: u32, coordinator: NodeId) {
        let known = self.sessions.iter().position(|ended| ended.session == session && ended.coordinator == coordinator);
        let known = known.and_then(|at| self.sessions.remove(at)).map_or(0, |ended| ended.epoch);
        if self.sessions.len() >= ENDED {
            self.sessions.pop_front();
        }
        self.sessions.push_back(Tombstone { session, epoch: epoch.max(known), coordinator });
    }
}
