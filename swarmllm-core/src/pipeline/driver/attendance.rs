//! When the hosts of a session that waits are asked for their stages, and what follows from their answers. Pure; time is an
//! argument.

use std::time::{Duration, Instant};

use crate::base::NodeId;
use crate::pipeline::watch::Watch;

/// No answer from the chain for so long means that a stage hangs; a dead one is noticed by its connection long before.
pub(super) const STALL_DEADLINE: Duration = Duration::from_secs(120);
/// How often a route around silent hosts is looked for where there is none.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    /// The hosts are to be asked for their stages.
    Ask { question: u32 },
    /// Nobody waits any longer.
    Stalled,
}

/// See the module.
pub(super) struct Attendance {
    watch: Watch,
    /// The present question, or the last.
    question: u32,
    /// When an answer is late, or was said to be the last time that all hosts were there.
    late: Instant,
    /// When hosts are asked; nothing while they are being asked.
    ask: Option<Instant>,
    stalled: Instant,
    /// Whether answers are not read, so that no stage can be said to hang.
    paused: bool,
    /// Hosts that are silent, while a route without them is looked for.
    silent: Vec<NodeId>,
}

impl Attendance {
    /// Hosts answer from now on.
    pub fn new(now: Instant) -> Self {
        let watch = Watch::new(now);
        let (late, stalled) = (watch.late_at(), now + STALL_DEADLINE);
        Self { watch, question: 0, late, ask: None, stalled, paused: false, silent: Vec::new() }
    }

    /// Other hosts answer from now on.
    pub fn restart(&mut self, now: Instant) {
        self.watch = Watch::new(now);
        self.waits(now);
    }

    /// An answer has come, so long after its step was sent.
    pub fn heard(&mut self, round: Duration, now: Instant) {
        self.watch.heard(round, now);
    }

    /// Whether answers are not read for now.
    pub fn pause(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// The session waits from now on. What was asked before is of no use any more.
    pub fn waits(&mut self, now: Instant) {
        self.ends_question();
        self.late = self.watch.late_at();
        (self.ask, self.stalled) = (Some(self.late), now + STALL_DEADLINE);
    }

    /// The session waits no more.
    pub fn ends_question(&mut self) {
        self.question += 1;
        self.silent.clear();
        self.ask = None;
    }

    /// The number of the present question.
    pub fn question(&self) -> u32 {
        self.question
    }

    /// When something is due.
    pub fn wake_at(&self) -> Option<Instant> {
        self.ask.into_iter().chain((!self.paused).then_some(self.stalled)).min()
    }

    /// What is due now.
    pub fn due(&mut self, now: Instant) -> Option<Due> {
        if !self.paused && self.stalled <= now {
            return Some(Due::Stalled);
        }
        self.ask.take_if(|ask| *ask <= now).map(|_| Due::Ask { question: self.question })
    }

    /// All hosts are there, and are asked again less and less often.
    pub fn all_there(&mut self, now: Instant) {
        self.late = self.watch.later(self.late, now);
        self.ask = Some(self.late);
    }

    /// These hosts are silent; a route without them is looked for.
    pub fn are_silent(&mut self, silent: Vec<NodeId>) {
        self.silent = silent;
    }

    /// The silent hosts, where a route without them is looked for by the question with this number.
    pub fn silent(&mut self, question: u32) -> Vec<NodeId> {
        if question == self.question { std::mem::take(&mut self.silent) } else { Vec::new() }
    }

    /// No route does without the silent hosts. They may come to themselves, or another host may come.
    pub fn bears(&mut self, now: Instant) {
        self.late = self.watch.late_at();
        self.ask = Some(now + LOOK_AGAIN);
    }
}
