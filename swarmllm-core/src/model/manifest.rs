//! The manifest: what a model is made of, in canonical bytes. `ModelId` is the BLAKE3 digest of those bytes.

use serde::{Deserialize, Serialize};

use crate::base::{LayerRange, ModelId, ShardId};

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
    /// A name for people. Not an identity: two models may have one name.
    pub name: String,
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
    pub const FORMAT: u32 = 1;

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

    /// What a coordinator needs: metadata and embedding.
    pub fn coordinator_shards(&self) -> impl Iterator<Item = &ShardEntry> {
        self.shards.iter().filter(|shard| matches!(shard.kind, ShardKind::Metadata | ShardKind::Embedding))
    }

    /// Bytes of all shards.
    pub fn size(&self) -> u64 {
        self.shards.iter().map(|shard| shard.size).sum()
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
