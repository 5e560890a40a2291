//! GLM.

use crate::engine::llama_cpp::architecture::{Architecture, Input};
use crate::engine::llama_cpp::rope::Rotation;
use crate::engine::llama_cpp::tensors::LayerTensors;

/// GLM 4. llama.cpp aborts if a text model gets embeddings, so it gets tokens.
pub(super) const GLM4: Architecture = Architecture {
    uncertified: &["rope.dimension_sections"],
    rotation: Rotation::Part,
    input: Input::OverwriteTokens("embd"),
    ..Architecture::new("glm4", glm4)
};

fn glm4(layer: &mut LayerTensors) {
    let (width, feed) = (layer.width(), layer.feed_forward());
    layer.norm("attn_norm", width);
    layer.attention();
    layer.norm("post_attention_norm", width);
    layer.norm("ffn_norm", width);
    layer.matrix("ffn_up", width, 2 * feed);
    layer.matrix("ffn_down", feed, width);
    layer.norm("post_ffw_norm", width);
}
