//! The manifest: what a model is made of, in canonical bytes. `ModelId` is the BLAKE3 digest of those bytes.
//!
//! A manifest has no name in it, so that equal content is one model, whatever people call it.
//!
//! Promises: a [`Manifest`] that was decoded or built here has passed every check of [`Manifest::check`], so that its
//! tensors are known types of possible shapes, packed inside their shards, each in the shard its name belongs to.

mod check;
mod cut;
mod error;
mod old;
#[cfg(test)]
pub(crate) mod tests;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::{LayerRange, ModelId, ShardId};

pub use cut::{Cut, Piece};
pub use error::{ManifestError, TensorFault};
pub(crate) use old::decode_format_1;
#[cfg(test)]
pub(crate) use old::encode_format_1;

/// Bounds of what a manifest may say. Each is far above the largest public model's need.
pub mod limits {
    /// Bytes of the encoding.
    pub const BYTES: usize = 2 * 1024 * 1024;
    /// Bytes of a name for people.
    pub const NAME: usize = 128;
    /// Bytes of the architecture's name.
    pub const ARCHITECTURE: usize = 64;
    /// Transformer blocks.
    pub const LAYERS: u32 = 1024;
    /// Floats in a hidden state.
    pub const WIDTH: u32 = 65_536;
    /// Tokens in the vocabulary.
    pub const VOCAB: u32 = 4 * 1024 * 1024;
    /// Positions.
    pub const CONTEXT: u32 = 1 << 30;
    /// Key-values of the architecture.
    pub const FACTS: usize = 1024;
    /// Bytes of their values together.
    pub const FACT_BYTES: usize = 512 * 1024;
    /// Tensors of all shards together.
    pub const TENSORS: usize = 10_000;
    /// Bytes of the metadata shard.
    pub const METADATA_BYTES: u64 = 72 * 1024 * 1024;
}

/// The embedding matrix, `width` by `vocab`.
pub const EMBEDDING_TENSOR: &str = "token_embd.weight";
/// The output matrix of a model that is not tied.
pub const OUTPUT_TENSOR: &str = "output.weight";

/// The norm before the output matrix, which every model has.
pub const OUTPUT_NORM_TENSOR: &str = "output_norm.weight";

/// Which part of a model a shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ShardKind {
    /// The GGUF's key-values, tokenizer and chat template included.
    Metadata,
    /// `token_embd`.
    Embedding,
    /// Small tensors that every stage needs (rope frequencies). Absent where the model has none.
    Common,
    /// One transformer block.
    Layer(u32),
    /// Output norm and output. Where the model is tied the output matrix is the embedding's and lies in that shard.
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

/// One tensor inside a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Its name in the GGUF (`blk.7.attn_q.weight`).
    pub name: String,
    /// Its ggml type.
    pub ty: u32,
    /// Its shape, fastest axis first, as in the GGUF.
    pub dims: Vec<u64>,
    /// First byte inside the shard, a multiple of the manifest's alignment.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardEntry {
    /// Which part it is.
    pub kind: ShardKind,
    /// BLAKE3 of its bytes.
    pub id: ShardId,
    /// Bytes.
    pub size: u64,
    /// `ceil(active parameters / 1e6)`, what the ledger prices by.
    pub weight: u64,
    /// Its tensors in the order of their offsets. Empty for [`ShardKind::Metadata`].
    pub tensors: Vec<TensorEntry>,
}

/// One GGUF key-value, its value as raw GGUF bytes (without the type word).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Key, as `llama.block_count`.
    pub key: String,
    /// GGUF value type.
    pub ty: u32,
    /// Value, little endian, as in the GGUF.
    pub raw: Vec<u8>,
}

/// What a model is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout; [`Manifest::FORMAT`].
    pub format: u32,
    /// `general.architecture`.
    pub architecture: String,
    /// Transformer blocks.
    pub layers: u32,
    /// Floats in a hidden state.
    pub width: u32,
    /// Tokens in the vocabulary.
    pub vocab: u32,
    /// Positions that the model was trained for.
    pub context: u32,
    /// Whether the output matrix is the embedding matrix.
    pub tied: bool,
    /// Alignment of tensors inside shards, the GGUF's own.
    pub alignment: u32,
    /// The architecture's own key-values (`general.architecture`, `<architecture>.*`), in the GGUF's order. All that a
    /// stage needs to know; the tokenizer is only in the metadata shard.
    pub facts: Vec<Fact>,
    /// Metadata, embedding, common (if any), layers in order, head.
    pub shards: Vec<ShardEntry>,
}

impl Manifest {
    /// Version of the layout.
    pub const FORMAT: u32 = 2;

    /// The entry of this kind.
    pub fn shard(&self, kind: ShardKind) -> Option<&ShardEntry> {
        self.shards.iter().find(|shard| shard.kind == kind)
    }

    /// What a stage needs: its layers, the common tensors, and for the head that shard and, where tied, the embedding.
    pub fn stage_shards(&self, layers: LayerRange, head: bool) -> impl Iterator<Item = &ShardEntry> {
        self.shards.iter().filter(move |shard| match shard.kind {
            ShardKind::Metadata => false,
            ShardKind::Embedding => head && self.tied,
            ShardKind::Common => true,
            ShardKind::Layer(layer) => layers.start <= layer && layer < layers.end,
            ShardKind::Head => head,
        })
    }

    /// What the ledger prices a stage by: the weight of all that it computes with.
    pub fn stage_weight(&self, layers: LayerRange, head: bool) -> u64 {
        self.stage_shards(layers, head).map(|shard| shard.weight).fold(0, u64::saturating_add)
    }

    /// What a coordinator needs: metadata and embedding.
    pub fn coordinator_shards(&self) -> impl Iterator<Item = &ShardEntry> {
        self.shards.iter().filter(|shard| matches!(shard.kind, ShardKind::Metadata | ShardKind::Embedding))
    }

    /// Bytes of all shards.
    pub fn size(&self) -> u64 {
        self.shards.iter().map(|shard| shard.size).sum()
    }

    /// Reads a manifest from anywhere: at most [`limits::BYTES`], canonical, and all that [`Manifest::check`] asks for.
    pub fn decode(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        if bytes.len() > limits::BYTES {
            return Err(ManifestError::Limit {
                what: "the manifest's length",
                given: bytes.len() as u64,
                max: limits::BYTES as u64,
            });
        }
        // Asked first: the bytes of another layout need not decode as this one.
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
        // Serialising plain owned data into a Vec has no failing path in postcard.
        postcard::to_stdvec(self).unwrap_or_default()
    }

    /// Its identity.
    pub fn id(&self) -> ModelId {
        ModelId(*blake3::hash(&self.encode()).as_bytes())
    }
}
