//! Models: read from GGUF, split into content-addressed shards, stored in a catalogue on disk.
//!
//! Guarantees: [`gguf`] validates all foreign input before it reaches an engine; a shard counts as held only after its
//! bytes are verified and durable; no operation needs or writes the whole GGUF. Not supported: requantising. Names are
//! never identities.
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
use crate::rt::read_exact_at;

/// A tensor of a shard: its manifest entry and the open shard file. Tensors of one shard share the file; read with
/// [`SourceTensor::read_exact_at`], which does not use the file position.
#[derive(Debug, Clone)]
pub struct SourceTensor {
    /// Manifest entry.
    pub entry: TensorEntry,
    /// Shard file, open for reading.
    pub file: Arc<File>,
    /// Offset of the first byte in the file.
    pub offset: u64,
}

impl SourceTensor {
    /// Fills `out` from byte offset `at` of the tensor. Threads may read concurrently. Reading past the end of the tensor
    /// is an error.
    pub fn read_exact_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.entry.size) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The manifest check guarantees that the entry lies inside its shard.
        read_exact_at(&self.file, out, self.offset.saturating_add(at))
    }
}

/// Everything an engine needs to load a stage. The files stay open, so a concurrent deletion does no harm.
#[derive(Debug, Clone)]
pub struct StageSource {
    /// The model.
    pub manifest: Arc<Manifest>,
    /// Layers of the stage.
    pub layers: LayerRange,
    /// Whether the stage includes the head.
    pub head: bool,
    /// Layer tensors and common tensors; with the head also `output_norm` and the output matrix under its GGUF name
    /// (`token_embd.weight` in tied models).
    pub tensors: Vec<SourceTensor>,
}

/// Everything an engine needs for embedding lookups.
#[derive(Debug, Clone)]
pub struct EmbeddingSource {
    /// The model.
    pub manifest: Arc<Manifest>,
    /// `token_embd.weight`.
    pub tensor: SourceTensor,
}
