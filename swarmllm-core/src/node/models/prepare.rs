//! Loads the model that a request names.

use std::sync::Arc;

use crate::base::{ErrorKind, Fault};
use crate::node::blocking::blocking;
use crate::node::models::fetch;
use crate::node::models::loaded::LoadedModel;
use crate::node::shared::SharedState;

/// Resolves a name or id and loads the model unless it is loaded. Cancel-safe.
pub(crate) async fn load(shared: &Arc<SharedState>, name: &str) -> Result<Arc<LoadedModel>, Fault> {
    shared.lifecycle.check_open()?;
    let id = fetch::find(shared, name).await.map_err(|fault| fault.of_field("model"))?;
    if let Some(model) = shared.models.loaded.get_loaded(id) {
        return Ok(model);
    }
    // Only peers know the model: the message says what to pull.
    if shared.models.catalog.manifest(id).is_none() {
        let text = format!("model {} is held by peers only; pull its metadata and embedding first", id.short());
        return Err(Fault::new(ErrorKind::ShardMissing, text));
    }
    let models = shared.models.clone();
    blocking(move || models.load(id)).await
}
