//! Progress log of a download: the leaf of each received group, in order of arrival.

use super::files::PendingFile;
use crate::model::ModelError;
use crate::model::shard::Leaf;

/// Bytes of an entry's checksum.
const CHECKSUM: usize = 8;
/// Bytes of an entry.
const ENTRY: usize = size_of::<Leaf>() + CHECKSUM;

/// A file of leaves, each with a checksum keyed by the source's version. A torn or corrupt entry ends the log, and a log
/// of another version reads as empty.
#[derive(Debug)]
pub(super) struct LeafLog {
    file: PendingFile,
    source: [u8; 32],
    leaves: Vec<Leaf>,
}

impl LeafLog {
    /// Opens the log and keeps the valid entries of this source.
    pub fn open(mut file: PendingFile, source: [u8; 32]) -> Result<LeafLog, ModelError> {
        let mut leaves = Vec::new();
        let mut found = [0; ENTRY];
        while file.read(&mut found)? {
            let Some((leaf, _)) = found.split_first_chunk() else { break };
            if entry(&source, leaves.len(), leaf) != found {
                break;
            }
            leaves.push(*leaf);
        }
        let mut log = LeafLog { file, source, leaves };
        log.truncate(log.leaves.len())?;
        Ok(log)
    }

    /// The leaves from index `count` on.
    pub fn leaves_from(&self, count: usize) -> &[Leaf] {
        self.leaves.get(count..).unwrap_or_default()
    }

    /// Keeps only the first `count` leaves.
    pub fn truncate(&mut self, count: usize) -> Result<(), ModelError> {
        self.leaves.truncate(count);
        self.file.truncate((self.leaves.len() * ENTRY) as u64)
    }

    /// Appends the leaf of a group whose bytes were written.
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
