//! Sampling parameters: their ranges, and the part of a row that decides the choice.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SampleError;

/// Sampling parameters. The defaults are those of llama.cpp's server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Divisor of the logits before the draw; 0 always chooses the best token.
    pub temperature: f32,
    /// Keeps this many of the best tokens; 0 for all.
    pub top_k: u32,
    /// Keeps the tokens whose surprise is nearest to the row's entropy until their probabilities exceed this sum (locally
    /// typical sampling, Meister et al. 2022); 1 for all.
    pub typical_p: f32,
    /// Keeps the fewest best tokens whose probabilities reach this sum; 1 for all.
    pub top_p: f32,
    /// Drops tokens less probable than this fraction of the best token's probability; 0 for none.
    pub min_p: f32,
    /// Divisor of positive logits of recent tokens, factor of negative ones; 1 for no penalty.
    pub repeat_penalty: f32,
    /// Number of recent tokens for the three penalties; 0 turns the penalties off.
    pub repeat_last_n: u32,
    /// Subtracted from the logit of each recent token.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a recent token once for each occurrence.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens before all other steps; [`Self::BAN`] excludes a token.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Seed of the draws; `None` for a random seed.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.8,
            top_k: 40,
            typical_p: 1.0,
            top_p: 0.95,
            min_p: 0.05,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Highest temperature.
    pub const MAX_TEMPERATURE: f32 = 100.0;
    /// Lowest and highest `repeat_penalty`.
    pub const REPEAT_PENALTY: (f32, f32) = (0.1, 10.0);
    /// Longest window of recent tokens.
    pub const MAX_REPEAT_LAST_N: u32 = 65_536;
    /// Largest magnitude of the presence and frequency penalties.
    pub const MAX_PENALTY: f32 = 2.0;
    /// Most tokens with a bias; each may add a token to the last stage's row.
    pub const MAX_BIASES: usize = 1024;
    /// Largest bias.
    pub const MAX_BIAS: f32 = 100.0;
    /// Smallest bias; it excludes the token.
    pub const BAN: f32 = -100.0;

    /// Greedy decoding: always the best token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }

    /// Refuses values outside their ranges, NaN among them.
    pub fn check(&self) -> Result<(), SampleError> {
        let (low, high) = Self::REPEAT_PENALTY;
        in_range("temperature", self.temperature, 0.0, Self::MAX_TEMPERATURE)?;
        in_range("typical_p", self.typical_p, 0.0, 1.0)?;
        in_range("top_p", self.top_p, 0.0, 1.0)?;
        in_range("min_p", self.min_p, 0.0, 1.0)?;
        in_range("repeat_penalty", self.repeat_penalty, low, high)?;
        in_range("presence_penalty", self.presence_penalty, -Self::MAX_PENALTY, Self::MAX_PENALTY)?;
        in_range("frequency_penalty", self.frequency_penalty, -Self::MAX_PENALTY, Self::MAX_PENALTY)?;
        if self.repeat_last_n > Self::MAX_REPEAT_LAST_N {
            let (value, high) = (self.repeat_last_n as f32, Self::MAX_REPEAT_LAST_N as f32);
            return Err(SampleError::OutOfRange { name: "repeat_last_n", value, low: 0.0, high });
        }
        if self.logit_bias.len() > Self::MAX_BIASES {
            return Err(SampleError::TooManyBiases { given: self.logit_bias.len(), max: Self::MAX_BIASES });
        }
        self.logit_bias.values().try_for_each(|bias| in_range("logit_bias", *bias, Self::BAN, Self::MAX_BIAS))
    }

    pub(super) fn penalises(&self) -> bool {
        let changes = self.repeat_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0;
        changes && self.repeat_last_n > 0
    }

    /// Whether a penalty may raise a logit, so that any token of the row may become one of the best.
    fn may_raise(&self) -> bool {
        self.penalises() && (self.repeat_penalty < 1.0 || self.presence_penalty < 0.0 || self.frequency_penalty < 0.0)
    }

    /// Number of best tokens, with biases added, that decide the choice; `None` for all tokens.
    ///
    /// With penalties `kept + window` tokens suffice: at most `window` of them are penalised, so `kept` of them keep their
    /// logits, and a token outside can only sink and stays behind those.
    pub(super) fn needed(&self) -> Option<u32> {
        let kept = match (self.temperature > 0.0, self.top_k) {
            (false, _) => 1,
            (true, 0) => return None,
            (true, k) => k,
        };
        match (self.penalises(), self.may_raise()) {
            (false, _) => Some(kept),
            (true, false) => Some(kept.saturating_add(self.repeat_last_n)),
            (true, true) => None,
        }
    }

    /// The same for the model's row without biases. A lowering bias displaces one token at most; a raising bias may bring
    /// its token in from any rank.
    pub(super) fn needed_unbiased(&self) -> Option<u32> {
        let raised = self.logit_bias.values().any(|bias| *bias > 0.0);
        // At most `MAX_BIASES`.
        let lowered = self.logit_bias.len() as u32;
        self.needed().filter(|_| !raised).map(|needed| needed.saturating_add(lowered))
    }
}

fn in_range(name: &'static str, value: f32, low: f32, high: f32) -> Result<(), SampleError> {
    // In this form the comparison refuses NaN.
    if value >= low && value <= high { Ok(()) } else { Err(SampleError::OutOfRange { name, value, low, high }) }
}
