//! Reads and changes the marks of the catalogue's models.

use super::marks::{Mark, Marks};
use super::{Catalog, State};
use crate::base::ModelId;
use crate::model::{ModelError, ShardEntry, ShardKind};

impl State {
    /// The shards of a known model, each with its mark.
    pub(super) fn marked(&self, model: ModelId) -> impl Iterator<Item = (&ShardEntry, Mark)> {
        static NOTHING: Marks = Marks(Vec::new());
        let marks = self.marks.get(&model).unwrap_or(&NOTHING);
        self.models.get(&model).into_iter().flat_map(|manifest| marks.with(manifest))
    }
}

impl Catalog {
    /// What was said last of each shard of a model; nothing of one that is not known.
    pub fn marks(&self, model: ModelId) -> Vec<(ShardKind, Mark)> {
        self.state().marked(model).map(|(entry, mark)| (entry.kind, mark)).collect()
    }

    /// Notes that the host asks for these shards, held or not: whatever was said before, they are its own from now on.
    pub fn note_wanted(&self, model: ModelId, parts: &dyn Fn(ShardKind) -> bool) -> Result<(), ModelError> {
        self.change_marks(model, &|entry, mark| if parts(entry.kind) { Mark::Wanted } else { mark })
    }

    /// Notes that placement asks for those of these shards that are not here, and of which the host has said nothing.
    pub fn note_placed(&self, model: ModelId, parts: &dyn Fn(ShardKind) -> bool) -> Result<(), ModelError> {
        self.change_marks(model, &|entry, mark| match mark {
            Mark::None if parts(entry.kind) && !self.has(&entry.id) => Mark::Placed,
            mark => mark,
        })
    }

    fn change_marks(&self, model: ModelId, change: &dyn Fn(&ShardEntry, Mark) -> Mark) -> Result<(), ModelError> {
        let _alone = self.disk();
        let manifest = self.known(model)?;
        let marks = self.marks_of(model).changed(&manifest, change);
        self.keep_marks(model, marks)
    }

    pub(super) fn marks_of(&self, model: ModelId) -> Marks {
        self.state().marks.get(&model).cloned().unwrap_or_default()
    }

    /// Makes the marks of a known model durable, then known. With the disk held.
    pub(super) fn keep_marks(&self, model: ModelId, marks: Marks) -> Result<(), ModelError> {
        if self.marks_of(model) == marks {
            return Ok(());
        }
        self.layout().prepare(&marks.encode())?.keep(&self.layout().marks(&model))?;
        self.layout().sync_models()?;
        self.state_mut().marks.insert(model, marks);
        Ok(())
    }
}
