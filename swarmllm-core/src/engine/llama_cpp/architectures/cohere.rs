//! Command-R.

use crate::engine::llama_cpp::architecture::{Architecture, FactRule, Heads, Norm, Output};
use crate::engine::llama_cpp::error::bad;
use crate::engine::llama_cpp::rope::Rotation;
use crate::engine::llama_cpp::tensors::LayerTensors;

/// llama.cpp takes a model of at least this many layers for Command-R+, whose queries and keys are normalised. A stage of
/// Command-R+ would lose the norms.
const PLUS_LAYERS: u32 = 64;

/// Command-R and Aya.
pub(super) const COMMAND_R: Architecture = Architecture {
    facts: &[FactRule::number("logit_scale")],
    norm: Norm::MeanAndVariance,
    heads: Heads::Square,
    rotation: Rotation::Part,
    output: Output::Embedding,
    check: |shape| match shape.layers < PLUS_LAYERS {
        true => Ok(()),
        false => Err(bad("command-r.block_count", format!("{PLUS_LAYERS} layers and more are not certified"))),
    },
    ..Architecture::new("command-r", command_r)
};

fn command_r(layer: &mut LayerTensors) {
    layer.norm("attn_norm", layer.width());
    layer.attention();
    layer.gated_feed_forward();
}
