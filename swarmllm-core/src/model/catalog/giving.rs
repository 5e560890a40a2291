//! Giving up single shards of a model that stays known: by the host, whose word lasts, or by placement, which may give up
//! only what it fetched itself.

use std::collections::HashSet;

use super::marks::Mark;
use super::{Catalog, State};
use crate::base::{ModelId, ShardId};
use crate::model::{ModelError, ShardEntry, ShardKind};

impl Catalog {
    /// Deletes these shards of a model for the host, so that nobody takes them again before the host asks for them. Those
    /// that another model needs stay for it. Refused where the model is pinned, or `busy` names one of them.
    pub fn discard(
        &self,
        model: ModelId,
        parts: &dyn Fn(ShardKind) -> bool,
        busy: &dyn Fn(ShardKind) -> bool,
    ) -> Result<(), ModelError> {
        let _alone = self.disk();
        let manifest = self.known(model)?;
        self.check_free(model)?;
        if let Some(entry) = manifest.shards.iter().find(|entry| parts(entry.kind) && busy(entry.kind)) {
            return Err(ModelError::InUse { model: self.title(model), part: entry.kind });
        }
        let goes = |entry: &ShardEntry, mark| if parts(entry.kind) { Mark::Deleted } else { mark };
        // The word first: a crash in between leaves shards that the next opening removes.
        self.keep_marks(model, self.marks_of(model).changed(&manifest, &goes))?;
        self.remove_deleted(model)
    }

    /// Removes what a crash left of shards that the host had deleted.
    pub(super) fn finish_discards(&self) -> Result<(), ModelError> {
        let _alone = self.disk();
        for (model, _) in self.models() {
            self.remove_deleted(model)?;
        }
        Ok(())
    }

    fn remove_deleted(&self, model: ModelId) -> Result<(), ModelError> {
        let gone = self.state().unneeded(model, &|_, mark| mark == Mark::Deleted);
        self.remove_shards(&gone.into_iter().map(|entry| entry.id).collect())
    }

    /// Gives up those of these shards that placement fetched, that no other model needs and that `busy` does not name;
    /// gives the ones that went. Refused where the model is pinned.
    pub fn give_up(
        &self,
        model: ModelId,
        parts: &dyn Fn(ShardKind) -> bool,
        busy: &dyn Fn(ShardKind) -> bool,
    ) -> Result<Vec<ShardKind>, ModelError> {
        let _alone = self.disk();
        self.known(model)?;
        self.check_free(model)?;
        let goes = |entry: &ShardEntry, mark| mark == Mark::Placed && parts(entry.kind) && !busy(entry.kind);
        let mut gone = self.state().unneeded(model, &goes);
        gone.retain(|entry| self.has(&entry.id));
        // That they were placed is left to stand: it says nothing of what is not here.
        self.remove_shards(&gone.iter().map(|entry| entry.id).collect())?;
        Ok(gone.into_iter().map(|entry| entry.kind).collect())
    }

    pub(super) fn check_free(&self, model: ModelId) -> Result<(), ModelError> {
        match self.is_pinned(model) {
            true => Err(ModelError::Pinned { model: self.title(model) }),
            false => Ok(()),
        }
    }

    /// With the disk held. Files that are open stay readable where the system allows it.
    fn remove_shards(&self, gone: &HashSet<ShardId>) -> Result<(), ModelError> {
        // Forgotten before they go, so that nobody is told of a shard that is no more.
        let lost = gone.iter().filter(|shard| self.state_mut().held.remove(shard)).count();
        if lost > 0 {
            self.changed();
        }
        gone.iter().try_for_each(|shard| self.remove_shard(shard))
    }
}

impl State {
    /// Those shards of a model that `goes` names and nothing else needs: another part of the model, or another model.
    pub(super) fn unneeded(&self, model: ModelId, goes: &dyn Fn(&ShardEntry, Mark) -> bool) -> Vec<ShardEntry> {
        let (going, staying): (Vec<_>, Vec<_>) = self.marked(model).partition(|(entry, mark)| goes(entry, *mark));
        let wanted = |(entry, mark): (&ShardEntry, Mark)| (mark != Mark::Deleted).then_some(entry.id);
        let others = self.models.keys().filter(|other| **other != model).flat_map(|other| self.marked(*other));
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

        /// The same directory in another process's eyes.
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

        /// Takes a layer as from a peer.
        fn take(&self, from: &Bench, model: ModelId, layer: u32) -> Result<(), ModelError> {
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

    /// A catalogue that has all of a model, and one to which placement has brought all layers.
    fn placed() -> (Bench, Bench, ModelId) {
        let (from, to) = (Bench::new(), Bench::new());
        let model = from.import("small");
        to.catalog.add_manifest(&from.catalog.manifest(model).unwrap().encode(), model).unwrap();
        to.catalog.note_placed(model, &all).unwrap();
        let common = from.catalog.manifest(model).unwrap().shard(ShardKind::Common).cloned();
        if let Some(common) = common {
            let mut writer = to.catalog.whole_writer(&common).unwrap();
            writer.write_group(&fs::read(from.catalog.layout().shard(&common.id)).unwrap()).unwrap();
            writer.finish().unwrap();
        }
        (0..LAYERS).for_each(|layer| to.take(&from, model, layer).unwrap());
        (from, to, model)
    }

    #[test]
    fn placement_gives_up_what_it_fetched_and_nothing_of_the_hosts_after_a_restart_too() {
        let (from, mut bench, model) = placed();
        bench.reopen();
        // The host asks for one of them: it is here, and its own from now on.
        bench.catalog.note_wanted(model, &layers(1, 2)).unwrap();
        bench.reopen();
        let changes = bench.catalog.changes();
        let gone = bench.catalog.give_up(model, &layers(0, 3), &none).unwrap();
        assert_eq!(gone, [ShardKind::Layer(0), ShardKind::Layer(2)]);
        assert!(changes.has_changed().unwrap(), "it is announced");
        assert_eq!(bench.holds(model), [LayerRange::new(1, 2), LayerRange::new(3, 4)]);
        assert!(!bench.shard(model, 0).1.exists());
        bench.reopen();
        assert_eq!(bench.holds(model), [LayerRange::new(1, 2), LayerRange::new(3, 4)]);
        // It may be fetched again.
        bench.take(&from, model, 0).unwrap();
        assert_eq!(from.catalog.give_up(model, &all, &none).unwrap(), [], "what was imported stays");
    }

    #[test]
    fn what_runs_and_what_is_pinned_stays() {
        let (_from, bench, model) = placed();
        assert_eq!(bench.catalog.give_up(model, &layers(0, 2), &layers(0, 1)).unwrap(), [ShardKind::Layer(1)]);
        let refused = bench.catalog.discard(model, &layers(0, 3), &layers(0, 1)).unwrap_err();
        assert!(matches!(refused, ModelError::InUse { part: ShardKind::Layer(0), .. }));
        assert_eq!(bench.catalog.marks(model).iter().filter(|(_, mark)| *mark == Mark::Deleted).count(), 0);
        bench.catalog.pin(model, true).unwrap();
        for refused in [
            bench.catalog.give_up(model, &all, &none).map(drop).unwrap_err(),
            bench.catalog.discard(model, &all, &none).unwrap_err(),
        ] {
            assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        }
        assert_eq!(bench.holds(model), [LayerRange::new(0, 1), LayerRange::new(2, 4)]);
    }

    #[test]
    fn a_stage_that_has_its_files_reads_on_when_they_are_given_up() {
        let (from, bench, model) = placed();
        let stage = LayerRange::new(0, LAYERS);
        let tensors = bench.catalog.stage_source(model, stage, false).unwrap().tensors;
        assert_eq!(bench.catalog.give_up(model, &layers(0, LAYERS), &none).unwrap().len(), LAYERS as usize);
        for (here, there) in tensors.iter().zip(from.catalog.stage_source(model, stage, false).unwrap().tensors) {
            let read = |tensor: &crate::model::SourceTensor| {
                let mut bytes = vec![0; tensor.entry.size as usize];
                tensor.read_exact_at(0, &mut bytes).map(|()| bytes)
            };
            assert_eq!(read(here).unwrap(), read(&there).unwrap());
        }
    }

    #[test]
    fn what_the_host_deleted_stays_deleted_until_the_host_asks_for_it() {
        let (from, mut bench, model) = placed();
        bench.catalog.discard(model, &layers(1, 3), &none).unwrap();
        for _ in 0..2 {
            assert_eq!(bench.holds(model), [LayerRange::new(0, 1), LayerRange::new(3, 4)]);
            bench.catalog.note_placed(model, &all).unwrap();
            assert!(
                matches!(bench.take(&from, model, 1), Err(ModelError::Unlisted { .. })),
                "placement cannot take it"
            );
            bench.reopen();
        }
        bench.catalog.note_wanted(model, &layers(1, 2)).unwrap();
        bench.take(&from, model, 1).unwrap();
        assert_eq!(bench.catalog.give_up(model, &layers(1, 2), &none).unwrap(), [], "it is the host's");
        // An import brings back all.
        assert_eq!(bench.import("small"), model);
        assert!(bench.catalog.marks(model).iter().all(|(_, mark)| *mark == Mark::Wanted));
        bench.reopen();
        assert_eq!(bench.holds(model), [LayerRange::new(0, LAYERS)]);
    }

    #[test]
    fn a_shard_that_comes_while_the_host_deletes_it_is_not_taken() {
        let (from, bench, model) = placed();
        bench.catalog.give_up(model, &layers(2, 3), &none).unwrap();
        let (entry, path) = from.shard(model, 2);
        let leaves = from.catalog.shard_leaves(&entry.id).unwrap();
        let mut writer = bench.catalog.shard_writer(&entry, leaves.to_vec()).unwrap();
        writer.write_group(&fs::read(path).unwrap()).unwrap();
        bench.catalog.discard(model, &layers(2, 3), &none).unwrap();
        assert!(matches!(writer.finish(), Err(ModelError::Unlisted { .. })));
        assert!(!bench.catalog.has(&entry.id) && !bench.catalog.layout().partial(&entry.id).exists());
    }

    #[test]
    fn a_crash_between_the_word_and_the_files_is_made_good_by_the_next_opening() {
        let (_from, mut bench, model) = placed();
        // The word is durable, the file is still there.
        let (_, path) = bench.shard(model, 2);
        let bytes = fs::read(&path).unwrap();
        bench.catalog.discard(model, &layers(2, 3), &none).unwrap();
        fs::write(&path, &bytes).unwrap();
        bench.reopen();
        assert!(!path.exists() && bench.holds(model) == [LayerRange::new(0, 2), LayerRange::new(3, 4)]);
        // Placement's file comes back, since no directory was flushed: it is held, and may go again.
        let (_, path) = bench.shard(model, 0);
        let bytes = fs::read(&path).unwrap();
        bench.catalog.give_up(model, &layers(0, 1), &none).unwrap();
        fs::write(&path, &bytes).unwrap();
        bench.reopen();
        assert_eq!(bench.catalog.give_up(model, &layers(0, 1), &none).unwrap(), [ShardKind::Layer(0)]);
        // Marks that are lost or no marks give nothing away.
        fs::write(bench.catalog.layout().marks(&model), [0xff; 9]).unwrap();
        bench.reopen();
        assert_eq!(bench.catalog.give_up(model, &all, &none).unwrap(), []);
        fs::remove_file(bench.catalog.layout().marks(&model)).unwrap();
        bench.reopen();
        assert_eq!(bench.catalog.give_up(model, &all, &none).unwrap(), []);
        assert_eq!(bench.holds(model), [LayerRange::new(1, 2), LayerRange::new(3, 4)]);
    }

    #[test]
    fn shards_of_two_models_stay_for_the_one_that_wants_them() {
        let (_from, mut bench, placed) = placed();
        let other = bench.import("other");
        assert_eq!(bench.catalog.give_up(placed, &layers(0, LAYERS), &none).unwrap(), []);
        bench.catalog.discard(placed, &layers(0, 1), &none).unwrap();
        bench.reopen();
        assert_eq!(bench.holds(other), [LayerRange::new(0, LAYERS)]);
        // The second word takes it away from both.
        bench.catalog.discard(other, &layers(0, 1), &none).unwrap();
        assert!(!bench.shard(other, 0).1.exists());
        // With the other model goes what nothing else wants, and no more.
        bench.catalog.discard(placed, &layers(1, 2), &none).unwrap();
        bench.catalog.remove(other).unwrap();
        bench.reopen();
        assert_eq!(bench.holds(placed), [LayerRange::new(2, LAYERS)]);
    }
}
