//! StarCoder.

use crate::engine::llama_cpp::architecture::{Architecture, Heads, Norm};
use crate::engine::llama_cpp::tensors::{LayerTensors, OUTPUT_NORM_BIAS};

/// StarCoder 2.
pub(super) const STARCODER2: Architecture = Architecture {
    norm: Norm::MeanAndVariance,
    heads: Heads::Square,
    head: |globals| globals.vector(OUTPUT_NORM_BIAS, globals.width),
    ..Architecture::new("starcoder2", starcoder2)
};

fn starcoder2(layer: &mut LayerTensors) {
    let width = layer.width();
    layer.norm("attn_norm", width);
    layer.bias("attn_norm", width);
    layer.attention();
    layer.bias("attn_output", width);
    layer.norm("ffn_norm", width);
    layer.bias("ffn_norm", width);
    layer.biased_feed_forward();
}
