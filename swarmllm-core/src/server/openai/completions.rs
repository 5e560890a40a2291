//! `POST /v1/completions` in its plain form: one text, continued.

use std::fmt;

use axum::extract::State;
use axum::response::Response;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use super::answer::answer;
use super::choices::Asked;
use super::request::{Absent, Ask, Count, body};
use crate::base::json::Whole;
use crate::node::{GenerateRequest, Node, Prompt};
use crate::server::reject::Reject;
use crate::server::state::{Client, JsonBody};

body! {
    /// The body.
    #[expect(dead_code, reason = "fields that must be absent, or have no effect, are only named")]
    pub(crate) struct TextBody {
        prompt: OneText,
        /// Only `false`, which is what it is without.
        echo: Option<bool>,
        /// Only as many as `n`: no more answers are computed than are given.
        best_of: Option<Count>,
        logprobs: Absent,
        suffix: Absent,
        /// Accepted without effect.
    user: Option<String>,
    }
}

/// A text, or a list of one.
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
            _ => Err(de::Error::custom("one text is continued at a time")),
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
    /// Checks every bound and gives what the node understands.
    pub(crate) fn check(mut self) -> Result<Ask, Reject> {
        let checked = self.common().check()?;
        if self.echo == Some(true) {
            return Err(Reject::field("echo", "is not supported by this server; leave it out"));
        }
        let n = checked.n;
        if let Some(Whole(best_of)) = self.best_of.filter(|best_of| best_of.0 != n) {
            let why = format!("is {best_of} where `n` is {n}: no other answers are computed than those that are given");
            return Err(Reject::field("best_of", format!("{why}; leave it out")));
        }
        let prompt = Prompt::Text(self.prompt.0);
        Ok(checked.ask(|model, options| Asked::Text(GenerateRequest { model, prompt, options })))
    }
}
