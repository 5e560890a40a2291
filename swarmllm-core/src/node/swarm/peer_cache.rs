//! Peers outlive the node: whoever was connected is kept in the store, and dialled at the next start.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::base::{Fault, Hash, NodeId};
use crate::net::{NetHandle, PeerInfo};
use crate::node::shared::Shared;
use crate::store::{PeerRecord, Store, StoreError};

/// Peers that are dialled at the start, those that were seen last.
const DIALLED: usize = 64;
/// Peers that come within this time are stored together.
const SETTLE: Duration = Duration::from_secs(1);
/// How often it is stored that peers are still there.
const REFRESH: Duration = Duration::from_secs(600);
/// How long a store may still be in use by a node of this process that has just been dropped.
const CLOSING: Duration = Duration::from_secs(2);
/// How often that is tried.
const LOOK: Duration = Duration::from_millis(5);

/// Opens the store of a data directory that is locked, and gives the addresses to begin with in this swarm. Blocks.
pub(crate) fn open(dir: &Path, network: &str) -> Result<(Store, Vec<String>), Fault> {
    let fault = |error: StoreError| Fault::new(error.kind(), error);
    let (path, begun) = (dir.join("store.redb"), Instant::now());
    let store = loop {
        match Store::open(&path) {
            // The directory is ours, so whoever has the store open is about to end.
            Err(StoreError::InUse { .. }) if begun.elapsed() < CLOSING => std::thread::sleep(LOOK),
            opened => break opened.map_err(fault)?,
        }
    };
    let peers = store.peers(&digest(network)).map_err(fault)?;
    let addresses = peers.into_iter().take(DIALLED).flat_map(|peer| peer.addresses).collect();
    Ok((store, addresses))
}

/// Stores who is connected, until the node stops. Owns the store.
pub(crate) async fn run(shared: Arc<Shared>, store: Store, net: NetHandle, mut connects: broadcast::Receiver<NodeId>) {
    let (stopping, network) = (shared.tasks.stopping(), digest(&shared.config.network));
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut came = BTreeSet::new();
    loop {
        let over = tokio::select! {
            () = stopping.cancelled() => true,
            _ = refresh.tick() => {
                came.extend(net.peers().connected());
                false
            }
            peer = connects.recv() => match peer {
                Ok(peer) => {
                    came.insert(peer);
                    stopping.run_until_cancelled(sleep(SETTLE)).await.is_none()
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    came.extend(net.peers().connected());
                    false
                }
                Err(broadcast::error::RecvError::Closed) => true,
            },
        };
        while let Ok(peer) = connects.try_recv() {
            came.insert(peer);
        }
        let peers = net.peers();
        let seen = std::mem::take(&mut came).into_iter().filter_map(|node| peers.lookup(node));
        remember(&store, network, seen.filter_map(record).collect()).await;
        if over {
            return;
        }
    }
}

/// What stands for a swarm's name in the store.
fn digest(network: &str) -> Hash {
    Hash(*blake3::hash(network.as_bytes()).as_bytes())
}

/// What is kept of a peer; nothing of one that cannot be dialled.
fn record(peer: PeerInfo) -> Option<PeerRecord> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let last_seen_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    (!peer.addresses.is_empty()).then_some(PeerRecord { node: peer.node, addresses: peer.addresses, last_seen_ms })
}

/// A store that fails costs the next start its peers, and this node nothing.
async fn remember(store: &Store, network: Hash, peers: Vec<PeerRecord>) {
    if peers.is_empty() {
        return;
    }
    let store = store.clone();
    match tokio::task::spawn_blocking(move || store.remember_peers(&network, &peers)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "peers could not be stored"),
        Err(error) => tracing::error!(%error, "storing peers panicked"),
    }
}
