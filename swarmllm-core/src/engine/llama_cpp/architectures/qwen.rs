//! Qwen 2 and later.

use super::blocks::{head_norms, standard};
use crate::engine::llama_cpp::architecture::{Architecture, FactRule, Heads, Output, Presence};
use crate::engine::llama_cpp::limits::MAX_FEED_FORWARD;
use crate::engine::llama_cpp::tensors::{LayerTensors, OUTPUT_BIAS};

/// Width of the shared expert.
const SHARED_FEED_FORWARD: &str = "expert_shared_feed_forward_length";

/// Qwen 2 and 2.5.
pub(super) const QWEN2: Architecture = Architecture {
    heads: Heads::Square,
    head: |globals| globals.maybe_vector(OUTPUT_BIAS, globals.vocab),
    ..Architecture::new("qwen2", standard)
};

/// Qwen 2 with experts.
pub(super) const QWEN2MOE: Architecture = Architecture {
    facts: &[FactRule::count(SHARED_FEED_FORWARD, MAX_FEED_FORWARD)],
    heads: Heads::Square,
    experts: Presence::Always,
    output: Output::Own,
    ..Architecture::new("qwen2moe", qwen2moe)
};

/// Qwen 3.
pub(super) const QWEN3: Architecture = Architecture::new("qwen3", |layer| {
    standard(layer);
    head_norms(layer);
});

/// Qwen 3 with experts.
pub(super) const QWEN3MOE: Architecture = Architecture {
    experts: Presence::Always,
    ..Architecture::new("qwen3moe", |layer| {
        experts(layer);
        head_norms(layer);
    })
};

fn experts(layer: &mut LayerTensors) {
    let feed = layer.expert_feed_forward();
    layer.norm("attn_norm", layer.width());
    layer.attention();
    layer.norm("ffn_norm", layer.width());
    layer.router();
    layer.gated_experts(feed);
}

fn qwen2moe(layer: &mut LayerTensors) {
    experts(layer);
    let shared = match layer.shape.count(SHARED_FEED_FORWARD) {
        0 => layer.feed_forward(),
        given => u64::from(given),
    };
    let width = layer.width();
    layer.vector("ffn_gate_inp_shexp.weight", width);
    layer.shared_expert(shared);
}
