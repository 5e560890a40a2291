//! Gemma. Its embeddings are multiplied by the root of the width. The first two do that inside llama.cpp to whatever
//! comes in, hidden states too.

use super::blocks::{head_norms, plain};
use crate::engine::CutRules;
use crate::engine::llama_cpp::architecture::{Architecture, Input, Known, Output, Scale};
use crate::engine::llama_cpp::rope::Rotation;
use crate::engine::llama_cpp::shape::Shape;
use crate::engine::llama_cpp::tensors::Layer;
use crate::engine::llama_cpp::window::{WindowKind, WindowRule, WindowSize};

/// What comes in, multiplied.
const SCALED: &str = "inp_scaled";

/// Models of this many layers have another attention scale, which llama.cpp derives from the layer count.
const GEMMA2_27B_LAYERS: u32 = 46;
const GEMMA3_27B_LAYERS: u32 = 62;

/// Positions that a windowed layer of Gemma 2 sees, unless the model says otherwise.
const GEMMA2_WINDOW: u32 = 4096;

/// Gemma.
pub(super) const GEMMA: Architecture = Architecture {
    rotation: Rotation::Part,
    input: Input::Over(SCALED),
    scale: Scale::RootOfWidth,
    output: Output::Embedding,
    ..Architecture::new("gemma", plain)
};

/// Gemma 2.
pub(super) const GEMMA2: Architecture = Architecture {
    facts: &[Known::positive("attn_logit_softcapping"), Known::positive("final_logit_softcapping")],
    rotation: Rotation::Part,
    window: Some(WindowRule { size: WindowSize::Default(GEMMA2_WINDOW), period: 2, kind: WindowKind::Sliding }),
    input: Input::Over(SCALED),
    scale: Scale::RootOfWidth,
    output: Output::Embedding,
    cuts: |shape, rules| keep_attention_scale(shape, rules, GEMMA2_27B_LAYERS),
    ..Architecture::new("gemma2", gemma2)
};

/// Gemma 3, text.
pub(super) const GEMMA3: Architecture = Architecture {
    facts: &[Known::positive("final_logit_softcapping")],
    rotation: Rotation::Part,
    window: Some(WindowRule { size: WindowSize::Told, period: 6, kind: WindowKind::Sliding }),
    scale: Scale::RootOfWidth,
    cuts: |shape, rules| keep_attention_scale(shape, rules, GEMMA3_27B_LAYERS),
    ..Architecture::new("gemma3", |layer| {
        gemma2(layer);
        head_norms(layer);
    })
};

fn gemma2(layer: &mut Layer) {
    plain(layer);
    layer.norm("post_attention_norm", layer.width());
    layer.norm("post_ffw_norm", layer.width());
}

/// A model of `special` layers is only run whole, and no stage of a larger one may be taken for it.
fn keep_attention_scale(shape: &Shape, rules: &mut CutRules, special: u32) {
    match shape.layers == special {
        true => rules.min_layers = special,
        false => rules.forbidden.push(special),
    }
}
