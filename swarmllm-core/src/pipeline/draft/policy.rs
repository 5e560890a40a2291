//! How far a draft model goes ahead, and how many of its draft tokens are sent. Pure.
//!
//! With each token the draft model tells how likely it holds it. The product along a window is the chance that the answer comes to
//! use a draft token, and a used one saves the time of a token. It costs the draft model's time, and a row at each stage. So the
//! draft model goes on while what the next token saves, times its chance, is more than it costs, and of what it came to the
//! number of rows is sent that brings most. The time of a token is the one that drafting has come to lately: a gain below the
//! usual one is not worth its time (the marginal value theorem, Charnov 1976).
//!
//! All is counted in plain tokens: laps around the stages without draft tokens. Rows are measured by their number, since engines
//! take some numbers by other ways than others. What is lost is bounded by a purse, as in [`Pace`](super::Pace).

use super::pace::{Draft, Took};

/// Most draft tokens of a window.
const MOST: usize = 15;
/// How likely a draft model's token is the answer's, before anything is known.
const FIRST_CHANCE: f64 = 0.8;
/// What is assumed before it was measured, of the part of a plain token's time in which stages compute: a row more, and a draft
/// token over what the bytes of the two models say. Measured on a processor with two cores, of a model of 1.5B in 4 bits and
/// one of 0.5B: 0.36, and 0.6 where the bytes say 0.44.
const FIRST_ROW: f64 = 0.35;
const SMALL_IS_SLOW: f64 = 1.35;
/// Rows that a draft model reads in the time in which it makes one token, where it reads many at once: a processor does six
/// to ten.
const READ_AT_ONCE: f64 = 6.0;
/// Tokens of the text that the draft model reads at least.
const LEAST_READ: usize = 16;
/// Drafting must be faster than plain tokens by so much: estimates are not exact.
const MARGIN: f64 = 1.05;
/// After so many tokens without a draft it is asked again.
const RETRY: u32 = 48;
/// What may be lost by a model's first answer, in plain tokens, and what each plain token adds.
const FIRST_PURSE: f64 = 1.0;
const ALLOWANCE: f64 = 0.005;
/// The most that is kept.
const FULL_PURSE: f64 = 16.0;
/// What could be lost counts at least by such a chance.
const LEAST_CHANCE: f64 = 0.25;
/// How fast old laps and old draft tokens are forgotten, and the weight of a new time in a running one.
const MEMORY: f64 = 0.9;
const FRESH: f64 = 0.2;
/// What earlier answers have seen counts as so many laps, what is assumed at first as one; draft tokens of earlier answers as
/// so many.
const KNOWN_LAPS: f64 = 3.0;
const KNOWN_TOKENS: f64 = 8.0;
/// By so much the remembered cost of rows goes back to what is assumed, with each answer.
const FORGET: f64 = 0.1;
/// Bounds of what is measured, so that a bad moment says nothing absurd: the computing part of a lap, and what a row and a draft
/// token cost of it.
const LEAST_COMPUTING: f64 = 0.01;
const MOST_ROW: f64 = 2.0;
const MOST_TOKEN: f64 = 2.0;
/// The draft model goes on behind a window under way that is right as a whole with at least such a chance.
const LIKELY: f64 = 0.25;

/// By number of draft tokens in a window.
type ByLength = [Option<f64>; MOST + 1];

/// Laps with draft tokens, the older the less they count.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Laps {
    /// Tokens that they brought.
    tokens: f64,
    /// Plain tokens' times that they took.
    time: f64,
    count: f64,
}

impl Laps {
    fn add(&mut self, tokens: f64, time: f64) {
        self.tokens = self.tokens * MEMORY + tokens;
        self.time = self.time * MEMORY + time;
        self.count = self.count * MEMORY + 1.0;
    }

    /// As if they had been so many.
    fn weighed(self, count: f64) -> Self {
        let by = if self.count > 0.0 { count / self.count } else { 0.0 };
        Self { tokens: self.tokens * by, time: self.time * by, count: self.count * by }
    }

    /// Tokens in the time of a plain one.
    fn rate(&self) -> f64 {
        self.tokens / self.time.max(f64::EPSILON)
    }
}

/// What an answer has learnt of a draft model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftLearnt {
    /// What windows cost, without the draft's own time.
    rows: ByLength,
    laps: Laps,
    /// Draft tokens that were right, and those that were to be right by their chances.
    right: f64,
    hoped: f64,
    purse: f64,
    /// What a row and a draft token cost, of the computing part of a plain token.
    row: f64,
    token: Option<f64>,
}

impl Default for DraftLearnt {
    /// What is assumed at first.
    fn default() -> Self {
        let laps = Laps { tokens: 0.0, time: 0.0, count: 0.0 };
        let rows = [None; MOST + 1];
        Self { rows, laps, right: KNOWN_TOKENS, hoped: KNOWN_TOKENS, purse: FIRST_PURSE, row: FIRST_ROW, token: None }
    }
}

/// A token of a draft model, and how likely it holds that behind those before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DraftToken {
    pub token: u32,
    pub chance: f32,
}

/// How a draft model goes on with a text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Drafted {
    pub tokens: Vec<DraftToken>,
    /// How many of them it made when it was asked; the others it had made before.
    pub made: usize,
    /// Tokens of the text that it read before, outside of the time that it tells.
    pub read: usize,
}

/// How far a draft model is to go.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Horizon {
    /// Tokens at most.
    pub most: usize,
    /// Tokens of the text that it may read before.
    pub read: usize,
    /// It ends behind a token that is used with less than this chance.
    pub least: f32,
}

/// What windows of a length cost.
#[derive(Debug, Clone, Copy)]
struct Measured {
    tokens: f64,
    /// Whether it counts for what it is: the first step of a length pays for what is prepared once.
    sure: bool,
}

/// See the module.
pub struct DraftPolicy {
    /// What a draft token and a row cost where a plain token is nothing but computing.
    weight: f64,
    row: f64,
    known: DraftLearnt,
    /// Microseconds of a plain token, and the part of them in which stages compute.
    plain: Option<f64>,
    computing: f64,
    rows: [Option<Measured>; MOST + 1],
    laps: Laps,
    right: f64,
    hoped: f64,
    purse: f64,
    /// Tokens since it was asked.
    idle: u32,
    /// The chances of the window under way, each for itself, and how many tokens the draft model made for it.
    window: Vec<f64>,
    made: usize,
}

impl DraftPolicy {
    /// One that begins with what earlier answers have learnt.
    pub fn new(known: DraftLearnt, draft: Draft) -> Self {
        let by_bytes = SMALL_IS_SLOW * f64::from(draft.weight) / 1000.0;
        let by = KNOWN_TOKENS.min(known.hoped) / known.hoped.max(f64::EPSILON);
        Self {
            weight: known.token.map_or(by_bytes, |token| token + FORGET * (by_bytes - token)),
            row: known.row,
            plain: None,
            computing: 1.0,
            rows: [None; MOST + 1],
            laps: known.laps.weighed(KNOWN_LAPS.min(known.laps.count)),
            right: known.right * by,
            hoped: known.hoped * by,
            purse: known.purse,
            idle: 0,
            window: Vec::new(),
            made: 0,
            known,
        }
    }

    /// What was learnt so far.
    pub fn learnt(&self) -> DraftLearnt {
        let measured = |length: usize| self.rows[length].filter(|one| one.sure).map(|one| one.tokens);
        DraftLearnt {
            rows: std::array::from_fn(|length| measured(length).or(self.known.rows[length])),
            laps: self.laps,
            right: self.right,
            hoped: self.hoped,
            purse: self.purse.clamp(-FIRST_PURSE, FIRST_PURSE),
            row: self.row,
            token: Some(self.weight),
        }
    }

    /// How far to go where a step has room for `room` draft tokens. Nothing where the draft model is not to be asked.
    ///
    /// What it has to read is paid from the purse. Where that is too little it reads the end of the text alone, as far as the
    /// purse goes: a draft that knows less is wrong more often, and nothing worse.
    pub fn ask(&mut self, room: usize) -> Option<Horizon> {
        self.plain?;
        self.idle = self.idle.saturating_add(1);
        let rate = self.rate();
        let risk = (self.laps.time / self.laps.count.max(1.0) - 1.0).max(self.token());
        let left = self.purse - risk * LEAST_CHANCE;
        if room == 0 || left < 0.0 || (rate <= MARGIN && self.idle <= RETRY) {
            return None;
        }
        self.idle = 0;
        let read = ((left / self.reading()) as usize).max(LEAST_READ);
        let least = (self.token() + self.row()) * rate / FIRST_CHANCE;
        Some(Horizon { most: room.min(MOST), read, least: least as f32 })
    }

    /// Tokens in the time of a plain one while drafting.
    pub fn rate(&self) -> f64 {
        self.laps.rate()
    }

    /// How many of a draft model's tokens are worth their rows.
    pub fn pick(&mut self, drafted: &Drafted) -> usize {
        self.made = drafted.made;
        self.put(-self.reading() * drafted.read as f64);
        let (trust, token) = (self.trust(), 1.0 / self.rate().max(1.0));
        let (mut chance, mut saved, mut best) = (1.0, 0.0, (0, 0.0));
        for (at, one) in drafted.tokens.iter().take(MOST).enumerate() {
            chance *= (f64::from(one.chance) * trust).min(1.0);
            saved += chance * token;
            let gain = saved - (self.cost(at + 1) - 1.0);
            if gain > best.1 {
                best = (at + 1, gain);
            }
        }
        self.window = drafted.tokens[..best.0].iter().map(|token| f64::from(token.chance)).collect();
        best.0
    }

    /// How many tokens the draft model may go on behind the window under way: the one that the answer brings and as many again as
    /// there are in it, as far as there is time. None where the window is likely to be wrong somewhere.
    pub fn foresees(&self) -> usize {
        let whole: f64 = self.window.iter().map(|chance| (chance * self.trust()).min(1.0)).product();
        let likely = !self.window.is_empty() && whole >= LIKELY;
        if likely { self.spare().min(self.window.len() + 1) } else { 0 }
    }

    /// Draft tokens that are made in the time in which a step is under way and no stage computes.
    fn spare(&self) -> usize {
        ((1.0 - self.computing) / self.token().max(f64::EPSILON)) as usize
    }

    /// A plain token, for which nobody was asked.
    pub fn took_plain(&mut self, took: Took) {
        let round = f64::from(took.round.max(1));
        let computing = f64::from(took.computed.min(took.round)) / round;
        if self.plain.is_none() {
            self.computing = computing;
            self.assume();
        }
        self.computing += FRESH * (computing - self.computing);
        self.measure_plain(round);
        self.put(ALLOWANCE);
    }

    /// An answer for which the draft model was asked: of the window's draft tokens `tried` were tried and `right` were right.
    /// `alone` says whether nothing else was under way: what came behind others has waited for them.
    pub fn took(&mut self, (tried, right): (usize, usize), took: Took, alone: bool) {
        let (window, made) = (std::mem::take(&mut self.window), std::mem::take(&mut self.made));
        let (length, right) = (window.len(), right.min(window.len()));
        let round = if alone { took.round } else { took.gap.max(took.guessing) };
        let (drafting, step) = (f64::from(took.guessing), f64::from(round.saturating_sub(took.guessing).max(1)));
        if length == 0 && alone {
            self.measure_plain(step);
        }
        let (came, plain) = (right as f64 + 1.0, self.plain.unwrap_or(step).max(1.0));
        // What is prepared once for a length is not the draft's fault.
        let rows = if self.is_sure(length) { step / plain } else { (step / plain).min(self.assumed(length)) };
        // Nor is a moment in which the machine did something else.
        let drafting = (drafting / plain).min(made.max(1) as f64 * MOST_TOKEN);
        self.put(came - rows - drafting);
        self.laps.add(came, rows + drafting);
        if alone {
            self.measure(length, step / plain);
            self.weigh(length, step / plain, made, drafting);
        }
        for (at, chance) in window.iter().take(tried).enumerate() {
            self.hoped = self.hoped * MEMORY.sqrt() + chance;
            self.right = self.right * MEMORY.sqrt() + f64::from(u8::from(at < right));
        }
    }

    /// What a row and a draft token cost, by a window of this length and the `made` tokens before it.
    fn weigh(&mut self, length: usize, step: f64, made: usize, drafting: f64) {
        let computing = self.computing.max(LEAST_COMPUTING);
        if made > 0 {
            let token = (drafting / made as f64 / computing).min(MOST_TOKEN);
            self.weight += FRESH * (token - self.weight);
        }
        if length > 0 {
            let row = ((step - 1.0) / length as f64 / computing).clamp(0.0, MOST_ROW);
            self.row += FRESH * (row - self.row);
        }
    }

    /// How much more often than they were to be draft tokens were right.
    fn trust(&self) -> f64 {
        self.right / self.hoped.max(f64::EPSILON)
    }

    /// A draft token's time, and a row's as it is assumed. They compute, while a far answer mostly travels.
    fn token(&self) -> f64 {
        self.weight * self.computing
    }

    /// What a token of the text costs that it reads, where it reads many.
    fn reading(&self) -> f64 {
        self.token().max(f64::EPSILON) / READ_AT_ONCE
    }

    fn row(&self) -> f64 {
        self.row * self.computing
    }

    fn put(&mut self, tokens: f64) {
        self.purse = (self.purse + tokens).min(FULL_PURSE);
    }

    /// Takes in what laps are thought to be where nobody knows: of the length that promises most.
    fn assume(&mut self) {
        let lap = |length: usize| Laps {
            tokens: (0..=length).map(|nth| FIRST_CHANCE.powi(nth as i32)).sum(),
            time: 1.0 + (self.token() + self.row()) * length as f64,
            count: 1.0,
        };
        let best = (1..=MOST).map(lap).max_by(|one, other| one.rate().total_cmp(&other.rate()));
        let (known, assumed) = (self.laps, best.unwrap_or(self.laps));
        self.laps = Laps {
            tokens: known.tokens + assumed.tokens,
            time: known.time + assumed.time,
            count: known.count + assumed.count,
        };
    }

    fn assumed(&self, length: usize) -> f64 {
        1.0 + self.row() * length as f64
    }

    /// What a window of this length costs without the draft's own time: as measured, as in earlier answers, or as is assumed.
    /// The first measurement may tell that it is less, not that it is more.
    fn cost(&self, length: usize) -> f64 {
        let forgetting = |known: f64| known + FORGET * (self.assumed(length) - known);
        match (self.rows[length], self.known.rows[length]) {
            (Some(Measured { tokens, sure: true }), _) => tokens,
            (Some(Measured { tokens, sure: false }), _) => tokens.min(self.assumed(length)),
            (None, Some(known)) => forgetting(known),
            (None, None) => self.assumed(length),
        }
    }

    fn is_sure(&self, length: usize) -> bool {
        length == 0 || self.rows[length].map_or(self.known.rows[length].is_some(), |one| one.sure)
    }

    fn measure(&mut self, length: usize, tokens: f64) {
        let sure = self.is_sure(length);
        self.rows[length] = Some(match self.rows[length] {
            None => Measured { tokens, sure },
            Some(Measured { sure: false, .. }) => Measured { tokens, sure: true },
            Some(known) => Measured { tokens: known.tokens + FRESH * (tokens - known.tokens), sure: true },
        });
    }

    fn measure_plain(&mut self, micros: f64) {
        let plain = self.plain.get_or_insert(micros);
        *plain += FRESH * (micros - *plain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ModelId;
    use crate::pipeline::draft::Lessons;
    use proptest::prelude::*;

    const PLAIN: Took = Took { round: 40_000, gap: 40_000, busy: 10_000, computed: 10_000, guessing: 0 };

    fn draft(weight: u32) -> Draft {
        Draft { model: ModelId([3; 32]), weight }
    }

    fn drafted(chances: &[f32], made: usize) -> Drafted {
        let tokens = chances.iter().map(|chance| DraftToken { token: 7, chance: *chance }).collect();
        Drafted { tokens, made, read: 0 }
    }

    /// One of so many thousandths where a lap takes so many microseconds, 10,000 of them computing.
    fn policy(weight: u32, lap: u32) -> DraftPolicy {
        let mut policy = DraftPolicy::new(DraftLearnt::default(), draft(weight));
        assert_eq!(policy.ask(31), None, "nothing before a plain token has told what one costs");
        policy.took_plain(Took { round: lap, gap: lap, ..PLAIN });
        policy
    }

    /// A lap behind a draft that made tokens of these chances, of which `right` are right, where a row takes `row` of a plain
    /// lap; gives the tokens that came and the plain laps that it took.
    fn lap(policy: &mut DraftPolicy, chances: &[f32], right: usize, row: f64) -> (f64, f64) {
        let length = policy.pick(&drafted(chances, chances.len()));
        let right = right.min(length);
        let drafting = (policy.token() * chances.len() as f64 * f64::from(PLAIN.round)) as u32;
        let step = ((1.0 + row * length as f64) * f64::from(PLAIN.round)) as u32;
        policy.took(
            ((right + 1).min(length), right),
            Took { round: step + drafting, guessing: drafting, ..PLAIN },
            true,
        );
        (right as f64 + 1.0, f64::from(step + drafting) / f64::from(PLAIN.round))
    }

    #[test]
    fn a_draft_is_asked_where_answers_travel_and_not_where_it_takes_their_cores() {
        assert_eq!(policy(600, 10_000).ask(31), None, "the same machine computes both");
        let far = policy(440, 40_000).ask(31).unwrap();
        assert!(far.least < 0.6, "three quarters of a lap are travelling: {far:?}");
        assert!(policy(50, 10_000).ask(31).is_some(), "a very small one pays anywhere");
        assert_eq!(policy(1500, 12_000).ask(31), None, "one larger than the model does not");
    }

    #[test]
    fn a_draft_reads_of_a_long_text_what_the_purse_pays_for() {
        let mut policy = policy(300, 40_000);
        let read = policy.ask(31).unwrap().read;
        assert!((LEAST_READ..200).contains(&read), "{read}");
        policy.pick(&Drafted { read, ..drafted(&[0.9], 1) });
        assert!((0.0..0.5).contains(&policy.purse), "what was read is paid, and there was enough: {}", policy.purse);
        policy.put(10.0);
        assert!(policy.ask(31).unwrap().read > 500, "what it has gained it may spend");
    }

    #[test]
    fn a_moment_in_which_the_machine_was_busy_does_not_end_drafting_for_good() {
        let mut policy = policy(200, 40_000);
        for _ in 0..10 {
            lap(&mut policy, &[0.9; 3], 3, 0.05);
        }
        policy.pick(&drafted(&[0.9; 3], 3));
        let took = Took { round: 2_040_000, gap: 2_040_000, guessing: 2_000_000, ..PLAIN };
        policy.took((3, 3), took, true);
        assert!(policy.learnt().token.unwrap() <= MOST_TOKEN);
        assert!(policy.ask(31).is_some());
    }

    #[test]
    fn what_waited_behind_other_steps_says_nothing_of_its_own_cost() {
        let mut policy = policy(200, 40_000);
        (0..3).for_each(|_| _ = lap(&mut policy, &[0.9], 1, 0.05));
        let (cost, time) = (policy.cost(1), policy.laps.time);
        assert_eq!(policy.pick(&drafted(&[0.9], 1)), 1);
        policy.took((1, 1), Took { round: 400_000, gap: 42_000, ..PLAIN }, false);
        assert_eq!(policy.cost(1), cost);
        assert!(policy.laps.time < time + 2.0, "{:?}", policy.laps);
    }

    #[test]
    fn what_is_unlikely_to_be_used_is_not_sent_and_ends_the_window() {
        let mut policy = policy(200, 40_000);
        assert_eq!(policy.pick(&drafted(&[0.95, 0.9, 0.9], 0)), 3);
        assert_eq!(policy.pick(&drafted(&[0.95, 0.02, 0.9], 0)), 1);
        assert_eq!(policy.pick(&drafted(&[0.01], 0)), 0);
        assert_eq!(policy.pick(&drafted(&[], 0)), 0);
    }

    #[test]
    fn a_number_of_rows_that_is_cheaper_than_a_smaller_one_is_taken() {
        let mut policy = policy(200, 40_000);
        // Two rows and three take twice and three times as long, four hardly longer than one.
        let cost = |length: usize| if length == 3 { 1.1 } else { 1.0 + length as f64 };
        for nth in 0..60 {
            let length = policy.pick(&drafted(&[0.8; 3][..1 + nth % 3], 0));
            let took = Took { round: (cost(length) * 40_000.0) as u32, ..PLAIN };
            policy.took((length, length), took, true);
        }
        assert_eq!(policy.pick(&drafted(&[0.8, 0.8, 0.8], 0)), 3);
        assert_eq!(policy.pick(&drafted(&[0.8, 0.8], 0)), 0);
    }

    #[test]
    fn chances_that_promise_too_much_are_believed_less() {
        let mut policy = policy(50, 40_000);
        (0..40).for_each(|nth| _ = lap(&mut policy, &[0.9; 7], usize::from(nth % 3 > 0), 0.05));
        assert!(policy.trust() < 0.9, "{}", policy.trust());
        assert!(policy.pick(&drafted(&[0.9; 7], 0)) < 7);
    }

    #[test]
    fn it_goes_on_behind_a_window_that_is_likely_to_be_right_as_far_as_there_is_time() {
        let mut policy = policy(500, 40_000);
        policy.pick(&drafted(&[0.95, 0.95], 0));
        assert_eq!(policy.foresees(), 3, "six would fit");
        policy.pick(&drafted(&[0.4, 0.4], 0));
        assert_eq!(policy.foresees(), 0, "it is likely to be wrong");
        let mut near = self::policy(100, 10_000);
        near.pick(&drafted(&[0.95, 0.95], 0));
        assert_eq!(near.foresees(), 0, "nothing travels");
    }

    /// Plays 200 tokens with a draft that is right as `right` says for each token, and sure of itself; gives the plain laps
    /// that were lost, and how often it was asked.
    fn played(policy: &mut DraftPolicy, right: impl Fn(usize) -> bool, row: f64) -> (f64, usize) {
        let (mut said, mut time, mut asked) = (0, 0.0, 0);
        while said < 200 {
            match policy.ask(31) {
                None => {
                    policy.took_plain(PLAIN);
                    (said, time) = (said + 1, time + 1.0);
                }
                Some(horizon) => {
                    asked += 1;
                    let hits = (0..horizon.most).take_while(|nth| right(said + nth)).count();
                    let made = vec![0.9; horizon.most.min(4)];
                    let (came, took) = lap(policy, &made, hits, row);
                    (said, time) = (said + came as usize, time + took);
                }
            }
        }
        (time - said as f64, asked)
    }

    #[test]
    fn a_draft_that_is_always_wrong_is_asked_a_few_times_and_now_and_then_in_a_later_answer() {
        let (lessons, model) = (Lessons::default(), ModelId([1; 32]));
        let answers = (0..40).map(|_| {
            let mut policy = DraftPolicy::new(lessons.of_draft(model, ModelId([3; 32])), draft(200));
            let (lost, asked) = played(&mut policy, |_| false, 0.1);
            lessons.learn_draft(model, ModelId([3; 32]), policy.learnt());
            (lost, asked)
        });
        let answers: Vec<(f64, usize)> = answers.collect();
        assert!(answers.iter().all(|(lost, _)| *lost <= FIRST_PURSE + 200.0 * ALLOWANCE + 0.5), "{answers:?}");
        assert!(answers[1..].iter().all(|(_, asked)| *asked <= 20), "{answers:?}");
        assert!(answers[20..].iter().any(|(_, asked)| *asked > 0), "{answers:?}");
    }

    #[test]
    fn a_draft_that_is_right_saves_most_of_an_answer() {
        let (lost, _) = played(&mut policy(200, 40_000), |_| true, 0.05);
        assert!(lost < -120.0, "{lost} of 200");
    }

    proptest! {
        #[test]
        fn an_answer_takes_no_longer_than_its_purse_allows_whatever_the_draft_is_like(
            pattern in proptest::collection::vec(any::<bool>(), 1..40),
            row in 0.0f64..1.0,
            weight in 1u32..2000,
        ) {
            let (lost, _) = played(&mut policy(weight, 40_000), |at| pattern[at % pattern.len()], row);
            // A length is tried at what it is assumed to cost, and may cost this much more; the last lap may lose more than
            // there was, the less likely the more, and more than the laps before.
            let unknown: f64 = (1..=4).map(|length| row * f64::from(length)).sum();
            let allowed = FIRST_PURSE + 200.0 * ALLOWANCE + unknown + 2.0 * FIRST_PURSE / LEAST_CHANCE;
            prop_assert!(lost <= allowed, "{lost} laps, {allowed} were allowed");
        }
    }
}
