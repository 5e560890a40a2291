//! Phi.

use crate::engine::llama_cpp::architecture::{Architecture, Heads, Norm, Output};
use crate::engine::llama_cpp::rope::Rotation;
use crate::engine::llama_cpp::tensors::{Layer, OUTPUT_BIAS, OUTPUT_NORM_BIAS};

/// Phi 3, 3.5 and 4. llama.cpp ignores the window that their facts tell.
pub(super) const PHI3: Architecture = Architecture {
    heads: Heads::Square,
    rotation: Rotation::Part,
    scalings: &["none", "linear", "yarn", "longrope"],
    shared: |others| {
        let floats = u64::from(others.shape.rope.dims / 2);
        others.all_or_none(&["rope_factors_long.weight", "rope_factors_short.weight"], floats);
    },
    ..Architecture::new("phi3", phi3)
};

/// Phi 2, and 1.5.
pub(super) const PHI2: Architecture = Architecture {
    norm: Norm::MeanAndVariance,
    heads: Heads::Square,
    rotation: Rotation::Part,
    output: Output::Own,
    head: |others| {
        others.vector(OUTPUT_NORM_BIAS, others.width);
        others.vector(OUTPUT_BIAS, others.vocab);
    },
    ..Architecture::new("phi2", phi2)
};

fn phi3(layer: &mut Layer) {
    let (width, feed) = (layer.width(), layer.feed_forward());
    layer.norm("attn_norm", width);
    layer.attention();
    layer.norm("ffn_norm", width);
    layer.matrix("ffn_up", width, 2 * feed);
    layer.matrix("ffn_down", feed, width);
}

fn phi2(layer: &mut Layer) {
    let width = layer.width();
    layer.norm("attn_norm", width);
    layer.bias("attn_norm", width);
    layer.attention();
    layer.bias("attn_output", width);
    layer.biased_feed_forward();
}
