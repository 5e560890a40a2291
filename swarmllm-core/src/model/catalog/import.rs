//! Import of local files: one pass over a GGUF that hashes every shard and writes the kept ones.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::Catalog;
use super::files::PendingFile;
use super::gguf_files::{self, GgufFiles};
use super::names::Names;
use super::provenance::Provenance;
use crate::base::{ModelId, Progress, ShardId};
use crate::model::gguf::Gguf;
use crate::model::manifest::Sharding;
use crate::model::{Manifest, ModelError, ShardEntry, ShardKind};

/// Bytes copied at a time.
const COPY: usize = 1024 * 1024;
/// Zeros between tensors. An alignment is at most 4096.
const PADDING: [u8; 4096] = [0; 4096];

impl Catalog {
    /// Imports a whole model from a GGUF; see [`Catalog::import_parts`].
    pub fn import(
        &self,
        gguf: &Path,
        name: Option<&str>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelId, ModelError> {
        self.import_parts(gguf, name, &|_| true, progress)
    }

    /// Splits a GGUF into shards and stores those that `keep` selects. Every shard is hashed, since the manifest lists all
    /// of them. Equal files give equal models. `name` becomes an alias; the name in the file, or else the file name, becomes
    /// a hint.
    ///
    /// Blocks while it reads the file. Atomic: shards appear only after all of them are durable, the manifest last; a
    /// failure (such as a full disk) leaves the catalogue unchanged. `progress` counts the file's tensor bytes.
    pub fn import_parts(
        &self,
        gguf: &Path,
        name: Option<&str>,
        keep: &dyn Fn(ShardKind) -> bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelId, ModelError> {
        self.open_gguf(gguf)?.import(name, keep, progress)
    }

    /// Opens a GGUF and reads its header, for inspection before the import. For a multi-file model `gguf` is any part; the
    /// others must lie beside it.
    pub fn open_gguf(&self, gguf: &Path) -> Result<LocalImport, ModelError> {
        let (files, header) = GgufFiles::open(gguf)?;
        let stem = gguf_files::stem(gguf);
        Ok(LocalImport { catalog: self.clone(), path: gguf.to_owned(), files, header, stem })
    }
}

/// The header of a local GGUF, as [`Catalog::open_gguf`] reads it.
pub fn read_header(gguf: &Path) -> Result<Gguf, ModelError> {
    GgufFiles::open(gguf).map(|(_, header)| header)
}

/// A local GGUF in one file or in parts, with its checked header.
#[derive(Debug)]
pub struct LocalImport {
    catalog: Catalog,
    path: PathBuf,
    files: GgufFiles,
    header: Gguf,
    stem: Option<String>,
}

impl LocalImport {
    /// The header.
    pub fn header(&self) -> &Gguf {
        &self.header
    }

    /// Imports the shards that `keep` selects; see [`Catalog::import_parts`].
    pub fn import(
        self,
        name: Option<&str>,
        keep: &dyn Fn(ShardKind) -> bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelId, ModelError> {
        let LocalImport { catalog, path, files, header, stem } = self;
        let sharding = Sharding::new(&header).map_err(|source| ModelError::Sharding { path: path.clone(), source })?;
        let names = catalog.import_names(name, &header, stem.as_deref(), &sharding)?;
        let Sharding { mut manifest, metadata, tensor_offsets } = sharding;
        let tensors = manifest.shards.iter().flat_map(|shard| &shard.tensors);
        let total = tensors.map(|tensor| tensor.size).sum();
        let kept = manifest.shards.iter().filter(|shard| keep(shard.kind));
        let _reserved = catalog.reserve(kept.map(|shard| shard.size).sum())?;
        let mut source = TensorReader { files, done: 0, total, progress };
        let mut written = Vec::new();
        for (shard, positions) in manifest.shards.iter_mut().zip(&tensor_offsets) {
            let target = keep(shard.kind).then(|| catalog.layout().temporary()).transpose()?;
            let mut sink = ShardSink::new(target);
            match shard.kind {
                ShardKind::Metadata => sink.write(&metadata)?,
                _ => source.copy(shard, positions, &mut sink)?,
            }
            let (id, target) = sink.finish()?;
            shard.id = id;
            written.extend(target.map(|target| (id, target)));
        }
        catalog.install_model(written, manifest, &names)
    }
}

impl Catalog {
    /// Moves finished files into place durably, the manifest last.
    pub(super) fn install_model(
        &self,
        written: Vec<(ShardId, PendingFile)>,
        manifest: Manifest,
        names: &Names,
    ) -> Result<ModelId, ModelError> {
        let model = manifest.id();
        // Everything that needs space is written before the first file is moved into place.
        let prepared_manifest = self.layout().prepare(&manifest.encode())?;
        let _guard = self.lock_disk();
        let kept: HashSet<ShardId> = written.iter().map(|(id, _)| *id).collect();
        let own =
            |entry: &ShardEntry, provenance| if kept.contains(&entry.id) { Provenance::Requested } else { provenance };
        let table = self.provenance_of(model).changed(&manifest, &own);
        let prepared_table = self.layout().prepare(&table.encode())?;
        let names = self.merged_names(model, names)?;
        let prepared_names = self.layout().prepare(&names.encode())?;
        for (id, temporary) in written {
            temporary.persist(&self.layout().shard(&id))?;
            self.forget_verified(&id);
        }
        self.layout().sync_shards()?;
        prepared_table.persist(&self.layout().provenance(&model))?;
        prepared_names.persist(&self.layout().names(&model))?;
        prepared_manifest.persist(&self.layout().manifest(&model))?;
        self.layout().sync_models()?;
        self.insert(model, manifest, table, names);
        Ok(model)
    }
}

/// Reads tensors from the GGUF and reports progress.
struct TensorReader<'a> {
    files: GgufFiles,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl TensorReader<'_> {
    /// Copies a shard's tensors from their file positions to their offsets in the shard.
    fn copy(&mut self, shard: &ShardEntry, positions: &[u64], sink: &mut ShardSink) -> Result<(), ModelError> {
        let mut buffer = vec![0; COPY];
        for (tensor, position) in shard.tensors.iter().zip(positions) {
            sink.pad(tensor.offset)?;
            let (mut position, mut left) = (*position, tensor.size);
            while left > 0 {
                // At most `COPY`, so it fits any usize.
                let (chunk, _) = buffer.split_at_mut(left.min(COPY as u64) as usize);
                self.files.read_exact_at(position, chunk)?;
                sink.write(chunk)?;
                position += chunk.len() as u64;
                left -= chunk.len() as u64;
                self.done += chunk.len() as u64;
                (self.progress)(Progress { done: self.done, total: self.total });
            }
        }
        Ok(())
    }
}

/// A shard under construction: always hashed, written only if it is kept.
pub(super) struct ShardSink {
    target: Option<PendingFile>,
    hasher: blake3::Hasher,
    at: u64,
}

impl ShardSink {
    /// An empty shard; `None` hashes only.
    pub fn new(target: Option<PendingFile>) -> Self {
        Self { target, hasher: blake3::Hasher::new(), at: 0 }
    }

    /// Bytes so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether the shard is written to a file.
    pub fn is_kept(&self) -> bool {
        self.target.is_some()
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        self.target.as_mut().map_or(Ok(()), |target| target.write(bytes))
    }

    /// Appends zeros up to `offset`, which is less than one alignment ahead.
    pub fn pad(&mut self, offset: u64) -> Result<(), ModelError> {
        // At most 4096, so it fits any usize.
        let missing = offset.saturating_sub(self.at).min(PADDING.len() as u64) as usize;
        let (zeros, _) = PADDING.split_at(missing);
        self.write(zeros)
    }

    /// The shard's id and file. The bytes are durable.
    pub fn finish(mut self) -> Result<(ShardId, Option<PendingFile>), ModelError> {
        if let Some(target) = &mut self.target {
            target.sync()?;
        }
        Ok((ShardId(*self.hasher.finalize().as_bytes()), self.target))
    }
}
