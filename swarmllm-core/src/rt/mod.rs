//! What rooms share to run: tracked tasks, news, single-writer views, shares of pools, durable directories, and the lock of
//! a data directory.
//!
//! Promises: no task outlives its [`TaskSet`], no reader of news or views can slow its writer, and two nodes never use
//! one directory. No global state: everything belongs to the node that made it.
//!
//! May import: base.

mod dirlock;
mod durable;
mod events;
mod shares;
mod tasks;
mod watched;

pub use dirlock::{DirLock, DirLockError};
pub use durable::{create_dir_all, sync_dir};
pub use events::{EventBus, EventReader};
pub use shares::{Bounds, Place, Shares};
pub use tasks::TaskSet;
pub use watched::{Watched, WatchedWriter};
