//! OLMo.

use crate::engine::llama_cpp::architecture::{Architecture, Heads, Output, Presence};
use crate::engine::llama_cpp::error::bad;
use crate::engine::llama_cpp::tensors::LayerTensors;
use crate::engine::llama_cpp::window::{WindowKind, WindowRule, WindowSize};

/// OLMo 2 and 3; OLMo 3 has windows.
pub(super) const OLMO2: Architecture = Architecture {
    heads: Heads::Square,
    window: Some(WindowRule { size: WindowSize::Optional, period: 4, kind: WindowKind::Sliding }),
    output: Output::Own,
    ..Architecture::new("olmo2", olmo2)
};

/// OLMoE.
pub(super) const OLMOE: Architecture = Architecture {
    heads: Heads::Square,
    experts: Presence::Always,
    output: Output::Own,
    // llama.cpp expects the key norm to have the width of the queries.
    check: |shape| match shape.heads == shape.kv_heads {
        true => Ok(()),
        false => Err(bad("attention heads", "queries and keys must have equally many heads")),
    },
    ..Architecture::new("olmoe", olmoe)
};

/// Norms follow attention and feed-forward network.
fn olmo2(layer: &mut LayerTensors) {
    let width = layer.width();
    layer.attention();
    row_norms(layer);
    layer.norm("post_attention_norm", width);
    layer.gated_feed_forward();
    layer.norm("post_ffw_norm", width);
}

fn olmoe(layer: &mut LayerTensors) {
    let (width, feed) = (layer.width(), layer.feed_forward());
    layer.norm("attn_norm", width);
    layer.attention();
    row_norms(layer);
    layer.norm("ffn_norm", width);
    layer.router();
    layer.gated_experts(feed);
}

/// Queries and keys are normalised over all heads at once.
fn row_norms(layer: &mut LayerTensors) {
    let (queries, keys) = (layer.queries(), layer.keys());
    layer.norm("attn_q_norm", queries);
    layer.norm("attn_k_norm", keys);
}
