//! The entries of a stage table: each stage that takes memory, its holders, and the waits for its slots.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, timeout_at};

use crate::base::{LayerRange, ModelId, NodeId};
use crate::engine::StageHandle;
use crate::pipeline::host::eviction::StageUse;
use crate::pipeline::host::slots::{SlotOwner, Slots};

/// Time that a session waits for the KV of its own earlier route: a step under way is given up well within it.
const EARLIER_ROUTE_WAIT: Duration = Duration::from_secs(2);

/// A stage of a model, and the engine that computes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StageKey {
    /// The model.
    pub model: ModelId,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it computes the head.
    pub head: bool,
    /// The engine's name.
    pub engine: String,
}

/// The locked entries of a table, and the notification of their changes.
#[derive(Default)]
pub(super) struct StageEntries {
    entries: Mutex<Entries>,
    /// Notified when a session gets a slot or frees it.
    pub changes: watch::Sender<()>,
}

impl StageEntries {
    pub fn lock(&self) -> MutexGuard<'_, Entries> {
        locked(&self.entries)
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic in one of these short critical sections cannot leave a harmful half-change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
pub(super) struct Entries {
    pub by_key: HashMap<StageKey, Arc<Entry>>,
    /// Stages whose sessions were evicted and have not all ended. They admit no session.
    pub evicting: Vec<Arc<Entry>>,
    /// The waits for memory, in the order of their begin: tickets, and coordinators.
    pub waiting: Vec<(u64, NodeId)>,
    pub clock: u64,
}

/// A stage that is loaded, or being loaded.
pub(super) struct Entry {
    pub key: StageKey,
    pub memory: u64,
    /// Positions of each session.
    pub context: u32,
    /// Most layers that accelerators compute; the head counts as one.
    pub gpu_layers: u32,
    pub cell: OnceCell<StageHandle>,
    /// One permit for each free slot.
    pub permits: Arc<Semaphore>,
    pub slots: Mutex<Slots>,
    /// Notified of each slot that is freed, and of each wait that ends.
    pub freed: Notify,
    /// How many [`EntryHold`]s there are. Changes only with the table locked.
    holds: AtomicUsize,
}

/// Keeps an entry in use: to use its stage, or to wait for a slot in it. The last hold drops an entry whose sessions
/// were evicted or whose stage was not loaded, which frees its memory. Must not be dropped with the table locked.
pub(super) struct EntryHold {
    table: Arc<StageEntries>,
    entry: Arc<Entry>,
}

impl EntryHold {
    /// Holds an entry of the locked table.
    pub fn new(table: &Arc<StageEntries>, _locked: &Entries, entry: &Arc<Entry>) -> Self {
        entry.holds.fetch_add(1, Ordering::Relaxed);
        Self { table: table.clone(), entry: entry.clone() }
    }
}

impl Deref for EntryHold {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for EntryHold {
    fn drop(&mut self) {
        let mut entries = self.table.lock();
        if self.entry.holds.fetch_sub(1, Ordering::Relaxed) == 1 {
            entries.forget_unused(&self.entry);
        }
        drop(entries);
        self.table.changes.send_replace(());
    }
}

/// A session's wait for a slot. Ends when dropped.
pub(super) struct SlotWait<'a> {
    entry: &'a Entry,
    coordinator: NodeId,
    ticket: u64,
}

impl SlotWait<'_> {
    /// A permit, when it is this session's turn.
    pub async fn permit(self) -> OwnedSemaphorePermit {
        loop {
            let mut freed = std::pin::pin!(self.entry.freed.notified());
            // From here on no notification is missed.
            freed.as_mut().enable();
            let retry = {
                let slots = locked(&self.entry.slots);
                match slots.next() == Some(self.ticket) {
                    true => match self.entry.permits.clone().try_acquire_owned() {
                        Ok(permit) => return permit,
                        Err(_) => slots.evict_for(self.coordinator, Instant::now()),
                    },
                    false => None,
                }
            };
            match retry {
                // A session may be evicted then.
                Some(retry) => {
                    let _ = timeout_at(retry, freed).await;
                }
                None => freed.await,
            }
        }
    }
}

impl Drop for SlotWait<'_> {
    fn drop(&mut self) {
        locked(&self.entry.slots).end_wait(self.ticket);
        self.entry.freed.notify_waiters();
    }
}

impl Entry {
    pub fn new(key: StageKey, memory: u64, context: u32, gpu_layers: u32, max_sessions: u32) -> Self {
        let permits = Arc::new(Semaphore::new(max_sessions as usize));
        let slots = Mutex::new(Slots::new(max_sessions));
        let (cell, freed, holds) = (OnceCell::new(), Notify::new(), AtomicUsize::new(0));
        Self { key, memory, context, gpu_layers, cell, permits, slots, freed, holds }
    }

    /// Whether the entry is held. Exact only with the table locked.
    pub fn in_use(&self) -> bool {
        self.holds() > 0
    }

    /// How many holds there are. Exact only with the table locked.
    pub fn holds(&self) -> usize {
        self.holds.load(Ordering::Relaxed)
    }

    /// Waits until no earlier route of a session has a slot, within [`EARLIER_ROUTE_WAIT`].
    pub async fn earlier_route_gone(&self, owner: &SlotOwner) {
        let gone = async {
            loop {
                let freed = self.freed.notified();
                if !locked(&self.slots).has_earlier(owner) {
                    return;
                }
                freed.await;
            }
        };
        // A timeout only means that the KV is computed again.
        let _ = tokio::time::timeout(EARLIER_ROUTE_WAIT, gone).await;
    }

    /// Begins to wait for a slot.
    pub fn wait(&self, coordinator: NodeId) -> SlotWait<'_> {
        SlotWait { entry: self, coordinator, ticket: locked(&self.slots).begin_wait(coordinator) }
    }

    /// When a slot was last taken, by the table's clock.
    pub fn last_used(&self) -> u64 {
        locked(&self.slots).last_used()
    }

    /// Layers of accelerators that it has, or may get while it is being loaded.
    pub fn gpu_layers(&self) -> u32 {
        self.cell.get().map_or(self.gpu_layers, |stage| stage.spec().config.gpu_layers)
    }

    /// Its use by sessions. It is idle only where all holders are idle sessions.
    pub fn usage(&self) -> StageUse {
        let slots = locked(&self.slots);
        let sessions_only = self.holds() == slots.taken();
        let (coordinators, idle) = (slots.coordinators(), slots.idle().filter(|_| sessions_only));
        StageUse { memory: self.memory, coordinators, idle }
    }
}

impl Entries {
    /// All entries that take memory.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_key.values().chain(&self.evicting)
    }

    /// Bytes that they take.
    pub fn memory_used(&self) -> u64 {
        self.all().map(|entry| entry.memory).sum()
    }

    /// The stages that are in use and not evicting, and their use.
    pub fn uses(&self) -> (Vec<StageKey>, Vec<StageUse>) {
        let used = self.by_key.iter().filter(|(_, entry)| entry.in_use());
        used.map(|(key, entry)| (key.clone(), entry.usage())).unzip()
    }

    /// Evicts the sessions of a stage.
    pub fn evict(&mut self, key: &StageKey) {
        if let Some(entry) = self.by_key.remove(key) {
            locked(&entry.slots).evict_all();
            self.evicting.push(entry);
        }
    }

    /// Removes an unused entry whose sessions were evicted, or whose load failed or was dropped.
    fn forget_unused(&mut self, entry: &Arc<Entry>) {
        self.evicting.retain(|other| !Arc::ptr_eq(other, entry));
        // Another stage of the same key may have replaced an evicted stage.
        if !entry.cell.initialized() && self.by_key.get(&entry.key).is_some_and(|other| Arc::ptr_eq(other, entry)) {
            self.by_key.remove(&entry.key);
        }
    }
}
