//! `swarmllm import`: cuts a GGUF into shards.

use std::process::ExitCode;

use swarmllm_core::node::ImportOptions;

use super::models;
use crate::args::ImportArgs;
use crate::context::{Context, close};
use crate::failure::Failure;
use crate::progress::Bar;

pub async fn import(context: &Context, args: ImportArgs) -> Result<ExitCode, Failure> {
    let node = context.offline().await?;
    let bar = Bar::new("importing", context.json);
    let options = ImportOptions { parts: args.parts(), name: args.name, progress: Some(bar.mover()) };
    let imported = node.import(&args.file, options).await;
    drop(bar);
    close(node).await;
    models::tell(context, &[imported?])?;
    Ok(ExitCode::SUCCESS)
}
