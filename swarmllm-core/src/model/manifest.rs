//! The manifest: the description of a model in canonical bytes. `ModelId` is the BLAKE3 digest of those bytes.
//!
//! A manifest contains no name, so equal content is one model under any name.
//!
//! Guarantees: a [`Manifest`] that was decoded or built here has passed [`Manifest::check`]. Its tensors have known types
//! and valid shapes, are packed inside their shards, and lie in the shard that their name belongs to.

mod check;
mod error;
mod format_1;
mod sharding;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::{LayerRange, ModelId, ShardId};

pub use error::{ManifestError, TensorFault};
pub(crate) use format_1::decode_format_1;
#[cfg(test)]
pub(crate) use format_1::encode_format_1;
pub use sharding::{FilePiece, Sharding};

/// Bounds of manifest fields. Each is far above the needs of the largest public model.
pub mod limits {
    /// Bytes of the encoding.
    pub const BYTES: usize = 2 * 1024 * 1024;
    /// Bytes of a display name.
    pub const NAME: usize = 128;
    /// Bytes of the architecture name.
    pub const ARCHITECTURE: usize = 64;
    /// Transformer blocks.
    pub const LAYERS: u32 = 1024;
    /// Elements of a hidden state.
    pub const WIDTH: u32 = 65_536;
    /// Tokens in the vocabulary.
    pub const VOCAB: u32 = 4 * 1024 * 1024;
    /// Positions of the context.
    pub const CONTEXT: u32 = 1 << 30;
    /// Key-values of the architecture.
    pub const FACTS: usize = 1024;
    /// Bytes of all values together.
    pub const FACT_BYTES: usize = 512 * 1024;
    /// Tensors of all shards together.
    pub const TENSORS: usize = 10_000;
    /// Bytes of the metadata shard.
    pub const METADATA_BYTES: u64 = 72 * 1024 * 1024;
}

/// The embedding matrix, `width` × `vocab`.
pub const EMBEDDING_TENSOR: &str = "token_embd.weight";
/// The output matrix of an untied model.
pub const OUTPUT_TENSOR: &str = "output.weight";

/// The norm before the output matrix; every model has it.
pub const OUTPUT_NORM_TENSOR: &str = "output_norm.weight";

/// The part of a model that a shard holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ShardKind {
    /// The GGUF's key-values, including tokenizer and chat template.
    Metadata,
    /// `token_embd`.
    Embedding,
    /// Small tensors that every stage needs (rope frequencies). Absent if the model has none.
    Common,
    /// One transformer block.
    Layer(u32),
    /// Output norm and output matrix. A tied model uses the matrix in the embedding shard.
    Head,
}

impl fmt::Display for ShardKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Metadata => f.write_str("metadata"),
            Self::Embedding => f.write_str("embedding"),
            Self::Common => f.write_str("common tensors"),
            Self::Layer(layer) => write!(f, "layer {layer}"),
            Self::Head => f.write_str("head"),
        }
    }
}

/// A tensor inside a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Name in the GGUF (`blk.7.attn_q.weight`).
    pub name: String,
    /// ggml type id.
    pub ty: u32,
    /// Shape, fastest axis first, as in the GGUF.
    pub dims: Vec<u64>,
    /// Offset of the first byte in the shard, a multiple of the manifest's alignment.
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// A shard of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// The part of the model.
    pub kind: ShardKind,
    /// BLAKE3 hash of the bytes.
    pub id: ShardId,
    /// Size in bytes.
    pub size: u64,
    /// `ceil(active parameters / 1e6)`, the ledger's unit of price.
    pub weight: u64,
    /// Tensors by offset. Empty for [`ShardKind::Metadata`].
    pub tensors: Vec<TensorEntry>,
}

/// A GGUF key-value with the value as raw GGUF bytes (without the type word).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Key, such as `llama.block_count`.
    pub key: String,
    /// GGUF value type id.
    pub ty: u32,
    /// Value, little endian, as in the GGUF.
    pub raw: Vec<u8>,
}

/// The description of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Format version; [`Manifest::FORMAT`].
    pub format: u32,
    /// `general.architecture`.
    pub architecture: String,
    /// Transformer blocks.
    pub layers: u32,
    /// Elements of a hidden state.
    pub width: u32,
    /// Tokens in the vocabulary.
    pub vocab: u32,
    /// Context length of the training, in positions.
    pub context: u32,
    /// Whether the output matrix is the embedding matrix.
    pub tied: bool,
    /// Alignment of tensors inside shards; the GGUF's own.
    pub alignment: u32,
    /// The architecture's key-values (`general.architecture`, `<architecture>.*`) in GGUF order. A stage needs no others;
    /// the tokenizer is only in the metadata shard.
    pub facts: Vec<Fact>,
    /// Metadata, embedding, common (if any), layers in order, head.
    pub shards: Vec<ShardEntry>,
}

impl Manifest {
    /// Current format version.
    pub const FORMAT: u32 = 2;

    /// The entry of this kind.
    pub fn shard(&self, kind: ShardKind) -> Option<&ShardEntry> {
        self.shards.iter().find(|shard| shard.kind == kind)
    }

    /// Shards of a stage: its layers and the common tensors; with `head` also the head shard and, in a tied model, the
    /// embedding.
    pub fn stage_shards(&self, layers: LayerRange, head: bool) -> impl Iterator<Item = &ShardEntry> {
        self.shards.iter().filter(move |shard| match shard.kind {
            ShardKind::Metadata => false,
            ShardKind::Embedding => head && self.tied,
            ShardKind::Common => true,
            ShardKind::Layer(layer) => layers.start <= layer && layer < layers.end,
            ShardKind::Head => head,
        })
    }

    /// The ledger's price weight of a stage: the weights of all shards it computes with.
    pub fn stage_weight(&self, layers: LayerRange, head: bool) -> u64 {
        self.stage_shards(layers, head).map(|shard| shard.weight).fold(0, u64::saturating_add)
    }

    /// Shards of a coordinator: metadata and embedding.
    pub fn coordinator_shards(&self) -> impl Iterator<Item = &ShardEntry> {
        self.shards.iter().filter(|shard| matches!(shard.kind, ShardKind::Metadata | ShardKind::Embedding))
    }

    /// Bytes of all shards.
    pub fn size(&self) -> u64 {
        self.shards.iter().map(|shard| shard.size).sum()
    }

    /// Decodes a manifest from an untrusted source: at most [`limits::BYTES`], canonical, passing [`Manifest::check`].
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() > limits::BYTES {
            return Err(ManifestError::Limit {
                what: "the manifest's length",
                given: bytes.len() as u64,
                max: limits::BYTES as u64,
            });
        }
        // First, since another format need not decode as this one.
        match postcard::take_from_bytes::<u32>(bytes) {
            Ok((Self::FORMAT, _)) => {}
            Ok((found, _)) => return Err(ManifestError::Format { found, known: Self::FORMAT }),
            Err(error) => return Err(ManifestError::Encoding { reason: error.to_string() }),
        }
        let manifest: Manifest =
            postcard::from_bytes(bytes).map_err(|error| ManifestError::Encoding { reason: error.to_string() })?;
        manifest.check()?;
        if manifest.encode() != bytes {
            return Err(ManifestError::NotCanonical);
        }
        Ok(manifest)
    }

    /// Canonical bytes: postcard of this struct. Field order and varints make the encoding unique.
    pub fn encode(&self) -> Vec<u8> {
        // postcard cannot fail to serialise plain owned data into a Vec.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// The model's id.
    pub fn id(&self) -> ModelId {
        ModelId(*blake3::hash(&self.encode()).as_bytes())
    }
}
