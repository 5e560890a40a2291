//! When the hosts of a waiting session are probed for their stages, and what follows from the results. Pure; time is an
//! argument.

use std::time::{Duration, Instant};

use crate::base::NodeId;
use crate::pipeline::route::watch::AnswerLatency;

/// Without an answer for this long a stage hangs; a dead one is noticed by its connection long before.
pub(super) const STALL_DEADLINE: Duration = Duration::from_secs(120);
/// How often a route that avoids silent hosts is searched while there is none.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

/// A due action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DueAction {
    /// Probe the hosts for their stages.
    Probe { probe: u32 },
    /// The stall deadline has passed.
    Stalled,
}

/// See the module.
pub(super) struct HostProbes {
    latency: AnswerLatency,
    /// Number of the current probe, or of the last one.
    number: u32,
    /// When the answer is late, or was late at the last probe that found all hosts alive.
    late: Instant,
    /// When the next probe is due; `None` during a probe.
    next_probe: Option<Instant>,
    stalled: Instant,
    /// Whether answers are not read, so that no stage can be said to hang.
    paused: bool,
    /// Silent hosts, during the search for a route that avoids them.
    silent: Vec<NodeId>,
}

impl HostProbes {
    /// Answers are expected from now on.
    pub fn new(now: Instant) -> Self {
        let latency = AnswerLatency::new(now);
        let (late, stalled) = (latency.late_at(), now + STALL_DEADLINE);
        Self { latency, number: 0, late, next_probe: None, stalled, paused: false, silent: Vec::new() }
    }

    /// Answers of other hosts are expected from now on.
    pub fn restart(&mut self, now: Instant) {
        self.latency = AnswerLatency::new(now);
        self.start_waiting(now);
    }

    /// Records an answer and the time since its step was sent.
    pub fn record(&mut self, round: Duration, now: Instant) {
        self.latency.record(round, now);
    }

    /// Sets whether answers are not read.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// The session waits from now on; an earlier probe is void.
    pub fn start_waiting(&mut self, now: Instant) {
        self.void_probe();
        self.late = self.latency.late_at();
        (self.next_probe, self.stalled) = (Some(self.late), now + STALL_DEADLINE);
    }

    /// The session no longer waits; the current probe is void.
    pub fn void_probe(&mut self) {
        self.number += 1;
        self.silent.clear();
        self.next_probe = None;
    }

    /// The number of the current probe.
    pub fn current_probe(&self) -> u32 {
        self.number
    }

    /// When the next action is due.
    pub fn wake_at(&self) -> Option<Instant> {
        self.next_probe.into_iter().chain((!self.paused).then_some(self.stalled)).min()
    }

    /// The action that is due now.
    pub fn due(&mut self, now: Instant) -> Option<DueAction> {
        if !self.paused && self.stalled <= now {
            return Some(DueAction::Stalled);
        }
        self.next_probe.take_if(|due| *due <= now).map(|_| DueAction::Probe { probe: self.number })
    }

    /// All hosts are alive; the next probe follows after a longer interval.
    pub fn all_alive(&mut self, now: Instant) {
        self.late = self.latency.next_probe_at(self.late, now);
        self.next_probe = Some(self.late);
    }

    /// Keeps the silent hosts during the search for a route that avoids them.
    pub fn set_silent(&mut self, silent: Vec<NodeId>) {
        self.silent = silent;
    }

    /// Takes the silent hosts of the probe with this number; none of an earlier probe.
    pub fn take_silent(&mut self, probe: u32) -> Vec<NodeId> {
        if probe == self.number { std::mem::take(&mut self.silent) } else { Vec::new() }
    }

    /// No route avoids the silent hosts. They may recover, or another host may join.
    pub fn no_alternative(&mut self, now: Instant) {
        self.late = self.latency.late_at();
        self.next_probe = Some(now + SEARCH_INTERVAL);
    }
}
