//! OpenAI's routes, and `/` and `/healthz`.

mod answer;
mod chat;
pub(super) mod choices;
pub(super) mod completions;
mod embeddings;
mod format;
mod models;
pub(super) mod request;
mod shapes;
pub(super) mod types;

use std::sync::Arc;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use tower_http::catch_panic::CatchPanicLayer;

use super::auth::{self, Policy};
use super::reject::Reject;
use super::state::AppState;
use crate::base::ErrorKind;

/// All routes, with access checks.
pub(super) fn app(state: AppState, policy: Arc<Policy>) -> Router {
    let routes = Router::new()
        .route("/", get(|| async { Json(serde_json::json!({"name": "swarmllm", "models": "/v1/models"})) }))
        .route("/healthz", get(|| async { Json(serde_json::json!({"status": "ok"})) }))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*id}", get(models::one))
        .route("/v1/chat/completions", post(chat::chat))
        .route("/v1/completions", post(completions::complete))
        .route("/v1/embeddings", post(embeddings::embed))
        .with_state(state);
    guarded(routes, policy)
}

/// Adds access checks, OpenAI's error format for unknown routes, and a response for panics of handlers.
pub(super) fn guarded(routes: Router, policy: Arc<Policy>) -> Router {
    routes
        .fallback(|| async { Reject::new(StatusCode::NOT_FOUND, "unknown_route", "there is no such route") })
        .method_not_allowed_fallback(|| async {
            Reject::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "the route does not have this method")
        })
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(policy, auth::guard))
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    Reject::of(ErrorKind::Internal, "a defect in swarmllm; please report it").into_response()
}
