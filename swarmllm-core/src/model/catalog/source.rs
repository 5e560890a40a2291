//! Reading held shards, for peers and engines. Each shard is verified before its first use in a process.

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
    /// Opens a shard for reading. The first use in a process reads and verifies all of it. A damaged shard is set aside: it
    /// is no longer held, and a writer can resume from its good groups.
    pub fn open_shard(&self, shard: &ShardId) -> Result<File, ModelError> {
        self.open_verified(shard).map(|(file, _)| file)
    }

    /// The leaves of a shard, 32 bytes per MiB, for a peer that verifies while it receives. Verifies as
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
                self.mark_lost(shard);
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

    /// Moves a damaged shard to the partial directory, where a writer can resume from it.
    fn set_aside(&self, shard: &ShardId) -> Result<(), ModelError> {
        self.mark_lost(shard);
        let path = self.layout().shard(shard);
        let moved = match self.claim(*shard) {
            Ok(()) => {
                let moved = fs::rename(&path, self.layout().partial(shard));
                self.unclaim(shard);
                moved
            }
            // A writer already replaces it.
            Err(_) => fs::remove_file(&path),
        };
        moved.map_err(ModelError::io("set aside", &path))
    }

    /// Verifies every held shard of a model again, sets damaged ones aside and returns them. Blocks for as long as the
    /// reading takes.
    pub fn verify(&self, model: ModelId) -> Result<Vec<ShardId>, ModelError> {
        let manifest = self.require_manifest(model)?;
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

    /// Everything an engine needs for a stage. The error names the first part that is not held.
    pub fn stage_source(&self, model: ModelId, layers: LayerRange, head: bool) -> Result<StageSource, ModelError> {
        let manifest = self.require_manifest(model)?;
        let inside = layers.start <= layers.end && layers.end <= manifest.layers;
        if !inside || (layers.is_empty() && !head) {
            let (model, count) = (self.display_name(model), manifest.layers);
            return Err(ModelError::Layers { model, layers, count });
        }
        let mut tensors = Vec::new();
        for entry in manifest.stage_shards(layers, head) {
            tensors.extend(self.source_tensors(model, entry)?);
        }
        self.record_use(model);
        Ok(StageSource { manifest, layers, head, tensors })
    }

    /// Everything an engine needs for embedding lookups.
    pub fn embedding_source(&self, model: ModelId) -> Result<EmbeddingSource, ModelError> {
        let manifest = self.require_manifest(model)?;
        let mut tensors = Vec::new();
        if let Some(entry) = manifest.shard(ShardKind::Embedding) {
            tensors.extend(self.source_tensors(model, entry)?);
        }
        let found = tensors.into_iter().find(|tensor: &SourceTensor| tensor.entry.name == EMBEDDING_TENSOR);
        let tensor = found.ok_or(ManifestError::MissingTensor { tensor: EMBEDDING_TENSOR })?;
        self.record_use(model);
        Ok(EmbeddingSource { manifest, tensor })
    }

    /// The model's key-values as in the GGUF, including tokenizer and chat template.
    pub fn metadata(&self, model: ModelId) -> Result<Vec<Fact>, ModelError> {
        let manifest = self.require_manifest(model)?;
        let contradiction = || ModelError::Metadata { model: self.display_name(model) };
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

    pub(super) fn require_manifest(&self, model: ModelId) -> Result<Arc<Manifest>, ModelError> {
        self.manifest(model).ok_or_else(|| ModelError::unknown(model))
    }

    fn open_part(&self, model: ModelId, entry: &ShardEntry) -> Result<File, ModelError> {
        self.open_shard(&entry.id).map_err(|error| match error {
            ModelError::ShardMissing { shard } => {
                ModelError::PartMissing { model: self.display_name(model), part: entry.kind, shard }
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
