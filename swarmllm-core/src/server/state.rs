//! What handlers are given, and how they read a body.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRef, FromRequest, Request};
use axum::http::StatusCode;
use futures::StreamExt;
use serde::de::DeserializeOwned;

use super::reject::Reject;
use crate::node::Node;

/// The node and the bounds.
#[derive(Clone)]
pub(super) struct AppState {
    pub(super) node: Node,
    pub(super) limits: Limits,
}

/// Bounds on a request's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes.
    pub(super) max_body: usize,
    pub(super) body_timeout: Duration,
}

impl FromRef<AppState> for Limits {
    fn from_ref(state: &AppState) -> Self {
        state.limits
    }
}

impl FromRef<AppState> for Node {
    fn from_ref(state: &AppState) -> Self {
        state.node.clone()
    }
}

/// A JSON body, read within [`Limits`].
pub(super) struct JsonBody<T>(pub(super) T);

impl<S, T> FromRequest<S> for JsonBody<T>
where
    S: Send + Sync,
    Limits: FromRef<S>,
    T: DeserializeOwned,
{
    type Rejection = Reject;

    async fn from_request(request: Request, state: &S) -> Result<Self, Reject> {
        let limits = Limits::from_ref(state);
        let late = |_| Reject::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body did not arrive in time");
        let reading = read(request.into_body(), limits.max_body);
        let bytes = tokio::time::timeout(limits.body_timeout, reading).await.map_err(late)??;
        parse(&bytes).map(Self)
    }
}

async fn read(body: Body, max_body: usize) -> Result<Vec<u8>, Reject> {
    let mut parts = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(part) = parts.next().await {
        let part = part.map_err(|_| Reject::new(StatusCode::BAD_REQUEST, "incomplete_body", "the body was cut off"))?;
        if bytes.len() + part.len() > max_body {
            let message = format!("the body is larger than {max_body} bytes");
            return Err(Reject::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}

/// Parses a body, naming the field that does not fit. Nesting is bounded by the types, and by serde_json to 128 levels.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Reject> {
    let malformed = |cause: &serde_json::Error| {
        Reject::new(StatusCode::BAD_REQUEST, "malformed_json", format!("the body is not JSON: {cause}"))
    };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| match error.inner().is_data() {
        true => Reject::field(error.path().to_string(), error.inner()),
        false => malformed(error.inner()),
    })?;
    json.end().map_err(|cause| malformed(&cause))?;
    Ok(value)
}
