//! Memory for stages: a stage is made where its weights and the KV of its sessions fit into the node's budget, beside
//! the stages in use.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::entries::{Entries, Entry, EntryHold, StageKey};
use super::{SLOT_WAIT, SlotRequest, StageTable, over};
use crate::base::{Bytes, ErrorKind, Fault, LayerRange, ModelId, NodeId};
use crate::engine::{Engine, StageConfig};
use crate::model::Manifest;
use crate::pipeline::host::context::{self, ContextSizing, Savings};
use crate::pipeline::host::eviction::{self, MemoryDecision, StageUse};
use crate::rt::PoolPermit;

/// Time that a session waits for memory: as for a slot.
const MEMORY_WAIT: Duration = SLOT_WAIT;
/// Interval at which a waiting session checks whether evicted stages have ended, which takes milliseconds.
const EVICTION_POLL: Duration = Duration::from_millis(20);
/// The interval while it is another session's turn. The end of that turn is notified, so this is a fallback.
const TURN_POLL: Duration = Duration::from_millis(500);

/// A session's wait for memory. Ends when dropped.
struct MemoryWait<'a> {
    table: &'a StageTable,
    ticket: u64,
    _permit: PoolPermit<NodeId>,
}

/// There is no memory for a stage.
struct MemoryShortage {
    /// When to try again; nothing where no time is known.
    retry_at: Option<Instant>,
    fault: Fault,
}

impl StageTable {
    /// Bytes that a stage of this model would take here with the usual context.
    pub fn memory_of(&self, engine: &dyn Engine, manifest: &Manifest, layers: LayerRange, head: bool) -> u64 {
        engine.memory(manifest, layers, head, &self.inner.limits.stage)
    }

    /// The same with a context of `context` positions.
    pub fn memory_with(
        &self,
        engine: &dyn Engine,
        manifest: &Manifest,
        (layers, head): (LayerRange, bool),
        context: u32,
    ) -> u64 {
        engine.memory(manifest, layers, head, &StageConfig { context, ..self.inner.limits.stage.clone() })
    }

    /// Contexts that plans may assume, longest first.
    pub fn planned_contexts(&self, manifest: &Manifest) -> impl Iterator<Item = u32> {
        let limits = &self.inner.limits;
        context::planned(limits.stage.context.min(manifest.context)).take(if limits.grows { usize::MAX } else { 1 })
    }

    /// Settings here that can be lowered to save memory of stages with a context of `context` positions.
    pub fn savings(&self, context: u32) -> Savings {
        Savings::of(self.inner.limits.stage.max_sessions, context)
    }

    /// Bytes taken by loaded stages.
    pub fn memory_used(&self) -> u64 {
        self.inner.entries.lock().memory_used()
    }

    /// Bytes that a new stage may take for a coordinator without memory here: unused stages are unloaded for it, and
    /// sessions are evicted that may be.
    pub fn memory_free(&self) -> u64 {
        self.free(&self.inner.entries.lock())
    }

    fn free(&self, entries: &Entries) -> u64 {
        let (budget, uses) = (self.inner.limits.memory, entries.uses().1);
        let busy: u64 = uses.iter().map(|stage| stage.memory).sum();
        budget.saturating_sub(busy.saturating_sub(eviction::reclaimable(&uses, budget, Instant::now())))
    }

    /// The stage's entry, which is in use while it is held. Waits for memory that is about to be free.
    pub(super) async fn find_or_wait(
        &self,
        engine: &dyn Engine,
        manifest: &Manifest,
        key: &StageKey,
        request: &SlotRequest<'_>,
    ) -> Result<EntryHold, Fault> {
        let (deadline, coordinator) = (Instant::now() + MEMORY_WAIT, request.owner.coordinator);
        let (mut changes, mut wait) = (self.changes(), None::<MemoryWait>);
        loop {
            changes.borrow_and_update();
            let ticket = wait.as_ref().map(|wait| wait.ticket);
            let MemoryShortage { retry_at, fault } = match self.find_or_make(engine, manifest, key, request, ticket) {
                Ok(entry) => return Ok(entry),
                Err(shortage) => shortage,
            };
            let Some(retry_at) = retry_at.filter(|retry_at| *retry_at < deadline) else { return Err(fault) };
            if wait.is_none() {
                wait = Some(self.wait_for_memory(coordinator).ok_or(fault)?);
            }
            if request.over.run_until_cancelled(timeout_at(retry_at, changes.changed())).await.is_none() {
                return Err(over());
            }
        }
    }

    /// Begins to wait for memory; nothing where too many sessions wait.
    fn wait_for_memory(&self, coordinator: NodeId) -> Option<MemoryWait<'_>> {
        let _permit = self.inner.waiting.take(coordinator)?;
        let mut entries = self.inner.entries.lock();
        entries.clock += 1;
        let ticket = entries.clock;
        entries.waiting.push((ticket, coordinator));
        Some(MemoryWait { table: self, ticket, _permit })
    }

    /// The stage's entry without a wait. An unused stage whose context is shorter than requested is loaded anew where
    /// its context would be longer now.
    fn find_or_make(
        &self,
        engine: &dyn Engine,
        manifest: &Manifest,
        key: &StageKey,
        request: &SlotRequest<'_>,
        ticket: Option<u64>,
    ) -> Result<EntryHold, MemoryShortage> {
        let table = &self.inner.entries;
        let mut entries = table.lock();
        let enough = |entry: &&Arc<Entry>| entry.context >= request.least || entry.in_use();
        if let Some(entry) = entries.by_key.get(key).filter(enough) {
            return Ok(EntryHold::new(table, &entries, entry));
        }
        let short = entries.by_key.remove(key);
        let context = self.new_context(&entries, engine, manifest, key.layers, key.head);
        if let Some(entry) = short.filter(|entry| entry.context >= context) {
            let hold = EntryHold::new(table, &entries, &entry);
            entries.by_key.insert(key.clone(), entry);
            return Ok(hold);
        }
        let memory = self.memory_with(engine, manifest, (key.layers, key.head), context);
        self.free_memory_for(&mut entries, request.owner.coordinator, ticket, (memory, context))?;
        let gpu_layers = self.gpu_layers(&entries, key);
        let max_sessions = self.inner.limits.stage.max_sessions;
        let entry = Arc::new(Entry::new(key.clone(), memory, context, gpu_layers, max_sessions));
        let hold = EntryHold::new(table, &entries, &entry);
        entries.by_key.insert(key.clone(), entry);
        Ok(hold)
    }

    /// Positions of each session of a stage that would be loaded now, beside the loaded stages.
    fn new_context(
        &self,
        entries: &Entries,
        engine: &dyn Engine,
        manifest: &Manifest,
        layers: LayerRange,
        head: bool,
    ) -> u32 {
        let limits = &self.inner.limits;
        let usual = limits.stage.context.min(manifest.context);
        if !limits.grows {
            return usual;
        }
        let (unused, free) = (limits.memory.saturating_sub(entries.memory_used()), self.free(entries));
        let memory = |context| self.memory_with(engine, manifest, (layers, head), context);
        ContextSizing { usual, trained: manifest.context, unused, free, memory: &memory }.context()
    }

    /// Positions that a session of a model may use here: in the model's loaded stages or, where none is loaded, in
    /// stages of these layers that would be loaded now.
    pub fn context_of(&self, engine: &dyn Engine, id: ModelId, manifest: &Manifest, held: &[LayerRange]) -> u32 {
        let entries = self.inner.entries.lock();
        let loaded = entries.by_key.values().filter(|entry| entry.key.model == id).map(|entry| entry.context).min();
        let head = |layers: &LayerRange| layers.end == manifest.layers;
        let new = |layers: &LayerRange| self.new_context(&entries, engine, manifest, *layers, head(layers));
        loaded.or_else(|| held.iter().map(new).min()).unwrap_or_else(|| self.most_context(manifest))
    }

    /// Most positions that a session of a model may have, wherever its stages are.
    pub fn most_context(&self, manifest: &Manifest) -> u32 {
        let limits = &self.inner.limits;
        if limits.grows { manifest.context } else { limits.stage.context.min(manifest.context) }
    }

    /// Unloads unused stages, longest unused first, until a stage of `memory` bytes fits. Where all unused stages are
    /// too little, evicts the sessions of stages in use; there is a shortage until they have ended. Of the waiting
    /// coordinators, the coordinator with the least memory goes first.
    fn free_memory_for(
        &self,
        entries: &mut Entries,
        coordinator: NodeId,
        ticket: Option<u64>,
        (memory, context): (u64, u32),
    ) -> Result<(), MemoryShortage> {
        let (budget, now, soon) = (self.inner.limits.memory, Instant::now(), Some(Instant::now() + EVICTION_POLL));
        let shortage = |retry_at, used| {
            let text = format!(
                "the stage takes {}, {} of the budget of {} are in use; give the host {}, or let more hosts share the model",
                Bytes(memory),
                Bytes(used),
                Bytes(budget),
                self.savings(context)
            );
            MemoryShortage { retry_at, fault: Fault::new(ErrorKind::OutOfMemory, text) }
        };
        entries.evicting.retain(|entry| entry.in_use());
        let (keys, uses) = entries.uses();
        let busy: u64 = uses.iter().map(|stage| stage.memory).sum();
        let lacking = busy.saturating_add(memory).saturating_sub(budget);
        // A session that needs no eviction does not wait for the evictions of others.
        if lacking > 0 && !is_next(&entries.waiting, coordinator, ticket, &uses) {
            return Err(shortage(Some(now + TURN_POLL), busy));
        }
        match eviction::decide(&uses, budget, coordinator, lacking, now) {
            MemoryDecision::Evict(evicted) => evicted.iter().for_each(|index| entries.evict(&keys[*index])),
            MemoryDecision::RetryAt(at) => return Err(shortage(Some(at), busy)),
            MemoryDecision::Refuse => return Err(shortage(None, busy)),
        }
        while entries.memory_used().saturating_add(memory) > budget {
            let unused = entries.by_key.values().filter(|entry| !entry.in_use());
            let oldest = unused.min_by_key(|entry| entry.last_used()).map(|entry| entry.key.clone());
            let Some(oldest) = oldest else { return Err(shortage(soon, busy)) };
            entries.by_key.remove(&oldest);
        }
        Ok(())
    }
}

/// Whether it is this coordinator's turn among the waits for memory. Its own wait has this ticket; without a ticket it
/// has just come.
fn is_next(waiting: &[(u64, NodeId)], coordinator: NodeId, ticket: Option<u64>, uses: &[StageUse]) -> bool {
    let memory = eviction::memory_by_coordinator(uses);
    let rank = |ticket, coordinator| (memory.get(&coordinator).copied().unwrap_or(0), ticket);
    let ours = rank(ticket.unwrap_or(u64::MAX), coordinator);
    waiting.iter().all(|(ticket, coordinator)| ours <= rank(*ticket, *coordinator))
}

impl Drop for MemoryWait<'_> {
    fn drop(&mut self) {
        let entries = &self.table.inner.entries;
        entries.lock().waiting.retain(|(ticket, _)| *ticket != self.ticket);
        entries.changes.send_replace(());
    }
}
