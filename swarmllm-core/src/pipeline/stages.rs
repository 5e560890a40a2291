//! The stage table: which stages are loaded on this node, and who has a slot in them.
//!
//! Owns the stages' handles and the memory budget. A session gets a [`Lease`]: a slot with KV cells of its own,
//! admitted before anything is computed, given back when the lease ends. A slot that is given back may keep its KV, which
//! takes no memory that it would not have anyway: the next session whose prompt begins alike gets that slot, or the same
//! session when it comes back by another route. Where all
//! are in use a session waits a while, first come first served: the word that the one before has ended may be under way
//! still. A stage that no session has or waits for may be unloaded to make room for another.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::base::{Bytes, ErrorKind, Event, Fault, LayerRange, ModelId, NodeId, SessionId};
use crate::engine::{Engine, EngineError, StageConfig, StageHandle, StageSpec};
use crate::model::Manifest;
use crate::model::catalog::Catalog;
use crate::rt::{EventBus, TaskSet};
use crate::wire::prefix::Prefix;

/// How often a shutdown looks whether stages are left.
const UNLOAD_POLL: Duration = Duration::from_millis(2);
/// Time that a session waits for a slot: another's end is told within it, and that the swarm is busy is no late news.
const SLOT_WAIT: Duration = Duration::from_secs(5);
/// Sessions that wait for slots at once, so that they leave room for the requests that end others.
const MAX_WAITING: usize = 16;
/// Time that a session waits for the KV of its own earlier route: a step that is under way is given up well within it.
const EARLIER_WAIT: Duration = Duration::from_secs(2);

/// Which stage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StageKey {
    /// The model.
    pub model: ModelId,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it computes the head.
    pub head: bool,
    /// Name of the engine.
    pub engine: String,
}

/// Bounds of a stage table.
#[derive(Debug, Clone)]
pub struct StageLimits {
    /// How each stage is loaded; layers of accelerators are for all of them together.
    pub stage: StageConfig,
    /// Bytes that all stages may take together.
    pub memory: u64,
}

/// See the module.
#[derive(Clone)]
pub struct StageTable {
    inner: Arc<Inner>,
}

struct Inner {
    engines: Vec<Arc<dyn Engine>>,
    catalog: Catalog,
    limits: StageLimits,
    events: EventBus,
    tasks: TaskSet,
    entries: Mutex<Entries>,
    waiting: Semaphore,
    /// Told each time that a session gets a slot or gives it back.
    moves: watch::Sender<()>,
    /// Held by the thread of each stage until it is unloaded.
    threads: Arc<()>,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<StageKey, Arc<Entry>>,
    clock: u64,
}

struct Entry {
    key: StageKey,
    memory: u64,
    /// Layers that an accelerator may compute, the head being one.
    gpu_layers: u32,
    cell: OnceCell<StageHandle>,
    /// One for each slot that is free.
    places: Arc<Semaphore>,
    slots: Mutex<Slots>,
    /// Told of each slot that is given back.
    given_back: Notify,
}

struct Slots {
    free: Vec<FreeSlot>,
    /// Whose the others are.
    taken: Vec<(u32, Owner)>,
    last_used: u64,
}

/// A slot that no session has.
struct FreeSlot {
    slot: u32,
    content: Content,
    /// When it was given back.
    since: u64,
}

/// What is in a slot.
enum Content {
    /// Nothing.
    Empty,
    /// Whatever was left where a session was given up before it began.
    Unknown,
    /// The KV of this coordinator's text.
    Kept(NodeId, Prefix),
    /// So many positions of a session whose route broke. Nobody else can use them.
    Broken(Owner, u32),
}

/// Whose a session is, and which of its routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Who asks, and pays.
    pub coordinator: NodeId,
    /// The session.
    pub session: SessionId,
    /// Its route.
    pub epoch: u32,
}

impl Owner {
    /// Whether the other is an earlier route of the same session.
    fn follows(&self, other: &Owner) -> bool {
        (self.coordinator, self.session) == (other.coordinator, other.session) && self.epoch > other.epoch
    }
}

/// What a session asks of a stage.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// Whose session it is.
    pub owner: Owner,
    /// Positions.
    pub context: u32,
    /// How its prompt begins.
    pub prefix: &'a Prefix,
    /// Is cancelled when the session is over: then it waits for a slot no longer.
    pub over: &'a CancellationToken,
}

/// A slot that was taken.
struct Taken {
    slot: u32,
    /// Positions of the prompt that are there.
    cached: u32,
    /// Whether other KV is in it, which must go first.
    stale: bool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while one of these short critical sections ran cannot leave them half-changed in a harmful way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A session's place in a stage. Ends when dropped.
pub struct Lease {
    handle: StageHandle,
    tasks: TaskSet,
    slot: u32,
    /// The same, until it is given back.
    held: Option<Held>,
    cached: u32,
    keep: Content,
}

/// A slot that was taken; given back when dropped. Its stage is not unloaded meanwhile.
struct Held {
    table: StageTable,
    entry: Arc<Entry>,
    slot: u32,
    place: Option<OwnedSemaphorePermit>,
    /// What is in it when it is given back.
    content: Content,
}

impl Held {
    fn give_back(mut self, content: Content) {
        self.content = content;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The slot is free before its place is, so that who has a place finds a slot.
        let content = std::mem::replace(&mut self.content, Content::Unknown);
        locked(&self.entry.slots).give_back(self.slot, content);
        self.entry.given_back.notify_waiters();
        drop(self.place.take());
        self.table.forget_unloaded(&self.entry);
        self.table.inner.moves.send_replace(());
    }
}

impl Lease {
    /// Positions of the session's prompt whose KV is in the slot.
    pub fn cached(&self) -> u32 {
        self.cached
    }

    /// Says what text the slot's KV is of, so that it is kept when the lease ends.
    pub fn keep(&mut self, coordinator: NodeId, text: Prefix) {
        self.keep = if text.ids.is_empty() { Content::Empty } else { Content::Kept(coordinator, text) };
    }

    /// Says how many positions of its own the session leaves in the slot, for its next route.
    pub fn leave(&mut self, owner: Owner, held: u32) {
        self.keep = if held == 0 { Content::Empty } else { Content::Broken(owner, held) };
    }

    /// The stage.
    pub fn stage(&self) -> &StageHandle {
        &self.handle
    }

    /// The session's slot in it.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let (handle, slot, keep) = (self.handle.clone(), self.slot, std::mem::replace(&mut self.keep, Content::Empty));
        let Some(held) = self.held.take() else { return };
        self.tasks.spawn("release-slot", async move {
            // The slot is free only once its release is queued, so that the next session's first step comes after it.
            let told = match keep {
                Content::Kept(..) | Content::Broken(..) => handle.rest(slot).await,
                Content::Empty | Content::Unknown => handle.release(slot).await,
            };
            if let Err(error) = told {
                tracing::debug!(%error, "a stage ended before its session");
            }
            held.give_back(keep);
        });
    }
}

impl StageTable {
    /// An empty table.
    pub fn new(
        engines: Vec<Arc<dyn Engine>>,
        catalog: Catalog,
        limits: StageLimits,
        events: EventBus,
        tasks: TaskSet,
    ) -> Self {
        let entries = Mutex::new(Entries::default());
        let (waiting, moves, threads) = (Semaphore::new(MAX_WAITING), watch::Sender::new(()), Arc::default());
        Self { inner: Arc::new(Inner { engines, catalog, limits, events, tasks, entries, waiting, moves, threads }) }
    }

    /// The engines, best first.
    pub fn engines(&self) -> &[Arc<dyn Engine>] {
        &self.inner.engines
    }

    /// How stages are loaded.
    pub fn limits(&self) -> &StageLimits {
        &self.inner.limits
    }

    /// What the ledger prices this stage by.
    pub fn weight_of(&self, key: &StageKey) -> Result<u64, Fault> {
        let manifest = self.inner.catalog.manifest(key.model).ok_or_else(|| not_known(key.model))?;
        Ok(manifest.stage_weight(key.layers, key.head))
    }

    /// Bytes that a stage of this model would take here.
    pub fn memory_of(&self, engine: &dyn Engine, manifest: &Manifest, layers: LayerRange, head: bool) -> u64 {
        engine.memory(manifest, layers, head, &self.inner.limits.stage)
    }

    /// Bytes taken by loaded stages.
    pub fn memory_used(&self) -> u64 {
        locked(&self.inner.entries).by_key.values().map(|entry| entry.memory).sum()
    }

    /// Bytes that a new stage may take, idle stages unloaded.
    pub fn memory_free(&self) -> u64 {
        let entries = locked(&self.inner.entries);
        let busy: u64 = entries.by_key.values().filter(|entry| in_use(entry)).map(|entry| entry.memory).sum();
        self.inner.limits.memory.saturating_sub(busy)
    }

    /// Stages that sessions use: another session takes no more memory.
    pub fn in_use(&self) -> Vec<StageKey> {
        let entries = locked(&self.inner.entries);
        entries.by_key.values().filter(|entry| in_use(entry)).map(|entry| entry.key.clone()).collect()
    }

    /// Changes soon before or after what is in use, and thus the memory that is free, may have.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner.moves.subscribe()
    }

    /// Stages of a model that are loaded, or being loaded.
    pub fn of(&self, model: ModelId) -> Vec<(LayerRange, bool)> {
        let entries = locked(&self.inner.entries);
        let ours = entries.by_key.keys().filter(|key| key.model == model);
        ours.map(|key| (key.layers, key.head)).collect()
    }

    /// How many stages are loaded, and how many sessions they serve.
    pub fn counts(&self) -> (u32, u32) {
        let entries = locked(&self.inner.entries);
        let all = self.inner.limits.stage.max_sessions;
        let taken = |entry: &Arc<Entry>| all - entry.places.available_permits() as u32;
        (entries.by_key.len() as u32, entries.by_key.values().map(taken).sum())
    }

    /// Admits a session to a stage, loading it if need be, and waiting for a slot where all are in use. Also says how
    /// many milliseconds loading took. Cancel-safe: an admission that is not awaited to its end holds nothing.
    pub async fn acquire(&self, key: StageKey, claim: Claim<'_>) -> Result<(Lease, u32), Fault> {
        let manifest = self.inner.catalog.manifest(key.model).ok_or_else(|| not_known(key.model))?;
        let engine = self.engine(&key.engine)?;
        self.check_cut(&engine, &manifest, &key)?;
        self.check_context(claim.context)?;
        let entry = self.find_or_make(engine.as_ref(), &manifest, &key)?;
        entry.earlier_gone(&claim.owner).await;
        let place = Some(self.place_in(&entry, claim.over).await?);
        let Taken { slot, cached, stale } = self.take(&entry, claim)?;
        let held = Held { table: self.clone(), entry, slot, place, content: Content::Unknown };
        self.inner.moves.send_replace(());
        let began = Instant::now();
        let cell = &held.entry.cell;
        let was_loaded = cell.initialized();
        let handle = cell.get_or_try_init(|| self.load(engine, &held.entry)).await?.clone();
        let cached = prepare(&handle, slot, cached, stale).await.map_err(|error| Fault::new(error.kind(), error))?;
        let load_ms = if was_loaded { 0 } else { began.elapsed().as_millis().try_into().unwrap_or(u32::MAX) };
        let tasks = self.inner.tasks.clone();
        Ok((Lease { handle, tasks, slot, held: Some(held), cached, keep: Content::Empty }, load_ms))
    }

    /// Unloads every stage that no session uses.
    pub fn unload_idle(&self) {
        self.unload_idle_where(|_| true);
    }

    /// The same, of those that `which` names.
    pub fn unload_idle_where(&self, which: impl Fn(&StageKey) -> bool) {
        locked(&self.inner.entries).by_key.retain(|key, entry| in_use(entry) || !which(key));
    }

    /// Waits until every stage that nobody holds any more is unloaded and its memory free.
    pub async fn unloaded(&self) {
        while Arc::strong_count(&self.inner.threads) > 1 {
            tokio::time::sleep(UNLOAD_POLL).await;
        }
    }

    fn engine(&self, name: &str) -> Result<Arc<dyn Engine>, Fault> {
        let found = self.inner.engines.iter().find(|engine| engine.name() == name).cloned();
        found.ok_or_else(|| Fault::new(ErrorKind::Unsupported, format!("engine `{name}` is not built into this node")))
    }

    fn check_cut(&self, engine: &Arc<dyn Engine>, manifest: &Manifest, key: &StageKey) -> Result<(), Fault> {
        let cuts = engine.cuts(manifest).map_err(|error| Fault::new(error.kind(), error))?;
        let inside = key.layers.end <= manifest.layers && (!key.head || key.layers.end == manifest.layers);
        match cuts.refuses(key.layers) {
            None if inside => Ok(()),
            None => {
                let text = format!("layers {} of a model of {} cannot be a stage", key.layers, manifest.layers);
                Err(Fault::new(ErrorKind::InvalidArgument, text))
            }
            Some(rule) => {
                let text = format!("layers {} of `{}` cannot be a stage: {rule}", key.layers, manifest.architecture);
                Err(Fault::new(ErrorKind::NoPlan, text))
            }
        }
    }

    fn check_context(&self, asked: u32) -> Result<(), Fault> {
        let has = self.inner.limits.stage.context;
        if asked > has {
            let text = format!("{asked} tokens were asked for, a stage here has {has}");
            return Err(Fault::new(ErrorKind::ContextOverflow, text));
        }
        Ok(())
    }

    /// The stage's entry, which is in use as long as somebody holds it.
    fn find_or_make(&self, engine: &dyn Engine, manifest: &Manifest, key: &StageKey) -> Result<Arc<Entry>, Fault> {
        let mut entries = locked(&self.inner.entries);
        if let Some(entry) = entries.by_key.get(key) {
            return Ok(entry.clone());
        }
        let memory = self.memory_of(engine, manifest, key.layers, key.head);
        self.make_room(&mut entries, memory)?;
        let entry = Arc::new(Entry::new(key.clone(), memory, self.gpu_layers(&entries, key), &self.inner.limits));
        entries.by_key.insert(key.clone(), entry.clone());
        Ok(entry)
    }

    /// A place for one session: at once where there is one, else when it is this session's turn.
    async fn place_in(&self, entry: &Entry, over: &CancellationToken) -> Result<OwnedSemaphorePermit, Fault> {
        if let Ok(place) = entry.places.clone().try_acquire_owned() {
            return Ok(place);
        }
        let full = || {
            let text =
                format!("all {} sessions of the stage are in use; try again", self.inner.limits.stage.max_sessions);
            Fault::new(ErrorKind::Overloaded, text)
        };
        let _waiting = self.inner.waiting.try_acquire().map_err(|_| full())?;
        let place = tokio::time::timeout(SLOT_WAIT, entry.places.clone().acquire_owned());
        match over.run_until_cancelled(place).await {
            None => Err(Fault::new(ErrorKind::Cancelled, "the session has ended before it began")),
            // The semaphore is never closed.
            Some(place) => place.ok().and_then(Result::ok).ok_or_else(full),
        }
    }

    /// Takes a slot for a session that has a place.
    fn take(&self, entry: &Entry, claim: Claim) -> Result<Taken, Fault> {
        let mut entries = locked(&self.inner.entries);
        entries.clock += 1;
        let mut slots = locked(&entry.slots);
        slots.last_used = entries.clock;
        slots.take(claim).ok_or_else(|| Fault::new(ErrorKind::Internal, "a place without a slot"))
    }

    /// What is left for a stage of the layers that accelerators may compute.
    fn gpu_layers(&self, entries: &Entries, key: &StageKey) -> u32 {
        let used = entries.by_key.values().map(|entry| entry.gpu_layers());
        gpu_share(self.inner.limits.stage.gpu_layers, used, key.layers, key.head)
    }

    /// Unloads idle stages, longest unused first, until `memory` fits.
    fn make_room(&self, entries: &mut Entries, memory: u64) -> Result<(), Fault> {
        let budget = self.inner.limits.memory;
        loop {
            let used: u64 = entries.by_key.values().map(|entry| entry.memory).sum();
            if used.saturating_add(memory) <= budget {
                return Ok(());
            }
            let idle = entries.by_key.values().filter(|entry| !in_use(entry));
            let Some(oldest) = idle.min_by_key(|entry| locked(&entry.slots).last_used).map(|entry| entry.key.clone())
            else {
                let text = format!(
                    "the stage takes {}, {} of the budget of {} are in use; raise the memory budget or cut the model finer",
                    Bytes(memory),
                    Bytes(used),
                    Bytes(budget)
                );
                return Err(Fault::new(ErrorKind::OutOfMemory, text));
            };
            entries.by_key.remove(&oldest);
        }
    }

    async fn load(&self, engine: Arc<dyn Engine>, entry: &Entry) -> Result<StageHandle, Fault> {
        let catalog = self.inner.catalog.clone();
        let config = StageConfig { gpu_layers: entry.gpu_layers, ..self.inner.limits.stage.clone() };
        let name = engine.name();
        let StageKey { model, layers, head, .. } = entry.key;
        let source = tokio::task::spawn_blocking(move || catalog.stage_source(model, layers, head))
            .await
            .map_err(|error| Fault::new(ErrorKind::Internal, error))?
            .map_err(|error| Fault::new(error.kind(), error))?;
        let threads = self.inner.threads.clone();
        let handle = StageHandle::spawn_counted(move || engine.load_stage(source, &config), threads)
            .await
            .map_err(|error| Fault::new(error.kind(), error))?;
        self.inner.events.send(Event::StageLoaded { model, layers, engine: name });
        Ok(handle)
    }

    /// Removes an entry whose load failed or was dropped, when the last that waited for it goes.
    fn forget_unloaded(&self, entry: &Arc<Entry>) {
        /// The table's and the caller's.
        const LAST: usize = 2;
        let mut entries = locked(&self.inner.entries);
        if Arc::strong_count(entry) == LAST && !entry.cell.initialized() {
            entries.by_key.remove(&entry.key);
        }
    }

    /// What is loaded, for status.
    pub fn loaded(&self) -> Vec<(StageKey, StageSpec)> {
        let entries = locked(&self.inner.entries);
        let loaded = |entry: &Arc<Entry>| entry.cell.get().map(|stage| (entry.key.clone(), stage.spec().clone()));
        entries.by_key.values().filter_map(loaded).collect()
    }
}

/// Leaves in a slot the KV of the first `cached` positions and nothing else; gives how many are there.
async fn prepare(stage: &StageHandle, slot: u32, cached: u32, stale: bool) -> Result<u32, EngineError> {
    if cached > 0 && stage.truncate(slot, cached).await.is_ok() {
        return Ok(cached);
    }
    // Nothing to reuse, or a window that has moved past it.
    if stale || cached > 0 {
        stage.release(slot).await?;
    }
    Ok(0)
}

/// Whether somebody else than the table holds the entry: to use the stage, or to wait for a slot in it. Asked with the
/// table locked, where nobody can take hold of it.
fn in_use(entry: &Arc<Entry>) -> bool {
    Arc::strong_count(entry) > 1
}

impl Entry {
    fn new(key: StageKey, memory: u64, gpu_layers: u32, limits: &StageLimits) -> Self {
        let free =
            (0..limits.stage.max_sessions).map(|slot| FreeSlot { slot, content: Content::Empty, since: 0 }).collect();
        let places = Arc::new(Semaphore::new(limits.stage.max_sessions as usize));
        let slots = Mutex::new(Slots { free, taken: Vec::new(), last_used: 0 });
        Self { key, memory, gpu_layers, cell: OnceCell::new(), places, slots, given_back: Notify::new() }
    }

    /// Waits until no earlier route of a session has a slot, or for as long as that may take.
    async fn earlier_gone(&self, owner: &Owner) {
        let gone = async {
            loop {
                let changed = self.given_back.notified();
                if !locked(&self.slots).taken.iter().any(|(_, other)| owner.follows(other)) {
                    return;
                }
                changed.await;
            }
        };
        // One that takes longer costs that its KV is computed again.
        let _ = tokio::time::timeout(EARLIER_WAIT, gone).await;
    }

    /// Layers of accelerators that it has, or may get while it is being loaded.
    fn gpu_layers(&self) -> u32 {
        self.cell.get().map_or(self.gpu_layers, |stage| stage.spec().config.gpu_layers)
    }
}

impl Slots {
    /// The free slot that holds most of the prompt, else an empty one, else the one given back longest ago; among equals
    /// the lowest, so that neighbouring slots are in use, which engines compute together.
    fn take(&mut self, claim: Claim) -> Option<Taken> {
        let common = |free: &FreeSlot| match &free.content {
            Content::Kept(owner, text) if *owner == claim.owner.coordinator => text.common(claim.prefix),
            Content::Broken(owner, held) if claim.owner.follows(owner) => *held,
            _ => 0,
        };
        let is_empty = |free: &FreeSlot| matches!(free.content, Content::Empty);
        let rank = |free: &FreeSlot| (Reverse(common(free)), !is_empty(free), free.since, free.slot);
        let (index, _) = self.free.iter().enumerate().min_by_key(|(_, free)| rank(free))?;
        let free = self.free.swap_remove(index);
        let cached = common(&free);
        self.taken.push((free.slot, claim.owner));
        Some(Taken { slot: free.slot, cached, stale: !is_empty(&free) && cached == 0 })
    }

    fn give_back(&mut self, slot: u32, content: Content) {
        // Empty slots are alike, whenever they were given back.
        let since = if matches!(content, Content::Empty) { 0 } else { self.last_used };
        self.taken.retain(|(taken, _)| *taken != slot);
        self.free.push(FreeSlot { slot, content, since });
    }
}

/// What of a node's layers of accelerators a stage may get, where others have some.
fn gpu_share(budget: u32, used: impl Iterator<Item = u32>, layers: LayerRange, head: bool) -> u32 {
    let left = used.fold(budget, u32::saturating_sub);
    left.min(layers.len().saturating_add(u32::from(head)))
}

fn not_known(model: ModelId) -> Fault {
    Fault::new(ErrorKind::ModelNotFound, format!("model {} is not known here", model.short()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_share_the_layers_of_accelerators_and_never_get_more_than_the_node_has() {
        let layers = LayerRange::new(4, 10);
        let share = |budget, used: &[u32], head| gpu_share(budget, used.iter().copied(), layers, head);
        assert_eq!((share(u32::MAX, &[], false), share(u32::MAX, &[7], true)), (6, 7));
        assert_eq!((share(10, &[7], true), share(10, &[7, 3], true), share(10, &[7, 9], true)), (3, 0, 0));
        assert_eq!(share(0, &[], true), 0);
    }
}
