//! What the contract tests and the benchmarks share: test models, the whole model as reference, swarms to try things on.
//!
//! The reference ([`whole`]) is llama.cpp running the original GGUF through a wrapper of its own, never our chain. Swarms
//! are built of nodes in this process ([`cluster`]) or of child processes of the command line ([`process`]).

pub mod chain;
pub mod cluster;
pub mod files;
pub mod gguf;
pub mod models;
pub mod padded;
pub mod process;
pub mod prompts;
pub mod relay;
pub mod rogue;
pub mod server;
pub mod space;
pub mod synthetic;
pub mod tiny;
pub mod whole;

use std::time::Duration;

/// A bound on waiting for something that comes at once where all is well, so that a hang is a failure with a name.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Polls `condition` until it holds; panics with `what` where it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Awaits `future`; panics with `what` where it does not end within [`PATIENCE`].
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not end"),
    }
}
