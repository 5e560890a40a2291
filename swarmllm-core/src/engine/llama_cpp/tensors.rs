//! Which tensors a stage, a head and an embedding have: names, shapes and types, checked before llama.cpp sees them.
//! What is missing, has another shape or is not known is refused.

use std::collections::HashMap;

use llama_cpp_sys_2 as ll;

use crate::base::LayerRange;
use crate::engine::EngineError;
use crate::model::{Manifest, ShardKind, StageSource, TensorEntry};

use super::facts::bad;
use super::shape::{Architecture, Shape};

/// The embedding matrix, and the output matrix where the model is tied.
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// The output matrix where the model is not tied.
pub(super) const OUTPUT: &str = "output.weight";
/// The norm before the output matrix.
pub(super) const OUTPUT_NORM: &str = "output_norm.weight";
/// Frequencies of the rotary positions, common to all layers.
pub(super) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// Types that a matrix may have: those that llama.cpp multiplies and dequantises on a CPU.
const MATRIX_TYPES: [ll::ggml_type; 24] = [
    ll::GGML_TYPE_F32,
    ll::GGML_TYPE_F16,
    ll::GGML_TYPE_BF16,
    ll::GGML_TYPE_Q4_0,
    ll::GGML_TYPE_Q4_1,
    ll::GGML_TYPE_Q5_0,
    ll::GGML_TYPE_Q5_1,
    ll::GGML_TYPE_Q8_0,
    ll::GGML_TYPE_Q2_K,
    ll::GGML_TYPE_Q3_K,
    ll::GGML_TYPE_Q4_K,
    ll::GGML_TYPE_Q5_K,
    ll::GGML_TYPE_Q6_K,
    ll::GGML_TYPE_IQ1_S,
    ll::GGML_TYPE_IQ1_M,
    ll::GGML_TYPE_IQ2_XXS,
    ll::GGML_TYPE_IQ2_XS,
    ll::GGML_TYPE_IQ2_S,
    ll::GGML_TYPE_IQ3_XXS,
    ll::GGML_TYPE_IQ3_S,
    ll::GGML_TYPE_IQ4_NL,
    ll::GGML_TYPE_IQ4_XS,
    ll::GGML_TYPE_TQ1_0,
    ll::GGML_TYPE_TQ2_0,
];

/// A tensor that is expected: rows of `width` floats, or one such row.
struct Expected {
    dims: Vec<u64>,
    required: bool,
}

/// The tensors that are expected, by name.
#[derive(Default)]
struct Expectation(HashMap<String, Expected>);

impl Expectation {
    fn vector(&mut self, name: String, floats: u64, required: bool) {
        self.0.insert(name, Expected { dims: vec![floats], required });
    }

    fn matrix(&mut self, name: String, columns: u64, rows: u64) {
        self.0.insert(name, Expected { dims: vec![columns, rows], required: true });
    }

    fn layers(&mut self, shape: &Shape, layers: LayerRange) {
        for layer in layers.start..layers.end {
            self.layer(shape, layer);
        }
        if shape.architecture == Architecture::Llama {
            self.vector(ROPE_FREQUENCIES.to_owned(), u64::from(shape.rope.dims / 2), false);
        }
    }

    fn layer(&mut self, shape: &Shape, layer: u32) {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let (width, feed) = (u64::from(shape.width), u64::from(shape.feed_forward));
        let head = u64::from(shape.head_size);
        let (queries, keys) = (head * u64::from(shape.heads), shape.kv_width());
        self.vector(name("attn_norm.weight"), width, true);
        self.vector(name("ffn_norm.weight"), width, true);
        self.matrix(name("attn_q.weight"), width, queries);
        self.matrix(name("attn_k.weight"), width, keys);
        self.matrix(name("attn_v.weight"), width, keys);
        self.matrix(name("attn_output.weight"), queries, width);
        self.matrix(name("ffn_gate.weight"), width, feed);
        self.matrix(name("ffn_up.weight"), width, feed);
        self.matrix(name("ffn_down.weight"), feed, width);
        match shape.architecture {
            Architecture::Llama => {
                let biases = [
                    ("attn_q.bias", queries),
                    ("attn_k.bias", keys),
                    ("attn_v.bias", keys),
                    ("attn_output.bias", width),
                    ("ffn_gate.bias", feed),
                    ("ffn_up.bias", feed),
                    ("ffn_down.bias", width),
                ];
                biases.into_iter().for_each(|(part, floats)| self.vector(name(part), floats, false));
            }
            Architecture::Gemma3 => {
                self.vector(name("attn_q_norm.weight"), head, true);
                self.vector(name("attn_k_norm.weight"), head, true);
                self.vector(name("post_attention_norm.weight"), width, true);
                self.vector(name("post_ffw_norm.weight"), width, true);
            }
        }
    }

    fn head(&mut self, shape: &Shape, tied: bool) {
        self.vector(OUTPUT_NORM.to_owned(), u64::from(shape.width), true);
        let matrix = if tied { EMBEDDING } else { OUTPUT };
        self.matrix(matrix.to_owned(), u64::from(shape.width), u64::from(shape.vocab));
    }

    /// Holds the tensors that are there against those that are expected.
    fn check<'a>(mut self, entries: impl Iterator<Item = &'a TensorEntry>) -> Result<(), EngineError> {
        for entry in entries {
            let expected = self.0.remove(&entry.name);
            check_entry(entry, &expected.ok_or_else(|| bad(quoted(&entry.name), "it is not known, or there twice"))?)?;
        }
        match self.0.iter().find(|(_, expected)| expected.required) {
            Some((name, _)) => Err(bad(quoted(name), "it is missing")),
            None => Ok(()),
        }
    }
}

fn quoted(name: &str) -> String {
    format!("tensor `{}`", name.chars().take(64).collect::<String>())
}

/// Shape, type and size of one tensor. Vectors are F32, as llama.cpp needs norms and biases to be.
fn check_entry(entry: &TensorEntry, expected: &Expected) -> Result<(), EngineError> {
    let refuse = |reason: String| Err(bad(quoted(&entry.name), reason));
    if entry.dims != expected.dims {
        let given: Vec<u64> = entry.dims.iter().copied().take(4).collect();
        return refuse(format!("its shape is {given:?}, {:?} is needed", expected.dims));
    }
    let known = |ty: &ll::ggml_type| u64::from(entry.ty) == *ty as u64;
    let Some(ty) = MATRIX_TYPES.iter().copied().find(known) else {
        return refuse(format!("its type {} is not certified", entry.ty));
    };
    if expected.dims.len() == 1 && ty != ll::GGML_TYPE_F32 {
        return refuse("it is not F32".to_owned());
    }
    let [columns, rest @ ..] = expected.dims.as_slice() else { return refuse("it has no shape".to_owned()) };
    let Some(row) = row_size(ty, *columns) else {
        return refuse(format!("rows of {columns} are not whole blocks of its type"));
    };
    let size = row.checked_mul(rest.iter().product());
    if size != Some(entry.size) {
        return refuse(format!("it has {} bytes, its shape needs {size:?}", entry.size));
    }
    Ok(())
}

/// Bytes of a row of `columns` floats, where they are whole blocks of the type.
pub(super) fn row_size(ty: ll::ggml_type, columns: u64) -> Option<u64> {
    let columns = i64::try_from(columns).ok().filter(|columns| *columns > 0)?;
    // SAFETY: `ty` is one of the constants of the bindings, and the functions only read ggml's table of types.
    unsafe {
        let block = ll::ggml_blck_size(ty);
        (block > 0 && columns % block == 0).then(|| ll::ggml_row_size(ty, columns) as u64)
    }
}

/// The type of a checked matrix.
pub(super) fn matrix_type(entry: &TensorEntry) -> Option<ll::ggml_type> {
    MATRIX_TYPES.iter().copied().find(|ty| *ty as u64 == u64::from(entry.ty))
}

/// Checks every tensor of a model, as its manifest lists them.
pub(super) fn check_model(shape: &Shape, manifest: &Manifest) -> Result<(), EngineError> {
    let mut expectation = Expectation::default();
    expectation.layers(shape, LayerRange::new(0, shape.layers));
    expectation.head(shape, manifest.tied);
    expectation.matrix(EMBEDDING.to_owned(), u64::from(shape.width), u64::from(shape.vocab));
    let shards = manifest.shards.iter().filter(|shard| shard.kind != ShardKind::Metadata);
    expectation.check(shards.flat_map(|shard| &shard.tensors))
}

/// Checks the tensors that a stage was given.
pub(super) fn check_stage(shape: &Shape, source: &StageSource) -> Result<(), EngineError> {
    let mut expectation = Expectation::default();
    expectation.layers(shape, source.layers);
    if source.head {
        expectation.head(shape, source.manifest.tied);
    }
    expectation.check(source.tensors.iter().map(|tensor| &tensor.entry))
}

/// Checks the embedding matrix.
pub(super) fn check_embedding(shape: &Shape, entry: &TensorEntry) -> Result<(), EngineError> {
    let mut expectation = Expectation::default();
    expectation.matrix(EMBEDDING.to_owned(), u64::from(shape.width), u64::from(shape.vocab));
    expectation.check(std::iter::once(entry))
}
