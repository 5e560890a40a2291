//! `swarmllm run`: runs a node until a signal stops it.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;
use swarmllm_core::node::Node;
use swarmllm_core::server::{self, Server};

use crate::commands::invite::DAY;
use crate::context::Context;
use crate::failure::Failure;
use crate::print;
use crate::signals::StopSignal;

/// Time for the shutdown after a signal.
const DEADLINE: Duration = Duration::from_secs(10);
/// Part of [`DEADLINE`] for HTTP answers; the rest is for the node.
const ANSWERS: Duration = Duration::from_secs(8);

#[derive(Serialize)]
struct Ready {
    ready: bool,
    id: String,
    network: String,
    data_dir: std::path::PathBuf,
    /// P2P addresses.
    addresses: Vec<String>,
    /// Base addresses of HTTP.
    http: Vec<String>,
    /// An invite to the swarm, if requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    invite: Option<String>,
}

pub async fn run(context: &Context, invite_days: Option<u32>) -> Result<ExitCode, Failure> {
    // Before the start, so that a signal during the start is not lost.
    let mut stop = StopSignal::listen()?;
    let started = tokio::select! {
        started = start(context) => started?,
        () = stop.received() => return Ok(ExitCode::SUCCESS),
    };
    let (node, server) = started;
    let invite = invite_days.map(|days| node.invite(DAY * days)).transpose()?;
    print_ready(context, &node, server.as_ref(), invite)?;
    stop.received().await;
    if !context.json {
        print::note("stopping; interrupt again to stop at once");
    }
    tokio::select! {
        () = end(&node, server) => Ok(ExitCode::SUCCESS),
        () = stop.received() => Ok(ExitCode::FAILURE),
    }
}

async fn start(context: &Context) -> Result<(Node, Option<Server>), Failure> {
    let node = context.server_node().await?;
    let server = match context.settings.http {
        true => Some(server::serve(node.clone(), context.settings.server())?),
        false => None,
    };
    Ok((node, server))
}

/// Shuts down the server, then the node, within one deadline.
async fn end(node: &Node, server: Option<Server>) {
    let begin = Instant::now();
    if let Some(server) = server {
        server.shutdown(ANSWERS).await;
    }
    node.shutdown(DEADLINE.saturating_sub(begin.elapsed())).await;
}

fn print_ready(context: &Context, node: &Node, server: Option<&Server>, invite: Option<String>) -> Result<(), Failure> {
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
