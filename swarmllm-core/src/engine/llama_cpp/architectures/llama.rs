//! Llama and what grew out of it.

use super::blocks::{llama, plain, rope_frequencies};
use crate::engine::CutRules;
use crate::engine::llama_cpp::architecture::{Architecture, Heads, Known, Output, Presence};
use crate::engine::llama_cpp::error::bad;
use crate::engine::llama_cpp::limits::MAX_LAYERS;
use crate::engine::llama_cpp::shape::Shape;
use crate::engine::llama_cpp::tensors::Layer;
use crate::engine::llama_cpp::window::{WindowKind, WindowRule, WindowSize};

/// Every so manieth layer of SmolLM 3 and Llama 4 rotates nothing: llama.cpp counts them from a stage's first layer.
const UNROTATED_STEP: u32 = 4;

/// Positions of a chunk of Llama 4's windows, which llama.cpp does not let a model choose.
const CHUNK: u32 = 8192;

/// Which layers of Llama 4 have experts: each that ends such a step.
const EXPERT_STEP: &str = "interleave_moe_layer_step";

/// Llama, and everything that shares its graph (SmolLM 2, Mistral 7B, Mixtral, ...).
pub(super) const LLAMA: Architecture =
    Architecture { experts: Presence::Maybe, shared: rope_frequencies, ..Architecture::new("llama", llama) };

/// Mistral 3 (Ministral, ...).
pub(super) const MISTRAL3: Architecture = Architecture {
    facts: &[
        Known::number("attention.temperature_scale"),
        Known::positive("rope.scaling.yarn_beta_fast"),
        Known::positive("rope.scaling.yarn_beta_slow"),
        Known::number("rope.scaling.yarn_log_multiplier"),
    ],
    ..Architecture { name: "mistral3", ..LLAMA }
};

/// Llama 4 (Scout, Maverick).
pub(super) const LLAMA4: Architecture = Architecture {
    facts: &[Known::count(EXPERT_STEP, MAX_LAYERS).required()],
    window: Some(WindowRule { size: WindowSize::Fixed(CHUNK), period: UNROTATED_STEP, kind: WindowKind::Chunked }),
    experts: Presence::Always,
    shared: rope_frequencies,
    check: |shape| match shape.experts.as_ref().is_some_and(|experts| experts.feed_forward > 0) {
        true => Ok(()),
        false => Err(bad("expert_feed_forward_length", "it is missing")),
    },
    cuts: |shape, rules| {
        rules.align = least_common_multiple(UNROTATED_STEP, shape.count(EXPERT_STEP).max(1));
        // Without an unrotated layer llama.cpp ends the process.
        rules.min_layers = UNROTATED_STEP;
    },
    ..Architecture::new("llama4", llama4)
};

/// SmolLM 3.
pub(super) const SMOLLM3: Architecture = Architecture {
    cuts: |_: &Shape, rules: &mut CutRules| rules.align = UNROTATED_STEP,
    ..Architecture::new("smollm3", plain)
};

/// InternLM 2 and 3.
pub(super) const INTERNLM2: Architecture =
    Architecture { heads: Heads::Square, output: Output::Own, ..Architecture::new("internlm2", plain) };

fn llama4(layer: &mut Layer) {
    let step = layer.shape.count(EXPERT_STEP);
    if step == 0 || !(layer.index + 1).is_multiple_of(step) {
        return plain(layer);
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
