//! The disk budget of the catalogue: bytes are reserved before the first one is written.

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};

use super::Catalog;
use crate::base::ShardId;
use crate::model::{ModelError, ShardEntry};

/// Reserved bytes. Dropping it releases the rest.
#[derive(Debug)]
pub struct Reservation {
    catalog: Catalog,
    left: u64,
    /// Shards whose transfer will be resumed; their partial files stay.
    awaited: Vec<ShardId>,
}

/// The sum of all reservations.
#[derive(Debug, Default)]
pub(super) struct Reserved {
    bytes: u64,
    awaited: Vec<ShardId>,
}

impl Catalog {
    /// Reserves `bytes`. Refuses them if existing files and all reservations would exceed the catalogue's bound. Idle
    /// transfers are removed as far as necessary.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, ModelError> {
        self.reserve_awaiting(bytes, Vec::new())
    }

    fn reserve_awaiting(&self, bytes: u64, awaited: Vec<ShardId>) -> Result<Reservation, ModelError> {
        let mut reserved = self.reserved();
        if let Some(max) = self.inner.max_bytes {
            let needed = |used: u64| used.saturating_add(reserved.bytes).saturating_add(bytes).saturating_sub(max);
            let stays = reserved.awaited.iter().chain(&awaited).copied().collect();
            let excess = needed(self.layout().used()?);
            if excess > 0 && self.idle_transfer_bytes(&stays)? >= excess {
                self.remove_idle_transfers(excess, &stays)?;
            }
            let used = self.layout().used()?;
            if needed(used) > 0 {
                return Err(ModelError::Budget { needed: bytes, used: used.saturating_add(reserved.bytes), max });
            }
        }
        reserved.bytes = reserved.bytes.saturating_add(bytes);
        reserved.awaited.extend(&awaited);
        Ok(Reservation { catalog: self.clone(), left: bytes, awaited })
    }

    /// Shards of open reservations.
    pub(super) fn awaited(&self) -> HashSet<ShardId> {
        self.reserved().awaited.iter().copied().collect()
    }

    /// By how many bytes `bytes` more would exceed the bound; `None` if they fit.
    pub fn excess(&self, bytes: u64) -> Result<Option<u64>, ModelError> {
        let Some(max) = self.inner.max_bytes else { return Ok(None) };
        let wanted = self.layout().used()?.saturating_add(self.reserved().bytes).saturating_add(bytes);
        Ok(wanted.checked_sub(max).filter(|excess| *excess > 0))
    }

    fn reserved(&self) -> MutexGuard<'_, Reserved> {
        self.inner.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves the missing bytes of these shards.
    pub fn reserve_shards(&self, shards: &[ShardEntry]) -> Result<Reservation, ModelError> {
        let missing = |shard: &ShardEntry| {
            let written = std::fs::metadata(self.layout().partial(&shard.id)).map_or(0, |metadata| metadata.len());
            shard.size.saturating_sub(written)
        };
        let absent: Vec<&ShardEntry> = shards.iter().filter(|shard| !self.has(&shard.id)).collect();
        let awaited = absent.iter().map(|shard| shard.id).collect();
        self.reserve_awaiting(absent.into_iter().map(missing).fold(0, u64::saturating_add), awaited)
    }
}

impl Reservation {
    /// Releases `bytes` that are on disk now and count there.
    pub fn spend(&mut self, bytes: u64) {
        let spent = bytes.min(self.left);
        self.left -= spent;
        let mut reserved = self.catalog.reserved();
        reserved.bytes = reserved.bytes.saturating_sub(spent);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.spend(self.left);
        let mut reserved = self.catalog.reserved();
        for shard in &self.awaited {
            // Several reservations may await it; remove one entry.
            if let Some(at) = reserved.awaited.iter().position(|awaited| awaited == shard) {
                reserved.awaited.swap_remove(at);
            }
        }
    }
}
