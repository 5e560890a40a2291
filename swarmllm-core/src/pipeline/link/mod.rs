//! Links: how nodes send requests to each other ([`request`]), and how the frames of sessions travel between their
//! stages.
//!
//! [`message`] defines the contents of a session's frames. [`pool`] holds one link to each peer, and [`router`] gives
//! each inbound frame to its session, within the memory of [`bodies`]. [`connection`] writes and reads one stream, from
//! the bounded queue of [`outgoing`].

use std::sync::{Mutex, MutexGuard, PoisonError};

mod bodies;
mod connection;
pub mod message;
pub(in crate::pipeline) mod outgoing;
mod pool;
pub mod request;
pub mod router;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only insertions and removals run under these locks; a panic cannot leave them half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
