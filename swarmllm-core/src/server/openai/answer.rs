//! Answers to chats and texts, whole or as a stream of server-sent events.
//!
//! The handler or the stream owns the generation; when the client disconnects, it is dropped, which cancels it everywhere.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Serialize;

use super::choices::{Choices, NodeRequest};
use super::request::CheckedRequest;
use super::shapes::{AnswerMeta, ChoiceDelta, Family, Logprobs, Usage, finish_reason};
use crate::base::ErrorKind;
use crate::node::{Completion, Delta, Generation, Node, Plan, TokenLogprob};
use crate::server::reject::Reject;
use crate::server::state::Client;

/// Interval of keep-alives in a silent stream. A failed keep-alive also detects a lost client.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Answers a request in the format of its endpoint.
pub(super) async fn answer(node: Node, client: Client, mut ask: CheckedRequest) -> Result<Response, Reject> {
    ask.request.options_mut().caller = client.0;
    let family = match &ask.request {
        NodeRequest::Chat(_) => Family::Chat,
        NodeRequest::Text(_) => Family::Text,
    };
    let meta = AnswerMeta::new(family, ask.request.model());
    let mut choices = Choices::new(node, ask.request, ask.n);
    // The first generation starts before the response's head is sent, so that a refusal has its status.
    let Some(generation) = choices.next().await? else {
        return Err(Reject::of(ErrorKind::Internal, "no answer was begun"));
    };
    let headers = route_headers(generation.route());
    if ask.stream {
        let events = EventStream::new(choices, generation, meta, ask.include_usage);
        let stream = Sse::new(events.stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        return Ok((headers, stream).into_response());
    }
    whole(choices, generation, meta, headers).await
}

/// Waits for all choices. `server-timing` is that of the first.
async fn whole(
    mut choices: Choices,
    first: Generation,
    meta: AnswerMeta,
    mut headers: HeaderMap,
) -> Result<Response, Reject> {
    let first = first.finish().await?;
    finish_reason(first.finish)?;
    insert(&mut headers, "server-timing", server_timing(&first));
    let (mut usage, mut done) = (Usage::of(&first), vec![first]);
    while let Some(generation) = choices.next().await? {
        let next = generation.finish().await?;
        usage = usage.and(&next);
        done.push(next);
    }
    Ok((headers, Json(meta.whole(&done, usage)?)).into_response())
}

/// The next event of a stream.
#[derive(Debug)]
enum StreamState {
    Role,
    Text,
    Choice,
    Done,
    Ended,
}

/// An answer as server-sent events.
struct EventStream {
    choices: Choices,
    generation: Generation,
    meta: AnswerMeta,
    include_usage: bool,
    /// Usage of the choices that have ended.
    usage: Option<Usage>,
    /// Tokens whose text has not been sent.
    tokens: Vec<TokenLogprob>,
    state: StreamState,
}

impl EventStream {
    fn new(choices: Choices, mut generation: Generation, meta: AnswerMeta, include_usage: bool) -> Self {
        generation.discard_logprobs();
        let (usage, tokens) = (None, Vec::new());
        let state = if meta.announces_choices() { StreamState::Role } else { StreamState::Text };
        Self { choices, generation, meta, include_usage, usage, tokens, state }
    }

    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
        futures::stream::unfold(self, |mut events| async move {
            let event = events.step().await?;
            Some((Ok(event), events))
        })
    }

    async fn step(&mut self) -> Option<Event> {
        match std::mem::replace(&mut self.state, StreamState::Ended) {
            StreamState::Role => Some(self.role()),
            StreamState::Text => Some(self.text().await),
            StreamState::Choice => Some(self.choice().await),
            StreamState::Done => Some(Event::default().data("[DONE]")),
            StreamState::Ended => None,
        }
    }

    fn role(&mut self) -> Event {
        self.state = StreamState::Text;
        self.event(ChoiceDelta { begins: true, text: Some(""), ..ChoiceDelta::default() })
    }

    /// Starts the next choice, or ends the stream.
    async fn choice(&mut self) -> Event {
        match self.choices.next().await {
            Ok(Some(generation)) => {
                self.generation = generation;
                self.generation.discard_logprobs();
                if self.meta.announces_choices() { self.role() } else { self.text().await }
            }
            Ok(None) if self.include_usage => {
                self.state = StreamState::Done;
                json_event(&self.meta.chunk(None, Some(self.usage)))
            }
            Ok(None) => Event::default().data("[DONE]"),
            Err(reject) => json_event(&reject.body()),
        }
    }

    async fn text(&mut self) -> Event {
        let done = loop {
            match self.generation.next().await {
                Some(Ok(Delta::Token(token))) => self.tokens.push(*token),
                Some(Ok(Delta::Text(text))) => {
                    self.state = StreamState::Text;
                    return self.piece(Some(&text), None);
                }
                Some(Ok(Delta::Done(done))) => break done,
                Some(Err(error)) => return json_event(&Reject::from(error).body()),
                None => {
                    return json_event(
                        &Reject::of(ErrorKind::Internal, "the answer ended without a completion").body(),
                    );
                }
            }
        };
        match finish_reason(done.finish) {
            Ok(reason) => {
                self.state = StreamState::Choice;
                self.usage = Some(self.usage.map_or_else(|| Usage::of(&done), |usage| usage.and(&done)));
                self.piece(None, Some(reason))
            }
            Err(reject) => json_event(&reject.body()),
        }
    }

    /// A piece of the answer with its log-probabilities.
    fn piece(&mut self, text: Option<&str>, finish_reason: Option<&'static str>) -> Event {
        let tokens = std::mem::take(&mut self.tokens);
        let logprobs = (!tokens.is_empty()).then(|| Logprobs::of(&tokens));
        self.event(ChoiceDelta { text, logprobs, finish_reason, ..ChoiceDelta::default() })
    }

    fn event(&self, piece: ChoiceDelta<'_>) -> Event {
        let piece = ChoiceDelta { index: self.choices.index(), ..piece };
        json_event(&self.meta.chunk(Some(piece), self.include_usage.then_some(None)))
    }
}

fn json_event(value: &impl Serialize) -> Event {
    // Structs of text and numbers always serialize.
    Event::default().json_data(value).unwrap_or_default()
}

/// The model's id, and `node:layers` of each stage, with `+head` for the stage with the head.
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

/// Durations in milliseconds: opening, first token, total, and the compute time of each stage.
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

/// Sets an informational header; an invalid value is left out.
fn insert(headers: &mut HeaderMap, name: &'static str, value: String) {
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{LayerRange, ModelId, NodeId};
    use crate::node::PlanStage;

    #[test]
    fn the_route_header_lists_all_stages() {
        let stage =
            |byte, start, end, head| PlanStage { node: NodeId([byte; 32]), layers: LayerRange::new(start, end), head };
        let stages = vec![stage(0xaa, 0, 15, false), stage(0xbb, 15, 30, true)];
        let plan = Plan { model: ModelId([9; 32]), stages, token_us: 9000 };
        let headers = route_headers(&plan);
        assert_eq!(headers["x-swarmllm-route"], "aaaaaaaa:0..15,bbbbbbbb:15..30+head");
        assert_eq!(headers["x-swarmllm-model"], plan.model.to_string());
    }
}
