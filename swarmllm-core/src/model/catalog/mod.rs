//! The catalogue: which models this node knows, and which of their shards it holds.
//!
//! Owns three directories below its root: `models/<model id>.manifest` (with `.names`, `.marks` and `.pinned` beside it),
//! `shards/<shard id>` and `partial/<shard id>`. Guarantees: a file appears in the first two only after it is checked,
//! complete and durable; a shard is read and verified (BLAKE3) before its first use in a process, and set aside if it is
//! damaged; a failed write changes nothing. A manifest must hash to the requested id. Names never become paths.
//!
//! One process at a time uses a directory, which the node's lock ensures. All calls block on the disk, except the
//! look-ups in memory (`models`, `manifest`, `resolve`, `has`, `holding`): async code calls them on a blocking thread.

mod aliases;
mod budget;
mod eviction;
mod files;
mod gguf_files;
mod import;
mod ingest;
mod leaf_log;
mod migrate;
mod names;
mod partial_shard;
mod provenance;
mod provenance_records;
mod release;
mod source;
mod stream_ingest;
mod transfers;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use tokio::sync::watch;

use crate::base::{LayerRange, ModelId, ShardId, merge_ranges};
use crate::model::shard::Leaf;
use crate::model::{Manifest, ManifestError, ModelError, ShardEntry, ShardKind};
use budget::Reserved;
use files::{Layout, check_id, read_bounded, remove_if_exists};
use provenance::ProvenanceTable;

pub use budget::Reservation;
pub use import::{LocalImport, read_header};
pub use ingest::{HeaderIngest, RangeIngest, RangeSource};
pub use names::{MAX_NAMES, Names};
pub use provenance::Provenance;
pub use stream_ingest::{StreamIngest, StreamOptions};
pub use writer::{ShardWriter, WholeWriter};

/// A handle to the catalogue; clones share it.
#[derive(Debug, Clone)]
pub struct Catalog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layout: Layout,
    state: RwLock<State>,
    /// Shards that this process has verified, with their leaves.
    verified: Mutex<HashMap<ShardId, Arc<[Leaf]>>>,
    /// Held while files are moved into place or removed, so that no removal falls between a shard and its manifest.
    disk: Mutex<()>,
    /// Keys with a writer: ids of shards, and keys of range sources.
    writing: Mutex<HashSet<ShardId>>,
    /// Most bytes of all shards; `None` for no bound.
    max_bytes: Option<u64>,
    /// Bytes that others are about to write.
    reserved: Mutex<Reserved>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    models: BTreeMap<ModelId, Arc<Manifest>>,
    /// Why their shards are here, or not.
    provenance: HashMap<ModelId, ProvenanceTable>,
    /// Their names.
    names: HashMap<ModelId, Names>,
    /// Shards that are complete on disk.
    held: HashSet<ShardId>,
}

impl State {
    /// Whether a known model contains this shard and the host has not deleted it there.
    fn is_wanted(&self, shard: &ShardId) -> bool {
        let shards_with_provenance = self.models.keys().flat_map(|model| self.shards_with_provenance(*model));
        shards_with_provenance
            .into_iter()
            .any(|(entry, provenance)| entry.id == *shard && provenance != Provenance::Deleted)
    }
}

/// The held parts of a model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Layers, merged and sorted. Empty while the model's common tensors are missing.
    pub layers: Vec<LayerRange>,
    /// Whether the metadata is held.
    pub metadata: bool,
    /// Whether the embedding is held.
    pub embedding: bool,
    /// Whether everything the head needs is held: its shard, the common tensors, and in a tied model the embedding.
    pub head: bool,
}

impl Held {
    /// Whether anything is held.
    pub fn any(&self) -> bool {
        self.metadata || self.embedding || self.head || !self.layers.is_empty()
    }
}

impl Catalog {
    /// Opens the catalogue in `dir` and creates `dir` if it is missing. Manifests are checked in full, shards by presence
    /// and exact size. A damaged manifest is skipped with a warning; its shards stay.
    pub fn open(dir: &Path) -> Result<Catalog, ModelError> {
        Catalog::open_within(dir, None)
    }

    /// As [`Catalog::open`], with a bound on the bytes of all shards: a write that would exceed it is refused before it
    /// starts. Existing files stay.
    pub fn open_within(dir: &Path, max_bytes: Option<u64>) -> Result<Catalog, ModelError> {
        let layout = Layout::create(dir)?;
        migrate::manifests(&layout)?;
        let mut state = State::default();
        for (id, path) in layout.manifests()? {
            match read_manifest(&path, id) {
                Ok(manifest) => {
                    state.models.insert(id, Arc::new(manifest));
                    state.provenance.insert(id, ProvenanceTable::read(&layout.provenance(&id))?);
                    state.names.insert(id, Names::read(&layout.names(&id))?);
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "skipped a damaged manifest"),
            }
        }
        for shard in state.models.values().flat_map(|manifest| &manifest.shards) {
            if is_complete(&layout.shard(&shard.id), shard.size) {
                state.held.insert(shard.id);
            }
        }
        let inner = Inner {
            layout,
            state: RwLock::new(state),
            verified: Mutex::default(),
            disk: Mutex::default(),
            writing: Mutex::default(),
            max_bytes,
            reserved: Mutex::default(),
            changes: watch::Sender::new(0),
        };
        let catalog = Catalog { inner: Arc::new(inner) };
        catalog.finish_deletions()?;
        catalog.remove_stale_transfers(SystemTime::now())?;
        Ok(catalog)
    }

    /// A counter that increases with each change of the known models or held shards.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Adds a model from its manifest's bytes, which must hash to `expect`. Adding a known model again repairs its manifest
    /// on disk.
    pub fn add_manifest(&self, bytes: &[u8], expect: ModelId) -> Result<Arc<Manifest>, ModelError> {
        let manifest = check_manifest(bytes, expect)?;
        let prepared = self.layout().prepare(bytes)?;
        let _guard = self.lock_disk();
        prepared.persist(&self.layout().manifest(&expect))?;
        self.layout().sync_models()?;
        let table = ProvenanceTable::read(&self.layout().provenance(&expect))?;
        let names = Names::read(&self.layout().names(&expect))?;
        Ok(self.insert(expect, manifest, table, names))
    }

    /// Adds a model whose manifest is on disk. Those of its shards that are on disk count as held.
    fn insert(&self, model: ModelId, manifest: Manifest, table: ProvenanceTable, names: Names) -> Arc<Manifest> {
        let complete = |shard: &&ShardEntry| is_complete(&self.layout().shard(&shard.id), shard.size);
        let held: Vec<ShardId> = manifest.shards.iter().filter(complete).map(|shard| shard.id).collect();
        let mut state = self.state_mut();
        state.held.extend(held);
        state.provenance.insert(model, table);
        state.names.insert(model, names);
        let manifest = state.models.entry(model).or_insert_with(|| Arc::new(manifest)).clone();
        drop(state);
        self.changed();
        manifest
    }

    /// All known models, by id.
    pub fn models(&self) -> Vec<(ModelId, Arc<Manifest>)> {
        self.state().models.iter().map(|(id, manifest)| (*id, manifest.clone())).collect()
    }

    /// A known model.
    pub fn manifest(&self, model: ModelId) -> Option<Arc<Manifest>> {
        self.state().models.get(&model).cloned()
    }

    /// Whether the shard is held.
    pub fn has(&self, shard: &ShardId) -> bool {
        self.state().held.contains(shard)
    }

    /// The held parts of a model; empty for an unknown model.
    pub fn holding(&self, model: ModelId) -> Held {
        let state = self.state();
        let Some(manifest) = state.models.get(&model) else { return Held::default() };
        let has = |kind| manifest.shard(kind).is_some_and(|shard| state.held.contains(&shard.id));
        let common = manifest.shard(ShardKind::Common).is_none_or(|shard| state.held.contains(&shard.id));
        let layers = (0..manifest.layers).filter(|layer| common && has(ShardKind::Layer(*layer)));
        Held {
            layers: merge_ranges(layers.collect()),
            metadata: has(ShardKind::Metadata),
            embedding: has(ShardKind::Embedding),
            head: common && has(ShardKind::Head) && (!manifest.tied || has(ShardKind::Embedding)),
        }
    }

    /// Forgets a model and removes its shards, except those that another known model needs. Open files stay readable if the
    /// system allows it.
    pub fn remove(&self, model: ModelId) -> Result<(), ModelError> {
        let _guard = self.lock_disk();
        self.remove_known(model)
    }

    /// As [`Catalog::remove`], for a caller that holds the disk lock.
    fn remove_known(&self, model: ModelId) -> Result<(), ModelError> {
        let gone = self.forget(model)?;
        // The manifest goes first: a crash in between leaves unreferenced shards, never a model without its shards.
        remove_if_exists(&self.layout().manifest(&model))?;
        remove_if_exists(&self.layout().pin(&model))?;
        remove_if_exists(&self.layout().provenance(&model))?;
        remove_if_exists(&self.layout().names(&model))?;
        self.layout().sync_models()?;
        gone.iter().try_for_each(|shard| self.remove_shard(shard))
    }

    /// Removes a model from memory and returns the shards that no other model needs.
    fn forget(&self, model: ModelId) -> Result<Vec<ShardId>, ModelError> {
        let mut state = self.state_mut();
        let manifest = state.models.remove(&model).ok_or_else(|| ModelError::unknown(model))?;
        state.provenance.remove(&model);
        state.names.remove(&model);
        let gone: HashSet<ShardId> =
            manifest.shards.iter().map(|shard| shard.id).filter(|shard| !state.is_wanted(shard)).collect();
        state.held.retain(|shard| !gone.contains(shard));
        drop(state);
        self.changed();
        Ok(gone.into_iter().collect())
    }

    fn remove_shard(&self, shard: &ShardId) -> Result<(), ModelError> {
        self.forget_verified(shard);
        remove_if_exists(&self.layout().shard(shard))?;
        if self.writing().contains(shard) {
            return Ok(());
        }
        remove_if_exists(&self.layout().partial(shard))
    }

    fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    // A thread that panicked while it held a lock leaves a valid state: each change is one insertion.
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.inner.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.inner.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn verified(&self) -> MutexGuard<'_, HashMap<ShardId, Arc<[Leaf]>>> {
        self.inner.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, HashSet<ShardId>> {
        self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_disk(&self) -> MutexGuard<'_, ()> {
        self.inner.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a shard that no known model contains, or that the host has deleted.
    fn check_wanted(&self, shard: ShardId) -> Result<(), ModelError> {
        if self.state().is_wanted(&shard) { Ok(()) } else { Err(ModelError::Unlisted { shard }) }
    }

    fn claim(&self, shard: ShardId) -> Result<(), ModelError> {
        if self.writing().insert(shard) { Ok(()) } else { Err(ModelError::Busy { shard }) }
    }

    fn unclaim(&self, shard: &ShardId) {
        self.writing().remove(shard);
    }

    fn forget_verified(&self, shard: &ShardId) {
        self.verified().remove(shard);
    }

    /// Marks a shard as complete.
    fn mark_held(&self, shard: ShardId) {
        self.state_mut().held.insert(shard);
        self.changed();
    }

    /// Marks a shard as unusable.
    fn mark_lost(&self, shard: &ShardId) {
        self.state_mut().held.remove(shard);
        self.forget_verified(shard);
        self.changed();
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|version| *version += 1);
    }
}

/// The exclusive right to write a shard or to ingest from a source. Released on drop.
#[derive(Debug)]
struct Claim {
    catalog: Catalog,
    key: ShardId,
}

impl Claim {
    fn new(catalog: &Catalog, key: ShardId) -> Result<Claim, ModelError> {
        catalog.claim(key)?;
        Ok(Claim { catalog: catalog.clone(), key })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.catalog.unclaim(&self.key);
    }
}

fn is_complete(path: &Path, size: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

fn check_manifest(bytes: &[u8], expect: ModelId) -> Result<Manifest, ManifestError> {
    check_id(bytes, expect)?;
    Manifest::decode(bytes)
}

fn read_manifest(path: &Path, id: ModelId) -> Result<Manifest, ModelError> {
    Ok(check_manifest(&read_bounded(path)?, id)?)
}
