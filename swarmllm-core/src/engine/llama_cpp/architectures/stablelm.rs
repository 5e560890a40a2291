//! StableLM.

use crate::engine::llama_cpp::architecture::{Architecture, Heads, Norm, Output};
use crate::engine::llama_cpp::rope::Rotation;
use crate::engine::llama_cpp::tensors::{LayerTensors, OUTPUT_NORM_BIAS};

/// StableLM 1 and 2.
pub(super) const STABLELM: Architecture = Architecture {
    norm: Norm::MeanAndVariance,
    heads: Heads::Square,
    rotation: Rotation::Part,
    output: Output::Own,
    head: |globals| globals.vector(OUTPUT_NORM_BIAS, globals.width),
    ..Architecture::new("stablelm", stablelm)
};

fn stablelm(layer: &mut LayerTensors) {
    let (width, head) = (layer.width(), layer.head_size());
    let (heads, kv_heads) = (u64::from(layer.shape.heads), u64::from(layer.shape.kv_heads));
    layer.norm("attn_norm", width);
    layer.bias("attn_norm", width);
    layer.attention();
    layer.maybe_floats("attn_q_norm.weight", vec![head, heads]);
    layer.maybe_floats("attn_k_norm.weight", vec![head, kv_heads]);
    layer.maybe_vector("ffn_norm.weight", width);
    layer.maybe_bias("ffn_norm", width);
    layer.gated_feed_forward();
}
