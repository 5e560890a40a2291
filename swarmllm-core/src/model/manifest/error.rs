//! Why a manifest cannot be accepted, or made from a file.

use crate::base::{ErrorKind, ModelId};
use crate::model::ShardKind;
use crate::model::gguf::{GgufError, ShapeFault};

/// What is wrong with a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not a manifest's bytes.
    #[error("the bytes are not a manifest: {reason}")]
    Encoding { reason: String },
    /// The same content has another encoding, which is the one that counts.
    #[error("the manifest is not in its canonical encoding")]
    NotCanonical,
    /// Another layout.
    #[error("the manifest has format {found}; this build reads format {known}")]
    Format { found: u32, known: u32 },
    /// A good manifest of another model.
    #[error("the manifest is model {found}, not {expected}")]
    WrongId { expected: ModelId, found: ModelId },
    /// Zero, or beyond a bound.
    #[error("{what} is {given}; 1 to {max} is accepted")]
    Limit { what: &'static str, given: u64, max: u64 },
    /// A name that is empty, too long or not printable.
    #[error("{what} is not printable text of 1 to {max} bytes")]
    Name { what: &'static str, max: usize },
    /// A key-value that is malformed, missing or of another type.
    #[error(transparent)]
    Fact(#[from] GgufError),
    /// A key-value that does not belong in a manifest.
    #[error("key `{key}` is not the architecture's own, or comes twice")]
    ForeignFact { key: String },
    /// A field and the key-value it comes from say different things.
    #[error("the manifest's {what} and its key `{key}` disagree")]
    Disagrees { what: &'static str, key: String },
    /// Shards out of order, missing or too many.
    #[error("shard {index} is the {found}, the {expected} is due there")]
    ShardOrder { index: usize, found: ShardKind, expected: ShardKind },
    /// Not as many shards as layers ask for.
    #[error("the manifest lists {given} shards for {layers} layers")]
    ShardCount { given: usize, layers: u32 },
    /// A size or weight that its tensors do not add up to.
    #[error("the {what} of the {kind} is {given}, its tensors make {expected}")]
    ShardSum { kind: ShardKind, what: &'static str, given: u64, expected: u64 },
    /// A shard without the tensors it is there for.
    #[error("the {kind} holds no tensor")]
    EmptyShard { kind: ShardKind },
    /// A tensor that cannot be where or what it is said to be.
    #[error("tensor `{tensor}` of the {kind} {fault}")]
    Tensor { kind: ShardKind, tensor: String, fault: TensorFault },
    /// A tensor that a model must have.
    #[error("tensor `{tensor}` is missing")]
    MissingTensor { tensor: &'static str },
}

/// What is wrong with a tensor of a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TensorFault {
    /// Empty, too long or not printable.
    #[error("has a name that is not printable, or too long")]
    Name,
    /// Comes twice.
    #[error("comes twice")]
    Duplicate,
    /// Its name belongs in another shard, or in none.
    #[error("does not belong there")]
    Misplaced,
    /// Not a type that we accept.
    #[error("has the unknown type {0}")]
    Type(u32),
    /// An impossible shape.
    #[error("has an impossible shape: {0}")]
    Shape(ShapeFault),
    /// Its size is not what type and shape make.
    #[error("is said to have {given} bytes, its type and shape make {expected}")]
    Size { given: u64, expected: u64 },
    /// Its offset is not the next one.
    #[error("begins at {given}, {expected} is due")]
    Offset { given: u64, expected: u64 },
    /// The embedding is not `width` by `vocab`.
    #[error("is not width by vocabulary")]
    NotEmbedding,
    /// An output matrix in a tied model.
    #[error("is an output matrix in a model that is said to be tied")]
    Tied,
}

impl ManifestError {
    /// The kind that crosses borders.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Fact(error) => error.kind(),
            _ => ErrorKind::BadManifest,
        }
    }
}
