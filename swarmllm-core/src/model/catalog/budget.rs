//! How much disk the catalogue's files may take, where the host has set a bound: promised before the first byte comes.

use std::sync::{MutexGuard, PoisonError};

use super::Catalog;
use crate::model::{ModelError, ShardEntry};

/// Bytes that somebody is about to write. What is left of them is given back when it is dropped.
#[derive(Debug)]
pub struct Reservation {
    catalog: Catalog,
    left: u64,
}

impl Catalog {
    /// Promises room for so many bytes more, or refuses where they would go beyond the catalogue's bound, with all that
    /// lies there already and what was promised to others.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, ModelError> {
        let mut promised = self.promised();
        if let Some(max) = self.inner.max_bytes {
            let used = self.layout().used()?.saturating_add(*promised);
            if used.saturating_add(bytes) > max {
                return Err(ModelError::Budget { needed: bytes, used, max });
            }
        }
        *promised = promised.saturating_add(bytes);
        Ok(Reservation { catalog: self.clone(), left: bytes })
    }

    /// How far so many bytes more would go beyond the bound, where they would.
    pub fn excess(&self, bytes: u64) -> Result<Option<u64>, ModelError> {
        let Some(max) = self.inner.max_bytes else { return Ok(None) };
        let wanted = self.layout().used()?.saturating_add(*self.promised()).saturating_add(bytes);
        Ok(wanted.checked_sub(max).filter(|excess| *excess > 0))
    }

    fn promised(&self) -> MutexGuard<'_, u64> {
        self.inner.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same for what is missing here of these shards.
    pub fn reserve_shards(&self, shards: &[ShardEntry]) -> Result<Reservation, ModelError> {
        let missing = |shard: &ShardEntry| {
            let here = std::fs::metadata(self.layout().partial(&shard.id)).map_or(0, |metadata| metadata.len());
            shard.size.saturating_sub(here)
        };
        self.reserve(shards.iter().filter(|shard| !self.has(&shard.id)).map(missing).fold(0, u64::saturating_add))
    }
}

impl Reservation {
    /// So many of the bytes lie on the disk now, where they are counted.
    pub fn spend(&mut self, bytes: u64) {
        let spent = bytes.min(self.left);
        self.left -= spent;
        let mut promised = self.catalog.promised();
        *promised = promised.saturating_sub(spent);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.spend(self.left);
    }
}
