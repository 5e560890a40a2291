//! `swarmllm alias` and `unalias`: local names of models.

use std::process::ExitCode;

use super::models;
use crate::args::AliasArgs;
use crate::context::{Context, close};
use crate::failure::Failure;

pub async fn alias(context: &Context, args: &AliasArgs) -> Result<ExitCode, Failure> {
    let node = context.offline().await?;
    let named = match args.moves {
        true => node.move_alias(&args.model, &args.alias).await,
        false => node.add_alias(&args.model, &args.alias).await,
    };
    close(node).await;
    models::show(context, &[named?]).map(|()| ExitCode::SUCCESS)
}

pub async fn unalias(context: &Context, alias: &str) -> Result<ExitCode, Failure> {
    let node = context.offline().await?;
    let removed = node.remove_alias(alias).await;
    close(node).await;
    Ok(removed.map(|()| ExitCode::SUCCESS)?)
}
