//! A model that comes as one stream, from a source that gives no parts of its file: each byte goes to the shard that it is
//! of, and is written once.

use std::path::PathBuf;

use super::Catalog;
use super::budget::Reservation;
use super::import::Sink;
use super::names::Names;
use crate::base::{ModelId, Progress};
use crate::model::gguf::Gguf;
use crate::model::manifest::Cut;
use crate::model::{Manifest, ModelError, ShardKind};

/// The file as it comes. What came is gone when it is dropped.
pub struct Spool {
    catalog: Catalog,
    shown: String,
    choice: Choice,
    /// Bytes that are here, and that the file is said to have.
    here: u64,
    len: u64,
    state: State,
    /// The header, once it is whole and until it was looked at.
    header: Option<Gguf>,
}

/// What becomes of the model.
pub struct Choice {
    /// What the host calls it.
    pub alias: Option<String>,
    /// What it is called where the file does not say.
    pub stem: Option<String>,
    /// Which shards are kept.
    pub keep: Box<dyn Fn(ShardKind) -> bool + Send>,
}

enum State {
    /// The header is not whole; all that is here.
    Head(Vec<u8>),
    Body(Box<Body>),
}

/// The shards of a stream whose header is known.
struct Body {
    manifest: Manifest,
    names: Names,
    sinks: Vec<Sink>,
    /// The tensors as they lie in the file, of which the first so many are here.
    tensors: Vec<Stretch>,
    whole: usize,
    /// Where in the file the next byte lies.
    at: u64,
    reserved: Reservation,
}

/// A tensor in the file, and its place.
struct Stretch {
    from: u64,
    size: u64,
    shard: usize,
    offset: u64,
}

impl Catalog {
    /// Begins to take a file of `len` bytes; errors call it what `shown` says.
    pub fn spool(&self, shown: String, len: u64, choice: Choice) -> Spool {
        Spool { catalog: self.clone(), shown, choice, here: 0, len, state: State::Head(Vec::new()), header: None }
    }
}

impl Spool {
    /// How many bytes more are needed; as long as the header is not whole, at most all. What may come behind the last
    /// tensor nobody needs.
    pub fn wants(&self) -> u64 {
        let end = match &self.state {
            State::Head(_) => self.len,
            State::Body(body) => body.tensors.last().map_or(0, |last| last.from.saturating_add(last.size)),
        };
        end.saturating_sub(self.here)
    }

    /// How much is here.
    pub fn progress(&self) -> Progress {
        Progress { done: self.here, total: self.here.saturating_add(self.wants()) }
    }

    /// Takes what comes next. Refuses what is no model as soon as that is plain, and one that would go beyond the
    /// catalogue's bound.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.here = self.here.saturating_add(bytes.len() as u64);
        match &mut self.state {
            State::Body(body) => body.write(bytes),
            State::Head(head) => {
                head.extend_from_slice(bytes);
                let path = || PathBuf::from(&self.shown);
                let header = Gguf::read_prefix(head, self.len);
                let header = header.map_err(|source| ModelError::Gguf { path: path(), source })?;
                let Some(header) = header else { return Ok(()) };
                let cut = Cut::new(&header).map_err(|source| ModelError::Cut { path: path(), source })?;
                let Choice { alias, stem, keep } = &self.choice;
                let names = self.catalog.names_for(alias.as_deref(), &header, stem.as_deref(), &cut)?;
                let mut body = Body::new(&self.catalog, cut, names, keep)?;
                body.write(head)?;
                self.state = State::Body(Box::new(body));
                self.header = Some(header);
                Ok(())
            }
        }
    }

    /// The header, once, when it has just become whole.
    pub fn take_header(&mut self) -> Option<Gguf> {
        self.header.take()
    }

    /// Puts the model into the catalogue, once nothing more is wanted.
    pub fn finish(self) -> Result<ModelId, ModelError> {
        let State::Body(body) = self.state else {
            return Err(ModelError::Io {
                operation: "read",
                path: PathBuf::from(self.shown),
                source: std::io::ErrorKind::UnexpectedEof.into(),
            });
        };
        let Body { mut manifest, names, sinks, reserved, .. } = *body;
        let mut written = Vec::new();
        for (shard, sink) in manifest.shards.iter_mut().zip(sinks) {
            let (id, target) = sink.finish()?;
            shard.id = id;
            written.extend(target.map(|target| (id, target)));
        }
        let model = self.catalog.place(written, manifest, &names)?;
        drop(reserved);
        Ok(model)
    }
}

impl Body {
    /// The shards of a cut, of which there is the metadata.
    fn new(catalog: &Catalog, cut: Cut, names: Names, keep: &dyn Fn(ShardKind) -> bool) -> Result<Self, ModelError> {
        let Cut { manifest, metadata, sources } = cut;
        let kept = manifest.shards.iter().filter(|shard| keep(shard.kind));
        let reserved = catalog.reserve(kept.map(|shard| shard.size).sum())?;
        let (mut sinks, mut tensors) = (Vec::new(), Vec::new());
        for (index, (shard, positions)) in manifest.shards.iter().zip(&sources).enumerate() {
            let target = keep(shard.kind).then(|| catalog.layout().temporary()).transpose()?;
            sinks.push(Sink::new(target));
            let stretches = shard.tensors.iter().zip(positions);
            tensors.extend(stretches.map(|(tensor, from)| Stretch {
                from: *from,
                size: tensor.size,
                shard: index,
                offset: tensor.offset,
            }));
        }
        // A shard's tensors keep the file's order, so that its bytes come as they lie in it.
        tensors.sort_by_key(|stretch| stretch.from);
        let mut body = Self { manifest, names, sinks, tensors, whole: 0, at: 0, reserved };
        body.put(0, 0, &metadata)?;
        Ok(body)
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), ModelError> {
        while let Some(&Stretch { from, size, shard, offset }) = self.tensors.get(self.whole) {
            let between = from.saturating_sub(self.at);
            let (_, rest) = bytes.split_at(bytes.len().min(usize::try_from(between).unwrap_or(usize::MAX)));
            self.at += (bytes.len() - rest.len()) as u64;
            if self.at < from {
                break;
            }
            let here = self.at.saturating_sub(from);
            let missing = usize::try_from(size.saturating_sub(here)).unwrap_or(usize::MAX);
            let (own, rest) = rest.split_at(rest.len().min(missing));
            self.put(shard, offset + here, own)?;
            self.at += own.len() as u64;
            bytes = rest;
            if own.len() < missing {
                break;
            }
            self.whole += 1;
        }
        Ok(())
    }

    /// Writes what lies at `offset` of a shard; zeros lie before it.
    fn put(&mut self, shard: usize, offset: u64, bytes: &[u8]) -> Result<(), ModelError> {
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
