//! The stage table: the stages that are loaded on this node, and the sessions that have slots in them.
//!
//! Owns the stages' handles and the memory budget. A session gets a [`SlotLease`], which is admitted before anything is
//! computed; the slot is freed when the lease ends. Where all slots are in use a session waits: the release of an
//! earlier session may be under way. [`slots`](super::slots) decides the order of the waits and which slot a session
//! gets. An unused stage may be unloaded to make space for another stage; where there is none, idle sessions may be
//! evicted ([`eviction`](super::eviction)).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, LayerRange, ModelId, NodeId};
use crate::engine::{Engine, StageConfig, StageSpec};
use crate::model::catalog::Catalog;
use crate::pipeline::host::context::Savings;
use crate::pipeline::host::slots::{SlotContent, SlotOwner, TakenSlot};
use crate::rt::{EventBus, FairPool, PoolLimits, TaskSet};
use crate::wire::prefix::Prefix;

use entries::{Entry, StageEntries, locked};
use lease::{HeldSlot, prepare};

mod entries;
mod lease;
mod loader;
mod memory;

pub use entries::StageKey;
pub use lease::SlotLease;

/// Interval at which a shutdown checks for remaining stages.
const UNLOAD_POLL: Duration = Duration::from_millis(2);
/// Time that a session waits for a slot. Within it a release arrives, and sessions without a first step are dropped (6
/// s). It is short enough to report in time that the swarm is busy.
pub const SLOT_WAIT: Duration = Duration::from_secs(8);
/// Sessions that wait for slots or memory. The sessions of one coordinator leave places for others; the reserve is more
/// than the connections of one address (64).
const WAITING: PoolLimits = PoolLimits { total: 32, per_key: 16, reserve: 80 };

/// Bounds of a stage table.
#[derive(Debug, Clone)]
pub struct StageLimits {
    /// How each stage is loaded. `gpu_layers` is for all stages together.
    pub stage: StageConfig,
    /// Whether the memory sizes the context: up to the model's own where there is space, and less than `stage.context`
    /// where there is not.
    pub grows: bool,
    /// Bytes of all stages together.
    pub memory: u64,
}

/// The stages of this node. Clones share one table.
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
    entries: Arc<StageEntries>,
    waiting: FairPool<NodeId>,
    /// A clone is held by the thread of each stage until it is unloaded.
    threads: Arc<()>,
}

/// A session's request for a slot in a stage.
#[derive(Clone, Copy)]
pub struct SlotRequest<'a> {
    /// The session and its coordinator.
    pub owner: SlotOwner,
    /// Least positions that the session needs.
    pub least: u32,
    /// The prefix of its prompt.
    pub prefix: &'a Prefix,
    /// Cancelled when the session is over, which ends the wait.
    pub over: &'a CancellationToken,
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
        let (entries, waiting, threads) = (Arc::default(), FairPool::new(WAITING), Arc::default());
        Self { inner: Arc::new(Inner { engines, catalog, limits, events, tasks, entries, waiting, threads }) }
    }

    /// The engines, best first.
    pub fn engines(&self) -> &[Arc<dyn Engine>] {
        &self.inner.engines
    }

    /// The bounds of the table.
    pub fn limits(&self) -> &StageLimits {
        &self.inner.limits
    }

    /// The weight by which the ledger prices this stage.
    pub fn weight_of(&self, key: &StageKey) -> Result<u64, Fault> {
        let manifest = self.inner.catalog.manifest(key.model).ok_or_else(|| not_known(key.model))?;
        Ok(manifest.stage_weight(key.layers, key.head))
    }

    /// Stages that sessions use: another session in them takes no more memory.
    pub fn in_use(&self) -> Vec<StageKey> {
        let entries = self.inner.entries.lock();
        entries.by_key.values().filter(|entry| entry.in_use()).map(|entry| entry.key.clone()).collect()
    }

    /// Changes shortly before or after the stages in use, and with them the free memory, may have changed.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.inner.entries.changes.subscribe()
    }

    /// Stages of a model that are loaded, or being loaded: layers, and whether they compute the head.
    pub fn of(&self, model: ModelId) -> Vec<(LayerRange, bool)> {
        let entries = self.inner.entries.lock();
        let stages = entries.by_key.keys().filter(|key| key.model == model);
        stages.map(|key| (key.layers, key.head)).collect()
    }

    /// How many stages are loaded, and how many sessions they serve.
    pub fn counts(&self) -> (u32, u32) {
        let entries = self.inner.entries.lock();
        let all = self.inner.limits.stage.max_sessions;
        let taken = |entry: &Arc<Entry>| all - entry.permits.available_permits() as u32;
        (entries.by_key.len() as u32, entries.by_key.values().map(taken).sum())
    }

    /// The loaded stages, for status.
    pub fn loaded(&self) -> Vec<(StageKey, StageSpec)> {
        let entries = self.inner.entries.lock();
        let loaded = |entry: &Arc<Entry>| entry.cell.get().map(|stage| (entry.key.clone(), stage.spec().clone()));
        entries.by_key.values().filter_map(loaded).collect()
    }

    /// Admits a session to a stage. Loads the stage if need be, and waits for a slot where all are in use. Also returns
    /// the milliseconds of loading. Cancel-safe: a dropped admission holds nothing.
    pub async fn acquire(&self, key: StageKey, request: SlotRequest<'_>) -> Result<(SlotLease, u32), Fault> {
        let manifest = self.inner.catalog.manifest(key.model).ok_or_else(|| not_known(key.model))?;
        let engine = self.engine(&key.engine)?;
        self.check_cut(&engine, &manifest, &key)?;
        let entry = self.find_or_wait(engine.as_ref(), &manifest, &key, &request).await?;
        self.check_context(entry.context, request.least)?;
        let context = entry.context;
        entry.earlier_route_gone(&request.owner).await;
        let permit = Some(self.permit_in(&entry, &request).await?);
        let TakenSlot { slot, cached, stale, evicted } = self.take(&entry, request)?;
        let held = HeldSlot { entry, slot, permit, content: SlotContent::Unknown };
        self.inner.entries.changes.send_replace(());
        let began = Instant::now();
        let cell = &held.entry.cell;
        let was_loaded = cell.initialized();
        let handle = cell.get_or_try_init(|| self.load(engine, &held.entry)).await?.clone();
        let cached = prepare(&handle, slot, cached, stale).await.map_err(|error| Fault::new(error.kind(), error))?;
        let load_ms = if was_loaded { 0 } else { began.elapsed().as_millis().try_into().unwrap_or(u32::MAX) };
        let (tasks, held, keep) = (self.inner.tasks.clone(), Some(held), SlotContent::Empty);
        Ok((SlotLease { handle, tasks, slot, held, cached, context, keep, evicted }, load_ms))
    }

    /// Unloads all stages that no session uses.
    pub fn unload_idle(&self) {
        self.unload_idle_where(|_| true);
    }

    /// Unloads those of them that `which` accepts.
    pub fn unload_idle_where(&self, which: impl Fn(&StageKey) -> bool) {
        let mut entries = self.inner.entries.lock();
        entries.evicting.retain(|entry| entry.in_use());
        entries.by_key.retain(|key, entry| entry.in_use() || !which(key));
    }

    /// Waits until all stages without a holder are unloaded and their memory is free.
    pub async fn unloaded(&self) {
        while Arc::strong_count(&self.inner.threads) > 1 {
            tokio::time::sleep(UNLOAD_POLL).await;
        }
    }

    fn check_context(&self, has: u32, least: u32) -> Result<(), Fault> {
        if least > has {
            // The request needs a longer context, so a shorter one is not advised.
            let savings = Savings { context: false, ..self.savings(has) };
            let text = format!(
                "the text and its answer need {least} positions at least, a stage here has {has}; shorten the text, or give \
                 the host a longer `context`, for which it may need {savings}"
            );
            return Err(Fault::new(ErrorKind::ContextOverflow, text));
        }
        Ok(())
    }

    /// A permit for one slot: at once where one is free and no session waits, else when it is this session's turn.
    async fn permit_in(&self, entry: &Entry, request: &SlotRequest<'_>) -> Result<OwnedSemaphorePermit, Fault> {
        if locked(&entry.slots).nobody_waits()
            && let Ok(permit) = entry.permits.clone().try_acquire_owned()
        {
            return Ok(permit);
        }
        let full = || {
            let text = format!(
                "all {} sessions of the stage are in use; try again, or give the host more `sessions`",
                self.inner.limits.stage.max_sessions
            );
            Fault::new(ErrorKind::Overloaded, text)
        };
        let _waiting = self.inner.waiting.take(request.owner.coordinator).ok_or_else(full)?;
        let permit = tokio::time::timeout(SLOT_WAIT, entry.wait(request.owner.coordinator).permit());
        match request.over.run_until_cancelled(permit).await {
            None => Err(over()),
            Some(permit) => permit.map_err(|_| full()),
        }
    }

    /// Takes a slot for a session that has a permit.
    fn take(&self, entry: &Entry, request: SlotRequest) -> Result<TakenSlot, Fault> {
        let mut entries = self.inner.entries.lock();
        entries.clock += 1;
        let taken = locked(&entry.slots).take(request.owner, request.prefix, entries.clock);
        taken.ok_or_else(|| Fault::new(ErrorKind::Internal, "a permit without a slot"))
    }
}

fn over() -> Fault {
    Fault::new(ErrorKind::Cancelled, "the session has ended before it began")
}

fn not_known(model: ModelId) -> Fault {
    Fault::new(ErrorKind::ModelNotFound, format!("model {} is not known here", model.short()))
}

#[cfg(test)]
pub(in crate::pipeline) mod tests;
