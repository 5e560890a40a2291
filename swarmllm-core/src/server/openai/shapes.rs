//! OpenAI's formats of a whole answer and of its chunks.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::base::ErrorKind;
use crate::node::{Completion, FinishReason, Likelihood, TokenLogprob};
use crate::server::reject::Reject;

/// The fields that every chunk of an answer repeats.
#[derive(Debug)]
pub(super) struct AnswerMeta {
    family: Family,
    id: String,
    created: u64,
    /// The model as in the request.
    model: String,
}

/// The endpoint of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// An answer to a chat.
    Chat,
    /// The continuation of a text.
    Text,
}

#[derive(Debug, Serialize)]
pub(super) struct FullAnswer<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<FullChoice<'a>>,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct FullChoice<'a> {
    index: u32,
    #[serde(flatten)]
    said: ChoiceContent<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum ChoiceContent<'a> {
    Message(Answer<'a>),
    Text(&'a str),
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
pub(super) struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice<'a>>,
    /// Absent unless requested; null before the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    #[serde(flatten)]
    said: DeltaContent<'a>,
    logprobs: Option<Logprobs<'a>>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum DeltaContent<'a> {
    Delta(ChunkDelta<'a>),
    Text(&'a str),
}

#[derive(Debug, Serialize)]
struct ChunkDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

/// The next piece of a choice, for either endpoint.
#[derive(Debug, Default)]
pub(super) struct ChoiceDelta<'a> {
    pub(super) index: u32,
    /// Whether the choice begins here, which chunks of chats state.
    pub(super) begins: bool,
    pub(super) text: Option<&'a str>,
    pub(super) logprobs: Option<Logprobs<'a>>,
    pub(super) finish_reason: Option<&'static str>,
}

/// Log-probabilities of the tokens of an answer, or of a piece of it.
#[derive(Debug, Serialize)]
pub(super) struct Logprobs<'a> {
    content: Vec<TokenEntry<'a>>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct TokenEntry<'a> {
    #[serde(flatten)]
    chosen: TopLogprob<'a>,
    top_logprobs: Vec<TopLogprob<'a>>,
}

#[derive(Debug, Serialize)]
struct TopLogprob<'a> {
    token: &'a str,
    logprob: f32,
    bytes: &'a [u8],
}

impl<'a> TopLogprob<'a> {
    fn of(likelihood: &'a Likelihood) -> Self {
        Self { token: &likelihood.text, logprob: likelihood.logprob, bytes: &likelihood.bytes }
    }
}

impl<'a> Logprobs<'a> {
    pub(super) fn of(tokens: &'a [TokenLogprob]) -> Self {
        let entry = |token: &'a TokenLogprob| TokenEntry {
            chosen: TopLogprob::of(&token.chosen),
            top_logprobs: token.alternatives.iter().map(TopLogprob::of).collect(),
        };
        Self { content: tokens.iter().map(entry).collect(), refusal: None }
    }
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u32,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct PromptDetails {
    cached_tokens: u32,
}

impl Usage {
    pub(super) fn of(done: &Completion) -> Self {
        let (prompt_tokens, completion_tokens) = (done.prompt_tokens, done.completion_tokens);
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        let prompt_tokens_details = PromptDetails { cached_tokens: done.cached_tokens };
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details }
    }

    /// With one more choice of the same prompt, which counts once.
    pub(super) fn and(self, done: &Completion) -> Self {
        let completion_tokens = self.completion_tokens.saturating_add(done.completion_tokens);
        Self { completion_tokens, total_tokens: self.prompt_tokens.saturating_add(completion_tokens), ..self }
    }
}

impl Family {
    /// The prefix of identifiers, and the object names of a whole answer and of a chunk.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Family::Chat => ("chatcmpl", "chat.completion", "chat.completion.chunk"),
            Family::Text => ("cmpl", "text_completion", "text_completion"),
        }
    }
}

impl AnswerMeta {
    pub(super) fn new(family: Family, model: &str) -> Self {
        let id = format!("{}-{:032x}", family.names().0, rand::random::<u128>());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { family, id, created, model: model.to_owned() }
    }

    /// Whether a choice begins with a chunk of its own.
    pub(super) fn announces_choices(&self) -> bool {
        self.family == Family::Chat
    }

    /// The whole answer of the choices, of which there is one at least.
    pub(super) fn whole<'a>(&'a self, done: &'a [Completion], usage: Usage) -> Result<FullAnswer<'a>, Reject> {
        let choice = |(done, index): (&'a Completion, u32)| -> Result<FullChoice<'a>, Reject> {
            let said = match self.family {
                Family::Chat => {
                    ChoiceContent::Message(Answer { role: "assistant", content: &done.text, refusal: None })
                }
                Family::Text => ChoiceContent::Text(&done.text),
            };
            let logprobs = done.logprobs.as_deref().map(Logprobs::of);
            let finish_reason = finish_reason(done.finish)?;
            Ok(FullChoice { index, said, logprobs, finish_reason })
        };
        Ok(FullAnswer {
            id: &self.id,
            object: self.family.names().1,
            created: self.created,
            model: &self.model,
            choices: done.iter().zip(0..).map(choice).collect::<Result<_, _>>()?,
            usage,
        })
    }

    pub(super) fn chunk<'a>(&'a self, piece: Option<ChoiceDelta<'a>>, usage: Option<Option<Usage>>) -> Chunk<'a> {
        let choice = |piece: ChoiceDelta<'a>| {
            let said = match self.family {
                Family::Chat => {
                    DeltaContent::Delta(ChunkDelta { role: piece.begins.then_some("assistant"), content: piece.text })
                }
                Family::Text => DeltaContent::Text(piece.text.unwrap_or_default()),
            };
            let ChoiceDelta { index, logprobs, finish_reason, .. } = piece;
            ChunkChoice { index, said, logprobs, finish_reason }
        };
        let choices = piece.map(choice).into_iter().collect();
        let object = self.family.names().2;
        Chunk { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }
}

/// The reason of an end. A cancelled answer is an error for the client, whatever text it has.
pub(super) fn finish_reason(finish: FinishReason) -> Result<&'static str, Reject> {
    match finish {
        FinishReason::Stop => Ok("stop"),
        FinishReason::Length => Ok("length"),
        FinishReason::Cancelled => Err(Reject::of(ErrorKind::Cancelled, "the answer was cancelled")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;
    use crate::node::Timings;

    fn done(logprobs: Option<Vec<TokenLogprob>>) -> Completion {
        Completion {
            text: "hi".to_owned(),
            tokens: vec![1, 2],
            logprobs,
            finish: FinishReason::Stop,
            prompt_tokens: 3,
            cached_tokens: 2,
            draft_tokens: 0,
            accepted_tokens: 0,
            completion_tokens: 2,
            route: Vec::new(),
            timings: Timings {
                open_ms: 1.0,
                first_token_ms: 2.0,
                decode_tokens_per_second: 3.0,
                predicted_token_ms: 3.5,
                total_ms: 4.0,
            },
        }
    }

    #[test]
    fn a_whole_answer_has_the_format_of_openai() {
        let meta = AnswerMeta::new(Family::Chat, "m");
        let done = [done(None)];
        let json = to_value(meta.whole(&done, Usage::of(&done[0])).unwrap()).unwrap();
        assert_eq!(json["object"], "chat.completion");
        assert_eq!(json["choices"][0]["message"]["content"], "hi");
        assert_eq!(json["choices"][0]["finish_reason"], "stop");
        assert_eq!(json["choices"][0]["logprobs"], json!(null));
        assert_eq!(json["usage"]["total_tokens"], 5);
        assert_eq!(json["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
        assert!(meta.id.starts_with("chatcmpl-"));
    }

    #[test]
    fn choices_are_numbered_and_their_prompt_counts_once() {
        let meta = AnswerMeta::new(Family::Chat, "m");
        let done = [done(None), done(None), done(None)];
        let usage = Usage::of(&done[0]).and(&done[1]).and(&done[2]);
        let json = to_value(meta.whole(&done, usage).unwrap()).unwrap();
        let indices: Vec<_> = json["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
        assert_eq!(indices, [&json!(0), &json!(1), &json!(2)]);
        let counts = ["prompt_tokens", "completion_tokens", "total_tokens"].map(|count| json["usage"][count].clone());
        assert_eq!(counts, [3, 6, 9]);
    }

    #[test]
    fn logprobs_have_the_format_of_openai() {
        let likelihood = |text: &str, logprob| Likelihood {
            token: 7,
            text: text.to_owned(),
            bytes: text.as_bytes().to_vec(),
            logprob,
        };
        let (chosen, alternatives) = (likelihood("h", -0.5), vec![likelihood("a", -0.25)]);
        let token = TokenLogprob { chosen, alternatives };
        let want = json!({"content": [{
            "token": "h", "logprob": -0.5, "bytes": [104],
            "top_logprobs": [{"token": "a", "logprob": -0.25, "bytes": [97]}],
        }], "refusal": null});
        assert_eq!(to_value(Logprobs::of(std::slice::from_ref(&token))).unwrap(), want);
        let done = [done(Some(vec![token]))];
        let json = to_value(AnswerMeta::new(Family::Chat, "m").whole(&done, Usage::of(&done[0])).unwrap()).unwrap();
        assert_eq!(json["choices"][0]["logprobs"], want);
    }

    #[test]
    fn a_chunk_has_usage_only_if_requested() {
        let meta = AnswerMeta::new(Family::Chat, "m");
        let text = || ChoiceDelta { text: Some("a"), ..ChoiceDelta::default() };
        let plain = to_value(meta.chunk(Some(text()), None)).unwrap();
        assert_eq!(plain["choices"][0]["delta"], json!({"content": "a"}));
        assert!(plain.get("usage").is_none());
        let asked = to_value(meta.chunk(Some(text()), Some(None))).unwrap();
        assert!(asked.get("usage").is_some_and(|usage| usage.is_null()));
        let last = to_value(meta.chunk(None, Some(Some(Usage::of(&done(None)))))).unwrap();
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["prompt_tokens"], 3);
    }

    #[test]
    fn a_continued_text_has_the_legacy_format_of_openai() {
        let meta = AnswerMeta::new(Family::Text, "m");
        let done = [done(None)];
        let whole = to_value(meta.whole(&done, Usage::of(&done[0])).unwrap()).unwrap();
        assert_eq!(whole["object"], "text_completion");
        assert_eq!(whole["choices"], json!([{"index": 0, "text": "hi", "logprobs": null, "finish_reason": "stop"}]));
        assert!(meta.id.starts_with("cmpl-") && !meta.announces_choices());
        let piece = ChoiceDelta { index: 1, text: Some("a"), ..ChoiceDelta::default() };
        let chunk = to_value(meta.chunk(Some(piece), None)).unwrap();
        assert_eq!(chunk["object"], "text_completion");
        assert_eq!(chunk["choices"], json!([{"index": 1, "text": "a", "logprobs": null, "finish_reason": null}]));
        let end = ChoiceDelta { finish_reason: Some("length"), ..ChoiceDelta::default() };
        let end = to_value(meta.chunk(Some(end), None)).unwrap();
        assert_eq!(end["choices"], json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": "length"}]));
    }
}
