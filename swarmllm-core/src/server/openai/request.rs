//! Fields that chat and text requests share, and their limits.

use std::collections::BTreeMap;

use serde::de::{self, Deserialize, Deserializer};

use super::choices::NodeRequest;
use crate::base::json::{BoundedU32, string_or_seq};
use crate::node::{GenerateOptions, MAX_STOP_BYTES, MAX_STOPS, SamplingParams};
use crate::server::reject::Reject;

/// Number of choices.
pub(crate) type Count = BoundedU32<1, MAX_CHOICES>;
/// Maximum tokens of an answer; the rest of the context if that is less.
pub(crate) type Tokens = BoundedU32<1, { u32::MAX }>;

/// Maximum length of a model's name, in bytes.
const MAX_MODEL: usize = 256;
/// Maximum number of choices: they are computed in sequence, and each prolongs the request.
const MAX_CHOICES: u32 = 8;

/// A field of OpenAI's that is not supported. Only `null` is accepted, which clients send for "not set".
#[derive(Debug)]
pub(crate) struct Unsupported;

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("is not supported by this server; leave it out"))
    }
}

pub(super) type Absent = Option<Unsupported>;

/// Only `false`: nothing is stored for later requests.
#[derive(Debug)]
pub(crate) struct NotStored;

impl<'de> Deserialize<'de> for NotStored {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        match bool::deserialize(json)? {
            false => Ok(Self),
            true => Err(de::Error::custom("is not supported by this server; leave it out")),
        }
    }
}

/// The service tier. There is only one.
#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ServiceTier {
    Auto,
    Default,
}

/// The body of a request for an answer: the fields of [`CommonFields`] and some of its own.
macro_rules! body {
    ($(#[$meta:meta])* $vis:vis struct $name:ident { $($(#[$of:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        $vis struct $name {
            $($(#[$of])* $field: $type,)*
            model: String,
            stream: Option<bool>,
            stream_options: Option<$crate::server::openai::request::StreamOptions>,
            n: Option<$crate::server::openai::request::Count>,
            temperature: Option<f32>,
            top_p: Option<f32>,
            top_k: Option<u32>,
            min_p: Option<f32>,
            max_tokens: Option<$crate::server::openai::request::Tokens>,
            #[serde(default, deserialize_with = "crate::server::openai::request::stop_texts")]
            stop: Vec<String>,
            seed: Option<i64>,
            presence_penalty: Option<f32>,
            frequency_penalty: Option<f32>,
            /// An extension: the answer of a plain run of the whole model, token for token.
            exact: Option<bool>,
            /// An extension: a smaller model with the same vocabulary that proposes draft tokens.
            draft_model: Option<String>,
            repeat_penalty: Option<f32>,
            /// An extension: locally typical sampling.
            typical_p: Option<f32>,
            /// JSON object keys are strings.
            logit_bias: Option<std::collections::BTreeMap<String, f32>>,
        }

        impl $name {
            /// Takes the common fields.
            fn common(&mut self) -> $crate::server::openai::request::CommonFields {
                $crate::server::openai::request::CommonFields {
                    model: std::mem::take(&mut self.model),
                    stream: self.stream,
                    stream_options: self.stream_options.take(),
                    n: self.n,
                    temperature: self.temperature,
                    top_p: self.top_p,
                    top_k: self.top_k,
                    min_p: self.min_p,
                    max_tokens: self.max_tokens,
                    stop: std::mem::take(&mut self.stop),
                    seed: self.seed,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    exact: self.exact,
                    draft_model: self.draft_model.take(),
                    repeat_penalty: self.repeat_penalty,
                    typical_p: self.typical_p,
                    logit_bias: self.logit_bias.take(),
                }
            }
        }
    };
}
pub(super) use body;

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
}

/// The fields of every body.
#[derive(Debug)]
pub(super) struct CommonFields {
    pub(super) model: String,
    pub(super) stream: Option<bool>,
    pub(super) stream_options: Option<StreamOptions>,
    pub(super) n: Option<Count>,
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<u32>,
    pub(super) min_p: Option<f32>,
    pub(super) max_tokens: Option<Tokens>,
    pub(super) stop: Vec<String>,
    pub(super) seed: Option<i64>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) exact: Option<bool>,
    pub(super) draft_model: Option<String>,
    pub(super) repeat_penalty: Option<f32>,
    pub(super) typical_p: Option<f32>,
    pub(super) logit_bias: Option<BTreeMap<String, f32>>,
}

/// A request within its limits.
#[derive(Debug)]
pub(crate) struct CheckedRequest {
    pub(crate) request: NodeRequest,
    /// Number of choices.
    pub(crate) n: u32,
    pub(crate) stream: bool,
    /// Whether a stream ends with the usage.
    pub(crate) include_usage: bool,
}

/// The common fields, within their limits.
pub(super) struct CheckedFields {
    pub(super) model: String,
    pub(super) options: GenerateOptions,
    pub(super) n: u32,
    stream: bool,
    include_usage: bool,
}

impl CheckedFields {
    /// The whole request; `build` makes the node's request from model and options.
    pub(super) fn into_request(self, build: impl FnOnce(String, GenerateOptions) -> NodeRequest) -> CheckedRequest {
        let Self { model, options, n, stream, include_usage } = self;
        CheckedRequest { request: build(model, options), n, stream, include_usage }
    }
}

impl CommonFields {
    /// Checks all limits.
    pub(super) fn check(&self) -> Result<CheckedFields, Reject> {
        let model = checked_model("model", self.model.clone())?;
        let n = self.n.map_or(1, |n| n.0);
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            return Err(Reject::field("stream_options", "is only accepted where `stream` is true"));
        }
        let include_usage = self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false);
        let options = GenerateOptions {
            max_tokens: self.max_tokens.map(|given| given.0),
            sampling: self.sampling()?,
            stop: self.checked_stop()?,
            exact: self.exact.unwrap_or_default(),
            draft: self.draft_model.clone().map(|name| checked_model("draft_model", name)).transpose()?,
            ..GenerateOptions::default()
        };
        Ok(CheckedFields { model, options, n, stream, include_usage })
    }

    fn checked_stop(&self) -> Result<Vec<String>, Reject> {
        match self.stop.iter().find(|text| text.is_empty() || text.len() > MAX_STOP_BYTES) {
            Some(_) => Err(Reject::field("stop", format!("each text must have 1 to {MAX_STOP_BYTES} bytes"))),
            None => Ok(self.stop.clone()),
        }
    }

    fn checked_bias(&self) -> Result<BTreeMap<u32, f32>, Reject> {
        let (min, max) = (SamplingParams::BAN, SamplingParams::MAX_BIAS);
        let Some(given) = &self.logit_bias else { return Ok(BTreeMap::new()) };
        if given.len() > SamplingParams::MAX_BIASES {
            let limit = SamplingParams::MAX_BIASES;
            return Err(Reject::field(
                "logit_bias",
                format!("has {} tokens, at most {limit} are accepted", given.len()),
            ));
        }
        let checked = |(token, bias): (&String, &f32)| match token.parse() {
            Ok(token) if (min..=max).contains(bias) => Ok((token, *bias)),
            Ok(_) => Err(Reject::field(format!("logit_bias.{token}"), format!("is {bias}; it must be {min} to {max}"))),
            Err(_) => Err(Reject::field(format!("logit_bias.{token}"), "is not the number of a token")),
        };
        given.iter().map(checked).collect()
    }

    fn sampling(&self) -> Result<SamplingParams, Reject> {
        let default = SamplingParams::default();
        Ok(SamplingParams {
            temperature: within("temperature", self.temperature, 0.0, 2.0, default.temperature)?,
            top_k: self.top_k.unwrap_or(default.top_k),
            typical_p: within("typical_p", self.typical_p, 0.0, 1.0, default.typical_p)?,
            top_p: within("top_p", self.top_p, 0.0, 1.0, default.top_p)?,
            min_p: within("min_p", self.min_p, 0.0, 1.0, default.min_p)?,
            repeat_penalty: within("repeat_penalty", self.repeat_penalty, 0.01, 10.0, default.repeat_penalty)?,
            presence_penalty: within("presence_penalty", self.presence_penalty, -2.0, 2.0, default.presence_penalty)?,
            frequency_penalty: within(
                "frequency_penalty",
                self.frequency_penalty,
                -2.0,
                2.0,
                default.frequency_penalty,
            )?,
            logit_bias: self.checked_bias()?,
            // OpenAI's seeds are signed, the node's are not; each maps to a different one.
            seed: self.seed.map(i64::cast_unsigned).or(default.seed),
            ..default
        })
    }
}

/// Refuses an invalid name of a model in `field`.
pub(super) fn checked_model(field: &str, name: String) -> Result<String, Reject> {
    match name.len() {
        1..=MAX_MODEL => Ok(name),
        _ => Err(Reject::field(field, format!("must be a name or id of at most {MAX_MODEL} bytes"))),
    }
}

fn within(field: &str, given: Option<f32>, min: f32, max: f32, default: f32) -> Result<f32, Reject> {
    match given {
        None => Ok(default),
        Some(value) if (min..=max).contains(&value) => Ok(value),
        Some(value) => Err(Reject::field(field, format!("is {value}; it must be between {min} and {max}"))),
    }
}

pub(super) fn stop_texts<'de, D: Deserializer<'de>>(json: D) -> Result<Vec<String>, D::Error> {
    string_or_seq(json, MAX_STOPS)
}
