//! What can go wrong with models and shards on this node's disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::base::{ErrorKind, LayerRange, ModelId, ShardId};
use crate::model::gguf::GgufError;
use crate::model::shard::ShardError;
use crate::model::{ManifestError, ShardKind};

/// Why the catalogue refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Reading or writing failed; see [`ModelError::kind`] for a full disk.
    #[error("could not {operation} {path}: {source}", path = path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// The path given is not a regular file.
    #[error("{path} is not a regular file; give a .gguf file", path = path.display())]
    NotAFile { path: PathBuf },
    /// The file is not a GGUF that we accept.
    #[error("{path} is not a usable model: {source}", path = path.display())]
    Gguf { path: PathBuf, source: GgufError },
    /// The file is a GGUF, but not of a model that can be cut.
    #[error("{path} cannot be cut into shards: {source}", path = path.display())]
    Cut { path: PathBuf, source: ManifestError },
    /// A manifest that cannot be accepted.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// No model of this name or id.
    #[error("no model `{name}` is known here; import it, or pull it from a peer")]
    NotFound { name: String },
    /// Several models of this name or prefix.
    #[error("`{name}` could be {count} models; name one by its id, as {example}")]
    Ambiguous { name: String, count: usize, example: ModelId },
    /// A part of a model that is not held here.
    #[error(
        "the {part} of `{model}` is not held here (shard {shard}); pull it, or import the model",
        shard = shard.short()
    )]
    PartMissing { model: String, part: ShardKind, shard: ShardId },
    /// A shard that is not held here.
    #[error("shard {shard} is not held here", shard = shard.short())]
    ShardMissing { shard: ShardId },
    /// A shard that no known model has, or the host has deleted.
    #[error(
        "shard {shard} belongs to no model that is known here, or was deleted; add its manifest, or pull it",
        shard = shard.short()
    )]
    Unlisted { shard: ShardId },
    /// A shard whose bytes on disk are damaged; it is no longer held.
    #[error(
        "shard {shard} was damaged on disk and has been set aside; pull it again, or import the model",
        shard = shard.short()
    )]
    Damaged { shard: ShardId },
    /// Bytes or leaves that are not the shard's.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The metadata shard does not belong to its manifest.
    #[error("the metadata of `{model}` contradicts its manifest")]
    Metadata { model: String },
    /// Somebody else is writing the shard.
    #[error("shard {shard} is already being written", shard = shard.short())]
    Busy { shard: ShardId },
    /// A model that the host has pinned.
    #[error("`{model}` is pinned, so that nothing of it goes; unpin it first")]
    Pinned { model: String },
    /// A part of a model that is loaded.
    #[error("the {part} of `{model}` is loaded here; try again when its stage is not")]
    InUse { model: String, part: ShardKind },
    /// A shard whose last groups have not been written.
    #[error("shard {shard} has {written} of {groups} groups", shard = shard.short())]
    Unfinished { shard: ShardId, written: u64, groups: u64 },
    /// More bytes than the host's bound admits.
    #[error(
        "{needed} bytes would be added to {used}, of {max} that shards may take here; remove a model, or raise the bound"
    )]
    Budget { needed: u64, used: u64, max: u64 },
    /// Layers that the model does not have, or none.
    #[error("layers {layers} were asked for, `{model}` has 0..{count}")]
    Layers { model: String, layers: LayerRange, count: u32 },
}

impl ModelError {
    pub(super) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ModelError {
        move |source| ModelError::Io { operation, path: path.to_owned(), source }
    }

    /// The kind that crosses borders.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
                _ => ErrorKind::Io,
            },
            Self::NotAFile { .. } | Self::Layers { .. } | Self::Pinned { .. } => ErrorKind::InvalidArgument,
            Self::Gguf { source, .. } => source.kind(),
            // The manifest is our own: what is wrong is the file.
            Self::Cut { source, .. } => match source.kind() {
                ErrorKind::BadManifest => ErrorKind::BadGguf,
                kind => kind,
            },
            Self::Manifest(error) => match error.kind() {
                ErrorKind::BadGguf => ErrorKind::BadManifest,
                kind => kind,
            },
            Self::NotFound { .. } | Self::Ambiguous { .. } | Self::Unlisted { .. } => ErrorKind::ModelNotFound,
            Self::PartMissing { .. } | Self::ShardMissing { .. } | Self::Unfinished { .. } => ErrorKind::ShardMissing,
            Self::Damaged { .. } => ErrorKind::ShardCorrupt,
            Self::Shard(error) => error.kind(),
            Self::Metadata { .. } => ErrorKind::BadManifest,
            Self::Busy { .. } | Self::InUse { .. } => ErrorKind::Overloaded,
            Self::Budget { .. } => ErrorKind::DiskBudget,
        }
    }
}
