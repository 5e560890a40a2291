//! Guesses ahead, without a second model: what followed the last time when these tokens were seen. Pure.
//!
//! [`NGrams`] proposes, [`Pace`] says how many guesses are worth their rows: the more tokens of the text so far speak for a
//! guess, the more often it is right, which is learnt of every token that came, guessed or not. The stages compute a
//! window of guesses in one step; the coordinator samples row after row and keeps guesses for as long as they are what it
//! would have chosen, so that a guess never changes what is said, only how fast. (Prompt lookup decoding, as in Saxena
//! 2023; the verification is that of Leviathan et al. 2023 for a draft that is certain of itself.)
//!
//! A window may follow another before that one is confirmed, so that stages which would wait for it have work meanwhile.
//!
//! What a window costs is no simple function of its rows (llama.cpp takes some numbers of rows by other ways than others,
//! and an accelerator prepares each number once), so each length is tried before it is judged, twice where nothing was
//! known of it; [`Lessons`] keep what was learnt in one answer for the next ones.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::base::ModelId;
use crate::engine::WANTED_ROWS;

/// Longest and shortest suffix that is looked up.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;
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

/// The text so far, by its n-grams, and the earlier place that it goes on like.
pub struct NGrams {
    tokens: Vec<u32>,
    /// Hash of an n-gram to the position behind its last occurrence but the present one.
    seen: [HashMap<u64, u32>; LONGEST - SHORTEST + 1],
    source: Option<Source>,
}

/// An earlier place of the text.
#[derive(Debug, Clone, Copy)]
struct Source {
    /// Of the token that is thought to come next.
    next: usize,
    /// What speaks for that token.
    ground: Ground,
}

impl NGrams {
    /// An index of a text, to be extended by [`push`](Self::push).
    pub fn new(tokens: &[u32]) -> Self {
        let room = Vec::with_capacity(tokens.len());
        let mut index = Self { tokens: room, seen: Default::default(), source: None };
        tokens.iter().for_each(|token| index.push(*token));
        index
    }

    /// Takes a token into the text. The n-grams that ended before it become findable.
    pub fn push(&mut self, token: u32) {
        let end = self.tokens.len();
        for (seen, length) in self.seen.iter_mut().zip(SHORTEST..=LONGEST) {
            if let Some(gram) = end.checked_sub(length).and_then(|start| self.tokens.get(start..end)) {
                // A context is far below 2^32 tokens.
                seen.insert(hash(gram), end as u32);
            }
        }
        self.tokens.push(token);
        self.source = self.source.and_then(|source| self.along(source, token)).or_else(|| self.found());
    }

    /// The next token as it is thought to come, and what speaks for it.
    pub fn next(&self) -> Option<(u32, Ground)> {
        let source = self.source?;
        Some((*self.tokens.get(source.next)?, source.ground))
    }

    /// What followed at the place that the text goes on like, at most `most` tokens; empty where there is none. What has
    /// gone round once is thought to go round again.
    pub fn guess(&self, most: usize) -> Vec<u32> {
        let Some(Source { next, ground }) = self.source else { return Vec::new() };
        let piece = self.tokens.get(next..).unwrap_or_default();
        let round = matches!(ground, Ground::Repeats(support) if support >= piece.len());
        piece.iter().cycle().take(if round { most } else { most.min(piece.len()) }).copied().collect()
    }

    /// How the source goes on behind a token. Where it says another one, the text may have that token in the place of the
    /// source's, or before it.
    fn along(&self, source: Source, token: u32) -> Option<Source> {
        let Source { next, ground } = source;
        let is_at = |place: usize| self.tokens.get(place) == Some(&token);
        if is_at(next) {
            return Some(Source { next: next + 1, ground: ground.later(1) });
        }
        match ground {
            Ground::Parted(_) if is_at(next - 1) => Some(Source { next, ground: ground.later(1) }),
            Ground::Repeats(support) if support >= LONGEST => {
                self.found().or(Some(Source { next: next + 1, ground: Ground::Parted(support) }))
            }
            _ => None,
        }
    }

    /// The place where the longest known suffix of the text was last seen.
    fn found(&self) -> Option<Source> {
        let end = self.tokens.len();
        self.seen.iter().rev().zip((SHORTEST..=LONGEST).rev()).find_map(|(seen, support)| {
            let gram = self.tokens.get(end.checked_sub(support)?..end)?;
            // Equal hashes of other n-grams would only cost a wrong guess.
            let next = *seen.get(&hash(gram))? as usize;
            Some(Source { next, ground: Ground::Repeats(support) })
        })
    }
}

/// FNV-1a over the tokens.
fn hash(gram: &[u32]) -> u64 {
    let bytes = gram.iter().flat_map(|token| token.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// Weight of a new measurement of time in the running ones, and how fast old guesses are forgotten.
const FRESH: f64 = 0.2;
const MEMORY: f64 = 0.98;
/// Kinds of guesses: those behind a token that was another, those for which two or three tokens speak, from four on, from
/// eight, from sixteen; and a draft model's.
const KINDS: usize = 6;
/// What is assumed before anything was seen: so many of them are right, with the weight of two that were seen; and a row
/// more costs a quarter of a token's time.
const FIRST_RIGHT: [f64; KINDS] = [0.6, 0.7, 0.8, 0.9, 0.95, 0.8];
const FIRST_MADE: f64 = 2.0;
const FIRST_SLOPE: f64 = 0.25;
/// What other answers have seen counts at most as so many guesses: this one may be of another kind.
const KNOWN_MADE: f64 = 8.0;
/// A window must promise so much more than a plain token: estimates are not exact.
const MARGIN: f64 = 1.05;
/// After so many tokens without guesses although there were some, a short window tries again.
const RETRY: u32 = 48;
/// Models of which costs are remembered; beyond that all is learnt anew.
const MODELS: usize = 256;
/// By so much remembered costs go back to what is assumed at first, with each answer: a length that was measured at a bad
/// moment is tried again.
const FORGET: f64 = 0.1;

/// Nothing was measured yet.
const UNKNOWN: [Option<f64>; LENGTHS.len()] = [None; LENGTHS.len()];

/// The longest window of at most so many guesses.
pub fn window_of(guesses: usize) -> usize {
    LENGTHS.iter().copied().rfind(|length| *length <= guesses).unwrap_or(0)
}

/// What a step took, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// From its sending to its answer.
    pub round: u32,
    /// From the answer before to this one.
    pub gap: u32,
    /// At the stage that took longest to compute it.
    pub busy: u32,
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
    /// A draft model says so.
    Draft,
}

impl Ground {
    /// What speaks for the guess that is so many behind this one, where all before it are right.
    fn later(self, behind: usize) -> Self {
        match self {
            _ if behind == 0 => self,
            Self::Repeats(support) => Self::Repeats(support + behind),
            // Half of what was: it may be another text from there on.
            Self::Parted(support) => Self::Repeats(support / 2 + behind),
            Self::Draft => Self::Draft,
        }
    }

    /// Which of [`KINDS`] it is.
    fn kind(self) -> usize {
        match self {
            Self::Parted(_) => 0,
            Self::Repeats(support) => (support.max(1).ilog2() as usize).min(KINDS - 2),
            Self::Draft => KINDS - 1,
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
}

impl Default for Learnt {
    /// What is assumed at first.
    fn default() -> Self {
        let seen = FIRST_RIGHT.map(|share| Seen { right: share * FIRST_MADE, made: FIRST_MADE });
        Self { tokens: UNKNOWN, seen }
    }
}

/// What was learnt of each model in earlier answers.
#[derive(Debug, Default)]
pub struct Lessons {
    by_model: Mutex<HashMap<ModelId, Learnt>>,
}

impl Lessons {
    /// What is known of a model.
    pub fn of(&self, model: ModelId) -> Learnt {
        let mut learnt = self.locked().get(&model).copied().unwrap_or_default();
        for (known, guesses) in learnt.tokens.iter_mut().zip(LENGTHS) {
            known.iter_mut().for_each(|known| *known += FORGET * (assumed(guesses) - *known));
        }
        learnt
    }

    /// Takes what an answer has learnt.
    pub fn learn(&self, model: ModelId, learnt: Learnt) {
        let mut by_model = self.locked();
        if by_model.len() >= MODELS && !by_model.contains_key(&model) {
            by_model.clear();
        }
        let known = by_model.entry(model).or_default();
        known.tokens.iter_mut().zip(learnt.tokens).for_each(|(known, new)| *known = new.or(*known));
        known.seen = learnt.seen;
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<ModelId, Learnt>> {
        self.by_model.lock().unwrap_or_else(PoisonError::into_inner)
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
}

impl Pace {
    /// One that begins with what earlier answers have learnt.
    pub fn new(known: Learnt) -> Self {
        let seen = known.seen.map(|Seen { right, made }| {
            let weight = made.min(KNOWN_MADE) / made;
            Seen { right: right * weight, made: made * weight }
        });
        let micros = [None; LENGTHS.len()];
        Self { seen, micros, known, busy: UNKNOWN, slow: None, streak: 0, idle: 0, single: 0 }
    }

    /// What was learnt so far.
    pub fn learnt(&self) -> Learnt {
        let plain = self.cost(0);
        let tokens = |measured: &Option<Measured>| measured.filter(|one| one.sure).map(|one| one.micros / plain);
        let measured = self.micros[0].is_some();
        Learnt {
            tokens: std::array::from_fn(|at| self.micros.get(at).filter(|_| measured && at > 0).and_then(tokens)),
            seen: self.seen,
        }
    }

    /// A token came for which there was a guess, made or not: whether that was right.
    pub fn saw(&mut self, ground: Ground, right: bool) {
        let seen = &mut self.seen[ground.kind()];
        seen.right = seen.right * MEMORY + f64::from(u8::from(right));
        seen.made = seen.made * MEMORY + 1.0;
    }

    /// How many of `available` guesses to make now.
    pub fn length(&mut self, available: usize, ground: Ground) -> usize {
        if available == 0 {
            return 0;
        }
        let plain = self.cost(0);
        let rate = |index: usize| self.expected(LENGTHS[index], ground) / self.cost(index);
        let fitting = (1..LENGTHS.len()).filter(|index| LENGTHS[*index] <= available);
        let best = fitting.max_by(|a, b| rate(*a).total_cmp(&rate(*b)));
        match best {
            Some(index) if rate(index) > MARGIN / plain => LENGTHS[index],
            // `available` may lie between two lengths; the shortest is 1.
            _ if self.idle >= RETRY => LENGTHS[1],
            _ => {
                self.idle += 1;
                0
            }
        }
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
        if let Some(index) = LENGTHS.iter().position(|length| *length == guesses) {
            learn(&mut self.busy[index], took.busy.into());
            if alone {
                self.measure(index, took.round.into());
            }
            if let (Some(windows), Some(busy)) = (windows, self.busy[index]) {
                let should = busy.max(self.cost(index) / windows.max(1) as f64).max(1.0);
                learn(&mut self.slow, f64::from(took.gap) / should);
            }
        }
        if tried > 0 {
            self.idle = 0;
            self.streak = if right == tried { self.streak.saturating_add(right) } else { 0 };
        }
    }

    /// Tokens that a window of `guesses` gives on average: `1 + p1 + p1 p2 + ... + p1 p2 .. pn`, where each guess that is
    /// right speaks for the next.
    fn expected(&self, guesses: usize, ground: Ground) -> f64 {
        let share = |behind: usize| {
            let seen = self.seen[ground.later(behind).kind()];
            seen.right / seen.made
        };
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

/// The index of a length that is one.
fn index_of(guesses: usize) -> usize {
    LENGTHS.iter().position(|length| *length == guesses).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Much speaks for the guesses.
    const LONG: Ground = Ground::Repeats(16);

    /// A window alone, at one stage.
    fn took(pace: &mut Pace, guesses: usize, right: usize, micros: u32) {
        (0..right).for_each(|_| pace.saw(LONG, true));
        (right..guesses.min(right + 1)).for_each(|_| pace.saw(LONG, false));
        let took = Took { round: micros, gap: micros, busy: micros };
        pace.took(guesses, ((right + 1).min(guesses), right), took, true, None);
    }

    #[test]
    fn what_followed_the_longest_known_suffix_is_guessed() {
        let text = [1, 2, 3, 4, 5, 9, 2, 3, 4, 7, 7, 1, 2, 3, 4];
        let grams = NGrams::new(&text);
        // `1 2 3 4` was followed by `5 9 2`, the more recent `2 3 4` by `7`: the longer suffix counts.
        assert_eq!(grams.guess(3), [5, 9, 2]);
        assert!(NGrams::new(&[1, 2, 3]).guess(3).is_empty());
        assert!(NGrams::new(&[]).guess(3).is_empty());
        assert_eq!(NGrams::new(&[8, 8, 8]).guess(5), [8; 5], "it goes round");
        assert_eq!(NGrams::new(&[1, 2, 3, 1, 2]).guess(5), [3, 1, 2], "that is not known yet");
        assert_eq!(NGrams::new(&[1, 2, 3, 1, 2, 3]).guess(5), [1, 2, 3, 1, 2]);
    }

    #[test]
    fn a_place_that_the_text_goes_on_like_is_followed_and_a_changed_token_does_not_lose_it() {
        let place: Vec<u32> = (10..30).collect();
        let next = NGrams::next;
        let after = |said: &[u32]| {
            let mut grams = NGrams::new(&place);
            said.iter().for_each(|token| grams.push(*token));
            grams
        };
        assert_eq!(next(&after(&[10])), None, "one token is no reason");
        assert_eq!(next(&after(&[10, 11])), Some((12, Ground::Repeats(2))));
        let (six, other) = ([10, 11, 12, 13, 14, 15], 7);
        assert_eq!(next(&after(&six)), Some((16, Ground::Repeats(6))));
        // Another token in the place of 16.
        let changed = [&six[..], &[other]].concat();
        assert_eq!(next(&after(&changed)), Some((17, Ground::Parted(6))));
        assert_eq!(after(&changed).guess(3), [17, 18, 19]);
        assert_eq!(next(&after(&[&changed[..], &[17]].concat())), Some((18, Ground::Repeats(4))));
        // Or before it.
        assert_eq!(next(&after(&[&changed[..], &[16]].concat())), Some((17, Ground::Repeats(4))));
        assert_eq!(next(&after(&[&changed[..], &[8]].concat())), None);
        assert_eq!(next(&after(&[10, 11, other])), None, "two tokens were a chance");
        // At its end a place has nothing more to say.
        assert_eq!(NGrams::new(&[1, 2, 1, 2]).next(), Some((1, Ground::Repeats(2))));
        assert!(after(&place).guess(3).starts_with(&[10]), "it may begin again");
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
        for _ in 0..80 {
            took(&mut pace, 3, 0, 20_000);
        }
        assert_eq!(pace.length(31, LONG), 0);
        // Now and then it tries again.
        assert!((0..=RETRY).any(|_| pace.length(31, LONG) == 1));
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

    proptest! {
        #[test]
        fn a_guess_is_a_piece_of_the_text(text in proptest::collection::vec(0u32..4, 0..60), most in 0usize..12) {
            let guess = NGrams::new(&text).guess(most);
            prop_assert!(guess.len() <= most);
            // Where it goes round, of the text and itself.
            let all = [&text[..], &guess].concat();
            prop_assert!(guess.is_empty() || (0..text.len()).any(|start| all[start..].starts_with(&guess)));
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
