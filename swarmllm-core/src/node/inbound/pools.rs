//! Pools of what the node answers to peers at once, each peer with a share of them.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::NodeId;
use crate::rt::{Bounds, Place, Shares};

/// Control streams that are read, or answered where that takes no time: `Alive` and `Release` need no other place. A peer may
/// have 128 streams; half of them are more than an honest one has, whose sessions all end at once. The reserve is a place for
/// each connection (512). With requests of 64 KiB that is 64 MiB.
const READING: Bounds = Bounds { all: 512, each: 64, reserve: 512 };
/// Requests that may take long. Loading a stage holds one. The reserve is more than the connections of one address (64).
const WORKING: Bounds = Bounds { all: 64, each: 32, reserve: 128 };
/// Stage streams that are read: one or two for each peer, and as many again while lost ones are replaced.
const STAGE_STREAMS: Bounds = Bounds { all: 512, each: 8, reserve: 512 };
/// Shards that are given away. A pull takes 4 at once. Each has a group of 1 MiB in memory, that is 96 MiB. The
/// reserve is more than the connections of one address.
const UPLOADS: Bounds = Bounds { all: 16, each: 4, reserve: 80 };
/// Peers that are being told to come back for a shard.
const TELLING: Bounds = Bounds { all: 64, each: 8, reserve: 64 };
/// Refusals are told to the log once in this time.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// A peer's place.
pub(crate) type Placed = Place<NodeId>;

/// See the module.
pub(crate) struct InboundPools {
    pub reading: Shares<NodeId>,
    pub working: Shares<NodeId>,
    pub stage_streams: Shares<NodeId>,
    pub uploads: Shares<NodeId>,
    pub telling: Shares<NodeId>,
    refusals: Mutex<Refusals>,
}

/// How many streams were refused.
#[derive(Debug, Default)]
struct Refusals {
    count: u64,
    told: Option<Instant>,
}

impl Refusals {
    /// One more; gives how many there were since they were last told, where that is to be told now.
    fn add(&mut self, now: Instant) -> Option<u64> {
        self.count += 1;
        let due = self.told.is_none_or(|told| now.duration_since(told) >= TOLD_EVERY);
        due.then(|| {
            self.told = Some(now);
            std::mem::take(&mut self.count)
        })
    }
}

impl InboundPools {
    pub fn new() -> Self {
        Self {
            reading: Shares::new(READING),
            working: Shares::new(WORKING),
            stage_streams: Shares::new(STAGE_STREAMS),
            uploads: Shares::new(UPLOADS),
            telling: Shares::new(TELLING),
            refusals: Mutex::default(),
        }
    }

    /// A place, or a word in the log: one in a minute, since peers can be refused as often as they like.
    pub fn take(&self, pool: &Shares<NodeId>, peer: NodeId, what: &'static str) -> Option<Placed> {
        let place = pool.take(peer);
        if place.is_none() {
            tracing::debug!(%peer, what, "too many at once: a stream was refused");
            let told = self.refusals.lock().unwrap_or_else(PoisonError::into_inner).add(Instant::now());
            if let Some(count) = told {
                tracing::warn!(count, last = %peer, what, "streams of peers were refused: too many at once");
            }
        }
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_once_in_a_while_with_their_number() {
        let (mut refusals, now) = (Refusals::default(), Instant::now());
        assert_eq!(refusals.add(now), Some(1));
        assert!((0..9999).all(|_| refusals.add(now + TOLD_EVERY / 2).is_none()));
        assert_eq!(refusals.add(now + TOLD_EVERY), Some(10_000));
    }
}
