//! A shard that grows group by group from a source without leaves; the leaves are computed on the way.

use super::files::PendingFile;
use crate::base::ShardId;
use crate::model::ModelError;
use crate::model::shard::{GROUP, Leaf, group_len, groups, leaf, root_from_leaves};

/// The first groups of a shard or of another byte range. Without a file they are only hashed.
#[derive(Debug)]
pub(super) struct PartialShard {
    file: Option<PendingFile>,
    size: u64,
    leaves: Vec<Leaf>,
}

impl PartialShard {
    /// Resumes an earlier attempt. Groups in the file are read again and count if they are complete and match `known`.
    /// Without a file the groups of `known` count.
    pub fn resume(file: Option<PendingFile>, size: u64, known: Option<&[Leaf]>) -> Result<PartialShard, ModelError> {
        let mut partial = PartialShard { file, size, leaves: Vec::new() };
        match &mut partial.file {
            None => partial.leaves.extend(known.into_iter().flatten().take(groups(size) as usize)),
            Some(file) => {
                partial.leaves = read(file, size, known)?;
                file.truncate((partial.leaves.len() as u64 * GROUP).min(size))?;
                if partial.leaves.len() as u64 == groups(size) {
                    // A killed attempt may have written the last group without a flush.
                    file.sync()?;
                }
            }
        }
        Ok(partial)
    }

    /// The group to write next.
    pub fn next_group(&self) -> u64 {
        self.leaves.len() as u64
    }

    /// Bytes of the next group; 0 when all groups are written.
    pub fn next_len(&self) -> u64 {
        group_len(self.size, self.next_group())
    }

    /// Bytes of the groups written so far.
    pub fn bytes_written(&self) -> u64 {
        (self.next_group() * GROUP).min(self.size)
    }

    /// Writes the next group and returns its leaf. After the last group the shard is durable.
    pub fn write(&mut self, bytes: &[u8]) -> Result<Leaf, ModelError> {
        let last = self.next_group() + 1 == groups(self.size);
        if let Some(file) = &mut self.file {
            file.write(bytes)?;
            if last {
                file.sync()?;
            }
        }
        let leaf = leaf(self.next_group(), groups(self.size), bytes);
        self.leaves.push(leaf);
        Ok(leaf)
    }

    /// The id of a complete shard, and its file.
    pub fn finish(self) -> (ShardId, Option<PendingFile>) {
        (root_from_leaves(&self.leaves), self.file)
    }
}

fn read(file: &mut PendingFile, size: u64, known: Option<&[Leaf]>) -> Result<Vec<Leaf>, ModelError> {
    let mut leaves: Vec<Leaf> = Vec::new();
    let mut buffer = Vec::new();
    for group in 0..groups(size) {
        // At most `GROUP`, so it fits any usize.
        buffer.resize(group_len(size, group) as usize, 0);
        if known.is_some_and(|known| known.len() == leaves.len()) || !file.read(&mut buffer)? {
            break;
        }
        let found = leaf(group, groups(size), &buffer);
        if known.is_some_and(|known| known.get(leaves.len()) != Some(&found)) {
            break;
        }
        leaves.push(found);
    }
    Ok(leaves)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::files::{Layout, faults};
    use super::*;

    #[test]
    fn a_shard_completed_by_an_earlier_attempt_is_flushed() {
        let dir = TempDir::new().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let size = GROUP + 9;
        let resume =
            || PartialShard::resume(Some(layout.resumable(dir.path().join("shard")).unwrap()), size, None).unwrap();
        let begun = faults::flushes();
        resume().write(&vec![7; GROUP as usize]).unwrap();
        assert_eq!((resume().next_group(), faults::flushes()), (1, begun), "the shard is not complete");
        resume().write(&[7; 9]).unwrap();
        assert_eq!(faults::flushes(), begun + 1);
        assert_eq!(
            (resume().next_len(), faults::flushes()),
            (0, begun + 2),
            "the earlier attempt may have been killed"
        );
    }
}
