//! How much disk the catalogue's files may take, where the host has set a bound: promised before the first byte comes.

use std::sync::PoisonError;

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
        let mut promised = self.inner.promised.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = promised.saturating_add(bytes);
        if let Some(max) = self.inner.max_bytes {
            let used = self.layout().used()?.saturating_add(*promised);
            if used.saturating_add(bytes) > max {
                return Err(ModelError::Budget { needed: bytes, used, max });
            }
        }
        *promised = wanted;
        Ok(Reservation { catalog: self.clone(), left: bytes })
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
        let mut promised = self.catalog.inner.promised.lock().unwrap_or_else(PoisonError::into_inner);
        *promised = promised.saturating_sub(spent);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.spend(self.left);
    }
}
