//! How a GGUF is split into shards: which tensor goes where, computed before any tensor byte is read.

use super::check::{Shape, belongs, kind_of, weight};
use super::{EMBEDDING_TENSOR, Manifest, ManifestError, OUTPUT_NORM_TENSOR, OUTPUT_TENSOR, TensorFault, limits};
use crate::base::ShardId;
use crate::model::gguf::{Facts, Gguf, GgufError, GgufTensor, align_up, is_split_key, write_header};
use crate::model::shard::{GROUP, group_len};
use crate::model::{Fact, ShardEntry, ShardKind, TensorEntry};

/// A range of the file that makes up part of a group of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FilePiece {
    /// Offset of the first byte in the group.
    pub at: usize,
    /// Offset of the first byte in the file.
    pub position: u64,
    /// Length in bytes.
    pub len: usize,
}

/// A model split into shards whose digests are not known yet.
#[derive(Debug, Clone)]
pub struct Sharding {
    /// The manifest; shard ids are zero until the shards are hashed.
    pub manifest: Manifest,
    /// The metadata shard: a header with all of the file's key-values and no tensor.
    pub metadata: Vec<u8>,
    /// For each shard of the manifest, the file offset of each tensor.
    pub tensor_offsets: Vec<Vec<u64>>,
}

impl Sharding {
    /// Splits a checked GGUF; the result passes [`Manifest::check`]. Deterministic: within a shard the tensors keep the
    /// file's order, packed at the file's alignment.
    pub fn new(gguf: &Gguf) -> Result<Sharding, ManifestError> {
        let parts = gguf.parts()?;
        if parts > 1 {
            return Err(GgufError::Split { parts }.into());
        }
        let shape = Shape::read(gguf.view())?;
        let embedding =
            gguf.tensor(EMBEDDING_TENSOR).ok_or(ManifestError::MissingTensor { tensor: EMBEDDING_TENSOR })?;
        // A split model and its unsplit form are the same model.
        let facts: Vec<Fact> = gguf.facts.iter().filter(|fact| !is_split_key(&fact.key)).cloned().collect();
        let metadata = write_header(&facts, &[], gguf.alignment);
        let mut manifest = Manifest {
            format: Manifest::FORMAT,
            architecture: shape.architecture.to_owned(),
            layers: shape.layers,
            width: shape.width,
            // The check below refuses a vocabulary that does not fit.
            vocab: embedding.dims.get(1).copied().unwrap_or(0).try_into().unwrap_or(u32::MAX),
            context: shape.context,
            tied: gguf.tensor(OUTPUT_TENSOR).is_none(),
            alignment: gguf.alignment,
            facts: facts.into_iter().filter(|fact| belongs(fact, shape.architecture)).collect(),
            shards: Vec::new(),
        };
        let mut tensor_offsets = vec![Vec::new()];
        manifest.shards.push(shard(ShardKind::Metadata, metadata.len() as u64, Vec::new()));
        for (kind, tensors) in sorted(gguf, shape.layers)? {
            let (entry, positions) = pack(kind, &tensors, gguf)?;
            manifest.shards.push(entry);
            tensor_offsets.push(positions);
        }
        for shard in &mut manifest.shards {
            shard.weight = weight(&shard.tensors, Facts(&manifest.facts));
        }
        manifest.check()?;
        Ok(Sharding { manifest, metadata, tensor_offsets })
    }

    /// Whether `manifest` has exactly these shards, whatever their bytes.
    pub fn fits(&self, manifest: &Manifest) -> bool {
        let mut own = self.manifest.clone();
        own.shards.iter_mut().zip(&manifest.shards).for_each(|(own, theirs)| own.id = theirs.id);
        own == *manifest
    }

    /// Whether the file's header belongs to `manifest`: same tensors at the same offsets, same key-values. The weights may
    /// differ.
    pub fn is_header_of(&self, manifest: &Manifest) -> bool {
        let is_metadata = |entry: &ShardEntry| entry.id == ShardId(*blake3::hash(&self.metadata).as_bytes());
        self.fits(manifest) && manifest.shard(ShardKind::Metadata).is_some_and(is_metadata)
    }

    /// The file ranges that make up a group of the shard at `index`. The gaps between them are zeros.
    pub fn pieces(&self, index: usize, group: u64) -> Vec<FilePiece> {
        let (Some(shard), Some(positions)) = (self.manifest.shards.get(index), self.tensor_offsets.get(index)) else {
            return Vec::new();
        };
        // The earlier checks guarantee that all sums lie inside a shard or a file.
        let start = group.saturating_mul(GROUP);
        let end = start.saturating_add(group_len(shard.size, group));
        let piece = |(tensor, position): (&TensorEntry, &u64)| {
            let from = tensor.offset.max(start);
            let to = tensor.offset.saturating_add(tensor.size).min(end);
            let len = to.checked_sub(from).filter(|len| *len > 0)?;
            // Both are at most `GROUP`, so they fit any usize.
            Some(FilePiece {
                at: (from - start) as usize,
                position: position + (from - tensor.offset),
                len: len as usize,
            })
        };
        shard.tensors.iter().zip(positions).filter_map(piece).collect()
    }
}

/// Tensors by shard: shards in manifest order, tensors in file order.
fn sorted(gguf: &Gguf, layers: u32) -> Result<Vec<(ShardKind, Vec<&GgufTensor>)>, ManifestError> {
    if layers > limits::LAYERS {
        let (given, max) = (layers.into(), limits::LAYERS.into());
        return Err(ManifestError::Limit { what: "the number of layers", given, max });
    }
    let mut tagged = Vec::with_capacity(gguf.tensors.len());
    for tensor in &gguf.tensors {
        let kind = kind_of(&tensor.name, layers).ok_or_else(|| ManifestError::Tensor {
            kind: ShardKind::Common,
            tensor: tensor.name.clone(),
            fault: TensorFault::Misplaced,
        })?;
        tagged.push((kind, tensor));
    }
    // `ShardKind` sorts in manifest order.
    tagged.sort_by_key(|(kind, tensor)| (*kind, tensor.offset));
    check_complete(&tagged, layers)?;
    let groups = tagged.chunk_by(|(left, _), (right, _)| left == right);
    Ok(groups.filter_map(|group| Some((group.first()?.0, group.iter().map(|(_, tensor)| *tensor).collect()))).collect())
}

/// Reports the first part without tensors. `tagged` is sorted by part.
fn check_complete(tagged: &[(ShardKind, &GgufTensor)], layers: u32) -> Result<(), ManifestError> {
    let missing = |kind: &ShardKind| tagged.binary_search_by_key(kind, |(kind, _)| *kind).is_err();
    match (0..layers).map(ShardKind::Layer).chain([ShardKind::Head]).find(missing) {
        None => Ok(()),
        Some(ShardKind::Head) => Err(ManifestError::MissingTensor { tensor: OUTPUT_NORM_TENSOR }),
        Some(kind) => Err(ManifestError::EmptyShard { kind }),
    }
}

/// The shard's entry and the file offsets of its tensors.
fn pack(kind: ShardKind, tensors: &[&GgufTensor], gguf: &Gguf) -> Result<(ShardEntry, Vec<u64>), ManifestError> {
    let mut end = 0;
    let mut entries = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        let too_large = || ManifestError::Limit { what: "the size of a shard", given: u64::MAX, max: u64::MAX };
        let offset = align_up(end, gguf.alignment).ok_or_else(too_large)?;
        end = offset.checked_add(tensor.size).ok_or_else(too_large)?;
        let GgufTensor { name, ty, dims, size, .. } = (*tensor).clone();
        entries.push(TensorEntry { name, ty, dims, offset, size });
    }
    // `Gguf::read` has checked that both lie inside the file.
    let positions = tensors.iter().map(|tensor| gguf.data_offset.saturating_add(tensor.offset)).collect();
    Ok((shard(kind, end, entries), positions))
}

fn shard(kind: ShardKind, size: u64, tensors: Vec<TensorEntry>) -> ShardEntry {
    ShardEntry { kind, id: ShardId([0; 32]), size, weight: 0, tensors }
}
