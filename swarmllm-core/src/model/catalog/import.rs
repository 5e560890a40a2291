//! Import: one pass over a GGUF that hashes every shard and writes those to be kept.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::Catalog;
use super::files::Temporary;
use super::marks::Mark;
use crate::base::{ModelId, Progress, ShardId};
use crate::model::gguf::Gguf;
use crate::model::manifest::{Cut, limits};
use crate::model::{Manifest, ModelError, ShardEntry, ShardKind};

/// Bytes copied at once.
const COPY: usize = 1024 * 1024;
/// Zeros between tensors; alignments are at most 4096.
const PADDING: [u8; 4096] = [0; 4096];
/// Name of a model whose file and metadata give none.
const NAMELESS: &str = "model";

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
    /// them all. Equal files and names give equal models; `name` (or else the file's own, or its file name) is cleaned.
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
        let stem = gguf.file_stem().and_then(|stem| stem.to_str());
        self.import_file(gguf, (name, stem), keep, progress)
    }

    /// The same, with the file's name apart from where it lies.
    pub(super) fn import_file(
        &self,
        gguf: &Path,
        (name, stem): (Option<&str>, Option<&str>),
        keep: &dyn Fn(ShardKind) -> bool,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<ModelId, ModelError> {
        let mut file = open_regular(gguf)?;
        let header = Gguf::read(&mut file).map_err(|source| ModelError::Gguf { path: gguf.to_owned(), source })?;
        let title = title(name, &header, stem);
        let cut = Cut::new(&header, &title).map_err(|source| ModelError::Cut { path: gguf.to_owned(), source })?;
        let Cut { mut manifest, metadata, sources } = cut;
        let tensors = manifest.shards.iter().flat_map(|shard| &shard.tensors);
        let total = tensors.map(|tensor| tensor.size).sum();
        let kept = manifest.shards.iter().filter(|shard| keep(shard.kind));
        let _reserved = self.reserve(kept.map(|shard| shard.size).sum())?;
        let mut source = Source { file, path: gguf, done: 0, total, progress };
        let mut written = Vec::new();
        for (shard, positions) in manifest.shards.iter_mut().zip(&sources) {
            let target = keep(shard.kind).then(|| self.layout().temporary()).transpose()?;
            let mut sink = Sink { target, hasher: blake3::Hasher::new(), at: 0 };
            match shard.kind {
                ShardKind::Metadata => sink.write(&metadata)?,
                _ => source.copy(shard, positions, &mut sink)?,
            }
            let (id, target) = sink.finish()?;
            shard.id = id;
            written.extend(target.map(|target| (id, target)));
        }
        self.place(written, manifest)
    }

    /// Gives finished files their places, durably, the manifest last.
    pub(super) fn place(&self, written: Vec<(ShardId, Temporary)>, manifest: Manifest) -> Result<ModelId, ModelError> {
        let model = manifest.id();
        // Whatever needs space is written before the first file gets its place.
        let prepared = self.layout().prepare(&manifest.encode())?;
        let _alone = self.disk();
        let kept: HashSet<ShardId> = written.iter().map(|(id, _)| *id).collect();
        let own = |entry: &ShardEntry, mark| if kept.contains(&entry.id) { Mark::Wanted } else { mark };
        let marks = self.marks_of(model).changed(&manifest, &own);
        let said = self.layout().prepare(&marks.encode())?;
        for (id, temporary) in written {
            temporary.keep(&self.layout().shard(&id))?;
            self.forget_verified(&id);
        }
        self.layout().sync_shards()?;
        said.keep(&self.layout().marks(&model))?;
        prepared.keep(&self.layout().manifest(&model))?;
        self.layout().sync_models()?;
        self.insert(model, manifest, marks);
        Ok(model)
    }
}

fn open_regular(path: &Path) -> Result<File, ModelError> {
    // Asked before opening: opening a pipe would wait for a writer.
    let is_file = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.is_file());
    if !is_file(path).map_err(ModelError::io("open", path))? {
        return Err(ModelError::NotAFile { path: path.to_owned() });
    }
    File::open(path).map_err(ModelError::io("open", path))
}

/// The first of the names that leaves anything when cleaned.
pub(super) fn title(name: Option<&str>, header: &Gguf, stem: Option<&str>) -> String {
    let own = header.string("general.name").ok().flatten();
    let names = [name, own, stem].into_iter().flatten().map(clean);
    names.into_iter().find(|name| !name.is_empty()).unwrap_or_else(|| NAMELESS.to_owned())
}

/// Printable text of at most [`limits::NAME`] bytes, with single blanks.
fn clean(name: &str) -> String {
    let spaced: String = name.chars().take(limits::NAME).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut clean = spaced.split_whitespace().collect::<Vec<_>>().join(" ");
    while clean.len() > limits::NAME {
        clean.pop();
    }
    clean.trim_end().to_owned()
}

/// The GGUF that is read.
struct Source<'a> {
    file: File,
    path: &'a Path,
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
            self.file.seek(SeekFrom::Start(*position)).map_err(ModelError::io("read", self.path))?;
            let mut left = tensor.size;
            while left > 0 {
                // At most `COPY`, so it fits any usize.
                let (chunk, _) = buffer.split_at_mut(left.min(COPY as u64) as usize);
                self.file.read_exact(chunk).map_err(ModelError::io("read", self.path))?;
                sink.write(chunk)?;
                left -= chunk.len() as u64;
                self.done += chunk.len() as u64;
                (self.progress)(Progress { done: self.done, total: self.total });
            }
        }
        Ok(())
    }
}

/// A shard as it is made: hashed always, written where it is to be kept.
struct Sink {
    target: Option<Temporary>,
    hasher: blake3::Hasher,
    at: u64,
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.hasher.update(bytes);
        self.at += bytes.len() as u64;
        self.target.as_mut().map_or(Ok(()), |target| target.write(bytes))
    }

    /// Zeros up to `offset`, which is less than one alignment ahead.
    fn pad(&mut self, offset: u64) -> Result<(), ModelError> {
        // A remainder of 4096 fits any usize.
        let missing = offset.saturating_sub(self.at).min(PADDING.len() as u64) as usize;
        let (zeros, _) = PADDING.split_at(missing);
        self.write(zeros)
    }

    fn finish(mut self) -> Result<(ShardId, Option<Temporary>), ModelError> {
        if let Some(target) = &mut self.target {
            target.sync()?;
        }
        Ok((ShardId(*self.hasher.finalize().as_bytes()), self.target))
    }
}
