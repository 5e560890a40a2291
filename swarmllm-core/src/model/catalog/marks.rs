//! By whose word each shard of a model is here, or is not: the host's, or placement's.
//!
//! Beside a manifest lies a file with one letter for each of its shards. It is replaced as a whole, and before anything is
//! done that it speaks of: a crash in between leaves a shard less than it says, or one more, which the next opening removes.

use std::fs;
use std::path::Path;

use crate::model::manifest::limits;
use crate::model::{Manifest, ModelError, ShardEntry};

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
pub(super) struct Marks(pub(super) Vec<Mark>);

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
