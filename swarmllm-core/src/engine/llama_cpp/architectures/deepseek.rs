//! DeepSeek 2, 2.5, 3 and R1, and models with the same graph. Keys and values come from one compressed row, the latent.
//! With newer files llama.cpp caches only that row, with older ones the keys and values of each head.

use crate::base::LayerRange;
use crate::engine::llama_cpp::architecture::{Architecture, FactKind, FactRule, Heads, Presence};
use crate::engine::llama_cpp::error::bad;
use crate::engine::llama_cpp::header::Header;
use crate::engine::llama_cpp::limits::{MAX_EXPERTS, MAX_HEAD_SIZE, MAX_LAYERS, MAX_WIDTH};
use crate::engine::llama_cpp::rope::Rotation;
use crate::engine::llama_cpp::shape::Shape;
use crate::engine::llama_cpp::tensors::LayerTensors;
use crate::engine::{CutRules, EngineError};

/// Ranks of the latents of keys and values, and of queries.
const LATENT: &str = "attention.kv_lora_rank";
const QUERY_LATENT: &str = "attention.q_lora_rank";
/// Sizes of decompressed heads, if llama.cpp caches only the latent.
const KEY_SIZE: &str = "attention.key_length_mla";
const VALUE_SIZE: &str = "attention.value_length_mla";
/// Number of leading layers without experts.
const DENSE: &str = "leading_dense_block_count";
const SHARED_EXPERTS: &str = "expert_shared_count";
const GATING: &str = "expert_gating_func";
const GROUPS: &str = "expert_group_count";
const GROUPS_USED: &str = "expert_group_used_count";

/// Gating functions of the router.
const SOFTMAX: u32 = 1;
const SIGMOID: u32 = 2;

/// Layer counts, and a layer count with a vocabulary, by which llama.cpp recognises models without a query latent.
const LITE_LAYERS: [u32; 2] = [26, 27];
const LITE: (u32, u32) = (48, 128_256);
/// Layer counts and vocabulary of models with sigmoid gating that lack the fact.
const SIGMOID_LAYERS: [u32; 2] = [47, 48];
const SIGMOID_VOCAB: u32 = 154_880;

/// Experts of each group that are compared to choose groups.
const GROUP_PROBES: u32 = 2;

/// DeepSeek 2 and later.
pub(super) const DEEPSEEK2: Architecture = Architecture {
    facts: &[
        FactRule::count(LATENT, MAX_WIDTH).required(),
        FactRule::count(QUERY_LATENT, MAX_WIDTH).rewritten(),
        FactRule::count(KEY_SIZE, MAX_HEAD_SIZE),
        FactRule::count(VALUE_SIZE, MAX_HEAD_SIZE),
        FactRule::count(DENSE, MAX_LAYERS).rewritten(),
        FactRule::count(SHARED_EXPERTS, MAX_EXPERTS).required(),
        FactRule::new("expert_weights_scale", FactKind::Number),
        FactRule::flag("expert_weights_norm"),
        FactRule::count(GATING, SIGMOID).rewritten(),
        FactRule::count(GROUPS, MAX_EXPERTS),
        FactRule::count(GROUPS_USED, MAX_EXPERTS),
        FactRule::number("rope.scaling.yarn_log_multiplier"),
    ],
    uncertified: &["attention.temperature_scale", "attention.temperature_length"],
    heads: Heads::Latent,
    rotation: Rotation::Part,
    experts: Presence::Always,
    check,
    cuts,
    rewrite,
    ..Architecture::new("deepseek2", deepseek2)
};

/// Floats of a head's keys and values.
fn head_sizes(shape: &Shape) -> (u32, u32) {
    match (shape.count(KEY_SIZE), shape.count(VALUE_SIZE)) {
        (0, 0) => (shape.key_size, shape.value_size),
        sizes => sizes,
    }
}

/// Rank of the query latent; 0 without one.
fn query_latent(shape: &Shape) -> u32 {
    let lite = LITE_LAYERS.contains(&shape.layers) || (shape.layers, shape.vocab) == LITE;
    if lite { 0 } else { shape.count(QUERY_LATENT) }
}

/// Validates the sizes that llama.cpp asserts.
fn check(shape: &Shape) -> Result<(), EngineError> {
    let (latent, rotated) = (shape.count(LATENT), shape.rope.dims);
    let (key, value) = head_sizes(shape);
    let sizes = match (shape.count(KEY_SIZE), shape.count(VALUE_SIZE)) {
        (0, 0) => shape.kv_heads == shape.heads,
        _ => shape.kv_heads == 1 && shape.key_size == latent.saturating_add(rotated) && shape.value_size == latent,
    };
    if !sizes || latent == 0 || value == 0 || key <= rotated {
        return Err(bad("attention heads", "their sizes do not match that of the latent"));
    }
    if shape.count(SHARED_EXPERTS) == 0 || shape.experts.as_ref().is_none_or(|experts| experts.feed_forward == 0) {
        return Err(bad("experts", "their width or the number of shared experts is missing"));
    }
    check_groups(shape)
}

fn check_groups(shape: &Shape) -> Result<(), EngineError> {
    let (groups, used) = (shape.count(GROUPS), shape.count(GROUPS_USED));
    let experts = shape.experts.as_ref().map_or(0, |experts| experts.count);
    let fits = match groups {
        0 | 1 => true,
        _ => experts.is_multiple_of(groups) && experts / groups >= GROUP_PROBES && used > 0 && used < groups,
    };
    match fits {
        true => Ok(()),
        false => Err(bad("expert groups", format!("{used} of {groups} groups do not suit {experts} experts"))),
    }
}

/// Forbids layer counts by which llama.cpp would take a stage for a model without a query latent.
fn cuts(shape: &Shape, rules: &mut CutRules) {
    if query_latent(shape) > 0 {
        rules.forbidden.extend(LITE_LAYERS);
        rules.forbidden.extend((shape.vocab == LITE.1).then_some(LITE.0));
    }
}

fn rewrite(shape: &Shape, layers: LayerRange, header: &mut Header) {
    header.u32(QUERY_LATENT, query_latent(shape));
    header.u32(DENSE, shape.count(DENSE).saturating_sub(layers.start));
    let ungiven = SIGMOID_LAYERS.contains(&shape.layers) && shape.vocab == SIGMOID_VOCAB;
    let gating = match shape.count(GATING) {
        0 if ungiven => SIGMOID,
        0 => SOFTMAX,
        given => given,
    };
    header.u32(GATING, gating);
}

fn deepseek2(layer: &mut LayerTensors) {
    let shape = layer.shape;
    let (width, heads) = (layer.width(), u64::from(shape.heads));
    let (latent, rotated) = (u64::from(shape.count(LATENT)), u64::from(shape.rope.dims));
    let (key, value) = head_sizes(shape);
    let (key, value) = (u64::from(key), u64::from(value));
    layer.norm("attn_norm", width);
    match u64::from(query_latent(shape)) {
        0 => layer.matrix("attn_q", width, heads * key),
        rank => {
            layer.norm("attn_q_a_norm", rank);
            layer.matrix("attn_q_a", width, rank);
            layer.matrix("attn_q_b", rank, heads * key);
        }
    }
    layer.norm("attn_kv_a_norm", latent);
    layer.matrix("attn_kv_a_mqa", width, latent + rotated);
    if shape.count(KEY_SIZE) > 0 {
        layer.cube("attn_k_b", [key.saturating_sub(rotated), latent, heads]);
        layer.cube("attn_v_b", [latent, value, heads]);
    } else {
        layer.matrix("attn_kv_b", latent, heads * (key.saturating_sub(rotated) + value));
    }
    layer.matrix("attn_output", heads * value, width);
    layer.norm("ffn_norm", width);
    match layer.index < shape.count(DENSE) {
        true => layer.gated_feed_forward(),
        false => experts(layer),
    }
}

fn experts(layer: &mut LayerTensors) {
    let (width, feed, count) = (layer.width(), layer.expert_feed_forward(), layer.expert_count());
    layer.router();
    layer.maybe_vector("exp_probs_b.bias", count);
    if layer.has("ffn_gate_up_exps.weight") {
        layer.cube("ffn_gate_up_exps", [width, 2 * feed, count]);
        layer.cube("ffn_down_exps", [feed, width, count]);
    } else {
        layer.gated_experts(feed);
    }
    layer.shared_expert(feed * u64::from(layer.shape.count(SHARED_EXPERTS)));
}
