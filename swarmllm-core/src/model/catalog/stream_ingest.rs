//! Import of a GGUF from a sequential stream, for sources without range requests: each byte goes directly to its shard
//! and is written once.

use std::path::PathBuf;

use super::Catalog;
use super::budget::Reservation;
use super::import::ShardSink;
use super::names::Names;
use crate::base::{ModelId, Progress};
use crate::model::gguf::Gguf;
use crate::model::manifest::Sharding;
use crate::model::{Manifest, ModelError, ShardKind};

/// An import from a stream. Dropping it discards what was received.
pub struct StreamIngest {
    catalog: Catalog,
    label: String,
    options: StreamOptions,
    /// Bytes received, and the length that the source reports.
    received: u64,
    len: u64,
    state: State,
    /// The complete header, until it is taken.
    header: Option<Gguf>,
}

/// Options of a stream import.
pub struct StreamOptions {
    /// Alias from the host.
    pub alias: Option<String>,
    /// Name hint if the file contains no name.
    pub stem: Option<String>,
    /// Which shards to keep.
    pub keep: Box<dyn Fn(ShardKind) -> bool + Send>,
}

enum State {
    /// The header is not complete; all bytes so far.
    Header(Vec<u8>),
    Shards(Box<ShardSinks>),
}

/// The shards of a stream whose header is known.
struct ShardSinks {
    manifest: Manifest,
    names: Names,
    sinks: Vec<ShardSink>,
    /// Tensors in file order; the first `complete` ones are written.
    tensors: Vec<TensorRange>,
    complete: usize,
    /// File offset of the next byte.
    position: u64,
    reserved: Reservation,
}

/// A tensor's range in the file, and its place in a shard.
struct TensorRange {
    from: u64,
    size: u64,
    shard: usize,
    offset: u64,
}

impl Catalog {
    /// Starts the import of a file of `len` bytes. Errors call it `label`.
    pub fn stream_ingest(&self, label: String, len: u64, options: StreamOptions) -> StreamIngest {
        StreamIngest {
            catalog: self.clone(),
            label,
            options,
            received: 0,
            len,
            state: State::Header(Vec::new()),
            header: None,
        }
    }
}

impl StreamIngest {
    /// Bytes still needed; an upper bound until the header is complete. Bytes after the last tensor are not needed.
    pub fn remaining(&self) -> u64 {
        let end = match &self.state {
            State::Header(_) => self.len,
            State::Shards(shards) => shards.tensors.last().map_or(0, |last| last.from.saturating_add(last.size)),
        };
        end.saturating_sub(self.received)
    }

    /// Bytes received, and the total.
    pub fn progress(&self) -> Progress {
        Progress { done: self.received, total: self.received.saturating_add(self.remaining()) }
    }

    /// Writes the next bytes. Refuses an invalid model as soon as it is detected, and a model that would exceed the
    /// catalogue's bound.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.received = self.received.saturating_add(bytes.len() as u64);
        match &mut self.state {
            State::Shards(shards) => shards.write(bytes),
            State::Header(prefix) => {
                prefix.extend_from_slice(bytes);
                let path = || PathBuf::from(&self.label);
                let header = Gguf::read_prefix(prefix, self.len);
                let header = header.map_err(|source| ModelError::Gguf { path: path(), source })?;
                let Some(header) = header else { return Ok(()) };
                let sharding =
                    Sharding::new(&header).map_err(|source| ModelError::Sharding { path: path(), source })?;
                let StreamOptions { alias, stem, keep } = &self.options;
                let names = self.catalog.import_names(alias.as_deref(), &header, stem.as_deref(), &sharding)?;
                let mut shards = ShardSinks::new(&self.catalog, sharding, names, keep)?;
                shards.write(prefix)?;
                self.state = State::Shards(Box::new(shards));
                self.header = Some(header);
                Ok(())
            }
        }
    }

    /// The header, once, after it is complete.
    pub fn take_header(&mut self) -> Option<Gguf> {
        self.header.take()
    }

    /// Adds the model to the catalogue. [`StreamIngest::remaining`] must be 0.
    pub fn finish(self) -> Result<ModelId, ModelError> {
        let State::Shards(shards) = self.state else {
            return Err(ModelError::Io {
                operation: "read",
                path: PathBuf::from(self.label),
                source: std::io::ErrorKind::UnexpectedEof.into(),
            });
        };
        let ShardSinks { mut manifest, names, sinks, reserved, .. } = *shards;
        let mut written = Vec::new();
        for (shard, sink) in manifest.shards.iter_mut().zip(sinks) {
            let (id, target) = sink.finish()?;
            shard.id = id;
            written.extend(target.map(|target| (id, target)));
        }
        let model = self.catalog.install_model(written, manifest, &names)?;
        drop(reserved);
        Ok(model)
    }
}

impl ShardSinks {
    /// Starts the shards and writes the metadata.
    fn new(
        catalog: &Catalog,
        sharding: Sharding,
        names: Names,
        keep: &dyn Fn(ShardKind) -> bool,
    ) -> Result<Self, ModelError> {
        let Sharding { manifest, metadata, tensor_offsets } = sharding;
        let kept = manifest.shards.iter().filter(|shard| keep(shard.kind));
        let reserved = catalog.reserve(kept.map(|shard| shard.size).sum())?;
        let (mut sinks, mut tensors) = (Vec::new(), Vec::new());
        for (index, (shard, positions)) in manifest.shards.iter().zip(&tensor_offsets).enumerate() {
            let target = keep(shard.kind).then(|| catalog.layout().temporary()).transpose()?;
            sinks.push(ShardSink::new(target));
            let ranges = shard.tensors.iter().zip(positions);
            tensors.extend(ranges.map(|(tensor, from)| TensorRange {
                from: *from,
                size: tensor.size,
                shard: index,
                offset: tensor.offset,
            }));
        }
        // Tensors of a shard keep the file's order, so a shard's bytes arrive in order.
        tensors.sort_by_key(|range| range.from);
        let mut shards = Self { manifest, names, sinks, tensors, complete: 0, position: 0, reserved };
        shards.write_at(0, 0, &metadata)?;
        Ok(shards)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), ModelError> {
        while let Some(&TensorRange { from, size, shard, offset }) = self.tensors.get(self.complete) {
            let between = from.saturating_sub(self.position);
            let (_, rest) = bytes.split_at(bytes.len().min(usize::try_from(between).unwrap_or(usize::MAX)));
            self.position += (bytes.len() - rest.len()) as u64;
            if self.position < from {
                break;
            }
            let received = self.position.saturating_sub(from);
            let missing = usize::try_from(size.saturating_sub(received)).unwrap_or(usize::MAX);
            let (own, rest) = rest.split_at(rest.len().min(missing));
            self.write_at(shard, offset + received, own)?;
            self.position += own.len() as u64;
            bytes = rest;
            if own.len() < missing {
                break;
            }
            self.complete += 1;
        }
        Ok(())
    }

    /// Writes at `offset` of a shard, with zeros up to it.
    fn write_at(&mut self, shard: usize, offset: u64, bytes: &[u8]) -> Result<(), ModelError> {
        let Some(sink) = self.sinks.get_mut(shard) else { return Ok(()) };
        let before = sink.at();
        sink.pad(offset)?;
        sink.write(bytes)?;
        if sink.is_kept() {
            self.reserved.spend(sink.at() - before);
        }
        Ok(())
    }
}
