//! Memory for stages: a stage is made where its weights and the KV of its sessions fit into the node's budget, beside what others use.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::{Claim, Entries, Entry, Hold, SLOT_WAIT, StageKey, StageTable, in_use, locked, over};
use crate::base::{Bytes, ErrorKind, Fault, LayerRange, ModelId, NodeId};
use crate::engine::{Engine, StageConfig};
use crate::model::Manifest;
use crate::pipeline::context::{self, Growth, Savings};
use crate::pipeline::room::{self, Room, StageUse};
use crate::rt::Place;

/// Time that a session waits for memory: as for a slot.
const ROOM_WAIT: Duration = SLOT_WAIT;
/// How often it looks whether stages are gone whose sessions were evicted, which takes milliseconds.
const ROOM_POLL: Duration = Duration::from_millis(20);
/// The same where it is another's turn, of which it is told; to be sure.
const TURN_POLL: Duration = Duration::from_millis(500);

/// A session's wait for memory. Ends when dropped.
struct RoomWait<'a> {
    table: &'a StageTable,
    ticket: u64,
    _place: Place<NodeId>,
}

/// There is no memory for a stage.
struct NoRoom {
    /// When there may be some, where that can be told.
    again: Option<Instant>,
    fault: Fault,
}

impl StageTable {
    /// Bytes that a stage of this model would take here, with the usual context.
    pub fn memory_of(&self, engine: &dyn Engine, manifest: &Manifest, layers: LayerRange, head: bool) -> u64 {
        engine.memory(manifest, layers, head, &self.inner.limits.stage)
    }

    /// The same with a context of so many positions.
    pub fn memory_with(
        &self,
        engine: &dyn Engine,
        manifest: &Manifest,
        (layers, head): (LayerRange, bool),
        context: u32,
    ) -> u64 {
        engine.memory(manifest, layers, head, &StageConfig { context, ..self.inner.limits.stage.clone() })
    }

    /// Contexts that plans may count on, longest first.
    pub fn planned_contexts(&self, manifest: &Manifest) -> impl Iterator<Item = u32> {
        let limits = &self.inner.limits;
        context::planned(limits.stage.context.min(manifest.context)).take(if limits.grows { usize::MAX } else { 1 })
    }

    /// Settings here by which stages with a context of so many positions would take less memory.
    pub fn savings(&self, context: u32) -> Savings {
        Savings::of(self.inner.limits.stage.max_sessions, context)
    }

    /// Bytes taken by loaded stages.
    pub fn memory_used(&self) -> u64 {
        locked(&self.inner.entries).used()
    }

    /// Bytes that a new stage of a coordinator which has nothing here may take: stages that nobody uses are unloaded for it,
    /// and sessions evicted that may be.
    pub fn memory_free(&self) -> u64 {
        self.free(&locked(&self.inner.entries))
    }

    fn free(&self, entries: &Entries) -> u64 {
        let (budget, uses) = (self.inner.limits.memory, entries.uses().1);
        let busy: u64 = uses.iter().map(|stage| stage.memory).sum();
        budget.saturating_sub(busy.saturating_sub(room::spare(&uses, budget, Instant::now())))
    }

    /// The stage's entry, which is in use as long as somebody holds it. Waits for memory that is about to be free.
    pub(super) async fn find_or_wait(
        &self,
        engine: &dyn Engine,
        manifest: &Manifest,
        key: &StageKey,
        claim: &Claim<'_>,
    ) -> Result<Hold, Fault> {
        let (until, coordinator) = (Instant::now() + ROOM_WAIT, claim.owner.coordinator);
        let (mut moved, mut wait) = (self.changes(), None::<RoomWait>);
        loop {
            moved.borrow_and_update();
            let ticket = wait.as_ref().map(|wait| wait.ticket);
            let NoRoom { again, fault } = match self.find_or_make(engine, manifest, key, claim, ticket) {
                Ok(entry) => return Ok(entry),
                Err(none) => none,
            };
            let Some(again) = again.filter(|again| *again < until) else { return Err(fault) };
            if wait.is_none() {
                wait = Some(self.wait_for_room(coordinator).ok_or(fault)?);
            }
            if claim.over.run_until_cancelled(timeout_at(again, moved.changed())).await.is_none() {
                return Err(over());
            }
        }
    }

    /// Begins to wait for memory, where so many may.
    fn wait_for_room(&self, coordinator: NodeId) -> Option<RoomWait<'_>> {
        let _place = self.inner.waiting.take(coordinator)?;
        let mut entries = locked(&self.inner.entries);
        entries.clock += 1;
        let ticket = entries.clock;
        entries.waiting.push((ticket, coordinator));
        Some(RoomWait { table: self, ticket, _place })
    }

    /// The same, at once. A stage that no session uses and whose context is shorter than what is claimed is loaded anew where it
    /// has a longer one now.
    fn find_or_make(
        &self,
        engine: &dyn Engine,
        manifest: &Manifest,
        key: &StageKey,
        claim: &Claim<'_>,
        ticket: Option<u64>,
    ) -> Result<Hold, NoRoom> {
        let mut entries = locked(&self.inner.entries);
        let enough = |entry: &&Arc<Entry>| entry.context >= claim.least || in_use(entry);
        if let Some(entry) = entries.by_key.get(key).filter(enough) {
            return Ok(Hold::new(self, &entries, entry));
        }
        let short = entries.by_key.remove(key);
        let context = self.new_context(&entries, engine, manifest, key.layers, key.head);
        if let Some(entry) = short.filter(|entry| entry.context >= context) {
            let hold = Hold::new(self, &entries, &entry);
            entries.by_key.insert(key.clone(), entry);
            return Ok(hold);
        }
        let memory = self.memory_with(engine, manifest, (key.layers, key.head), context);
        self.make_room(&mut entries, claim.owner.coordinator, ticket, (memory, context))?;
        let gpu_layers = self.gpu_layers(&entries, key);
        let entry = Arc::new(Entry::new(key.clone(), memory, context, gpu_layers, &self.inner.limits));
        let hold = Hold::new(self, &entries, &entry);
        entries.by_key.insert(key.clone(), entry);
        Ok(hold)
    }

    /// Positions of each session of a stage that were loaded now: beside those that are loaded already.
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
        let (unused, free) = (limits.memory.saturating_sub(entries.used()), self.free(entries));
        let memory = |context| self.memory_with(engine, manifest, (layers, head), context);
        Growth { usual, own: manifest.context, unused, free, memory: &memory }.context()
    }

    /// Positions that a session of a model may use here: in its stages that are loaded or, where none is, in stages of these
    /// layers that were loaded now.
    pub fn context_of(&self, engine: &dyn Engine, id: ModelId, manifest: &Manifest, held: &[LayerRange]) -> u32 {
        let entries = locked(&self.inner.entries);
        let loaded = entries.by_key.values().filter(|entry| entry.key.model == id).map(|entry| entry.context).min();
        let head = |layers: &LayerRange| layers.end == manifest.layers;
        let new = |layers: &LayerRange| self.new_context(&entries, engine, manifest, *layers, head(layers));
        loaded.or_else(|| held.iter().map(new).min()).unwrap_or_else(|| self.most_context(manifest))
    }

    /// Positions that a session of a model may have at most, wherever its stages are.
    pub fn most_context(&self, manifest: &Manifest) -> u32 {
        let limits = &self.inner.limits;
        if limits.grows { manifest.context } else { limits.stage.context.min(manifest.context) }
    }

    /// Unloads stages that nobody uses, longest unused first, until a stage of `memory` bytes fits. Where all of them are too few, sessions are
    /// evicted whose stages make room; until they have ended, there is none. Of coordinators that wait, the one that has the
    /// least memory goes first.
    fn make_room(
        &self,
        entries: &mut Entries,
        coordinator: NodeId,
        ticket: Option<u64>,
        (memory, context): (u64, u32),
    ) -> Result<(), NoRoom> {
        let (budget, now, soon) = (self.inner.limits.memory, Instant::now(), Some(Instant::now() + ROOM_POLL));
        let no_room = |again, used| {
            let text = format!(
                "the stage takes {}, {} of the budget of {} are in use; give the host {}, or let more hosts share the model",
                Bytes(memory),
                Bytes(used),
                Bytes(budget),
                self.savings(context)
            );
            NoRoom { again, fault: Fault::new(ErrorKind::OutOfMemory, text) }
        };
        entries.leaving.retain(in_use);
        let (keys, uses) = entries.uses();
        let busy: u64 = uses.iter().map(|stage| stage.memory).sum();
        let lacking = busy.saturating_add(memory).saturating_sub(budget);
        // Who needs no eviction waits for nobody's.
        if lacking > 0 && !entries.is_next(coordinator, ticket, &uses) {
            return Err(no_room(Some(now + TURN_POLL), busy));
        }
        match room::make_room(&uses, budget, coordinator, lacking, now) {
            Room::Evict(evicted) => evicted.iter().for_each(|index| entries.evict(&keys[*index])),
            Room::Later(at) => return Err(no_room(Some(at), busy)),
            Room::Never => return Err(no_room(None, busy)),
        }
        while entries.used().saturating_add(memory) > budget {
            let idle = entries.by_key.values().filter(|entry| !in_use(entry));
            let oldest = idle.min_by_key(|entry| locked(&entry.slots).last_used()).map(|entry| entry.key.clone());
            let Some(oldest) = oldest else { return Err(no_room(soon, busy)) };
            entries.by_key.remove(&oldest);
        }
        Ok(())
    }
}

impl Entries {
    /// All that take memory.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.by_key.values().chain(&self.leaving)
    }

    /// Bytes that they take.
    fn used(&self) -> u64 {
        self.all().map(|entry| entry.memory).sum()
    }

    /// The stages that are in use and do not leave, and what uses them.
    fn uses(&self) -> (Vec<StageKey>, Vec<StageUse>) {
        let used = self.by_key.iter().filter(|(_, entry)| in_use(entry));
        used.map(|(key, entry)| (key.clone(), stage_use(entry))).unzip()
    }

    /// Whether it is the turn of this coordinator, which waits under this number or has just come.
    fn is_next(&self, coordinator: NodeId, ticket: Option<u64>, uses: &[StageUse]) -> bool {
        let held = room::held(uses);
        let rank = |ticket, coordinator| (held.get(&coordinator).copied().unwrap_or(0), ticket);
        let ours = rank(ticket.unwrap_or(u64::MAX), coordinator);
        self.waiting.iter().all(|(ticket, coordinator)| ours <= rank(*ticket, *coordinator))
    }

    /// Evicts the sessions of a stage.
    pub(super) fn evict(&mut self, key: &StageKey) {
        if let Some(entry) = self.by_key.remove(key) {
            locked(&entry.slots).evict_all();
            self.leaving.push(entry);
        }
    }
}

/// What uses a stage. It is idle only where all who hold its entry are idle sessions.
fn stage_use(entry: &Arc<Entry>) -> StageUse {
    let slots = locked(&entry.slots);
    let sessions_only = entry.holds.load(Ordering::Relaxed) == slots.taken();
    let (coordinators, idle) = (slots.coordinators(), slots.idle().filter(|_| sessions_only));
    StageUse { memory: entry.memory, coordinators, idle }
}

impl Drop for RoomWait<'_> {
    fn drop(&mut self) {
        locked(&self.table.inner.entries).waiting.retain(|(ticket, _)| *ticket != self.ticket);
        self.table.inner.moves.send_replace(());
    }
}
