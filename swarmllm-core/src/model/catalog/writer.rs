//! Writing a shard as it arrives: each group checked before it touches the disk, resumable, durable before it counts.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use super::Catalog;
use crate::base::ShardId;
use crate::model::shard::{GROUP, Leaf, Verifier};
use crate::model::{ModelError, ShardEntry};

/// A shard being written. Dropping it keeps the groups written so far for the next attempt.
#[derive(Debug)]
pub struct ShardWriter {
    catalog: Catalog,
    verifier: Verifier,
    file: File,
    path: PathBuf,
    next: u64,
}

impl Catalog {
    /// Begins or resumes a shard of a known model whose leaves are known. Groups that an earlier attempt left are read
    /// and checked; the writer continues at the first that is missing or damaged. One writer per shard at a time.
    ///
    /// Blocks for as long as reading the earlier groups takes.
    pub fn shard_writer(&self, shard: &ShardEntry, leaves: Vec<Leaf>) -> Result<ShardWriter, ModelError> {
        let verifier = Verifier::new(shard.id, shard.size, leaves)?;
        self.check_listed(shard.id)?;
        let path = self.layout().partial(&shard.id);
        self.claim(shard.id)?;
        let resumed = open_partial(&path, &verifier);
        match resumed {
            Ok((file, next)) => Ok(ShardWriter { catalog: self.clone(), verifier, file, path, next }),
            Err(source) => {
                self.unclaim(&shard.id);
                Err(ModelError::Io { operation: "open", path, source })
            }
        }
    }
}

fn open_partial(path: &std::path::Path, verifier: &Verifier) -> std::io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let len = file.metadata()?.len();
    let mut buffer = Vec::new();
    let mut next = 0;
    while next < verifier.groups() && next * GROUP + verifier.group_len(next) <= len {
        // At most `GROUP`, so it fits any usize.
        buffer.resize(verifier.group_len(next) as usize, 0);
        file.read_exact(&mut buffer)?;
        if verifier.check(next, &buffer).is_err() {
            break;
        }
        next += 1;
    }
    file.set_len((next * GROUP).min(verifier.size()))?;
    Ok((file, next))
}

impl ShardWriter {
    /// The shard.
    pub fn shard(&self) -> ShardId {
        self.verifier.shard()
    }

    /// The group that is written next; those before it are here and good.
    pub fn next_group(&self) -> u64 {
        self.next
    }

    /// How many groups the shard has.
    pub fn groups(&self) -> u64 {
        self.verifier.groups()
    }

    /// How many bytes the next group has; 0 when all are written.
    pub fn next_len(&self) -> u64 {
        self.verifier.group_len(self.next)
    }

    /// Checks and writes the next group. A group that is refused, or that the disk does not take, changes nothing: the
    /// same group may be given again.
    pub fn write_group(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.verifier.check(self.next, bytes)?;
        #[cfg(test)]
        super::files::faults::spend(bytes.len()).map_err(ModelError::io("write", &self.path))?;
        let written = self.file.seek(SeekFrom::Start(self.next * GROUP)).and_then(|_| self.file.write_all(bytes));
        written.map_err(ModelError::io("write", &self.path))?;
        self.next += 1;
        Ok(())
    }

    /// Makes the complete shard durable and puts it into the catalogue. Refused where its model was removed meanwhile.
    pub fn finish(self) -> Result<(), ModelError> {
        let (written, groups, shard) = (self.next, self.groups(), self.shard());
        if written < groups {
            return Err(ModelError::Unfinished { shard, written, groups });
        }
        self.file.sync_all().map_err(ModelError::io("flush", &self.path))?;
        let _alone = self.catalog.disk();
        if let Err(error) = self.catalog.check_listed(shard) {
            super::remove_if_there(&self.path)?;
            return Err(error);
        }
        let target = self.catalog.layout().shard(&shard);
        fs::rename(&self.path, &target).map_err(ModelError::io("rename to", &target))?;
        self.catalog.layout().sync_shards()?;
        self.catalog.forget_verified(&shard);
        self.catalog.note_held(shard);
        Ok(())
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        self.catalog.unclaim(&self.verifier.shard());
    }
}
