//! The ground a node runs on: a Tokio runtime of its own, or the host's.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads of a node's own runtime. They only move bytes: compute has its own threads.
const WORKERS: usize = 2;

/// A runtime that may be dropped anywhere, also inside another runtime.
pub(crate) struct Ground {
    own: Option<Runtime>,
    handle: Handle,
}

impl Ground {
    /// The host's runtime where given, else a new one.
    pub fn new(given: Option<Handle>) -> io::Result<Self> {
        if let Some(handle) = given {
            return Ok(Self { own: None, handle });
        }
        let runtime =
            Builder::new_multi_thread().worker_threads(WORKERS).thread_name("swarmllm").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), own: Some(runtime) })
    }

    /// Where to spawn.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if let Some(runtime) = self.own.take() {
            // Dropping a runtime blocks, and panics inside another one; this does neither.
            runtime.shutdown_background();
        }
    }
}
