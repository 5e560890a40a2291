//! A shard that grows group by group from a source that does not know its leaves: they are learnt on the way.

use super::files::Temporary;
use crate::base::ShardId;
use crate::model::ModelError;
use crate::model::shard::{GROUP, Leaf, group_len, groups, leaf, root_from_leaves};

/// A shard, or another stretch of bytes, of which the first groups are here. Without a file it is only hashed.
#[derive(Debug)]
pub(super) struct Growing {
    file: Option<Temporary>,
    size: u64,
    leaves: Vec<Leaf>,
}

impl Growing {
    /// Goes on with what an earlier attempt left. Groups in the file are read again; those count that are whole, and the
    /// ones that `known` says they were. Without a file they all are as `known` says.
    pub fn resume(file: Option<Temporary>, size: u64, known: Option<&[Leaf]>) -> Result<Growing, ModelError> {
        let mut growing = Growing { file, size, leaves: Vec::new() };
        match &mut growing.file {
            None => growing.leaves.extend(known.into_iter().flatten().take(groups(size) as usize)),
            Some(file) => {
                growing.leaves = read(file, size, known)?;
                file.cut((growing.leaves.len() as u64 * GROUP).min(size))?;
                if growing.leaves.len() as u64 == groups(size) {
                    // An attempt that was killed may have written the last group and not flushed it.
                    file.sync()?;
                }
            }
        }
        Ok(growing)
    }

    /// The group that is written next.
    pub fn next_group(&self) -> u64 {
        self.leaves.len() as u64
    }

    /// How many bytes that group has; 0 when all are here.
    pub fn next_len(&self) -> u64 {
        group_len(self.size, self.next_group())
    }

    /// Bytes that are here.
    pub fn here(&self) -> u64 {
        (self.next_group() * GROUP).min(self.size)
    }

    /// Writes the next group and gives its leaf. With the last one the shard is durable.
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

    /// What a complete shard is.
    pub fn finish(self) -> (ShardId, Option<Temporary>) {
        (root_from_leaves(&self.leaves), self.file)
    }
}

fn read(file: &mut Temporary, size: u64, known: Option<&[Leaf]>) -> Result<Vec<Leaf>, ModelError> {
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
    fn a_shard_that_an_earlier_attempt_wrote_to_its_end_is_flushed() {
        let dir = TempDir::new().unwrap();
        let layout = Layout::create(dir.path()).unwrap();
        let size = GROUP + 9;
        let resume = || Growing::resume(Some(layout.lasting(dir.path().join("shard")).unwrap()), size, None).unwrap();
        let begun = faults::flushes();
        resume().write(&vec![7; GROUP as usize]).unwrap();
        assert_eq!((resume().next_group(), faults::flushes()), (1, begun), "it is not whole");
        resume().write(&[7; 9]).unwrap();
        assert_eq!(faults::flushes(), begun + 1);
        assert_eq!((resume().next_len(), faults::flushes()), (0, begun + 2), "the attempt may have been killed before");
    }
}
