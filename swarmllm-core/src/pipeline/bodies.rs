//! Memory for the bodies of stage frames, from the first byte that is read until the session takes the frame.
//!
//! Each session has a place of its own, for one body of the size that was agreed on. Further bodies that wait for it take
//! bytes of a pool, of which each coordinator has a share: two hosts have one stream for the sessions of all coordinators, and
//! one coordinator's frames are not to take what the others need. A frame without memory is not read, nor is anything behind it
//! in its peer's stream: the transport makes the peer wait. Only a session within its window makes it wait, and for seconds at
//! most; one that has more unread while the pool has no room for it ends at once, and its coordinator is told. So the sessions
//! of others are delayed at times, never ended.
//!
//! `Alive` and `Release` come over streams of their own and need no memory of this pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::NodeId;
use crate::pipeline::session::MAX_CHUNKS_IN_FLIGHT;
use crate::rt::{Bounds, Place, Shares};

/// Bytes of decoded bodies beside the one of each session. An honest session has 8 steps under way, of 512 rows of at most
/// 16,384 numbers: 8 * 512 * 16,384 * 4 bytes are 256 MiB, so that it never waits for itself. Two coordinators may have as
/// much; the reserve is for one that has nothing.
const HELD: Bounds = Bounds { all: 512 << 20, each: 256 << 20, reserve: 256 << 20 };

/// Time for which a frame waits for memory. All that its peer has sent behind it waits with it, whoever coordinates that: so its
/// session ends then, long before the peer takes the stream for broken (30 s).
const PATIENCE: Duration = Duration::from_secs(10);

/// The memory of all sessions' bodies. See the module.
pub(super) struct HeldBodies {
    shared: Shares<NodeId>,
    patience: Duration,
}

/// The memory of one body. Given back when dropped.
#[derive(Debug)]
pub(super) enum Held {
    /// There is no body.
    Nothing,
    /// The place of its session.
    Own { _place: OwnedSemaphorePermit },
    /// Bytes of the pool.
    Shared { _place: Place<NodeId>, _unread: Unread },
}

/// Why a body gets no memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoMemory {
    /// Its session has ended.
    Ended,
    /// Its session has more than a window unread, and there is no more room.
    Overfull,
    /// There was no more room for long.
    Late,
}

/// A session's own place. Its end tells those that wait for it.
pub(super) struct Bodies(Body);

/// What a frame of a session waits for.
#[derive(Clone)]
pub(super) struct Body {
    place: Arc<Semaphore>,
    /// Bytes of the pool that the session has.
    unread: Arc<AtomicUsize>,
}

/// Bytes that a session has of the pool, or waits for.
#[derive(Debug)]
pub(super) struct Unread {
    all: Arc<AtomicUsize>,
    bytes: usize,
}

impl Bodies {
    pub fn new() -> Self {
        Self(Body { place: Arc::new(Semaphore::new(1)), unread: Arc::default() })
    }

    /// What a frame of the session waits for.
    pub fn share(&self) -> Body {
        self.0.clone()
    }
}

impl Drop for Bodies {
    fn drop(&mut self) {
        self.0.place.close();
    }
}

impl Body {
    /// So many bytes more, and whether they are within a window of bodies of at most `longest` bytes.
    fn begin(&self, bytes: usize, longest: usize) -> (Unread, bool) {
        let before = self.unread.fetch_add(bytes, Ordering::Relaxed);
        let within = before.saturating_add(bytes) <= MAX_CHUNKS_IN_FLIGHT.saturating_mul(longest);
        (Unread { all: self.unread.clone(), bytes }, within)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl HeldBodies {
    pub fn new() -> Self {
        Self::within(HELD, PATIENCE)
    }

    pub fn within(bounds: Bounds, patience: Duration) -> Self {
        Self { shared: Shares::new(bounds), patience }
    }

    /// Memory for a body of so many bytes, where its session has `longest` at most. Cancel-safe.
    pub async fn wait(&self, by: NodeId, body: Body, bytes: usize, longest: usize) -> Result<Held, NoMemory> {
        if bytes == 0 {
            return Ok(Held::Nothing);
        }
        tokio::select! {
            biased;
            own = body.place.clone().acquire_owned() => {
                own.map(|place| Held::Own { _place: place }).map_err(|_| NoMemory::Ended)
            }
            shared = tokio::time::timeout(self.patience, self.shared(by, &body, bytes, longest)) => {
                shared.unwrap_or(Err(NoMemory::Late))
            }
        }
    }

    async fn shared(&self, by: NodeId, body: &Body, bytes: usize, longest: usize) -> Result<Held, NoMemory> {
        let (_unread, within) = body.begin(bytes, longest);
        let _place = match within {
            true => self.shared.wait(by, bytes).await,
            false => self.shared.take_many(by, bytes).ok_or(NoMemory::Overfull)?,
        };
        Ok(Held::Shared { _place, _unread })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::StageConfig;
    use crate::pipeline::link::WRITE_DEADLINE;

    #[test]
    fn a_frame_waits_for_memory_for_half_as_long_at_most_as_its_peer_waits_for_the_stream() {
        assert!(PATIENCE * 2 <= WRITE_DEADLINE);
        assert_eq!(HeldBodies::new().patience, PATIENCE);
    }

    #[test]
    fn a_whole_window_of_an_honest_session_fits_in_its_coordinators_share() {
        const WIDEST: usize = 16_384;
        let window = MAX_CHUNKS_IN_FLIGHT * StageConfig::DEFAULT_MAX_ROWS as usize * WIDEST * size_of::<f32>();
        let Bounds { all, each, reserve } = HELD;
        assert!(window <= each && each < all && window <= reserve);
        assert!(all + reserve <= 1 << 30, "a gibibyte for all coordinators together");
    }
}
