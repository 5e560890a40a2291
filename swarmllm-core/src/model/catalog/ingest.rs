//! Import of a GGUF from a source that serves byte ranges, one group at a time. Does no network IO: the caller asks which
//! ranges are next, fetches them and passes the bytes in.
//!
//! Progress survives an interrupted attempt. The log has the leaf of each group; the next attempt counts the groups that
//! are in the log and, for kept shards, also in their files. A killed process therefore fetches at most one group again.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::budget::Reservation;
use super::files::PendingFile;
use super::leaf_log::LeafLog;
use super::names::Names;
use super::partial_shard::PartialShard;
use super::{Catalog, Claim};
use crate::base::{ModelId, Progress, ShardId};
use crate::model::gguf::Gguf;
use crate::model::manifest::{FilePiece, Sharding};
use crate::model::shard::groups;
use crate::model::{Manifest, ModelError, ShardKind};

/// A file at a source that serves byte ranges.
#[derive(Debug, Clone)]
pub struct RangeSource {
    /// Name of the source in errors.
    pub label: String,
    /// Identifies the source. Attempts with the same key exclude each other.
    pub key: [u8; 32],
    /// Identifies the current bytes of the file; another version of the file has another value.
    pub version: [u8; 32],
    /// Length of the file in bytes.
    pub len: u64,
}

impl RangeSource {
    fn path(&self) -> PathBuf {
        PathBuf::from(&self.label)
    }
}

/// Reads the beginning of a file until its header is complete.
#[derive(Debug)]
pub struct HeaderIngest {
    claim: Claim,
    origin: RangeSource,
    log: LeafLog,
    partial: PartialShard,
    bytes: Vec<u8>,
}

impl Catalog {
    /// Starts or resumes the import of a file. Blocks while it reads the state of an earlier attempt.
    pub fn ingest(&self, origin: RangeSource) -> Result<HeaderIngest, ModelError> {
        let key = ShardId(origin.key);
        let claim = Claim::new(self, key)?;
        let path = |part| self.layout().download_file(&key, part);
        let log = LeafLog::open(self.layout().resumable(path("log"))?, origin.version)?;
        if log.leaves_from(0).is_empty() {
            // Other files of this key belong to another version.
            drop(log);
            self.layout().remove_download(&key)?;
        }
        let log = LeafLog::open(self.layout().resumable(path("log"))?, origin.version)?;
        let head = path("head");
        let partial =
            PartialShard::resume(Some(self.layout().resumable(head.clone())?), origin.len, Some(log.leaves_from(0)))?;
        let bytes = std::fs::read(&head).map_err(ModelError::io("read", &head))?;
        Ok(HeaderIngest { claim, origin, log, partial, bytes })
    }
}

impl HeaderIngest {
    /// The header, if it is complete; `None` if [`HeaderIngest::write`] needs more bytes.
    pub fn header(&mut self) -> Result<Option<Gguf>, ModelError> {
        let header = Gguf::read_prefix(&self.bytes, self.origin.len);
        let header = header.map_err(|source| ModelError::Gguf { path: self.origin.path(), source })?;
        if header.is_none() {
            // After disk damage the header file can be shorter than the log says.
            self.log.truncate(self.partial.next_group() as usize)?;
        }
        Ok(header)
    }

    /// The next range of the file.
    pub fn next(&self) -> FilePiece {
        FilePiece { at: 0, position: self.partial.bytes_written(), len: self.partial.next_len() as usize }
    }

    /// Writes the bytes of the next range.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        let leaf = self.partial.write(bytes)?;
        self.bytes.extend_from_slice(bytes);
        self.log.push(leaf)
    }

    /// Bytes that were read past the header, and their file offset.
    pub fn tail(&self, header: &Gguf) -> (u64, Bytes) {
        header.after_header(&self.bytes)
    }

    /// The known model with this header. `None` if there is none, or if several differ only in their weights.
    pub fn matching_model(&self, sharding: &Sharding) -> Option<Arc<Manifest>> {
        let models = self.claim.catalog.models();
        let mut found =
            models.into_iter().map(|(_, manifest)| manifest).filter(|manifest| sharding.is_header_of(manifest));
        found.next().filter(|_| found.next().is_none())
    }

    /// Finishes the import of a known model whose wanted shards are all held. For `name` and `stem` see
    /// [`HeaderIngest::into_shards`].
    pub fn finish_known(
        self,
        model: ModelId,
        (header, sharding): (&Gguf, &Sharding),
        name: Option<&str>,
        stem: Option<&str>,
    ) -> Result<(), ModelError> {
        let HeaderIngest { claim, log, partial, .. } = self;
        let names = claim.catalog.import_names(name, header, stem, sharding)?;
        claim.catalog.add_import_names(model, &names)?;
        drop((log, partial));
        claim.catalog.layout().remove_download(&claim.key)
    }

    /// Refuses an alias of another model before anything but the header is fetched.
    pub fn check_alias(
        &self,
        (header, sharding): (&Gguf, &Sharding),
        name: Option<&str>,
        stem: Option<&str>,
    ) -> Result<(), ModelError> {
        self.claim.catalog.import_names(name, header, stem, sharding).map(drop)
    }

    /// Splits the model into shards and resumes an earlier attempt. Refuses a model that would exceed the catalogue's bound.
    /// `name` becomes an alias. The hint is the name in the file, or else `stem`.
    pub fn into_shards(
        self,
        header: &Gguf,
        name: Option<&str>,
        stem: Option<&str>,
        keep: impl Fn(ShardKind) -> bool,
    ) -> Result<RangeIngest, ModelError> {
        let HeaderIngest { claim, origin, log, partial, .. } = self;
        let sharding = Sharding::new(header).map_err(|source| ModelError::Sharding { path: origin.path(), source })?;
        let keeps: Vec<bool> = sharding.manifest.shards.iter().map(|shard| keep(shard.kind)).collect();
        let mut ingest = RangeIngest {
            names: claim.catalog.import_names(name, header, stem, &sharding)?,
            claim,
            base: partial.next_group() as usize,
            log,
            sharding,
            keeps,
            done: Vec::new(),
            current: None,
            reserved: None,
        };
        ingest.reserve()?;
        ingest.advance()?;
        Ok(ingest)
    }
}

/// Writes the shards of a model one after another.
#[derive(Debug)]
pub struct RangeIngest {
    claim: Claim,
    names: Names,
    log: LeafLog,
    sharding: Sharding,
    /// Whether each shard is kept.
    keeps: Vec<bool>,
    /// Complete shards, with the files of the kept ones.
    done: Vec<(ShardId, Option<PendingFile>)>,
    current: Option<PartialShard>,
    /// Number of log entries before the current shard.
    base: usize,
    reserved: Option<Reservation>,
}

impl RangeIngest {
    /// How the file is split; shard ids are not known yet.
    pub fn sharding(&self) -> &Sharding {
        &self.sharding
    }

    /// The ranges of the next group and its length in bytes; `None` when everything is written.
    pub fn next(&self) -> Option<(Vec<FilePiece>, usize)> {
        let current = self.current.as_ref()?;
        // A group is at most 1 MiB.
        Some((self.sharding.pieces(self.done.len(), current.next_group()), current.next_len() as usize))
    }

    /// Writes the next group.
    pub fn write(&mut self, group: &[u8]) -> Result<(), ModelError> {
        let Some(current) = &mut self.current else { return Ok(()) };
        let leaf = current.write(group)?;
        let kept = self.keeps.get(self.done.len()).is_some_and(|kept| *kept);
        if let Some(reserved) = self.reserved.as_mut().filter(|_| kept) {
            reserved.spend(group.len() as u64);
        }
        self.log.push(leaf)?;
        self.advance()
    }

    /// Bytes written, and the total.
    pub fn progress(&self) -> Progress {
        let sizes = || self.sharding.manifest.shards.iter().map(|shard| shard.size);
        let written = self.current.as_ref().map_or(0, PartialShard::bytes_written);
        Progress { done: sizes().take(self.done.len()).sum::<u64>() + written, total: sizes().sum() }
    }

    /// Adds the model to the catalogue.
    pub fn finish(self) -> Result<ModelId, ModelError> {
        let RangeIngest { claim, names, mut sharding, done, log, reserved, .. } = self;
        for (shard, (id, _)) in sharding.manifest.shards.iter_mut().zip(&done) {
            shard.id = *id;
        }
        let written = done.into_iter().filter_map(|(id, file)| Some((id, file?))).collect();
        let model = claim.catalog.install_model(written, sharding.manifest, &names)?;
        drop((log, reserved));
        claim.catalog.layout().remove_download(&claim.key)?;
        Ok(model)
    }

    /// Moves on to the first incomplete shard.
    fn advance(&mut self) -> Result<(), ModelError> {
        loop {
            if let Some(current) = self.current.take() {
                if current.next_len() > 0 {
                    self.current = Some(current);
                    return Ok(());
                }
                self.base += current.next_group() as usize;
                self.done.push(current.finish());
            }
            let index = self.done.len();
            let (Some(shard), Some(keep)) = (self.sharding.manifest.shards.get(index), self.keeps.get(index)) else {
                return Ok(());
            };
            let layout = self.claim.catalog.layout();
            let file = keep
                .then(|| layout.resumable(layout.download_file(&self.claim.key, &index.to_string())))
                .transpose()?;
            if shard.kind == ShardKind::Metadata {
                self.done.push(metadata(file, &self.sharding.metadata)?);
                continue;
            }
            let known = self.log.leaves_from(self.base);
            let known = known.get(..groups(shard.size) as usize).unwrap_or(known);
            let partial = PartialShard::resume(file, shard.size, Some(known))?;
            if partial.next_len() > 0 {
                // Later log entries cannot be resumed.
                self.log.truncate(self.base + partial.next_group() as usize)?;
            }
            self.current = Some(partial);
        }
    }

    /// Reserves the bytes of the kept shards that are not on disk yet.
    fn reserve(&mut self) -> Result<(), ModelError> {
        let layout = self.claim.catalog.layout();
        let mut missing = 0u64;
        for (index, (shard, _)) in
            self.sharding.manifest.shards.iter().zip(&self.keeps).enumerate().filter(|(_, (_, keep))| **keep)
        {
            let path = layout.download_file(&self.claim.key, &index.to_string());
            let written = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            missing = missing.saturating_add(shard.size.saturating_sub(written));
        }
        self.reserved = Some(self.claim.catalog.reserve(missing)?);
        Ok(())
    }
}

/// Writes the metadata shard, which is computed from the header.
fn metadata(file: Option<PendingFile>, bytes: &[u8]) -> Result<(ShardId, Option<PendingFile>), ModelError> {
    let mut partial = PartialShard::resume(file, bytes.len() as u64, Some(&[]))?;
    let (group, mut left) = (crate::model::shard::GROUP as usize, bytes);
    while !left.is_empty() {
        let (now, later) = left.split_at(left.len().min(group));
        partial.write(now)?;
        left = later;
    }
    Ok(partial.finish())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::super::files::faults;
    use super::*;
    use crate::base::ErrorKind;
    use crate::model::Fact;
    use crate::model::gguf::tests::{file, tensor};
    use crate::model::shard::GROUP;

    /// A model whose header has more than two groups.
    fn wordy() -> Vec<u8> {
        let words: Vec<String> = (0..150_000).map(|number| format!("word{number}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let facts = [
            Fact::string("general.architecture", "llama"),
            Fact::u32("llama.block_count", 1),
            Fact::u32("llama.context_length", 64),
            Fact::u32("llama.embedding_length", 8),
            Fact::strings("tokenizer.ggml.tokens", &words),
        ];
        let tensors = [
            tensor("token_embd.weight", &[8, 16], 0, 1),
            tensor("blk.0.ffn_up.weight", &[8, 40 * 1024], 0, 2),
            tensor("output_norm.weight", &[8], 0, 3),
        ];
        file(&facts, &tensors, 32)
    }

    /// A whole attempt; `fetched` counts the bytes that it requests.
    fn attempt(catalog: &Catalog, bytes: &[u8], fetched: &mut usize) -> Result<ModelId, ModelError> {
        let len = bytes.len() as u64;
        let mut ingest =
            catalog.ingest(RangeSource { label: "web".to_owned(), key: [1; 32], version: [2; 32], len })?;
        let mut take = |piece: &FilePiece| {
            *fetched += piece.len;
            bytes[piece.position as usize..][..piece.len].to_vec()
        };
        let header = loop {
            if let Some(header) = ingest.header()? {
                break header;
            }
            let piece = ingest.next();
            ingest.write(&take(&piece))?;
        };
        let mut ingest = ingest.into_shards(&header, None, Some("wordy"), |_| true)?;
        while let Some((pieces, len)) = ingest.next() {
            let mut group = vec![0; len];
            for piece in pieces {
                group[piece.at..][..piece.len].copy_from_slice(&take(&piece));
            }
            ingest.write(&group)?;
        }
        ingest.finish()
    }

    #[test]
    fn each_full_disk_costs_at_most_one_group() {
        let bytes = wordy();
        let (here, there) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let local = Catalog::open(there.path()).unwrap();
        let path = there.path().join("wordy.gguf");
        std::fs::write(&path, &bytes).unwrap();
        let model = local.import(&path, None, &mut |_| {}).unwrap();
        let catalog = Catalog::open(here.path()).unwrap();
        let (mut fetched, mut attempts) = (0, 0);
        let found = loop {
            // Space for a group and its log entry, and for the files that each attempt writes anew: metadata and manifest.
            faults::set_space(Some(4 * GROUP as usize + 5000));
            let done = attempt(&catalog, &bytes, &mut fetched);
            faults::set_space(None);
            attempts += 1;
            match done {
                Ok(model) => break model,
                Err(error) => assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}"),
            }
            assert!(catalog.models().is_empty() && attempts < 20);
        };
        assert!(found == model && attempts > 1);
        assert!(fetched <= bytes.len() + attempts * GROUP as usize, "{fetched} in {attempts}");
        assert_eq!(catalog.verify(model).unwrap(), []);
        assert_eq!(std::fs::read_dir(here.path().join("partial")).unwrap().count(), 0);
    }

    #[test]
    fn a_source_has_one_ingest_at_a_time() {
        let dir = TempDir::new().unwrap();
        let catalog = Catalog::open(dir.path()).unwrap();
        let origin = RangeSource { label: "web".to_owned(), key: [1; 32], version: [2; 32], len: 9 };
        let first = catalog.ingest(origin.clone()).unwrap();
        assert!(matches!(catalog.ingest(origin.clone()), Err(ModelError::Busy { .. })));
        drop(first);
        assert!(catalog.ingest(origin).is_ok());
    }
}
