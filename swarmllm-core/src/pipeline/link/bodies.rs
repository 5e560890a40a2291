//! Memory for the bodies of inbound stage frames, from the first byte read until the session takes the frame.
//!
//! Each session has memory of its own for one body of the agreed size. Further bodies that wait for the session take
//! bytes of a pool, of which each coordinator has a share: two hosts share one stream for the sessions of all
//! coordinators, and the frames of one coordinator must not take the memory of the others. A frame without memory is
//! not read, nor is anything behind it in its peer's stream: the transport makes the peer wait. Only a session within
//! its window makes the peer wait, for seconds at most. A session with more unread, where the pool has no space for it,
//! ends at once, and its coordinator is told. So the sessions of other coordinators are delayed at times, never ended.
//!
//! `Alive` and `Release` come over streams of their own and need no memory of this pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::NodeId;
use crate::pipeline::link::message::MAX_CHUNKS_IN_FLIGHT;
use crate::rt::{FairPool, PoolLimits, PoolPermit};

/// Bytes of decoded bodies beside each session's own body. An honest session has 8 steps under way, of 512 rows of at
/// most 16,384 numbers: 8 * 512 * 16,384 * 4 bytes are 256 MiB, so that it never waits for itself. Two coordinators may
/// have as much; the reserve is for a coordinator without any.
const POOL_BYTES: PoolLimits = PoolLimits { total: 512 << 20, per_key: 256 << 20, reserve: 256 << 20 };

/// Time for which a frame waits for memory. All frames behind it in the stream wait too, whatever their coordinators.
/// So its session ends then, long before the peer treats the stream as broken (30 s).
const MEMORY_TIMEOUT: Duration = Duration::from_secs(10);

/// The memory of all sessions' bodies.
pub(super) struct BodyPool {
    shared: FairPool<NodeId>,
    timeout: Duration,
}

/// The memory of one body. Freed when dropped.
#[derive(Debug)]
pub(super) enum BodyMemory {
    /// There is no body.
    Empty,
    /// The session's own memory.
    Own { _permit: OwnedSemaphorePermit },
    /// Bytes of the pool.
    Shared { _permit: PoolPermit<NodeId>, _unread: UnreadBytes },
}

/// Why a body gets no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MemoryError {
    /// Its session has ended.
    SessionEnded,
    /// Its session has more than a window unread, and the pool has no space for more.
    WindowExceeded,
    /// The pool had no space in time.
    TimedOut,
}

/// A session's own memory for one body. Its drop ends all waits for it.
pub(super) struct SessionBodies(BodyShare);

/// A session's share of the memory, which its frames wait for.
#[derive(Clone)]
pub(super) struct BodyShare {
    own: Arc<Semaphore>,
    /// Bytes of the pool that the session has, or waits for.
    unread: Arc<AtomicUsize>,
}

/// Bytes of the pool that one body has, or waits for; counted until this is dropped.
#[derive(Debug)]
pub(super) struct UnreadBytes {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl SessionBodies {
    pub fn new() -> Self {
        Self(BodyShare { own: Arc::new(Semaphore::new(1)), unread: Arc::default() })
    }

    /// The session's share of the memory.
    pub fn share(&self) -> BodyShare {
        self.0.clone()
    }
}

impl Drop for SessionBodies {
    fn drop(&mut self) {
        self.0.own.close();
    }
}

impl BodyShare {
    /// Counts `bytes` more, and says whether the sum is within a window of bodies of at most `longest` bytes.
    fn count(&self, bytes: usize, longest: usize) -> (UnreadBytes, bool) {
        let before = self.unread.fetch_add(bytes, Ordering::Relaxed);
        let within = before.saturating_add(bytes) <= MAX_CHUNKS_IN_FLIGHT.saturating_mul(longest);
        (UnreadBytes { all: self.unread.clone(), bytes }, within)
    }
}

impl Drop for UnreadBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl BodyPool {
    pub fn new() -> Self {
        Self::with_limits(POOL_BYTES, MEMORY_TIMEOUT)
    }

    pub fn with_limits(limits: PoolLimits, timeout: Duration) -> Self {
        Self { shared: FairPool::new(limits), timeout }
    }

    /// Memory for a body of `bytes` bytes, in the session's own memory or in the coordinator's share of the pool. A
    /// body of the session has at most `longest` bytes. Cancel-safe.
    pub async fn wait(
        &self,
        coordinator: NodeId,
        share: BodyShare,
        bytes: usize,
        longest: usize,
    ) -> Result<BodyMemory, MemoryError> {
        if bytes == 0 {
            return Ok(BodyMemory::Empty);
        }
        tokio::select! {
            biased;
            own = share.own.clone().acquire_owned() => {
                own.map(|permit| BodyMemory::Own { _permit: permit }).map_err(|_| MemoryError::SessionEnded)
            }
            shared = tokio::time::timeout(self.timeout, self.wait_shared(coordinator, &share, bytes, longest)) => {
                shared.unwrap_or(Err(MemoryError::TimedOut))
            }
        }
    }

    async fn wait_shared(
        &self,
        coordinator: NodeId,
        share: &BodyShare,
        bytes: usize,
        longest: usize,
    ) -> Result<BodyMemory, MemoryError> {
        let (_unread, within) = share.count(bytes, longest);
        let _permit = match within {
            true => self.shared.wait(coordinator, bytes).await,
            false => self.shared.take_many(coordinator, bytes).ok_or(MemoryError::WindowExceeded)?,
        };
        Ok(BodyMemory::Shared { _permit, _unread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::StageConfig;
    use crate::pipeline::link::connection::WRITE_DEADLINE;

    #[test]
    fn the_wait_for_memory_is_at_most_half_of_the_write_deadline() {
        assert!(MEMORY_TIMEOUT * 2 <= WRITE_DEADLINE);
        assert_eq!(BodyPool::new().timeout, MEMORY_TIMEOUT);
    }

    #[test]
    fn a_window_of_an_honest_session_fits_in_its_coordinators_share() {
        const WIDEST: usize = 16_384;
        let window = MAX_CHUNKS_IN_FLIGHT * StageConfig::DEFAULT_MAX_ROWS as usize * WIDEST * size_of::<f32>();
        let PoolLimits { total, per_key, reserve } = POOL_BYTES;
        assert!(window <= per_key && per_key < total && window <= reserve);
        assert!(total + reserve <= 1 << 30, "a gibibyte for all coordinators together");
    }
}
