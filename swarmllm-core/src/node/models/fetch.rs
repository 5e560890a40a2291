//! Fetching a model from peers, and from one more source where there is one: finds its manifest, then the shards that are
//! wanted and not held.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{self, TryStreamExt};

use crate::base::names::{Meaning, is_short_of_id, nearest};
use crate::base::{ErrorKind, Event, Fault, ModelId, NodeId, Progress};
use crate::model::{Catalog, Manifest, ModelError, ShardEntry, ShardKind};
use crate::node::api::request::{Parts, ProgressFn};
use crate::node::blocking::blocking;
use crate::node::models::transfer::{self, Gave, Taken};
use crate::node::shared::Shared;
use crate::node::swarm::directory::Registry;
use crate::node::swarm::greeting;
use crate::node::swarm::lookup::seek;
use crate::node::swarm::table_keys::{key_of, key_of_name};
use crate::pipeline::control::{request, unexpected};
use crate::wire::announce::{Announcement, Holding};
use crate::wire::control::{Reply, Request};

/// A manifest of 10,000 tensors is about 1 MiB.
const MANIFEST_DEADLINE: Duration = Duration::from_secs(30);
/// Longest search in the swarm's table for a name that resembles a known one, so that it is most likely misspelt.
const TYPO_PATIENCE: Duration = Duration::from_secs(2);
/// Longest that a shard is waited for at givers that are all busy.
const BUSY_LONGEST: Duration = Duration::from_secs(60 * 60);
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
    let manifest = manifest(shared, model, asker).await?;
    let wanted: Vec<ShardEntry> = select(&manifest, parts)?.into_iter().cloned().collect();
    let total = wanted.iter().map(|entry| entry.size).sum();
    let held = wanted.iter().filter(|entry| shared.catalog.has(&entry.id)).map(|entry| entry.size).sum();
    let _reserved = blocking({
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

/// The model that a name or id means, here or at a peer. Of several models the only one that can run here. Blocks where that
/// has to be found out.
pub(crate) fn resolve(shared: &Shared, text: &str) -> Result<ModelId, Fault> {
    look_up(shared, text).or_else(|error| only_runnable(shared, error)).map_err(transfer::fault)
}

/// Of the models that a text could mean, the only one that can run here, as far as is known of them here. Blocks where one
/// was not examined yet.
fn only_runnable(shared: &Shared, error: ModelError) -> Result<ModelId, ModelError> {
    let ModelError::Ambiguous { models, .. } = &error else { return Err(error) };
    let refuses = |model: ModelId| {
        let manifest = shared.catalog.manifest(model);
        manifest.is_some_and(|manifest| shared.report_of(model, &manifest).refuses())
    };
    let mut runnable = models.iter().filter(|model| !refuses(**model));
    match (runnable.next(), runnable.next()) {
        (Some(model), None) => Ok(*model),
        _ => Err(error),
    }
}

fn look_up(shared: &Shared, text: &str) -> Result<ModelId, ModelError> {
    match shared.catalog.resolve(text) {
        Err(ModelError::NotFound { name, short, .. }) => {
            let known = shared.registry.snapshot();
            match Registry::find(&known, text) {
                Meaning::Model(model) => Ok(model),
                Meaning::Ambiguous(found) => {
                    Err(ModelError::ambiguous(name, &found, |id| Registry::matched(&known, text, id)))
                }
                Meaning::Unknown => {
                    let own = shared.catalog.all_names();
                    let names = own.iter().map(String::as_str).chain(Registry::names(&known));
                    let short = short || is_short_of_id(text, Registry::models(&known));
                    Err(ModelError::NotFound { name, nearest: nearest(text, names), short })
                }
            }
        }
        here => here,
    }
}

/// Names of known models that a text resembles which means none of them.
pub(crate) fn nearest_names(shared: &Shared, text: &str) -> Vec<String> {
    match look_up(shared, text) {
        Err(ModelError::NotFound { nearest, .. }) => nearest,
        _ => Vec::new(),
    }
}

/// The same, and where nobody known means anything by it, whoever the swarm's table names is asked first. The table knows
/// whole names and ids only.
pub(crate) async fn find(shared: &Arc<Shared>, text: &str) -> Result<ModelId, Fault> {
    let (missed, near) = match look_up(shared, text) {
        Err(error @ ModelError::NotFound { .. }) => {
            let near = matches!(&error, ModelError::NotFound { nearest, .. } if !nearest.is_empty());
            (transfer::fault(error), near)
        }
        Err(error @ ModelError::Ambiguous { .. }) => {
            let shared = shared.clone();
            return blocking(move || only_runnable(&shared, error).map_err(transfer::fault)).await;
        }
        known => return known.map_err(transfer::fault),
    };
    let connected = shared.net.as_ref().is_some_and(|net| net.peers().snapshot().iter().any(|peer| peer.connected));
    if !connected || text.len() > Announcement::MAX_NAME {
        return Err(missed);
    }
    let key = text.parse().map_or_else(|_| key_of_name(text), key_of);
    let patience = if near { TYPO_PATIENCE } else { Duration::MAX };
    match tokio::time::timeout(patience, seek(shared, key)).await {
        Err(_) | Ok(0) => Err(missed),
        Ok(_) => {
            let (shared, text) = (shared.clone(), text.to_owned());
            blocking(move || resolve(&shared, &text)).await
        }
    }
}

/// The manifest, from here or from a peer that says it holds the model. What a peer calls a model that the host asks for is
/// remembered as a hint.
pub(crate) async fn manifest(shared: &Arc<Shared>, model: ModelId, asker: Asker) -> Result<Arc<Manifest>, Fault> {
    if let Some(manifest) = shared.catalog.manifest(model) {
        return Ok(manifest);
    }
    let mut last = Fault::new(ErrorKind::ModelNotFound, format!("no peer within reach knows model {}", model.short()));
    for (peer, holding) in known_or_sought(shared, model, |_| true).await {
        let hint = holding.names.first().filter(|_| asker == Asker::Host);
        match manifest_from(shared, peer, model, hint.cloned()).await {
            Ok(manifest) => return Ok(manifest),
            Err(fault) => last = fault,
        }
    }
    Err(last)
}

async fn manifest_from(
    shared: &Arc<Shared>,
    peer: NodeId,
    model: ModelId,
    hint: Option<String>,
) -> Result<Arc<Manifest>, Fault> {
    let net = shared.net.as_ref().ok_or_else(offline)?;
    let reply = request(net, peer, &Request::Manifest { model }, MANIFEST_DEADLINE).await?;
    let Reply::Manifest { bytes } = reply else { return Err(unexpected(peer)) };
    let catalog = shared.catalog.clone();
    let add = move || {
        let manifest = catalog.add_manifest(&bytes, model)?;
        hint.map_or(Ok(()), |hint| catalog.suggest_name(model, &hint))?;
        Ok(manifest)
    };
    let manifest = blocking(move || add().map_err(transfer::fault)).await?;
    shared.tell_known(model);
    Ok(manifest)
}

/// The shards that `parts` means.
pub(crate) fn select<'a>(manifest: &'a Manifest, parts: &Parts) -> Result<Vec<&'a ShardEntry>, Fault> {
    parts.check(manifest.layers)?;
    Ok(match parts {
        Parts::All => manifest.shards.iter().collect(),
        Parts::Coordinator => manifest.coordinator_shards().collect(),
        Parts::Stage { layers, head } => manifest.stage_shards(*layers, *head).collect(),
    })
}

/// Greeted peers that say they hold the model, and what of it.
fn holders(shared: &Shared, model: ModelId, wanted: impl Fn(&Holding) -> bool) -> Vec<(NodeId, Holding)> {
    let known = shared.registry.snapshot();
    let holding = |node: &NodeId| Registry::holding(&known, *node, model).filter(|held| wanted(held)).cloned();
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

/// Who holds what is wanted; where no greeted peer does, those that are known by gossip are greeted, and then the swarm's
/// table is asked.
async fn known_or_sought(
    shared: &Arc<Shared>,
    model: ModelId,
    wanted: impl Fn(&Holding) -> bool,
) -> Vec<(NodeId, Holding)> {
    let mut known = holders(shared, model, &wanted);
    if known.is_empty() && greeting::greet(shared, model).await > 0 {
        known = holders(shared, model, &wanted);
    }
    if known.is_empty() && seek(shared, key_of(model)).await > 0 {
        known = holders(shared, model, &wanted);
    }
    known
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
            None => known_or_sought(shared, model, |holding| holds(holding, kind)).await,
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

/// Takes one shard from the first that gives it whole. Where those that are left are busy, it waits for them.
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
    let (begun, mut busy, mut wait) = (Instant::now(), Vec::new(), Duration::ZERO);
    loop {
        let Some(giving) = givers.next(&mut left) else {
            if busy.is_empty() || begun.elapsed() > BUSY_LONGEST {
                return Err(last);
            }
            left = std::mem::take(&mut busy);
            tokio::time::sleep(std::mem::take(&mut wait)).await;
            continue;
        };
        let (given, giver) = match (giving.giver, &shared.net, &givers.source) {
            (Giver::Peer(peer), Some(net), _) => {
                (transfer::take(net, &shared.catalog, peer, entry, &**taken).await, format!("peer {}", peer.short()))
            }
            (Giver::Source, _, Some(source)) => {
                let given = source.take(&shared.catalog, manifest, entry, taken).await;
                (given.map(|()| Gave::All), "the source".to_owned())
            }
            _ => continue,
        };
        match given {
            Ok(Gave::All) => return Ok(()),
            Ok(Gave::Busy(until)) => {
                (wait, last) = (wait.max(until), Fault::new(ErrorKind::Overloaded, format!("{giver} is busy")));
                busy.push(giving.giver);
            }
            // Our own ground, not the giver's fault: another one cannot help.
            Err(fault) if matches!(fault.kind(), ErrorKind::DiskFull | ErrorKind::Io) => return Err(fault),
            Err(fault) => {
                tracing::warn!(giver, %fault, "a shard could not be taken");
                last = Fault::new(fault.kind(), format!("{giver} gave {:?} badly: {fault}", entry.kind));
            }
        }
    }
}

fn offline() -> Fault {
    Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network")
}
