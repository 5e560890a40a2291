//! The Tokio runtime of a node: its own, or the host's.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// Threads of a node's own runtime. They only move bytes; compute has its own threads.
const WORKERS: usize = 2;

/// A runtime that may be dropped anywhere, even inside another runtime.
pub(crate) struct NodeRuntime {
    own: Option<Runtime>,
    handle: Handle,
}

impl NodeRuntime {
    /// Wraps the host's runtime if given, else starts one.
    pub fn new(given: Option<Handle>) -> io::Result<Self> {
        if let Some(handle) = given {
            return Ok(Self { own: None, handle });
        }
        let runtime =
            Builder::new_multi_thread().worker_threads(WORKERS).thread_name("swarmllm").enable_all().build()?;
        Ok(Self { handle: runtime.handle().clone(), own: Some(runtime) })
    }

    /// Handle to spawn on.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for NodeRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.own.take() {
            // Dropping a runtime blocks, and panics inside another runtime. This does neither.
            runtime.shutdown_background();
        }
    }
}
