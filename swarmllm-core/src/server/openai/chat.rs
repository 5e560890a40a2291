//! `POST /v1/chat/completions`.

use axum::extract::State;
use axum::response::Response;

use super::answer::answer;
use super::types::ChatBody;
use crate::node::Node;
use crate::server::reject::Reject;
use crate::server::state::{Client, JsonBody};

pub(super) async fn chat(
    State(node): State<Node>,
    client: Client,
    JsonBody(body): JsonBody<ChatBody>,
) -> Result<Response, Reject> {
    answer(node, client, body.check()?).await
}
