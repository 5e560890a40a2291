//! Tiny models of real architectures with random weights, written as GGUF files.

use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

/// Width of a hidden state.
pub const WIDTH: u32 = 64;
/// Vocabulary size.
pub const VOCAB: u32 = 96;
/// Query heads.
pub const HEADS: u32 = 4;
/// Width of the feed-forward network.
pub const INNER: u32 = 128;
/// Base of rotations.
pub const ROPE_BASE: f32 = 10_000.0;
/// Added to the mean square in norms.
pub const EPSILON: f32 = 1e-6;

/// Parameters of a tiny model.
#[derive(Debug, Clone)]
pub struct Tiny {
    /// Architecture: `llama`, `qwen2`, `qwen3` or `gemma3`.
    pub architecture: &'static str,
    /// Number of layers.
    pub layers: u32,
    /// Number of key and value heads.
    pub kv_heads: u32,
    /// Width of a head.
    pub head: u32,
    /// Whether the embedding is also the output matrix.
    pub tied: bool,
    /// Whether RoPE frequencies have scaling factors.
    pub rope_factors: bool,
    /// Type of the matrices; vectors are f32.
    pub ty: GgmlDType,
    /// Additional metadata `<architecture>.<key>`.
    pub facts: Vec<(&'static str, Value)>,
}

impl Tiny {
    /// A model of three layers in f32 with tied embeddings and heads of width `WIDTH / HEADS`.
    pub fn new(architecture: &'static str) -> Self {
        let (head, facts) = (WIDTH / HEADS, Vec::new());
        Self { architecture, layers: 3, kv_heads: 2, head, tied: true, rope_factors: false, ty: GgmlDType::F32, facts }
    }

    /// Names and shapes of the tensors, fastest axis first as in GGUF.
    pub fn shapes(&self) -> Vec<(String, Vec<u32>)> {
        let mut shapes =
            vec![("token_embd.weight".to_owned(), vec![WIDTH, VOCAB]), ("output_norm.weight".to_owned(), vec![WIDTH])];
        if !self.tied {
            shapes.push(("output.weight".to_owned(), vec![WIDTH, VOCAB]));
        }
        if self.rope_factors {
            shapes.push(("rope_freqs.weight".to_owned(), vec![self.head / 2]));
        }
        for layer in 0..self.layers {
            let block = self.block().into_iter();
            shapes.extend(block.map(|(part, dims)| (format!("blk.{layer}.{part}"), dims)));
        }
        shapes
    }

    fn block(&self) -> Vec<(&'static str, Vec<u32>)> {
        let (head, all, all_kv) = (self.head, HEADS * self.head, self.kv_heads * self.head);
        let mut shapes = vec![
            ("attn_norm.weight", vec![WIDTH]),
            ("attn_q.weight", vec![WIDTH, all]),
            ("attn_k.weight", vec![WIDTH, all_kv]),
            ("attn_v.weight", vec![WIDTH, all_kv]),
            ("attn_output.weight", vec![all, WIDTH]),
            ("ffn_norm.weight", vec![WIDTH]),
            ("ffn_gate.weight", vec![WIDTH, INNER]),
            ("ffn_up.weight", vec![WIDTH, INNER]),
            ("ffn_down.weight", vec![INNER, WIDTH]),
        ];
        if self.architecture == "qwen2" {
            let biases = [("attn_q.bias", all), ("attn_k.bias", all_kv), ("attn_v.bias", all_kv)];
            shapes.extend(biases.map(|(name, rows)| (name, vec![rows])));
        }
        if matches!(self.architecture, "qwen3" | "gemma3") {
            shapes.extend(["attn_q_norm.weight", "attn_k_norm.weight"].map(|name| (name, vec![head])));
        }
        if self.architecture == "gemma3" {
            let norms = ["post_attention_norm.weight", "post_ffw_norm.weight"];
            shapes.extend(norms.map(|name| (name, vec![WIDTH])));
        }
        shapes
    }

    fn facts(&self) -> Vec<(String, Value)> {
        let own = |key: &str| format!("{}.{key}", self.architecture);
        let mut facts = vec![
            ("general.architecture".to_owned(), Value::String(self.architecture.to_owned())),
            // For candle's own models: f32.
            ("general.dtype".to_owned(), Value::U32(0)),
            ("tokenizer.ggml.model".to_owned(), Value::String("no_vocab".to_owned())),
            (own("attention.layer_norm_rms_epsilon"), Value::F32(EPSILON)),
            (own("rope.freq_base"), Value::F32(ROPE_BASE)),
        ];
        let numbers = [
            ("vocab_size", VOCAB),
            ("block_count", self.layers),
            ("context_length", 1024),
            ("embedding_length", WIDTH),
            ("feed_forward_length", INNER),
            ("attention.head_count", HEADS),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head),
            ("attention.value_length", self.head),
            ("rope.dimension_count", self.head),
        ];
        facts.extend(numbers.map(|(key, number)| (own(key), Value::U32(number))));
        facts.extend(self.facts.iter().map(|(key, value)| (own(key), value.clone())));
        facts
    }

    /// The weights by name; deterministic.
    pub fn tensors(&self) -> Vec<(String, QTensor)> {
        let tensor = |(seed, (name, dims)): (u64, (String, Vec<u32>))| {
            let ty = if dims.len() == 1 { GgmlDType::F32 } else { self.ty };
            let shape: Vec<usize> = dims.iter().rev().map(|&dim| dim as usize).collect();
            let values = Tensor::from_vec(weights(seed, &dims), shape, &Device::Cpu).expect("a tensor");
            (name, QTensor::quantize(&values, ty).expect("whole blocks"))
        };
        (1..).zip(self.shapes()).map(tensor).collect()
    }

    /// Writes the GGUF.
    pub fn write(&self, path: &Path) {
        let (facts, tensors) = (self.facts(), self.tensors());
        let facts: Vec<(&str, &Value)> = facts.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let mut file = File::create(path).expect("a file");
        gguf_file::write(&mut file, &facts, &tensors).expect("written");
    }
}

/// Deterministic pseudo-random numbers in -1..1.
pub fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    // The first numbers correlate with the seed.
    for _ in 0..8 {
        next();
    }
    (0..count).map(|_| next()).collect()
}

/// Pseudo-random tokens of the tiny vocabulary.
pub fn tokens(seed: u64, count: usize) -> Vec<u32> {
    noise(seed, count).into_iter().map(|value| ((value + 1.0) / 2.0 * VOCAB as f32) as u32 % VOCAB).collect()
}

/// Vectors near 1; matrices with small values of both signs.
fn weights(seed: u64, dims: &[u32]) -> Vec<f32> {
    let unit = noise(seed, dims.iter().product::<u32>() as usize).into_iter();
    match dims {
        [_] => unit.map(|value| 1.0 + value / 4.0).collect(),
        _ => unit.map(|value| value / 6.0).collect(),
    }
}
