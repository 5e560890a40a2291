//! Provenance of a model's shards: whether the host or placement requested each shard, or the host deleted it.
//!
//! A file beside the manifest has one letter per shard. It is replaced atomically, and before the change that it records:
//! a crash in between leaves a recorded shard missing, or a deleted one on disk, which the next opening removes.

use std::fs;
use std::path::Path;

use crate::model::manifest::limits;
use crate::model::{Manifest, ModelError, ShardEntry};

/// Why a shard is here, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Provenance {
    /// Nothing is recorded. A shard on disk is the host's.
    #[default]
    Unrecorded,
    /// The host imported or requested it; only the host may delete it.
    Requested,
    /// Placement requested it and may release it.
    Placed,
    /// The host deleted it. It is not fetched again before the host requests it.
    Deleted,
}

impl Provenance {
    const LETTERS: [(Provenance, u8); 4] = [
        (Provenance::Unrecorded, b'-'),
        (Provenance::Requested, b'w'),
        (Provenance::Placed, b'p'),
        (Provenance::Deleted, b'd'),
    ];

    fn letter(self) -> u8 {
        Self::LETTERS.iter().find(|(provenance, _)| *provenance == self).map_or(b'-', |(_, letter)| *letter)
    }

    /// An unknown letter reads as `Requested`, the value that removes nothing.
    fn of(letter: u8) -> Provenance {
        Self::LETTERS
            .iter()
            .find(|(_, known)| *known == letter)
            .map_or(Provenance::Requested, |(provenance, _)| *provenance)
    }
}

/// Provenance of a model's shards in manifest order. Missing entries at the end are unrecorded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct ProvenanceTable(pub(super) Vec<Provenance>);

impl ProvenanceTable {
    /// Reads the file; empty if there is none.
    pub fn read(path: &Path) -> Result<ProvenanceTable, ModelError> {
        let shards = match fs::metadata(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ProvenanceTable::default()),
            found => found.map_err(ModelError::io("read", path))?.len(),
        };
        // A file with more letters than a model has shards is not valid.
        let letters = match shards <= limits::BYTES as u64 {
            true => fs::read(path).map_err(ModelError::io("read", path))?,
            false => Vec::new(),
        };
        Ok(ProvenanceTable(letters.into_iter().map(Provenance::of).collect()))
    }

    pub fn encode(&self) -> Vec<u8> {
        self.0.iter().map(|provenance| provenance.letter()).collect()
    }

    /// Each shard of the manifest with its provenance.
    pub fn with<'a>(&'a self, manifest: &'a Manifest) -> impl Iterator<Item = (&'a ShardEntry, Provenance)> {
        let entries = self.0.iter().copied().chain(std::iter::repeat(Provenance::Unrecorded));
        manifest.shards.iter().zip(entries)
    }

    /// For each shard the stronger of two entries, in this order: requested, unrecorded, placed, deleted.
    pub fn stronger(&self, other: &ProvenanceTable, manifest: &Manifest) -> ProvenanceTable {
        let rank = |provenance: &Provenance| match provenance {
            Provenance::Requested => 3,
            Provenance::Unrecorded => 2,
            Provenance::Placed => 1,
            Provenance::Deleted => 0,
        };
        let pairs = self.with(manifest).zip(other.with(manifest));
        ProvenanceTable(pairs.map(|((_, one), (_, two))| if rank(&one) >= rank(&two) { one } else { two }).collect())
    }

    /// The table after `change` of each entry.
    pub fn changed(
        &self,
        manifest: &Manifest,
        change: &dyn Fn(&ShardEntry, Provenance) -> Provenance,
    ) -> ProvenanceTable {
        ProvenanceTable(self.with(manifest).map(|(entry, provenance)| change(entry, provenance)).collect())
    }
}
