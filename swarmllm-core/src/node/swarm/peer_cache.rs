//! Persists connected peers; the next start dials them.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::base::{Fault, Hash, NodeId};
use crate::net::{PeerInfo, PeerRegistry};
use crate::store::{PeerRecord, Store, StoreError};

/// Peers dialled at start, most recently seen first.
const MAX_DIALLED: usize = 64;
/// Peers that connect within this time are stored together.
const DEBOUNCE: Duration = Duration::from_secs(1);
/// Interval at which the time of connected peers is refreshed.
const REFRESH: Duration = Duration::from_secs(600);
/// Longest wait for a just dropped node of this process to close the store.
const CLOSE_GRACE: Duration = Duration::from_secs(2);
/// Pause between attempts.
const RETRY_PAUSE: Duration = Duration::from_millis(5);

/// Opens the store of a locked data directory; also returns addresses of stored peers of this swarm. Blocks.
pub(crate) fn open(dir: &Path, network: &str) -> Result<(Store, Vec<String>), Fault> {
    let fault = |error: StoreError| Fault::new(error.kind(), error);
    let (path, begun) = (dir.join("store.redb"), Instant::now());
    let store = loop {
        match Store::open(&path) {
            // This node has the directory's lock: the store's user is about to end.
            Err(StoreError::InUse { .. }) if begun.elapsed() < CLOSE_GRACE => std::thread::sleep(RETRY_PAUSE),
            opened => break opened.map_err(fault)?,
        }
    };
    let peers = store.peers(&digest(network)).map_err(fault)?;
    let addresses = peers.into_iter().take(MAX_DIALLED).flat_map(|peer| peer.addresses).collect();
    Ok((store, addresses))
}

/// Stores connected peers until the node stops.
pub(crate) async fn run(
    store: Store,
    network: String,
    peers: PeerRegistry,
    mut connects: broadcast::Receiver<NodeId>,
    stopping: CancellationToken,
) {
    let network = digest(&network);
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut seen = BTreeSet::new();
    loop {
        let stopped = tokio::select! {
            () = stopping.cancelled() => true,
            _ = refresh.tick() => {
                seen.extend(peers.connected());
                false
            }
            peer = connects.recv() => match peer {
                Ok(peer) => {
                    seen.insert(peer);
                    stopping.run_until_cancelled(sleep(DEBOUNCE)).await.is_none()
                }
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    seen.extend(peers.connected());
                    false
                }
                Err(broadcast::error::RecvError::Closed) => true,
            },
        };
        while let Ok(peer) = connects.try_recv() {
            seen.insert(peer);
        }
        let infos = std::mem::take(&mut seen).into_iter().filter_map(|node| peers.lookup(node));
        remember(&store, network, infos.filter_map(record).collect()).await;
        if stopped {
            return;
        }
    }
}

/// Key of a swarm in the store.
fn digest(network: &str) -> Hash {
    Hash(*blake3::hash(network.as_bytes()).as_bytes())
}

/// The stored record of a peer; `None` if it has no address.
fn record(peer: PeerInfo) -> Option<PeerRecord> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let last_seen_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    (!peer.addresses.is_empty()).then_some(PeerRecord { node: peer.node, addresses: peer.addresses, last_seen_ms })
}

/// If the store fails, the next start lacks the peers; this node continues.
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
