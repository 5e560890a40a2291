//! Models: read from a GGUF, cut into content-addressed shards, kept in a catalogue on disk.
//!
//! Promises: nothing foreign reaches an engine unchecked ([`gguf`] validates first); a shard counts as held only after
//! its bytes are verified and durable; nothing ever needs or writes the whole GGUF. Refuses: requantising, and names as
//! identities.
//!
//! May import: base, identity, wire, rt, store. Never ledger.

pub mod manifest;

pub use manifest::{Fact, Manifest, ShardEntry, ShardKind, TensorEntry};

use std::fs::File;
use std::sync::Arc;

use crate::base::LayerRange;

/// A tensor of a source: its entry and the open file that holds it.
#[derive(Debug, Clone)]
pub struct SourceTensor {
    /// Entry in the manifest.
    pub entry: TensorEntry,
    /// The shard's file, open for reading.
    pub file: Arc<File>,
    /// First byte in that file.
    pub offset: u64,
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

// To be written by the model room:
// pub mod gguf; pub mod shard; pub mod catalog; pub mod files; pub mod tokenizer; pub mod chat;
