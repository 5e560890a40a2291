//! Import: one pass over a GGUF that hashes every shard and writes those to be kept.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::Catalog;
use super::files::Temporary;
use super::marks::Mark;
use super::names::Names;
use super::parted::{self, Parted};
use crate::base::{ModelId, Progress, ShardId};
use crate::model::gguf::Gguf;
use crate::model::manifest::Cut;
use crate::model::{Manifest, ModelError, ShardEntry, ShardKind};

/// Bytes copied at once.
const COPY: usize = 1024 * 1024;
/// Zeros between tensors; alignments are at most 4096.
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

    /// Cuts a GGUF into shards and stores those that `keep` asks for. Every shard is hashed, because the manifest names
    /// them all. Equal files give equal models; `name` is an alias of the model here.
    /// What the file calls itself, or else its file name, is a hint beside it.
    ///
    /// Blocks for as long as reading the file takes. All or nothing: shards appear only when all of them are durable,
    /// the manifest last; a failure (a full disk, say) leaves the catalogue as it was. `progress` counts the file's
    /// tensor bytes.
    pub fn import_parts(
        &self,
        gguf: &Path,
        name: Option<&str>,
        keep: &dyn Fn(ShardKind) -> bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelId, ModelError> {
        self.open_gguf(gguf)?.import(name, keep, progress)
    }

    /// Opens a GGUF and reads its header, so that it can be looked at before it is imported. Of a model in several files any
    /// part is named; the others lie beside it.
    pub fn open_gguf(&self, gguf: &Path) -> Result<LocalImport, ModelError> {
        let (files, header) = Parted::open(gguf)?;
        let stem = parted::stem(gguf);
        Ok(LocalImport { catalog: self.clone(), path: gguf.to_owned(), files, header, stem })
    }
}

/// The header of a GGUF that lies here, as [`Catalog::open_gguf`] reads it.
pub fn read_header(gguf: &Path) -> Result<Gguf, ModelError> {
    Parted::open(gguf).map(|(_, header)| header)
}

/// A GGUF that lies here, in one file or in parts, of which the header was read and checked.
#[derive(Debug)]
pub struct LocalImport {
    catalog: Catalog,
    path: PathBuf,
    files: Parted,
    header: Gguf,
    stem: Option<String>,
}

impl LocalImport {
    /// The header.
    pub fn header(&self) -> &Gguf {
        &self.header
    }

    /// Imports what `keep` asks for; see [`Catalog::import_parts`].
    pub fn import(
        self,
        name: Option<&str>,
        keep: &dyn Fn(ShardKind) -> bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelId, ModelError> {
        let LocalImport { catalog, path, files, header, stem } = self;
        let cut = Cut::new(&header).map_err(|source| ModelError::Cut { path: path.clone(), source })?;
        let names = catalog.names_for(name, &header, stem.as_deref(), &cut)?;
        let Cut { mut manifest, metadata, sources } = cut;
        let tensors = manifest.shards.iter().flat_map(|shard| &shard.tensors);
        let total = tensors.map(|tensor| tensor.size).sum();
        let kept = manifest.shards.iter().filter(|shard| keep(shard.kind));
        let _reserved = catalog.reserve(kept.map(|shard| shard.size).sum())?;
        let mut source = Source { files, done: 0, total, progress };
        let mut written = Vec::new();
        for (shard, positions) in manifest.shards.iter_mut().zip(&sources) {
            let target = keep(shard.kind).then(|| catalog.layout().temporary()).transpose()?;
            let mut sink = Sink::new(target);
            match shard.kind {
                ShardKind::Metadata => sink.write(&metadata)?,
                _ => source.copy(shard, positions, &mut sink)?,
            }
            let (id, target) = sink.finish()?;
            shard.id = id;
            written.extend(target.map(|target| (id, target)));
        }
        catalog.place(written, manifest, &names)
    }
}

impl Catalog {
    /// Gives finished files their places, durably, the manifest last.
    pub(super) fn place(
        &self,
        written: Vec<(ShardId, Temporary)>,
        manifest: Manifest,
        names: &Names,
    ) -> Result<ModelId, ModelError> {
        let model = manifest.id();
        // Whatever needs space is written before the first file gets its place.
        let prepared = self.layout().prepare(&manifest.encode())?;
        let _alone = self.disk();
        let kept: HashSet<ShardId> = written.iter().map(|(id, _)| *id).collect();
        let own = |entry: &ShardEntry, mark| if kept.contains(&entry.id) { Mark::Wanted } else { mark };
        let marks = self.marks_of(model).changed(&manifest, &own);
        let said = self.layout().prepare(&marks.encode())?;
        let names = self.names_with(model, names)?;
        let called = self.layout().prepare(&names.encode())?;
        for (id, temporary) in written {
            temporary.keep(&self.layout().shard(&id))?;
            self.forget_verified(&id);
        }
        self.layout().sync_shards()?;
        said.keep(&self.layout().marks(&model))?;
        called.keep(&self.layout().names(&model))?;
        prepared.keep(&self.layout().manifest(&model))?;
        self.layout().sync_models()?;
        self.insert(model, manifest, marks, names);
        Ok(model)
    }
}

/// The GGUF that is read.
struct Source<'a> {
    files: Parted,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(Progress),
}

impl Source<'_> {
    /// Copies a shard's tensors from their positions in the file to their offsets in the shard.
    fn copy(&mut self, shard: &ShardEntry, positions: &[u64], sink: &mut Sink) -> Result<(), ModelError> {
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

/// A shard as it is made: hashed always, written where it is to be kept.
pub(super) struct Sink {
    target: Option<Temporary>,
    hasher: blake3::Hasher,
    at: u64,
}

impl Sink {
    /// An empty shard, which is written to a file where there is one.
    pub fn new(target: Option<Temporary>) -> Self {
        Self { target, hasher: blake3::Hasher::new(), at: 0 }
    }

    /// Bytes so far.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Whether it is written.
    pub fn is_kept(&self) -> bool {
        self.target.is_some()
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        self.target.as_mut().map_or(Ok(()), |target| target.write(bytes))
    }

    /// Zeros up to `offset`, which is less than one alignment ahead.
    pub fn pad(&mut self, offset: u64) -> Result<(), ModelError> {
        // A remainder of 4096 fits any usize.
        let missing = offset.saturating_sub(self.at).min(PADDING.len() as u64) as usize;
        let (zeros, _) = PADDING.split_at(missing);
        self.write(zeros)
    }

    /// What the shard is; its bytes are durable.
    pub fn finish(mut self) -> Result<(ShardId, Option<Temporary>), ModelError> {
        if let Some(target) = &mut self.target {
            target.sync()?;
        }
        Ok((ShardId(*self.hasher.finalize().as_bytes()), self.target))
    }
}
