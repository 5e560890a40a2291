//! What a chat request may say. Every field either acts or is refused by name.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use super::format::ResponseFormat;
use crate::node::{ChatMessage, ChatRequest, Constraint, GenerateOptions};
use crate::node::{MAX_ALTERNATIVES, MAX_STOP_BYTES, MAX_STOPS, SamplingParams};
use crate::server::reject::Reject;

/// Longest name of a model, in bytes.
const MAX_MODEL: usize = 256;
/// Most messages of one request.
const MAX_MESSAGES: usize = 4096;
/// Most answers to one request: they come one after another, so that each makes the client wait longer.
const MAX_CHOICES: u32 = 8;
/// Most tokens that may be asked for; the model's context bounds them further.
const MAX_TOKENS: u32 = 1 << 20;

/// A field of OpenAI's that has no effect here yet. Only `null` is accepted, which is what clients send for "not set".
#[derive(Debug)]
pub(crate) struct Unsupported;

impl<'de> Deserialize<'de> for Unsupported {
    fn deserialize<D: Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("is not supported by this server; leave it out"))
    }
}

pub(super) type Absent = Option<Unsupported>;

/// The body of `POST /v1/chat/completions`.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "fields that must be absent are only named")]
pub(crate) struct ChatBody {
    model: String,
    messages: Vec<Message>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    n: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    min_p: Option<f32>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    #[serde(default, deserialize_with = "stop_texts")]
    stop: Vec<String>,
    seed: Option<i64>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    /// Ours: the token-for-token answer of a plain run.
    exact: Option<bool>,
    /// Ours: a smaller model with the same vocabulary, which guesses ahead.
    draft_model: Option<String>,
    repeat_penalty: Option<f32>,
    /// Ours: locally typical sampling.
    typical_p: Option<f32>,
    /// JSON's keys are texts.
    logit_bias: Option<BTreeMap<String, f32>>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    response_format: Option<ResponseFormat>,
    audio: Absent,
    function_call: Absent,
    functions: Absent,
    metadata: Absent,
    modalities: Absent,
    parallel_tool_calls: Absent,
    prediction: Absent,
    prompt_cache_key: Absent,
    reasoning_effort: Absent,
    safety_identifier: Absent,
    service_tier: Absent,
    store: Absent,
    tool_choice: Absent,
    tools: Absent,
    user: Absent,
    verbosity: Absent,
    web_search_options: Absent,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    include_usage: Option<bool>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "fields that must be absent are only named")]
struct Message {
    role: Role,
    #[serde(deserialize_with = "content")]
    content: String,
    name: Absent,
    refusal: Absent,
    annotations: Absent,
    audio: Absent,
    function_call: Absent,
    tool_call_id: Absent,
    tool_calls: Absent,
}

#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    /// What newer clients call the system.
    Developer,
    User,
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(rename = "type")]
    _kind: PartKind,
    text: String,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum PartKind {
    Text,
}

/// Text, or parts of text, which are joined by line feeds.
struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, or a list of text parts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
        Ok(text.to_owned())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<String, A::Error> {
        let mut text = String::new();
        while let Some(part) = parts.next_element::<Part>()? {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&part.text);
        }
        Ok(text)
    }
}

fn content<'de, D: Deserializer<'de>>(json: D) -> Result<String, D::Error> {
    json.deserialize_any(ContentVisitor)
}

/// Nothing, one text, or a list of bounded length.
struct StopVisitor;

impl<'de> Visitor<'de> for StopVisitor {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "text, or a list of at most {MAX_STOPS} texts")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Vec<String>, E> {
        Ok(Vec::new())
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
        let mut texts = Vec::new();
        while let Some(text) = list.next_element()? {
            if texts.len() == MAX_STOPS {
                return Err(de::Error::custom(format_args!("at most {MAX_STOPS} texts are accepted")));
            }
            texts.push(text);
        }
        Ok(texts)
    }
}

fn stop_texts<'de, D: Deserializer<'de>>(json: D) -> Result<Vec<String>, D::Error> {
    json.deserialize_any(StopVisitor)
}

/// A chat request within its bounds.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) request: ChatRequest,
    /// How many answers.
    pub(crate) n: u32,
    pub(crate) stream: bool,
    /// Whether a stream ends with its counts.
    pub(crate) include_usage: bool,
}

impl ChatBody {
    /// Checks every bound and gives what the node understands.
    pub(crate) fn check(self) -> Result<Ask, Reject> {
        let model = checked_model(self.model.clone())?;
        if self.messages.is_empty() || self.messages.len() > MAX_MESSAGES {
            return Err(Reject::field("messages", format!("must be 1 to {MAX_MESSAGES} messages")));
        }
        let n = self.n.unwrap_or(1);
        if !(1..=MAX_CHOICES).contains(&n) {
            return Err(Reject::field("n", format!("must be 1 to {MAX_CHOICES}")));
        }
        let stream = self.stream.unwrap_or(false);
        if self.stream_options.is_some() && !stream {
            return Err(Reject::field("stream_options", "is only accepted where `stream` is true"));
        }
        let options = GenerateOptions {
            max_tokens: self.max_tokens()?,
            sampling: self.sampling()?,
            stop: self.checked_stop()?,
            exact: self.exact.unwrap_or_default(),
            draft: self.draft_model.clone().map(checked_draft).transpose()?,
            logprobs: self.logprobs()?,
            constraint: self.response_format.map(checked_constraint).transpose()?.flatten(),
            ..GenerateOptions::default()
        };
        let include_usage = self.stream_options.and_then(|options| options.include_usage).unwrap_or(false);
        let message = |message: Message| ChatMessage { role: message.role.name().to_owned(), content: message.content };
        let messages = self.messages.into_iter().map(message).collect();
        Ok(Ask { request: ChatRequest { model, messages, options }, n, stream, include_usage })
    }

    fn max_tokens(&self) -> Result<Option<u32>, Reject> {
        let (field, given) = match (self.max_tokens, self.max_completion_tokens) {
            (Some(_), Some(_)) => {
                return Err(Reject::field("max_tokens", "give it or `max_completion_tokens`, not both"));
            }
            (Some(given), None) => ("max_tokens", given),
            (None, Some(given)) => ("max_completion_tokens", given),
            (None, None) => return Ok(None),
        };
        match given {
            1..=MAX_TOKENS => Ok(Some(given)),
            _ => Err(Reject::field(field, format!("must be 1 to {MAX_TOKENS}"))),
        }
    }

    /// How many alternatives to tell beside each token; `None` where nothing is to be told.
    fn logprobs(&self) -> Result<Option<u32>, Reject> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (false, Some(_)) => Err(Reject::field("top_logprobs", "is only accepted where `logprobs` is true")),
            (true, Some(asked)) if asked > MAX_ALTERNATIVES => {
                Err(Reject::field("top_logprobs", format!("must be 0 to {MAX_ALTERNATIVES}")))
            }
            (true, asked) => Ok(Some(asked.unwrap_or(0))),
            (false, None) => Ok(None),
        }
    }

    fn checked_stop(&self) -> Result<Vec<String>, Reject> {
        match self.stop.iter().find(|text| text.is_empty() || text.len() > MAX_STOP_BYTES) {
            Some(_) => Err(Reject::field("stop", format!("each text must have 1 to {MAX_STOP_BYTES} bytes"))),
            None => Ok(self.stop.clone()),
        }
    }

    fn checked_bias(&self) -> Result<BTreeMap<u32, f32>, Reject> {
        let (least, most) = (SamplingParams::BAN, SamplingParams::MAX_BIAS);
        let Some(given) = &self.logit_bias else { return Ok(BTreeMap::new()) };
        if given.len() > SamplingParams::MAX_BIASES {
            let max = SamplingParams::MAX_BIASES;
            return Err(Reject::field("logit_bias", format!("has {} tokens, at most {max} are accepted", given.len())));
        }
        let checked = |(token, bias): (&String, &f32)| match token.parse() {
            Ok(token) if (least..=most).contains(bias) => Ok((token, *bias)),
            Ok(_) => {
                Err(Reject::field(format!("logit_bias.{token}"), format!("is {bias}; it must be {least} to {most}")))
            }
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
            // Any integer is a seed of its own: OpenAI's are signed, ours are not.
            seed: self.seed.map(i64::cast_unsigned).or(default.seed),
            ..default
        })
    }
}

/// Refuses what no model can be called.
pub(super) fn checked_model(model: String) -> Result<String, Reject> {
    match model.len() {
        1..=MAX_MODEL => Ok(model),
        _ => Err(Reject::field("model", format!("must be a name or id of at most {MAX_MODEL} bytes"))),
    }
}

fn checked_draft(name: String) -> Result<String, Reject> {
    match name.len() {
        1..=MAX_MODEL => Ok(name),
        _ => Err(Reject::field("draft_model", format!("must be a name or id of at most {MAX_MODEL} bytes"))),
    }
}

fn checked_constraint(format: ResponseFormat) -> Result<Option<Constraint>, Reject> {
    let constraint = format.constraint();
    let checked = constraint.as_ref().map_or(Ok(()), Constraint::check);
    checked.map_err(|error| Reject::field("response_format", error)).map(|()| constraint)
}

fn within(field: &str, given: Option<f32>, least: f32, most: f32, default: f32) -> Result<f32, Reject> {
    match given {
        None => Ok(default),
        Some(value) if (least..=most).contains(&value) => Ok(value),
        Some(value) => Err(Reject::field(field, format!("is {value}; it must be between {least} and {most}"))),
    }
}
