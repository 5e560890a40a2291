//! The knobs of sampling: their ranges, and how much of a row decides.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::SampleError;

/// How the next token is chosen. The defaults are those of llama.cpp's server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// Divides the logits before the draw; 0 takes the best token always.
    pub temperature: f32,
    /// Only so many of the best tokens take part; 0 for all.
    pub top_k: u32,
    /// Only the tokens whose surprise is nearest to what is expected of this row, until their probabilities exceed this sum
    /// (locally typical sampling, Meister et al. 2022); 1 for all.
    pub typical_p: f32,
    /// Only the fewest best tokens whose probabilities reach this sum take part; 1 for all.
    pub top_p: f32,
    /// Tokens less probable than this part of the best one's probability take no part; 0 for all.
    pub min_p: f32,
    /// Positive logits of recent tokens are divided by this, negative ones multiplied; 1 changes nothing.
    pub repeat_penalty: f32,
    /// How many of the last tokens count as recent; 0 turns all three penalties off.
    pub repeat_last_n: u32,
    /// Subtracted from the logit of each recent token.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a recent token as often as it occurs.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens before anything else; [`Self::BAN`] keeps a token out altogether.
    pub logit_bias: BTreeMap<u32, f32>,
    /// Where the draws come from; `None` takes a random one.
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
    /// Largest presence or frequency penalty, and with a minus the smallest.
    pub const MAX_PENALTY: f32 = 2.0;
    /// Most tokens with a bias: each may ask the last stage for a token more.
    pub const MAX_BIASES: usize = 1024;
    /// Largest bias.
    pub const MAX_BIAS: f32 = 100.0;
    /// Smallest bias; it is a ban rather than a number.
    pub const BAN: f32 = -100.0;

    /// Always the best token.
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
    fn raises(&self) -> bool {
        self.penalises() && (self.repeat_penalty < 1.0 || self.presence_penalty < 0.0 || self.frequency_penalty < 0.0)
    }

    /// How many of a whole row's best tokens decide the choice, once biases are added; `None` where all may.
    ///
    /// With penalties `kept + window` are enough: no more than `window` of them are penalised, so `kept` of them stand
    /// where they stood, and a token outside, which can only sink, stays behind all of those.
    pub(super) fn needed(&self) -> Option<u32> {
        let kept = match (self.temperature > 0.0, self.top_k) {
            (false, _) => 1,
            (true, 0) => return None,
            (true, k) => k,
        };
        match (self.penalises(), self.raises()) {
            (false, _) => Some(kept),
            (true, false) => Some(kept.saturating_add(self.repeat_last_n)),
            (true, true) => None,
        }
    }

    /// The same of a row as the model gave it. A bias that lowers pushes out one token at most; one that raises may pull
    /// its token in from anywhere.
    pub(super) fn needed_unbiased(&self) -> Option<u32> {
        let raised = self.logit_bias.values().any(|bias| *bias > 0.0);
        // At most `MAX_BIASES`.
        let lowered = self.logit_bias.len() as u32;
        self.needed().filter(|_| !raised).map(|needed| needed.saturating_add(lowered))
    }
}

fn in_range(name: &'static str, value: f32, low: f32, high: f32) -> Result<(), SampleError> {
    // Written so that NaN is refused.
    if value >= low && value <= high { Ok(()) } else { Err(SampleError::OutOfRange { name, value, low, high }) }
}
