//! A session's lease of a slot in a stage.

use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::entries::{EntryHold, locked};
use crate::base::NodeId;
use crate::engine::{EngineError, StageHandle};
use crate::pipeline::host::slots::{SlotContent, SlotOwner};
use crate::rt::TaskSet;
use crate::wire::prefix::Prefix;

/// A session's slot in a stage, with KV cells of its own. Freed when dropped.
pub struct SlotLease {
    pub(super) handle: StageHandle,
    pub(super) tasks: TaskSet,
    /// Empty once the slot is being freed.
    pub(super) held: Option<HeldSlot>,
    pub(super) slot: u32,
    pub(super) cached: u32,
    pub(super) context: u32,
    pub(super) keep: SlotContent,
    pub(super) evicted: CancellationToken,
}

/// A taken slot; freed when dropped. Its stage is not unloaded meanwhile.
pub(super) struct HeldSlot {
    pub entry: EntryHold,
    pub slot: u32,
    pub permit: Option<OwnedSemaphorePermit>,
    /// Its content when it is freed.
    pub content: SlotContent,
}

impl HeldSlot {
    fn free(mut self, content: SlotContent) {
        self.content = content;
    }
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        // The slot is free before its permit, so that the holder of a permit finds a slot.
        let content = std::mem::replace(&mut self.content, SlotContent::Unknown);
        locked(&self.entry.slots).free(self.slot, content);
        self.entry.freed.notify_waiters();
        drop(self.permit.take());
        self.entry.freed.notify_waiters();
    }
}

impl SlotLease {
    /// Positions that the session may use.
    pub fn context(&self) -> u32 {
        self.context
    }

    /// Positions of the session's prompt whose KV is in the slot.
    pub fn cached(&self) -> u32 {
        self.cached
    }

    /// Keeps the slot's KV when the lease ends, for prompts of this coordinator that begin with `text`.
    pub fn keep_prefix(&mut self, coordinator: NodeId, text: Prefix) {
        self.keep = if text.ids.is_empty() { SlotContent::Empty } else { SlotContent::Kept(coordinator, text) };
    }

    /// Keeps the KV of the first `held` positions when the lease ends, for the session's next route.
    pub fn keep_for_next_route(&mut self, owner: SlotOwner, held: u32) {
        self.keep = if held == 0 { SlotContent::Empty } else { SlotContent::Broken(owner, held) };
    }

    /// Cancelled when the session must end because others need its slot or memory.
    pub fn evicted(&self) -> CancellationToken {
        self.evicted.clone()
    }

    /// Notes that the session computes from now on.
    pub fn mark_computing(&self) {
        if let Some(held) = &self.held {
            locked(&held.entry.slots).mark_computing(self.slot, Instant::now());
        }
    }

    /// Notes that the session is idle from now on, after `rows` computed rows. A session that has been idle for long
    /// may be evicted; before its first call of this it may not.
    pub fn mark_idle(&self, rows: u32) {
        if let Some(held) = &self.held {
            locked(&held.entry.slots).mark_idle(self.slot, rows, Instant::now());
        }
    }

    /// The stage.
    pub fn stage(&self) -> &StageHandle {
        &self.handle
    }

    /// The session's slot in the stage.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl Drop for SlotLease {
    fn drop(&mut self) {
        let (handle, slot) = (self.handle.clone(), self.slot);
        let keep = std::mem::replace(&mut self.keep, SlotContent::Empty);
        let Some(held) = self.held.take() else { return };
        self.tasks.spawn("release-slot", async move {
            // The slot is free only once its release is queued, so that the next session's first step comes after it.
            let released = match keep {
                SlotContent::Kept(..) | SlotContent::Broken(..) => handle.mark_idle(slot).await,
                SlotContent::Empty | SlotContent::Unknown => handle.release(slot).await,
            };
            if let Err(error) = released {
                tracing::debug!(%error, "a stage ended before its session");
            }
            held.free(keep);
        });
    }
}

/// Leaves only the KV of the first `cached` positions in a slot; returns how many positions are there.
pub(super) async fn prepare(stage: &StageHandle, slot: u32, cached: u32, stale: bool) -> Result<u32, EngineError> {
    if cached > 0 && stage.truncate(slot, cached).await.is_ok() {
        return Ok(cached);
    }
    // There is nothing to reuse, or a sliding window has moved past it.
    if stale || cached > 0 {
        stage.release(slot).await?;
    }
    Ok(0)
}
