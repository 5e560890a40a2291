//! Writing a shard as it arrives: each group checked before it touches the disk, resumable, durable before it counts.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::growing::Growing;
use super::{Catalog, Claim};
use crate::base::ShardId;
use crate::model::shard::{GROUP, Leaf, ShardError, Verifier};
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
        self.check_wanted(shard.id)?;
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

impl Catalog {
    /// Begins or resumes a shard of a known model from a source that does not know its leaves, so that it can only be
    /// checked as a whole. Blocks for as long as reading the earlier groups takes.
    pub fn whole_writer(&self, shard: &ShardEntry) -> Result<WholeWriter, ModelError> {
        self.check_wanted(shard.id)?;
        let claim = Claim::new(self, shard.id)?;
        let file = self.layout().lasting(self.layout().partial(&shard.id))?;
        Ok(WholeWriter { claim, growing: Growing::resume(Some(file), shard.size, None)? })
    }

    /// Gives a complete and durable shard its place.
    fn settle(&self, shard: ShardId, path: &Path) -> Result<(), ModelError> {
        let _alone = self.disk();
        if let Err(error) = self.check_wanted(shard) {
            super::remove_if_there(path)?;
            return Err(error);
        }
        let target = self.layout().shard(&shard);
        fs::rename(path, &target).map_err(ModelError::io("rename to", &target))?;
        self.layout().sync_shards()?;
        self.forget_verified(&shard);
        self.note_held(shard);
        Ok(())
    }
}

/// A shard being written that is checked at its end. Dropping it keeps the groups written so far for the next attempt.
#[derive(Debug)]
pub struct WholeWriter {
    claim: Claim,
    growing: Growing,
}

impl WholeWriter {
    /// The group that is written next.
    pub fn next_group(&self) -> u64 {
        self.growing.next_group()
    }

    /// How many bytes it has; 0 when all are written.
    pub fn next_len(&self) -> u64 {
        self.growing.next_len()
    }

    /// Bytes that are here.
    pub fn here(&self) -> u64 {
        self.growing.here()
    }

    /// Writes the next group.
    pub fn write_group(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.growing.write(bytes).map(drop)
    }

    /// Checks the complete shard and puts it into the catalogue. One that is not what its id says is removed.
    pub fn finish(self) -> Result<(), ModelError> {
        let WholeWriter { claim, growing } = self;
        let (shard, path) = (claim.key, claim.catalog.layout().partial(&claim.key));
        let (found, file) = growing.finish();
        drop(file);
        if found != shard {
            super::remove_if_there(&path)?;
            return Err(ShardError::Bytes { shard }.into());
        }
        claim.catalog.settle(shard, &path)
    }
}

fn open_partial(path: &Path, verifier: &Verifier) -> std::io::Result<(File, u64)> {
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

    /// Makes the complete shard durable and puts it into the catalogue. Refused where it was deleted meanwhile, or its model.
    pub fn finish(self) -> Result<(), ModelError> {
        let (written, groups, shard) = (self.next, self.groups(), self.shard());
        if written < groups {
            return Err(ModelError::Unfinished { shard, written, groups });
        }
        self.file.sync_all().map_err(ModelError::io("flush", &self.path))?;
        self.catalog.settle(shard, &self.path)
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        self.catalog.unclaim(&self.verifier.shard());
    }
}
