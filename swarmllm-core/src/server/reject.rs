//! Refusals of requests, in OpenAI's error format, with error kinds as codes.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::base::json::JsonError;
use crate::base::{ErrorKind, Fault};
use crate::node::GenerateError;

/// Maximum length of a message in bytes, whatever foreign value it quotes.
const MAX_MESSAGE: usize = 512;
/// Maximum length of a field's name, in bytes.
const MAX_PARAM: usize = 128;
/// Seconds after which a client may retry when the node was full.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// An error response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reject {
    pub(super) status: StatusCode,
    pub(super) code: String,
    pub(super) message: String,
    /// The field at fault.
    pub(super) param: Option<String>,
}

/// The body in OpenAI's format.
#[derive(Debug, Serialize)]
pub(super) struct ErrorBody<'a> {
    error: ErrorFields<'a>,
}

#[derive(Debug, Serialize)]
struct ErrorFields<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: &'a str,
}

impl Reject {
    /// A refusal of HTTP itself.
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: truncate(message.into(), MAX_MESSAGE), param: None }
    }

    /// A refusal of a field.
    pub(super) fn field(param: impl Into<String>, why: impl std::fmt::Display) -> Self {
        let param = truncate(param.into(), MAX_PARAM);
        let message = format!("`{param}`: {why}");
        Self { param: Some(param), ..Self::of(ErrorKind::InvalidArgument, message) }
    }

    /// A refusal of an error kind, with its status and its code: OpenAI's code if it has one, otherwise the kind's name.
    pub(super) fn of(kind: ErrorKind, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let code = match kind {
            ErrorKind::ContextOverflow => "context_length_exceeded".to_owned(),
            kind => snake_case(kind.name()),
        };
        Self::new(status, &code, message)
    }

    /// The body, for serialization as JSON.
    pub(super) fn body(&self) -> ErrorBody<'_> {
        let Self { status, code, message, param } = self;
        ErrorBody { error: ErrorFields { message, r#type: error_type(*status), param: param.as_deref(), code } }
    }
}

/// The refusal of a body.
impl From<JsonError> for Reject {
    fn from(error: JsonError) -> Self {
        let message = error.sentence("the body");
        match error {
            JsonError::Malformed(_) => Self::new(StatusCode::BAD_REQUEST, "malformed_json", message),
            JsonError::Data { field: None, .. } => Self::of(ErrorKind::InvalidArgument, message),
            JsonError::Data { field: Some(field), why } => Self::field(field, why),
        }
    }
}

/// Fields of the node's requests that have another name in bodies.
const PARAMS: [(&str, &str); 4] =
    [("constraint", "response_format"), ("draft", "draft_model"), ("inputs", "input"), ("logprobs", "top_logprobs")];

/// The path of a field in a body.
fn param(field: &str) -> String {
    let head = field.split(['[', '.']).next().unwrap_or(field);
    let named = PARAMS.iter().find(|(own, _)| *own == head).map_or(head, |(_, named)| named);
    truncate(format!("{named}{}", field.get(head.len()..).unwrap_or_default()), MAX_PARAM)
}

impl From<&Fault> for Reject {
    fn from(fault: &Fault) -> Self {
        let unknown = (fault.kind() == ErrorKind::ModelNotFound).then_some("model");
        match fault.field().or(unknown).map(param) {
            Some(param) => {
                let message = fault.clone().renamed(&param);
                Self { param: Some(param), ..Self::of(fault.kind(), message.message()) }
            }
            None => Self::of(fault.kind(), fault.message()),
        }
    }
}

impl From<GenerateError> for Reject {
    fn from(error: GenerateError) -> Self {
        let reject = Self::from(error.fault());
        match &error {
            GenerateError::Refused(_) => reject,
            // The message includes the progress of the answer.
            GenerateError::Interrupted { .. } => Self { message: truncate(error.to_string(), MAX_MESSAGE), ..reject },
        }
    }
}

impl IntoResponse for Reject {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => drop(response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER)),
            StatusCode::UNAUTHORIZED => {
                response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// OpenAI's error types, from which clients choose an exception.
fn error_type(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        429 => "rate_limit_error",
        400..=499 => "invalid_request_error",
        _ => "server_error",
    }
}

/// `ModelNotFound` as `model_not_found`.
pub(super) fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

fn truncate(mut text: String, most: usize) -> String {
    text.truncate(text.floor_char_boundary(most));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_http_status_and_a_unique_code() {
        let mut codes: Vec<String> = ErrorKind::ALL.iter().map(|kind| Reject::of(*kind, "").code).collect();
        for kind in ErrorKind::ALL {
            assert_eq!(Reject::of(*kind, "").status.as_u16(), kind.http_status(), "{}", kind.name());
        }
        codes.sort();
        codes.dedup();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
        assert_eq!(Reject::of(ErrorKind::ModelNotFound, "").code, "model_not_found");
        let long = Reject::of(ErrorKind::ContextOverflow, "");
        assert_eq!((long.status, long.code.as_str()), (StatusCode::BAD_REQUEST, "context_length_exceeded"));
    }

    #[test]
    fn the_body_has_the_format_of_openai() {
        let body = serde_json::to_value(Reject::field("n", "only 1").body()).unwrap();
        let want = serde_json::json!({"error": {
            "message": "`n`: only 1", "type": "invalid_request_error", "param": "n", "code": "invalid_argument"
        }});
        assert_eq!(body, want);
    }

    #[test]
    fn fields_have_their_names_in_bodies() {
        let table = [
            ("prompt", "prompt"),
            ("messages", "messages"),
            ("inputs", "input"),
            ("inputs[2]", "input[2]"),
            ("draft", "draft_model"),
            ("constraint", "response_format"),
            ("chat_template_kwargs.tools", "chat_template_kwargs.tools"),
        ];
        for (field, param) in table {
            let reject = Reject::from(&Fault::new(ErrorKind::ContextOverflow, "is long").about(field));
            assert_eq!((reject.param.as_deref(), reject.code.as_str()), (Some(param), "context_length_exceeded"));
            assert_eq!(reject.message, format!("`{param}`: is long"));
        }
        let draft = Reject::from(&Fault::new(ErrorKind::ModelNotFound, "no model `m`").of_field("draft"));
        assert_eq!((draft.param.as_deref(), draft.message.as_str()), (Some("draft_model"), "no model `m`"));
        let model = Reject::from(&Fault::new(ErrorKind::ModelNotFound, "no model `m`"));
        assert_eq!(model.param.as_deref(), Some("model"));
        assert_eq!(Reject::from(&Fault::new(ErrorKind::NoPlan, "none")).param, None);
    }

    #[test]
    fn a_full_queue_is_refused_with_retry_after() {
        let response = Reject::of(ErrorKind::Overloaded, "full").into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers().get(header::RETRY_AFTER), Some(&RETRY_AFTER));
        let body = serde_json::to_value(Reject::of(ErrorKind::Overloaded, "full").body()).unwrap();
        assert_eq!(
            (&body["error"]["type"], &body["error"]["code"]),
            (&"rate_limit_error".into(), &"overloaded".into())
        );
        let other = Reject::of(ErrorKind::NoPlan, "").into_response();
        assert_eq!(other.headers().get(header::RETRY_AFTER), None, "waiting does not help");
    }

    #[test]
    fn a_long_foreign_value_is_truncated() {
        let reject = Reject::field("é".repeat(10_000), "ß".repeat(10_000));
        assert!(reject.message.len() <= MAX_MESSAGE);
        assert!(reject.param.unwrap().len() <= MAX_PARAM);
    }
}
