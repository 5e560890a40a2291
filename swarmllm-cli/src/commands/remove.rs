//! `swarmllm remove`: removes a model from this machine.

use std::process::ExitCode;

use swarmllm_core::base::Bytes;

use crate::context::{Context, close};
use crate::failure::Failure;
use crate::print;

pub async fn remove(context: &Context, model: &str) -> Result<ExitCode, Failure> {
    let node = context.offline().await?;
    let removed = node.remove(model).await;
    close(node).await;
    let removed = removed?;
    if context.json {
        print::json(&removed)?;
    } else {
        let (name, id, freed) = (&removed.name, removed.id.short(), Bytes(removed.freed));
        print::line(&print::clean(&format!("removed {name} ({id}), freed {freed}")))?;
    }
    Ok(ExitCode::SUCCESS)
}
