//! Phi.

use crate::engine::llama_cpp::architecture::{Architecture, Heads, Norm, Output};
use crate::engine::llama_cpp::rope::Rotation;
use crate::engine::llama_cpp::tensors::{LayerTensors, OUTPUT_BIAS, OUTPUT_NORM_BIAS};

/// Phi 3, 3.5 and 4. llama.cpp ignores the window in their facts.
pub(super) const PHI3: Architecture = Architecture {
    heads: Heads::Square,
    rotation: Rotation::Part,
    scalings: &["none", "linear", "yarn", "longrope"],
    shared: |globals| {
        let floats = u64::from(globals.shape.rope.dims / 2);
        globals.all_or_none(&["rope_factors_long.weight", "rope_factors_short.weight"], floats);
    },
    ..Architecture::new("phi3", phi3)
};

/// Phi 2, and 1.5.
pub(super) const PHI2: Architecture = Architecture {
    norm: Norm::MeanAndVariance,
    heads: Heads::Square,
    rotation: Rotation::Part,
    output: Output::Own,
    head: |globals| {
        globals.vector(OUTPUT_NORM_BIAS, globals.width);
        globals.vector(OUTPUT_BIAS, globals.vocab);
    },
    ..Architecture::new("phi2", phi2)
};

fn phi3(layer: &mut LayerTensors) {
    let (width, feed) = (layer.width(), layer.feed_forward());
    layer.norm("attn_norm", width);
    layer.attention();
    layer.norm("ffn_norm", width);
    layer.matrix("ffn_up", width, 2 * feed);
    layer.matrix("ffn_down", feed, width);
}

fn phi2(layer: &mut LayerTensors) {
    let width = layer.width();
    layer.norm("attn_norm", width);
    layer.bias("attn_norm", width);
    layer.attention();
    layer.bias("attn_output", width);
    layer.biased_feed_forward();
}
