//! The steps of a session in flight, and the timing of answered ones. Pure; time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::base::NodeId;
use crate::ledger::price;
use crate::pipeline::route::StageReport;
use crate::pipeline::route::active::ActiveRoute;
use crate::pipeline::session::speculation::StepTiming;
use crate::wire::job::LogitsHeader;

/// A sent step without its answer.
pub(super) struct SentStep {
    /// Time of sending, minus the time of its draft.
    sent_at: Instant,
    /// Time that the draft model took for it.
    drafting: Duration,
    rows: u32,
    /// Rows whose output is wanted.
    wanted: u32,
}

/// Debt to a peer for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Debt {
    pub peer: NodeId,
    pub rows: u32,
    /// Thousandths of a credit.
    pub milli: u64,
}

/// See the module.
pub(super) struct Steps {
    in_flight: VecDeque<SentStep>,
    /// Reports of the stages of all routes; the current route is the last.
    reports: Vec<StageReport>,
    /// Number of reports of earlier routes.
    earlier: usize,
    /// Microseconds of each decode step on the current route, from sending to answer.
    rounds: Vec<u32>,
    /// Time of the last answer.
    answered: Instant,
    /// Time of the draft for the next step.
    drafting: Duration,
}

impl Steps {
    /// Without steps, on the first route.
    pub fn new(reports: Vec<StageReport>, now: Instant) -> Self {
        let (in_flight, rounds) = (VecDeque::new(), Vec::new());
        Self { in_flight, reports, earlier: 0, rounds, answered: now, drafting: Duration::ZERO }
    }

    /// The route failed: its steps in flight are lost.
    pub fn lose(&mut self) {
        self.in_flight.clear();
        self.rounds.clear();
        self.drafting = Duration::ZERO;
    }

    /// Continues on the next route.
    pub fn resume(&mut self, reports: Vec<StageReport>, now: Instant) {
        self.earlier = self.reports.len();
        self.reports.extend(reports);
        self.answered = now;
    }

    /// Records the time of the draft for the next step.
    pub fn drafted(&mut self, drafting: Duration) {
        self.drafting = drafting;
    }

    /// Records a step that is sent.
    pub fn sends(&mut self, rows: u32, wanted: u32, now: Instant) {
        let drafting = std::mem::take(&mut self.drafting);
        let sent_at = now.checked_sub(drafting).unwrap_or(now);
        self.in_flight.push_back(SentStep { sent_at, drafting, rows, wanted });
    }

    /// Drops the last step, which was not sent.
    pub fn drop_last(&mut self) {
        self.in_flight.pop_back();
    }

    /// Restarts the timing of steps in flight, after a pause of the reader.
    pub fn restart_timing(&mut self, now: Instant) {
        self.in_flight.iter_mut().for_each(|sent| sent.sent_at = now);
    }

    /// Whether no step is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Takes the answer to the first step in flight; returns its timing, its time in flight, and the step. `prefill`
    /// says whether it is a step of input.
    pub fn answered(
        &mut self,
        header: &LogitsHeader,
        prefill: bool,
        now: Instant,
    ) -> (StepTiming, Duration, Option<SentStep>) {
        for (report, us) in self.reports.iter_mut().skip(self.earlier).zip(&header.compute_us) {
            match prefill {
                true => report.prefill_us += u64::from(*us),
                false => report.decode_us.push(*us),
            }
        }
        let micros = |time: Duration| time.as_micros().try_into().unwrap_or(u32::MAX);
        let sent = self.in_flight.pop_front();
        let time = sent.as_ref().map_or(Duration::ZERO, |sent| now.saturating_duration_since(sent.sent_at));
        let answered = std::mem::replace(&mut self.answered, now);
        let (round, gap) = (micros(time), micros(now.saturating_duration_since(answered)));
        let busy = header.compute_us.iter().copied().max().unwrap_or(round);
        let computed = header.compute_us.iter().fold(0, |all: u32, us| all.saturating_add(*us));
        let drafting = sent.as_ref().map_or(0, |sent| micros(sent.drafting));
        if !prefill {
            self.rounds.push(round);
        }
        (StepTiming { round, gap, busy, computed, drafting }, time, sent)
    }

    /// Debts for all steps in flight.
    pub fn owed(&self, route: &ActiveRoute) -> Vec<Debt> {
        self.in_flight.iter().flat_map(|sent| sent.owed(route)).collect()
    }

    /// Reports of the stages of all routes, in order.
    pub fn reports(&self) -> &[StageReport] {
        &self.reports
    }

    /// Reports of the stages of the current route.
    pub fn present(&self) -> &[StageReport] {
        &self.reports[self.earlier..]
    }

    /// Median of the decode steps on the current route; 0 of none.
    pub fn median_round(&self) -> u32 {
        median(&self.rounds)
    }
}

impl SentStep {
    /// Debts for the step: to every peer of the route, and to standbys for what they computed.
    pub fn owed(&self, route: &ActiveRoute) -> Vec<Debt> {
        let debt = |peer, milli| Debt { peer, rows: self.rows, milli };
        let stages =
            route.paid_hosts().map(|(peer, weight)| debt(peer, price::step_cost(weight, self.rows, self.wanted)));
        stages
            .chain(route.paid_standbys().map(|(peer, weight)| debt(peer, price::step_cost(weight, self.rows, 0))))
            .collect()
    }
}

/// The median; 0 of none.
pub(super) fn median(micros: &[u32]) -> u32 {
    let mut sorted = micros.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}
