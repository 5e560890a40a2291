//! `POST /v1/chat/completions`, whole or as a stream of server-sent events.
//!
//! The generation lives in the handler or in the stream; a client that leaves drops it, which cancels it everywhere.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Serialize;

use super::types::ChatBody;
use crate::base::ErrorKind;
use crate::node::{Completion, Delta, FinishReason, Generation, Node, Plan};
use crate::server::reject::Reject;
use crate::server::state::JsonBody;

/// How often a silent stream shows that it lives; it also finds out that the client does not.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(super) async fn chat(State(node): State<Node>, JsonBody(body): JsonBody<ChatBody>) -> Result<Response, Reject> {
    let ask = body.check()?;
    let heading = Heading::new(&ask.request.model);
    let generation = node.chat(ask.request).await?;
    let mut headers = route_headers(generation.route());
    if ask.stream {
        let events = Events { generation, heading, include_usage: ask.include_usage, next: Next::Role };
        let stream = Sse::new(events.stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        return Ok((headers, stream).into_response());
    }
    let done = generation.finish().await?;
    let reason = finish_reason(done.finish)?;
    insert(&mut headers, "server-timing", server_timing(&done));
    Ok((headers, Json(heading.whole(&done, reason))).into_response())
}

/// What every part of one answer repeats.
#[derive(Debug)]
struct Heading {
    id: String,
    created: u64,
    /// As the client wrote it.
    model: String,
}

#[derive(Debug, Serialize)]
struct Whole<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: [WholeChoice<'a>; 1],
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct WholeChoice<'a> {
    index: u32,
    message: Answer<'a>,
    logprobs: Option<()>,
    finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    role: &'static str,
    content: &'a str,
    refusal: Option<()>,
}

#[derive(Debug, Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<ChunkChoice<'a>>,
    /// Absent, or null until the last chunk, as the client asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Debug, Default, Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: ChunkDelta<'a>,
    logprobs: Option<()>,
    finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
struct ChunkDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Usage {
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
    fn of(done: &Completion) -> Self {
        let (prompt_tokens, completion_tokens) = (done.prompt_tokens, done.completion_tokens);
        let total_tokens = prompt_tokens.saturating_add(completion_tokens);
        let prompt_tokens_details = PromptDetails { cached_tokens: done.cached_tokens };
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details }
    }
}

impl Heading {
    fn new(model: &str) -> Self {
        let id = format!("chatcmpl-{:032x}", rand::random::<u128>());
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        Self { id, created, model: model.to_owned() }
    }

    fn whole<'a>(&'a self, done: &'a Completion, finish_reason: &'static str) -> Whole<'a> {
        let message = Answer { role: "assistant", content: &done.text, refusal: None };
        Whole {
            id: &self.id,
            object: "chat.completion",
            created: self.created,
            model: &self.model,
            choices: [WholeChoice { index: 0, message, logprobs: None, finish_reason }],
            usage: Usage::of(done),
        }
    }

    fn chunk<'a>(&'a self, choice: Option<ChunkChoice<'a>>, usage: Option<Option<Usage>>) -> Chunk<'a> {
        let choices = choice.into_iter().collect();
        let object = "chat.completion.chunk";
        Chunk { id: &self.id, object, created: self.created, model: &self.model, choices, usage }
    }
}

/// An answer that did not end by itself is a failure for the client, whatever was generated.
fn finish_reason(finish: FinishReason) -> Result<&'static str, Reject> {
    match finish {
        FinishReason::Stop => Ok("stop"),
        FinishReason::Length => Ok("length"),
        FinishReason::Cancelled => Err(Reject::of(ErrorKind::Cancelled, "the answer was cancelled")),
    }
}

/// What the stream says next.
#[derive(Debug)]
enum Next {
    Role,
    Text,
    Usage(Usage),
    Mark,
    Nothing,
}

/// An answer as server-sent events.
struct Events {
    generation: Generation,
    heading: Heading,
    include_usage: bool,
    next: Next,
}

impl Events {
    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
        futures::stream::unfold(self, |mut events| async move {
            let event = events.step().await?;
            Some((Ok(event), events))
        })
    }

    async fn step(&mut self) -> Option<Event> {
        match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Role => {
                self.next = Next::Text;
                let delta = ChunkDelta { role: Some("assistant"), content: Some("") };
                Some(self.choice(ChunkChoice { delta, ..ChunkChoice::default() }))
            }
            Next::Text => Some(self.text().await),
            Next::Usage(usage) => {
                self.next = Next::Mark;
                Some(json_event(&self.heading.chunk(None, Some(Some(usage)))))
            }
            Next::Mark => Some(Event::default().data("[DONE]")),
            Next::Nothing => None,
        }
    }

    async fn text(&mut self) -> Event {
        let done = match self.generation.next().await {
            Some(Ok(Delta::Text(text))) => {
                self.next = Next::Text;
                let delta = ChunkDelta { role: None, content: Some(&text) };
                return self.choice(ChunkChoice { delta, ..ChunkChoice::default() });
            }
            Some(Ok(Delta::Done(done))) => done,
            Some(Err(error)) => return json_event(&Reject::from(error).body()),
            None => {
                return json_event(&Reject::of(ErrorKind::Internal, "the answer ended without a reason").body());
            }
        };
        match finish_reason(done.finish) {
            Ok(reason) => {
                self.next = if self.include_usage { Next::Usage(Usage::of(&done)) } else { Next::Mark };
                self.choice(ChunkChoice { finish_reason: Some(reason), ..ChunkChoice::default() })
            }
            Err(reject) => json_event(&reject.body()),
        }
    }

    fn choice(&self, choice: ChunkChoice<'_>) -> Event {
        json_event(&self.heading.chunk(Some(choice), self.include_usage.then_some(None)))
    }
}

fn json_event(value: &impl Serialize) -> Event {
    // Our own structs of text and numbers always have a JSON form.
    Event::default().json_data(value).unwrap_or_default()
}

/// The model's hash, and `node:layers` of each stage, with `+head` where the head runs.
fn route_headers(plan: &Plan) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let stages: Vec<String> = plan
        .stages
        .iter()
        .map(|stage| format!("{}:{}{}", stage.node.short(), stage.layers, if stage.head { "+head" } else { "" }))
        .collect();
    insert(&mut headers, "x-swarmllm-model", plan.model.to_string());
    insert(&mut headers, "x-swarmllm-route", stages.join(","));
    headers
}

/// Durations in milliseconds: opening, first token, all, and each stage's own compute.
fn server_timing(done: &Completion) -> String {
    let timings = &done.timings;
    let mut parts = vec![
        format!("open;dur={:.1}", timings.open_ms),
        format!("first-token;dur={:.1}", timings.first_token_ms),
        format!("total;dur={:.1}", timings.total_ms),
    ];
    for (index, stage) in done.route.iter().enumerate() {
        let what = format!("{} {} {}", stage.node.short(), stage.layers, stage.engine);
        parts.push(format!("stage{index}-prefill;dur={:.1};desc=\"{what}\"", stage.prefill_us as f64 / 1e3));
        parts.push(format!("stage{index}-decode;dur={:.3}", stage.decode_us as f64 / 1e3));
    }
    parts.join(", ")
}

/// Headers are hints: one that cannot be written is left out.
fn insert(headers: &mut HeaderMap, name: &'static str, value: String) {
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{LayerRange, ModelId, NodeId};
    use crate::node::{PlanStage, Timings};

    fn done() -> Completion {
        Completion {
            text: "hi".to_owned(),
            tokens: vec![1, 2],
            finish: FinishReason::Stop,
            prompt_tokens: 3,
            cached_tokens: 2,
            guessed_tokens: 0,
            right_guesses: 0,
            completion_tokens: 2,
            route: Vec::new(),
            timings: Timings { open_ms: 1.0, first_token_ms: 2.0, decode_tokens_per_second: 3.0, total_ms: 4.0 },
        }
    }

    #[test]
    fn a_whole_answer_has_openais_shape() {
        let heading = Heading::new("m");
        let json = serde_json::to_value(heading.whole(&done(), "stop")).unwrap();
        assert_eq!(json["object"], "chat.completion");
        assert_eq!(json["choices"][0]["message"]["content"], "hi");
        assert_eq!(json["choices"][0]["finish_reason"], "stop");
        assert_eq!(json["usage"]["total_tokens"], 5);
        assert_eq!(json["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
        assert!(heading.id.starts_with("chatcmpl-"));
    }

    #[test]
    fn a_chunk_carries_usage_only_where_asked() {
        let heading = Heading::new("m");
        let text = || ChunkChoice { delta: ChunkDelta { role: None, content: Some("a") }, ..ChunkChoice::default() };
        let plain = serde_json::to_value(heading.chunk(Some(text()), None)).unwrap();
        assert_eq!(plain["choices"][0]["delta"], serde_json::json!({"content": "a"}));
        assert!(plain.get("usage").is_none());
        let asked = serde_json::to_value(heading.chunk(Some(text()), Some(None))).unwrap();
        assert!(asked.get("usage").is_some_and(|usage| usage.is_null()));
        let last = serde_json::to_value(heading.chunk(None, Some(Some(Usage::of(&done()))))).unwrap();
        assert_eq!(last["choices"], serde_json::json!([]));
        assert_eq!(last["usage"]["prompt_tokens"], 3);
    }

    #[test]
    fn the_route_is_compact_and_complete() {
        let stage =
            |byte, start, end, head| PlanStage { node: NodeId([byte; 32]), layers: LayerRange::new(start, end), head };
        let plan = Plan { model: ModelId([9; 32]), stages: vec![stage(0xaa, 0, 15, false), stage(0xbb, 15, 30, true)] };
        let headers = route_headers(&plan);
        assert_eq!(headers["x-swarmllm-route"], "aaaaaaaa:0..15,bbbbbbbb:15..30+head");
        assert_eq!(headers["x-swarmllm-model"], plan.model.to_string());
    }
}
