//! Models from the web: a GGUF behind an `https:` (or `http:`) address, or in a repository of a hub (`hf:`), in one file or
//! in parts that lie side by side.
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
mod known;
mod patience;
mod reader;
mod remote;
mod shards;
mod throttle;

#[cfg(test)]
mod tests;

pub use address::{HUB, WebSource};
pub(crate) use throttle::Throttle;

use std::path::Path;
use std::sync::Arc;

use crate::base::{Fault, ModelId};
use crate::node::api::error::ModelActError;
use crate::node::api::findings::ImportReport;
use crate::node::api::request::ImportOptions;
use crate::node::blocking::blocking;
use crate::node::models::examine::Examination;
use crate::node::models::fetch::Source;
use crate::node::shared::Shared;
use client::Client;
use patience::Patience;

/// Imports a model from the web.
pub(crate) async fn import_url(
    shared: &Shared,
    source: WebSource,
    options: &ImportOptions,
) -> Result<(ModelId, ImportReport), ModelActError> {
    let client = client(shared.throttle.clone(), source).await?;
    let examination = Examination::by(shared.engines(), options);
    let id = import::import(&shared.catalog, client, options, &examination).await?;
    shared.tell_known(id);
    Ok((id, examination.report()))
}

/// Asks what of a model on the web cannot run here.
pub(crate) async fn examine_url(
    throttle: Arc<Throttle>,
    source: WebSource,
    examination: Examination,
) -> Result<ImportReport, ModelActError> {
    let client = client(throttle, source).await?;
    let shown = client.shown();
    let header = import::header_alone(client).await?;
    Ok(blocking(move || examination.look(&header, Path::new(&shown))).await?)
}

/// A file on the web as one more source of a model's shards. Nothing is asked of it before a shard is wanted.
pub(crate) async fn source(shared: &Shared, source: WebSource) -> Result<Arc<dyn Source>, Fault> {
    Ok(Arc::new(shards::WebFile::new(client(shared.throttle.clone(), source).await?)))
}

async fn client(throttle: Arc<Throttle>, source: WebSource) -> Result<Client, Fault> {
    blocking(move || Ok(Client::new(&source, throttle, Patience::default())?)).await
}
