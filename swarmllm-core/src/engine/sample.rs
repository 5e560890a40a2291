//! Sampling: the choice of the next token from a row of logits.
//!
//! The coordinator samples; the last stage only reduces the row. [`Sampler::reduce`] gives the smallest reduction with
//! which the choice equals that from the full row, bit for bit: after `top_k` only the `k` best tokens count, and a rule
//! that only lowers logits displaces at most as many of them as it touches: a penalty the tokens of its window, a bias its
//! own token. A bias that raises a logit, and a constraint, need the full row. The order of the steps is llama.cpp's:
//! biases, penalties, top-k, typical, top-p, min-p, temperature, draw.
//!
//! Guarantees: equal seeds give equal draws on every platform and in every version, because the draws are bytes of a BLAKE3
//! stream rather than of a generator that a crate may change. Ties go to the lowest token id. Rows are untrusted input:
//! they are validated and refused with a typed error.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};

use super::constraint::TokenMask;
use crate::base::ErrorKind;

mod params;

pub use params::SamplingParams;

/// Most alternatives that are reported for each token.
pub const MAX_ALTERNATIVES: u32 = 20;

/// Reduction of a row of logits at the last stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// No logits: a stage without the head gives hidden states, a stage with the head only fills its KV.
    Hidden,
    /// The `k` largest logits (at most the vocabulary), and the log-sum-exp of the whole row.
    Top(u32),
    /// The whole row.
    Full,
    /// The state behind the output norm instead of logits.
    State,
}

/// One row of output of the last stage.
#[derive(Debug, Clone, PartialEq)]
pub enum LogitRow {
    /// The largest logits with their tokens, best first (equal ones by token), and the log-sum-exp of the whole row.
    Top {
        /// Log-sum-exp of the whole row.
        lse: f32,
        /// Tokens.
        ids: Vec<u32>,
        /// Logits of the tokens.
        logits: Vec<f32>,
    },
    /// One logit for each token of the vocabulary; with [`Reduce::State`] the floats of the state.
    Full(Vec<f32>),
}

/// Error of sampling.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SampleError {
    /// A parameter is outside its range.
    #[error("`{name}`: is {value}; it must be between {low} and {high}")]
    OutOfRange { name: &'static str, value: f32, low: f32, high: f32 },
    /// Too many tokens have a bias.
    #[error("{given} tokens have a bias, at most {max} are allowed")]
    TooManyBiases { given: usize, max: usize },
    /// A token with a bias is not in the vocabulary.
    #[error("token {token} has a bias and is outside the vocabulary of {vocab} tokens")]
    BiasToken { token: u32, vocab: u32 },
    /// Biases ban every possible token.
    #[error("`logit_bias` bans every possible next token")]
    AllBanned,
    /// The system's random number generator failed.
    #[error("the system gave no random seed")]
    NoEntropy,
    /// The number of logits differs from the vocabulary, or from the number of tokens.
    #[error("the row has {logits} logits, {expected} were expected")]
    Length { logits: usize, expected: usize },
    /// The row has a token outside the vocabulary.
    #[error("the row has token {token}, outside the vocabulary of {vocab} tokens")]
    Token { token: u32, vocab: u32 },
    /// The reduced row is too short to give the full row's choice.
    #[error("the row has the {given} best logits, {needed} are needed")]
    TooFew { given: usize, needed: usize },
    /// The row holds NaN or infinity, or is empty.
    #[error("the row of logits is not finite")]
    NotFinite,
}

impl SampleError {
    /// The invalid parameter.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::OutOfRange { name, .. } => Some(name),
            Self::TooManyBiases { .. } | Self::BiasToken { .. } | Self::AllBanned => Some("logit_bias"),
            _ => None,
        }
    }

    /// The error kind for wire, C and Python.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfRange { .. } | Self::TooManyBiases { .. } | Self::BiasToken { .. } | Self::AllBanned => {
                ErrorKind::InvalidArgument
            }
            Self::NoEntropy => ErrorKind::Internal,
            Self::Length { .. } | Self::Token { .. } | Self::TooFew { .. } | Self::NotFinite => ErrorKind::BadFrame,
        }
    }
}

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub token: u32,
    pub logit: f32,
}

/// Orders by descending logit, then by ascending token. NaN must have been refused before.
pub(crate) fn rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.token.cmp(&b.token))
}

/// Logits per vector: as many as fill the widest vector register.
const LANES: usize = 16;

/// Leaves the `k` best tokens of `row` in `best`, best first. `row` must hold no NaN.
pub(crate) fn top(row: &[f32], k: usize, best: &mut Vec<Candidate>) {
    let mut best = TopK::new(k.min(row.len()), best);
    // No layer is computed during the reduction, so this and `log_sum_exp` use the CPU's widest vectors.
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || {
            for (block, first) in row.chunks(LANES).zip((0..).step_by(LANES)) {
                if best.accepts_any() || block.iter().fold(false, |over, logit| over | (*logit > best.threshold)) {
                    block.iter().zip(first..).for_each(|(&logit, token)| best.push(Candidate { token, logit }));
                }
            }
        },
    );
    best.finish();
}

/// Leaves the `k` best of `candidates` in `best`, best first. `candidates` ascend by token and hold no NaN.
fn top_of(candidates: impl Iterator<Item = Candidate>, k: usize, best: &mut Vec<Candidate>) {
    let mut best = TopK::new(k, best);
    candidates.for_each(|candidate| best.push(candidate));
    best.finish();
}

/// The best candidates so far, at most `2 k`. Nearly every logit fails the comparison with `threshold`, the `k`-th best.
struct TopK<'a> {
    k: usize,
    threshold: f32,
    candidates: &'a mut Vec<Candidate>,
}

impl<'a> TopK<'a> {
    fn new(k: usize, candidates: &'a mut Vec<Candidate>) -> Self {
        candidates.clear();
        Self { k, threshold: f32::NEG_INFINITY, candidates }
    }

    /// Whether fewer than `k` candidates were found, so that any candidate counts.
    fn accepts_any(&self) -> bool {
        self.candidates.len() < self.k
    }

    fn push(&mut self, candidate: Candidate) {
        // A later equal logit has a higher token and loses, hence the strict comparison.
        if !(candidate.logit > self.threshold || self.accepts_any()) || self.k == 0 {
            return;
        }
        self.candidates.push(candidate);
        if self.candidates.len() >= 2 * self.k {
            let (_, kth, _) = self.candidates.select_nth_unstable_by(self.k - 1, rank);
            self.threshold = kth.logit;
            self.candidates.truncate(self.k);
        }
    }

    fn finish(self) {
        self.candidates.sort_unstable_by(rank);
        self.candidates.truncate(self.k);
    }
}

/// The allowed tokens of a full row with their biases added, by ascending token. `biases` ascend by token too.
fn allowed_candidates<'a>(
    row: &'a [f32],
    biases: &'a [(u32, f32)],
    allowed: Option<&'a TokenMask>,
) -> impl Iterator<Item = Candidate> + 'a {
    let mut biases = biases.iter().peekable();
    row.iter().zip(0..).filter_map(move |(&logit, token)| {
        let bias = biases.next_if(|(biased, _)| *biased == token).map_or(0.0, |(_, bias)| *bias);
        let open = bias > SamplingParams::BAN && allowed.is_none_or(|allowed| allowed.contains(token));
        open.then_some(Candidate { token, logit: logit + bias })
    })
}

/// Log-sum-exp of a row, summed in f64. Not finite if the row holds NaN or +infinity, or is empty.
pub(crate) fn log_sum_exp(row: &[f32]) -> f32 {
    pulp::Arch::new().dispatch(
        #[inline(always)]
        || match max_logit(row) {
            Some(max) => (f64::from(max) + sum_of_exps(row, max).ln()) as f32,
            None => f32::NAN,
        },
    )
}

/// The greatest logit; `None` for an empty row and for NaN or +infinity. Computed by lanes, which the compiler vectorises.
#[inline(always)]
fn max_logit(row: &[f32]) -> Option<f32> {
    let (mut max, mut finite) = ([f32::NEG_INFINITY; LANES], [true; LANES]);
    let mut push = |lane: usize, logit: f32| {
        max[lane] = if logit > max[lane] { logit } else { max[lane] };
        finite[lane] &= logit < f32::INFINITY;
    };
    let (whole, rest) = row.as_chunks::<LANES>();
    for block in whole {
        (0..LANES).for_each(|lane| push(lane, block[lane]));
    }
    rest.iter().enumerate().for_each(|(lane, logit)| push(lane, *logit));
    let finite = !row.is_empty() && finite.iter().all(|finite| *finite);
    finite.then(|| max.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// The sum of `e^(logit - max)`: at most 256 terms of at most 1 are added in f32, by lanes.
#[inline(always)]
fn sum_of_exps(row: &[f32], max: f32) -> f64 {
    let mut sum = 0.0_f64;
    for block in row.chunks(16 * LANES) {
        let mut lanes = [0.0_f32; LANES];
        let (whole, rest) = block.as_chunks::<LANES>();
        for logits in whole {
            for (lane, logit) in lanes.iter_mut().zip(logits) {
                *lane += exp_of_negative(logit - max);
            }
        }
        let rest: f32 = rest.iter().map(|logit| exp_of_negative(logit - max)).sum();
        sum += f64::from(lanes.iter().sum::<f32>() + rest);
    }
    sum
}

/// `e^x` for `x <= 0`, to about 2 units in the last place and without a branch, so that loops over it are vectorised. The
/// standard library's function takes a third of a millisecond for a vocabulary of 49,152. Below -87, the end of f32's
/// range, the result is `e^-87`.
///
/// `e^x = 2^n * e^r` with `n` the nearest integer to `x / ln 2`, and `r` in `-ln2/2..ln2/2` by its Taylor polynomial:
/// the first term left out is `r^7/5040 < 1.3e-7`.
#[inline(always)]
fn exp_of_negative(x: f32) -> f32 {
    // ln 2 in two parts, the first, 355/512, with few enough bits that `n` times it is exact.
    const LN2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let x = if x > -87.0 { x } else { -87.0 };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (x - n * LN2.0) - n * LN2.1;
    let mut power = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        power = power * r + coefficient;
    }
    // `n` is in -126..=0, so that the exponent field is a positive number; the last bits of `rounded` count it.
    power * f32::from_bits(rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23)
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// The token.
    pub token: u32,
    /// Natural logarithm of the token's probability in the model's row, before biases, penalties and temperature; under a
    /// constraint, of its probability among the allowed tokens.
    pub logprob: f32,
    /// The likeliest allowed tokens of that row with their log-probabilities, best first, as many as requested.
    pub alternatives: Vec<(u32, f32)>,
}

/// Random draws of one seed: 53 bits each from a keyed BLAKE3 stream, equal in all versions and on all platforms.
struct DrawStream(blake3::OutputReader);

impl DrawStream {
    const CONTEXT: &'static str = "swarmllm 2026 sampler draws";

    fn new(seed: u64) -> Self {
        Self(blake3::Hasher::new_derive_key(Self::CONTEXT).update(&seed.to_le_bytes()).finalize_xof())
    }

    /// Uniform in `0..1`.
    fn next(&mut self) -> f64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Samples the tokens of one generation.
pub struct Sampler {
    params: SamplingParams,
    vocab: u32,
    seed: u64,
    draws: DrawStream,
    /// By ascending token.
    biases: Vec<(u32, f32)>,
    /// Alternatives reported for each token.
    alternatives: u32,
    recent: VecDeque<u32>,
    counts: HashMap<u32, u32>,
    // Buffers, reused between calls to avoid allocations.
    best: Vec<Candidate>,
    weights: Vec<f64>,
    allowed_logits: Vec<f32>,
}

impl Sampler {
    /// A sampler for rows of `vocab` tokens. Refuses parameters outside their ranges.
    pub fn new(params: SamplingParams, vocab: u32) -> Result<Self, SampleError> {
        params.check()?;
        if let Some(&token) = params.logit_bias.keys().find(|&&token| token >= vocab) {
            return Err(SampleError::BiasToken { token, vocab });
        }
        let seed = match params.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|_| SampleError::NoEntropy)?,
        };
        Ok(Self {
            draws: DrawStream::new(seed),
            seed,
            biases: params.logit_bias.iter().map(|(token, bias)| (*token, *bias)).collect(),
            params,
            vocab,
            alternatives: 0,
            recent: VecDeque::new(),
            counts: HashMap::new(),
            best: Vec::new(),
            weights: Vec::new(),
            allowed_logits: Vec::new(),
        })
    }

    /// Sets the number of alternatives reported for each token, at most [`MAX_ALTERNATIVES`].
    pub fn with_alternatives(self, alternatives: u32) -> Self {
        Self { alternatives: alternatives.min(MAX_ALTERNATIVES), ..self }
    }

    /// The seed in use: with this seed the same rows give the same tokens.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The smallest reduction with which [`Sampler::sample`] chooses as from the full row. Constant during a generation, so
    /// that steps may be sent before their predecessors are sampled.
    pub fn reduce(&self) -> Reduce {
        match self.params.needed_unbiased().map(|needed| needed.max(self.alternatives)) {
            // An entry of a reduced row has a token and a logit, twice the size of a full row's entry.
            Some(needed) if needed < self.vocab / 2 => Reduce::Top(needed),
            _ => Reduce::Full,
        }
    }

    /// Adds a token of the prompt or of the output to the window of recent tokens.
    pub fn accept(&mut self, token: u32) {
        if !self.params.penalises() {
            return;
        }
        self.recent.push_back(token);
        *self.counts.entry(token).or_insert(0) += 1;
        if self.recent.len() > self.params.repeat_last_n as usize
            && let Some(old) = self.recent.pop_front()
            && let Some(count) = self.counts.get_mut(&old)
        {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&old);
            }
        }
    }

    /// Samples a token. A refused row consumes no draw. The caller must [`accept`](Sampler::accept) the token.
    pub fn sample(&mut self, row: &LogitRow) -> Result<SampledToken, SampleError> {
        self.sample_within(row, None)
    }

    /// Like [`sample`](Self::sample), under a constraint; a mask needs a full row.
    pub fn sample_within(&mut self, row: &LogitRow, allowed: Option<&TokenMask>) -> Result<SampledToken, SampleError> {
        let lse = self.gather(row, allowed)?;
        self.penalise();
        if self.best.is_empty() {
            return Err(SampleError::AllBanned);
        }
        // `best` is sorted, so the greedy choice is its first.
        let chosen = if self.params.temperature > 0.0 { self.draw() } else { 0 };
        let token = self.best.get(chosen).map(|candidate| candidate.token).ok_or(SampleError::NotFinite)?;
        let logit = logit_of(row, token).ok_or(SampleError::NotFinite)?;
        let alternatives = self.alternatives(row, allowed, lse);
        Ok(SampledToken { token, logprob: (logit - lse).min(0.0), alternatives })
    }

    /// The best tokens of the unmodified row with their log-probabilities. Overwrites `best`.
    fn alternatives(&mut self, row: &LogitRow, allowed: Option<&TokenMask>, lse: f32) -> Vec<(u32, f32)> {
        let wanted = self.alternatives as usize;
        match row {
            LogitRow::Full(logits) if allowed.is_some() => {
                top_of(allowed_candidates(logits, &[], allowed), wanted, &mut self.best)
            }
            LogitRow::Full(logits) => top(logits, wanted, &mut self.best),
            LogitRow::Top { ids, logits, .. } => {
                self.best.clear();
                self.best.extend(ids.iter().zip(logits).map(|(&token, &logit)| Candidate { token, logit }));
                self.best.sort_unstable_by(rank);
                self.best.truncate(wanted);
            }
        }
        self.best.iter().map(|candidate| (candidate.token, (candidate.logit - lse).min(0.0))).collect()
    }

    /// Validates the row and leaves the candidates in `best`, best first. Returns the log-sum-exp of the row, or of the
    /// allowed tokens.
    fn gather(&mut self, row: &LogitRow, allowed: Option<&TokenMask>) -> Result<f32, SampleError> {
        let vocab = self.vocab as usize;
        let within = |needed: Option<u32>| needed.map_or(vocab, |needed| vocab.min(needed as usize));
        let kept = within(self.params.needed());
        let lse = match row {
            LogitRow::Full(logits) => {
                if logits.len() != vocab {
                    return Err(SampleError::Length { logits: logits.len(), expected: vocab });
                }
                let lse = log_sum_exp(logits);
                if lse.is_finite() {
                    match (self.biases.is_empty(), allowed) {
                        (true, None) => top(logits, kept, &mut self.best),
                        _ => top_of(allowed_candidates(logits, &self.biases, allowed), kept, &mut self.best),
                    }
                }
                match allowed {
                    // Without an allowed token `best` is empty, which `sample_within` refuses.
                    Some(allowed) if lse.is_finite() => self.log_sum_exp_within(logits, allowed).max(f32::MIN),
                    _ => lse,
                }
            }
            LogitRow::Top { .. } if allowed.is_some() => {
                return Err(SampleError::TooFew { given: 0, needed: vocab });
            }
            LogitRow::Top { lse, ids, logits } => {
                let needed = within(self.params.needed_unbiased()).max(vocab.min(self.alternatives as usize));
                self.gather_reduced(ids, logits, needed)?;
                self.best.truncate(kept);
                *lse
            }
        };
        if lse.is_finite() { Ok(lse) } else { Err(SampleError::NotFinite) }
    }

    fn log_sum_exp_within(&mut self, row: &[f32], allowed: &TokenMask) -> f32 {
        self.allowed_logits.clear();
        self.allowed_logits.extend(allowed_candidates(row, &[], Some(allowed)).map(|candidate| candidate.logit));
        log_sum_exp(&self.allowed_logits)
    }

    /// Validates a reduced row and leaves its tokens in `best` with their biases added, best first.
    fn gather_reduced(&mut self, ids: &[u32], logits: &[f32], needed: usize) -> Result<(), SampleError> {
        let vocab = self.vocab;
        if ids.len() != logits.len() || ids.len() > vocab as usize {
            return Err(SampleError::Length { logits: logits.len(), expected: ids.len().min(vocab as usize) });
        }
        if ids.len() < needed {
            return Err(SampleError::TooFew { given: ids.len(), needed });
        }
        if let Some(&token) = ids.iter().find(|&&token| token >= vocab) {
            return Err(SampleError::Token { token, vocab });
        }
        if !logits.iter().all(|logit| logit.is_finite()) {
            return Err(SampleError::NotFinite);
        }
        let biases = &self.params.logit_bias;
        let open = ids.iter().zip(logits).filter_map(|(&token, &logit)| {
            let bias = biases.get(&token).copied().unwrap_or(0.0);
            (bias > SamplingParams::BAN).then_some(Candidate { token, logit: logit + bias })
        });
        self.best.clear();
        self.best.extend(open);
        self.best.sort_unstable_by(rank);
        Ok(())
    }

    fn penalise(&mut self) {
        if self.counts.is_empty() {
            return;
        }
        let SamplingParams { repeat_penalty, presence_penalty, frequency_penalty, .. } = self.params;
        for candidate in &mut self.best {
            if let Some(&count) = self.counts.get(&candidate.token) {
                let logit = candidate.logit;
                let logit = if logit > 0.0 { logit / repeat_penalty } else { logit * repeat_penalty };
                let logit = logit - count as f32 * frequency_penalty - presence_penalty;
                candidate.logit = logit.clamp(f32::MIN, f32::MAX);
            }
        }
        self.best.sort_unstable_by(rank);
    }

    /// Top-k, typical, top-p, min-p, temperature, draw; returns an index into `best`. Sums run from the best token down in
    /// f64, so that they do not depend on the reduction.
    fn draw(&mut self) -> usize {
        let unit = self.draws.next();
        if self.params.top_k > 0 {
            self.best.truncate(self.params.top_k as usize);
        }
        if self.params.typical_p < 1.0 {
            self.keep_typical();
        }
        self.keep_probable();
        self.weigh(f64::from(self.params.temperature));
        let wanted = self.weights.iter().sum::<f64>() * unit;
        index_of_sum(&self.weights, |sum| sum > wanted)
    }

    /// Leaves the probabilities of `best` in `weights`, relative to the best token's.
    fn weigh(&mut self, temperature: f64) {
        let max = self.best.first().map_or(0.0, |candidate| f64::from(candidate.logit));
        let weight = |candidate: &Candidate| ((f64::from(candidate.logit) - max) / temperature).exp();
        self.weights.clear();
        self.weights.extend(self.best.iter().map(weight));
    }

    /// Keeps the tokens whose surprise `-ln p` is nearest to its mean, the entropy; ties go to the better token.
    fn keep_typical(&mut self) {
        self.weigh(1.0);
        let total: f64 = self.weights.iter().sum();
        // A weight of 0 contributes 0 to the entropy.
        let surprise = |weight: f64| -(weight.max(f64::MIN_POSITIVE) / total).ln();
        let entropy: f64 = self.weights.iter().map(|&weight| weight / total * surprise(weight)).sum();
        let far = |index: &usize| (surprise(self.weights[*index]) - entropy).abs();
        let mut nearest: Vec<usize> = (0..self.weights.len()).collect();
        nearest.sort_by(|a, b| far(a).total_cmp(&far(b)));
        let wanted = total * f64::from(self.params.typical_p);
        let by_nearness: Vec<f64> = nearest.iter().map(|&index| self.weights[index]).collect();
        nearest.truncate(1 + index_of_sum(&by_nearness, |sum| sum > wanted));
        nearest.sort_unstable();
        self.best = nearest.into_iter().map(|index| self.best[index]).collect();
    }

    /// Applies top-p and min-p.
    fn keep_probable(&mut self) {
        self.weigh(1.0);
        let mut kept = self.weights.len();
        if self.params.top_p < 1.0 {
            let wanted = self.weights.iter().sum::<f64>() * f64::from(self.params.top_p);
            kept = kept.min(1 + index_of_sum(&self.weights, |sum| sum >= wanted));
        }
        let min_p = f64::from(self.params.min_p);
        kept = kept.min(self.weights.iter().take_while(|&&weight| weight >= min_p).count().max(1));
        self.best.truncate(kept);
    }
}

/// The index at which the running sum of `weights` satisfies `done`; the last index if rounding prevents that.
fn index_of_sum(weights: &[f64], done: impl Fn(f64) -> bool) -> usize {
    let mut sum = 0.0;
    let position = weights.iter().position(|weight| {
        sum += weight;
        done(sum)
    });
    position.unwrap_or(weights.len().saturating_sub(1))
}

/// The row's logit of `token`.
fn logit_of(row: &LogitRow, token: u32) -> Option<f32> {
    match row {
        LogitRow::Full(logits) => logits.get(token as usize).copied(),
        LogitRow::Top { ids, logits, .. } => {
            let index = ids.iter().position(|&id| id == token)?;
            logits.get(index).copied()
        }
    }
}

#[cfg(test)]
mod tests;
