//! The Llama family.

use super::blocks::{llama, rope_frequencies, standard};
use crate::engine::CutRules;
use crate::engine::llama_cpp::architecture::{Architecture, FactRule, Heads, Output, Presence};
use crate::engine::llama_cpp::error::bad;
use crate::engine::llama_cpp::limits::MAX_LAYERS;
use crate::engine::llama_cpp::shape::Shape;
use crate::engine::llama_cpp::tensors::LayerTensors;
use crate::engine::llama_cpp::window::{WindowKind, WindowRule, WindowSize};

/// Every Nth layer of SmolLM 3 and Llama 4 has no RoPE. llama.cpp counts from a stage's first layer.
const UNROTATED_STEP: u32 = 4;

/// Positions of a chunk of Llama 4's windows, fixed in llama.cpp.
const CHUNK: u32 = 8192;

/// Fact of Llama 4: the last layer of each step of this length has experts.
const EXPERT_STEP: &str = "interleave_moe_layer_step";

/// Llama, and models with the same graph (SmolLM 2, Mistral 7B, Mixtral, ...).
pub(super) const LLAMA: Architecture =
    Architecture { experts: Presence::Maybe, shared: rope_frequencies, ..Architecture::new("llama", llama) };

/// Mistral 3 (Ministral, ...).
pub(super) const MISTRAL3: Architecture = Architecture {
    facts: &[
        FactRule::number("attention.temperature_scale"),
        FactRule::positive("rope.scaling.yarn_beta_fast"),
        FactRule::positive("rope.scaling.yarn_beta_slow"),
        FactRule::number("rope.scaling.yarn_log_multiplier"),
    ],
    ..Architecture { name: "mistral3", ..LLAMA }
};

/// Llama 4 (Scout, Maverick).
pub(super) const LLAMA4: Architecture = Architecture {
    facts: &[FactRule::count(EXPERT_STEP, MAX_LAYERS).required()],
    window: Some(WindowRule { size: WindowSize::Fixed(CHUNK), period: UNROTATED_STEP, kind: WindowKind::Chunked }),
    experts: Presence::Always,
    shared: rope_frequencies,
    check: |shape| match shape.experts.as_ref().is_some_and(|experts| experts.feed_forward > 0) {
        true => Ok(()),
        false => Err(bad("expert_feed_forward_length", "it is missing")),
    },
    cuts: |shape, rules| {
        rules.align = least_common_multiple(UNROTATED_STEP, shape.count(EXPERT_STEP).max(1));
        // llama.cpp aborts without a layer without RoPE.
        rules.min_layers = UNROTATED_STEP;
    },
    ..Architecture::new("llama4", llama4)
};

/// SmolLM 3.
pub(super) const SMOLLM3: Architecture = Architecture {
    cuts: |_: &Shape, rules: &mut CutRules| rules.align = UNROTATED_STEP,
    ..Architecture::new("smollm3", standard)
};

/// InternLM 2 and 3.
pub(super) const INTERNLM2: Architecture =
    Architecture { heads: Heads::Square, output: Output::Own, ..Architecture::new("internlm2", standard) };

fn llama4(layer: &mut LayerTensors) {
    let step = layer.shape.count(EXPERT_STEP);
    if step == 0 || !(layer.index + 1).is_multiple_of(step) {
        return standard(layer);
    }
    let feed = layer.expert_feed_forward();
    layer.norm("attn_norm", layer.width());
    layer.attention();
    layer.norm("ffn_norm", layer.width());
    layer.router();
    layer.gated_experts(feed);
    layer.shared_expert(feed);
}

fn least_common_multiple(a: u32, b: u32) -> u32 {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor.max(1) * b
}
