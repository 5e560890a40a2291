//! The model that a request names, ready to be asked.

use std::sync::Arc;

use crate::base::{ErrorKind, Fault};
use crate::node::blocking::blocking;
use crate::node::models::fetch;
use crate::node::models::loaded::LoadedModel;
use crate::node::shared::Shared;

/// Finds it by its name or id, and loads it where it is not kept ready.
pub(crate) async fn load(shared: &Arc<Shared>, name: &str) -> Result<Arc<LoadedModel>, Fault> {
    shared.check_open()?;
    let id = fetch::find(shared, name).await.map_err(|fault| fault.of_field("model"))?;
    if let Some(model) = shared.models.take_kept(id) {
        return Ok(model);
    }
    // A peer may know the model while this node does not: then the message says what to pull.
    if shared.catalog.manifest(id).is_none() {
        let text = format!("model {} is held by peers only; pull its metadata and embedding first", id.short());
        return Err(Fault::new(ErrorKind::ShardMissing, text));
    }
    let shared = shared.clone();
    blocking(move || {
        let wanted = shared.config.engine.as_deref();
        shared.models.get(&shared.catalog, shared.serving.stages().engines(), wanted, id)
    })
    .await
}
