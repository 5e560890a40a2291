//! Models: read from a GGUF, cut into content-addressed shards, kept in a catalogue on disk.
//!
//! Promises: nothing foreign reaches an engine unchecked ([`gguf`] validates first); a shard counts as held only after
//! its bytes are verified and durable; nothing ever needs or writes the whole GGUF. Refuses: requantising, and names as
//! identities.
//!
//! May import: base, identity, wire, rt, store. Never ledger.

pub mod catalog;
pub mod chat;
mod error;
pub mod gguf;
pub mod manifest;
pub mod shard;
pub mod tokenizer;

pub use catalog::{Catalog, Held, ShardWriter};
pub use error::ModelError;
pub use manifest::{Fact, Manifest, ManifestError, ShardEntry, ShardKind, TensorEntry};

use std::fs::File;
use std::io;
use std::sync::Arc;

use crate::base::LayerRange;

/// A tensor of a source: its entry and the open file that holds it. Tensors of one shard share the file, so read by
/// [`SourceTensor::read_exact_at`] and never by the file's own position.
#[derive(Debug, Clone)]
pub struct SourceTensor {
    /// Entry in the manifest.
    pub entry: TensorEntry,
    /// The shard's file, open for reading.
    pub file: Arc<File>,
    /// First byte in that file.
    pub offset: u64,
}

impl SourceTensor {
    /// Fills `out` from byte `at` of the tensor on. Any number of threads may read at once. Reading past the tensor's
    /// end is an error.
    pub fn read_exact_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.entry.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The entry lies inside its shard, as the manifest's check has made sure.
        read_exact_at(&self.file, self.offset.saturating_add(at), out)
    }
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, out: &mut [u8]) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, out, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut out: &mut [u8]) -> io::Result<()> {
    while !out.is_empty() {
        // Moves the file's position too, which nobody uses.
        let read = std::os::windows::fs::FileExt::seek_read(file, out, offset)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        offset += read as u64;
        out = out.split_at_mut(read).1;
    }
    Ok(())
}

/// All that an engine needs to load a stage; its files stay open, so that a deletion meanwhile does no harm.
#[derive(Debug, Clone)]
pub struct StageSource {
    /// The model.
    pub manifest: Arc<Manifest>,
    /// Layers of the stage.
    pub layers: LayerRange,
    /// Whether the head is part of it.
    pub head: bool,
    /// Layer tensors, common tensors, and with the head also `output_norm` and the output matrix (named as in the GGUF;
    /// `token_embd.weight` where tied).
    pub tensors: Vec<SourceTensor>,
}

/// All that an engine needs to look embeddings up.
#[derive(Debug, Clone)]
pub struct EmbeddingSource {
    /// The model.
    pub manifest: Arc<Manifest>,
    /// `token_embd.weight`.
    pub tensor: SourceTensor,
}
