//! What the layers of several families have.

use crate::engine::llama_cpp::tensors::{Layer, Others, ROPE_FREQUENCIES};

/// Frequencies that Llama 3.1 and later have.
pub(super) fn rope_frequencies(others: &mut Others) {
    let floats = u64::from(others.shape.rope.dims / 2);
    others.maybe_vector(ROPE_FREQUENCIES, floats);
}

/// Norms, attention and a gated feed-forward network, and nothing else.
pub(super) fn plain(layer: &mut Layer) {
    layer.norm("attn_norm", layer.width());
    layer.attention();
    layer.norm("ffn_norm", layer.width());
    layer.gated_feed_forward();
}

/// The same with biases that may be there, and experts instead of the feed-forward network where there are any.
pub(super) fn llama(layer: &mut Layer) {
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
pub(super) fn head_norms(layer: &mut Layer) {
    let head = layer.head_size();
    layer.norm("attn_q_norm", head);
    layer.norm("attn_k_norm", head);
}
