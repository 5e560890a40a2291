//! Fetches a model from peers and, if given, from one more source: first its manifest, then the missing shards.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{self, TryStreamExt};

use crate::base::names::{NameResolution, is_short_of_id, nearest};
use crate::base::{ErrorKind, Event, Fault, ModelId, NodeId, Progress};
use crate::model::{Catalog, Manifest, ModelError, ShardEntry, ShardKind};
use crate::node::api::request::{Parts, ProgressFn};
use crate::node::blocking::blocking;
use crate::node::models::handle::Models;
use crate::node::models::transfer::{self, FetchOutcome, OnBytes};
use crate::node::shared::SharedState;
use crate::node::swarm::dht_keys::{dht_key, dht_key_of_name};
use crate::node::swarm::greeting;
use crate::node::swarm::lookup::greet_providers;
use crate::node::swarm::registry::ModelRegistry;
use crate::pipeline::link::request::{request, unexpected};
use crate::wire::announce::{Announcement, Holding};
use crate::wire::control::{Reply, Request};

/// A manifest of 10,000 tensors is about 1 MiB.
const MANIFEST_DEADLINE: Duration = Duration::from_secs(30);
/// Deadline of the DHT lookup of a name that resembles a known name and so is probably misspelt.
const TYPO_DEADLINE: Duration = Duration::from_secs(2);
/// Longest wait for a shard while all its sources are busy.
const MAX_BUSY_WAIT: Duration = Duration::from_secs(60 * 60);
/// Shards fetched in parallel.
const PARALLEL: usize = 4;

/// A source of shards beside the peers.
pub(crate) trait Source: Send + Sync {
    /// Fetches one whole shard, verified. Reports received bytes to `on_bytes`. Cancel-safe.
    fn fetch_shard<'a>(
        &'a self,
        catalog: &'a Catalog,
        manifest: &'a Arc<Manifest>,
        entry: &'a ShardEntry,
        on_bytes: &'a OnBytes,
    ) -> BoxFuture<'a, Result<(), Fault>>;
}

/// Who requested the fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Requester {
    Host,
    /// Placement may evict these shards later.
    Placement,
}

/// Fetches `parts` of a model. Cancel-safe: verified bytes are kept.
pub(crate) async fn pull(
    shared: &Arc<SharedState>,
    name: &str,
    parts: &Parts,
    requester: Requester,
    source: Option<Arc<dyn Source>>,
    progress: Option<ProgressFn>,
) -> Result<ModelId, Fault> {
    let model = find(shared, name).await?;
    let manifest = manifest(shared, model, requester).await?;
    let wanted: Vec<ShardEntry> = parts.shards(&manifest)?.into_iter().cloned().collect();
    let total = wanted.iter().map(|entry| entry.size).sum();
    let held = wanted.iter().filter(|entry| shared.models.catalog.has(&entry.id)).map(|entry| entry.size).sum();
    let _reserved = blocking({
        let (catalog, wanted) = (shared.models.catalog.clone(), wanted.clone());
        move || {
            let parts = |kind| wanted.iter().any(|entry| entry.kind == kind);
            let noted = match requester {
                Requester::Host => catalog.record_requested(model, &parts),
                Requester::Placement => catalog.record_placed(model, &parts),
            };
            noted.and_then(|()| catalog.reserve_shards(&wanted)).map_err(transfer::fault)
        }
    })
    .await?;
    let done = Arc::new(AtomicU64::new(held));
    let events = shared.events.clone();
    let on_bytes: OnBytes = Arc::new(move |bytes| {
        let done = (done.fetch_add(bytes, Ordering::Relaxed) + bytes).min(total);
        let state = Progress { done, total };
        events.send(Event::Transfer { model, progress: state });
        progress.iter().for_each(|tell| tell(state));
    });
    on_bytes(0);
    let missing = wanted.into_iter().filter(|entry| !shared.models.catalog.has(&entry.id));
    let sources = SourceLoads { source, ..SourceLoads::default() };
    stream::iter(missing.map(Ok::<_, Fault>))
        .try_for_each_concurrent(PARALLEL, |entry| {
            let (on_bytes, sources, manifest) = (on_bytes.clone(), sources.clone(), manifest.clone());
            async move {
                fetch_one(shared, model, &manifest, &entry, &on_bytes, &sources).await?;
                shared.events.send(Event::ShardStored { model, shard: entry.id });
                Ok(())
            }
        })
        .await?;
    Ok(model)
}

/// Resolves a name or id to a model here or at a peer. Of several matches it takes the only one that can run here; blocks
/// while it examines them.
pub(crate) fn resolve(models: &Models, registry: &ModelRegistry, text: &str) -> Result<ModelId, Fault> {
    look_up(models, registry, text).or_else(|error| only_runnable(models, error)).map_err(transfer::fault)
}

/// The only one of several matches that can run here; models unknown here count as able to run. Blocks while it examines
/// them.
fn only_runnable(models: &Models, error: ModelError) -> Result<ModelId, ModelError> {
    let ModelError::Ambiguous { models: matches, .. } = &error else { return Err(error) };
    let refuses = |model: ModelId| {
        let manifest = models.catalog.manifest(model);
        manifest.is_some_and(|manifest| models.examine(model, &manifest).refuses())
    };
    let mut runnable = matches.iter().filter(|model| !refuses(**model));
    match (runnable.next(), runnable.next()) {
        (Some(model), None) => Ok(*model),
        _ => Err(error),
    }
}

fn look_up(models: &Models, registry: &ModelRegistry, text: &str) -> Result<ModelId, ModelError> {
    match models.catalog.resolve(text) {
        Err(ModelError::NotFound { name, short, .. }) => {
            let known = registry.snapshot();
            match ModelRegistry::find(&known, text) {
                NameResolution::Model(model) => Ok(model),
                NameResolution::Ambiguous(found) => {
                    Err(ModelError::ambiguous(name, &found, |id| ModelRegistry::matched_name(&known, text, id)))
                }
                NameResolution::Unknown => {
                    let own = models.catalog.all_names();
                    let names = own.iter().map(String::as_str).chain(ModelRegistry::names(&known));
                    let short = short || is_short_of_id(text, ModelRegistry::models(&known));
                    Err(ModelError::NotFound { name, nearest: nearest(text, names), short })
                }
            }
        }
        here => here,
    }
}

/// Names of known models that an unresolved text resembles.
pub(crate) fn nearest_names(models: &Models, registry: &ModelRegistry, text: &str) -> Vec<String> {
    match look_up(models, registry, text) {
        Err(ModelError::NotFound { nearest, .. }) => nearest,
        _ => Vec::new(),
    }
}

/// [`resolve`] with a DHT lookup if no known node has a match. The DHT knows whole names and ids only. Cancel-safe.
pub(crate) async fn find(shared: &Arc<SharedState>, text: &str) -> Result<ModelId, Fault> {
    let (not_found, near) = match look_up(&shared.models, &shared.registry, text) {
        Err(error @ ModelError::NotFound { .. }) => {
            let near = matches!(&error, ModelError::NotFound { nearest, .. } if !nearest.is_empty());
            (transfer::fault(error), near)
        }
        Err(error @ ModelError::Ambiguous { .. }) => {
            let models = shared.models.clone();
            return blocking(move || only_runnable(&models, error).map_err(transfer::fault)).await;
        }
        known => return known.map_err(transfer::fault),
    };
    let connected = shared.peers.snapshot().iter().any(|peer| peer.connected);
    if !connected || text.len() > Announcement::MAX_NAME {
        return Err(not_found);
    }
    let key = text.parse().map_or_else(|_| dht_key_of_name(text), dht_key);
    let deadline = if near { TYPO_DEADLINE } else { Duration::MAX };
    match tokio::time::timeout(deadline, greet_providers(shared, key)).await {
        Err(_) | Ok(0) => Err(not_found),
        Ok(_) => {
            let (models, registry, text) = (shared.models.clone(), shared.registry.clone(), text.to_owned());
            blocking(move || resolve(&models, &registry, &text)).await
        }
    }
}

/// The manifest, from the catalogue or from a holder of the model. For the host's requests, the holder's name of the model
/// is stored as a hint.
pub(crate) async fn manifest(
    shared: &Arc<SharedState>,
    model: ModelId,
    requester: Requester,
) -> Result<Arc<Manifest>, Fault> {
    if let Some(manifest) = shared.models.catalog.manifest(model) {
        return Ok(manifest);
    }
    let mut last = Fault::new(ErrorKind::ModelNotFound, format!("no reachable peer knows model {}", model.short()));
    for (peer, holding) in find_holders(shared, model, |_| true).await {
        let hint = holding.names.first().filter(|_| requester == Requester::Host);
        match manifest_from(shared, peer, model, hint.cloned()).await {
            Ok(manifest) => return Ok(manifest),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

async fn manifest_from(
    shared: &Arc<SharedState>,
    peer: NodeId,
    model: ModelId,
    hint: Option<String>,
) -> Result<Arc<Manifest>, Fault> {
    let net = shared.net.as_ref().ok_or_else(offline)?;
    let reply = request(net, peer, &Request::Manifest { model }, MANIFEST_DEADLINE).await?;
    let Reply::Manifest { bytes } = reply else { return Err(unexpected(peer)) };
    let catalog = shared.models.catalog.clone();
    let add = move || {
        let manifest = catalog.add_manifest(&bytes, model)?;
        hint.map_or(Ok(()), |hint| catalog.suggest_name(model, &hint))?;
        Ok(manifest)
    };
    let manifest = blocking(move || add().map_err(transfer::fault)).await?;
    shared.models.send_known(model);
    Ok(manifest)
}

/// Greeted peers that hold wanted parts of the model.
fn greeted_holders(
    registry: &ModelRegistry,
    model: ModelId,
    wanted: impl Fn(&Holding) -> bool,
) -> Vec<(NodeId, Holding)> {
    let known = registry.snapshot();
    let holding = |node: &NodeId| ModelRegistry::holding(&known, *node, model).filter(|held| wanted(held)).cloned();
    let greeted = known.iter().filter(|(_, announced)| announced.greeted());
    greeted.filter_map(|(node, _)| Some((*node, holding(node)?))).collect()
}

fn holds(holding: &Holding, kind: ShardKind) -> bool {
    match kind {
        ShardKind::Metadata => holding.metadata,
        ShardKind::Embedding => holding.embedding,
        ShardKind::Common => !holding.layers.is_empty() || holding.head,
        ShardKind::Layer(layer) => holding.layers.iter().any(|range| range.start <= layer && layer < range.end),
        ShardKind::Head => holding.head,
    }
}

/// Holders of wanted parts: greeted peers; if there are none, candidates after a greeting; then providers from the DHT.
async fn find_holders(
    shared: &Arc<SharedState>,
    model: ModelId,
    wanted: impl Fn(&Holding) -> bool,
) -> Vec<(NodeId, Holding)> {
    let mut known = greeted_holders(&shared.registry, model, &wanted);
    if known.is_empty() && greeting::greet(shared, model).await > 0 {
        known = greeted_holders(&shared.registry, model, &wanted);
    }
    if known.is_empty() && greet_providers(shared, dht_key(model)).await > 0 {
        known = greeted_holders(&shared.registry, model, &wanted);
    }
    known
}

/// One source of shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum SourceId {
    Peer(NodeId),
    /// The source beside the peers.
    Extra,
}

/// Shards in transfer per source, within one pull.
#[derive(Clone, Default)]
struct SourceLoads {
    shards: Arc<Mutex<HashMap<SourceId, u32>>>,
    source: Option<Arc<dyn Source>>,
}

/// One shard in transfer from a source; counted until dropped.
struct SourceLease {
    sources: SourceLoads,
    source: SourceId,
}

impl SourceLoads {
    fn locked(&self) -> MutexGuard<'_, HashMap<SourceId, u32>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the least loaded source out of `left`, which spreads the shards over all sources.
    fn next(&self, left: &mut Vec<SourceId>) -> Option<SourceLease> {
        let mut shards = self.locked();
        let least = left.iter().enumerate().min_by_key(|(_, source)| shards.get(*source).copied().unwrap_or(0))?.0;
        let source = left.swap_remove(least);
        *shards.entry(source).or_default() += 1;
        Some(SourceLease { sources: self.clone(), source })
    }

    /// Sources of a shard of this kind. Without an extra source, unknown holders are looked up.
    async fn of(&self, shared: &Arc<SharedState>, model: ModelId, kind: ShardKind) -> Vec<SourceId> {
        let peers = match &self.source {
            None => find_holders(shared, model, |holding| holds(holding, kind)).await,
            Some(_) => greeted_holders(&shared.registry, model, |holding| holds(holding, kind)),
        };
        // Peers come first: they may be near.
        let source = self.source.iter().map(|_| SourceId::Extra);
        peers.into_iter().map(|(peer, _)| SourceId::Peer(peer)).chain(source).collect()
    }
}

impl Drop for SourceLease {
    fn drop(&mut self) {
        self.sources.locked().entry(self.source).and_modify(|shards| *shards = shards.saturating_sub(1));
    }
}

/// Fetches one shard from the first source that delivers it. If the remaining sources are busy, it waits for them.
async fn fetch_one(
    shared: &Arc<SharedState>,
    model: ModelId,
    manifest: &Arc<Manifest>,
    entry: &ShardEntry,
    on_bytes: &OnBytes,
    sources: &SourceLoads,
) -> Result<(), Fault> {
    if shared.net.is_none() && sources.source.is_none() {
        return Err(offline());
    }
    let mut left = sources.of(shared, model, entry.kind).await;
    let text = format!("no reachable peer holds {:?} of model {}", entry.kind, model.short());
    let mut last = Fault::new(ErrorKind::ShardMissing, text);
    let (begun, mut busy, mut wait) = (Instant::now(), Vec::new(), Duration::ZERO);
    loop {
        let Some(lease) = sources.next(&mut left) else {
            if busy.is_empty() || begun.elapsed() > MAX_BUSY_WAIT {
                return Err(last);
            }
            left = std::mem::take(&mut busy);
            tokio::time::sleep(std::mem::take(&mut wait)).await;
            continue;
        };
        let (fetched, label) = match (lease.source, &shared.net, &sources.source) {
            (SourceId::Peer(peer), Some(net), _) => (
                transfer::fetch_shard(net, &shared.models.catalog, peer, entry, &**on_bytes).await,
                format!("peer {}", peer.short()),
            ),
            (SourceId::Extra, _, Some(source)) => {
                let fetched = source.fetch_shard(&shared.models.catalog, manifest, entry, on_bytes).await;
                (fetched.map(|()| FetchOutcome::All), "the source".to_owned())
            }
            _ => continue,
        };
        match fetched {
            Ok(FetchOutcome::All) => return Ok(()),
            Ok(FetchOutcome::Busy(until)) => {
                (wait, last) = (wait.max(until), Fault::new(ErrorKind::Overloaded, format!("{label} is busy")));
                busy.push(lease.source);
            }
            // A fault of this machine: another source cannot help.
            Err(fault) if matches!(fault.kind(), ErrorKind::DiskFull | ErrorKind::Io) => return Err(fault),
            Err(fault) => {
                tracing::warn!(source = label, %fault, "a shard could not be fetched");
                last = Fault::new(fault.kind(), format!("{label} did not deliver {:?}: {fault}", entry.kind));
            }
        }
    }
}

fn offline() -> Fault {
    Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network")
}
