//! Models from the web: a GGUF at an `https:` (or `http:`) address or in a hub's repository (`hf:`), in one file or in parts
//! side by side.
//!
//! Owns the only HTTP client. Promises: nothing is fetched before the host requests it; only the needed ranges of a file are
//! fetched, and an interrupted download resumes; two versions of a file are never mixed; bytes count once verified, a header
//! by `model::gguf`, shards of a known model by their ids; all waits, sizes and retries are bounded. Refuses addresses with
//! credentials, redirects from `https:` to `http:`, and malformed responses.

mod address;
mod client;
mod error;
mod import;
mod known;
mod reader;
mod remote;
mod shards;
mod throttle;
mod timeouts;

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
use crate::node::shared::SharedState;
use client::Client;
use timeouts::Timeouts;

/// Imports a model from the web. Cancel-safe: received bytes are kept.
pub(crate) async fn import_url(
    shared: &SharedState,
    source: WebSource,
    options: &ImportOptions,
) -> Result<(ModelId, ImportReport), ModelActError> {
    let client = client(shared.throttle.clone(), source).await?;
    let examination = Examination::new(shared.models.engines(), options);
    let id = import::import(&shared.models.catalog, client, options, &examination).await?;
    shared.models.send_known(id);
    Ok((id, examination.report()))
}

/// Examines a model on the web by its header.
pub(crate) async fn examine_url(
    throttle: Arc<Throttle>,
    source: WebSource,
    examination: Examination,
) -> Result<ImportReport, ModelActError> {
    let client = client(throttle, source).await?;
    let shown = client.shown();
    let header = import::header_alone(client).await?;
    Ok(blocking(move || examination.examine_header(&header, Path::new(&shown))).await?)
}

/// A file on the web as a source of a model's shards. Sends no request before the first shard.
pub(crate) async fn source(throttle: Arc<Throttle>, source: WebSource) -> Result<Arc<dyn Source>, Fault> {
    Ok(Arc::new(shards::WebFile::new(client(throttle, source).await?)))
}

async fn client(throttle: Arc<Throttle>, source: WebSource) -> Result<Client, Fault> {
    blocking(move || Ok(Client::new(&source, throttle, Timeouts::default())?)).await
}
