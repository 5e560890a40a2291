//! Tiny random models, written as F32 GGUF files, with features that the real test models lack: odd layer counts, untied
//! heads, other patterns, biases and scales. The architecture's description gives the tensors; llama.cpp, which reads the
//! whole file, refuses missing, misshapen and unknown tensors.

use std::path::PathBuf;

use super::{TestModel, tokens};
use crate::engine::llama_cpp::architectures::read_shape;
use crate::engine::llama_cpp::facts::ty;
use crate::engine::llama_cpp::shape::Shape;
use crate::engine::llama_cpp::tensors::describe;
use crate::model::{Fact, Manifest};

pub(super) const VOCAB: u64 = 96;
/// Not a square of a power of two, so that multiplying by the square root rounds.
pub(super) const WIDTH: u64 = 96;
const HEADS: u32 = 6;
const KV_HEADS: u32 = 2;
const HEAD: u32 = 16;
const FEED: u32 = 160;

/// A fact of an architecture: key, type, value.
pub(super) type FactValue = (&'static str, u32, Vec<u8>);

pub(super) fn count(key: &'static str, value: u32) -> FactValue {
    (key, ty::U32, value.to_le_bytes().to_vec())
}

pub(super) fn number(key: &'static str, value: f32) -> FactValue {
    (key, ty::F32, value.to_le_bytes().to_vec())
}

pub(super) fn flag(key: &'static str, value: bool) -> FactValue {
    (key, ty::BOOL, vec![u8::from(value)])
}

pub(super) fn string(key: &'static str, value: &str) -> FactValue {
    (key, ty::STRING, text(value))
}

pub(super) fn flags(key: &'static str, values: &[u8]) -> FactValue {
    (key, ty::ARRAY, [&ty::BOOL.to_le_bytes()[..], &(values.len() as u64).to_le_bytes(), values].concat())
}

pub(super) fn counts(key: &'static str, values: &[u32]) -> FactValue {
    let head = [&ty::U32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
    (key, ty::ARRAY, [head, values.iter().flat_map(|value| value.to_le_bytes()).collect()].concat())
}

/// Description of a tiny model.
#[derive(Clone)]
pub(super) struct Recipe {
    pub architecture: &'static str,
    pub layers: u32,
    pub tied: bool,
    /// Facts beside the common ones, or overriding them.
    pub facts: Vec<FactValue>,
    /// Facts of the file that contradict its tensors.
    pub false_facts: Vec<FactValue>,
    /// Selects the optional tensors.
    pub has: fn(&str) -> bool,
    /// A tensor of NaN.
    pub poisoned: Option<&'static str>,
}

impl Recipe {
    pub fn new(architecture: &'static str, layers: u32) -> Self {
        let (facts, false_facts) = (Vec::new(), Vec::new());
        Self { architecture, layers, tied: true, facts, false_facts, has: |_| false, poisoned: None }
    }

    /// Adds or overrides a fact.
    pub fn with(mut self, fact: FactValue) -> Self {
        self.facts.retain(|(key, ..)| *key != fact.0);
        self.facts.push(fact);
        self
    }

    /// Adds a separate output matrix.
    pub fn untied(self) -> Self {
        Self { tied: false, ..self }
    }

    /// Adds all optional tensors except fused ones.
    pub fn full(self) -> Self {
        Self { has: |name| !name.contains("attn_qkv") && !name.contains("gate_up"), ..self }
    }

    /// Adds only fused tensors, if the architecture has any.
    pub fn fused(self) -> Self {
        Self { has: |name| name.contains("attn_qkv") || name.contains("gate_up"), ..self }
    }

    fn own_facts(&self, further: &[FactValue]) -> Vec<FactValue> {
        let mut facts = vec![
            count("vocab_size", VOCAB as u32),
            count("block_count", self.layers),
            count("context_length", 16384),
            count("embedding_length", WIDTH as u32),
            count("feed_forward_length", FEED),
            count("attention.head_count", HEADS),
            count("attention.head_count_kv", KV_HEADS),
            count("attention.key_length", HEAD),
            count("attention.value_length", HEAD),
            number("attention.layer_norm_rms_epsilon", 1e-6),
            number("attention.layer_norm_epsilon", 1e-5),
            count("rope.dimension_count", HEAD),
        ];
        for fact in self.facts.iter().chain(further) {
            facts.retain(|(key, ..)| *key != fact.0);
            facts.push(fact.clone());
        }
        facts
    }

    /// The shape of the model, without the false facts.
    fn shape(&self) -> Shape {
        let fact = |(key, ty, raw): FactValue| Fact { key: format!("{}.{key}", self.architecture), ty, raw };
        let manifest = Manifest {
            format: Manifest::FORMAT,
            architecture: self.architecture.to_owned(),
            layers: self.layers,
            width: WIDTH as u32,
            vocab: VOCAB as u32,
            context: 16384,
            tied: self.tied,
            alignment: 32,
            facts: self.own_facts(&[]).into_iter().map(fact).collect(),
            shards: Vec::new(),
        };
        read_shape(&manifest).expect("a sound recipe")
    }

    /// Writes the model; the file lives as long as the directory.
    pub fn write(&self, directory: &tempfile::TempDir) -> TestModel {
        let tensors = describe(&self.shape(), self.tied, &self.has);
        let own = |(key, ty, raw): FactValue| (format!("{}.{key}", self.architecture), ty, raw);
        let mut facts = vec![
            ("general.architecture".to_owned(), ty::STRING, text(self.architecture)),
            ("tokenizer.ggml.model".to_owned(), ty::STRING, text("no_vocab")),
        ];
        facts.extend(self.own_facts(&self.false_facts).into_iter().map(own));
        let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
        file.extend((tensors.len() as u64).to_le_bytes());
        file.extend((facts.len() as u64).to_le_bytes());
        for (key, ty, raw) in facts {
            file.extend([text(&key), ty.to_le_bytes().to_vec(), raw].concat());
        }
        let mut data: Vec<u8> = Vec::new();
        for (seed, (name, dims)) in tensors.iter().enumerate() {
            file.extend(text(name));
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(0_u32.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            let poisoned = self.poisoned == Some(name.as_str());
            let weights = weights(seed as u32, dims).into_iter().map(|weight| if poisoned { f32::NAN } else { weight });
            data.extend(weights.flat_map(f32::to_le_bytes));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        let path: PathBuf = directory.path().join("model.gguf");
        std::fs::write(&path, file).expect("written");
        TestModel::open(&path)
    }
}

/// Writes a Llama model whose layers have random Q4_K matrices of a 1B model's width.
pub(super) fn wide(directory: &tempfile::TempDir) -> TestModel {
    const LAYERS: u64 = 3;
    const WIDE: [u64; 3] = [2048, 512, 8192];
    let [width, keys, feed] = WIDE;
    let own = |(key, ty, raw): FactValue| (format!("llama.{key}"), ty, raw);
    let facts = [
        ("general.architecture".to_owned(), ty::STRING, text("llama")),
        ("tokenizer.ggml.model".to_owned(), ty::STRING, text("no_vocab")),
        own(count("vocab_size", VOCAB as u32)),
        own(count("block_count", LAYERS as u32)),
        own(count("context_length", 4096)),
        own(count("embedding_length", width as u32)),
        own(count("feed_forward_length", feed as u32)),
        own(count("attention.head_count", 32)),
        own(count("attention.head_count_kv", 8)),
        own(count("rope.dimension_count", 64)),
        own(number("attention.layer_norm_rms_epsilon", 1e-6)),
    ];
    let layer = |layer: u64| {
        [
            ("attn_norm", vec![width]),
            ("attn_q", vec![width, width]),
            ("attn_k", vec![width, keys]),
            ("attn_v", vec![width, keys]),
            ("attn_output", vec![width, width]),
            ("ffn_norm", vec![width]),
            ("ffn_gate", vec![width, feed]),
            ("ffn_up", vec![width, feed]),
            ("ffn_down", vec![feed, width]),
        ]
        .map(|(name, dims)| (format!("blk.{layer}.{name}.weight"), dims))
    };
    let common = [("token_embd.weight".to_owned(), vec![width, VOCAB]), ("output_norm.weight".to_owned(), vec![width])];
    let tensors: Vec<(String, Vec<u64>)> = common.into_iter().chain((0..LAYERS).flat_map(layer)).collect();
    let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((facts.len() as u64).to_le_bytes());
    facts.into_iter().for_each(|(key, ty, raw)| file.extend([text(&key), ty.to_le_bytes().to_vec(), raw].concat()));
    let mut data: Vec<u8> = Vec::new();
    for (seed, (name, dims)) in tensors.iter().enumerate() {
        let quantised = name.starts_with("blk.") && dims.len() > 1;
        file.extend(text(name));
        file.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
        file.extend(if quantised { 12_u32 } else { 0 }.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        match quantised {
            true => data.extend(blocks(seed as u32, dims.iter().product::<u64>() as usize / 256)),
            false => data.extend(weights(seed as u32, dims).into_iter().flat_map(f32::to_le_bytes)),
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    file.extend(data);
    let path: PathBuf = directory.path().join("wide.gguf");
    std::fs::write(&path, file).expect("written");
    TestModel::open(&path)
}

/// Q4_K blocks: a small scale and a small minimum in f16, then 140 random bytes.
fn blocks(seed: u32, count: usize) -> Vec<u8> {
    let noise: Vec<u8> = tokens(seed + 500, 140 * 64, 256).into_iter().map(|value| value as u8).collect();
    let block = |index: usize| {
        let from = index % 64 * 140;
        [&[0x20, 0x02, 0x80, 0x03][..], &noise[from..from + 140]].concat()
    };
    (0..count).flat_map(block).collect()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Vectors near 1; matrices small and of both signs.
fn weights(seed: u32, dims: &[u64]) -> Vec<f32> {
    let count = dims.iter().product::<u64>() as usize;
    let unit = tokens(seed + 100, count, 2001).into_iter().map(|value| value as f32 / 1000.0 - 1.0);
    match dims {
        [_] => unit.map(|value| 1.0 + value / 4.0).collect(),
        _ => unit.map(|value| value / 6.0).collect(),
    }
}
