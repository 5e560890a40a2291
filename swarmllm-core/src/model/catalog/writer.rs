//! Writing shards as they arrive: resumable, verified per group or as a whole, durable before they count as held.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::partial_shard::PartialShard;
use super::{Catalog, Claim};
use crate::base::ShardId;
use crate::model::shard::{GROUP, Leaf, ShardError, Verifier};
use crate::model::{ModelError, ShardEntry};

/// A shard that is being written, verified per group. Dropping it keeps the written groups for the next attempt.
#[derive(Debug)]
pub struct ShardWriter {
    catalog: Catalog,
    verifier: Verifier,
    file: File,
    path: PathBuf,
    next: u64,
}

impl Catalog {
    /// Starts or resumes a shard of a known model from its leaves. Groups of an earlier attempt are read and checked; the
    /// writer continues at the first missing or damaged one. One writer per shard at a time.
    ///
    /// Blocks while it reads the earlier groups.
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
    /// Starts or resumes a shard of a known model from a source without leaves; only the whole shard can be verified.
    /// Blocks while it reads the earlier groups.
    pub fn whole_writer(&self, shard: &ShardEntry) -> Result<WholeWriter, ModelError> {
        self.check_wanted(shard.id)?;
        let claim = Claim::new(self, shard.id)?;
        let file = self.layout().resumable(self.layout().partial(&shard.id))?;
        Ok(WholeWriter { claim, partial: PartialShard::resume(Some(file), shard.size, None)? })
    }

    /// Moves a complete and durable shard into place.
    fn commit(&self, shard: ShardId, path: &Path) -> Result<(), ModelError> {
        let _guard = self.lock_disk();
        if let Err(error) = self.check_wanted(shard) {
            super::remove_if_exists(path)?;
            return Err(error);
        }
        let target = self.layout().shard(&shard);
        fs::rename(path, &target).map_err(ModelError::io("rename to", &target))?;
        self.layout().sync_shards()?;
        self.forget_verified(&shard);
        self.mark_held(shard);
        Ok(())
    }
}

/// A shard that is being written, verified at its end. Dropping it keeps the written groups for the next attempt.
#[derive(Debug)]
pub struct WholeWriter {
    claim: Claim,
    partial: PartialShard,
}

impl WholeWriter {
    /// The group to write next.
    pub fn next_group(&self) -> u64 {
        self.partial.next_group()
    }

    /// Bytes of the next group; 0 when all groups are written.
    pub fn next_len(&self) -> u64 {
        self.partial.next_len()
    }

    /// Bytes written so far.
    pub fn bytes_written(&self) -> u64 {
        self.partial.bytes_written()
    }

    /// Writes the next group.
    pub fn write_group(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.partial.write(bytes).map(drop)
    }

    /// Verifies the complete shard and adds it to the catalogue. A shard that does not match its id is removed.
    pub fn finish(self) -> Result<(), ModelError> {
        let WholeWriter { claim, partial } = self;
        let (shard, path) = (claim.key, claim.catalog.layout().partial(&claim.key));
        let (found, file) = partial.finish();
        drop(file);
        if found != shard {
            super::remove_if_exists(&path)?;
            return Err(ShardError::Bytes { shard }.into());
        }
        claim.catalog.commit(shard, &path)
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
    /// The shard's id.
    pub fn shard(&self) -> ShardId {
        self.verifier.shard()
    }

    /// The group to write next; all groups before it are written and verified.
    pub fn next_group(&self) -> u64 {
        self.next
    }

    /// Number of groups of the shard.
    pub fn groups(&self) -> u64 {
        self.verifier.groups()
    }

    /// Bytes of the next group; 0 when all groups are written.
    pub fn next_len(&self) -> u64 {
        self.verifier.group_len(self.next)
    }

    /// Verifies and writes the next group. If the group is refused, or the write fails, nothing changes; the same group can
    /// be written again.
    pub fn write_group(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.verifier.check(self.next, bytes)?;
        #[cfg(test)]
        super::files::faults::spend(bytes.len()).map_err(ModelError::io("write", &self.path))?;
        let written = self.file.seek(SeekFrom::Start(self.next * GROUP)).and_then(|_| self.file.write_all(bytes));
        written.map_err(ModelError::io("write", &self.path))?;
        self.next += 1;
        Ok(())
    }

    /// Makes the complete shard durable and adds it to the catalogue. Refused if the shard or its model was deleted
    /// meanwhile.
    pub fn finish(self) -> Result<(), ModelError> {
        let (written, groups, shard) = (self.next, self.groups(), self.shard());
        if written < groups {
            return Err(ModelError::Unfinished { shard, written, groups });
        }
        self.file.sync_all().map_err(ModelError::io("flush", &self.path))?;
        self.catalog.commit(shard, &self.path)
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        self.catalog.unclaim(&self.verifier.shard());
    }
}
