//! How many guesses are worth their rows: by how often guesses were right, by what rows cost, and by what an answer can lose.

use crate::base::ModelId;
use crate::engine::WANTED_ROWS;

/// Windows that are considered, in guesses: a step has one row more, and at most as many as a stage gives logits of. Few,
/// since each must be tried, and of even numbers of rows, which engines take at once. The longest is cut into slices where
/// others wait for a token, as a prompt is (`engine/schedule.rs`).
const LENGTHS: [usize; 7] = [0, 1, 3, 7, 15, 31, MAX_GUESSES];
/// Most guesses under way.
pub const MAX_GUESSES: usize = WANTED_ROWS as usize - 1;
/// Most windows under way.
const MAX_WINDOWS: usize = 8;
/// So many may be where the last guess was wrong, and one more for each right guess since: what is computed behind a wrong
/// one keeps the right step waiting.
const FIRST_WINDOWS: usize = 2;

/// Weight of a new measurement of time in the running ones, and how fast old guesses are forgotten.
const FRESH: f64 = 0.2;
const MEMORY: f64 = 0.98;
/// Kinds of guesses: those behind a token that was another, those for which two or three tokens speak, from four on, from
/// eight, from sixteen.
const KINDS: usize = 5;
/// What is assumed before anything was seen: so many of them are right, with the weight of so many that were seen; and a row
/// more costs a quarter of a token's time.
const FIRST_RIGHT: [f64; KINDS] = [0.6, 0.7, 0.8, 0.9, 0.95];
const FIRST_MADE: f64 = 2.0;
const FIRST_SLOPE: f64 = 0.25;
/// What other answers have seen counts at most as so many guesses: this one may be of another kind.
const KNOWN_MADE: f64 = 8.0;
/// A window must promise so much more than a plain token: estimates are not exact.
const MARGIN: f64 = 1.05;
/// After so many tokens without guesses although there were some, a short window tries again.
const RETRY: u32 = 48;
/// Guesses are paid from a purse, in the time of plain tokens: a window puts in what it gained and takes out what it lost,
/// and none is sent that could lose more than there is, where it may well lose. So an answer takes no longer than without
/// guesses but for what is put in for nothing: so much for a model's first answer, and so much with each plain token.
const FIRST_PURSE: f64 = 1.0;
const ALLOWANCE: f64 = 0.005;
/// What could be lost counts by how likely that is, and at least as such a chance: what was right for long may end.
const LEAST_CHANCE: f64 = 0.25;
/// Guesses that were not made and would have been right are a reason too: from so many in a row on, each puts in so much.
const LONG_RUN: usize = 8;
const TRUST: f64 = 0.1;
/// The most that is kept: enough to dare the longest window.
const FULL_PURSE: f64 = 32.0;
/// By so much remembered costs go back to what is assumed at first, with each answer: a length that was measured at a bad
/// moment is tried again.
const FORGET: f64 = 0.1;

/// Nothing was measured yet.
const UNKNOWN: [Option<f64>; LENGTHS.len()] = [None; LENGTHS.len()];

/// What a step took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// From its sending to its answer.
    pub round: u32,
    /// From the answer before to this one.
    pub gap: u32,
    /// At the stage that took longest to compute it.
    pub busy: u32,
    /// At all stages together.
    pub computed: u32,
    /// Before its sending, for what a draft model guesses; part of the round.
    pub guessing: u32,
}

impl Took {
    /// The same without what a draft model took before.
    pub fn without_guessing(self) -> Self {
        let Self { round, gap, guessing, .. } = self;
        Self { round: round.saturating_sub(guessing), gap: gap.saturating_sub(guessing), guessing: 0, ..self }
    }
}

/// A draft model, as far as its guesses are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Draft {
    /// The draft model.
    pub model: ModelId,
    /// Bytes that it reads for a token, in thousandths of those of the answering model.
    pub weight: u32,
}

/// How far to go ahead of what is certain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Guesses behind a window's first token.
    pub guesses: usize,
    /// Windows under way at once.
    pub windows: usize,
}

/// What speaks for a guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ground {
    /// The text goes on like an earlier place of it: so many tokens before the guess are the same there.
    Repeats(usize),
    /// So many were the same, and then one was another.
    Parted(usize),
}

impl Ground {
    /// What speaks for the guess that is so many behind this one, where all before it are right.
    pub(super) fn later(self, behind: usize) -> Self {
        match self {
            _ if behind == 0 => self,
            Self::Repeats(support) => Self::Repeats(support + behind),
            // Half of what was: it may be another text from there on.
            Self::Parted(support) => Self::Repeats(support / 2 + behind),
        }
    }

    /// Which of [`KINDS`] it is.
    fn kind(self) -> usize {
        match self {
            Self::Parted(_) => 0,
            Self::Repeats(support) => (support.max(1).ilog2() as usize).min(KINDS - 1),
        }
    }
}

/// Guesses of a kind: those that were right, and all.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Seen {
    right: f64,
    made: f64,
}

/// What an answer has learnt: what windows cost in the time of a plain token, and how often guesses were right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Learnt {
    tokens: [Option<f64>; LENGTHS.len()],
    seen: [Seen; KINDS],
    /// What the next answer may lose by guesses, in plain tokens.
    purse: f64,
}

impl Default for Learnt {
    /// What is assumed at first.
    fn default() -> Self {
        let seen = FIRST_RIGHT.map(|right| Seen { right: right * FIRST_MADE, made: FIRST_MADE });
        Self { tokens: UNKNOWN, seen, purse: FIRST_PURSE }
    }
}

impl Learnt {
    /// As the next answer begins with it: costs go back a little to what is assumed at first.
    pub(super) fn forgetting(mut self) -> Self {
        for (known, guesses) in self.tokens.iter_mut().zip(LENGTHS) {
            known.iter_mut().for_each(|known| *known += FORGET * (assumed(guesses) - *known));
        }
        self
    }

    /// What is known behind another answer, which has learnt this.
    pub(super) fn behind(mut self, learnt: Learnt) -> Self {
        self.tokens.iter_mut().zip(learnt.tokens).for_each(|(known, new)| *known = new.or(*known));
        Self { tokens: self.tokens, ..learnt }
    }
}

/// What a window is assumed to cost, in the time of a plain token.
fn assumed(guesses: usize) -> f64 {
    1.0 + FIRST_SLOPE * guesses as f64
}

/// What was measured of a length.
#[derive(Debug, Clone, Copy)]
struct Measured {
    micros: f64,
    /// Whether it counts for what it is: the first step of a length pays for what is prepared once.
    sure: bool,
}

/// How far to go ahead: the most tokens per time, by how often guesses were right and what rows cost.
pub struct Pace {
    seen: [Seen; KINDS],
    /// Microseconds of a step of `LENGTHS[i] + 1` rows: until its answer where nothing else was under way, and at the stage
    /// that takes longest.
    micros: [Option<Measured>; LENGTHS.len()],
    /// What earlier answers have learnt.
    known: Learnt,
    busy: [Option<f64>; LENGTHS.len()],
    /// How much longer than it should an answer takes to follow another; nothing where that was not measured.
    slow: Option<f64>,
    /// Right guesses since the last wrong one.
    streak: usize,
    idle: u32,
    /// Windows since several were under way.
    single: u32,
    /// What may be lost, in plain tokens.
    purse: f64,
    /// Right guesses since the last wrong one, made or not.
    run: usize,
}

impl Pace {
    /// One that begins with what earlier answers have learnt.
    pub fn new(known: Learnt) -> Self {
        let seen = known.seen.map(|Seen { right, made }| {
            let weight = made.min(KNOWN_MADE) / made;
            Seen { right: right * weight, made: made * weight }
        });
        let (micros, purse) = ([None; LENGTHS.len()], known.purse);
        Self { seen, micros, known, busy: UNKNOWN, slow: None, streak: 0, idle: 0, single: 0, purse, run: 0 }
    }

    /// What was learnt so far.
    pub fn learnt(&self) -> Learnt {
        let plain = self.cost(0);
        let tokens = |measured: &Option<Measured>| measured.filter(|one| one.sure).map(|one| one.micros / plain);
        let measured = self.micros[0].is_some();
        Learnt {
            tokens: std::array::from_fn(|at| self.micros.get(at).filter(|_| measured && at > 0).and_then(tokens)),
            seen: self.seen,
            purse: self.purse.clamp(-FIRST_PURSE, FIRST_PURSE),
        }
    }

    /// A token came for which there was a guess, made or not: whether that was right.
    pub fn saw(&mut self, ground: Ground, right: bool) {
        let seen = &mut self.seen[ground.kind()];
        seen.right = seen.right * MEMORY + f64::from(u8::from(right));
        seen.made = seen.made * MEMORY + 1.0;
        self.run = if right { self.run.saturating_add(1) } else { 0 };
        if self.run >= LONG_RUN {
            self.put(TRUST);
        }
    }

    fn put(&mut self, tokens: f64) {
        self.purse = (self.purse + tokens).min(FULL_PURSE);
    }

    /// How often such a guess was right.
    fn share(&self, ground: Ground) -> f64 {
        let seen = self.seen[ground.kind()];
        seen.right / seen.made
    }

    /// Whether the purse has what could be lost, in microseconds, where the first guess is such a one.
    fn dares(&self, micros: f64, ground: Ground) -> bool {
        micros * (1.0 - self.share(ground)).max(LEAST_CHANCE) <= self.purse * self.plain()
    }

    /// An answer to what was computed in vain came so long after the one before.
    pub fn wasted(&mut self, gap: u32) {
        self.put(-f64::from(gap) / self.plain());
    }

    /// How many of `available` guesses to make now.
    pub fn length(&mut self, available: usize, ground: Ground) -> usize {
        // What a guess may cost is told in plain tokens, so that one of these comes first.
        if available == 0 || self.micros[0].is_none() {
            return 0;
        }
        let plain = self.cost(0);
        let rate = |index: usize| self.expected(LENGTHS[index], ground) / self.cost(index);
        let dares = |index: &usize| self.dares(self.cost(*index) - plain, ground);
        let fitting = (1..LENGTHS.len()).filter(|index| LENGTHS[*index] <= available).filter(dares);
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

    /// Tokens that a window of so many guesses gives on average, in the time of a plain one.
    pub fn promise(&self, guesses: usize, ground: Ground) -> f64 {
        self.expected(guesses, ground) * self.plain() / self.cost(index_of(guesses))
    }

    /// How far to go with `available` guesses: windows of the length that is best for one, or of none but their first
    /// token, as many as pay.
    ///
    /// Several windows of `n + 1` rows bring the `L` tokens up to the first wrong guess in the time of one round, of the
    /// intervals of the windows that follow, and of the step that is computed in vain before the right one:
    /// `round + (L / (n + 1) - 1) * interval + busy`. The interval is what stages on machines of their own would make of
    /// it, `max(busy, round / windows)`, and longer by as much as was measured: stages may share their cores.
    pub fn reach(&mut self, available: usize, ground: Ground) -> Reach {
        let one = self.length(available, ground);
        let rate = MARGIN * self.expected(one, ground) / self.cost(index_of(one));
        let mut best = (Reach { guesses: one, windows: 1 }, rate);
        let until_wrong = self.expected(available, ground);
        let most = MAX_WINDOWS.min(FIRST_WINDOWS.saturating_add(self.streak));
        for guesses in [0, one] {
            let index = index_of(guesses);
            let (Some(busy), round, rows) = (self.busy[index], self.cost(index), guesses + 1) else { continue };
            if !self.is_sure(index) {
                // It would never be measured by itself.
                continue;
            }
            for windows in (2..=most).take_while(|windows| rows * windows <= available + 1) {
                let interval = busy.max(round / windows as f64) * self.slow.unwrap_or(1.0).max(1.0);
                let more = (until_wrong / rows as f64 - 1.0).max(0.0);
                let rate = until_wrong / (round + more * interval + busy);
                // Where the first is wrong, the right step waits for all that follow.
                if !self.dares(round - self.plain() + (windows - 1) as f64 * busy, ground) {
                    break;
                }
                if rate > best.1 * (1.0 + f64::EPSILON) {
                    best = (Reach { guesses, windows }, rate);
                }
            }
        }
        self.single = if best.0.windows > 1 { 0 } else { self.single + 1 };
        if self.single >= RETRY {
            // What was measured of several windows long ago may be so no more.
            (self.single, self.slow) = (0, None);
        }
        best.0
    }

    /// A window of `guesses`, of which with what followed it in other windows `tried` were tried and `right` were right.
    /// `alone` says that nothing else was under way; `windows`, where it followed another that was right, how many were
    /// to be under way.
    pub fn took(
        &mut self,
        guesses: usize,
        (tried, right): (usize, usize),
        took: Took,
        alone: bool,
        windows: Option<usize>,
    ) {
        let came = (right + 1).min(guesses + 1);
        // What came behind others has waited for them too.
        let spent = f64::from(if alone { took.round } else { took.gap }) / self.plain();
        match guesses == 0 && alone {
            true => self.put(ALLOWANCE),
            // What is prepared once for a length is not the guesses' fault.
            false if !self.is_sure(index_of(guesses)) => self.put(came as f64 - spent.min(assumed(guesses))),
            false => self.put(came as f64 - spent),
        }
        let index = index_of(guesses);
        learn(&mut self.busy[index], took.busy.into());
        if alone {
            self.measure(index, took.round.into());
        }
        if let (Some(windows), Some(busy)) = (windows, self.busy[index]) {
            let should = busy.max(self.cost(index) / windows.max(1) as f64).max(1.0);
            learn(&mut self.slow, f64::from(took.gap) / should);
        }
        if tried > 0 {
            self.idle = 0;
            self.streak = if right == tried { self.streak.saturating_add(right) } else { 0 };
        }
    }

    /// Tokens that a window of `guesses` gives on average: `1 + p1 + p1 p2 + ... + p1 p2 .. pn`, where each guess that is
    /// right speaks for the next.
    fn expected(&self, guesses: usize, ground: Ground) -> f64 {
        let share = |behind: usize| self.share(ground.later(behind));
        let (all, _) = (0..guesses).fold((1.0, 1.0), |(all, sure), behind| {
            let sure = sure * share(behind);
            (all + sure, sure)
        });
        all
    }

    fn plain(&self) -> f64 {
        self.micros[0].map_or(1.0, |plain| plain.micros.max(1.0))
    }

    /// Microseconds of a window, where the nearest shorter one that was measured tells the price of a row.
    fn hoped(&self, index: usize) -> f64 {
        let shorter =
            (1..index).rev().find_map(|at| Some((LENGTHS[at], self.micros[at].filter(|one| one.sure)?.micros)));
        let slope = |(guesses, micros): (usize, f64)| ((micros - self.plain()) / guesses as f64).max(0.0);
        shorter.map_or(f64::INFINITY, |shorter| self.plain() + slope(shorter) * LENGTHS[index] as f64)
    }

    fn is_sure(&self, index: usize) -> bool {
        self.micros[index].map_or(self.known.tokens[index].is_some(), |measured| measured.sure)
    }

    fn measure(&mut self, index: usize, micros: f64) {
        let sure = index == 0 || self.known.tokens[index].is_some();
        self.micros[index] = Some(match self.micros[index] {
            None => Measured { micros, sure },
            Some(Measured { sure: false, .. }) => Measured { micros, sure: true },
            Some(known) => Measured { micros: known.micros + FRESH * (micros - known.micros), sure: true },
        });
    }

    /// Microseconds of a window: as measured, as in earlier answers, or as is assumed. One measurement alone may tell that
    /// it is less, not that it is more.
    fn cost(&self, index: usize) -> f64 {
        let plain = self.plain();
        let assumed = self.hoped(index).min(plain * assumed(LENGTHS[index]));
        match (self.micros[index], self.known.tokens[index]) {
            (Some(Measured { micros, sure: true }), _) => micros.max(1.0),
            (Some(Measured { micros, sure: false }), _) => micros.clamp(1.0, assumed.max(1.0)),
            (None, Some(known)) => plain * known,
            (None, None) => assumed,
        }
    }
}

fn learn(known: &mut Option<f64>, value: f64) {
    let known = known.get_or_insert(value);
    *known += FRESH * (value - *known);
}

/// The index of a length, or of the next one.
fn index_of(guesses: usize) -> usize {
    LENGTHS.iter().position(|length| *length >= guesses).unwrap_or(LENGTHS.len() - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::draft::Lessons;
    use proptest::prelude::*;

    /// Much speaks for the guesses.
    const LONG: Ground = Ground::Repeats(16);

    /// A window alone, at one stage.
    fn took(pace: &mut Pace, guesses: usize, right: usize, micros: u32) {
        (0..right).for_each(|_| pace.saw(LONG, true));
        (right..guesses.min(right + 1)).for_each(|_| pace.saw(LONG, false));
        let took = Took { round: micros, gap: micros, busy: micros, computed: micros, guessing: 0 };
        pace.took(guesses, ((right + 1).min(guesses), right), took, true, None);
    }

    #[test]
    fn the_more_speaks_for_a_guess_the_longer_is_the_window_and_what_was_heard_counts_without_guessing() {
        let tokens = |pace: &mut Pace, ground| {
            took(pace, 0, 0, 10_000);
            pace.length(31, ground)
        };
        let mut pace = Pace::new(Learnt::default());
        assert!(tokens(&mut pace, Ground::Parted(20)) >= 7, "where one word was changed the text mostly goes on");
        (0..60).for_each(|_| pace.saw(Ground::Parted(20), false));
        assert_eq!(tokens(&mut pace, Ground::Parted(20)), 0, "but not this one");
        (0..60).for_each(|_| pace.saw(Ground::Repeats(2), false));
        assert_eq!(tokens(&mut pace, Ground::Repeats(2)), 0);
        assert!(tokens(&mut pace, Ground::Repeats(20)) >= 7, "of another kind");
        (0..200).for_each(|_| pace.saw(Ground::Repeats(2), true));
        let (lessons, model) = (Lessons::default(), ModelId([1; 32]));
        assert!(tokens(&mut pace, Ground::Repeats(2)) > 0, "no guess was needed to learn that");
        lessons.learn(model, pace.learnt());
        let share = |seen: Seen| seen.right / seen.made;
        let (known, first) = (Pace::new(lessons.of(model)), Pace::new(Learnt::default()));
        assert!(known.seen[1].made <= KNOWN_MADE && share(known.seen[1]) > share(first.seen[1]));
    }

    #[test]
    fn windows_are_long_where_guesses_are_right_and_rows_are_cheap_and_none_where_they_are_not() {
        let mut pace = Pace::new(Learnt::default());
        for _ in 0..40 {
            took(&mut pace, 0, 0, 10_000);
            took(&mut pace, 31, 31, 30_000);
        }
        assert_eq!(pace.length(31, LONG), 31);
        assert_eq!(pace.length(5, LONG), 3);
        let wrong = (0..80).take_while(|_| match pace.length(31, LONG) {
            0 => false,
            guesses => {
                took(&mut pace, guesses, 0, 20_000);
                true
            }
        });
        assert!((1..80).contains(&wrong.count()));
        // Now and then it tries again, when plain tokens have paid for it.
        let tries = (0..2000).filter(|_| {
            let guesses = pace.length(31, LONG);
            took(&mut pace, guesses, 0, if guesses == 0 { 10_000 } else { 15_000 });
            guesses > 0
        });
        let tries = tries.count();
        assert!((1..=30).contains(&tries), "{tries} tries in 2,000 tokens, of which each lost a half");
    }

    #[test]
    fn rows_that_cost_as_much_as_tokens_are_not_guessed() {
        let mut pace = Pace::new(Learnt::default());
        let micros = [(0, 10_000), (1, 20_500), (3, 41_000), (7, 82_000), (15, 165_000), (31, 330_000)];
        for (guesses, micros) in [micros, micros].concat() {
            took(&mut pace, guesses, guesses * 4 / 5, micros);
        }
        assert_eq!(pace.length(31, LONG), 0);
    }

    #[test]
    fn a_length_is_tried_twice_before_it_is_judged_and_the_next_answer_knows() {
        let (lessons, model) = (Lessons::default(), ModelId([1; 32]));
        // As llama.cpp has it for a small model: up to six rows nearly as many tokens, eight rows less than six.
        let tokens = |guesses| {
            [(0, 1.0), (1, 1.8), (3, 3.3), (7, 3.9), (15, 7.5), (31, 13.4)]
                .into_iter()
                .find_map(|(length, tokens)| (length == guesses).then_some(tokens))
        };
        let mut chosen = Vec::new();
        for _ in 0..3 {
            let mut pace = Pace::new(lessons.of(model));
            chosen.clear();
            took(&mut pace, 0, 0, 10_000);
            for _ in 0..12 {
                let guesses = pace.length(31, LONG);
                chosen.push(guesses);
                took(&mut pace, guesses, guesses, (10_000.0 * tokens(guesses).unwrap()) as u32);
            }
            lessons.learn(model, pace.learnt());
        }
        assert!(chosen.iter().skip(2).all(|guesses| *guesses >= 7), "{chosen:?}");
        // What is prepared once says nothing.
        let mut pace = Pace::new(Learnt::default());
        took(&mut pace, 0, 0, 10_000);
        took(&mut pace, 7, 7, 900_000);
        assert!(pace.length(7, LONG) == 7, "once more");
        took(&mut pace, 7, 7, 12_000);
        assert!(pace.length(7, LONG) == 7 && pace.learnt().tokens[3] == Some(1.2));
        // Of other models nothing is known.
        assert_eq!(lessons.of(ModelId([2; 32])), Learnt::default());
    }

    /// Plays an answer of so many tokens: `right` says which guesses are, `cost` what a window takes in plain tokens. Gives the
    /// time it took in plain tokens, and how often the purse was trusted for guesses that were not made.
    fn played(
        pace: &mut Pace,
        tokens: usize,
        right: impl Fn(usize, bool) -> bool,
        cost: impl Fn(usize) -> f64,
    ) -> (f64, usize) {
        let (mut said, mut time, mut trusted) = (0, 0.0, 0);
        while said < tokens {
            let guesses = pace.length(31, LONG);
            let hits = (0..guesses).take_while(|nth| right(said + nth, true)).count();
            let micros = (cost(guesses) * 10_000.0) as u32;
            match guesses {
                0 => pace.saw(LONG, right(said, false)),
                _ => (0..(hits + 1).min(guesses)).for_each(|nth| pace.saw(LONG, nth < hits)),
            }
            trusted += usize::from(pace.run >= LONG_RUN) * (hits + 1);
            let took = Took { round: micros, gap: micros, busy: micros, computed: micros, guessing: 0 };
            pace.took(guesses, ((hits + 1).min(guesses), hits), took, true, None);
            (said, time) = (said + hits + 1, time + cost(guesses));
        }
        (time - said as f64, trusted)
    }

    #[test]
    fn guesses_that_are_wrong_whenever_they_are_made_cost_an_answer_a_token_and_a_half_percent() {
        let cost = |guesses: usize| 1.0 + 0.25 * guesses as f64;
        let (lessons, model) = (Lessons::default(), ModelId([1; 32]));
        for answer in 0..3 {
            let mut pace = Pace::new(lessons.of(model));
            let (lost, _) = played(&mut pace, 400, |_, _| false, cost);
            assert!(lost <= FIRST_PURSE + 400.0 * ALLOWANCE, "{lost} tokens in answer {answer}");
            assert!(answer == 0 || lost <= 400.0 * ALLOWANCE + 0.5, "{lost} tokens, although the purse was spent");
            lessons.learn(model, pace.learnt());
        }
    }

    #[test]
    fn a_text_that_repeats_itself_is_guessed_at_once_even_behind_answers_that_lost_all_they_had() {
        let learnt = Learnt { purse: 0.0, seen: [Seen { right: 40.0, made: 80.0 }; KINDS], ..Learnt::default() };
        let (lost, _) = played(&mut Pace::new(learnt), 160, |_, _| true, |guesses| 1.0 + 0.25 * guesses as f64);
        assert!(lost < -80.0, "less than half the time: {lost}");
    }

    #[test]
    fn a_window_that_takes_ten_times_as_long_ends_the_guessing_for_a_while() {
        let mut pace = Pace::new(Learnt::default());
        took(&mut pace, 0, 0, 10_000);
        (0..3).for_each(|_| took(&mut pace, 3, 0, 200_000));
        assert_eq!(pace.length(31, LONG), 0);
        assert_eq!(pace.learnt().purse, -FIRST_PURSE, "the next answer does not begin with all of it");
    }

    proptest! {
        #[test]
        fn an_answer_takes_no_longer_than_its_purse_allows_whatever_guesses_are_like(
            pattern in proptest::collection::vec(any::<bool>(), 1..50),
            slope in 0.0f64..1.2,
            fair in any::<bool>(),
        ) {
            // The same share is right of those that are made, or none.
            let right = |at: usize, made: bool| pattern[at % pattern.len()] && (fair || !made);
            let mut pace = Pace::new(Learnt::default());
            let (lost, trusted) = played(&mut pace, 600, right, |guesses| 1.0 + slope * guesses as f64);
            // A length is tried at what it is assumed to cost, and may cost this much more.
            let unknown: f64 = LENGTHS.iter().map(|guesses| (slope - FIRST_SLOPE).max(0.0) * *guesses as f64).sum();
            // The last window may lose more than there was, the less likely the more.
            let last = FIRST_PURSE / LEAST_CHANCE;
            let allowed = FIRST_PURSE + 600.0 * ALLOWANCE + trusted as f64 * TRUST + unknown + last;
            prop_assert!(lost <= allowed, "{lost} tokens, {allowed} were allowed");
        }

        #[test]
        fn a_length_is_never_more_than_there_are_guesses(
            windows in proptest::collection::vec((0usize..LENGTHS.len(), 0usize..32, any::<u32>()), 0..40),
            available in 0usize..40,
        ) {
            let mut pace = Pace::new(Learnt::default());
            for (index, right, micros) in windows {
                took(&mut pace, LENGTHS[index], right.min(LENGTHS[index]), micros);
            }
            prop_assert!(pace.length(available, LONG) <= available.min(MAX_GUESSES));
            let reach = pace.reach(available.min(MAX_GUESSES), LONG);
            prop_assert!((reach.guesses + 1) * reach.windows <= MAX_GUESSES + 1);
        }
    }
}
