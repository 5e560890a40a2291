//! How many tokens a draft model makes, and how many of them are sent. Pure.
//!
//! The draft model states the probability of each of its tokens. The product along a window is the probability that the
//! answer uses a token, and a used token saves the time of a plain one. It costs the time of the draft model, and a row
//! at each stage. So the draft model continues while the saving of the next token, times its probability, exceeds its
//! cost; of the result, the number of rows with the highest gain is sent. The saved time is that of a token at the
//! recent rate of drafting: a gain below the usual one is not worth its time (the marginal value theorem, Charnov
//! 1976).
//!
//! All costs are in plain tokens, which are laps around the stages without draft tokens. Rows are measured by their
//! number, because engines compute some numbers by other kernels than others. A [`SpeculationBudget`] bounds the loss,
//! as in [`NGramPolicy`](super::NGramPolicy).

use super::budget::{INITIAL_BUDGET, SpeculationBudget};
use super::costs::{NEW_WEIGHT, WindowCosts, update_average};
use super::timing::StepTiming;
use crate::base::ModelId;

/// Most draft tokens of a window.
const MAX_LENGTH: usize = 15;
/// Prior acceptance rate of a draft token.
const PRIOR_ACCEPTANCE: f64 = 0.8;
/// Priors of the costs of a row and of a draft token, as shares of the computing part of a plain token; the second is a
/// factor on the ratio of the models' bytes. Measured on a processor with two cores, of a model of 1.5B in 4 bits and one of
/// 0.5B: 0.36, and 0.6 where the ratio of bytes is 0.44.
const PRIOR_ROW: f64 = 0.35;
const SMALL_MODEL_FACTOR: f64 = 1.35;
/// Rows that a draft model reads in a batch in the time of one draft token; a processor reads six to ten.
const ROWS_READ_PER_TOKEN: f64 = 6.0;
/// Fewest tokens of the text that the draft model may read.
const MIN_READ: usize = 16;
/// Drafting must be faster than plain tokens by this factor, because estimates are inexact.
const MARGIN: f64 = 1.05;
/// After this many tokens without a draft the draft model is asked again.
const RETRY: u32 = 48;
/// Limit of the budget, in plain tokens.
const MAX_BUDGET: f64 = 16.0;
/// How fast old laps and old draft tokens are forgotten, by lap.
const MEMORY: f64 = 0.9;
/// Weight of the statistics of earlier answers, in laps and in draft tokens, at most; the prior counts as one lap.
const MAX_KNOWN_LAPS: f64 = 3.0;
const MAX_KNOWN_TOKENS: f64 = 8.0;
/// Share by which remembered costs return to the prior with each answer.
const FORGET: f64 = 0.1;
/// Bounds of measurements, so that one bad moment cannot distort them: the computing part of a lap, and the costs of a row
/// and of a draft token as shares of it.
const MIN_COMPUTING: f64 = 0.01;
const MAX_ROW: f64 = 2.0;
const MAX_TOKEN: f64 = 2.0;
/// Least probability of full acceptance of a window behind which the draft model drafts ahead.
const MIN_FULL_ACCEPTANCE: f64 = 0.25;

/// A draft model as its policy weighs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DraftModel {
    /// The draft model.
    pub model: ModelId,
    /// Bytes that it reads per token, in thousandths of those of the answering model.
    pub weight: u32,
}

/// Laps with draft tokens, with decay.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Laps {
    /// Tokens that they added to the text.
    tokens: f64,
    /// Their time, in plain tokens.
    time: f64,
    count: f64,
}

impl Laps {
    fn add(&mut self, tokens: f64, time: f64) {
        self.tokens = self.tokens * MEMORY + tokens;
        self.time = self.time * MEMORY + time;
        self.count = self.count * MEMORY + 1.0;
    }

    /// The same rate with the weight of `count` laps.
    fn weighed(self, count: f64) -> Self {
        let by = if self.count > 0.0 { count / self.count } else { 0.0 };
        Self { tokens: self.tokens * by, time: self.time * by, count: self.count * by }
    }

    /// Tokens per time of a plain token.
    fn rate(&self) -> f64 {
        self.tokens / self.time.max(f64::EPSILON)
    }
}

/// Measurements of an answer with a draft model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftStats {
    /// Costs of windows in plain tokens by their draft tokens, without the draft model's own time.
    costs: [Option<f64>; MAX_LENGTH + 1],
    laps: Laps,
    /// Accepted draft tokens, and their number expected from their probabilities.
    accepted: f64,
    expected: f64,
    /// Initial budget of the next answer, in plain tokens.
    budget: f64,
    /// Costs of a row and of a draft token, as shares of the computing part of a plain token.
    row: f64,
    token: Option<f64>,
}

impl Default for DraftStats {
    /// The prior.
    fn default() -> Self {
        Self {
            costs: [None; MAX_LENGTH + 1],
            laps: Laps { tokens: 0.0, time: 0.0, count: 0.0 },
            accepted: MAX_KNOWN_TOKENS,
            expected: MAX_KNOWN_TOKENS,
            budget: INITIAL_BUDGET,
            row: PRIOR_ROW,
            token: None,
        }
    }
}

/// A token of a draft model, with its probability behind the tokens before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftToken {
    pub token: u32,
    pub probability: f32,
}

/// The continuation of a text by a draft model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DraftContinuation {
    pub tokens: Vec<DraftToken>,
    /// How many of the tokens were made on request; the others were drafted ahead.
    pub made: usize,
    /// Tokens of the text that were read before, outside of the reported time.
    pub read: usize,
}

/// Limits of one run of the draft model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftLimits {
    /// Most draft tokens.
    pub max_tokens: usize,
    /// Most tokens of the text to read before.
    pub max_read: usize,
    /// The run ends behind a token with a lower joint probability.
    pub min_probability: f32,
}

/// See the module.
pub struct DraftPolicy {
    /// Costs of a draft token and of a row, as shares of the computing part of a plain token.
    token: f64,
    row: f64,
    /// Microseconds of a plain token, and the share of them in which stages compute.
    plain: Option<f64>,
    computing: f64,
    /// Costs of windows in plain tokens by their draft tokens, without the draft model's own time.
    costs: WindowCosts<{ MAX_LENGTH + 1 }>,
    laps: Laps,
    /// Accepted draft tokens, and their number expected from their probabilities.
    accepted: f64,
    expected: f64,
    budget: SpeculationBudget,
    /// Tokens since the draft model was asked.
    idle: u32,
    /// The probabilities of the tokens of the window in flight, and how many tokens the draft model made for it.
    window: Vec<f64>,
    made: usize,
}

impl DraftPolicy {
    /// A policy that begins with the statistics of earlier answers.
    pub fn new(known: DraftStats, draft: DraftModel) -> Self {
        let by_bytes = SMALL_MODEL_FACTOR * f64::from(draft.weight) / 1000.0;
        let by = MAX_KNOWN_TOKENS.min(known.expected) / known.expected.max(f64::EPSILON);
        Self {
            token: known.token.map_or(by_bytes, |token| token + FORGET * (by_bytes - token)),
            row: known.row,
            plain: None,
            computing: 1.0,
            costs: WindowCosts::new(known.costs),
            laps: known.laps.weighed(MAX_KNOWN_LAPS.min(known.laps.count)),
            accepted: known.accepted * by,
            expected: known.expected * by,
            budget: SpeculationBudget::new(known.budget, MAX_BUDGET),
            idle: 0,
            window: Vec::new(),
            made: 0,
        }
    }

    /// The statistics so far.
    pub fn stats(&self) -> DraftStats {
        DraftStats {
            costs: std::array::from_fn(|length| self.costs.reliable(length).or(self.costs.known(length))),
            laps: self.laps,
            accepted: self.accepted,
            expected: self.expected,
            budget: self.budget.carried_over(),
            row: self.row,
            token: Some(self.token),
        }
    }

    /// Limits of the next draft, for a step with room for `room` draft tokens; `None` where the draft model is not to be asked.
    ///
    /// The budget pays for reading the text. If it covers only a part, the draft model reads only the end of the text: such a
    /// draft is wrong more often, and harms nothing else.
    pub fn ask(&mut self, room: usize) -> Option<DraftLimits> {
        self.plain?;
        self.idle = self.idle.saturating_add(1);
        let rate = self.rate();
        let risk = (self.laps.time / self.laps.count.max(1.0) - 1.0).max(self.token_cost());
        let left = self.budget.left_after(risk);
        if room == 0 || left < 0.0 || (rate <= MARGIN && self.idle <= RETRY) {
            return None;
        }
        self.idle = 0;
        let max_read = ((left / self.read_cost()) as usize).max(MIN_READ);
        let min_probability = (self.token_cost() + self.row_cost()) * rate / PRIOR_ACCEPTANCE;
        Some(DraftLimits { max_tokens: room.min(MAX_LENGTH), max_read, min_probability: min_probability as f32 })
    }

    /// Tokens per time of a plain token while drafting.
    pub fn rate(&self) -> f64 {
        self.laps.rate()
    }

    /// How many tokens of a draft are worth their rows.
    pub fn pick(&mut self, draft: &DraftContinuation) -> usize {
        self.made = draft.made;
        self.budget.add(-self.read_cost() * draft.read as f64);
        let (trust, token) = (self.trust(), 1.0 / self.rate().max(1.0));
        let (mut joint, mut saved, mut best) = (1.0, 0.0, (0, 0.0));
        for (at, one) in draft.tokens.iter().take(MAX_LENGTH).enumerate() {
            joint *= (f64::from(one.probability) * trust).min(1.0);
            saved += joint * token;
            let gain = saved - (self.cost(at + 1) - 1.0);
            if gain > best.1 {
                best = (at + 1, gain);
            }
        }
        self.window = draft.tokens[..best.0].iter().map(|token| f64::from(token.probability)).collect();
        best.0
    }

    /// Most tokens to draft ahead behind the window in flight: one for the token that the answer adds, and as many as the
    /// window has, within the idle time. None behind a window that is likely to have a rejection.
    pub fn max_ahead(&self) -> usize {
        let all_accepted: f64 = self.window.iter().map(|probability| (probability * self.trust()).min(1.0)).product();
        let likely = !self.window.is_empty() && all_accepted >= MIN_FULL_ACCEPTANCE;
        if likely { self.tokens_in_idle_time().min(self.window.len() + 1) } else { 0 }
    }

    /// Draft tokens that fit into the time of a step in which no stage computes.
    fn tokens_in_idle_time(&self) -> usize {
        ((1.0 - self.computing) / self.token_cost().max(f64::EPSILON)) as usize
    }

    /// Records a plain token, without a request to the draft model.
    pub fn on_plain_answer(&mut self, timing: StepTiming) {
        let round = f64::from(timing.round.max(1));
        let computing = f64::from(timing.computed.min(timing.round)) / round;
        if self.plain.is_none() {
            self.computing = computing;
            self.add_prior_lap();
        }
        self.computing += NEW_WEIGHT * (computing - self.computing);
        update_average(&mut self.plain, round);
        self.budget.add_plain_token();
    }

    /// Records the answer to a window of the draft model: of its draft tokens, `tried` were verified and `accepted` accepted.
    /// `alone` says whether nothing else was in flight; a chained window has waited for those before it.
    pub fn on_answer(&mut self, (tried, accepted): (usize, usize), timing: StepTiming, alone: bool) {
        let (window, made) = (std::mem::take(&mut self.window), std::mem::take(&mut self.made));
        let (length, accepted) = (window.len(), accepted.min(window.len()));
        let round = if alone { timing.round } else { timing.gap.max(timing.drafting) };
        let (drafting, step) = (f64::from(timing.drafting), f64::from(round.saturating_sub(timing.drafting).max(1)));
        if length == 0 && alone {
            update_average(&mut self.plain, step);
        }
        let (gained, plain) = (accepted as f64 + 1.0, self.plain.unwrap_or(step).max(1.0));
        // The one-time preparation of a length is not charged to the draft.
        let rows =
            if self.costs.is_reliable(length) { step / plain } else { (step / plain).min(self.prior_cost(length)) };
        // Nor is a moment in which the machine did something else.
        let drafting = (drafting / plain).min(made.max(1) as f64 * MAX_TOKEN);
        self.budget.add(gained - rows - drafting);
        self.laps.add(gained, rows + drafting);
        if alone {
            self.costs.measure(length, step / plain);
            self.update_shares(length, step / plain, made, drafting);
        }
        for (at, probability) in window.iter().take(tried).enumerate() {
            self.expected = self.expected * MEMORY.sqrt() + probability;
            self.accepted = self.accepted * MEMORY.sqrt() + f64::from(u8::from(at < accepted));
        }
    }

    /// Updates the costs of a row and of a draft token from a window of this length and the `made` tokens before it.
    fn update_shares(&mut self, length: usize, step: f64, made: usize, drafting: f64) {
        let computing = self.computing.max(MIN_COMPUTING);
        if made > 0 {
            let token = (drafting / made as f64 / computing).min(MAX_TOKEN);
            self.token += NEW_WEIGHT * (token - self.token);
        }
        if length > 0 {
            let row = ((step - 1.0) / length as f64 / computing).clamp(0.0, MAX_ROW);
            self.row += NEW_WEIGHT * (row - self.row);
        }
    }

    /// Accepted draft tokens relative to the number that their probabilities promised.
    fn trust(&self) -> f64 {
        self.accepted / self.expected.max(f64::EPSILON)
    }

    /// Cost of a draft token in plain tokens. It computes, while most of a distant step is network time.
    fn token_cost(&self) -> f64 {
        self.token * self.computing
    }

    /// Prior cost of a row in plain tokens.
    fn row_cost(&self) -> f64 {
        self.row * self.computing
    }

    /// Cost of reading one token of the text in a batch.
    fn read_cost(&self) -> f64 {
        self.token_cost().max(f64::EPSILON) / ROWS_READ_PER_TOKEN
    }

    /// Adds the prior of a lap: that of the best length.
    fn add_prior_lap(&mut self) {
        let lap = |length: usize| Laps {
            tokens: (0..=length).map(|nth| PRIOR_ACCEPTANCE.powi(nth as i32)).sum(),
            time: 1.0 + (self.token_cost() + self.row_cost()) * length as f64,
            count: 1.0,
        };
        let best = (1..=MAX_LENGTH).map(lap).max_by(|one, other| one.rate().total_cmp(&other.rate()));
        let (known, prior) = (self.laps, best.unwrap_or(self.laps));
        self.laps = Laps {
            tokens: known.tokens + prior.tokens,
            time: known.time + prior.time,
            count: known.count + prior.count,
        };
    }

    fn prior_cost(&self, length: usize) -> f64 {
        1.0 + self.row_cost() * length as f64
    }

    /// Cost of a window of this length, without the draft model's own time: measured, of earlier answers, or the prior.
    fn cost(&self, length: usize) -> f64 {
        let prior = self.prior_cost(length);
        self.costs.cost(length, prior, |known| known + FORGET * (prior - known))
    }
}

#[cfg(test)]
mod tests {
    use super::super::budget::{ALLOWANCE, MIN_LOSS_PROBABILITY};
    use super::*;
    use crate::pipeline::session::speculation::SpeculationHistory;
    use proptest::prelude::*;

    const PLAIN: StepTiming = StepTiming { round: 40_000, gap: 40_000, busy: 10_000, computed: 10_000, drafting: 0 };

    fn draft(weight: u32) -> DraftModel {
        DraftModel { model: ModelId([3; 32]), weight }
    }

    fn drafted(probabilities: &[f32], made: usize) -> DraftContinuation {
        let token = |probability: &f32| DraftToken { token: 7, probability: *probability };
        DraftContinuation { tokens: probabilities.iter().map(token).collect(), made, read: 0 }
    }

    /// A policy of a draft model of `weight` thousandths, where a lap takes `lap` microseconds, 10,000 of them
    /// computing.
    fn policy(weight: u32, lap: u32) -> DraftPolicy {
        let mut policy = DraftPolicy::new(DraftStats::default(), draft(weight));
        assert_eq!(policy.ask(31), None, "the cost of a plain token is not known yet");
        policy.on_plain_answer(StepTiming { round: lap, gap: lap, ..PLAIN });
        policy
    }

    /// A lap behind a draft of tokens with these probabilities, of which `accepted` are accepted, where a row costs
    /// `row` of a plain lap. Returns the tokens that it added and the plain laps that it took.
    fn lap(policy: &mut DraftPolicy, probabilities: &[f32], accepted: usize, row: f64) -> (f64, f64) {
        let length = policy.pick(&drafted(probabilities, probabilities.len()));
        let accepted = accepted.min(length);
        let drafting = (policy.token_cost() * probabilities.len() as f64 * f64::from(PLAIN.round)) as u32;
        let step = ((1.0 + row * length as f64) * f64::from(PLAIN.round)) as u32;
        policy.on_answer(
            ((accepted + 1).min(length), accepted),
            StepTiming { round: step + drafting, drafting, ..PLAIN },
            true,
        );
        (accepted as f64 + 1.0, f64::from(step + drafting) / f64::from(PLAIN.round))
    }

    #[test]
    fn a_draft_is_asked_over_distant_stages_and_not_on_shared_cores() {
        assert_eq!(policy(600, 10_000).ask(31), None, "one machine computes both");
        let far = policy(440, 40_000).ask(31).unwrap();
        assert!(far.min_probability < 0.6, "three quarters of a lap are network time: {far:?}");
        assert!(policy(50, 10_000).ask(31).is_some(), "a very small draft model pays anywhere");
        assert_eq!(policy(1500, 12_000).ask(31), None, "a draft model larger than the model does not");
    }

    #[test]
    fn the_budget_bounds_how_much_text_a_draft_reads() {
        let mut policy = policy(300, 40_000);
        let read = policy.ask(31).unwrap().max_read;
        assert!((MIN_READ..200).contains(&read), "{read}");
        policy.pick(&DraftContinuation { read, ..drafted(&[0.9], 1) });
        assert!(
            (0.0..0.5).contains(&policy.budget.left_after(0.0)),
            "the read is paid and was covered: {}",
            policy.budget.left_after(0.0)
        );
        policy.budget.add(10.0);
        assert!(policy.ask(31).unwrap().max_read > 500, "a gain may be spent");
    }

    #[test]
    fn one_busy_moment_does_not_end_drafting() {
        let mut policy = policy(200, 40_000);
        for _ in 0..10 {
            lap(&mut policy, &[0.9; 3], 3, 0.05);
        }
        policy.pick(&drafted(&[0.9; 3], 3));
        let timing = StepTiming { round: 2_040_000, gap: 2_040_000, drafting: 2_000_000, ..PLAIN };
        policy.on_answer((3, 3), timing, true);
        assert!(policy.stats().token.unwrap() <= MAX_TOKEN);
        assert!(policy.ask(31).is_some());
    }

    #[test]
    fn a_step_behind_others_is_no_measurement_of_its_cost() {
        let mut policy = policy(200, 40_000);
        (0..3).for_each(|_| _ = lap(&mut policy, &[0.9], 1, 0.05));
        let (cost, time) = (policy.cost(1), policy.laps.time);
        assert_eq!(policy.pick(&drafted(&[0.9], 1)), 1);
        policy.on_answer((1, 1), StepTiming { round: 400_000, gap: 42_000, ..PLAIN }, false);
        assert_eq!(policy.cost(1), cost);
        assert!(policy.laps.time < time + 2.0, "{:?}", policy.laps);
    }

    #[test]
    fn an_unlikely_token_ends_the_window() {
        let mut policy = policy(200, 40_000);
        assert_eq!(policy.pick(&drafted(&[0.95, 0.9, 0.9], 0)), 3);
        assert_eq!(policy.pick(&drafted(&[0.95, 0.02, 0.9], 0)), 1);
        assert_eq!(policy.pick(&drafted(&[0.01], 0)), 0);
        assert_eq!(policy.pick(&drafted(&[], 0)), 0);
    }

    #[test]
    fn a_longer_window_that_is_cheaper_is_preferred() {
        let mut policy = policy(200, 40_000);
        // Two rows and three take twice and three times as long, four hardly longer than one.
        let cost = |length: usize| if length == 3 { 1.1 } else { 1.0 + length as f64 };
        for nth in 0..60 {
            let length = policy.pick(&drafted(&[0.8; 3][..1 + nth % 3], 0));
            let timing = StepTiming { round: (cost(length) * 40_000.0) as u32, ..PLAIN };
            policy.on_answer((length, length), timing, true);
        }
        assert_eq!(policy.pick(&drafted(&[0.8, 0.8, 0.8], 0)), 3);
        assert_eq!(policy.pick(&drafted(&[0.8, 0.8], 0)), 0);
    }

    #[test]
    fn overconfident_probabilities_are_discounted() {
        let mut policy = policy(50, 40_000);
        (0..40).for_each(|nth| _ = lap(&mut policy, &[0.9; 7], usize::from(nth % 3 > 0), 0.05));
        assert!(policy.trust() < 0.9, "{}", policy.trust());
        assert!(policy.pick(&drafted(&[0.9; 7], 0)) < 7);
    }

    #[test]
    fn it_drafts_ahead_behind_a_likely_window_within_the_idle_time() {
        let mut policy = policy(500, 40_000);
        policy.pick(&drafted(&[0.95, 0.95], 0));
        assert_eq!(policy.max_ahead(), 3, "six would fit into the time");
        policy.pick(&drafted(&[0.4, 0.4], 0));
        assert_eq!(policy.max_ahead(), 0, "a rejection is likely");
        let mut near = self::policy(100, 10_000);
        near.pick(&drafted(&[0.95, 0.95], 0));
        assert_eq!(near.max_ahead(), 0, "there is no network time");
    }

    /// Plays 200 tokens with a draft of high probabilities that is right as `right` says for each token. Returns the
    /// loss in plain laps, and how often the draft model was asked.
    fn played(policy: &mut DraftPolicy, right: impl Fn(usize) -> bool, row: f64) -> (f64, usize) {
        let (mut generated, mut time, mut asked) = (0, 0.0, 0);
        while generated < 200 {
            match policy.ask(31) {
                None => {
                    policy.on_plain_answer(PLAIN);
                    (generated, time) = (generated + 1, time + 1.0);
                }
                Some(limits) => {
                    asked += 1;
                    let hits = (0..limits.max_tokens).take_while(|nth| right(generated + nth)).count();
                    let made = vec![0.9; limits.max_tokens.min(4)];
                    let (gained, time_taken) = lap(policy, &made, hits, row);
                    (generated, time) = (generated + gained as usize, time + time_taken);
                }
            }
        }
        (time - generated as f64, asked)
    }

    #[test]
    fn a_draft_that_is_always_wrong_is_asked_rarely() {
        let (history, model) = (SpeculationHistory::default(), ModelId([1; 32]));
        let answers = (0..40).map(|_| {
            let mut policy = DraftPolicy::new(history.draft_stats(model, ModelId([3; 32])), draft(200));
            let (lost, asked) = played(&mut policy, |_| false, 0.1);
            history.record_draft(model, ModelId([3; 32]), policy.stats());
            (lost, asked)
        });
        let answers: Vec<(f64, usize)> = answers.collect();
        assert!(answers.iter().all(|(lost, _)| *lost <= INITIAL_BUDGET + 200.0 * ALLOWANCE + 0.5), "{answers:?}");
        assert!(answers[1..].iter().all(|(_, asked)| *asked <= 20), "{answers:?}");
        assert!(answers[20..].iter().any(|(_, asked)| *asked > 0), "{answers:?}");
    }

    #[test]
    fn a_draft_that_is_right_saves_most_of_the_time() {
        let (lost, _) = played(&mut policy(200, 40_000), |_| true, 0.05);
        assert!(lost < -120.0, "{lost} of 200");
    }

    proptest! {
        #[test]
        fn an_answer_never_loses_more_than_its_budget(
            pattern in proptest::collection::vec(any::<bool>(), 1..40),
            row in 0.0f64..1.0,
            weight in 1u32..2000,
        ) {
            let (lost, _) = played(&mut policy(weight, 40_000), |at| pattern[at % pattern.len()], row);
            // A length is first tried at its prior cost, and may cost this much more. The last lap may overdraw the
            // budget, the less likely the more, and by more than the laps before.
            let unknown: f64 = (1..=4).map(|length| row * f64::from(length)).sum();
            let allowed = INITIAL_BUDGET + 200.0 * ALLOWANCE + unknown + 2.0 * INITIAL_BUDGET / MIN_LOSS_PROBABILITY;
            prop_assert!(lost <= allowed, "{lost} laps, {allowed} were allowed");
        }
    }
}
