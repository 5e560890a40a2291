//! `swarmllm invite` and `swarmllm join`: adding another machine to the swarm.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;
use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::Invite;

use crate::context::{Context, close};
use crate::failure::Failure;
use crate::{input, print};

/// Unit of an invite's validity.
pub const DAY: Duration = Duration::from_secs(86_400);

#[derive(Serialize)]
struct Written {
    invite: String,
    network: String,
    private: bool,
    addresses: Vec<String>,
}

#[derive(Serialize)]
struct Joined {
    network: String,
    private: bool,
}

/// Prints an invite with the addresses that `run` would have.
pub async fn invite(context: &Context, days: u32) -> Result<ExitCode, Failure> {
    let node = context.server_node().await?;
    let invite = node.invite(DAY * days);
    close(node).await;
    let invite = invite?;
    let read = Invite::read(&invite)?;
    if context.json {
        let (network, private, addresses) = (read.network.clone(), read.is_private(), read.addresses);
        print::json(&Written { invite, network, private, addresses })?;
        return Ok(ExitCode::SUCCESS);
    }
    print::line(&invite)?;
    let kind = if read.is_private() {
        "the holder of this invite can enter the private swarm"
    } else {
        "invite to the open swarm"
    };
    print::note(&format!(
        "{kind} `{}` for {days} days; on the other machine: run `swarmllm join -` and paste the invite",
        read.network
    ));
    Ok(ExitCode::SUCCESS)
}

/// Joins the swarm of an invite; `-` reads it from stdin.
pub async fn join(context: &Context, invite: &str) -> Result<ExitCode, Failure> {
    let read = match invite {
        "-" => Some(read().await?),
        _ => None,
    };
    let node = context.join(read.as_deref().unwrap_or(invite)).await?;
    let status = node.status();
    close(node).await;
    let joined = Joined { network: status.network, private: status.private };
    if context.json {
        print::json(&joined)?;
    } else {
        print::note(&format!("joined swarm `{}`; start the node with: swarmllm run", joined.network));
    }
    Ok(ExitCode::SUCCESS)
}

/// The invite on the first line of stdin.
async fn read() -> Result<String, Failure> {
    match input::lines().recv().await {
        Some(Ok(line)) => Ok(line.trim().to_owned()),
        Some(Err(error)) => Err(Failure::io("stdin", &error)),
        None => Err(Failure::new(ErrorKind::InvalidArgument, "stdin has no invite")),
    }
}
