//! GLM.

use crate::engine::llama_cpp::architecture::{Architecture, Input};
use crate::engine::llama_cpp::rope::Rotation;
use crate::engine::llama_cpp::tensors::Layer;

/// GLM 4. llama.cpp ends the process where a text model of it is given embeddings, so it is given tokens.
pub(super) const GLM4: Architecture = Architecture {
    uncertified: &["rope.dimension_sections"],
    rotation: Rotation::Part,
    input: Input::OverTokens("embd"),
    ..Architecture::new("glm4", glm4)
};

fn glm4(layer: &mut Layer) {
    let (width, feed) = (layer.width(), layer.feed_forward());
    layer.norm("attn_norm", width);
    layer.attention();
    layer.norm("post_attention_norm", width);
    layer.norm("ffn_norm", width);
    layer.matrix("ffn_up", width, 2 * feed);
    layer.matrix("ffn_down", feed, width);
    layer.norm("post_ffw_norm", width);
}
