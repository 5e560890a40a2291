//! Granite.

use super::blocks::{llama, rope_frequencies};
use crate::engine::llama_cpp::architecture::{Architecture, Known, Presence, Scale};
use crate::engine::llama_cpp::limits::MAX_FEED_FORWARD;
use crate::engine::llama_cpp::tensors::Layer;

/// llama.cpp multiplies whatever comes in by this: stages do not have it, and the coordinator multiplies embeddings.
const EMBEDDING_SCALE: &str = "embedding_scale";

/// Width of the expert that all tokens use, where there is one.
const SHARED_FEED_FORWARD: &str = "expert_shared_feed_forward_length";

const LOGIT_SCALE: Known = Known::positive("logit_scale").required();
const RESIDUAL_SCALE: Known = Known::number("residual_scale");
const ATTENTION_SCALE: Known = Known::number("attention.scale");

/// Granite 3 and 4, dense.
pub(super) const GRANITE: Architecture = Architecture {
    facts: &[
        LOGIT_SCALE,
        RESIDUAL_SCALE,
        ATTENTION_SCALE,
        Known::number(EMBEDDING_SCALE).repaired(),
        // Whether there are rotary positions at all.
        Known::flag("rope.scaling.finetuned"),
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
        Known::number(EMBEDDING_SCALE).repaired(),
        Known::count(SHARED_FEED_FORWARD, MAX_FEED_FORWARD),
    ],
    experts: Presence::Always,
    scale: Scale::Fact(EMBEDDING_SCALE),
    shared: rope_frequencies,
    ..Architecture::new("granitemoe", granite_moe)
};

fn granite_moe(layer: &mut Layer) {
    llama(layer);
    let shared = layer.shape.count(SHARED_FEED_FORWARD);
    if shared > 0 {
        layer.shared_expert(u64::from(shared));
    }
}
