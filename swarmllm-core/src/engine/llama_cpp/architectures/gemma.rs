//! Gemma. Embeddings are multiplied by the square root of the width. For Gemma 1 and 2 llama.cpp multiplies all input,
//! hidden states too.

use super::blocks::{head_norms, standard};
use crate::engine::CutRules;
use crate::engine::llama_cpp::architecture::{Architecture, FactRule, Input, Output, Scale};
use crate::engine::llama_cpp::rope::Rotation;
use crate::engine::llama_cpp::shape::Shape;
use crate::engine::llama_cpp::tensors::LayerTensors;
use crate::engine::llama_cpp::window::{WindowKind, WindowRule, WindowSize};

/// Node of the scaled input.
const SCALED: &str = "inp_scaled";

/// Layer counts of models with another attention scale, which llama.cpp derives from the layer count.
const GEMMA2_27B_LAYERS: u32 = 46;
const GEMMA3_27B_LAYERS: u32 = 62;

/// Default window of Gemma 2.
const GEMMA2_WINDOW: u32 = 4096;

/// Gemma.
pub(super) const GEMMA: Architecture = Architecture {
    rotation: Rotation::Part,
    input: Input::Overwrite(SCALED),
    scale: Scale::RootOfWidth,
    output: Output::Embedding,
    ..Architecture::new("gemma", standard)
};

/// Gemma 2.
pub(super) const GEMMA2: Architecture = Architecture {
    facts: &[FactRule::positive("attn_logit_softcapping"), FactRule::positive("final_logit_softcapping")],
    rotation: Rotation::Part,
    window: Some(WindowRule { size: WindowSize::Default(GEMMA2_WINDOW), period: 2, kind: WindowKind::Sliding }),
    input: Input::Overwrite(SCALED),
    scale: Scale::RootOfWidth,
    output: Output::Embedding,
    cuts: |shape, rules| keep_attention_scale(shape, rules, GEMMA2_27B_LAYERS),
    ..Architecture::new("gemma2", gemma2)
};

/// Gemma 3, text.
pub(super) const GEMMA3: Architecture = Architecture {
    facts: &[FactRule::positive("final_logit_softcapping")],
    rotation: Rotation::Part,
    window: Some(WindowRule { size: WindowSize::Required, period: 6, kind: WindowKind::Sliding }),
    scale: Scale::RootOfWidth,
    cuts: |shape, rules| keep_attention_scale(shape, rules, GEMMA3_27B_LAYERS),
    ..Architecture::new("gemma3", |layer| {
        gemma2(layer);
        head_norms(layer);
    })
};

fn gemma2(layer: &mut LayerTensors) {
    standard(layer);
    layer.norm("post_attention_norm", layer.width());
    layer.norm("post_ffw_norm", layer.width());
}

/// A model of `special` layers runs only as a whole; stages of other models must not have this layer count.
fn keep_attention_scale(shape: &Shape, rules: &mut CutRules, special: u32) {
    match shape.layers == special {
        true => rules.min_layers = special,
        false => rules.forbidden.push(special),
    }
}
