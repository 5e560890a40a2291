//! The stage table: which stages are loaded on this node, and who has a slot in them.
//!
//! Owns the stages' handles and the memory budget. A session gets a [`Lease`]: a slot with KV cells of its own,
//! admitted before anything is computed, given back when the lease ends. Where all are in use a session waits a while: the
//! word that the one before has ended may be under way still. Who gets which slot, and in which order, is decided in
//! [`slots`](super::slots). A stage that no session has or waits for may be unloaded to make room for another; where there is
//! none, idle sessions may be evicted for it ([`room`](super::room)).

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Event, Fault, LayerRange, ModelId, NodeId};
use crate::engine::{Engine, EngineError, StageConfig, StageHandle, StageSpec};
use crate::model::Manifest;
use crate::model::catalog::Catalog;
use crate::pipeline::context::Savings;
use crate::pipeline::slots::{Content, Owner, Slots, Taken};
use crate::rt::{Bounds, EventBus, Shares, TaskSet};
use crate::wire::prefix::Prefix;

mod memory;

/// How often a shutdown looks whether stages are left.
const UNLOAD_POLL: Duration = Duration::from_millis(2);
/// Time that a session waits for a slot: another's end is told within it, sessions that compute nothing are let go (6 s), and
/// that the swarm is busy is no late news.
pub const SLOT_WAIT: Duration = Duration::from_secs(8);
/// Sessions that wait for slots or memory at once; those of one coordinator leave room for those of others, and the reserve is more than
/// the connections of one address (64).
const WAITING: Bounds = Bounds { all: 32, each: 16, reserve: 80 };
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
    /// Whether stages have more context than that says, up to the model's own, where the memory allows, and less where it
    /// asks for that.
    pub grows: bool,
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
    waiting: Shares<NodeId>,
    /// Told each time that a session gets a slot or gives it back.
    moves: watch::Sender<()>,
    /// Held by the thread of each stage until it is unloaded.
    threads: Arc<()>,
}

#[derive(Default)]
struct Entries {
    by_key: HashMap<StageKey, Arc<Entry>>,
    /// Stages whose sessions were evicted and have not all ended; nobody is admitted to them.
    leaving: Vec<Arc<Entry>>,
    /// Who waits for memory, in the order in which they came: numbers, and coordinators.
    waiting: Vec<(u64, NodeId)>,
    clock: u64,
}

struct Entry {
    key: StageKey,
    memory: u64,
    /// Positions of each session.
    context: u32,
    /// Layers that an accelerator may compute, the head being one.
    gpu_layers: u32,
    cell: OnceCell<StageHandle>,
    /// One for each slot that is free.
    places: Arc<Semaphore>,
    slots: Mutex<Slots>,
    /// Told of each slot that is given back, and of each wait that ends.
    given_back: Notify,
    /// How many [`Hold`]s there are. Changes with the table locked only.
    holds: AtomicUsize,
}

/// What keeps an entry in use: to use its stage, or to wait for a slot in it. The last that ends drops an entry whose sessions
/// were evicted or whose stage was not loaded, so that its memory is free from then on. Not to be dropped with the table locked.
struct Hold {
    table: StageTable,
    entry: Arc<Entry>,
}

impl Hold {
    /// Holds an entry of the locked table.
    fn new(table: &StageTable, _locked: &Entries, entry: &Arc<Entry>) -> Self {
        entry.holds.fetch_add(1, Ordering::Relaxed);
        Self { table: table.clone(), entry: entry.clone() }
    }
}

impl Deref for Hold {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut entries = locked(&self.table.inner.entries);
        if self.entry.holds.fetch_sub(1, Ordering::Relaxed) == 1 {
            entries.forget_unused(&self.entry);
        }
        drop(entries);
        self.table.inner.moves.send_replace(());
    }
}

/// A session's wait for a slot. Ends when dropped.
struct Wait<'a> {
    entry: &'a Entry,
    coordinator: NodeId,
    ticket: u64,
}

/// What a session asks of a stage.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// Whose session it is.
    pub owner: Owner,
    /// Positions that it needs at least.
    pub least: u32,
    /// How its prompt begins.
    pub prefix: &'a Prefix,
    /// Is cancelled when the session is over: then it waits for a slot no longer.
    pub over: &'a CancellationToken,
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
    context: u32,
    keep: Content,
    evicted: CancellationToken,
}

/// A slot that was taken; given back when dropped. Its stage is not unloaded meanwhile.
struct Held {
    entry: Hold,
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
        self.entry.given_back.notify_waiters();
    }
}

impl Lease {
    /// Positions that the session may use.
    pub fn context(&self) -> u32 {
        self.context
    }

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

    /// Is cancelled when the session is to end, since others need what it has.
    pub fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }

    /// Says that the session computes from now on.
    pub fn compute(&self) {
        if let Some(held) = &self.held {
            locked(&held.entry.slots).compute(self.slot, Instant::now());
        }
    }

    /// Says that the session computes nothing from now on, and has computed so many rows: one that has been idle for long may
    /// be evicted. Until it has said so once, it is not.
    pub fn rest(&self, rows: u32) {
        if let Some(held) = &self.held {
            locked(&held.entry.slots).rest(self.slot, rows, Instant::now());
        }
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
        let (waiting, moves, threads) = (Shares::new(WAITING), watch::Sender::new(()), Arc::default());
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
        let entry = self.find_or_wait(engine.as_ref(), &manifest, &key, &claim).await?;
        self.check_context(entry.context, claim.least)?;
        let context = entry.context;
        entry.earlier_gone(&claim.owner).await;
        let place = Some(self.place_in(&entry, &claim).await?);
        let Taken { slot, cached, stale, evicted } = self.take(&entry, claim)?;
        let held = Held { entry, slot, place, content: Content::Unknown };
        self.inner.moves.send_replace(());
        let began = Instant::now();
        let cell = &held.entry.cell;
        let was_loaded = cell.initialized();
        let handle = cell.get_or_try_init(|| self.load(engine, &held.entry)).await?.clone();
        let cached = prepare(&handle, slot, cached, stale).await.map_err(|error| Fault::new(error.kind(), error))?;
        let load_ms = if was_loaded { 0 } else { began.elapsed().as_millis().try_into().unwrap_or(u32::MAX) };
        let tasks = self.inner.tasks.clone();
        Ok((Lease { handle, tasks, slot, held: Some(held), cached, context, keep: Content::Empty, evicted }, load_ms))
    }

    /// Unloads every stage that no session uses.
    pub fn unload_idle(&self) {
        self.unload_idle_where(|_| true);
    }

    /// The same, of those that `which` names.
    pub fn unload_idle_where(&self, which: impl Fn(&StageKey) -> bool) {
        let mut entries = locked(&self.inner.entries);
        entries.leaving.retain(in_use);
        entries.by_key.retain(|key, entry| in_use(entry) || !which(key));
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

    fn check_context(&self, has: u32, least: u32) -> Result<(), Fault> {
        if least > has {
            // A longer context is what is asked for: it is none of the savings.
            let savings = Savings { context: false, ..self.savings(has) };
            let text = format!(
                "the text and its answer need {least} positions at least, a stage here has {has}; shorten the text, or give \
                 the host a longer `context`, for which it may need {savings}"
            );
            return Err(Fault::new(ErrorKind::ContextOverflow, text));
        }
        Ok(())
    }

    /// A place for one session: at once where there is one, else when it is this session's turn.
    async fn place_in(&self, entry: &Entry, claim: &Claim<'_>) -> Result<OwnedSemaphorePermit, Fault> {
        if locked(&entry.slots).nobody_waits()
            && let Ok(place) = entry.places.clone().try_acquire_owned()
        {
            return Ok(place);
        }
        let full = || {
            let text = format!(
                "all {} sessions of the stage are in use; try again, or give the host more `sessions`",
                self.inner.limits.stage.max_sessions
            );
            Fault::new(ErrorKind::Overloaded, text)
        };
        let _waiting = self.inner.waiting.take(claim.owner.coordinator).ok_or_else(full)?;
        let place = tokio::time::timeout(SLOT_WAIT, entry.wait(claim.owner.coordinator).place());
        match claim.over.run_until_cancelled(place).await {
            None => Err(over()),
            Some(place) => place.map_err(|_| full()),
        }
    }

    /// Takes a slot for a session that has a place.
    fn take(&self, entry: &Entry, claim: Claim) -> Result<Taken, Fault> {
        let mut entries = locked(&self.inner.entries);
        entries.clock += 1;
        let taken = locked(&entry.slots).take(claim.owner, claim.prefix, entries.clock);
        taken.ok_or_else(|| Fault::new(ErrorKind::Internal, "a place without a slot"))
    }

    /// What is left for a stage of the layers that accelerators may compute.
    fn gpu_layers(&self, entries: &Entries, key: &StageKey) -> u32 {
        let used = entries.all().map(|entry| entry.gpu_layers());
        gpu_share(self.inner.limits.stage.gpu_layers, used, key.layers, key.head)
    }

    async fn load(&self, engine: Arc<dyn Engine>, entry: &Entry) -> Result<StageHandle, Fault> {
        let catalog = self.inner.catalog.clone();
        let config =
            StageConfig { gpu_layers: entry.gpu_layers, context: entry.context, ..self.inner.limits.stage.clone() };
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

/// Whether somebody holds the entry. Asked with the table locked, where nobody can begin or end to.
fn in_use(entry: &Arc<Entry>) -> bool {
    entry.holds.load(Ordering::Relaxed) > 0
}

impl Entries {
    /// Removes an entry that nobody holds any more, where its sessions were evicted, or its load failed or was dropped.
    fn forget_unused(&mut self, entry: &Arc<Entry>) {
        self.leaving.retain(|other| !Arc::ptr_eq(other, entry));
        // Another stage of the same key may have followed one that left.
        if !entry.cell.initialized() && self.by_key.get(&entry.key).is_some_and(|other| Arc::ptr_eq(other, entry)) {
            self.by_key.remove(&entry.key);
        }
    }
}

impl Entry {
    fn new(key: StageKey, memory: u64, context: u32, gpu_layers: u32, limits: &StageLimits) -> Self {
        let places = Arc::new(Semaphore::new(limits.stage.max_sessions as usize));
        let slots = Mutex::new(Slots::new(limits.stage.max_sessions));
        let (cell, given_back, holds) = (OnceCell::new(), Notify::new(), AtomicUsize::new(0));
        Self { key, memory, context, gpu_layers, cell, places, slots, given_back, holds }
    }

    /// Waits until no earlier route of a session has a slot, or for as long as that may take.
    async fn earlier_gone(&self, owner: &Owner) {
        let gone = async {
            loop {
                let changed = self.given_back.notified();
                if !locked(&self.slots).has_earlier(owner) {
                    return;
                }
                changed.await;
            }
        };
        // One that takes longer costs that its KV is computed again.
        let _ = tokio::time::timeout(EARLIER_WAIT, gone).await;
    }

    /// Begins to wait for a slot.
    fn wait(&self, coordinator: NodeId) -> Wait<'_> {
        Wait { entry: self, coordinator, ticket: locked(&self.slots).begin_wait(coordinator) }
    }

    /// Layers of accelerators that it has, or may get while it is being loaded.
    fn gpu_layers(&self) -> u32 {
        self.cell.get().map_or(self.gpu_layers, |stage| stage.spec().config.gpu_layers)
    }
}

impl Wait<'_> {
    /// A place, when it is this session's turn.
    async fn place(self) -> OwnedSemaphorePermit {
        loop {
            let mut changed = std::pin::pin!(self.entry.given_back.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let later = {
                let slots = locked(&self.entry.slots);
                match slots.next() == Some(self.ticket) {
                    true => match self.entry.places.clone().try_acquire_owned() {
                        Ok(place) => return place,
                        Err(_) => slots.evict_for(self.coordinator, Instant::now()),
                    },
                    false => None,
                }
            };
            match later {
                // Then a session may be evicted.
                Some(later) => {
                    let _ = timeout_at(later, changed).await;
                }
                None => changed.await,
            }
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        locked(&self.entry.slots).end_wait(self.ticket);
        self.entry.given_back.notify_waiters();
    }
}

/// What of a node's layers of accelerators a stage may get, where others have some.
fn gpu_share(budget: u32, used: impl Iterator<Item = u32>, layers: LayerRange, head: bool) -> u32 {
    let left = used.fold(budget, u32::saturating_sub);
    left.min(layers.len().saturating_add(u32::from(head)))
}

fn over() -> Fault {
    Fault::new(ErrorKind::Cancelled, "the session has ended before it began")
}

fn not_known(model: ModelId) -> Fault {
    Fault::new(ErrorKind::ModelNotFound, format!("model {} is not known here", model.short()))
}

#[cfg(test)]
pub(super) mod tests;
