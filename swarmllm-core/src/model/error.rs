//! Errors of models and shards on this node's disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::base::names::MIN_ID_PREFIX;
use crate::base::{ErrorKind, LayerRange, ModelId, ShardId};
use crate::model::gguf::{GgufError, SplitError};
use crate::model::shard::ShardError;
use crate::model::{ManifestError, ShardKind};

/// Most candidates that an ambiguous name lists. With names of at most 128 bytes they fill about one fault message.
const MAX_LISTED: usize = 8;

/// Why a catalogue operation was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// Reading or writing failed; [`ModelError::kind`] distinguishes a full disk.
    #[error("could not {operation} {path}: {source}", path = path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    /// The path given is not a regular file.
    #[error("{path} is not a regular file; give a .gguf file", path = path.display())]
    NotAFile { path: PathBuf },
    /// The file is not an accepted GGUF.
    #[error("{path} is not a usable model: {source}", path = path.display())]
    Gguf { path: PathBuf, source: GgufError },
    /// One part of a multi-file model is missing from the directory.
    #[error("part {number} of {count} is missing: {path}", path = path.display())]
    PartFileMissing { path: PathBuf, number: u32, count: u32 },
    /// The files are not parts of one model.
    #[error("{path} is not usable with the other parts: {source}", path = path.display())]
    Split { path: PathBuf, source: SplitError },
    /// The file is a valid GGUF, but its model cannot be split into shards.
    #[error("{path} cannot be cut into shards: {source}", path = path.display())]
    Sharding { path: PathBuf, source: ManifestError },
    /// The manifest is not acceptable.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// No model has this name or id.
    #[error("no model `{name}` is known here{}; import it, or pull it from a peer", resembling(nearest, *short))]
    NotFound {
        name: String,
        nearest: Vec<String>,
        /// Whether `name` is a prefix of a known model's id, with too few digits to be read as an id.
        short: bool,
    },
    /// Several models match this name or id prefix.
    #[error("`{name}` could be {} models: {}; name one by its id", models.len(), listed(candidates, models.len()))]
    Ambiguous { name: String, models: Vec<ModelId>, candidates: Vec<String> },
    /// The alias belongs to another model.
    #[error(
        "`{alias}` is an alias of model {model} already; choose another, or move it to this model explicitly",
        model = model.short()
    )]
    AliasTaken { alias: String, model: ModelId },
    /// The alias is the name that another model's file, or a peer, suggests for that model.
    #[error(
        "`{alias}` names model {model} in its file or at a peer; choose another, or move it to this model explicitly",
        model = model.short()
    )]
    AliasSuggested { alias: String, model: ModelId },
    /// The alias is a prefix of another model's id.
    #[error("`{alias}` is a prefix of the id of model {model}; choose another alias", model = model.short())]
    AliasIsIdPrefix { alias: String, model: ModelId },
    /// The alias would be read as an id.
    #[error(
        "`{alias}` would be read as the beginning of a model's id; an alias is not made of hexadecimal digits alone"
    )]
    AliasIsId { alias: String },
    /// The alias contains an invisible character or a control character.
    #[error("an alias cannot contain an invisible or control character, as U+{code:04X}", code = u32::from(*character))]
    InvisibleInAlias { character: char },
    /// No model has this alias.
    #[error("no model here has the alias `{alias}`; names from files or peers cannot be removed")]
    NoAlias { alias: String },
    /// The alias has no printable character.
    #[error("an alias needs at least one printable character")]
    EmptyAlias,
    /// The part of a model is not held here.
    #[error(
        "the {part} of `{model}` is not held here (shard {shard}); pull it, or import the model",
        shard = shard.short()
    )]
    PartMissing { model: String, part: ShardKind, shard: ShardId },
    /// The shard is not held here.
    #[error("shard {shard} is not held here", shard = shard.short())]
    ShardMissing { shard: ShardId },
    /// The shard belongs to no known model, or the host has deleted it.
    #[error(
        "shard {shard} belongs to no model that is known here, or was deleted; add its manifest, or pull it",
        shard = shard.short()
    )]
    Unlisted { shard: ShardId },
    /// The bytes on disk are damaged; the shard is no longer held.
    #[error(
        "shard {shard} was damaged on disk and has been set aside; pull it again, or import the model",
        shard = shard.short()
    )]
    Damaged { shard: ShardId },
    /// Bytes or leaves do not match the shard.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The metadata shard does not match its manifest.
    #[error("the metadata of `{model}` contradicts its manifest")]
    Metadata { model: String },
    /// The shard has another writer.
    #[error("shard {shard} is already being written", shard = shard.short())]
    Busy { shard: ShardId },
    /// The host has pinned the model.
    #[error("`{model}` is pinned, so nothing of it can be removed; unpin it first")]
    Pinned { model: String },
    /// The part is loaded.
    #[error("the {part} of `{model}` is loaded here; try again after its stage is unloaded")]
    InUse { model: String, part: ShardKind },
    /// The last groups of the shard have not been written.
    #[error("shard {shard} has {written} of {groups} groups", shard = shard.short())]
    Unfinished { shard: ShardId, written: u64, groups: u64 },
    /// The bytes would exceed the host's disk budget.
    #[error(
        "{needed} bytes would be added to {used}, of {max} that shards may take here; remove a model, or raise the bound"
    )]
    Budget { needed: u64, used: u64, max: u64 },
    /// The layer range is empty, or not within the model.
    #[error("layers {layers} were requested, `{model}` has 0..{count}")]
    Layers { model: String, layers: LayerRange, count: u32 },
}

fn resembling(nearest: &[String], short: bool) -> String {
    match nearest {
        _ if short => format!(" (it is a prefix of an id: give at least {MIN_ID_PREFIX} digits)"),
        [] => String::new(),
        names => format!(" (nearest: {})", names.join(", ")),
    }
}

fn listed(candidates: &[String], count: usize) -> String {
    let more = if count > candidates.len() { ", ..." } else { "" };
    format!("{}{more}", candidates.join(", "))
}

impl ModelError {
    /// No model has this id.
    pub(super) fn unknown(model: ModelId) -> ModelError {
        ModelError::NotFound { name: model.to_string(), nearest: Vec::new(), short: false }
    }

    /// A name of several models. `matched` returns the model's name that matched, if it matched by name.
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

    /// The [`ErrorKind`] reported to callers.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
                _ => ErrorKind::Io,
            },
            Self::PartFileMissing { .. } => ErrorKind::Io,
            Self::Split { source, .. } => source.kind(),
            Self::NotAFile { .. } | Self::Layers { .. } | Self::Pinned { .. } => ErrorKind::InvalidArgument,
            Self::Gguf { source, .. } => source.kind(),
            // This code builds the manifest, so the file is at fault.
            Self::Sharding { source, .. } => match source.kind() {
                ErrorKind::BadManifest => ErrorKind::BadGguf,
                kind => kind,
            },
            Self::Manifest(error) => match error.kind() {
                ErrorKind::BadGguf => ErrorKind::BadManifest,
                kind => kind,
            },
            Self::NotFound { .. } | Self::NoAlias { .. } | Self::Unlisted { .. } => ErrorKind::ModelNotFound,
            // A connection to more peers does not resolve it.
            Self::Ambiguous { .. } => ErrorKind::InvalidArgument,
            Self::EmptyAlias | Self::AliasIsId { .. } | Self::InvisibleInAlias { .. } => ErrorKind::InvalidArgument,
            Self::AliasTaken { .. } | Self::AliasSuggested { .. } | Self::AliasIsIdPrefix { .. } => {
                ErrorKind::AliasTaken
            }
            Self::PartMissing { .. } | Self::ShardMissing { .. } | Self::Unfinished { .. } => ErrorKind::ShardMissing,
            Self::Damaged { .. } => ErrorKind::ShardCorrupt,
            Self::Shard(error) => error.kind(),
            Self::Metadata { .. } => ErrorKind::BadManifest,
            Self::Busy { .. } | Self::InUse { .. } => ErrorKind::Overloaded,
            Self::Budget { .. } => ErrorKind::DiskBudget,
        }
    }
}
