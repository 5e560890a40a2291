//! Fetching a model from peers, and from one more source where there is one: finds its manifest, then the shards that are
//! wanted and not held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, TryStreamExt};

use crate::base::{ErrorKind, Event, Fault, ModelId, NodeId, Progress};
use crate::model::{Catalog, Manifest, ShardEntry, ShardKind};
use crate::node::registry::Registry;
use crate::node::request::{Parts, ProgressFn};
use crate::node::seek::{key_of, key_of_name, seek};
use crate::node::shared::Shared;
use crate::node::transfer::{self, Taken};
use crate::pipeline::control::{request, unexpected};
use crate::wire::announce::Holding;
use crate::wire::control::{Reply, Request};

/// A manifest of 10,000 tensors is about 1 MiB.
const MANIFEST_DEADLINE: Duration = Duration::from_secs(30);
/// Shards that are fetched at once.
const PARALLEL: usize = 4;

/// Gives shards of models beside the peers.
pub(crate) trait Source: Send + Sync {
    /// Takes one shard, whole and verified. `taken` is told the bytes as they come. Cancel-safe.
    fn take<'a>(
        &'a self,
        catalog: &'a Catalog,
        manifest: &'a Arc<Manifest>,
        entry: &'a ShardEntry,
        taken: &'a Taken,
    ) -> BoxFuture<'a, Result<(), Fault>>;
}

/// By whose word shards are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    Host,
    /// It may give up later what was not here before.
    Placement,
}

/// Fetches what `parts` names of a model. Cancel-safe: what is verified is kept.
pub(crate) async fn pull(
    shared: &Arc<Shared>,
    name: &str,
    parts: &Parts,
    asker: Asker,
    source: Option<Arc<dyn Source>>,
    progress: Option<ProgressFn>,
) -> Result<ModelId, Fault> {
    let model = find(shared, name).await?;
    let manifest = manifest(shared, model).await?;
    let wanted: Vec<ShardEntry> = select(&manifest, parts)?.into_iter().cloned().collect();
    let total = wanted.iter().map(|entry| entry.size).sum();
    let held = wanted.iter().filter(|entry| shared.catalog.has(&entry.id)).map(|entry| entry.size).sum();
    let _reserved = transfer::blocking({
        let (catalog, wanted) = (shared.catalog.clone(), wanted.clone());
        move || {
            let parts = |kind| wanted.iter().any(|entry| entry.kind == kind);
            let noted = match asker {
                Asker::Host => catalog.note_wanted(model, &parts),
                Asker::Placement => catalog.note_placed(model, &parts),
            };
            noted.and_then(|()| catalog.reserve_shards(&wanted)).map_err(transfer::fault)
        }
    })
    .await?;
    let done = Arc::new(AtomicU64::new(held));
    let events = shared.events.clone();
    let taken: Taken = Arc::new(move |bytes| {
        let done = (done.fetch_add(bytes, Ordering::Relaxed) + bytes).min(total);
        let state = Progress { done, total };
        events.send(Event::Transfer { model, progress: state });
        progress.iter().for_each(|tell| tell(state));
    });
    taken(0);
    let missing = wanted.into_iter().filter(|entry| !shared.catalog.has(&entry.id));
    let givers = Givers { source, ..Givers::default() };
    stream::iter(missing.map(Ok::<_, Fault>))
        .try_for_each_concurrent(PARALLEL, |entry| {
            let (taken, givers, manifest) = (taken.clone(), givers.clone(), manifest.clone());
            async move {
                fetch_one(shared, model, &manifest, &entry, &taken, &givers).await?;
                shared.events.send(Event::ShardStored { model, shard: entry.id });
                Ok(())
            }
        })
        .await?;
    Ok(model)
}

/// The model that a name or id means, here or at a peer.
pub(crate) fn resolve(shared: &Shared, name: &str) -> Result<ModelId, Fault> {
    let here = match shared.catalog.resolve(name) {
        Ok(model) => return Ok(model),
        Err(error) => Fault::new(error.kind(), error),
    };
    match (Registry::find(&shared.registry.snapshot(), name).as_slice(), here.kind()) {
        ([model], ErrorKind::ModelNotFound) => Ok(*model),
        ([], _) => Err(here),
        (several, _) => {
            let ids: Vec<String> = several.iter().map(ModelId::short).collect();
            let text = format!("`{name}` means several models ({}); give an id", ids.join(", "));
            Err(Fault::new(ErrorKind::InvalidArgument, text))
        }
    }
}

/// The same, and where nobody known means anything by it, whoever the swarm's table names is asked first.
pub(crate) async fn find(shared: &Arc<Shared>, name: &str) -> Result<ModelId, Fault> {
    match resolve(shared, name) {
        Err(fault) if fault.kind() == ErrorKind::ModelNotFound => {
            let key = name.parse().map_or_else(|_| key_of_name(name), key_of);
            match seek(shared, key).await {
                0 => Err(fault),
                _ => resolve(shared, name),
            }
        }
        known => known,
    }
}

/// The manifest, from here or from a peer that says it holds the model.
pub(crate) async fn manifest(shared: &Arc<Shared>, model: ModelId) -> Result<Arc<Manifest>, Fault> {
    if let Some(manifest) = shared.catalog.manifest(model) {
        return Ok(manifest);
    }
    let mut last = Fault::new(ErrorKind::ModelNotFound, format!("no peer within reach knows model {}", model.short()));
    if holders(shared, model, |_| true).is_empty() {
        seek(shared, key_of(model)).await;
    }
    for (peer, _) in holders(shared, model, |_| true) {
        match manifest_from(shared, peer, model).await {
            Ok(manifest) => return Ok(manifest),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

async fn manifest_from(shared: &Arc<Shared>, peer: NodeId, model: ModelId) -> Result<Arc<Manifest>, Fault> {
    let net = shared.net.as_ref().ok_or_else(offline)?;
    let reply = request(net, peer, &Request::Manifest { model }, MANIFEST_DEADLINE).await?;
    let Reply::Manifest { bytes } = reply else { return Err(unexpected(peer)) };
    let catalog = shared.catalog.clone();
    let added = tokio::task::spawn_blocking(move || catalog.add_manifest(&bytes, model)).await;
    let added = added.map_err(|error| Fault::new(ErrorKind::Internal, error))?;
    let manifest = added.map_err(|error| Fault::new(error.kind(), error))?;
    shared.events.send(Event::ModelKnown { model, name: manifest.name.clone() });
    Ok(manifest)
}

/// The shards that `parts` means.
pub(crate) fn select<'a>(manifest: &'a Manifest, parts: &Parts) -> Result<Vec<&'a ShardEntry>, Fault> {
    match parts {
        Parts::All => Ok(manifest.shards.iter().collect()),
        Parts::Coordinator => Ok(manifest.coordinator_shards().collect()),
        Parts::Stage { layers, .. } if layers.is_empty() || layers.end > manifest.layers => {
            let text = format!("layers {layers} were asked for, the model has 0..{}", manifest.layers);
            Err(Fault::new(ErrorKind::InvalidArgument, text))
        }
        Parts::Stage { layers, head } => Ok(manifest.stage_shards(*layers, *head).collect()),
    }
}

/// Connected peers that say they hold the model, and what of it.
fn holders(shared: &Shared, model: ModelId, wanted: impl Fn(&Holding) -> bool) -> Vec<(NodeId, Holding)> {
    let known = shared.registry.snapshot();
    let holding = |node: &NodeId| Registry::holding(&known, *node, model).filter(|held| wanted(held)).cloned();
    known.keys().filter_map(|node| Some((*node, holding(node)?))).collect()
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

/// Who holds a shard of this kind; where nobody known does, the swarm's table is asked.
async fn known_or_sought(shared: &Arc<Shared>, model: ModelId, kind: ShardKind) -> Vec<(NodeId, Holding)> {
    let known = holders(shared, model, |holding| holds(holding, kind));
    if !known.is_empty() || seek(shared, key_of(model)).await == 0 {
        return known;
    }
    holders(shared, model, |holding| holds(holding, kind))
}

/// Who gives shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Giver {
    Peer(NodeId),
    Source,
}

/// How many shards of one pull each of them gives at the moment.
#[derive(Clone, Default)]
struct Givers {
    shards: Arc<Mutex<HashMap<Giver, u32>>>,
    source: Option<Arc<dyn Source>>,
}

/// A shard that somebody gives. Ends when dropped.
struct Giving {
    givers: Givers,
    giver: Giver,
}

impl Givers {
    fn locked(&self) -> MutexGuard<'_, HashMap<Giver, u32>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the one out of `left` that gives least now, so that all of them give at once, each what it can.
    fn next(&self, left: &mut Vec<Giver>) -> Option<Giving> {
        let mut shards = self.locked();
        let least = left.iter().enumerate().min_by_key(|(_, giver)| shards.get(*giver).copied().unwrap_or(0))?.0;
        let giver = left.swap_remove(least);
        *shards.entry(giver).or_default() += 1;
        Some(Giving { givers: self.clone(), giver })
    }

    /// Who may give a shard of this kind. The swarm's table is asked where nobody else would be left.
    async fn of(&self, shared: &Arc<Shared>, model: ModelId, kind: ShardKind) -> Vec<Giver> {
        let peers = match &self.source {
            None => known_or_sought(shared, model, kind).await,
            Some(_) => holders(shared, model, |holding| holds(holding, kind)),
        };
        // Peers are perhaps near; the source is not.
        let source = self.source.iter().map(|_| Giver::Source);
        peers.into_iter().map(|(peer, _)| Giver::Peer(peer)).chain(source).collect()
    }
}

impl Drop for Giving {
    fn drop(&mut self) {
        self.givers.locked().entry(self.giver).and_modify(|shards| *shards = shards.saturating_sub(1));
    }
}

/// Takes one shard from the first that gives it whole.
async fn fetch_one(
    shared: &Arc<Shared>,
    model: ModelId,
    manifest: &Arc<Manifest>,
    entry: &ShardEntry,
    taken: &Taken,
    givers: &Givers,
) -> Result<(), Fault> {
    if shared.net.is_none() && givers.source.is_none() {
        return Err(offline());
    }
    let mut left = givers.of(shared, model, entry.kind).await;
    let text = format!("no peer within reach holds {:?} of model {}", entry.kind, model.short());
    let mut last = Fault::new(ErrorKind::ShardMissing, text);
    while let Some(giving) = givers.next(&mut left) {
        let (given, giver) = match (giving.giver, &shared.net, &givers.source) {
            (Giver::Peer(peer), Some(net), _) => {
                (transfer::take(net, &shared.catalog, peer, entry, &**taken).await, format!("peer {}", peer.short()))
            }
            (Giver::Source, _, Some(source)) => {
                (source.take(&shared.catalog, manifest, entry, taken).await, "the source".to_owned())
            }
            _ => continue,
        };
        match given {
            Ok(()) => return Ok(()),
            // Our own ground, not the giver's fault: another one cannot help.
            Err(fault) if matches!(fault.kind(), ErrorKind::DiskFull | ErrorKind::Io) => return Err(fault),
            Err(fault) => {
                tracing::warn!(giver, %fault, "a shard could not be taken");
                last = Fault::new(fault.kind(), format!("{giver} gave {:?} badly: {fault}", entry.kind));
            }
        }
    }
    Err(last)
}

fn offline() -> Fault {
    Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network")
}
