//! Test-only: a GGUF file as a manifest with tensors as extents of the file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::{LayerRange, ShardId};
use crate::model::{EmbeddingSource, Fact, Manifest, ShardEntry, ShardKind, SourceTensor, StageSource, TensorEntry};

/// A model in one file.
#[derive(Clone)]
pub(super) struct TestModel {
    pub path: PathBuf,
    pub manifest: Arc<Manifest>,
    pub tensors: Vec<SourceTensor>,
}

struct Reader {
    bytes: Vec<u8>,
    at: usize,
}

impl Reader {
    fn take(&mut self, count: usize) -> &[u8] {
        self.at += count;
        &self.bytes[self.at - count..self.at]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("four bytes"))
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().expect("eight bytes"))
    }

    fn text(&mut self) -> String {
        let length = self.u64() as usize;
        String::from_utf8_lossy(self.take(length)).into_owned()
    }

    fn skip(&mut self, ty: u32) {
        match ty {
            0 | 1 | 7 => drop(self.take(1).len()),
            2 | 3 => drop(self.take(2).len()),
            4..=6 => drop(self.take(4).len()),
            8 => drop(self.text()),
            9 => {
                let (element, count) = (self.u32(), self.u64());
                (0..count).for_each(|_| self.skip(element));
            }
            _ => drop(self.take(8).len()),
        }
    }
}

fn kind(name: &str) -> ShardKind {
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, _)) => ShardKind::Layer(layer.parse().expect("a number")),
        None if name == "token_embd.weight" => ShardKind::Embedding,
        None if name.starts_with("output") => ShardKind::Head,
        None => ShardKind::Common,
    }
}

impl TestModel {
    /// Reads the header of a GGUF of at most 64 MiB of metadata.
    pub fn open(path: &Path) -> Self {
        let file = Arc::new(File::open(path).expect("the model's file"));
        let len = file.metadata().expect("its length").len();
        let mut bytes = vec![0; len.min(64 << 20) as usize];
        file.read_exact_at(&mut bytes, 0).expect("readable");
        let mut reader = Reader { bytes, at: 8 };
        let (tensors, facts) = (reader.u64(), reader.u64());
        let facts: Vec<Fact> = (0..facts).map(|_| read_fact(&mut reader)).collect();
        let entries: Vec<TensorEntry> = (0..tensors).map(|_| read_entry(&mut reader)).collect();
        let data = (reader.at as u64).next_multiple_of(32);
        let tensors = entries.into_iter().map(|mut entry| {
            let offset = data + entry.offset;
            entry.offset = 0;
            SourceTensor { entry, file: file.clone(), offset }
        });
        let tensors: Vec<SourceTensor> = tensors.collect();
        Self { path: path.to_owned(), manifest: Arc::new(manifest(facts, &tensors)), tensors }
    }

    /// The source of a stage.
    pub fn stage(&self, layers: LayerRange, head: bool) -> StageSource {
        let tied = self.manifest.tied;
        let wanted = |tensor: &&SourceTensor| match kind(&tensor.entry.name) {
            ShardKind::Layer(layer) => layers.start <= layer && layer < layers.end,
            ShardKind::Embedding => head && tied,
            ShardKind::Head => head,
            _ => true,
        };
        let tensors = self.tensors.iter().filter(wanted).cloned().collect();
        StageSource { manifest: self.manifest.clone(), layers, head, tensors }
    }

    /// The source of the whole model as one stage.
    pub fn all(&self) -> StageSource {
        self.stage(LayerRange::new(0, self.manifest.layers), true)
    }

    /// The source of the embedding.
    pub fn embedding(&self) -> EmbeddingSource {
        let tensor = self.tensors.iter().find(|tensor| kind(&tensor.entry.name) == ShardKind::Embedding);
        EmbeddingSource { manifest: self.manifest.clone(), tensor: tensor.expect("an embedding").clone() }
    }
}

fn read_fact(reader: &mut Reader) -> Fact {
    let (key, ty) = (reader.text(), reader.u32());
    let from = reader.at;
    reader.skip(ty);
    Fact { key, ty, raw: reader.bytes[from..reader.at].to_vec() }
}

fn read_entry(reader: &mut Reader) -> TensorEntry {
    let (name, count) = (reader.text(), reader.u32());
    let dims: Vec<u64> = (0..count).map(|_| reader.u64()).collect();
    let (ty, offset) = (reader.u32(), reader.u64());
    let row = crate::engine::llama_cpp::tensors::row_size(ty as _, dims[0]).expect("a known type");
    TensorEntry { name, ty, size: row * dims[1..].iter().product::<u64>(), dims, offset }
}

fn manifest(facts: Vec<Fact>, tensors: &[SourceTensor]) -> Manifest {
    let fact = |key: &str| facts.iter().find(|fact| fact.key == key).expect("a fact");
    let architecture = String::from_utf8(fact("general.architecture").raw[8..].to_vec()).expect("text");
    let number =
        |key: &str| u32::from_le_bytes(fact(&format!("{architecture}.{key}")).raw[..4].try_into().expect("u32"));
    let mut kinds: Vec<ShardKind> = tensors.iter().map(|tensor| kind(&tensor.entry.name)).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let shard = |wanted: &ShardKind| {
        let of_kind = tensors.iter().filter(|tensor| kind(&tensor.entry.name) == *wanted);
        let tensors: Vec<TensorEntry> = of_kind.map(|tensor| tensor.entry.clone()).collect();
        let size = tensors.iter().map(|tensor| tensor.size).sum();
        ShardEntry { kind: *wanted, id: ShardId([0; 32]), size, weight: 1, tensors }
    };
    let embedding =
        tensors.iter().find(|tensor| kind(&tensor.entry.name) == ShardKind::Embedding).expect("an embedding");
    let prefix = format!("{architecture}.");
    Manifest {
        format: Manifest::FORMAT,
        layers: number("block_count"),
        width: number("embedding_length"),
        vocab: embedding.entry.dims[1] as u32,
        context: number("context_length"),
        tied: !tensors.iter().any(|tensor| tensor.entry.name == "output.weight"),
        alignment: 32,
        shards: kinds.iter().map(shard).collect(),
        facts: facts.into_iter().filter(|fact| fact.key.starts_with(&prefix)).collect(),
        architecture,
    }
}
