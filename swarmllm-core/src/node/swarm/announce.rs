//! Tells the swarm what this node holds and where it is: in the hello to each peer, and whenever it changes by gossip and in
//! the swarm's table, where those look who come later.

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
use crate::node::swarm::directory::{CLOCK_PUT_BACK, REPEAT, Registry, millis};
use crate::node::swarm::table_keys::{key_of, key_of_name};
use crate::pipeline::control::{request, unexpected};
use crate::pipeline::stages::{StageKey, StageTable};
use crate::wire::announce::{Announcement, Holding, InUse};
use crate::wire::control::{Reply, Request};

/// How long a peer may take to answer a hello.
const HELLO_DEADLINE: Duration = Duration::from_secs(10);
/// Peers that are told of a change directly; gossip reaches the others. A mesh needs a second to form, a hello does not.
const DIRECT_PEERS: usize = 32;
/// Bytes of names beyond the first of each model, in one announcement. With 256 first names of 128 bytes and ids they take
/// some 57 KiB of its 64 at the very most.
const MORE_NAMES: usize = 16 * 1024;
/// Changes within this time are told together.
const SETTLE: Duration = Duration::from_millis(50);
/// What peers may wait for is told this long after it came up, together with what has come up since: a peer that came has
/// been measured by then, and most answers that came and went have left no trace. Gossip, which reaches the whole swarm, has none of it.
const LATER: Duration = Duration::from_secs(5);
/// How often a node whose stages are in use looks whether it has news of that: memory becomes free for others where sessions are
/// idle for long, which nothing tells.
const LOOK_AGAIN: Duration = Duration::from_secs(15);

/// How often announcements that have ended are forgotten.
const SWEEP: Duration = Duration::from_secs(30);

/// The version behind `last`, at this time. A clock that was far ahead and is right again must not leave a node unheard until
/// the time that it once said.
fn next_version(last: u64, now: u64) -> u64 {
    match last > now.saturating_add(CLOCK_PUT_BACK) {
        true => now,
        false => now.max(last.saturating_add(1)),
    }
}

/// Makes announcements.
pub(crate) struct Announcer {
    /// Of the last announcement.
    version: AtomicU64,
    serves: bool,
    catalog: Catalog,
    stages: StageTable,
    registry: Arc<Registry>,
    net: Option<NetHandle>,
}

impl Announcer {
    pub fn new(
        serves: bool,
        catalog: Catalog,
        stages: StageTable,
        registry: Arc<Registry>,
        net: Option<NetHandle>,
    ) -> Self {
        Self { version: AtomicU64::new(millis()), serves, catalog, stages, registry, net }
    }

    /// The time; and more than the version before, unless the clock was put back by more than peers take for that.
    fn next_version(&self) -> u64 {
        let now = millis();
        let last =
            self.version.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(next_version(last, now)));
        // Always `Ok`: the closure always gives a value.
        next_version(last.unwrap_or_else(|last| last), now)
    }

    /// What is so now. Each has a higher version than the one before.
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

    fn in_use(&self) -> Vec<InUse> {
        let stage = |key: StageKey| InUse { model: key.model, layers: key.layers, head: key.head, engine: key.engine };
        let mut stages: Vec<InUse> = self.stages.in_use().into_iter().map(stage).collect();
        stages.sort_unstable();
        stages.truncate(Announcement::MAX_IN_USE);
        stages
    }

    /// Of the nearest peers, since who is told nothing takes a peer for a far one.
    fn round_trips(&self) -> Vec<(NodeId, u32)> {
        let peers = self.net.as_ref().map(|net| net.peers().snapshot()).unwrap_or_default();
        let connected = peers.into_iter().filter(|peer| peer.connected && peer.speaks);
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

    /// A model's first name, and further ones within the bytes that are left for these.
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

    /// Says hello to a peer and learns what it holds.
    pub async fn hello(&self, peer: NodeId) -> Result<(), Fault> {
        let Some(net) = &self.net else { return Ok(()) };
        let announcement = self.current();
        match request(net, peer, &Request::Hello(announcement), HELLO_DEADLINE).await? {
            Reply::Hello(theirs) => {
                theirs.check().map_err(|error| Fault::new(crate::base::ErrorKind::BadFrame, error))?;
                self.registry.hear(peer, theirs);
                Ok(())
            }
            _ => Err(unexpected(peer)),
        }
    }

    /// Announces each change of the catalogue, and of the addresses, until the node stops, and repeats the last announcement
    /// before it ends; and to its peers alone what they may wait for.
    pub async fn run(&self, stopping: CancellationToken, mut connects: broadcast::Receiver<NodeId>) {
        let Some(net) = self.net.clone() else { return };
        let mut changes = self.catalog.changes();
        let mut addresses = net.watch_addresses();
        let mut sessions = self.stages.changes();
        let (mut told, mut later) = (None, None);
        let mut published = Instant::now();
        loop {
            let soon = tokio::select! {
                () = stopping.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return } else { Some(true) },
                moved = addresses.changed() => if moved.is_none() { return } else { Some(true) },
                came = connects.recv() => match came {
                    Err(broadcast::error::RecvError::Closed) => return,
                    _ => None,
                },
                moved = sessions.changed() => if moved.is_err() { return } else { None },
                () = sleep_until(later.unwrap_or_else(Instant::now)), if later.is_some() => Some(false),
                () = sleep_until(published + REPEAT) => {
                    published = Instant::now();
                    publish(&net, &self.current()).await;
                    continue;
                }
            };
            let Some(soon) = soon else {
                let at = Instant::now() + LATER;
                later = Some(later.map_or(at, |later| at.min(later)));
                continue;
            };
            if soon {
                tokio::time::sleep(SETTLE).await;
                changes.borrow_and_update();
            }
            let now = self.current();
            let news = what_may_wait(&now);
            later = (!now.in_use.is_empty()).then(|| Instant::now() + LOOK_AGAIN);
            if soon {
                published = Instant::now();
                publish(&net, &now).await;
            }
            if soon || told.as_ref() != Some(&news) {
                self.greet_all(&net).await;
                told = Some(news);
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

    /// Forgets announcements that have ended, until the node stops.
    pub async fn forget_ended(&self, stopping: CancellationToken) {
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

    /// Keeps the swarm's table up to date until the node stops. Apart from [`Announcer::run`]: an entry may take seconds to be
    /// copied, for which no announcement waits.
    pub async fn keep_provided(&self, stopping: CancellationToken) {
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
                tokio::time::sleep(SETTLE).await;
            }
        };
        stopping.run_until_cancelled(work).await;
    }

    /// Keeps the table's entries of this node, `provided`, equal to the models that it holds something of.
    async fn provide(&self, net: &NetHandle, provided: &mut HashSet<Hash>) {
        let models = self.catalog.models().into_iter().take(Announcement::MAX_HOLDINGS);
        let held = models.filter(|(model, _)| self.catalog.holding(*model).any());
        let of = |(model, _)| {
            let names = self.catalog.names(model).into_iter().take(Announcement::MAX_NAMES);
            names.map(|name| key_of_name(&name)).chain([key_of(model)]).collect::<Vec<Hash>>()
        };
        let keys: HashSet<Hash> = held.flat_map(of).collect();
        let withdrawn: Vec<Hash> = provided.difference(&keys).copied().collect();
        for key in withdrawn {
            provided.remove(&key);
            if let Err(error) = net.withdraw(key).await {
                tracing::debug!(%error, "an entry of the swarm's table could not be withdrawn");
            }
        }
        for key in keys {
            // The entry stands here, where seekers come by, even where no peer has taken a copy yet.
            if provided.insert(key)
                && let Err(error) = net.provide(key).await
            {
                tracing::debug!(%error, "an entry of the swarm's table was not copied");
            }
        }
    }
}

/// A measured round trip in microseconds; only a node itself is none away from itself.
pub(crate) fn rtt_us(rtt: Duration) -> u32 {
    rtt.as_micros().try_into().unwrap_or(u32::MAX).max(1)
}

/// Of an announcement, what peers may wait for.
type Later = (Vec<InUse>, u64, Vec<NodeId>);

/// The load, and the peers to whom round trips are told. How long those take changes all the time, which is no news.
fn what_may_wait(announcement: &Announcement) -> Later {
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
        Err(error) => tracing::warn!(%error, "this node holds more than an announcement can name"),
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
    use crate::pipeline::slots::Owner;
    use crate::pipeline::stages::Claim;
    use crate::wire::prefix::Prefix;

    /// The echo engine, of whatever architecture; takes one byte for a layer.
    struct Any;

    impl Engine for Any {
        fn name(&self) -> &'static str {
            "any"
        }

        fn cuts(&self, _: &Manifest) -> Result<CutRules, EngineError> {
            Ok(CutRules::free())
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
    /// Time within which anything here happens.
    const SOON: Duration = Duration::from_secs(30);

    async fn node(dir: &TempDir, network: &str) -> Node {
        let builder = Node::builder().data_dir(dir.path().join("data")).network(network).mdns(false);
        let builder = builder.listen(vec!["/ip4/127.0.0.1/tcp/0".to_owned()]).memory(1 << 30);
        builder.engines(vec![Arc::new(Any)]).start().await.unwrap()
    }

    async fn eventually(what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < SOON, "{what}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    #[test]
    fn versions_grow_and_begin_again_where_the_clock_was_far_ahead() {
        assert_eq!(
            (next_version(5, 9), next_version(9, 9), next_version(9 + CLOCK_PUT_BACK, 9)),
            (9, 10, 10 + CLOCK_PUT_BACK)
        );
        assert_eq!(next_version(10 + CLOCK_PUT_BACK, 9), 9, "the clock is right again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn peers_come_to_know_how_far_a_node_is_from_them_and_what_is_in_use_there_and_that_it_is_not_any_more() {
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
        eventually("the way is told", || told(&|told| told.round_trips.iter().any(|(node, _)| *node == there))).await;
        // What follows is told for its own sake, not along with what the connection is news of.
        tokio::time::sleep(LATER + SECOND).await;
        let layers = LayerRange::new(0, 2);
        let key = StageKey { model, layers, head: false, engine: Any.name().to_owned() };
        let owner = Owner { coordinator: there, session: SessionId([1; 16]), epoch: 0 };
        let claim = Claim { owner, least: 8, prefix: &Prefix::default(), over: &CancellationToken::new() };
        let (lease, _) = host.shared().serving.stages().acquire(key, claim).await.unwrap();
        eventually("what is in use is told", || {
            told(&|told| told.free_memory < 1 << 30 && told.in_use.first().is_some_and(|stage| stage.layers == layers))
        })
        .await;
        drop(lease);
        eventually("that it is idle is told", || told(&|told| told.free_memory == 1 << 30 && told.in_use.is_empty()))
            .await;
        for node in [host, peer] {
            node.shutdown(CLOSING).await;
        }
    }
}
