//! Answers, whole or as a stream of server-sent events: to chats and to plain texts alike.
//!
//! The generation lives in the handler or in the stream; a client that leaves drops it, which cancels it everywhere.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use serde::Serialize;

use super::choices::{Asked, Choices};
use super::request::Ask;
use super::shapes::{Family, Heading, Logprobs, Piece, Usage, finish_reason};
use crate::base::ErrorKind;
use crate::node::{Completion, Delta, Generation, Node, Plan, TokenLogprob};
use crate::server::reject::Reject;
use crate::server::state::Client;

/// How often a silent stream shows that it lives; it also finds out that the client does not.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Answers what was asked, in the shape of its family.
pub(super) async fn answer(node: Node, client: Client, mut ask: Ask) -> Result<Response, Reject> {
    ask.request.options_mut().caller = client.0;
    let family = match &ask.request {
        Asked::Chat(_) => Family::Chat,
        Asked::Text(_) => Family::Text,
    };
    let heading = Heading::new(family, ask.request.model());
    let mut choices = Choices::new(node, ask.request, ask.n);
    // The first has its place before the answer's head is sent, so that what it is refused for has a status.
    let Some(generation) = choices.next().await? else {
        return Err(Reject::of(ErrorKind::Internal, "no answer was begun"));
    };
    let headers = route_headers(generation.route());
    if ask.stream {
        let events = Events::new(choices, generation, heading, ask.include_usage);
        let stream = Sse::new(events.stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE));
        return Ok((headers, stream).into_response());
    }
    whole(choices, generation, heading, headers).await
}

/// Waits for every choice. `server-timing` is the first one's.
async fn whole(
    mut choices: Choices,
    first: Generation,
    heading: Heading,
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
    Ok((headers, Json(heading.whole(&done, usage)?)).into_response())
}

/// What the stream says next.
#[derive(Debug)]
enum Next {
    Role,
    Text,
    Choice,
    Mark,
    Nothing,
}

/// An answer as server-sent events.
struct Events {
    choices: Choices,
    generation: Generation,
    heading: Heading,
    include_usage: bool,
    /// Of the choices that have ended.
    usage: Option<Usage>,
    /// Tokens whose text has not been sent.
    tokens: Vec<TokenLogprob>,
    next: Next,
}

impl Events {
    fn new(choices: Choices, mut generation: Generation, heading: Heading, include_usage: bool) -> Self {
        generation.forget_told();
        let (usage, tokens) = (None, Vec::new());
        let next = if heading.announces_choices() { Next::Role } else { Next::Text };
        Self { choices, generation, heading, include_usage, usage, tokens, next }
    }

    fn stream(self) -> impl Stream<Item = Result<Event, Infallible>> + Send + 'static {
        futures::stream::unfold(self, |mut events| async move {
            let event = events.step().await?;
            Some((Ok(event), events))
        })
    }

    async fn step(&mut self) -> Option<Event> {
        match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Role => Some(self.role()),
            Next::Text => Some(self.text().await),
            Next::Choice => Some(self.choice().await),
            Next::Mark => Some(Event::default().data("[DONE]")),
            Next::Nothing => None,
        }
    }

    fn role(&mut self) -> Event {
        self.next = Next::Text;
        self.event(Piece { begins: true, text: Some(""), ..Piece::default() })
    }

    /// Begins the next choice, or ends the stream.
    async fn choice(&mut self) -> Event {
        match self.choices.next().await {
            Ok(Some(generation)) => {
                self.generation = generation;
                self.generation.forget_told();
                if self.heading.announces_choices() { self.role() } else { self.text().await }
            }
            Ok(None) if self.include_usage => {
                self.next = Next::Mark;
                json_event(&self.heading.chunk(None, Some(self.usage)))
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
                    self.next = Next::Text;
                    return self.told(Some(&text), None);
                }
                Some(Ok(Delta::Done(done))) => break done,
                Some(Err(error)) => return json_event(&Reject::from(error).body()),
                None => {
                    return json_event(&Reject::of(ErrorKind::Internal, "the answer ended without a reason").body());
                }
            }
        };
        match finish_reason(done.finish) {
            Ok(reason) => {
                self.next = Next::Choice;
                self.usage = Some(self.usage.map_or_else(|| Usage::of(&done), |usage| usage.and(&done)));
                self.told(None, Some(reason))
            }
            Err(reject) => json_event(&reject.body()),
        }
    }

    /// A piece of the answer with the tokens that it took.
    fn told(&mut self, text: Option<&str>, finish_reason: Option<&'static str>) -> Event {
        let tokens = std::mem::take(&mut self.tokens);
        let logprobs = (!tokens.is_empty()).then(|| Logprobs::of(&tokens));
        self.event(Piece { text, logprobs, finish_reason, ..Piece::default() })
    }

    fn event(&self, piece: Piece<'_>) -> Event {
        let piece = Piece { index: self.choices.index(), ..piece };
        json_event(&self.heading.chunk(Some(piece), self.include_usage.then_some(None)))
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
    use crate::node::PlanStage;

    #[test]
    fn the_route_is_compact_and_complete() {
        let stage =
            |byte, start, end, head| PlanStage { node: NodeId([byte; 32]), layers: LayerRange::new(start, end), head };
        let stages = vec![stage(0xaa, 0, 15, false), stage(0xbb, 15, 30, true)];
        let plan = Plan { model: ModelId([9; 32]), stages, token_us: 9000 };
        let headers = route_headers(&plan);
        assert_eq!(headers["x-swarmllm-route"], "aaaaaaaa:0..15,bbbbbbbb:15..30+head");
        assert_eq!(headers["x-swarmllm-model"], plan.model.to_string());
    }
}
