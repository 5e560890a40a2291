//! The state of handlers, and the extractor of JSON bodies.
//!
//! `tower-http`'s body limit refuses a large `Content-Length` in plain text, and its error of a longer body differs from
//! that of a lost connection only by a downcast. Bodies are therefore read here, with refusals in OpenAI's format.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRef, FromRequest, FromRequestParts, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use futures::StreamExt;
use serde::de::DeserializeOwned;

use super::reject::Reject;
use crate::base::json;
use crate::node::Node;

/// The node and the limits.
#[derive(Clone)]
pub(super) struct AppState {
    pub(super) node: Node,
    pub(super) limits: Limits,
}

/// Limits of a request's body.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Maximum size, in bytes.
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

/// The caller of a request, for fair queueing: the client's address, of IPv6 its /64 network, because a machine may use all
/// addresses of one.
#[derive(Debug, Clone, Default)]
pub(super) struct Client(pub(super) String);

impl Client {
    pub(super) fn new(address: IpAddr) -> Self {
        /// Bits of the network part.
        const NETWORK: u128 = (u64::MAX as u128) << 64;
        let address = match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(v6.to_bits() & NETWORK)),
            v4 => v4,
        };
        Self(format!("http {address}"))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(parts.extensions.get().cloned().unwrap_or_default())
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
        let late = |_| Reject::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body took too long");
        let reading = read(request.into_body(), limits.max_body);
        let bytes = tokio::time::timeout(limits.body_timeout, reading).await.map_err(late)??;
        Ok(Self(json::parse(&bytes)?))
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
