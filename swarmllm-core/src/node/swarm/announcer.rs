//! Announces this node's models and addresses: in the hello to each peer, by gossip on each change, and in the DHT for nodes
//! that join later.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::base::{Fault, Hash, ModelId, NodeId};
use crate::model::catalog::Catalog;
use crate::net::NetHandle;
use crate::node::swarm::dht_keys::{dht_key, dht_key_of_name};
use crate::node::swarm::registry::{CLOCK_TOLERANCE_MS, ModelRegistry, REPEAT, millis};
use crate::pipeline::host::stages::{StageKey, StageTable};
use crate::pipeline::link::request::{request, unexpected};
use crate::wire::announce::{Announcement, Holding, StageInUse};
use crate::wire::control::{Reply, Request};

/// Deadline of a hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Peers that get a change by hello; gossip reaches the others. A gossip mesh needs a second to form, a hello does not.
const DIRECT_PEERS: usize = 32;
/// Bytes of names beyond the first of each model, in one announcement. With 256 first names of 128 bytes and ids they take
/// at most 57 KiB of its 64.
const MORE_NAMES: usize = 16 * 1024;
/// Changes within this time share one announcement.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// Delay of a deferrable change. Later ones join it: by then a new peer has been measured, and most short answers have
/// ended. Deferrable changes go out by hello, never by gossip.
const DEFERRABLE_DELAY: Duration = Duration::from_secs(5);
/// Interval at which a node with stages in use checks its load: sessions that stay idle free memory without an event.
const LOAD_POLL: Duration = Duration::from_secs(15);

/// Interval at which expired announcements are removed.
const SWEEP: Duration = Duration::from_secs(30);

/// The version after `last` at the time `now`. After the clock was set back by more than peers tolerate, versions restart
/// from the clock: otherwise peers would ignore the node until the old time.
fn next_version(last: u64, now: u64) -> u64 {
    match last > now.saturating_add(CLOCK_TOLERANCE_MS) {
        true => now,
        false => now.max(last.saturating_add(1)),
    }
}

/// Makes and sends announcements.
pub(crate) struct Announcer {
    /// Version of the last announcement.
    version: AtomicU64,
    serves: bool,
    catalog: Catalog,
    stages: StageTable,
    registry: Arc<ModelRegistry>,
    net: Option<NetHandle>,
}

impl Announcer {
    pub fn new(
        serves: bool,
        catalog: Catalog,
        stages: StageTable,
        registry: Arc<ModelRegistry>,
        net: Option<NetHandle>,
    ) -> Self {
        Self { version: AtomicU64::new(millis()), serves, catalog, stages, registry, net }
    }

    /// See [`next_version`].
    fn next_version(&self) -> u64 {
        let now = millis();
        let last =
            self.version.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next_version(last, now)));
        // Always `Ok`: the closure always returns a value.
        next_version(last.unwrap_or_else(|last| last), now)
    }

    /// The current announcement. Versions increase.
    pub fn current(&self) -> Announcement {
        let addresses = self.net.as_ref().map(NetHandle::addresses).unwrap_or_default();
        let mut announcement = Announcement {
            version: self.next_version(),
            agent: concat!("swarmllm/", env!("CARGO_PKG_VERSION")).to_owned(),
            serves: self.serves,
            free_memory: if self.serves { self.stages.memory_free() } else { 0 },
            in_use: if self.serves { self.in_use() } else { Vec::new() },
            addresses: addresses.into_iter().take(Announcement::MAX_ADDRESSES).collect(),
            round_trips: self.round_trips(),
            holdings: self.holdings(),
        };
        announcement.shorten();
        announcement
    }

    fn in_use(&self) -> Vec<StageInUse> {
        let stage =
            |key: StageKey| StageInUse { model: key.model, layers: key.layers, head: key.head, engine: key.engine };
        let mut stages: Vec<StageInUse> = self.stages.in_use().into_iter().map(stage).collect();
        stages.sort_unstable();
        stages.truncate(Announcement::MAX_IN_USE);
        stages
    }

    /// RTTs of the nearest peers. A planner takes a peer without an RTT for a far one.
    fn round_trips(&self) -> Vec<(NodeId, u32)> {
        let peers = self.net.as_ref().map(|net| net.peers().snapshot()).unwrap_or_default();
        let connected = peers.into_iter().filter(|peer| peer.connected && peer.identified);
        let mut measured: Vec<_> = connected.filter_map(|peer| Some((peer.node, rtt_us(peer.rtt?)))).collect();
        measured.sort_unstable_by_key(|(_, us)| *us);
        measured.truncate(Announcement::MAX_ROUND_TRIPS);
        measured.sort_unstable();
        measured
    }

    fn holdings(&self) -> Vec<Holding> {
        let mut more = MORE_NAMES;
        let models = self.catalog.models().into_iter().take(Announcement::MAX_HOLDINGS);
        let holding = |(model, _)| {
            let held = self.catalog.holding(model);
            Holding {
                model,
                names: self.names(model, &mut more),
                layers: held.layers,
                metadata: held.metadata,
                embedding: held.embedding,
                head: held.head,
            }
        };
        models.map(holding).collect()
    }

    /// A model's first name, and further names within the remaining budget `more`.
    fn names(&self, model: ModelId, more: &mut usize) -> Vec<String> {
        let mut names = self.catalog.names(model);
        names.truncate(Announcement::MAX_NAMES);
        let mut first = true;
        names.retain(|name| {
            let left = if std::mem::take(&mut first) { Some(*more) } else { more.checked_sub(name.len()) };
            left.map(|left| *more = left).is_some()
        });
        names
    }

    /// Exchanges announcements with a peer. Cancel-safe.
    pub async fn hello(&self, peer: NodeId) -> Result<(), Fault> {
        let Some(net) = &self.net else { return Ok(()) };
        let announcement = self.current();
        match request(net, peer, &Request::Hello(announcement), HELLO_DEADLINE).await? {
            Reply::Hello(theirs) => {
                theirs.check().map_err(|error| Fault::new(crate::base::ErrorKind::BadFrame, error))?;
                self.registry.on_hello(peer, theirs);
                Ok(())
            }
            _ => Err(unexpected(peer)),
        }
    }

    /// Announces each change of catalogue and addresses until the node stops, and repeats the announcement before it
    /// expires. Load and new peers are deferrable: they go to connected peers only.
    pub async fn run(&self, stopping: CancellationToken, mut connects: broadcast::Receiver<NodeId>) {
        let Some(net) = self.net.clone() else { return };
        let mut changes = self.catalog.changes();
        let mut addresses = net.watch_addresses();
        let mut sessions = self.stages.changes();
        let (mut sent, mut deferred) = (None, None);
        let mut published = Instant::now();
        loop {
            let at_once = tokio::select! {
                () = stopping.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return } else { Some(true) },
                changed = addresses.changed() => if changed.is_none() { return } else { Some(true) },
                connected = connects.recv() => match connected {
                    Err(broadcast::error::RecvError::Closed) => return,
                    _ => None,
                },
                changed = sessions.changed() => if changed.is_err() { return } else { None },
                () = sleep_until(deferred.unwrap_or_else(Instant::now)), if deferred.is_some() => Some(false),
                () = sleep_until(published + REPEAT) => {
                    published = Instant::now();
                    publish(&net, &self.current()).await;
                    continue;
                }
            };
            let Some(at_once) = at_once else {
                let at = Instant::now() + DEFERRABLE_DELAY;
                deferred = Some(deferred.map_or(at, |deferred| at.min(deferred)));
                continue;
            };
            if at_once {
                tokio::time::sleep(DEBOUNCE).await;
                changes.borrow_and_update();
            }
            let now = self.current();
            let state = deferrable(&now);
            deferred = (!now.in_use.is_empty()).then(|| Instant::now() + LOAD_POLL);
            if at_once {
                published = Instant::now();
                publish(&net, &now).await;
            }
            if at_once || sent.as_ref() != Some(&state) {
                self.greet_all(&net).await;
                sent = Some(state);
            }
        }
    }

    async fn greet_all(&self, net: &NetHandle) {
        let connected = net.peers().snapshot().into_iter().filter(|peer| peer.connected).take(DIRECT_PEERS);
        let hellos = connected.map(|peer| async move {
            if let Err(fault) = self.hello(peer.node).await {
                tracing::debug!(%fault, "a hello was not answered");
            }
        });
        futures::future::join_all(hellos).await;
    }

    /// Removes expired announcements until the node stops.
    pub async fn sweep_registry(&self, stopping: CancellationToken) {
        let Some(net) = self.net.clone() else { return };
        let connected = |node| net.peers().lookup(node).is_some_and(|peer| peer.connected);
        let work = async {
            loop {
                tokio::time::sleep(SWEEP).await;
                self.registry.sweep(connected);
            }
        };
        stopping.run_until_cancelled(work).await;
    }

    /// Keeps this node's DHT entries current until the node stops. Separate from [`Announcer::run`]: storing an entry at
    /// peers may take seconds, and announcements must not wait for that.
    pub async fn run_provider(&self, stopping: CancellationToken) {
        let Some(net) = self.net.clone() else { return };
        let mut changes = self.catalog.changes();
        let work = async {
            let mut provided = HashSet::new();
            loop {
                changes.borrow_and_update();
                self.provide(&net, &mut provided).await;
                if changes.changed().await.is_err() {
                    return;
                }
                tokio::time::sleep(DEBOUNCE).await;
            }
        };
        stopping.run_until_cancelled(work).await;
    }

    /// Makes the DHT entries of this node, `provided`, match the models of which it holds a shard.
    async fn provide(&self, net: &NetHandle, provided: &mut HashSet<Hash>) {
        let models = self.catalog.models().into_iter().take(Announcement::MAX_HOLDINGS);
        let held = models.filter(|(model, _)| self.catalog.holding(*model).any());
        let of = |(model, _)| {
            let names = self.catalog.names(model).into_iter().take(Announcement::MAX_NAMES);
            names.map(|name| dht_key_of_name(&name)).chain([dht_key(model)]).collect::<Vec<Hash>>()
        };
        let keys: HashSet<Hash> = held.flat_map(of).collect();
        let withdrawn: Vec<Hash> = provided.difference(&keys).copied().collect();
        for key in withdrawn {
            provided.remove(&key);
            if let Err(error) = net.withdraw(key).await {
                tracing::debug!(%error, "a DHT entry could not be withdrawn");
            }
        }
        for key in keys {
            // The local entry serves lookups even if no peer stored a copy yet.
            if provided.insert(key)
                && let Err(error) = net.provide(key).await
            {
                tracing::debug!(%error, "no peer stored a DHT entry");
            }
        }
    }
}

/// A measured RTT in microseconds, at least 1: only the node itself has 0.
pub(crate) fn rtt_us(rtt: Duration) -> u32 {
    rtt.as_micros().try_into().unwrap_or(u32::MAX).max(1)
}

/// Deferrable part of an announcement: stages in use, free memory, measured peers.
type DeferrableState = (Vec<StageInUse>, u64, Vec<NodeId>);

/// RTT jitter alone triggers no announcement: only the measured peers count, not their RTTs.
fn deferrable(announcement: &Announcement) -> DeferrableState {
    let peers = announcement.round_trips.iter().map(|(peer, _)| *peer).collect();
    (announcement.in_use.clone(), announcement.free_memory, peers)
}

async fn publish(net: &NetHandle, announcement: &Announcement) {
    match announcement.encode() {
        Ok(bytes) => {
            if let Err(error) = net.publish(bytes).await {
                tracing::debug!(%error, "the announcement could not be gossiped");
            }
        }
        Err(error) => tracing::warn!(%error, "this node holds more models than an announcement can list"),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::base::LayerRange;
    use crate::base::SessionId;
    use crate::engine::echo::EchoStage;
    use crate::engine::{CutRules, Embedder, Engine, EngineError, Stage, StageConfig};
    use crate::model::manifest::tests::small_model;
    use crate::model::{EmbeddingSource, Manifest, StageSource};
    use crate::node::{ImportOptions, Node};
    use crate::pipeline::host::slots::SlotOwner;
    use crate::pipeline::host::stages::SlotRequest;
    use crate::wire::prefix::Prefix;

    /// The echo engine for any architecture; takes one byte of memory per layer.
    struct AnyArchitecture;

    impl Engine for AnyArchitecture {
        fn name(&self) -> &'static str {
            "any"
        }

        fn cuts(&self, _: &Manifest) -> Result<CutRules, EngineError> {
            Ok(CutRules::any())
        }

        fn memory(&self, _: &Manifest, layers: LayerRange, _: bool, _: &StageConfig) -> u64 {
            layers.len().into()
        }

        fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
            Ok(Box::new(EchoStage::new(7, source.layers, source.manifest.width, None, config.clone())))
        }

        fn load_embedder(&self, _: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
            Err(EngineError::Gone)
        }
    }

    const CLOSING: Duration = Duration::from_secs(5);
    const SECOND: Duration = Duration::from_secs(1);
    /// Deadline of every expected event.
    const SOON: Duration = Duration::from_secs(30);

    async fn node(dir: &TempDir, network: &str) -> Node {
        let builder = Node::builder().data_dir(dir.path().join("data")).network(network).mdns(false);
        let builder = builder.listen(vec!["/ip4/127.0.0.1/tcp/0".to_owned()]).memory(1 << 30);
        builder.engines(vec![Arc::new(AnyArchitecture)]).start().await.unwrap()
    }

    async fn eventually(what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < SOON, "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    #[test]
    fn versions_increase_and_restart_after_the_clock_was_far_ahead() {
        assert_eq!(
            (next_version(5, 9), next_version(9, 9), next_version(9 + CLOCK_TOLERANCE_MS, 9)),
            (9, 10, 10 + CLOCK_TOLERANCE_MS)
        );
        assert_eq!(next_version(10 + CLOCK_TOLERANCE_MS, 9), 9, "the clock is right again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn peers_learn_round_trips_and_load_of_a_node() {
        let network = format!("announcer-{}", std::process::id());
        let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let file = dirs[0].path().join("model.gguf");
        std::fs::write(&file, small_model("small", 4, false, true, 1)).unwrap();
        let (host, peer) = (node(&dirs[0], &network).await, node(&dirs[1], &network).await);
        let model = host.import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap().id;
        peer.connect(&host.addresses()[0]).await.unwrap();
        let (here, there) = (host.id(), peer.id());
        let told = |of: &dyn Fn(&Announcement) -> bool| {
            peer.shared().registry.snapshot().get(&here).is_some_and(|told| of(told))
        };
        eventually("the round trip is announced", || {
            told(&|told| told.round_trips.iter().any(|(node, _)| *node == there))
        })
        .await;
        // The next announcement is then due to the load alone, not to the new connection.
        tokio::time::sleep(DEFERRABLE_DELAY + SECOND).await;
        let layers = LayerRange::new(0, 2);
        let key = StageKey { model, layers, head: false, engine: AnyArchitecture.name().to_owned() };
        let owner = SlotOwner { coordinator: there, session: SessionId([1; 16]), epoch: 0 };
        let claim = SlotRequest { owner, least: 8, prefix: &Prefix::default(), over: &CancellationToken::new() };
        let (lease, _) = host.shared().models.stages.acquire(key, claim).await.unwrap();
        eventually("the stage in use is announced", || {
            told(&|told| told.free_memory < 1 << 30 && told.in_use.first().is_some_and(|stage| stage.layers == layers))
        })
        .await;
        drop(lease);
        eventually("the idle stage is announced", || {
            told(&|told| told.free_memory == 1 << 30 && told.in_use.is_empty())
        })
        .await;
        for node in [host, peer] {
            node.shutdown(CLOSING).await;
        }
    }
}
