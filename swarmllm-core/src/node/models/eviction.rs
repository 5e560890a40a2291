//! What of the catalogue may go while the node runs: never what is loaded.

use crate::base::{ErrorKind, Fault, ModelId};
use crate::model::{Manifest, ShardKind};
use crate::node::api::report::Removed;
use crate::node::api::request::Parts;
use crate::node::models::fetch::select;
use crate::node::models::transfer::fault;
use crate::node::shared::Shared;

/// Removes the models that were used longest ago until there is room. Blocks.
pub(crate) fn make_room(shared: &Shared, bytes: u64) -> Result<Vec<ModelId>, Fault> {
    let stages = shared.serving.stages().loaded();
    let mut loaded = shared.models.ids();
    loaded.extend(stages.into_iter().map(|(key, _)| key.model));
    shared.catalog.make_room(bytes, &|model| loaded.contains(&model)).map_err(fault)
}

/// Removes a model for the host, with all that is known of it. Blocks. A name's beginning is not enough.
pub(crate) fn remove(shared: &Shared, model: &str) -> Result<Removed, Fault> {
    let id = shared.catalog.resolve(model).map_err(fault)?;
    let manifest = shared.catalog.manifest(id).ok_or_else(|| gone(id))?;
    let name = shared.catalog.title(id);
    if !shared.catalog.is_named_fully(id, model) {
        let text = format!(
            "`{model}` is the beginning of a name of {name} ({}): to remove it, give a whole name or its id",
            id.short()
        );
        return Err(Fault::new(ErrorKind::InvalidArgument, text).of_field("model"));
    }
    // What is only kept ready for the next request goes; what computes stays.
    shared.models.forget(id);
    shared.serving.stages().unload_idle_where(|key| key.model == id);
    let used = in_use(shared, id, &manifest);
    let freed = shared.catalog.remove_idle(id, &|kind| used.contains(&kind)).map_err(fault)?;
    Ok(Removed { id, name, freed })
}

/// Deletes parts of a model for the host. Blocks.
pub(crate) fn discard(shared: &Shared, model: &str, parts: &Parts) -> Result<ModelId, Fault> {
    let model = shared.catalog.resolve(model).map_err(fault)?;
    let manifest = shared.catalog.manifest(model).ok_or_else(|| gone(model))?;
    // What a stage shares with the model's other stages does not go with it.
    let own = |kind: &ShardKind| match parts {
        Parts::Stage { .. } => matches!(kind, ShardKind::Layer(_) | ShardKind::Head),
        Parts::All | Parts::Coordinator => true,
    };
    let kinds: Vec<ShardKind> = select(&manifest, parts)?.into_iter().map(|entry| entry.kind).filter(own).collect();
    let used = in_use(shared, model, &manifest);
    let discarded = shared.catalog.discard(model, &|kind| kinds.contains(&kind), &|kind| used.contains(&kind));
    discarded.map(|()| model).map_err(fault)
}

/// Parts of a model that are loaded, or being loaded.
pub(crate) fn in_use(shared: &Shared, model: ModelId, manifest: &Manifest) -> Vec<ShardKind> {
    let stages = shared.serving.stages().of(model);
    let mut used: Vec<ShardKind> = stages
        .into_iter()
        .flat_map(|(layers, head)| manifest.stage_shards(layers, head))
        .map(|entry| entry.kind)
        .collect();
    if shared.models.ids().contains(&model) {
        used.extend(manifest.coordinator_shards().map(|entry| entry.kind));
    }
    used
}

fn gone(model: ModelId) -> Fault {
    Fault::new(crate::base::ErrorKind::ModelNotFound, format!("model {} was removed meanwhile", model.short()))
}
