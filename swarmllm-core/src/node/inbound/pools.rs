//! Bounded pools of concurrent work for peers. Each peer has a share of each pool.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::NodeId;
use crate::rt::{FairPool, PoolLimits, PoolPermit};

/// Control streams being read or answered at once; `Alive` and `Release` need no other permit. A peer may have 128 streams;
/// half of them is more than an honest peer needs when all its sessions end together. The reserve has one permit per
/// connection (512). With requests of 64 KiB that is 64 MiB.
const READING: PoolLimits = PoolLimits { total: 512, per_key: 64, reserve: 512 };
/// Slow requests, such as loading a stage. The reserve exceeds the connections of one address (64).
const WORKING: PoolLimits = PoolLimits { total: 64, per_key: 32, reserve: 128 };
/// Stage streams being read: one or two per peer, and as many again while lost ones are replaced.
const STAGE_STREAMS: PoolLimits = PoolLimits { total: 512, per_key: 8, reserve: 512 };
/// Shards being sent. A pull fetches 4 at once. Each holds a group of 1 MiB in memory, in all 96 MiB. The reserve exceeds
/// the connections of one address.
const UPLOADS: PoolLimits = PoolLimits { total: 16, per_key: 4, reserve: 80 };
/// Busy replies to shard requests.
const BUSY_REPLIES: PoolLimits = PoolLimits { total: 64, per_key: 8, reserve: 64 };
/// Least time between two warnings about refusals.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// A peer's permit in a pool; released when dropped.
pub(crate) type Permit = PoolPermit<NodeId>;

/// See the module.
pub(crate) struct InboundPools {
    pub reading: FairPool<NodeId>,
    pub working: FairPool<NodeId>,
    pub stage_streams: FairPool<NodeId>,
    pub uploads: FairPool<NodeId>,
    pub busy_replies: FairPool<NodeId>,
    refusals: Mutex<Refusals>,
}

/// Refused streams since the last warning.
#[derive(Debug, Default)]
struct Refusals {
    count: u64,
    warned: Option<Instant>,
}

impl Refusals {
    /// Counts a refusal; returns the count since the last warning if a warning is due.
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        let due = self.warned.is_none_or(|warned| now.duration_since(warned) >= WARN_INTERVAL);
        due.then(|| {
            self.warned = Some(now);
            std::mem::take(&mut self.count)
        })
    }
}

impl InboundPools {
    pub fn new() -> Self {
        Self {
            reading: FairPool::new(READING),
            working: FairPool::new(WORKING),
            stage_streams: FairPool::new(STAGE_STREAMS),
            uploads: FairPool::new(UPLOADS),
            busy_replies: FairPool::new(BUSY_REPLIES),
            refusals: Mutex::default(),
        }
    }

    /// Takes a permit, or logs the refusal: one warning a minute, since peers can provoke refusals at will.
    pub fn take(&self, pool: &FairPool<NodeId>, peer: NodeId, what: &'static str) -> Option<Permit> {
        let permit = pool.take(peer);
        if permit.is_none() {
            tracing::debug!(%peer, what, "too many at once: a stream was refused");
            let due = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).add(Instant::now());
            if let Some(count) = due {
                tracing::warn!(count, last = %peer, what, "streams of peers were refused: too many at once");
            }
        }
        permit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_logged_once_a_minute_with_their_count() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.add(now), Some(1));
        assert!((0..9999).all(|_| refusals.add(now + WARN_INTERVAL / 2).is_none()));
        assert_eq!(refusals.add(now + WARN_INTERVAL), Some(10_000));
    }
}
