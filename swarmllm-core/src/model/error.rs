//! What can go wrong with models and shards on this node's disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::base::names::MIN_ID_PREFIX;
use crate::base::{ErrorKind, LayerRange, ModelId, ShardId};
use crate::model::gguf::{GgufError, SplitError};
use crate::model::shard::ShardError;
use crate::model::{ManifestError, ShardKind};

/// Candidates that an ambiguous name lists: with their names of at most 128 bytes about as much as a fault holds.
const MAX_LISTED: usize = 8;

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
    /// A part of a model in several files that does not lie beside the others.
    #[error("part {number} of {count} is missing: {path}", path = path.display())]
    FileOfParts { path: PathBuf, number: u32, count: u32 },
    /// Files that are not the parts of one model.
    #[error("{path} is not usable with the other parts: {source}", path = path.display())]
    Split { path: PathBuf, source: SplitError },
    /// The file is a GGUF, but not of a model that can be cut.
    #[error("{path} cannot be cut into shards: {source}", path = path.display())]
    Cut { path: PathBuf, source: ManifestError },
    /// A manifest that cannot be accepted.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// No model of this name or id.
    #[error("no model `{name}` is known here{}; import it, or pull it from a peer", resembling(nearest, *short))]
    NotFound {
        name: String,
        nearest: Vec<String>,
        /// Whether the id of a known model begins so, with too few digits to be read as an id.
        short: bool,
    },
    /// Several models of this name or prefix.
    #[error("`{name}` could be {} models: {}; name one by its id", models.len(), listed(candidates, models.len()))]
    Ambiguous { name: String, models: Vec<ModelId>, candidates: Vec<String> },
    /// An alias that another model has.
    #[error(
        "`{alias}` is an alias of model {model} already; choose another, or move it to this model explicitly",
        model = model.short()
    )]
    AliasTaken { alias: String, model: ModelId },
    /// An alias that is another model's name by its file, or by a peer.
    #[error(
        "`{alias}` is what model {model} is called by its file or a peer; choose another, or move it to this model explicitly",
        model = model.short()
    )]
    AliasSuggested { alias: String, model: ModelId },
    /// An alias that is the beginning of another model's id.
    #[error("`{alias}` is how the id of model {model} begins; choose another alias", model = model.short())]
    AliasOfId { alias: String, model: ModelId },
    /// An alias that is read as an id.
    #[error(
        "`{alias}` would be read as the beginning of a model's id; an alias is not made of hexadecimal digits alone"
    )]
    AliasLikeId { alias: String },
    /// An alias with a character that nobody sees.
    #[error("an alias has no invisible character or control character; this one has U+{code:04X}", code = u32::from(*character))]
    HiddenInAlias { character: char },
    /// An alias that no model has.
    #[error("no model here has the alias `{alias}`; names that come with files or from peers cannot be taken away")]
    NoAlias { alias: String },
    /// An alias without a printable character.
    #[error("an alias has at least one printable character")]
    EmptyAlias,
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

fn resembling(nearest: &[String], short: bool) -> String {
    match nearest {
        _ if short => format!(" (an id begins so: give at least {MIN_ID_PREFIX} digits of it)"),
        [] => String::new(),
        names => format!(" (nearest: {})", names.join(", ")),
    }
}

fn listed(candidates: &[String], count: usize) -> String {
    let more = if count > candidates.len() { ", ..." } else { "" };
    format!("{}{more}", candidates.join(", "))
}

impl ModelError {
    /// A model that is not known by its id.
    pub(super) fn unknown(model: ModelId) -> ModelError {
        ModelError::NotFound { name: model.to_string(), nearest: Vec::new(), short: false }
    }

    /// A name of several models. `matched` says by which of its names each of them was found, where it was by a name.
    pub(crate) fn ambiguous(
        name: String,
        found: &[ModelId],
        matched: impl Fn(ModelId) -> Option<String>,
    ) -> ModelError {
        let shown = |id: &ModelId| match matched(*id) {
            Some(name) => format!("{name} ({})", id.short()),
            None => id.short(),
        };
        let candidates = found.iter().take(MAX_LISTED).map(shown).collect();
        ModelError::Ambiguous { name, models: found.to_vec(), candidates }
    }

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
            Self::FileOfParts { .. } => ErrorKind::Io,
            Self::Split { source, .. } => source.kind(),
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
            Self::NotFound { .. } | Self::NoAlias { .. } | Self::Unlisted { .. } => ErrorKind::ModelNotFound,
            // No peer's arrival makes it clearer.
            Self::Ambiguous { .. } => ErrorKind::InvalidArgument,
            Self::EmptyAlias | Self::AliasLikeId { .. } | Self::HiddenInAlias { .. } => ErrorKind::InvalidArgument,
            Self::AliasTaken { .. } | Self::AliasSuggested { .. } | Self::AliasOfId { .. } => ErrorKind::AliasTaken,
            Self::PartMissing { .. } | Self::ShardMissing { .. } | Self::Unfinished { .. } => ErrorKind::ShardMissing,
            Self::Damaged { .. } => ErrorKind::ShardCorrupt,
            Self::Shard(error) => error.kind(),
            Self::Metadata { .. } => ErrorKind::BadManifest,
            Self::Busy { .. } | Self::InUse { .. } => ErrorKind::Overloaded,
            Self::Budget { .. } => ErrorKind::DiskBudget,
        }
    }
}
