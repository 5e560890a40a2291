//! Runtime support for all modules: tracked tasks, the event bus, single-writer values, fair pools, durable directories,
//! positioned reads, and the lock of a data directory.
//!
//! Guarantees: no task outlives its [`TaskSet`]; no reader of events or values can slow its writer; two nodes never use the
//! same directory. No global state: everything belongs to the node that created it.
//!
//! May import: base.

mod dirlock;
mod durable;
mod events;
mod fair_pool;
mod read_at;
mod tasks;
mod watch;

pub use dirlock::{DirLock, DirLockError};
pub use durable::{create_dir_all, sync_dir};
pub use events::{EventBus, EventReader};
pub use fair_pool::{FairPool, PoolLimits, PoolPermit};
pub use read_at::read_exact_at;
pub use tasks::TaskSet;
pub use watch::{WatchReader, WatchWriter};
