//! Start and end of a node: the lock of its data directory, its runtime, and whether it still accepts requests.

use std::sync::{Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault};
use crate::rt::DirLock;

/// See the module.
pub(crate) struct Lifecycle {
    pub runtime: tokio::runtime::Handle,
    /// Cancelled once the node accepts no request any more.
    pub closed: CancellationToken,
    /// Process that started the node: a forked child inherits its memory without its threads.
    process: u32,
    /// Held until the node has ended.
    lock: Mutex<Option<DirLock>>,
}

impl Lifecycle {
    pub fn new(runtime: tokio::runtime::Handle, lock: DirLock) -> Self {
        let (closed, process) = (CancellationToken::new(), std::process::id());
        Self { runtime, closed, process, lock: Mutex::new(Some(lock)) }
    }

    /// Whether this process is a child forked after the node started.
    pub fn is_forked(&self) -> bool {
        std::process::id() != self.process
    }

    /// Refuses requests after a shutdown, and in a forked child.
    pub fn check_open(&self) -> Result<(), Fault> {
        if self.is_forked() {
            let text = "the process was forked after the node had started; start a node of its own in the child";
            return Err(Fault::new(ErrorKind::Forked, text));
        }
        match self.closed.is_cancelled() {
            true => Err(Fault::new(ErrorKind::Closed, "the node has been shut down; start another")),
            false => Ok(()),
        }
    }

    /// Frees the data directory for another node.
    pub fn release_lock(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
