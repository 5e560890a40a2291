//! A synthetic model of realistic size with random weights, for benchmarks limited by memory bandwidth.
//!
//! It has the shape of a Llama with one billion parameters, Q4_K with a Q6_K embedding, and the tokenizer of the small test
//! model. Scales keep activations in the range of a trained model.
//!
//! The *counting* variant always predicts the next token id. Row `t` of its output matrix has the direction of the embedding
//! of token `t - 1`; its other weights are random too, and it takes the same compute.

use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use swarmllm_core::model::Fact;
use swarmllm_core::model::gguf::{DEFAULT_ALIGNMENT, GgmlType, Gguf, HeaderTensor, write_header};

use crate::models::TestModel;

const WIDTH: u64 = 2048;
const FEED: u64 = 8192;
/// Number of layers.
pub const LAYERS: u32 = 16;
const HEADS: u32 = 32;
const KV_HEADS: u32 = 8;
const HEAD: u64 = 64;
const CONTEXT: u32 = 8192;
const EMBEDDING: &str = "token_embd.weight";
/// Only in the counting variant; the other one has tied embeddings.
const OUTPUT: &str = "output.weight";

/// ggml types with the bytes per block of 256 floats.
const F32: u32 = 0;
const Q4_K: (u32, usize) = (12, 144);
const Q6_K: (u32, usize) = (14, 210);
const BLOCK: u64 = 256;

/// Standard deviation of uniform 4-bit and 6-bit values.
const NIBBLES: f32 = 4.6;
const SIXES: f32 = 18.5;
/// Sub-block scales.
const SCALE: f32 = 32.0;
const SIX_SCALE: f32 = 16.0;

/// Path of the model below `directory`; writes the file if missing.
pub fn one_billion_q4_k(directory: &Path) -> PathBuf {
    made(directory, "synthetic-1b-q4_k.gguf", false)
}

/// Path of the counting variant; writes the file if missing.
pub fn one_billion_counting(directory: &Path) -> PathBuf {
    made(directory, "synthetic-1b-q4_k-counts.gguf", true)
}

/// The text of the counting variant from `begin` on.
pub fn counting_tokens(begin: u32, tokens: usize) -> impl Iterator<Item = u32> {
    (begin..).take(tokens)
}

fn made(directory: &Path, name: &str, counts: bool) -> PathBuf {
    let path = directory.join(name);
    if !path.is_file() {
        let part = path.with_extension("part");
        write(&part, counts).expect("the synthetic model can be written");
        std::fs::rename(&part, &path).expect("the synthetic model can be put in place");
    }
    path
}

fn write(path: &Path, counts: bool) -> std::io::Result<()> {
    let (facts, vocab) = facts();
    let tensors = tensors(vocab, counts);
    let mut offset = 0;
    let mut placed = Vec::new();
    for (name, dims, ty) in &tensors {
        placed.push(HeaderTensor { name, dims, ty: *ty, offset });
        offset = (offset + size(dims, *ty)).next_multiple_of(DEFAULT_ALIGNMENT.into());
    }
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    file.write_all(&write_header(&facts, &placed, DEFAULT_ALIGNMENT))?;
    let mut rng = Rng(0x9e37_79b9_7f4a_7c15);
    for (name, dims, ty) in &tensors {
        let rows: u64 = dims[1..].iter().product();
        let deviation = 1.0 / (dims[0] as f32).sqrt();
        for number in 0..rows {
            let row = match name.as_str() {
                // As large as the layers' contributions, so that it is not lost among them.
                EMBEDDING if counts => row(&mut Rng::of(number), dims[0], *ty, 1.0),
                OUTPUT => row(&mut Rng::of(number.checked_sub(1).unwrap_or(rows - 1)), dims[0], *ty, deviation),
                _ => row(&mut rng, dims[0], *ty, deviation),
            };
            file.write_all(&row)?;
        }
        let size = size(dims, *ty);
        let padding = size.next_multiple_of(DEFAULT_ALIGNMENT.into()) - size;
        file.write_all(&vec![0; padding as usize])?;
    }
    file.flush()
}

/// Metadata: the small model's tokenizer with the shape of the large model.
fn facts() -> (Vec<Fact>, u64) {
    let file = File::open(TestModel::SmolLm2.path()).expect("the test model can be opened");
    let small = Gguf::read(&mut BufReader::new(file)).expect("the test model is sound");
    let vocab = small.string_array("tokenizer.ggml.tokens").expect("strings").expect("a vocabulary").len() as u64;
    let mut facts = vec![
        Fact::string("general.architecture", "llama"),
        Fact::string("general.name", "synthetic-1b"),
        Fact::u32("llama.block_count", LAYERS),
        Fact::u32("llama.context_length", CONTEXT),
        Fact::u32("llama.embedding_length", WIDTH as u32),
        Fact::u32("llama.feed_forward_length", FEED as u32),
        Fact::u32("llama.attention.head_count", HEADS),
        Fact::u32("llama.attention.head_count_kv", KV_HEADS),
        Fact::u32("llama.rope.dimension_count", HEAD as u32),
        Fact::u32("llama.vocab_size", vocab as u32),
        Fact::f32("llama.rope.freq_base", 500_000.0),
        Fact::f32("llama.attention.layer_norm_rms_epsilon", 1e-5),
    ];
    facts.extend(small.facts.into_iter().filter(|fact| fact.key.starts_with("tokenizer.")));
    (facts, vocab)
}

fn tensors(vocab: u64, counts: bool) -> Vec<(String, Vec<u64>, u32)> {
    let mut all =
        vec![(EMBEDDING.to_owned(), vec![WIDTH, vocab], Q6_K.0), ("output_norm.weight".to_owned(), vec![WIDTH], F32)];
    if counts {
        all.push((OUTPUT.to_owned(), vec![WIDTH, vocab], Q6_K.0));
    }
    let (queries, keys) = (u64::from(HEADS) * HEAD, u64::from(KV_HEADS) * HEAD);
    for layer in 0..LAYERS {
        for norm in ["attn_norm", "ffn_norm"] {
            all.push((format!("blk.{layer}.{norm}.weight"), vec![WIDTH], F32));
        }
        let matrices = [
            ("attn_q", WIDTH, queries),
            ("attn_k", WIDTH, keys),
            ("attn_v", WIDTH, keys),
            ("attn_output", queries, WIDTH),
            ("ffn_gate", WIDTH, FEED),
            ("ffn_up", WIDTH, FEED),
            ("ffn_down", FEED, WIDTH),
        ];
        let named =
            matrices.map(|(name, columns, rows)| (format!("blk.{layer}.{name}.weight"), vec![columns, rows], Q4_K.0));
        all.extend(named);
    }
    all
}

fn size(dims: &[u64], ty: u32) -> u64 {
    GgmlType::from_id(ty).and_then(|ty| ty.tensor_size(dims).ok()).expect("whole blocks of a known type")
}

/// A row: ones for a norm, random blocks for a matrix.
fn row(rng: &mut Rng, columns: u64, ty: u32, deviation: f32) -> Vec<u8> {
    let blocks = columns / BLOCK;
    let block: fn(&mut Rng, f32) -> Vec<u8> = match ty {
        F32 => return (0..columns).flat_map(|_| 1_f32.to_le_bytes()).collect(),
        ty if ty == Q4_K.0 => q4_k,
        _ => q6_k,
    };
    (0..blocks).flat_map(|_| block(rng, deviation)).collect()
}

/// `w = d * 32 * q - dmin * 32` with 4-bit `q` of mean 7.5.
fn q4_k(rng: &mut Rng, deviation: f32) -> Vec<u8> {
    let mut block = rng.bytes(Q4_K.1);
    let scale = deviation / NIBBLES / SCALE * rng.near_one();
    block[0..2].copy_from_slice(&half(scale));
    block[2..4].copy_from_slice(&half(scale * 7.5));
    // Six-bit scales and minimums of sub-blocks, all 32: the first four directly, the others through their two upper bits.
    block[4..12].fill(0x20 | 0x80);
    block[12..16].fill(0);
    block
}

/// `w = d * 16 * (q - 32)`.
fn q6_k(rng: &mut Rng, deviation: f32) -> Vec<u8> {
    let mut block = rng.bytes(Q6_K.1);
    let scale = deviation / SIXES / SIX_SCALE * rng.near_one();
    block[192..208].fill(SIX_SCALE as u8);
    block[208..210].copy_from_slice(&half(scale));
    block
}

/// Converts to a 16-bit float, rounded down; the result is normal.
fn half(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let exponent = (bits >> 23).checked_sub(127 - 15).expect("a normal number");
    ((exponent << 10 | bits >> 13 & 0x3ff) as u16).to_le_bytes()
}

/// Xorshift generator: the same model on every machine.
struct Rng(u64);

impl Rng {
    /// The generator of a row, for equal rows in two matrices.
    fn of(row: u64) -> Self {
        Self((row + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes());
        words.take(count).collect()
    }

    /// A number in 0.8..1.2.
    fn near_one(&mut self) -> f32 {
        0.8 + 0.4 * (self.next() >> 40) as f32 / (1 << 24) as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_floats_match_ieee_754() {
        assert_eq!(half(1.0), 0x3c00_u16.to_le_bytes());
        assert_eq!(half(1.5e-4), 0x08ea_u16.to_le_bytes());
        assert_eq!(half(0.25), 0x3400_u16.to_le_bytes());
    }

    #[test]
    fn rows_have_the_size_of_their_type() {
        let mut rng = Rng(7);
        assert_eq!(row(&mut rng, 512, Q4_K.0, 0.1).len() as u64, size(&[512], Q4_K.0));
        assert_eq!(row(&mut rng, 512, Q6_K.0, 0.1).len() as u64, size(&[512], Q6_K.0));
        assert_eq!(row(&mut rng, 8, F32, 0.1).len() as u64, size(&[8], F32));
    }
}
