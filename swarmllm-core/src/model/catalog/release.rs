//! Removing single shards of a model that stays known. The host's deletion lasts; placement removes only the shards that
//! it fetched itself.

use std::collections::HashSet;

use super::provenance::Provenance;
use super::{Catalog, State};
use crate::base::{ModelId, ShardId};
use crate::model::{ModelError, ShardEntry, ShardKind};

impl Catalog {
    /// Deletes these shards of a model for the host. They are not fetched again before the host requests them. Shards that
    /// another model needs stay on disk. Refused if the model is pinned, or if `busy` holds for one of the parts.
    pub fn delete_shards(
        &self,
        model: ModelId,
        parts: &dyn Fn(ShardKind) -> bool,
        busy: &dyn Fn(ShardKind) -> bool,
    ) -> Result<(), ModelError> {
        let _guard = self.lock_disk();
        let manifest = self.require_manifest(model)?;
        self.check_unpinned(model)?;
        if let Some(entry) = manifest.shards.iter().find(|entry| parts(entry.kind) && busy(entry.kind)) {
            return Err(ModelError::InUse { model: self.display_name(model), part: entry.kind });
        }
        let goes = |entry: &ShardEntry, provenance| if parts(entry.kind) { Provenance::Deleted } else { provenance };
        // Persist the deletion first: a crash in between leaves files that the next opening removes.
        self.store_provenance(model, self.provenance_of(model).changed(&manifest, &goes))?;
        self.remove_deleted(model)
    }

    /// Removes files of deleted shards that a crash left.
    pub(super) fn finish_deletions(&self) -> Result<(), ModelError> {
        let _guard = self.lock_disk();
        for (model, _) in self.models() {
            self.remove_deleted(model)?;
        }
        Ok(())
    }

    fn remove_deleted(&self, model: ModelId) -> Result<(), ModelError> {
        let gone = self.state().unneeded(model, &|_, provenance| provenance == Provenance::Deleted);
        self.remove_shards(&gone.into_iter().map(|entry| entry.id).collect())
    }

    /// Removes those of these shards that placement fetched, that no other model needs and that are not `busy`. Returns the
    /// removed parts. Refused if the model is pinned.
    pub fn release_placed(
        &self,
        model: ModelId,
        parts: &dyn Fn(ShardKind) -> bool,
        busy: &dyn Fn(ShardKind) -> bool,
    ) -> Result<Vec<ShardKind>, ModelError> {
        let _guard = self.lock_disk();
        self.require_manifest(model)?;
        self.check_unpinned(model)?;
        let goes =
            |entry: &ShardEntry, provenance| provenance == Provenance::Placed && parts(entry.kind) && !busy(entry.kind);
        let mut gone = self.state().unneeded(model, &goes);
        gone.retain(|entry| self.has(&entry.id));
        // Their provenance stays `Placed`, which has no meaning for an absent shard.
        self.remove_shards(&gone.iter().map(|entry| entry.id).collect())?;
        Ok(gone.into_iter().map(|entry| entry.kind).collect())
    }

    pub(super) fn check_unpinned(&self, model: ModelId) -> Result<(), ModelError> {
        match self.is_pinned(model) {
            true => Err(ModelError::Pinned { model: self.display_name(model) }),
            false => Ok(()),
        }
    }

    /// The caller holds the disk lock. Open files stay readable if the system allows it.
    fn remove_shards(&self, gone: &HashSet<ShardId>) -> Result<(), ModelError> {
        // No longer held before the files go, so that peers are not told of missing shards.
        let lost = gone.iter().filter(|shard| self.state_mut().held.remove(shard)).count();
        if lost > 0 {
            self.changed();
        }
        gone.iter().try_for_each(|shard| self.remove_shard(shard))
    }
}

impl State {
    /// The shards of a model that `goes` selects and that neither another part of the model nor another model needs.
    pub(super) fn unneeded(&self, model: ModelId, goes: &dyn Fn(&ShardEntry, Provenance) -> bool) -> Vec<ShardEntry> {
        let (going, staying): (Vec<_>, Vec<_>) =
            self.shards_with_provenance(model).partition(|(entry, provenance)| goes(entry, *provenance));
        let wanted =
            |(entry, provenance): (&ShardEntry, Provenance)| (provenance != Provenance::Deleted).then_some(entry.id);
        let others =
            self.models.keys().filter(|other| **other != model).flat_map(|other| self.shards_with_provenance(*other));
        let needed: HashSet<ShardId> = staying.into_iter().chain(others).filter_map(wanted).collect();
        going.into_iter().map(|(entry, _)| entry).filter(|entry| !needed.contains(&entry.id)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use tempfile::TempDir;

    use super::*;
    use crate::base::{ErrorKind, LayerRange};
    use crate::model::manifest::tests::small_model;

    const LAYERS: u32 = 4;

    fn none(_: ShardKind) -> bool {
        false
    }

    fn all(_: ShardKind) -> bool {
        true
    }

    fn layers(start: u32, end: u32) -> impl Fn(ShardKind) -> bool {
        move |kind| matches!(kind, ShardKind::Layer(layer) if start <= layer && layer < end)
    }

    struct Bench {
        dir: TempDir,
        catalog: Catalog,
    }

    impl Bench {
        fn new() -> Bench {
            let dir = TempDir::new().unwrap();
            let catalog = Catalog::open(&dir.path().join("data")).unwrap();
            Bench { dir, catalog }
        }

        /// Opens the same directory again, as after a restart.
        fn reopen(&mut self) {
            self.catalog = Catalog::open(&self.dir.path().join("data")).unwrap();
        }

        fn import(&self, name: &str) -> ModelId {
            let path = self.dir.path().join("model.gguf");
            fs::write(&path, small_model(name, LAYERS, false, true, 1)).unwrap();
            self.catalog.import(&path, None, &mut |_| {}).unwrap()
        }

        fn shard(&self, model: ModelId, layer: u32) -> (ShardEntry, PathBuf) {
            let entry = self.catalog.manifest(model).unwrap().shard(ShardKind::Layer(layer)).unwrap().clone();
            let path = self.catalog.layout().shard(&entry.id);
            (entry, path)
        }

        /// Writes a layer as if it came from a peer.
        fn receive(&self, from: &Bench, model: ModelId, layer: u32) -> Result<(), ModelError> {
            let (entry, path) = from.shard(model, layer);
            let leaves = from.catalog.shard_leaves(&entry.id)?;
            let mut writer = self.catalog.shard_writer(&entry, leaves.to_vec())?;
            writer.write_group(&fs::read(path).unwrap())?;
            writer.finish()
        }

        fn holds(&self, model: ModelId) -> Vec<LayerRange> {
            self.catalog.holding(model).layers
        }
    }

    /// A catalogue with all of a model, and one whose layers placement has fetched.
    fn placed() -> (Bench, Bench, ModelId) {
        let (from, to) = (Bench::new(), Bench::new());
        let model = from.import("small");
        to.catalog.add_manifest(&from.catalog.manifest(model).unwrap().encode(), model).unwrap();
        to.catalog.record_placed(model, &all).unwrap();
        let common = from.catalog.manifest(model).unwrap().shard(ShardKind::Common).cloned();
        if let Some(common) = common {
            let mut writer = to.catalog.whole_writer(&common).unwrap();
            writer.write_group(&fs::read(from.catalog.layout().shard(&common.id)).unwrap()).unwrap();
            writer.finish().unwrap();
        }
        (0..LAYERS).for_each(|layer| to.receive(&from, model, layer).unwrap());
        (from, to, model)
    }

    #[test]
    fn placement_releases_only_shards_it_fetched() {
        let (from, mut bench, model) = placed();
        bench.reopen();
        // The host requests one of them, which is the host's from now on.
        bench.catalog.record_requested(model, &layers(1, 2)).unwrap();
        bench.reopen();
        let changes = bench.catalog.changes();
        let gone = bench.catalog.release_placed(model, &layers(0, 3), &none).unwrap();
        assert_eq!(gone, [ShardKind::Layer(0), ShardKind::Layer(2)]);
        assert!(changes.has_changed().unwrap(), "it is announced");
        assert_eq!(bench.holds(model), [LayerRange::new(1, 2), LayerRange::new(3, 4)]);
        assert!(!bench.shard(model, 0).1.exists());
        bench.reopen();
        assert_eq!(bench.holds(model), [LayerRange::new(1, 2), LayerRange::new(3, 4)]);
        // Placement may fetch it again.
        bench.receive(&from, model, 0).unwrap();
        assert_eq!(from.catalog.release_placed(model, &all, &none).unwrap(), [], "imported shards stay");
    }

    #[test]
    fn busy_and_pinned_shards_are_not_removed() {
        let (_from, bench, model) = placed();
        assert_eq!(bench.catalog.release_placed(model, &layers(0, 2), &layers(0, 1)).unwrap(), [ShardKind::Layer(1)]);
        let refused = bench.catalog.delete_shards(model, &layers(0, 3), &layers(0, 1)).unwrap_err();
        assert!(matches!(refused, ModelError::InUse { part: ShardKind::Layer(0), .. }));
        assert_eq!(
            bench.catalog.provenance(model).iter().filter(|(_, provenance)| *provenance == Provenance::Deleted).count(),
            0
        );
        bench.catalog.pin(model, true).unwrap();
        for refused in [
            bench.catalog.release_placed(model, &all, &none).map(drop).unwrap_err(),
            bench.catalog.delete_shards(model, &all, &none).unwrap_err(),
        ] {
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        }
        assert_eq!(bench.holds(model), [LayerRange::new(0, 1), LayerRange::new(2, 4)]);
    }

    #[test]
    fn open_stage_files_stay_readable_after_release() {
        let (from, bench, model) = placed();
        let stage = LayerRange::new(0, LAYERS);
        let tensors = bench.catalog.stage_source(model, stage, false).unwrap().tensors;
        assert_eq!(bench.catalog.release_placed(model, &layers(0, LAYERS), &none).unwrap().len(), LAYERS as usize);
        for (here, there) in tensors.iter().zip(from.catalog.stage_source(model, stage, false).unwrap().tensors) {
            let read = |tensor: &crate::model::SourceTensor| {
                let mut bytes = vec![0; tensor.entry.size as usize];
                tensor.read_exact_at(0, &mut bytes).map(|()| bytes)
            };
            assert_eq!(read(here).unwrap(), read(&there).unwrap());
        }
    }

    #[test]
    fn deleted_shards_stay_deleted_until_the_host_requests_them() {
        let (from, mut bench, model) = placed();
        bench.catalog.delete_shards(model, &layers(1, 3), &none).unwrap();
        for _ in 0..2 {
            assert_eq!(bench.holds(model), [LayerRange::new(0, 1), LayerRange::new(3, 4)]);
            bench.catalog.record_placed(model, &all).unwrap();
            assert!(
                matches!(bench.receive(&from, model, 1), Err(ModelError::Unlisted { .. })),
                "placement cannot fetch it"
            );
            bench.reopen();
        }
        bench.catalog.record_requested(model, &layers(1, 2)).unwrap();
        bench.receive(&from, model, 1).unwrap();
        assert_eq!(bench.catalog.release_placed(model, &layers(1, 2), &none).unwrap(), [], "it is the host's");
        // An import restores everything.
        assert_eq!(bench.import("small"), model);
        assert!(bench.catalog.provenance(model).iter().all(|(_, provenance)| *provenance == Provenance::Requested));
        bench.reopen();
        assert_eq!(bench.holds(model), [LayerRange::new(0, LAYERS)]);
    }

    #[test]
    fn a_shard_deleted_while_it_arrives_is_refused() {
        let (from, bench, model) = placed();
        bench.catalog.release_placed(model, &layers(2, 3), &none).unwrap();
        let (entry, path) = from.shard(model, 2);
        let leaves = from.catalog.shard_leaves(&entry.id).unwrap();
        let mut writer = bench.catalog.shard_writer(&entry, leaves.to_vec()).unwrap();
        writer.write_group(&fs::read(path).unwrap()).unwrap();
        bench.catalog.delete_shards(model, &layers(2, 3), &none).unwrap();
        assert!(matches!(writer.finish(), Err(ModelError::Unlisted { .. })));
        assert!(!bench.catalog.has(&entry.id) && !bench.catalog.layout().partial(&entry.id).exists());
    }

    #[test]
    fn opening_completes_a_deletion_after_a_crash() {
        let (_from, mut bench, model) = placed();
        // The deletion is durable, the file still exists.
        let (_, path) = bench.shard(model, 2);
        let bytes = fs::read(&path).unwrap();
        bench.catalog.delete_shards(model, &layers(2, 3), &none).unwrap();
        fs::write(&path, &bytes).unwrap();
        bench.reopen();
        assert!(!path.exists() && bench.holds(model) == [LayerRange::new(0, 2), LayerRange::new(3, 4)]);
        // The released file reappears, since its directory was not flushed: it is held and can be released again.
        let (_, path) = bench.shard(model, 0);
        let bytes = fs::read(&path).unwrap();
        bench.catalog.release_placed(model, &layers(0, 1), &none).unwrap();
        fs::write(&path, &bytes).unwrap();
        bench.reopen();
        assert_eq!(bench.catalog.release_placed(model, &layers(0, 1), &none).unwrap(), [ShardKind::Layer(0)]);
        // Corrupt or missing provenance releases nothing.
        fs::write(bench.catalog.layout().provenance(&model), [0xff; 9]).unwrap();
        bench.reopen();
        assert_eq!(bench.catalog.release_placed(model, &all, &none).unwrap(), []);
        fs::remove_file(bench.catalog.layout().provenance(&model)).unwrap();
        bench.reopen();
        assert_eq!(bench.catalog.release_placed(model, &all, &none).unwrap(), []);
        assert_eq!(bench.holds(model), [LayerRange::new(1, 2), LayerRange::new(3, 4)]);
    }

    #[test]
    fn shared_shards_stay_while_a_model_wants_them() {
        let (_from, mut bench, placed) = placed();
        let other = bench.import("other");
        assert_eq!(bench.catalog.release_placed(placed, &layers(0, LAYERS), &none).unwrap(), []);
        bench.catalog.delete_shards(placed, &layers(0, 1), &none).unwrap();
        bench.reopen();
        assert_eq!(bench.holds(other), [LayerRange::new(0, LAYERS)]);
        // The second deletion removes the file.
        bench.catalog.delete_shards(other, &layers(0, 1), &none).unwrap();
        assert!(!bench.shard(other, 0).1.exists());
        // Removing the other model removes only the shards that nothing else wants.
        bench.catalog.delete_shards(placed, &layers(1, 2), &none).unwrap();
        bench.catalog.remove(other).unwrap();
        bench.reopen();
        assert_eq!(bench.holds(placed), [LayerRange::new(2, LAYERS)]);
    }
}
