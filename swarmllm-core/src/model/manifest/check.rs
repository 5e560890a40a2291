//! The checks that every manifest must pass, from a peer, from disk or from an import.

use std::collections::HashSet;

use super::{EMBEDDING_TENSOR, Manifest, ManifestError, OUTPUT_TENSOR, ShardEntry, TensorEntry, TensorFault, limits};
use crate::model::gguf::{self, Facts, GgmlType, GgufError, Value};
use crate::model::shard::MAX_SHARD_BYTES;
use crate::model::{Fact, ShardKind};

/// The key that names the architecture.
pub(super) const ARCHITECTURE_KEY: &str = "general.architecture";
/// Parameters per unit of the ledger's weight.
const PARAMETERS_PER_WEIGHT: u64 = 1_000_000;

impl Manifest {
    /// Checks everything that does not need the shards' bytes.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.format != Self::FORMAT {
            return Err(ManifestError::Format { found: self.format, known: Self::FORMAT });
        }
        self.check_numbers()?;
        self.check_facts()?;
        self.check_order()?;
        let mut names = HashSet::new();
        for shard in &self.shards {
            self.check_shard(shard, &mut names)?;
        }
        self.check_matrices()
    }

    fn check_numbers(&self) -> Result<(), ManifestError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        check_text("the architecture's name", &self.architecture, limits::ARCHITECTURE, plain)?;
        check_limit("the number of layers", self.layers.into(), limits::LAYERS.into())?;
        check_limit("the width", self.width.into(), limits::WIDTH.into())?;
        check_limit("the vocabulary", self.vocab.into(), limits::VOCAB.into())?;
        check_limit("the context", self.context.into(), limits::CONTEXT.into())?;
        if !gguf::is_alignment(self.alignment) {
            return Err(GgufError::Alignment { found: self.alignment.into() }.into());
        }
        let tensors: usize = self.shards.iter().map(|shard| shard.tensors.len()).sum();
        check_limit("the number of tensors", tensors as u64, limits::TENSORS as u64)
    }

    fn check_facts(&self) -> Result<(), ManifestError> {
        check_limit("the number of keys", self.facts.len() as u64, limits::FACTS as u64)?;
        let bytes: usize = self.facts.iter().map(|fact| fact.raw.len()).sum();
        check_limit("the size of all values", bytes as u64, limits::FACT_BYTES as u64)?;
        let mut keys = HashSet::new();
        for fact in &self.facts {
            check_text("a key", &fact.key, gguf::limits::KEY as usize, |c| !c.is_control())?;
            if !belongs(fact, &self.architecture) || !keys.insert(&fact.key) {
                return Err(ManifestError::ForeignFact { key: fact.key.clone() });
            }
            Value::parse(fact)?;
        }
        let facts = Facts(&self.facts);
        let shape = Shape::read(facts)?;
        let says = [
            ("architecture", ARCHITECTURE_KEY.to_owned(), shape.architecture == self.architecture),
            ("layers", shape.key("block_count"), shape.layers == self.layers),
            ("width", shape.key("embedding_length"), shape.width == self.width),
            ("context", shape.key("context_length"), shape.context == self.context),
        ];
        match says.into_iter().find(|(.., agrees)| !agrees) {
            Some((what, key, _)) => Err(ManifestError::Disagrees { what, key }),
            None => Ok(()),
        }
    }

    fn check_order(&self) -> Result<(), ManifestError> {
        let common = self.shard(ShardKind::Common).map(|shard| shard.kind);
        let due = [ShardKind::Metadata, ShardKind::Embedding].into_iter().chain(common);
        let due = due.chain((0..self.layers).map(ShardKind::Layer)).chain([ShardKind::Head]);
        for (index, (shard, expected)) in self.shards.iter().zip(due.clone()).enumerate() {
            if shard.kind != expected {
                return Err(ManifestError::ShardOrder { index, found: shard.kind, expected });
            }
        }
        if self.shards.len() != due.count() {
            return Err(ManifestError::ShardCount { given: self.shards.len(), layers: self.layers });
        }
        Ok(())
    }

    fn check_shard<'a>(&'a self, shard: &'a ShardEntry, names: &mut HashSet<&'a str>) -> Result<(), ManifestError> {
        let kind = shard.kind;
        if kind == ShardKind::Metadata {
            check_limit("the size of the metadata", shard.size, limits::METADATA_BYTES)?;
            return check_sum(kind, "number of tensors", shard.tensors.len() as u64, 0)
                .and_then(|()| check_sum(kind, "weight", shard.weight, 0));
        }
        if shard.tensors.is_empty() {
            return Err(ManifestError::EmptyShard { kind });
        }
        check_limit("the size of a shard", shard.size, MAX_SHARD_BYTES)?;
        let mut end = 0;
        for tensor in &shard.tensors {
            let fault = |fault| ManifestError::Tensor { kind, tensor: tensor.name.chars().take(64).collect(), fault };
            check_tensor(self, kind, tensor, end).map_err(fault)?;
            if !names.insert(&tensor.name) {
                return Err(fault(TensorFault::Duplicate));
            }
            end = tensor.offset.saturating_add(tensor.size);
        }
        check_sum(kind, "size", shard.size, end)?;
        check_sum(kind, "weight", shard.weight, weight(&shard.tensors, Facts(&self.facts)))
    }

    /// Checks the shape of the embedding, and that the output matrix exists exactly if the model is untied.
    fn check_matrices(&self) -> Result<(), ManifestError> {
        let find = |kind, name: &str| {
            self.shard(kind).and_then(|shard| shard.tensors.iter().find(|tensor| tensor.name == name))
        };
        let fault = |kind, tensor: &str, fault| ManifestError::Tensor { kind, tensor: tensor.to_owned(), fault };
        let embedding = find(ShardKind::Embedding, EMBEDDING_TENSOR)
            .ok_or(ManifestError::MissingTensor { tensor: EMBEDDING_TENSOR })?;
        if embedding.dims != [u64::from(self.width), u64::from(self.vocab)] {
            return Err(fault(ShardKind::Embedding, EMBEDDING_TENSOR, TensorFault::NotEmbedding));
        }
        match (self.tied, find(ShardKind::Head, OUTPUT_TENSOR)) {
            (true, Some(_)) => Err(fault(ShardKind::Head, OUTPUT_TENSOR, TensorFault::Tied)),
            (false, None) => Err(ManifestError::MissingTensor { tensor: OUTPUT_TENSOR }),
            _ => Ok(()),
        }
    }
}

/// The numbers that every model's facts contain.
pub(super) struct Shape<'a> {
    pub architecture: &'a str,
    pub layers: u32,
    pub width: u32,
    pub context: u32,
}

impl<'a> Shape<'a> {
    pub fn read(facts: Facts<'a>) -> Result<Shape<'a>, GgufError> {
        let architecture = facts
            .string(ARCHITECTURE_KEY)?
            .ok_or_else(|| GgufError::MissingKey { key: ARCHITECTURE_KEY.to_owned() })?;
        let mut shape = Shape { architecture, layers: 0, width: 0, context: 0 };
        shape.layers = facts.require_u32(&shape.key("block_count"))?;
        shape.width = facts.require_u32(&shape.key("embedding_length"))?;
        shape.context = facts.require_u32(&shape.key("context_length"))?;
        Ok(shape)
    }

    /// A key of this architecture.
    pub fn key(&self, name: &str) -> String {
        // Foreign and possibly long; errors quote the key.
        let architecture: String = self.architecture.chars().take(limits::ARCHITECTURE).collect();
        format!("{architecture}.{name}")
    }
}

/// Whether the manifest of this architecture contains the fact.
pub(super) fn belongs(fact: &Fact, architecture: &str) -> bool {
    let own = fact.key.strip_prefix(architecture).is_some_and(|rest| rest.starts_with('.'));
    own || fact.key == ARCHITECTURE_KEY
}

/// The shard that a tensor belongs in, by its name. `None` for a block outside `layers`, or a block number that is not
/// plain decimal.
pub(super) fn kind_of(name: &str, layers: u32) -> Option<ShardKind> {
    if let Some(rest) = name.strip_prefix("blk.") {
        let (number, _) = rest.split_once('.')?;
        let layer: u32 = number.parse().ok()?;
        return (layer < layers && layer.to_string() == number).then_some(ShardKind::Layer(layer));
    }
    let group = name.split('.').next().unwrap_or(name);
    Some(match group {
        "token_embd" => ShardKind::Embedding,
        "output_norm" | "output" => ShardKind::Head,
        _ => ShardKind::Common,
    })
}

/// `ceil(active parameters / 1e6)`. Of an expert tensor only the experts used per token count.
pub(super) fn weight(tensors: &[TensorEntry], facts: Facts<'_>) -> u64 {
    let architecture = facts.string(ARCHITECTURE_KEY).ok().flatten().unwrap_or_default();
    let used = facts.u32(&format!("{architecture}.expert_used_count")).ok().flatten();
    let active = |tensor: &TensorEntry| {
        let all = gguf::elements(&tensor.dims).unwrap_or(0);
        match (used, tensor.dims.last()) {
            (Some(used), Some(experts)) if *experts > 0 && tensor.name.contains("_exps.") => {
                all / experts * u64::from(used).min(*experts)
            }
            _ => all,
        }
    };
    let parameters = tensors.iter().map(active).fold(0, u64::saturating_add);
    parameters.div_ceil(PARAMETERS_PER_WEIGHT)
}

fn check_tensor(manifest: &Manifest, kind: ShardKind, tensor: &TensorEntry, end: u64) -> Result<(), TensorFault> {
    let TensorEntry { name, ty, dims, offset, size } = tensor;
    let printable = name.chars().all(|c| c.is_ascii_graphic());
    if name.is_empty() || name.len() as u64 > gguf::limits::TENSOR_NAME || !printable {
        return Err(TensorFault::Name);
    }
    if kind_of(name, manifest.layers) != Some(kind) {
        return Err(TensorFault::Misplaced);
    }
    let known = GgmlType::from_id(*ty).ok_or(TensorFault::Type(*ty))?;
    let expected = known.tensor_size(dims).map_err(TensorFault::Shape)?;
    if *size != expected {
        return Err(TensorFault::Size { given: *size, expected });
    }
    let expected = gguf::align_up(end, manifest.alignment).unwrap_or(u64::MAX);
    if *offset != expected {
        return Err(TensorFault::Offset { given: *offset, expected });
    }
    Ok(())
}

fn check_text(what: &'static str, text: &str, max: usize, allowed: fn(char) -> bool) -> Result<(), ManifestError> {
    if text.is_empty() || text.len() > max || text.trim() != text || !text.chars().all(allowed) {
        return Err(ManifestError::Name { what, max });
    }
    Ok(())
}

fn check_limit(what: &'static str, given: u64, max: u64) -> Result<(), ManifestError> {
    if given == 0 || given > max {
        return Err(ManifestError::Limit { what, given, max });
    }
    Ok(())
}

fn check_sum(kind: ShardKind, what: &'static str, given: u64, expected: u64) -> Result<(), ManifestError> {
    if given != expected {
        return Err(ManifestError::ShardSum { kind, what, given, expected });
    }
    Ok(())
}
