//! `swarmllm peers`: the peers and the models that they hold.

use std::process::ExitCode;
use std::time::Duration;

use swarmllm_core::base::Bytes;
use swarmllm_core::node::{PeerHolding, PeerStatus};

use super::ranges;
use crate::INTERRUPTED;
use crate::args::PeersArgs;
use crate::context::{Context, close};
use crate::failure::Failure;
use crate::print;
use crate::signals::StopSignal;

pub async fn peers(context: &Context, args: PeersArgs) -> Result<ExitCode, Failure> {
    let mut stop = StopSignal::listen()?;
    let node = tokio::select! {
        node = context.client(&args.peer) => node?,
        () = stop.received() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    let interrupted = tokio::select! {
        () = tokio::time::sleep(Duration::from_secs(args.wait.into())) => false,
        () = stop.received() => true,
    };
    let peers = node.peers();
    close(node).await;
    show(context, &peers)?;
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn show(context: &Context, peers: &[PeerStatus]) -> Result<(), Failure> {
    if context.json {
        return print::json(&peers);
    }
    if peers.is_empty() {
        print::note("no peer was found; give an address with --peer, or wait longer with --wait");
        return Ok(());
    }
    peers.iter().filter_map(PeerStatus::clock_warning).for_each(|warning| print::note(&warning));
    let rows: Vec<[String; 6]> = peers.iter().map(row).collect();
    print::line(&print::table(["node", "link", "rtt ms", "serves", "free", "holds"], &rows))
}

fn row(peer: &PeerStatus) -> [String; 6] {
    let link = match &peer.transport {
        Some(transport) if peer.connected => transport.clone(),
        _ if peer.connected => "yes".to_owned(),
        _ => "-".to_owned(),
    };
    let holdings: Vec<String> = peer.holdings.iter().map(holding).collect();
    [
        peer.id.short(),
        link,
        peer.rtt_ms.map_or_else(|| "-".to_owned(), |rtt| format!("{rtt:.1}")),
        if peer.serves { "yes" } else { "no" }.to_owned(),
        Bytes(peer.free_memory).to_string(),
        if holdings.is_empty() { "-".to_owned() } else { holdings.join("; ") },
    ]
}

fn holding(held: &PeerHolding) -> String {
    let head = if held.head { "+head" } else { "" };
    format!("{} ({}) {}{head}", held.name, held.model.short(), ranges(&held.layers))
}
