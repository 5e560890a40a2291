//! Why a manifest is refused, or cannot be built from a file.

use crate::base::{ErrorKind, ModelId};
use crate::model::ShardKind;
use crate::model::gguf::{GgufError, ShapeFault};

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are not a manifest.
    #[error("the bytes are not a manifest: {reason}")]
    Encoding { reason: String },
    /// The encoding is not canonical.
    #[error("the manifest is not in its canonical encoding")]
    NotCanonical,
    /// The format is not known.
    #[error("the manifest has format {found}; this build reads format {known}")]
    Format { found: u32, known: u32 },
    /// The manifest is valid but belongs to another model.
    #[error("the manifest is model {found}, not {expected}")]
    WrongId { expected: ModelId, found: ModelId },
    /// The number is zero, or exceeds its bound.
    #[error("{what} is {given}; 1 to {max} is accepted")]
    Limit { what: &'static str, given: u64, max: u64 },
    /// The name is empty, too long or not printable.
    #[error("{what} is not printable text of 1 to {max} bytes")]
    Name { what: &'static str, max: usize },
    /// A key-value is malformed, missing or of the wrong type.
    #[error(transparent)]
    Fact(#[from] GgufError),
    /// The key-value does not belong in a manifest.
    #[error("key `{key}` is not the architecture's own, or occurs twice")]
    ForeignFact { key: String },
    /// A field contradicts its key-value.
    #[error("the manifest's {what} and its key `{key}` disagree")]
    Disagrees { what: &'static str, key: String },
    /// Shards are out of order, missing or too many.
    #[error("shard {index} is the {found}, the {expected} is expected there")]
    ShardOrder { index: usize, found: ShardKind, expected: ShardKind },
    /// The number of shards does not match the number of layers.
    #[error("the manifest lists {given} shards for {layers} layers")]
    ShardCount { given: usize, layers: u32 },
    /// The size or weight is not the sum over the tensors.
    #[error("the {what} of the {kind} is {given}, its tensors sum to {expected}")]
    ShardSum { kind: ShardKind, what: &'static str, given: u64, expected: u64 },
    /// The shard has no tensor.
    #[error("the {kind} holds no tensor")]
    EmptyShard { kind: ShardKind },
    /// A tensor is invalid.
    #[error("tensor `{tensor}` of the {kind} {fault}")]
    Tensor { kind: ShardKind, tensor: String, fault: TensorFault },
    /// A required tensor is missing.
    #[error("tensor `{tensor}` is missing")]
    MissingTensor { tensor: &'static str },
}

/// What is wrong with a tensor of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TensorFault {
    /// The name is empty, too long or not printable.
    #[error("has a name that is not printable, or too long")]
    Name,
    /// The tensor occurs twice.
    #[error("occurs twice")]
    Duplicate,
    /// The name belongs in another shard, or in none.
    #[error("does not belong there")]
    Misplaced,
    /// The type is not accepted.
    #[error("has the unknown type {0}")]
    Type(u32),
    /// The shape is invalid.
    #[error("has an impossible shape: {0}")]
    Shape(ShapeFault),
    /// The size does not match type and shape.
    #[error("claims {given} bytes, its type and shape make {expected}")]
    Size { given: u64, expected: u64 },
    /// The offset is not the next aligned one.
    #[error("begins at {given}, {expected} is expected")]
    Offset { given: u64, expected: u64 },
    /// The embedding is not `width` × `vocab`.
    #[error("is not width by vocabulary")]
    NotEmbedding,
    /// A tied model has an output matrix.
    #[error("is an output matrix in a model marked as tied")]
    Tied,
}

impl ManifestError {
    /// The [`ErrorKind`] reported to callers.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Fact(error) => error.kind(),
            _ => ErrorKind::BadManifest,
        }
    }
}
