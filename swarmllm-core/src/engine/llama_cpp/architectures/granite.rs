//! Granite.

use super::blocks::{llama, rope_frequencies};
use crate::engine::llama_cpp::architecture::{Architecture, FactRule, Presence, Scale};
use crate::engine::llama_cpp::limits::MAX_FEED_FORWARD;
use crate::engine::llama_cpp::tensors::LayerTensors;

/// llama.cpp multiplies all input by this fact, so stages lack it and the coordinator scales the embeddings.
const EMBEDDING_SCALE: &str = "embedding_scale";

/// Width of the shared expert, if there is one.
const SHARED_FEED_FORWARD: &str = "expert_shared_feed_forward_length";

const LOGIT_SCALE: FactRule = FactRule::positive("logit_scale").required();
const RESIDUAL_SCALE: FactRule = FactRule::number("residual_scale");
const ATTENTION_SCALE: FactRule = FactRule::number("attention.scale");

/// Granite 3 and 4, dense.
pub(super) const GRANITE: Architecture = Architecture {
    facts: &[
        LOGIT_SCALE,
        RESIDUAL_SCALE,
        ATTENTION_SCALE,
        FactRule::number(EMBEDDING_SCALE).rewritten(),
        // Whether the model has RoPE.
        FactRule::flag("rope.scaling.finetuned"),
    ],
    uncertified: &["deepstack_mapping"],
    scale: Scale::Fact(EMBEDDING_SCALE),
    shared: rope_frequencies,
    ..Architecture::new("granite", llama)
};

/// Granite 3 with experts.
pub(super) const GRANITE_MOE: Architecture = Architecture {
    facts: &[
        LOGIT_SCALE,
        RESIDUAL_SCALE,
        ATTENTION_SCALE,
        FactRule::number(EMBEDDING_SCALE).rewritten(),
        FactRule::count(SHARED_FEED_FORWARD, MAX_FEED_FORWARD),
    ],
    experts: Presence::Always,
    scale: Scale::Fact(EMBEDDING_SCALE),
    shared: rope_frequencies,
    ..Architecture::new("granitemoe", granite_moe)
};

fn granite_moe(layer: &mut LayerTensors) {
    llama(layer);
    let shared = layer.shape.count(SHARED_FEED_FORWARD);
    if shared > 0 {
        layer.shared_expert(u64::from(shared));
    }
}
