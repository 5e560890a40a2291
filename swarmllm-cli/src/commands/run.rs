//! `swarmllm run`: a node until it is told to stop.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use swarmllm_core::node::Node;
use swarmllm_core::server::{self, Server};

use crate::commands::invite::DAY;
use crate::context::Context;
use crate::failure::Failure;
use crate::print;
use crate::signals::Stop;

/// Time to finish what is running after being told to stop.
const DEADLINE: Duration = Duration::from_secs(10);
/// Part of it that HTTP answers may take; what is left is the node's.
const ANSWERS: Duration = Duration::from_secs(8);

#[derive(Serialize)]
struct Ready {
    ready: bool,
    id: String,
    network: String,
    data_dir: std::path::PathBuf,
    /// P2P.
    addresses: Vec<String>,
    /// Base addresses of the HTTP surface.
    http: Vec<String>,
    /// An invite to the swarm, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    invite: Option<String>,
}

pub async fn run(context: &Context, invite_days: Option<u32>) -> Result<ExitCode, Failure> {
    // Before the start, so that being told to stop during it is not lost.
    let mut stop = Stop::listen()?;
    let started = tokio::select! {
        started = start(context) => started?,
        () = stop.told() => return Ok(ExitCode::SUCCESS),
    };
    let (node, server) = started;
    let invite = invite_days.map(|days| node.invite(DAY * days)).transpose()?;
    tell_ready(context, &node, server.as_ref(), invite)?;
    stop.told().await;
    if !context.json {
        print::note("stopping; once more to stop at once");
    }
    tokio::select! {
        () = end(&node, server) => Ok(ExitCode::SUCCESS),
        () = stop.told() => Ok(ExitCode::FAILURE),
    }
}

async fn start(context: &Context) -> Result<(Node, Option<Server>), Failure> {
    let node = context.host().await?;
    let server = match context.settings.http {
        true => Some(server::serve(node.clone(), context.settings.server())?),
        false => None,
    };
    Ok((node, server))
}

/// Answers first, then the node, within one deadline.
async fn end(node: &Node, server: Option<Server>) {
    let begin = Instant::now();
    if let Some(server) = server {
        server.shutdown(ANSWERS).await;
    }
    node.shutdown(DEADLINE.saturating_sub(begin.elapsed())).await;
}

fn tell_ready(context: &Context, node: &Node, server: Option<&Server>, invite: Option<String>) -> Result<(), Failure> {
    let bound = server.map(Server::addresses).unwrap_or_default();
    let status = node.status();
    let ready = Ready {
        ready: true,
        id: status.id.to_string(),
        network: status.network,
        data_dir: status.data_dir,
        addresses: status.addresses,
        http: bound.iter().map(|address| format!("http://{address}")).collect(),
        invite,
    };
    if context.json {
        return print::json(&ready);
    }
    let of =
        |what: &str, list: &[String]| list.iter().map(|address| format!("\n  {what}  {address}")).collect::<String>();
    print::line(&format!(
        "ready  node {}{}{}{}",
        status.id.short(),
        of("p2p ", &ready.addresses),
        of("http", &ready.http),
        of("invite", ready.invite.as_slice())
    ))
}
