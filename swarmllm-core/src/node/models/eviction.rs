//! Removal of models and shards while the node runs. Whatever is loaded stays.

use crate::base::{ErrorKind, Fault, ModelId};
use crate::model::{Manifest, ShardKind};
use crate::node::api::report::RemovedModel;
use crate::node::api::request::Parts;
use crate::node::models::handle::Models;
use crate::node::models::transfer::fault;

impl Models {
    /// Removes the least recently used models until `bytes` more fit. Blocks.
    pub fn make_room(&self, bytes: u64) -> Result<Vec<ModelId>, Fault> {
        let mut loaded = self.loaded.ids();
        loaded.extend(self.stages.loaded().into_iter().map(|(key, _)| key.model));
        self.catalog.make_room(bytes, &|model| loaded.contains(&model)).map_err(fault)
    }

    /// Removes a model and all that is known of it, for the host. The beginning of a name is not enough. Blocks.
    pub fn remove(&self, model: &str) -> Result<RemovedModel, Fault> {
        let id = self.catalog.resolve(model).map_err(fault)?;
        let manifest = self.catalog.manifest(id).ok_or_else(|| gone(id))?;
        let name = self.catalog.display_name(id);
        if !self.catalog.is_exact_name(id, model) {
            let text = format!(
                "`{model}` is the beginning of a name of {name} ({}): to remove it, give a whole name or its id",
                id.short()
            );
            return Err(Fault::new(ErrorKind::InvalidArgument, text).of_field("model"));
        }
        // Idle stages and caches go; stages in use stay.
        self.loaded.forget(id);
        self.stages.unload_idle_where(|key| key.model == id);
        let used = self.shards_in_use(id, &manifest);
        let freed = self.catalog.remove_unless_busy(id, &|kind| used.contains(&kind)).map_err(fault)?;
        Ok(RemovedModel { id, name, freed })
    }

    /// Deletes parts of a model, for the host. Blocks.
    pub fn discard(&self, model: &str, parts: &Parts) -> Result<ModelId, Fault> {
        let model = self.catalog.resolve(model).map_err(fault)?;
        let manifest = self.catalog.manifest(model).ok_or_else(|| gone(model))?;
        // Shards that a stage shares with other stages of the model stay.
        let own = |kind: &ShardKind| match parts {
            Parts::Stage { .. } => matches!(kind, ShardKind::Layer(_) | ShardKind::Head),
            Parts::All | Parts::Coordinator => true,
        };
        let kinds: Vec<ShardKind> = parts.shards(&manifest)?.into_iter().map(|entry| entry.kind).filter(own).collect();
        let used = self.shards_in_use(model, &manifest);
        let discarded = self.catalog.delete_shards(model, &|kind| kinds.contains(&kind), &|kind| used.contains(&kind));
        discarded.map(|()| model).map_err(fault)
    }

    /// Shards of a model that are loaded or being loaded.
    pub fn shards_in_use(&self, model: ModelId, manifest: &Manifest) -> Vec<ShardKind> {
        let stages = self.stages.of(model).into_iter();
        let mut used: Vec<ShardKind> =
            stages.flat_map(|(layers, head)| manifest.stage_shards(layers, head)).map(|entry| entry.kind).collect();
        if self.loaded.ids().contains(&model) {
            used.extend(manifest.coordinator_shards().map(|entry| entry.kind));
        }
        used
    }
}

fn gone(model: ModelId) -> Fault {
    Fault::new(ErrorKind::ModelNotFound, format!("model {} was removed meanwhile", model.short()))
}
