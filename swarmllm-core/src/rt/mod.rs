//! What rooms share to run: tracked tasks, news, single-writer views, and the lock of a data directory.
//!
//! Promises: no task outlives its [`TaskSet`], no reader of news or views can slow its writer, and two nodes never use
//! one directory. No global state: everything belongs to the node that made it.
//!
//! May import: base.

mod dirlock;
mod events;
mod tasks;
mod watched;

pub use dirlock::{DirLock, DirLockError};
pub use events::{EventBus, EventReader};
pub use tasks::TaskSet;
pub use watched::{Watched, WatchedWriter};
