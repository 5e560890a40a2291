//! Evicts models when space is needed: pinned models stay, the others go by least recent use.
//!
//! A pin is an empty file beside the manifest. The modification time of the manifest is the time of last use.

use std::collections::HashMap;
use std::fs::{self, File};
use std::time::SystemTime;

use super::{Catalog, Provenance, remove_if_exists};
use crate::base::{ModelId, ShardId};
use crate::model::{ModelError, ShardEntry, ShardKind};

impl Catalog {
    /// Pins or unpins a model; [`Catalog::make_room`] skips pinned models. Survives a restart.
    pub fn pin(&self, model: ModelId, on: bool) -> Result<(), ModelError> {
        let path = self.layout().pin(&model);
        let _guard = self.lock_disk();
        self.require_manifest(model)?;
        match on {
            true => drop(File::create(&path).map_err(ModelError::io("create", &path))?),
            false => remove_if_exists(&path)?,
        }
        self.layout().sync_models()
    }

    /// Whether a model is pinned.
    pub fn is_pinned(&self, model: ModelId) -> bool {
        self.layout().pin(&model).exists()
    }

    /// Removes models by least recent use until `bytes` more fit within the catalogue's bound, and returns the removed
    /// models. Idle transfers are removed first. Models that are pinned, being written or `busy` stay. If removing all
    /// others would not suffice, nothing is removed. Without a bound nothing needs to go.
    pub fn make_room(&self, bytes: u64, busy: &dyn Fn(ModelId) -> bool) -> Result<Vec<ModelId>, ModelError> {
        let Some(excess) = self.excess(bytes)? else { return Ok(Vec::new()) };
        let mut gone = Vec::new();
        let awaited = self.awaited();
        let mut freed = self.idle_transfer_bytes(&awaited)?;
        let mut needed = self.reference_counts();
        for model in self.least_recently_used() {
            if freed >= excess {
                break;
            }
            if self.is_pinned(model) || self.is_being_written(model) || busy(model) {
                continue;
            }
            let frees = self.bytes_freed_by(model, &mut needed);
            if frees > 0 {
                freed = freed.saturating_add(frees);
                gone.push(model);
            }
        }
        if freed < excess {
            // Its error says what does not fit.
            self.reserve(bytes)?;
            return Ok(Vec::new());
        }
        self.remove_idle_transfers(excess, &awaited)?;
        gone.iter().try_for_each(|model| self.remove(*model))?;
        Ok(gone)
    }

    /// Removes a model for the host and returns the bytes of the removed shards. Refused if the model is pinned, one of its
    /// shards is being written, or `busy` holds for one of its parts.
    pub fn remove_unless_busy(&self, model: ModelId, busy: &dyn Fn(ShardKind) -> bool) -> Result<u64, ModelError> {
        let _guard = self.lock_disk();
        let manifest = self.require_manifest(model)?;
        self.check_unpinned(model)?;
        if let Some(entry) = manifest.shards.iter().find(|entry| busy(entry.kind)) {
            return Err(ModelError::InUse { model: self.display_name(model), part: entry.kind });
        }
        let written = {
            let writing = self.writing();
            manifest.shards.iter().find(|entry| writing.contains(&entry.id)).map(|entry| entry.id)
        };
        if let Some(shard) = written {
            return Err(ModelError::Busy { shard });
        }
        let frees = self.bytes_freed_by(model, &mut self.reference_counts());
        self.remove_known(model)?;
        Ok(frees)
    }

    /// Records that a model is used now. A failure only affects the order of eviction.
    pub(super) fn record_use(&self, model: ModelId) {
        let touched = File::options().append(true).open(self.layout().manifest(&model));
        if let Err(error) = touched.and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!(%error, "could not record the use of a model");
        }
    }

    fn least_recently_used(&self) -> Vec<ModelId> {
        let used = |model: &ModelId| {
            let touched = fs::metadata(self.layout().manifest(model)).and_then(|metadata| metadata.modified());
            touched.unwrap_or(SystemTime::UNIX_EPOCH)
        };
        let mut models: Vec<ModelId> = self.models().into_iter().map(|(id, _)| id).collect();
        models.sort_by_cached_key(used);
        models
    }

    /// Whether one of its shards has a writer.
    fn is_being_written(&self, model: ModelId) -> bool {
        let writing = self.writing();
        self.manifest(model).is_some_and(|manifest| manifest.shards.iter().any(|shard| writing.contains(&shard.id)))
    }

    /// The shards of a model that the host has not deleted.
    fn wanted_shards(&self, model: ModelId) -> Vec<ShardEntry> {
        let state = self.state();
        let wanted = state.shards_with_provenance(model).filter(|(_, provenance)| *provenance != Provenance::Deleted);
        wanted.map(|(entry, _)| entry.clone()).collect()
    }

    /// The number of models that need each shard.
    fn reference_counts(&self) -> HashMap<ShardId, u32> {
        let mut needed = HashMap::new();
        for (model, _) in self.models() {
            self.wanted_shards(model).iter().for_each(|shard| *needed.entry(shard.id).or_default() += 1);
        }
        needed
    }

    /// Bytes of the held shards that no model needs once this one is removed. Updates the counts for the next model.
    fn bytes_freed_by(&self, model: ModelId, needed: &mut HashMap<ShardId, u32>) -> u64 {
        let mut frees = 0u64;
        for shard in self.wanted_shards(model) {
            let others = needed.entry(shard.id).or_default();
            *others = others.saturating_sub(1);
            if *others == 0 && self.has(&shard.id) {
                frees = frees.saturating_add(shard.size);
            }
        }
        frees
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::*;
    use crate::base::{ErrorKind, LayerRange};
    use crate::model::manifest::tests::small_model;

    /// A catalogue with models used one after another, and the bytes of each.
    fn bench(seeds: &[u64]) -> (TempDir, Catalog, Vec<ModelId>, u64) {
        let dir = TempDir::new().unwrap();
        let open = |max| Catalog::open_within(&dir.path().join("data"), max).unwrap();
        let catalog = open(None);
        let import = |seed: &u64| {
            let path = dir.path().join("model.gguf");
            fs::write(&path, small_model(&seed.to_string(), 3, false, true, *seed)).unwrap();
            let model = catalog.import(&path, None, &mut |_| {}).unwrap();
            let ago = SystemTime::now() - Duration::from_secs(1000 - 10 * seed);
            File::options().append(true).open(catalog.layout().manifest(&model)).unwrap().set_modified(ago).unwrap();
            model
        };
        let models: Vec<ModelId> = seeds.iter().map(import).collect();
        let size = catalog.manifest(models[0]).unwrap().size();
        let used = catalog.layout().used().unwrap();
        let bounded = open(Some(used));
        (dir, bounded, models, size)
    }

    #[test]
    fn least_recently_used_models_go_first_and_no_more_than_necessary() {
        let (_dir, catalog, models, size) = bench(&[1, 2, 3]);
        assert!(matches!(catalog.reserve(1), Err(ModelError::Budget { .. })));
        assert_eq!(catalog.make_room(0, &|_| false).unwrap(), []);
        // The first model is used again.
        catalog.stage_source(models[0], LayerRange::new(0, 1), false).unwrap();
        assert_eq!(catalog.make_room(size / 2, &|_| false).unwrap(), [models[1]]);
        assert!(catalog.reserve(size / 2).is_ok());
        assert_eq!(catalog.verify(models[0]).unwrap(), []);
        assert_eq!(catalog.make_room(2 * size, &|_| false).unwrap(), [models[2]]);
    }

    #[test]
    fn removing_a_model_reports_the_freed_bytes() {
        let (_dir, catalog, models, size) = bench(&[1, 2]);
        catalog.pin(models[0], true).unwrap();
        let pinned = catalog.remove_unless_busy(models[0], &|_| false).unwrap_err();
        assert!(matches!(pinned, ModelError::Pinned { .. }), "{pinned}");
        catalog.pin(models[0], false).unwrap();
        let busy = catalog.remove_unless_busy(models[0], &|kind| kind == ShardKind::Layer(1)).unwrap_err();
        assert!(matches!(busy, ModelError::InUse { part: ShardKind::Layer(1), .. }), "{busy}");
        assert_eq!(catalog.models().len(), 2);
        assert_eq!(catalog.remove_unless_busy(models[0], &|_| false).unwrap(), size);
        assert_eq!(catalog.models().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [models[1]]);
        assert_eq!(catalog.holding(models[1]).layers, [LayerRange::new(0, 3)]);
        assert_eq!(catalog.remove_unless_busy(models[0], &|_| false).unwrap_err().kind(), ErrorKind::ModelNotFound);
    }

    #[test]
    fn pinned_and_busy_models_are_not_evicted() {
        let (dir, catalog, models, size) = bench(&[1, 2, 3]);
        catalog.pin(models[0], true).unwrap();
        let again = Catalog::open_within(&dir.path().join("data"), Some(catalog.layout().used().unwrap())).unwrap();
        assert!(again.is_pinned(models[0]) && !again.is_pinned(models[1]));
        let busy = |model| model == models[1];
        let error = again.make_room(2 * size, &busy).unwrap_err();
        assert_eq!((error.kind(), again.models().len()), (ErrorKind::DiskBudget, 3));
        assert_eq!(again.make_room(size, &busy).unwrap(), [models[2]]);
        again.pin(models[0], false).unwrap();
        assert_eq!(again.make_room(2 * size, &busy).unwrap(), [models[0]]);
        assert_eq!(again.pin(models[0], true).unwrap_err().kind(), ErrorKind::ModelNotFound);
    }

    #[test]
    fn shared_shards_free_no_space() {
        let dir = TempDir::new().unwrap();
        let open = |max| Catalog::open_within(&dir.path().join("data"), max).unwrap();
        let catalog = open(None);
        let import = |name: &str| {
            let path = dir.path().join("model.gguf");
            fs::write(&path, small_model(name, 3, false, true, 1)).unwrap();
            catalog.import(&path, None, &mut |_| {}).unwrap()
        };
        let (one, two) = (import("one"), import("two"));
        let catalog = open(Some(catalog.layout().used().unwrap()));
        let size = catalog.manifest(one).unwrap().size();
        catalog.pin(two, true).unwrap();
        let error = catalog.make_room(size, &|_| false).unwrap_err();
        assert_eq!((error.kind(), catalog.models().len()), (ErrorKind::DiskBudget, 2));
    }
}
