//! Reading what is held: shards for peers and engines, each read through before its first use in this process.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::sync::Arc;

use super::Catalog;
use crate::base::{LayerRange, ModelId, ShardId};
use crate::model::gguf::{Facts, Gguf};
use crate::model::manifest::EMBEDDING_TENSOR;
use crate::model::shard::{self, Leaf};
use crate::model::{
    EmbeddingSource, Fact, Manifest, ManifestError, ModelError, ShardEntry, ShardKind, SourceTensor, StageSource,
};

impl Catalog {
    /// Opens a shard for reading. On its first use in this process all of it is read and checked; a damaged one is set
    /// aside, so that it is no longer held and a writer can resume from its good groups.
    pub fn open_shard(&self, shard: &ShardId) -> Result<File, ModelError> {
        self.open_verified(shard).map(|(file, _)| file)
    }

    /// The leaves of a shard, 32 bytes for each MiB, for a peer that verifies while it receives. Checks as
    /// [`Catalog::open_shard`] does.
    pub fn shard_leaves(&self, shard: &ShardId) -> Result<Arc<[Leaf]>, ModelError> {
        self.open_verified(shard).map(|(_, leaves)| leaves)
    }

    fn open_verified(&self, shard: &ShardId) -> Result<(File, Arc<[Leaf]>), ModelError> {
        if !self.has(shard) {
            return Err(ModelError::ShardMissing { shard: *shard });
        }
        let path = self.layout().shard(shard);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.note_lost(shard);
                return Err(ModelError::ShardMissing { shard: *shard });
            }
            Err(error) => return Err(ModelError::io("open", &path)(error)),
        };
        let size = file.metadata().map_err(ModelError::io("read", &path))?.len();
        let known = self.verified().get(shard).cloned();
        if let Some(leaves) = known.filter(|leaves| leaves.len() as u64 == shard::groups(size)) {
            return Ok((file, leaves));
        }
        let leaves = shard::leaves(&mut file, size).map_err(ModelError::io("read", &path))?;
        if shard::root_from_leaves(&leaves) != *shard {
            self.set_aside(shard)?;
            return Err(ModelError::Damaged { shard: *shard });
        }
        let leaves: Arc<[Leaf]> = leaves.into();
        self.verified().insert(*shard, leaves.clone());
        file.seek(SeekFrom::Start(0)).map_err(ModelError::io("read", &path))?;
        Ok((file, leaves))
    }

    /// Moves a damaged shard to where a writer looks for groups to resume from.
    fn set_aside(&self, shard: &ShardId) -> Result<(), ModelError> {
        self.note_lost(shard);
        let path = self.layout().shard(shard);
        let moved = match self.claim(*shard) {
            Ok(()) => {
                let moved = fs::rename(&path, self.layout().partial(shard));
                self.unclaim(shard);
                moved
            }
            // A writer is replacing it already.
            Err(_) => fs::remove_file(&path),
        };
        moved.map_err(ModelError::io("set aside", &path))
    }

    /// Reads every held shard of a model again and sets damaged ones aside; gives the damaged ones. Blocks for as long
    /// as reading them takes.
    pub fn verify(&self, model: ModelId) -> Result<Vec<ShardId>, ModelError> {
        let manifest = self.known(model)?;
        let mut damaged = Vec::new();
        for entry in manifest.shards.iter().filter(|entry| self.has(&entry.id)) {
            self.forget_verified(&entry.id);
            match self.open_shard(&entry.id) {
                Err(ModelError::Damaged { shard } | ModelError::ShardMissing { shard }) => damaged.push(shard),
                other => drop(other?),
            }
        }
        Ok(damaged)
    }

    /// All that an engine needs for a stage. Names the first part that is not held.
    pub fn stage_source(&self, model: ModelId, layers: LayerRange, head: bool) -> Result<StageSource, ModelError> {
        let manifest = self.known(model)?;
        let inside = layers.start <= layers.end && layers.end <= manifest.layers;
        if !inside || (layers.is_empty() && !head) {
            let (model, count) = (self.title(model), manifest.layers);
            return Err(ModelError::Layers { model, layers, count });
        }
        let mut tensors = Vec::new();
        for entry in manifest.stage_shards(layers, head) {
            tensors.extend(self.source_tensors(model, entry)?);
        }
        self.note_use(model);
        Ok(StageSource { manifest, layers, head, tensors })
    }

    /// All that an engine needs to look embeddings up.
    pub fn embedding_source(&self, model: ModelId) -> Result<EmbeddingSource, ModelError> {
        let manifest = self.known(model)?;
        let mut tensors = Vec::new();
        if let Some(entry) = manifest.shard(ShardKind::Embedding) {
            tensors.extend(self.source_tensors(model, entry)?);
        }
        let found = tensors.into_iter().find(|tensor: &SourceTensor| tensor.entry.name == EMBEDDING_TENSOR);
        let tensor = found.ok_or(ManifestError::MissingTensor { tensor: EMBEDDING_TENSOR })?;
        self.note_use(model);
        Ok(EmbeddingSource { manifest, tensor })
    }

    /// The model's key-values: tokenizer, chat template and the rest, as they were in the GGUF.
    pub fn metadata(&self, model: ModelId) -> Result<Vec<Fact>, ModelError> {
        let manifest = self.known(model)?;
        let contradiction = || ModelError::Metadata { model: self.title(model) };
        let entry = manifest.shard(ShardKind::Metadata).ok_or_else(contradiction)?;
        let mut file = self.open_part(model, entry)?;
        let path = self.layout().shard(&entry.id);
        let gguf = Gguf::read(&mut file).map_err(|source| ModelError::Gguf { path, source })?;
        let agrees = |fact: &Fact| Facts(&gguf.facts).get(&fact.key) == Some(fact);
        if !gguf.tensors.is_empty() || !manifest.facts.iter().all(agrees) {
            return Err(contradiction());
        }
        Ok(gguf.facts)
    }

    pub(super) fn known(&self, model: ModelId) -> Result<Arc<Manifest>, ModelError> {
        self.manifest(model).ok_or_else(|| ModelError::unknown(model))
    }

    fn open_part(&self, model: ModelId, entry: &ShardEntry) -> Result<File, ModelError> {
        self.open_shard(&entry.id).map_err(|error| match error {
            ModelError::ShardMissing { shard } => {
                ModelError::PartMissing { model: self.title(model), part: entry.kind, shard }
            }
            error => error,
        })
    }

    fn source_tensors<'a>(
        &self,
        model: ModelId,
        entry: &'a ShardEntry,
    ) -> Result<impl Iterator<Item = SourceTensor> + use<'a>, ModelError> {
        let file = Arc::new(self.open_part(model, entry)?);
        let source = move |tensor: &crate::model::TensorEntry| SourceTensor {
            entry: tensor.clone(),
            file: file.clone(),
            offset: tensor.offset,
        };
        Ok(entry.tensors.iter().map(source))
    }
}
