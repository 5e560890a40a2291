//! Support of the contract tests and benchmarks: test models, the reference model, test swarms.
//!
//! The reference ([`reference`]) is llama.cpp with the original GGUF through an independent wrapper, never a swarmllm stage.
//! Swarms consist of nodes in this process ([`cluster`]) or of child processes of the command line ([`process`]).

pub mod chain;
pub mod cluster;
pub mod files;
pub mod gguf;
pub mod models;
pub mod netns;
pub mod padded;
pub mod process;
pub mod prompts;
pub mod reference;
pub mod rogue;
pub mod server;
pub mod slow_link;
pub mod synthetic;
pub mod tiny;

use std::time::Duration;

/// Timeout of every wait: far above any expected duration, so that a hang is a failure with a message.
pub const TIMEOUT: Duration = Duration::from_secs(120);

/// Polls `condition` until it holds; panics with `what` after [`TIMEOUT`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < TIMEOUT, "timed out waiting until {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Awaits `future`; panics with `what` after [`TIMEOUT`].
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(TIMEOUT, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not end"),
    }
}
