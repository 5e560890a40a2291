//! `POST /v1/completions`: continues a text.

use std::fmt;

use axum::extract::State;
use axum::response::Response;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use super::answer::answer;
use super::choices::NodeRequest;
use super::request::{Absent, CheckedRequest, Count, body};
use crate::base::json::BoundedU32;
use crate::node::{GenerateRequest, Node, Prompt};
use crate::server::reject::Reject;
use crate::server::state::{Client, JsonBody};

body! {
    /// The body.
    #[expect(dead_code, reason = "fields that must be absent, or have no effect, are only declared")]
    pub(crate) struct TextBody {
        prompt: OneText,
        /// Only `false`, the default.
        echo: Option<bool>,
        /// Only equal to `n`: all computed choices are returned.
        best_of: Option<Count>,
        logprobs: Absent,
        suffix: Absent,
        /// Accepted without effect.
        user: Option<String>,
    }
}

/// A text, or a list of one text.
#[derive(Debug)]
struct OneText(String);

struct OneTextVisitor;

impl<'de> Visitor<'de> for OneTextVisitor {
    type Value = OneText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("one text")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<OneText, E> {
        Ok(OneText(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneText, A::Error> {
        match (list.next_element()?, list.next_element::<de::IgnoredAny>()?) {
            (Some(text), None) => Ok(OneText(text)),
            _ => Err(de::Error::custom("a request continues one text")),
        }
    }
}

impl<'de> Deserialize<'de> for OneText {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(OneTextVisitor)
    }
}

pub(super) async fn complete(
    State(node): State<Node>,
    client: Client,
    JsonBody(body): JsonBody<TextBody>,
) -> Result<Response, Reject> {
    answer(node, client, body.check()?).await
}

impl TextBody {
    /// Checks all limits and returns the node's request.
    pub(crate) fn check(mut self) -> Result<CheckedRequest, Reject> {
        let checked = self.common().check()?;
        if self.echo == Some(true) {
            return Err(Reject::field("echo", "is not supported by this server; leave it out"));
        }
        let n = checked.n;
        if let Some(BoundedU32(best_of)) = self.best_of.filter(|best_of| best_of.0 != n) {
            let why = format!("is {best_of} where `n` is {n}: all computed answers are returned");
            return Err(Reject::field("best_of", format!("{why}; leave it out")));
        }
        let prompt = Prompt::Text(self.prompt.0);
        Ok(checked.into_request(|model, options| NodeRequest::Text(GenerateRequest { model, prompt, options })))
    }
}
