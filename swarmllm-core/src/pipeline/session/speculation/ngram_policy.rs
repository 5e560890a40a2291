//! How many tokens of an n-gram match to send: by hit rates, by the cost of rows, and by the budget of the answer.

use super::budget::{INITIAL_BUDGET, SpeculationBudget};
use super::costs::{WindowCosts, update_average};
use super::timing::StepTiming;
use crate::engine::MAX_OUTPUT_ROWS;

/// Window lengths that are considered, in draft tokens; a step has one row more, and at most as many rows as a stage returns
/// logits of. There are few, because each must be measured, with even numbers of rows, which engines compute at once. Where
/// other sessions wait for a token, the longest is split into chunks as a prompt is (`engine/scheduler.rs`).
const LENGTHS: [usize; 7] = [0, 1, 3, 7, 15, 31, MAX_DRAFT_TOKENS];
/// Most draft tokens in flight.
pub const MAX_DRAFT_TOKENS: usize = MAX_OUTPUT_ROWS as usize - 1;
/// Most windows in flight.
const MAX_WINDOWS: usize = 8;
/// Most windows in flight after a rejected draft token, and one more for each accepted one since: windows behind a rejected
/// token delay the next step.
const FIRST_WINDOWS: usize = 2;

/// How fast old hits and misses are forgotten, by token.
const MEMORY: f64 = 0.98;
/// Classes of matches: behind a mismatch, of two or three tokens, from four on, from eight, from sixteen.
const MATCH_CLASSES: usize = 5;
/// Priors before any measurement: hit rates by class, with the weight of [`PRIOR_TRIALS`] trials, and the cost of a row in
/// plain tokens.
const PRIOR_HIT_RATES: [f64; MATCH_CLASSES] = [0.6, 0.7, 0.8, 0.9, 0.95];
const PRIOR_TRIALS: f64 = 2.0;
const PRIOR_ROW: f64 = 0.25;
/// Weight of the hit rates of earlier answers, in trials, at most: this answer may be of another kind.
const MAX_KNOWN_TRIALS: f64 = 8.0;
/// A window must be faster than a plain token by this factor, because estimates are inexact.
const MARGIN: f64 = 1.05;
/// After this many tokens with a match and without a window, a short window is tried again.
const RETRY: u32 = 48;
/// Limit of the budget, in plain tokens: enough to risk the longest window.
const MAX_BUDGET: f64 = 32.0;
/// From this many hits in a row on, proposed or not, each hit adds [`HIT_CREDIT`] to the budget.
const LONG_RUN: usize = 8;
const HIT_CREDIT: f64 = 0.1;
/// Share by which remembered costs return to the prior with each answer, so that a length measured at a bad moment is tried
/// again.
const FORGET: f64 = 0.1;

/// How to split draft tokens into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowPlan {
    /// Draft tokens behind the first token of a window.
    pub length: usize,
    /// Windows in flight at once.
    pub windows: usize,
}

/// How the place that predicts a token matches the text before that token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NGramMatch {
    /// The last `usize` tokens are equal at both places.
    Contiguous(usize),
    /// `usize` tokens were equal, then one differed.
    AfterMismatch(usize),
}

impl NGramMatch {
    /// The match of the token `distance` behind this one, if all tokens between are right.
    pub(super) fn extended(self, distance: usize) -> Self {
        match self {
            _ if distance == 0 => self,
            Self::Contiguous(length) => Self::Contiguous(length + distance),
            // Half the length: the texts may differ from there on.
            Self::AfterMismatch(length) => Self::Contiguous(length / 2 + distance),
        }
    }

    /// Index of its class.
    fn class(self) -> usize {
        match self {
            Self::AfterMismatch(_) => 0,
            Self::Contiguous(length) => (length.max(1).ilog2() as usize).min(MATCH_CLASSES - 1),
        }
    }
}

/// Predictions of a class, with decay: hits, and all.
#[derive(Debug, Clone, Copy, PartialEq)]
struct HitRate {
    hits: f64,
    trials: f64,
}

impl HitRate {
    fn rate(self) -> f64 {
        self.hits / self.trials
    }
}

/// Measurements of an answer: the costs of windows in plain tokens, and the hit rates of predictions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NGramStats {
    costs: [Option<f64>; LENGTHS.len()],
    hit_rates: [HitRate; MATCH_CLASSES],
    /// Initial budget of the next answer, in plain tokens.
    budget: f64,
}

impl Default for NGramStats {
    /// The prior.
    fn default() -> Self {
        let hit_rates = PRIOR_HIT_RATES.map(|rate| HitRate { hits: rate * PRIOR_TRIALS, trials: PRIOR_TRIALS });
        Self { costs: [None; LENGTHS.len()], hit_rates, budget: INITIAL_BUDGET }
    }
}

impl NGramStats {
    /// The statistics as the next answer begins with them: costs are moved towards the prior.
    pub(super) fn forgetting(mut self) -> Self {
        for (cost, length) in self.costs.iter_mut().zip(LENGTHS) {
            cost.iter_mut().for_each(|cost| *cost += FORGET * (prior_cost(length) - *cost));
        }
        self
    }

    /// The statistics after an answer that measured `newer`.
    pub(super) fn updated(mut self, newer: NGramStats) -> Self {
        self.costs.iter_mut().zip(newer.costs).for_each(|(cost, new)| *cost = new.or(*cost));
        Self { costs: self.costs, ..newer }
    }
}

/// Prior cost of a window, in plain tokens.
fn prior_cost(length: usize) -> f64 {
    1.0 + PRIOR_ROW * length as f64
}

/// Chooses the windows with the most tokens per time, by measured hit rates and costs.
pub struct NGramPolicy {
    hit_rates: [HitRate; MATCH_CLASSES],
    /// Microseconds of a window of `LENGTHS[i]` draft tokens with nothing else in flight, until its answer.
    costs: WindowCosts<{ LENGTHS.len() }>,
    /// The same at the slowest stage alone.
    busy: [Option<f64>; LENGTHS.len()],
    /// Measured gap between the answers of chained windows, relative to the ideal gap; `None` before a measurement.
    slowdown: Option<f64>,
    /// Accepted draft tokens since the last rejected one.
    accepted_run: usize,
    /// Tokens with a match and without a window.
    idle: u32,
    /// Windows since the last chained ones.
    single_windows: u32,
    budget: SpeculationBudget,
    /// Hits since the last miss, proposed or not.
    hit_run: usize,
}

impl NGramPolicy {
    /// A policy that begins with the statistics of earlier answers.
    pub fn new(known: NGramStats) -> Self {
        let hit_rates = known.hit_rates.map(|HitRate { hits, trials }| {
            let weight = trials.min(MAX_KNOWN_TRIALS) / trials;
            HitRate { hits: hits * weight, trials: trials * weight }
        });
        Self {
            hit_rates,
            costs: WindowCosts::new(known.costs),
            busy: [None; LENGTHS.len()],
            slowdown: None,
            accepted_run: 0,
            idle: 0,
            single_windows: 0,
            budget: SpeculationBudget::new(known.budget, MAX_BUDGET),
            hit_run: 0,
        }
    }

    /// The statistics so far.
    pub fn stats(&self) -> NGramStats {
        let plain = self.costs.reliable(0).map(|_| self.cost(0));
        let cost = |index: usize| Some(self.costs.reliable(index).filter(|_| index > 0)? / plain?);
        NGramStats { costs: std::array::from_fn(cost), hit_rates: self.hit_rates, budget: self.budget.carried_over() }
    }

    /// Records a token that a match predicted, proposed or not, and whether the prediction was right.
    pub fn observe(&mut self, matched: NGramMatch, hit: bool) {
        let rate = &mut self.hit_rates[matched.class()];
        rate.hits = rate.hits * MEMORY + f64::from(u8::from(hit));
        rate.trials = rate.trials * MEMORY + 1.0;
        self.hit_run = if hit { self.hit_run.saturating_add(1) } else { 0 };
        if self.hit_run >= LONG_RUN {
            self.budget.add(HIT_CREDIT);
        }
    }

    /// Hit rate of predictions of this class.
    fn hit_rate(&self, matched: NGramMatch) -> f64 {
        self.hit_rates[matched.class()].rate()
    }

    /// Whether the budget covers a loss of `micros`, which occurs if the first draft token is rejected.
    fn affords(&self, micros: f64, matched: NGramMatch) -> bool {
        self.budget.covers(micros / self.plain(), 1.0 - self.hit_rate(matched))
    }

    /// Records the answer to a stale step, `gap` microseconds after the answer before.
    pub fn on_stale(&mut self, gap: u32) {
        self.budget.add(-f64::from(gap) / self.plain());
    }

    /// Length of a single window, of at most `available` draft tokens.
    pub fn length(&mut self, available: usize, matched: NGramMatch) -> usize {
        // Costs are relative to a plain token, so one must be measured first.
        if available == 0 || self.costs.reliable(0).is_none() {
            return 0;
        }
        let plain = self.cost(0);
        let rate = |index: usize| self.expected(LENGTHS[index], matched) / self.cost(index);
        let affords = |index: &usize| self.affords(self.cost(*index) - plain, matched);
        let fitting = (1..LENGTHS.len()).filter(|index| LENGTHS[*index] <= available).filter(affords);
        let best = fitting.max_by(|a, b| rate(*a).total_cmp(&rate(*b)));
        match best {
            Some(index) if rate(index) > MARGIN / plain => LENGTHS[index],
            // `available` may lie between two lengths; the shortest is 1.
            Some(_) if self.idle >= RETRY => LENGTHS[1],
            _ => {
                self.idle += 1;
                0
            }
        }
    }

    /// Expected tokens of a window, per time of a plain token.
    pub fn expected_rate(&self, length: usize, matched: NGramMatch) -> f64 {
        self.expected(length, matched) * self.plain() / self.cost(index_of(length))
    }

    /// Splits at most `available` draft tokens into windows: of the length that is best for a single one, or of their first
    /// token alone, as many as pay.
    ///
    /// Several windows of `n + 1` rows bring the `L` tokens up to the first rejection in the time of one round, of the
    /// intervals of the windows that follow, and of the step that is computed in vain before the right one:
    /// `round + (L / (n + 1) - 1) * interval + busy`. The interval is that of stages on machines of their own,
    /// `max(busy, round / windows)`, times the measured slowdown, since stages may share cores.
    pub fn plan(&mut self, available: usize, matched: NGramMatch) -> WindowPlan {
        let single = self.length(available, matched);
        let rate = MARGIN * self.expected(single, matched) / self.cost(index_of(single));
        let mut best = (WindowPlan { length: single, windows: 1 }, rate);
        let until_rejection = self.expected(available, matched);
        let max_windows = MAX_WINDOWS.min(FIRST_WINDOWS.saturating_add(self.accepted_run));
        for length in [0, single] {
            let index = index_of(length);
            let (Some(busy), round, rows) = (self.busy[index], self.cost(index), length + 1) else { continue };
            if !self.costs.is_reliable(index) {
                // Chained windows would never measure this length.
                continue;
            }
            for windows in (2..=max_windows).take_while(|windows| rows * windows <= available + 1) {
                let interval = busy.max(round / windows as f64) * self.slowdown.unwrap_or(1.0).max(1.0);
                let more = (until_rejection / rows as f64 - 1.0).max(0.0);
                let rate = until_rejection / (round + more * interval + busy);
                // If the first token is rejected, the next step waits for all windows behind it.
                if !self.affords(round - self.plain() + (windows - 1) as f64 * busy, matched) {
                    break;
                }
                if rate > best.1 * (1.0 + f64::EPSILON) {
                    best = (WindowPlan { length, windows }, rate);
                }
            }
        }
        self.single_windows = if best.0.windows > 1 { 0 } else { self.single_windows + 1 };
        if self.single_windows >= RETRY {
            // An old measurement of chained windows may no longer hold.
            (self.single_windows, self.slowdown) = (0, None);
        }
        best.0
    }

    /// Records the answer to a window of `length` draft tokens. Of these and the tokens chained behind them, `tried` were
    /// verified and `accepted` accepted. `alone` says that nothing else was in flight; `windows`, of a chained window, how many
    /// were planned in flight.
    pub fn on_answer(
        &mut self,
        length: usize,
        (tried, accepted): (usize, usize),
        timing: StepTiming,
        alone: bool,
        windows: Option<usize>,
    ) {
        let gained = (accepted + 1).min(length + 1) as f64;
        let index = index_of(length);
        // A chained window has waited for those before it.
        let spent = f64::from(if alone { timing.round } else { timing.gap }) / self.plain();
        match length == 0 && alone {
            true => self.budget.add_plain_token(),
            // The one-time preparation of a length is not charged to the draft tokens.
            false if !self.costs.is_reliable(index) => self.budget.add(gained - spent.min(prior_cost(length))),
            false => self.budget.add(gained - spent),
        }
        update_average(&mut self.busy[index], timing.busy.into());
        if alone {
            self.costs.measure(index, timing.round.into());
        }
        if let (Some(windows), Some(busy)) = (windows, self.busy[index]) {
            let ideal = busy.max(self.cost(index) / windows.max(1) as f64).max(1.0);
            update_average(&mut self.slowdown, f64::from(timing.gap) / ideal);
        }
        if tried > 0 {
            self.idle = 0;
            self.accepted_run = if accepted == tried { self.accepted_run.saturating_add(accepted) } else { 0 };
        }
    }

    /// Expected tokens of a window: `1 + p1 + p1 p2 + ... + p1 p2 .. pn`, where each accepted token lengthens the match of the
    /// next.
    fn expected(&self, length: usize, matched: NGramMatch) -> f64 {
        let (all, _) = (0..length).fold((1.0, 1.0), |(all, joint), distance| {
            let joint = joint * self.hit_rate(matched.extended(distance));
            (all + joint, joint)
        });
        all
    }

    /// Microseconds of a plain token.
    fn plain(&self) -> f64 {
        self.costs.reliable(0).map_or(1.0, |plain| plain.max(1.0))
    }

    /// Microseconds of a window, extrapolated from the nearest shorter one with a reliable measurement.
    fn extrapolated(&self, index: usize) -> f64 {
        let shorter = (1..index).rev().find_map(|at| Some((LENGTHS[at], self.costs.reliable(at)?)));
        let slope = |(length, micros): (usize, f64)| ((micros - self.plain()) / length as f64).max(0.0);
        shorter.map_or(f64::INFINITY, |shorter| self.plain() + slope(shorter) * LENGTHS[index] as f64)
    }

    /// Microseconds of a window: measured, of earlier answers, or the prior.
    fn cost(&self, index: usize) -> f64 {
        let plain = self.plain();
        let prior = self.extrapolated(index).min(plain * prior_cost(LENGTHS[index]));
        self.costs.cost(index, prior, |tokens| plain * tokens).max(1.0)
    }
}

/// The index of a length, or of the next longer one.
fn index_of(length: usize) -> usize {
    LENGTHS.iter().position(|known| *known >= length).unwrap_or(LENGTHS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::super::budget::{ALLOWANCE, MIN_LOSS_PROBABILITY};
    use super::*;
    use crate::base::ModelId;
    use crate::pipeline::session::speculation::SpeculationHistory;
    use proptest::prelude::*;

    /// A long match.
    const LONG: NGramMatch = NGramMatch::Contiguous(16);

    /// A window with nothing else in flight, at one stage.
    fn answer(policy: &mut NGramPolicy, length: usize, accepted: usize, micros: u32) {
        (0..accepted).for_each(|_| policy.observe(LONG, true));
        (accepted..length.min(accepted + 1)).for_each(|_| policy.observe(LONG, false));
        let timing = StepTiming { round: micros, gap: micros, busy: micros, computed: micros, drafting: 0 };
        policy.on_answer(length, ((accepted + 1).min(length), accepted), timing, true, None);
    }

    #[test]
    fn windows_grow_with_the_match_and_hits_count_without_a_proposal() {
        let tokens = |policy: &mut NGramPolicy, matched| {
            answer(policy, 0, 0, 10_000);
            policy.length(31, matched)
        };
        let mut policy = NGramPolicy::new(NGramStats::default());
        assert!(
            tokens(&mut policy, NGramMatch::AfterMismatch(20)) >= 7,
            "a text mostly continues behind a changed word"
        );
        (0..60).for_each(|_| policy.observe(NGramMatch::AfterMismatch(20), false));
        assert_eq!(tokens(&mut policy, NGramMatch::AfterMismatch(20)), 0, "this one does not");
        (0..60).for_each(|_| policy.observe(NGramMatch::Contiguous(2), false));
        assert_eq!(tokens(&mut policy, NGramMatch::Contiguous(2)), 0);
        assert!(tokens(&mut policy, NGramMatch::Contiguous(20)) >= 7, "of another class");
        (0..200).for_each(|_| policy.observe(NGramMatch::Contiguous(2), true));
        let (history, model) = (SpeculationHistory::default(), ModelId([1; 32]));
        assert!(tokens(&mut policy, NGramMatch::Contiguous(2)) > 0, "hits count without a proposal");
        history.record_ngrams(model, policy.stats());
        let (known, first) = (NGramPolicy::new(history.ngram_stats(model)), NGramPolicy::new(NGramStats::default()));
        let (known, first) = (known.hit_rates[1], first.hit_rates[1]);
        assert!(known.trials <= MAX_KNOWN_TRIALS && known.rate() > first.rate());
    }

    #[test]
    fn windows_are_long_while_draft_tokens_are_accepted_and_rows_cheap() {
        let mut policy = NGramPolicy::new(NGramStats::default());
        for _ in 0..40 {
            answer(&mut policy, 0, 0, 10_000);
            answer(&mut policy, 31, 31, 30_000);
        }
        assert_eq!(policy.length(31, LONG), 31);
        assert_eq!(policy.length(5, LONG), 3);
        let wrong = (0..80).take_while(|_| match policy.length(31, LONG) {
            0 => false,
            length => {
                answer(&mut policy, length, 0, 20_000);
                true
            }
        });
        assert!((1..80).contains(&wrong.count()));
        // It retries rarely, once plain tokens have refilled the budget.
        let tries = (0..2000).filter(|_| {
            let length = policy.length(31, LONG);
            answer(&mut policy, length, 0, if length == 0 { 10_000 } else { 15_000 });
            length > 0
        });
        let tries = tries.count();
        assert!((1..=30).contains(&tries), "{tries} tries in 2,000 tokens, each of which lost half a token");
    }

    #[test]
    fn rows_that_cost_as_much_as_tokens_end_speculation() {
        let mut policy = NGramPolicy::new(NGramStats::default());
        let micros = [(0, 10_000), (1, 20_500), (3, 41_000), (7, 82_000), (15, 165_000), (31, 330_000)];
        for (length, micros) in [micros, micros].concat() {
            answer(&mut policy, length, length * 4 / 5, micros);
        }
        assert_eq!(policy.length(31, LONG), 0);
    }

    #[test]
    fn a_length_is_measured_twice_and_remembered() {
        let (history, model) = (SpeculationHistory::default(), ModelId([1; 32]));
        // As measured with llama.cpp and a small model: up to six rows cost nearly as many tokens, eight rows less than
        // six.
        let tokens = |wanted| {
            [(0, 1.0), (1, 1.8), (3, 3.3), (7, 3.9), (15, 7.5), (31, 13.4)]
                .into_iter()
                .find_map(|(length, tokens)| (length == wanted).then_some(tokens))
        };
        let mut chosen = Vec::new();
        for _ in 0..3 {
            let mut policy = NGramPolicy::new(history.ngram_stats(model));
            chosen.clear();
            answer(&mut policy, 0, 0, 10_000);
            for _ in 0..12 {
                let length = policy.length(31, LONG);
                chosen.push(length);
                answer(&mut policy, length, length, (10_000.0 * tokens(length).unwrap()) as u32);
            }
            history.record_ngrams(model, policy.stats());
        }
        assert!(chosen.iter().skip(2).all(|length| *length >= 7), "{chosen:?}");
        // The first step of a length pays for its preparation.
        let mut policy = NGramPolicy::new(NGramStats::default());
        answer(&mut policy, 0, 0, 10_000);
        answer(&mut policy, 7, 7, 900_000);
        assert!(policy.length(7, LONG) == 7, "a second measurement");
        answer(&mut policy, 7, 7, 12_000);
        assert!(policy.length(7, LONG) == 7 && policy.stats().costs[3] == Some(1.2));
        // Nothing is known of other models.
        assert_eq!(history.ngram_stats(ModelId([2; 32])), NGramStats::default());
    }

    /// Plays an answer of `tokens` tokens: `accepted` says which draft tokens are accepted, `cost` what a window takes in
    /// plain tokens. Returns the loss in plain tokens, and the number of hits credited without a proposal.
    fn played(
        policy: &mut NGramPolicy,
        tokens: usize,
        accepted: impl Fn(usize, bool) -> bool,
        cost: impl Fn(usize) -> f64,
    ) -> (f64, usize) {
        let (mut generated, mut time, mut trusted) = (0, 0.0, 0);
        while generated < tokens {
            let length = policy.length(31, LONG);
            let hits = (0..length).take_while(|nth| accepted(generated + nth, true)).count();
            let micros = (cost(length) * 10_000.0) as u32;
            match length {
                0 => policy.observe(LONG, accepted(generated, false)),
                _ => (0..(hits + 1).min(length)).for_each(|nth| policy.observe(LONG, nth < hits)),
            }
            trusted += usize::from(policy.hit_run >= LONG_RUN) * (hits + 1);
            let timing = StepTiming { round: micros, gap: micros, busy: micros, computed: micros, drafting: 0 };
            policy.on_answer(length, ((hits + 1).min(length), hits), timing, true, None);
            (generated, time) = (generated + hits + 1, time + cost(length));
        }
        (time - generated as f64, trusted)
    }

    #[test]
    fn rejected_draft_tokens_cost_at_most_one_token_and_half_a_percent() {
        let cost = |length: usize| 1.0 + 0.25 * length as f64;
        let (history, model) = (SpeculationHistory::default(), ModelId([1; 32]));
        for answer in 0..3 {
            let mut policy = NGramPolicy::new(history.ngram_stats(model));
            let (lost, _) = played(&mut policy, 400, |_, _| false, cost);
            assert!(lost <= INITIAL_BUDGET + 400.0 * ALLOWANCE, "{lost} tokens in answer {answer}");
            assert!(answer == 0 || lost <= 400.0 * ALLOWANCE + 0.5, "{lost} tokens with a spent budget");
            history.record_ngrams(model, policy.stats());
        }
    }

    #[test]
    fn a_repetitive_text_is_speculated_despite_a_spent_budget() {
        let stats = NGramStats {
            budget: 0.0,
            hit_rates: [HitRate { hits: 40.0, trials: 80.0 }; MATCH_CLASSES],
            ..NGramStats::default()
        };
        let (lost, _) = played(&mut NGramPolicy::new(stats), 160, |_, _| true, |length| 1.0 + 0.25 * length as f64);
        assert!(lost < -80.0, "less than half the time: {lost}");
    }

    #[test]
    fn a_window_ten_times_as_slow_ends_speculation_for_a_while() {
        let mut policy = NGramPolicy::new(NGramStats::default());
        answer(&mut policy, 0, 0, 10_000);
        (0..3).for_each(|_| answer(&mut policy, 3, 0, 200_000));
        assert_eq!(policy.length(31, LONG), 0);
        assert_eq!(policy.stats().budget, -INITIAL_BUDGET, "the next answer begins with a bounded debt");
    }

    proptest! {
        #[test]
        fn an_answer_never_loses_more_than_its_budget(
            pattern in proptest::collection::vec(any::<bool>(), 1..50),
            slope in 0.0f64..1.2,
            fair in any::<bool>(),
        ) {
            // The hit rate of proposed tokens is the same, or 0.
            let accepted = |at: usize, made: bool| pattern[at % pattern.len()] && (fair || !made);
            let mut policy = NGramPolicy::new(NGramStats::default());
            let (lost, trusted) = played(&mut policy, 600, accepted, |length| 1.0 + slope * length as f64);
            // A length is first tried at its prior cost, and may cost this much more.
            let unknown: f64 = LENGTHS.iter().map(|length| (slope - PRIOR_ROW).max(0.0) * *length as f64).sum();
            // The last window may overdraw the budget, the less likely the more.
            let last = INITIAL_BUDGET / MIN_LOSS_PROBABILITY;
            let allowed = INITIAL_BUDGET + 600.0 * ALLOWANCE + trusted as f64 * HIT_CREDIT + unknown + last;
            prop_assert!(lost <= allowed, "{lost} tokens, {allowed} were allowed");
        }

        #[test]
        fn a_window_is_never_longer_than_the_available_draft_tokens(
            windows in proptest::collection::vec((0usize..LENGTHS.len(), 0usize..32, any::<u32>()), 0..40),
            available in 0usize..40,
        ) {
            let mut policy = NGramPolicy::new(NGramStats::default());
            for (index, accepted, micros) in windows {
                answer(&mut policy, LENGTHS[index], accepted.min(LENGTHS[index]), micros);
            }
            prop_assert!(policy.length(available, LONG) <= available.min(MAX_DRAFT_TOKENS));
            let plan = policy.plan(available.min(MAX_DRAFT_TOKENS), LONG);
            prop_assert!((plan.length + 1) * plan.windows <= MAX_DRAFT_TOKENS + 1);
        }
    }
}
