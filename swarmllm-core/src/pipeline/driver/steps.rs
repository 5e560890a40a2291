//! The steps of a session under way, and what those that were answered took. Pure; time is an argument.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::base::NodeId;
use crate::ledger::price;
use crate::pipeline::draft::Took;
use crate::pipeline::job::StageReport;
use crate::pipeline::way::Way;
use crate::wire::job::LogitsHeader;

/// A step under way.
pub(super) struct Sent {
    /// When it was sent, or what guessing took before that.
    begun: Instant,
    /// What of that a draft model guessed for it.
    guessing: Duration,
    rows: u32,
    /// Rows whose output is wanted.
    wanted: u32,
}

/// What a peer is owed for a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Debt {
    pub peer: NodeId,
    pub rows: u32,
    /// Thousandths of a credit.
    pub milli: u64,
}

/// See the module.
pub(super) struct Steps {
    under_way: VecDeque<Sent>,
    /// The stages of the present route, behind those of earlier ones.
    reports: Vec<StageReport>,
    /// How many of them are of earlier routes.
    earlier: usize,
    /// Microseconds of each step of the answer on the present route, from its sending to its answer.
    rounds: Vec<u32>,
    /// When the last answer came.
    answered: Instant,
    /// What a draft model took for guesses that have not been sent yet.
    guessing: Duration,
}

impl Steps {
    /// Nothing was sent; these are the stages of the first route.
    pub fn new(reports: Vec<StageReport>, now: Instant) -> Self {
        let (under_way, rounds) = (VecDeque::new(), Vec::new());
        Self { under_way, reports, earlier: 0, rounds, answered: now, guessing: Duration::ZERO }
    }

    /// The route is of no use any more, and what was under way on it is lost.
    pub fn lose(&mut self) {
        self.under_way.clear();
        self.rounds.clear();
        self.guessing = Duration::ZERO;
    }

    /// These are the stages of the next route.
    pub fn resume(&mut self, reports: Vec<StageReport>, now: Instant) {
        self.earlier = self.reports.len();
        self.reports.extend(reports);
        self.answered = now;
    }

    /// A draft model took so long for what is sent next.
    pub fn guessed(&mut self, guessing: Duration) {
        self.guessing = guessing;
    }

    /// A step is sent.
    pub fn sends(&mut self, rows: u32, wanted: u32, now: Instant) {
        let guessing = std::mem::take(&mut self.guessing);
        let begun = now.checked_sub(guessing).unwrap_or(now);
        self.under_way.push_back(Sent { begun, guessing, rows, wanted });
    }

    /// The last step was not sent.
    pub fn not_sent(&mut self) {
        self.under_way.pop_back();
    }

    /// The reader had answers wait until now; that took no host so long.
    pub fn begin_again(&mut self, now: Instant) {
        self.under_way.iter_mut().for_each(|sent| sent.begun = now);
    }

    /// Whether no step is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way.is_empty()
    }

    /// Takes an answer to the first step under way: what it took, how long it was under way, and the step. `prefill` says
    /// whether it was one of text that was known.
    pub fn answered(&mut self, header: &LogitsHeader, prefill: bool, now: Instant) -> (Took, Duration, Option<Sent>) {
        for (report, us) in self.reports.iter_mut().skip(self.earlier).zip(&header.compute_us) {
            match prefill {
                true => report.prefill_us += u64::from(*us),
                false => report.decode_us.push(*us),
            }
        }
        let micros = |time: Duration| time.as_micros().try_into().unwrap_or(u32::MAX);
        let sent = self.under_way.pop_front();
        let time = sent.as_ref().map_or(Duration::ZERO, |sent| now.saturating_duration_since(sent.begun));
        let answered = std::mem::replace(&mut self.answered, now);
        let (round, gap) = (micros(time), micros(now.saturating_duration_since(answered)));
        let busy = header.compute_us.iter().copied().max().unwrap_or(round);
        let computed = header.compute_us.iter().fold(0, |all: u32, us| all.saturating_add(*us));
        let guessing = sent.as_ref().map_or(0, |sent| micros(sent.guessing));
        if !prefill {
            self.rounds.push(round);
        }
        (Took { round, gap, busy, computed, guessing }, time, sent)
    }

    /// What is owed for all steps under way.
    pub fn owed(&self, way: &Way) -> Vec<Debt> {
        self.under_way.iter().flat_map(|sent| sent.owed(way)).collect()
    }

    /// The stages of all routes, in order.
    pub fn reports(&self) -> &[StageReport] {
        &self.reports
    }

    /// The stages of the present route.
    pub fn present(&self) -> &[StageReport] {
        &self.reports[self.earlier..]
    }

    /// The middle of what the steps of the answer took on the present route; 0 of none.
    pub fn median_round(&self) -> u32 {
        median(&self.rounds)
    }
}

impl Sent {
    /// Every peer of the route is owed for a step, and who follows for what it computed.
    pub fn owed(&self, way: &Way) -> Vec<Debt> {
        let debt = |peer, milli| Debt { peer, rows: self.rows, milli };
        let stages = way.paid().map(|(peer, weight)| debt(peer, price::milli(weight, self.rows, self.wanted)));
        stages.chain(way.following().map(|(peer, weight)| debt(peer, price::milli(weight, self.rows, 0)))).collect()
    }
}

/// The middle of some times; 0 of none.
pub(super) fn median(micros: &[u32]) -> u32 {
    let mut sorted = micros.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}
