//! gpt-oss.

use crate::engine::llama_cpp::architecture::{Architecture, Output, Presence};
use crate::engine::llama_cpp::error::bad;
use crate::engine::llama_cpp::tensors::LayerTensors;
use crate::engine::llama_cpp::window::{WindowKind, WindowRule, WindowSize};

/// gpt-oss, 20B and 120B.
pub(super) const GPT_OSS: Architecture = Architecture {
    window: Some(WindowRule { size: WindowSize::Required, period: 2, kind: WindowKind::Sliding }),
    experts: Presence::Always,
    output: Output::Own,
    check: |shape| match shape.experts.as_ref().is_some_and(|experts| experts.feed_forward > 0) {
        true => Ok(()),
        false => Err(bad("expert_feed_forward_length", "it is missing")),
    },
    ..Architecture::new("gpt-oss", gpt_oss)
};

fn gpt_oss(layer: &mut LayerTensors) {
    let (width, feed) = (layer.width(), layer.expert_feed_forward());
    let (heads, experts) = (u64::from(layer.shape.heads), layer.expert_count());
    layer.norm("attn_norm", width);
    layer.attention();
    layer.bias("attn_output", width);
    layer.vector("attn_sinks.weight", heads);
    layer.norm("post_attention_norm", width);
    layer.router();
    layer.bias("ffn_gate_inp", experts);
    layer.gated_experts(feed);
    layer.floats("ffn_gate_exps.bias", vec![feed, experts]);
    layer.floats("ffn_up_exps.bias", vec![feed, experts]);
    layer.floats("ffn_down_exps.bias", vec![width, experts]);
}
