//! Models from the web: a GGUF behind an `https:` (or `http:`) address, or in a repository of a hub (`hf:`).
//!
//! Owns the only HTTP client. Promises: nothing is fetched before the host asks for it; of a file only what is wanted is
//! fetched, by ranges, and an interrupted fetch goes on where it stopped; two versions of a file are never mixed; bytes
//! count once they are checked, a header by `model::gguf`, shards of a known model by their ids; all waits, sizes and
//! repetitions are bounded. Refuses: addresses with credentials in them, ways from `https:` down to `http:`, and
//! answers that are not what was asked for.

mod address;
mod client;
mod error;
mod import;
mod reader;
mod shards;
mod throttle;

#[cfg(test)]
mod tests;

pub use address::{HUB, WebSource};
pub(crate) use throttle::Throttle;

use std::sync::Arc;
use std::time::Duration;

use crate::base::{Fault, ModelId};
use crate::node::fetch::Source;
use crate::node::request::ImportOptions;
use crate::node::shared::Shared;
use crate::node::transfer::blocking;
use client::Client;

/// Imports a model from the web.
pub(crate) async fn import_url(shared: &Shared, source: WebSource, options: &ImportOptions) -> Result<ModelId, Fault> {
    let client = client(shared, source).await?;
    let id = import::import(&shared.catalog, client, options).await?;
    shared.tell_known(id);
    Ok(id)
}

/// A file on the web as one more source of a model's shards. Nothing is asked of it before a shard is wanted.
pub(crate) async fn source(shared: &Shared, source: WebSource) -> Result<Arc<dyn Source>, Fault> {
    Ok(Arc::new(shards::WebFile::new(client(shared, source).await?)))
}

async fn client(shared: &Shared, source: WebSource) -> Result<Client, Fault> {
    let throttle = shared.throttle.clone();
    blocking(move || Ok(Client::new(&source, throttle, Patience::default())?)).await
}

/// How long, and how often, a server is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Longest wait for a connection, an answer or the next bytes. Servers that prepare a file take some seconds.
    stall: Duration,
    /// Longest wait for all bytes of a group of 1 MiB together: 3.5 KB/s. Against a server that never stalls and never
    /// ends.
    group: Duration,
    /// How often one group, or the first answer, is asked for again.
    retries: u32,
    /// Pause before the first of these, doubled with each more.
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let (stall, group) = (Duration::from_secs(30), Duration::from_secs(300));
        Self { stall, group, retries: 5, pause: Duration::from_millis(500) }
    }
}
