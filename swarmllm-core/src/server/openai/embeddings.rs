//! `POST /v1/embeddings`.

use std::fmt;

use axum::Json;
use axum::extract::State;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};

use super::request::{Absent, checked_model};
use crate::node::{EmbedRequest, MAX_INPUTS, Node, Pooling, Prompt};
use crate::server::reject::Reject;
use crate::server::state::{Client, JsonBody};

/// The body.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "fields that must be absent, or have no effect, are only declared")]
pub(super) struct Body {
    model: String,
    input: Input,
    encoding_format: Option<Encoding>,
    /// An extension: `mean` or `last`.
    pooling: Option<PoolingName>,
    dimensions: Absent,
    /// Accepted without effect.
    user: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Encoding {
    Float,
    /// Little-endian f32, the default of OpenAI's clients.
    Base64,
}

#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum PoolingName {
    Mean,
    Last,
}

/// A text, a list of texts, a list of tokens, or a list of such lists.
#[derive(Debug)]
struct Input(Vec<Prompt>);

/// An element of a list.
enum Element {
    Text(String),
    Tokens(Vec<u32>),
    /// A token of a single text.
    Token(u32),
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Element;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, a token's number, or a list of such numbers")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Element, E> {
        Ok(Element::Text(text.to_owned()))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Element, E> {
        let token = u32::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self));
        token.map(Element::Token)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Element, A::Error> {
        Vec::deserialize(de::value::SeqAccessDeserializer::new(list)).map(Element::Tokens)
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(ElementVisitor)
    }
}

struct InputVisitor;

impl<'de> Visitor<'de> for InputVisitor {
    type Value = Input;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a text, a list of at most {MAX_INPUTS} texts, or tokens in their place")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Input, E> {
        Ok(Input(vec![Prompt::Text(text.to_owned())]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Input, A::Error> {
        let (mut texts, mut tokens) = (Vec::new(), Vec::new());
        while let Some(element) = list.next_element()? {
            match element {
                Element::Text(text) => texts.push(Prompt::Text(text)),
                Element::Tokens(tokens) => texts.push(Prompt::Tokens(tokens)),
                Element::Token(token) => tokens.push(token),
            }
            if texts.len() > MAX_INPUTS {
                return Err(de::Error::custom(format_args!("at most {MAX_INPUTS} texts are accepted")));
            }
        }
        match (texts.is_empty(), tokens.is_empty()) {
            (false, true) => Ok(Input(texts)),
            (true, false) => Ok(Input(vec![Prompt::Tokens(tokens)])),
            (true, true) => Err(de::Error::custom("the list is empty")),
            (false, false) => Err(de::Error::custom("the list has both texts and tokens")),
        }
    }
}

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(InputVisitor)
    }
}

#[derive(Debug, Serialize)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Item>,
    model: String,
    usage: Usage,
}

#[derive(Debug, Serialize)]
struct Item {
    object: &'static str,
    index: usize,
    embedding: Vector,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Vector {
    Floats(Vec<f32>),
    Text(String),
}

#[derive(Debug, Serialize)]
struct Usage {
    prompt_tokens: u32,
    total_tokens: u32,
}

pub(super) async fn embed(
    State(node): State<Node>,
    client: Client,
    JsonBody(body): JsonBody<Body>,
) -> Result<Json<List>, Reject> {
    let model = checked_model("model", body.model)?;
    let pooling = match body.pooling {
        Some(PoolingName::Last) => Pooling::Last,
        Some(PoolingName::Mean) | None => Pooling::Mean,
    };
    let request =
        EmbedRequest { model: model.clone(), inputs: body.input.0, pooling, deadline: None, caller: client.0 };
    let done = node.embed(request).await.map_err(|error| Reject::from(error.fault()))?;
    let encoding = body.encoding_format.unwrap_or(Encoding::Float);
    let item = |(index, vector)| Item { object: "embedding", index, embedding: encoded(vector, encoding) };
    let data = done.vectors.into_iter().enumerate().map(item).collect();
    let usage = Usage { prompt_tokens: done.prompt_tokens, total_tokens: done.prompt_tokens };
    Ok(Json(List { object: "list", data, model, usage }))
}

fn encoded(vector: Vec<f32>, encoding: Encoding) -> Vector {
    match encoding {
        Encoding::Float => Vector::Floats(vector),
        Encoding::Base64 => {
            let bytes: Vec<u8> = vector.iter().flat_map(|value| value.to_le_bytes()).collect();
            Vector::Text(BASE64_STANDARD.encode(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::json;

    fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Reject> {
        json::parse(body).map_err(Reject::from)
    }

    fn inputs(input: &str) -> Result<Vec<Prompt>, Reject> {
        parse::<Body>(format!(r#"{{"model": "m", "input": {input}}}"#).as_bytes()).map(|body| body.input.0)
    }

    #[test]
    fn texts_and_tokens_may_be_in_lists() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        assert_eq!(inputs(r#""a""#).unwrap(), [text("a")]);
        assert_eq!(inputs(r#"["a", "b"]"#).unwrap(), [text("a"), text("b")]);
        assert_eq!(inputs("[1, 2]").unwrap(), [Prompt::Tokens(vec![1, 2])]);
        assert_eq!(inputs("[[1], [2, 3]]").unwrap(), [Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
    }

    #[test]
    fn invalid_inputs_are_refused_with_their_path() {
        let many = format!("[{}\"a\"]", "\"a\",".repeat(MAX_INPUTS));
        for refused in ["[]", "7", "null", r#"["a", 1]"#, "[-1]", "[1.5]", "[[[1]]]", &many] {
            let reject = inputs(refused).unwrap_err();
            assert!(reject.param.as_deref().is_some_and(|field| field.starts_with("input")), "{refused}: {reject:?}");
        }
        let table = [
            ("7", "`input`: must be a text, a list of at most 1024 texts, or tokens in their place, not 7"),
            ("[-1]", "`input[0]`: must be text, a token's number, or a list of such numbers, not -1"),
            ("[5000000000]", "`input[0]`: must be text, a token's number, or a list of such numbers, not 5000000000"),
            ("[[1, true]]", "`input[0][1]`: must be a whole number from 0 to 4294967295, not true"),
            (r#""a", "encoding_format": 2"#, "`encoding_format`: must be one of `float`, `base64`, not 2"),
            (r#""a", "pooling": "max""#, "`pooling`: must be one of `mean`, `last`, not \"max\""),
        ];
        for (input, message) in table {
            assert_eq!(inputs(input).unwrap_err().message, message);
        }
        assert_eq!(parse::<Body>(br#"{"input": "a"}"#).unwrap_err().message, "`model`: is missing");
        let body = r#"{"model": "m", "input": "a", "dimensions": 12}"#;
        assert_eq!(parse::<Body>(body.as_bytes()).unwrap_err().param.as_deref(), Some("dimensions"));
    }

    #[test]
    fn base64_encodes_little_endian_floats() {
        assert!(matches!(encoded(vec![1.0], Encoding::Base64), Vector::Text(text) if text == "AACAPw=="));
    }
}
