//! `swarmllm pull`: fetches shards from peers, and from the web if an address is given.

use std::process::ExitCode;

use swarmllm_core::node::{ModelInfo, Node};

use super::models;
use crate::INTERRUPTED;
use crate::args::PullArgs;
use crate::context::{Context, close, retry, suggest};
use crate::failure::Failure;
use crate::progress::Bar;
use crate::signals::StopSignal;

pub async fn pull(context: &Context, args: PullArgs) -> Result<ExitCode, Failure> {
    let mut stop = StopSignal::listen()?;
    let node = tokio::select! {
        node = context.client(&args.meet.peer) => node?,
        () = stop.received() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let fetched = tokio::select! {
        fetched = fetch(context, &args, &node) => fetched,
        // Verified shards are kept: the next pull continues from there.
        () = stop.received() => Ok(None),
    };
    close(node).await;
    match fetched? {
        Some(model) => models::show(context, &[model]).map(|()| ExitCode::SUCCESS),
        None => Ok(ExitCode::from(INTERRUPTED)),
    }
}

async fn fetch(context: &Context, args: &PullArgs, node: &Node) -> Result<Option<ModelInfo>, Failure> {
    let wait = context.patience(&args.meet);
    suggest(node, &args.model);
    let mut last = None;
    for parts in args.parts() {
        let bar = Bar::new("fetching", context.json);
        let pull = async || match &args.url {
            None => node.pull(&args.model, parts.clone(), Some(bar.callback())).await.map_err(Failure::from),
            Some(url) => {
                let pulled = node.pull_url(&args.model, parts.clone(), context.web(url), Some(bar.callback()));
                pulled.await.map_err(Failure::from)
            }
        };
        last = Some(retry(wait, pull).await?);
    }
    Ok(last)
}
