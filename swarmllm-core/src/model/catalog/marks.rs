//! By whose word each shard of a model is here, or is not: the host's, or placement's.
//!
//! Beside a manifest lies a file with one letter for each of its shards. It is replaced as a whole, and before anything is
//! done that it speaks of: a crash in between leaves a shard less than it says, or one more, which the next opening removes.

use std::fs;
use std::path::Path;

use super::{Catalog, State};
use crate::base::ModelId;
use crate::model::manifest::limits;
use crate::model::{Manifest, ModelError, ShardEntry, ShardKind};

/// What was said of a shard last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mark {
    /// Nothing. What is here is the host's.
    #[default]
    None,
    /// The host has imported it, or asked for it: only the host may delete it.
    Wanted,
    /// Placement asked for it, and may give it up.
    Placed,
    /// The host has deleted it. Nobody takes it again before the host asks for it.
    Deleted,
}

impl Mark {
    const LETTERS: [(Mark, u8); 4] =
        [(Mark::None, b'-'), (Mark::Wanted, b'w'), (Mark::Placed, b'p'), (Mark::Deleted, b'd')];

    fn letter(self) -> u8 {
        Self::LETTERS.iter().find(|(mark, _)| *mark == self).map_or(b'-', |(_, letter)| *letter)
    }

    /// A letter that is none is taken for the word that does the least harm.
    fn of(letter: u8) -> Mark {
        Self::LETTERS.iter().find(|(_, known)| *known == letter).map_or(Mark::Wanted, |(mark, _)| *mark)
    }
}

/// The marks of a model's shards, in the manifest's order; of those behind the end nothing was said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Marks(Vec<Mark>);

impl Marks {
    /// What lies on the disk; nothing where there is none.
    pub fn read(path: &Path) -> Result<Marks, ModelError> {
        let shards = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Marks::default()),
            found => found.map_err(ModelError::io("read", path))?.len(),
        };
        // More letters than a model has shards are not ours.
        let letters = match shards <= limits::BYTES as u64 {
            true => fs::read(path).map_err(ModelError::io("read", path))?,
            false => Vec::new(),
        };
        Ok(Marks(letters.into_iter().map(Mark::of).collect()))
    }

    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().map(|mark| mark.letter()).collect()
    }

    /// Each shard of its model with its mark.
    pub fn with<'a>(&'a self, manifest: &'a Manifest) -> impl Iterator<Item = (&'a ShardEntry, Mark)> {
        let marks = self.0.iter().copied().chain(std::iter::repeat(Mark::None));
        manifest.shards.iter().zip(marks)
    }

    /// Of two marks for each shard the one that keeps more: the host's wish, no word, placement's, a deletion.
    pub fn stronger(&self, other: &Marks, manifest: &Manifest) -> Marks {
        let rank = |mark: &Mark| match mark {
            Mark::Wanted => 3,
            Mark::None => 2,
            Mark::Placed => 1,
            Mark::Deleted => 0,
        };
        let pairs = self.with(manifest).zip(other.with(manifest));
        Marks(pairs.map(|((_, one), (_, two))| if rank(&one) >= rank(&two) { one } else { two }).collect())
    }

    /// What they become by `change`.
    pub fn changed(&self, manifest: &Manifest, change: &dyn Fn(&ShardEntry, Mark) -> Mark) -> Marks {
        Marks(self.with(manifest).map(|(entry, mark)| change(entry, mark)).collect())
    }
}

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
