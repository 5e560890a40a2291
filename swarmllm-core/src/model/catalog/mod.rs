//! The catalogue: which models this node knows, and which of their shards it holds.
//!
//! Owns three directories below the one it is given: `models/<model id>.manifest` (beside it `.names`, `.marks` and
//! `.pinned`), `shards/<shard id>` and `partial/<shard id>`. Promises: nothing appears in the first two before it is checked, complete and durable; a shard
//! is read through again (BLAKE3) before its first use in a process, and set aside where it is damaged; a failed write
//! changes nothing. Refuses: manifests that are not the one asked for, and names as paths.
//!
//! One process at a time uses a directory (the node's lock sees to it). All calls block on the disk, except for the
//! look-ups in memory (`models`, `manifest`, `resolve`, `has`, `holding`): from async code, call them on a blocking
//! thread.

mod aliases;
mod budget;
mod files;
mod giving;
mod growing;
mod idle;
mod import;
mod intake;
mod keeping;
mod log;
mod marking;
mod marks;
mod migrate;
mod names;
mod parted;
mod source;
mod spool;
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
use budget::Promised;
use files::{Layout, check_id, read_bounded, remove_if_there};
use marks::Marks;

pub use budget::Reservation;
pub use import::{LocalImport, read_header};
pub use intake::{HeadIntake, Intake, Origin};
pub use marks::Mark;
pub use names::{MAX_NAMES, Names};
pub use spool::{Choice as SpoolChoice, Spool};
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
    /// Shards read through and found good by this process, with their leaves.
    verified: Mutex<HashMap<ShardId, Arc<[Leaf]>>>,
    /// Held while files get or lose their places, so that no removal falls between a shard and its manifest.
    disk: Mutex<()>,
    /// Shards that have a writer, and keys of sources that have an intake.
    writing: Mutex<HashSet<ShardId>>,
    /// Most bytes of all shards, where there is a bound.
    max_bytes: Option<u64>,
    /// What others are about to write.
    promised: Mutex<Promised>,
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    models: BTreeMap<ModelId, Arc<Manifest>>,
    /// What was said of their shards, where something was.
    marks: HashMap<ModelId, Marks>,
    /// What they are called.
    names: HashMap<ModelId, Names>,
    /// Shards that are complete on disk.
    held: HashSet<ShardId>,
}

impl State {
    /// Whether a known model has this shard, and the host has not deleted it there.
    fn is_wanted(&self, shard: &ShardId) -> bool {
        let marked = self.models.keys().flat_map(|model| self.marked(*model));
        marked.into_iter().any(|(entry, mark)| entry.id == *shard && mark != Mark::Deleted)
    }
}

/// What is held of one model.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Layers, merged and sorted; none where the model has common tensors and they are not held.
    pub layers: Vec<LayerRange>,
    /// Whether the metadata is held.
    pub metadata: bool,
    /// Whether the embedding is held.
    pub embedding: bool,
    /// Whether all that the head needs is held: its shard, the common tensors, and where tied the embedding.
    pub head: bool,
}

impl Held {
    /// Whether anything is held.
    pub fn any(&self) -> bool {
        self.metadata || self.embedding || self.head || !self.layers.is_empty()
    }
}

impl Catalog {
    /// Opens the catalogue in `dir`, which is made where it is missing. Manifests are checked in full, shards by
    /// presence and exact size. A damaged manifest is passed over with a warning; its shards stay.
    pub fn open(dir: &Path) -> Result<Catalog, ModelError> {
        Catalog::open_within(dir, None)
    }

    /// The same, with a bound of the bytes that shards may take: what would go beyond is refused before it begins. What
    /// is there already stays.
    pub fn open_within(dir: &Path, max_bytes: Option<u64>) -> Result<Catalog, ModelError> {
        let layout = Layout::create(dir)?;
        migrate::manifests(&layout)?;
        let mut state = State::default();
        for (id, path) in layout.manifests()? {
            match read_manifest(&path, id) {
                Ok(manifest) => {
                    state.models.insert(id, Arc::new(manifest));
                    state.marks.insert(id, Marks::read(&layout.marks(&id))?);
                    state.names.insert(id, Names::read(&layout.names(&id))?);
                }
                Err(error) => tracing::warn!(path = %path.display(), %error, "a manifest was passed over"),
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
            promised: Mutex::default(),
            changes: watch::Sender::new(0),
        };
        let catalog = Catalog { inner: Arc::new(inner) };
        catalog.finish_discards()?;
        catalog.expire(SystemTime::now())?;
        Ok(catalog)
    }

    /// A counter that grows with each change of what is known or held.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// Adds a model from its manifest's bytes, which must be those of `expect`. Adding a known model
    /// again repairs its manifest on disk.
    pub fn add_manifest(&self, bytes: &[u8], expect: ModelId) -> Result<Arc<Manifest>, ModelError> {
        let manifest = check_manifest(bytes, expect)?;
        let prepared = self.layout().prepare(bytes)?;
        let _alone = self.disk();
        prepared.keep(&self.layout().manifest(&expect))?;
        self.layout().sync_models()?;
        let marks = Marks::read(&self.layout().marks(&expect))?;
        let names = Names::read(&self.layout().names(&expect))?;
        Ok(self.insert(expect, manifest, marks, names))
    }

    /// Makes a model known whose manifest is on disk; whichever of its shards are there are held.
    fn insert(&self, model: ModelId, manifest: Manifest, marks: Marks, names: Names) -> Arc<Manifest> {
        let complete = |shard: &&ShardEntry| is_complete(&self.layout().shard(&shard.id), shard.size);
        let held: Vec<ShardId> = manifest.shards.iter().filter(complete).map(|shard| shard.id).collect();
        let mut state = self.state_mut();
        state.held.extend(held);
        state.marks.insert(model, marks);
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

    /// Whether a shard is complete here.
    pub fn has(&self, shard: &ShardId) -> bool {
        self.state().held.contains(shard)
    }

    /// What is held of a model; nothing of one that is not known.
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

    /// Forgets a model and removes its shards, except those that another known model needs. Files that are open stay
    /// readable where the system allows it.
    pub fn remove(&self, model: ModelId) -> Result<(), ModelError> {
        let _alone = self.disk();
        self.remove_known(model)
    }

    /// The same with the disk held.
    fn remove_known(&self, model: ModelId) -> Result<(), ModelError> {
        let gone = self.forget(model)?;
        // The manifest first: a crash in between leaves shards that nobody names, never a model without its shards.
        remove_if_there(&self.layout().manifest(&model))?;
        remove_if_there(&self.layout().pin(&model))?;
        remove_if_there(&self.layout().marks(&model))?;
        remove_if_there(&self.layout().names(&model))?;
        self.layout().sync_models()?;
        gone.iter().try_for_each(|shard| self.remove_shard(shard))
    }

    /// Takes a model out of memory; gives the shards that no other model needs.
    fn forget(&self, model: ModelId) -> Result<Vec<ShardId>, ModelError> {
        let mut state = self.state_mut();
        let manifest = state.models.remove(&model).ok_or_else(|| ModelError::unknown(model))?;
        state.marks.remove(&model);
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
        remove_if_there(&self.layout().shard(shard))?;
        if self.writing().contains(shard) {
            return Ok(());
        }
        remove_if_there(&self.layout().partial(shard))
    }

    fn layout(&self) -> &Layout {
        &self.inner.layout
    }

    // A thread that panicked while it held a lock leaves a state that is still whole: each change is one insertion.
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

    fn disk(&self) -> MutexGuard<'_, ()> {
        self.inner.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a shard that no known model has, or the host has deleted.
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

    /// A shard has become complete.
    fn note_held(&self, shard: ShardId) {
        self.state_mut().held.insert(shard);
        self.changed();
    }

    /// A shard turned out not to be usable.
    fn note_lost(&self, shard: &ShardId) {
        self.state_mut().held.remove(shard);
        self.forget_verified(shard);
        self.changed();
    }

    fn changed(&self) {
        self.inner.changes.send_modify(|version| *version += 1);
    }
}

/// The right to write a shard, or to take from a source, which one has at a time. Given back when dropped.
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
