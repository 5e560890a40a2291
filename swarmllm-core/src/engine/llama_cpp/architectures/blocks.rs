//! Tensors of layers that several families share.

use crate::engine::llama_cpp::tensors::{GlobalTensors, LayerTensors, ROPE_FREQUENCIES};

/// RoPE frequency factors of Llama 3.1 and later.
pub(super) fn rope_frequencies(globals: &mut GlobalTensors) {
    let floats = u64::from(globals.shape.rope.dims / 2);
    globals.maybe_vector(ROPE_FREQUENCIES, floats);
}

/// Norms, attention and a gated feed-forward network.
pub(super) fn standard(layer: &mut LayerTensors) {
    layer.norm("attn_norm", layer.width());
    layer.attention();
    layer.norm("ffn_norm", layer.width());
    layer.gated_feed_forward();
}

/// The same with optional biases, and with experts instead of the feed-forward network if there are any.
pub(super) fn llama(layer: &mut LayerTensors) {
    let (width, feed) = (layer.width(), layer.feed_forward());
    layer.norm("attn_norm", width);
    layer.attention();
    layer.maybe_bias("attn_output", width);
    layer.norm("ffn_norm", width);
    if layer.experts().is_some() {
        layer.router();
        layer.gated_experts(feed);
        return;
    }
    layer.gated_feed_forward();
    layer.maybe_bias("ffn_gate", feed);
    layer.maybe_bias("ffn_up", feed);
    layer.maybe_bias("ffn_down", width);
}

/// Queries and keys are normalised head by head.
pub(super) fn head_norms(layer: &mut LayerTensors) {
    let head = layer.head_size();
    layer.norm("attn_q_norm", head);
    layer.norm("attn_k_norm", head);
}
