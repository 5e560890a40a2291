//! `swarmllm pin` and `unpin`: protects models from removal.

use std::process::ExitCode;

use crate::context::{Context, close};
use crate::failure::Failure;

pub async fn pin(context: &Context, model: &str, on: bool) -> Result<ExitCode, Failure> {
    let node = context.offline().await?;
    let pinned = node.pin(model, on).await;
    close(node).await;
    Ok(pinned.map(|()| ExitCode::SUCCESS)?)
}
