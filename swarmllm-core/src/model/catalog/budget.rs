//! How much disk the catalogue's files may take, where the host has set a bound: promised before the first byte comes.

use std::collections::HashSet;
use std::sync::{MutexGuard, PoisonError};

use super::Catalog;
use crate::base::ShardId;
use crate::model::{ModelError, ShardEntry};

/// Bytes that somebody is about to write. What is left of them is given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    catalog: Catalog,
    left: u64,
    /// Shards that will be gone on with: what is here of them stays.
    awaited: Vec<ShardId>,
}

/// All that is reserved.
#[derive(Debug, Default)]
pub(super) struct Promised {
    bytes: u64,
    awaited: Vec<ShardId>,
}

impl Catalog {
    /// Promises room for so many bytes more, or refuses where they would go beyond the catalogue's bound, with all that
    /// lies there already and what was promised to others. What is left of transfers that nobody goes on with goes for it, as
    /// far as it must.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, ModelError> {
        self.reserve_awaiting(bytes, Vec::new())
    }

    fn reserve_awaiting(&self, bytes: u64, awaited: Vec<ShardId>) -> Result<Reservation, ModelError> {
        let mut promised = self.promised();
        if let Some(max) = self.inner.max_bytes {
            let needed = |used: u64| used.saturating_add(promised.bytes).saturating_add(bytes).saturating_sub(max);
            let stays = promised.awaited.iter().chain(&awaited).copied().collect();
            let excess = needed(self.layout().used()?);
            if excess > 0 && self.idle_bytes(&stays)? >= excess {
                self.drop_idle(excess, &stays)?;
            }
            let used = self.layout().used()?;
            if needed(used) > 0 {
                return Err(ModelError::Budget { needed: bytes, used: used.saturating_add(promised.bytes), max });
            }
        }
        promised.bytes = promised.bytes.saturating_add(bytes);
        promised.awaited.extend(&awaited);
        Ok(Reservation { catalog: self.clone(), left: bytes, awaited })
    }

    /// Shards whose transfer somebody has room reserved for.
    pub(super) fn awaited(&self) -> HashSet<ShardId> {
        self.promised().awaited.iter().copied().collect()
    }

    /// How far so many bytes more would go beyond the bound, where they would.
    pub fn excess(&self, bytes: u64) -> Result<Option<u64>, ModelError> {
        let Some(max) = self.inner.max_bytes else { return Ok(None) };
        let wanted = self.layout().used()?.saturating_add(self.promised().bytes).saturating_add(bytes);
        Ok(wanted.checked_sub(max).filter(|excess| *excess > 0))
    }

    fn promised(&self) -> MutexGuard<'_, Promised> {
        self.inner.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for what is missing here of these shards.
    pub fn reserve_shards(&self, shards: &[ShardEntry]) -> Result<Reservation, ModelError> {
        let missing = |shard: &ShardEntry| {
            let here = std::fs::metadata(self.layout().partial(&shard.id)).map_or(0, |metadata| metadata.len());
            shard.size.saturating_sub(here)
        };
        let absent: Vec<&ShardEntry> = shards.iter().filter(|shard| !self.has(&shard.id)).collect();
        let awaited = absent.iter().map(|shard| shard.id).collect();
        self.reserve_awaiting(absent.into_iter().map(missing).fold(0, u64::saturating_add), awaited)
    }
}

impl Reservation {
    /// So many of the bytes lie on the disk now, where they are counted.
    pub fn spend(&mut self, bytes: u64) {
        let spent = bytes.min(self.left);
        self.left -= spent;
        let mut promised = self.catalog.promised();
        promised.bytes = promised.bytes.saturating_sub(spent);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.spend(self.left);
        let mut promised = self.catalog.promised();
        for shard in &self.awaited {
            // One of several that await it.
            if let Some(at) = promised.awaited.iter().position(|awaited| awaited == shard) {
                promised.awaited.swap_remove(at);
            }
        }
    }
}
