//! The expected tensors of a stage, a head and an embedding: names, shapes and types, validated before llama.cpp sees them.
//! Missing, misshapen and unknown tensors are refused.

use std::collections::{BTreeMap, HashSet};

use llama_cpp_sys_2 as ll;

use crate::base::LayerRange;
use crate::engine::EngineError;
use crate::model::{Manifest, ShardKind, StageSource, TensorEntry};

use super::architecture::Output;
use super::error::bad;
use super::shape::{Experts, Shape};

/// The embedding matrix; also the output matrix of a tied model.
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// The output matrix of an untied model.
pub(super) const OUTPUT: &str = "output.weight";
/// Bias of the logits, in some architectures.
pub(super) const OUTPUT_BIAS: &str = "output.bias";
/// The norm before the output matrix.
pub(super) const OUTPUT_NORM: &str = "output_norm.weight";
/// Bias of that norm, in some architectures.
pub(super) const OUTPUT_NORM_BIAS: &str = "output_norm.bias";
/// RoPE frequency factors, shared by all layers.
pub(super) const ROPE_FREQUENCIES: &str = "rope_freqs.weight";

/// Types of matrices that llama.cpp multiplies and dequantises on a CPU.
const MATRIX_TYPES: [ll::ggml_type; 28] = [
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
    ll::GGML_TYPE_MXFP4,
    ll::GGML_TYPE_NVFP4,
    ll::GGML_TYPE_Q1_0,
    ll::GGML_TYPE_Q2_0,
];
/// Matrices of a layer for which llama.cpp reads scales, `<part>.scale` of the matrix and `<part>.input_scale` of its
/// input: NVFP4 files have them, one for a matrix or for each expert.
const SCALED: [&str; 14] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "attn_qkv",
    "ffn_gate",
    "ffn_down",
    "ffn_up",
    "ffn_gate_shexp",
    "ffn_down_shexp",
    "ffn_up_shexp",
    "ffn_gate_exps",
    "ffn_down_exps",
    "ffn_up_exps",
];

/// An expected tensor.
struct Expected {
    /// Fastest axis first.
    dims: Vec<u64>,
    /// Whether the type must be F32, as for norms and biases.
    floats: bool,
    required: bool,
}

/// Returns whether a model has a tensor of this name.
type HasTensor<'a> = &'a dyn Fn(&str) -> bool;

/// The expected tensors by name.
struct ExpectedTensors<'a> {
    tensors: BTreeMap<String, Expected>,
    has: HasTensor<'a>,
}

/// Builder of a layer's expected tensors.
pub(super) struct LayerTensors<'a> {
    pub shape: &'a Shape,
    /// Index of the layer in the model.
    pub index: u32,
    has: HasTensor<'a>,
    tensors: &'a mut BTreeMap<String, Expected>,
}

/// Builder of the expected tensors outside layers.
pub(super) struct GlobalTensors<'a> {
    pub shape: &'a Shape,
    pub width: u64,
    /// Tokens of the vocabulary; 1 for the placeholder tensors of a stage without the head.
    pub vocab: u64,
    has: HasTensor<'a>,
    tensors: &'a mut BTreeMap<String, Expected>,
}

impl GlobalTensors<'_> {
    /// A required vector of floats.
    pub fn vector(&mut self, name: &str, floats: u64) {
        self.tensors.insert(name.to_owned(), Expected { dims: vec![floats], floats: true, required: true });
    }

    /// An optional vector of floats.
    pub fn maybe_vector(&mut self, name: &str, floats: u64) {
        self.tensors.insert(name.to_owned(), Expected { dims: vec![floats], floats: true, required: false });
    }

    /// Vectors of floats: all or none of them.
    pub fn all_or_none(&mut self, names: &[&str], floats: u64) {
        let some = names.iter().any(|name| (self.has)(name));
        for name in names {
            if some { self.vector(name, floats) } else { self.maybe_vector(name, floats) }
        }
    }

    fn matrix(&mut self, name: &str, columns: u64, rows: u64) {
        let expected = Expected { dims: vec![columns, rows], floats: false, required: true };
        self.tensors.insert(name.to_owned(), expected);
    }
}

impl LayerTensors<'_> {
    /// Whether the model has a part of this layer, `<part>.weight` or `<part>.bias`.
    pub fn has(&self, part: &str) -> bool {
        (self.has)(&self.name(part))
    }

    fn name(&self, part: &str) -> String {
        format!("blk.{}.{part}", self.index)
    }

    fn put(&mut self, part: &str, dims: Vec<u64>, floats: bool, required: bool) {
        self.tensors.insert(self.name(part), Expected { dims, floats, required });
    }

    /// A required float tensor of any shape.
    pub fn floats(&mut self, part: &str, dims: Vec<u64>) {
        self.put(part, dims, true, true);
    }

    /// An optional float tensor of any shape.
    pub fn maybe_floats(&mut self, part: &str, dims: Vec<u64>) {
        self.put(part, dims, true, false);
    }

    /// A required vector of floats.
    pub fn vector(&mut self, part: &str, floats: u64) {
        self.floats(part, vec![floats]);
    }

    /// An optional vector of floats.
    pub fn maybe_vector(&mut self, part: &str, floats: u64) {
        self.maybe_floats(part, vec![floats]);
    }

    /// The weights of a norm.
    pub fn norm(&mut self, part: &str, floats: u64) {
        self.vector(&format!("{part}.weight"), floats);
    }

    /// A required bias.
    pub fn bias(&mut self, part: &str, floats: u64) {
        self.vector(&format!("{part}.bias"), floats);
    }

    /// An optional bias.
    pub fn maybe_bias(&mut self, part: &str, floats: u64) {
        self.maybe_vector(&format!("{part}.bias"), floats);
    }

    /// A matrix from `columns` inputs to `rows` outputs.
    pub fn matrix(&mut self, part: &str, columns: u64, rows: u64) {
        self.put(&format!("{part}.weight"), vec![columns, rows], false, true);
        self.maybe_scales(part, 1);
    }

    fn maybe_scales(&mut self, part: &str, count: u64) {
        if SCALED.contains(&part) {
            self.maybe_vector(&format!("{part}.scale"), count);
            self.maybe_vector(&format!("{part}.input_scale"), count);
        }
    }

    /// Stacked matrices: columns, rows, count.
    pub fn cube(&mut self, part: &str, dims: [u64; 3]) {
        self.put(&format!("{part}.weight"), dims.to_vec(), false, true);
        self.maybe_scales(part, dims[2]);
    }

    /// Projections of queries, keys and values, fused or separate, with optional biases, and the output projection.
    pub fn attention(&mut self) {
        let (width, queries, keys, values) = (self.width(), self.queries(), self.keys(), self.values());
        let parts = [("attn_q", queries), ("attn_k", keys), ("attn_v", values)];
        let fused = self.has("attn_qkv.weight");
        if fused {
            self.matrix("attn_qkv", width, queries + keys + values);
            self.maybe_bias("attn_qkv", queries + keys + values);
        } else {
            parts.iter().for_each(|(part, rows)| self.matrix(part, width, *rows));
        }
        // llama.cpp reads separate biases if there is no fused one.
        if !fused || !self.has("attn_qkv.bias") {
            parts.iter().for_each(|(part, rows)| self.maybe_bias(part, *rows));
        }
        self.matrix("attn_output", queries, width);
    }

    /// A gated feed-forward network.
    pub fn gated_feed_forward(&mut self) {
        let (width, feed) = (self.width(), self.feed_forward());
        self.matrix("ffn_gate", width, feed);
        self.matrix("ffn_up", width, feed);
        self.matrix("ffn_down", feed, width);
    }

    /// A feed-forward network without a gate, with biases.
    pub fn biased_feed_forward(&mut self) {
        let (width, feed) = (self.width(), self.feed_forward());
        self.matrix("ffn_up", width, feed);
        self.bias("ffn_up", feed);
        self.matrix("ffn_down", feed, width);
        self.bias("ffn_down", width);
    }

    /// The router of the experts.
    pub fn router(&mut self) {
        self.matrix("ffn_gate_inp", self.width(), self.expert_count());
    }

    /// Experts: gated networks of width `feed`.
    pub fn gated_experts(&mut self, feed: u64) {
        let (width, count) = (self.width(), self.expert_count());
        self.cube("ffn_gate_exps", [width, feed, count]);
        self.cube("ffn_up_exps", [width, feed, count]);
        self.cube("ffn_down_exps", [feed, width, count]);
    }

    /// The shared expert, of width `feed`.
    pub fn shared_expert(&mut self, feed: u64) {
        let width = self.width();
        self.matrix("ffn_gate_shexp", width, feed);
        self.matrix("ffn_up_shexp", width, feed);
        self.matrix("ffn_down_shexp", feed, width);
    }

    pub fn width(&self) -> u64 {
        u64::from(self.shape.width)
    }

    pub fn head_size(&self) -> u64 {
        u64::from(self.shape.key_size)
    }

    /// Floats of all query heads.
    pub fn queries(&self) -> u64 {
        u64::from(self.shape.heads) * self.head_size()
    }

    /// Floats of all key heads.
    pub fn keys(&self) -> u64 {
        u64::from(self.shape.kv_heads) * self.head_size()
    }

    /// Floats of all value heads.
    pub fn values(&self) -> u64 {
        u64::from(self.shape.kv_heads) * u64::from(self.shape.value_size)
    }

    /// Width of the feed-forward network.
    pub fn feed_forward(&self) -> u64 {
        u64::from(self.shape.feed_forward)
    }

    pub fn experts(&self) -> Option<&Experts> {
        self.shape.experts.as_ref()
    }

    pub fn expert_count(&self) -> u64 {
        self.experts().map_or(0, |experts| u64::from(experts.count))
    }

    /// Width of an expert; by default its share of the feed-forward network's.
    pub fn expert_feed_forward(&self) -> u64 {
        self.experts().map_or(0, |experts| match experts.feed_forward {
            0 => u64::from(self.shape.feed_forward / experts.used.max(1)),
            given => u64::from(given),
        })
    }
}

impl<'a> ExpectedTensors<'a> {
    fn new(has: HasTensor<'a>) -> Self {
        Self { tensors: BTreeMap::new(), has }
    }

    fn layers(&mut self, shape: &Shape, layers: LayerRange) {
        for index in layers.start..layers.end {
            (shape.architecture.layer)(&mut LayerTensors { shape, index, has: self.has, tensors: &mut self.tensors });
        }
        (shape.architecture.shared)(&mut self.globals(shape, 1));
    }

    fn globals<'b>(&'b mut self, shape: &'b Shape, vocab: u32) -> GlobalTensors<'b> {
        let (width, vocab) = (u64::from(shape.width), u64::from(vocab));
        GlobalTensors { shape, width, vocab, has: self.has, tensors: &mut self.tensors }
    }

    /// The head; `matrix` is the name of its output matrix.
    fn head(&mut self, shape: &Shape, vocab: u32, matrix: &str) {
        let mut globals = self.globals(shape, vocab);
        globals.vector(OUTPUT_NORM, globals.width);
        globals.matrix(matrix, globals.width, globals.vocab);
        (shape.architecture.head)(&mut globals);
    }

    fn embedding(&mut self, shape: &Shape, vocab: u32) {
        let mut globals = self.globals(shape, vocab);
        globals.matrix(EMBEDDING, globals.width, globals.vocab);
    }

    /// Compares the given tensors with the expected ones.
    fn check<'e>(mut self, entries: impl Iterator<Item = &'e TensorEntry>) -> Result<(), EngineError> {
        for entry in entries {
            let expected = self.tensors.remove(&entry.name);
            check_entry(entry, &expected.ok_or_else(|| bad(quoted(&entry.name), "it is unknown or a duplicate"))?)?;
        }
        match self.tensors.iter().find(|(_, expected)| expected.required) {
            Some((name, _)) => Err(bad(quoted(name), "it is missing")),
            None => Ok(()),
        }
    }
}

/// The name of the output matrix.
fn output(tied: bool) -> &'static str {
    if tied { EMBEDDING } else { OUTPUT }
}

/// Names and shapes of the tensors that llama.cpp requires and a stage lacks. They are never computed with.
pub(super) fn placeholders(shape: &Shape, head: bool) -> Vec<(String, Vec<u64>)> {
    let own = shape.architecture.output == Output::Own;
    let mut expected = ExpectedTensors::new(&|_| false);
    if !head {
        expected.head(shape, 1, if own { OUTPUT } else { EMBEDDING });
    }
    if !head || own {
        expected.embedding(shape, if head { shape.vocab } else { 1 });
    }
    let required = expected.tensors.into_iter().filter(|(_, expected)| expected.required);
    required.map(|(name, expected)| (name, expected.dims)).collect()
}

fn quoted(name: &str) -> String {
    format!("tensor `{}`", name.chars().take(64).collect::<String>())
}

/// Validates shape, type and size of a tensor.
fn check_entry(entry: &TensorEntry, expected: &Expected) -> Result<(), EngineError> {
    let refuse = |reason: String| Err(bad(quoted(&entry.name), reason));
    if entry.dims != expected.dims {
        let given: Vec<u64> = entry.dims.iter().copied().take(4).collect();
        return refuse(format!("its shape is {given:?}, {:?} is needed", expected.dims));
    }
    if expected.dims.contains(&0) {
        return refuse("the facts do not specify its width".to_owned());
    }
    let known = |ty: &ll::ggml_type| u64::from(entry.ty) == *ty as u64;
    let Some(ty) = MATRIX_TYPES.iter().copied().find(known) else {
        return refuse(format!("its type {} is not certified", entry.ty));
    };
    if expected.floats && ty != ll::GGML_TYPE_F32 {
        return refuse("it is not F32".to_owned());
    }
    let [columns, rest @ ..] = expected.dims.as_slice() else { return refuse("it has no shape".to_owned()) };
    let Some(row) = row_size(ty, *columns) else {
        return refuse(format!("rows of {columns} are not whole blocks of its type"));
    };
    let size = rest.iter().try_fold(row, |size, dim| size.checked_mul(*dim));
    if size != Some(entry.size) {
        return refuse(format!("it has {} bytes, its shape needs {size:?}", entry.size));
    }
    Ok(())
}

/// Bytes of a row of `columns` values; `None` unless they are whole blocks of the type.
pub(super) fn row_size(ty: ll::ggml_type, columns: u64) -> Option<u64> {
    let columns = i64::try_from(columns).ok().filter(|columns| *columns > 0)?;
    // SAFETY: `ty` is one of the constants of the bindings, and the functions only read ggml's table of types.
    unsafe {
        let block = ll::ggml_blck_size(ty);
        (block > 0 && columns % block == 0).then(|| ll::ggml_row_size(ty, columns) as u64)
    }
}

/// The type of a validated matrix.
pub(super) fn matrix_type(entry: &TensorEntry) -> Option<ll::ggml_type> {
    MATRIX_TYPES.iter().copied().find(|ty| *ty as u64 == u64::from(entry.ty))
}

/// Validates all tensors of a manifest.
pub(super) fn check_model(shape: &Shape, manifest: &Manifest) -> Result<(), EngineError> {
    let shards = manifest.shards.iter().filter(|shard| shard.kind != ShardKind::Metadata);
    let entries: Vec<&TensorEntry> = shards.flat_map(|shard| &shard.tensors).collect();
    let names: HashSet<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    let has = |name: &str| names.contains(name);
    whole(shape, manifest.tied, &has).check(entries.into_iter())
}

/// All tensors of a model.
fn whole<'a>(shape: &Shape, tied: bool, has: HasTensor<'a>) -> ExpectedTensors<'a> {
    let mut expected = ExpectedTensors::new(has);
    expected.layers(shape, LayerRange::new(0, shape.layers));
    expected.head(shape, shape.vocab, output(tied));
    expected.embedding(shape, shape.vocab);
    expected
}

/// Names and shapes of a model's tensors: the required ones, and the optional ones that `has` selects.
#[cfg(test)]
pub(super) fn describe(shape: &Shape, tied: bool, has: &dyn Fn(&str) -> bool) -> Vec<(String, Vec<u64>)> {
    let tensors = whole(shape, tied, has).tensors.into_iter();
    let wanted = tensors.filter(|(name, expected)| expected.required || has(name));
    wanted.map(|(name, expected)| (name, expected.dims)).collect()
}

/// Validates the tensors of a stage.
pub(super) fn check_stage(shape: &Shape, source: &StageSource) -> Result<(), EngineError> {
    let names: HashSet<&str> = source.tensors.iter().map(|tensor| tensor.entry.name.as_str()).collect();
    let has = |name: &str| names.contains(name);
    let mut expected = ExpectedTensors::new(&has);
    expected.layers(shape, source.layers);
    if source.head {
        expected.head(shape, shape.vocab, output(source.manifest.tied));
    }
    expected.check(source.tensors.iter().map(|tensor| &tensor.entry))
}

/// Validates the embedding matrix.
pub(super) fn check_embedding(shape: &Shape, entry: &TensorEntry) -> Result<(), EngineError> {
    let mut expected = ExpectedTensors::new(&|_| false);
    expected.embedding(shape, shape.vocab);
    expected.check(std::iter::once(entry))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::GgmlType;

    #[test]
    fn block_sizes_of_all_types_equal_those_of_ggml() {
        for id in 0..ll::GGML_TYPE_COUNT {
            // SAFETY: `id` is below the number of ggml's types, and the functions only read its table of them.
            let (block, bytes) = unsafe { (ll::ggml_blck_size(id), ll::ggml_type_size(id)) };
            // Removed types have no size.
            let own = (bytes > 0).then_some((block as u64, bytes as u64));
            let known = GgmlType::from_id(id).map(|ty| (ty.block, ty.bytes));
            assert_eq!(known, own, "type {id}");
        }
    }

    #[test]
    fn every_matrix_type_can_be_dequantised() {
        for ty in MATRIX_TYPES {
            // SAFETY: ggml has traits of each of its types, in a table that lives as long as the process.
            let dequantise = unsafe { ll::ggml_get_type_traits(ty).as_ref() }.and_then(|traits| traits.to_float);
            assert!(dequantise.is_some() || ty == ll::GGML_TYPE_F32, "type {ty}");
            let known = GgmlType::from_id(ty).unwrap();
            assert_eq!(row_size(ty, 512), known.row_size(512).ok(), "{}", known.name);
        }
    }
}
