//! What of a source has come so far, for the next attempt: the leaf of each group in the order of arrival.

use super::files::Temporary;
use crate::model::ModelError;
use crate::model::shard::Leaf;

/// Bytes of a leaf's check.
const CHECK: usize = 8;
/// Bytes of an entry.
const ENTRY: usize = size_of::<Leaf>() + CHECK;

/// A file of leaves, each with a check that is keyed by what the source is. So a torn or rotten entry ends the log, and
/// of another source, or another version of it, there is none.
#[derive(Debug)]
pub(super) struct Log {
    file: Temporary,
    source: [u8; 32],
    leaves: Vec<Leaf>,
}

impl Log {
    /// Reads what is there of this source.
    pub fn open(mut file: Temporary, source: [u8; 32]) -> Result<Log, ModelError> {
        let mut leaves = Vec::new();
        let mut found = [0; ENTRY];
        while file.read(&mut found)? {
            let Some((leaf, _)) = found.split_first_chunk() else { break };
            if entry(&source, leaves.len(), leaf) != found {
                break;
            }
            leaves.push(*leaf);
        }
        let mut log = Log { file, source, leaves };
        log.cut(log.leaves.len())?;
        Ok(log)
    }

    /// The leaves from this one on.
    pub fn after(&self, count: usize) -> &[Leaf] {
        self.leaves.get(count..).unwrap_or_default()
    }

    /// Forgets all but the first leaves.
    pub fn cut(&mut self, count: usize) -> Result<(), ModelError> {
        self.leaves.truncate(count);
        self.file.cut((self.leaves.len() * ENTRY) as u64)
    }

    /// Adds a leaf whose bytes were written.
    pub fn push(&mut self, leaf: Leaf) -> Result<(), ModelError> {
        self.file.write(&entry(&self.source, self.leaves.len(), &leaf))?;
        self.leaves.push(leaf);
        Ok(())
    }
}

fn entry(source: &[u8; 32], index: usize, leaf: &Leaf) -> [u8; ENTRY] {
    let mut hasher = blake3::Hasher::new_keyed(source);
    hasher.update(&(index as u64).to_le_bytes()).update(leaf);
    let mut entry = [0; ENTRY];
    let (head, check) = entry.split_at_mut(leaf.len());
    head.copy_from_slice(leaf);
    hasher.finalize_xof().fill(check);
    entry
}
