//! [`GenerateOptions`] with every field optional: the form in which C and Python give them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::base::json::{BoundedU32, string_or_seq};
use crate::engine::constraint::Constraint;
use crate::engine::sample::{MAX_ALTERNATIVES, SamplingParams};
use crate::node::api::request::{GenerateOptions, MAX_STOPS};
use crate::wire::codec::Codec;

/// Options of an answer, each of which may be left out; [`complete`](Self::complete) fills in the defaults. Fields mean
/// the same as in [`GenerateOptions`] and [`SamplingParams`]. The JSON form is an object: `null` means "not given", and
/// unknown keys are errors.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartialOptions {
    pub max_tokens: Option<BoundedU32<1, { u32::MAX }>>,
    pub temperature: Option<f32>,
    pub top_k: Option<u32>,
    pub typical_p: Option<f32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub repeat_penalty: Option<f32>,
    pub repeat_last_n: Option<u32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub logit_bias: Option<BTreeMap<u32, f32>>,
    pub seed: Option<u64>,
    /// In JSON a string or a list of strings.
    #[serde(deserialize_with = "stop_texts")]
    pub stop: Vec<String>,
    /// Whole time allowed, in milliseconds.
    pub deadline_ms: Option<u64>,
    pub exact: Option<bool>,
    pub speculate: Option<bool>,
    pub draft: Option<String>,
    pub standby: Option<bool>,
    pub wire: Option<Codec>,
    pub logprobs: Option<BoundedU32<0, MAX_ALTERNATIVES>>,
    pub constraint: Option<Constraint>,
    pub caller: Option<String>,
}

fn stop_texts<'de, D: Deserializer<'de>>(json: D) -> Result<Vec<String>, D::Error> {
    string_or_seq(json, MAX_STOPS)
}

impl PartialOptions {
    /// These options with the library's defaults for those that are not given. Values are not checked; see
    /// [`GenerateOptions::check`].
    pub fn complete(self) -> GenerateOptions {
        let default = GenerateOptions::default();
        let sampling = SamplingParams {
            temperature: self.temperature.unwrap_or(default.sampling.temperature),
            top_k: self.top_k.unwrap_or(default.sampling.top_k),
            typical_p: self.typical_p.unwrap_or(default.sampling.typical_p),
            top_p: self.top_p.unwrap_or(default.sampling.top_p),
            min_p: self.min_p.unwrap_or(default.sampling.min_p),
            repeat_penalty: self.repeat_penalty.unwrap_or(default.sampling.repeat_penalty),
            repeat_last_n: self.repeat_last_n.unwrap_or(default.sampling.repeat_last_n),
            presence_penalty: self.presence_penalty.unwrap_or(default.sampling.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.sampling.frequency_penalty),
            logit_bias: self.logit_bias.unwrap_or(default.sampling.logit_bias),
            seed: self.seed.or(default.sampling.seed),
        };
        GenerateOptions {
            max_tokens: self.max_tokens.map(|bounded| bounded.0),
            sampling,
            stop: self.stop,
            deadline: self.deadline_ms.map(Duration::from_millis),
            exact: self.exact.unwrap_or(default.exact),
            speculate: self.speculate.unwrap_or(default.speculate),
            draft: self.draft,
            standby: self.standby.unwrap_or(default.standby),
            wire: self.wire.unwrap_or(default.wire),
            logprobs: self.logprobs.map(|bounded| bounded.0),
            constraint: self.constraint,
            caller: self.caller.unwrap_or(default.caller),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::json;

    #[test]
    fn options_that_are_not_given_have_the_defaults() {
        assert_eq!(PartialOptions::default().complete(), GenerateOptions::default());
    }

    #[test]
    fn every_sampling_parameter_is_an_option() {
        let sampling = SamplingParams { temperature: 0.25, top_k: 3, seed: Some(5), ..SamplingParams::default() };
        let options: PartialOptions = json::convert(serde_json::to_value(&sampling).unwrap()).unwrap();
        assert_eq!(options.complete().sampling, sampling);
    }
}
