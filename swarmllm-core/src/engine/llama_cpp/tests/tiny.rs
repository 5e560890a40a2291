//! Tiny models of each certified architecture.

use super::recipe::{Recipe, count, counts, flag, flags, number, string};

/// Tiny models of the named architecture.
pub(super) fn models(name: &'static str) -> Vec<Recipe> {
    let plain = |layers| Recipe::new(name, layers);
    match name {
        "llama" => llamas(plain),
        "mistral3" => vec![
            plain(4).full().with(number("attention.temperature_scale", 0.1)).with(original(8)),
            yarn(plain(3).untied().with(number("rope.scaling.yarn_beta_fast", 24.0)))
                .with(number("rope.scaling.yarn_beta_slow", 2.0))
                .with(number("rope.scaling.yarn_log_multiplier", 1.0)),
        ],
        "llama4" => llama4s(plain),
        "smollm3" => vec![plain(9), plain(8).untied()],
        "internlm2" | "gpt-oss" | "phi2" | "stablelm" | "qwen2moe" | "olmoe" | "olmo2" => without_tie(plain, name),
        "qwen2" => vec![plain(4).full(), plain(3).untied().fused(), yarn(plain(3).untied())],
        "qwen3" => vec![plain(4), plain(3).untied().full(), yarn(plain(3))],
        "qwen3moe" => {
            vec![experts(plain(4)).with(count("expert_feed_forward_length", 48)), experts(plain(3)).untied().full()]
        }
        "phi3" => vec![
            plain(4).fused(),
            plain(3).untied().with(count("rope.dimension_count", 12)),
            long_rope(plain(3).full()).with(original(4096)),
            long_rope(plain(3).full()).with(original(64)),
        ],
        "gemma" => vec![plain(4), plain(3).with(count("attention.key_length", 32)).with(values(32))],
        "gemma2" => vec![
            windowed(plain(7)),
            windowed(plain(6)).with(number("attn_logit_softcapping", 40.0)).with(capped()),
            plain(3).with(flags("attention.sliding_window_pattern", &[1, 0, 1])),
        ],
        "gemma3" => gemma3s(plain),
        "granite" => vec![
            granite(plain(4)).with(number("embedding_scale", 12.0)).full(),
            granite(plain(3)).untied().with(flag("rope.scaling.finetuned", false)),
        ],
        "granitemoe" => vec![
            granite(experts(plain(4))).with(number("embedding_scale", 12.0)),
            granite(experts(plain(3))).untied().with(count("expert_shared_feed_forward_length", 64)),
        ],
        "deepseek2" => deepseeks(plain),
        "glm4" => vec![plain(4).full(), plain(3).untied().with(count("rope.dimension_count", 8))],
        "command-r" => vec![plain(4), plain(3).with(number("logit_scale", 0.0625)).full()],
        "starcoder2" => vec![plain(4).full(), plain(3).untied()],
        _ => Vec::new(),
    }
}

/// Models of architectures with a separate output matrix.
fn without_tie(plain: impl Fn(u32) -> Recipe, name: &str) -> Vec<Recipe> {
    let plain = |layers| plain(layers).untied();
    match name {
        "gpt-oss" => {
            let model = |layers| experts(plain(layers)).with(count("expert_feed_forward_length", 48));
            let pattern = flags("attention.sliding_window_pattern", &[1, 1, 0, 1]);
            vec![windowed(model(7)), windowed(model(4).full()).with(pattern)]
        }
        "phi2" => vec![plain(4).fused(), plain(3).full().with(count("rope.dimension_count", 8))],
        "stablelm" => vec![plain(4).full(), plain(3).with(count("rope.dimension_count", 4))],
        "qwen2moe" => vec![
            experts(plain(4)).full().with(count("expert_shared_feed_forward_length", 64)),
            experts(plain(3)).with(count("expert_feed_forward_length", 48)),
        ],
        "olmoe" => vec![experts(plain(4)).with(count("attention.head_count_kv", 6))],
        "olmo2" => vec![plain(4), windowed(yarn(plain(9)))],
        _ => vec![plain(4), plain(3).full()],
    }
}

fn llamas(plain: impl Fn(u32) -> Recipe) -> Vec<Recipe> {
    let mut models = vec![
        plain(7),
        plain(3).untied().full(),
        plain(3).fused(),
        plain(3).with(count("attention.key_length", 32)).with(values(32)).with(count("rope.dimension_count", 32)),
        experts(plain(4)).untied(),
        experts(plain(3)).with(counts("expert_used_count", &[2, 2, 2])),
    ];
    models.extend(["linear", "yarn", "none"].map(|kind| yarn(plain(3)).with(string("rope.scaling.type", kind))));
    models
}

/// Layers with and without experts; stages have at least four layers.
fn llama4s(plain: impl Fn(u32) -> Recipe) -> Vec<Recipe> {
    let model = |layers, step| {
        let expert = count("expert_feed_forward_length", 48);
        experts(plain(layers)).with(expert).with(count("interleave_moe_layer_step", step))
    };
    vec![model(9, 1), model(8, 2).untied().full(), model(12, 3), model(8, 1).with(count("expert_count", 128))]
}

fn gemma3s(plain: impl Fn(u32) -> Recipe) -> Vec<Recipe> {
    let every_third = windowed(plain(8)).with(count("attention.sliding_window_pattern", 3)).with(capped());
    vec![
        windowed(plain(13)),
        windowed(plain(7)).untied().full(),
        every_third.with(number("rope.freq_base_swa", 5000.0)),
        windowed(plain(5)).with(flags("attention.sliding_window_pattern", &[0, 1, 1, 0, 1])),
    ]
}

/// With and without a cached latent, a query latent and expert groups.
fn deepseeks(plain: impl Fn(u32) -> Recipe) -> Vec<Recipe> {
    let model = |layers| {
        experts(plain(layers))
            .with(count("expert_feed_forward_length", 48))
            .with(count("expert_shared_count", 2))
            .with(count("leading_dense_block_count", 2))
            .with(count("attention.kv_lora_rank", 32))
            .with(count("rope.dimension_count", 8))
    };
    let compressed = |layers| {
        model(layers)
            .with(count("attention.head_count_kv", 1))
            .with(count("attention.key_length", 40))
            .with(values(32))
            .with(count("attention.key_length_mla", 24))
            .with(count("attention.value_length_mla", 16))
    };
    let expanded = |layers| {
        model(layers).with(count("attention.head_count_kv", 6)).with(count("attention.key_length", 24)).with(values(16))
    };
    let rank = || count("attention.q_lora_rank", 24);
    vec![
        compressed(5).with(rank()).with(count("expert_gating_func", 2)).with(flag("expert_weights_norm", true)).full(),
        yarn(compressed(4).with(rank()).fused().with(number("expert_weights_scale", 2.5)))
            .with(number("rope.scaling.yarn_log_multiplier", 0.1)),
        expanded(4).with(rank()).untied(),
        compressed(4)
            .with(count("attention.q_lora_rank", 0))
            .with(count("expert_count", 8))
            .with(count("expert_group_count", 4))
            .with(count("expert_group_used_count", 2)),
        compressed(27),
        expanded(26),
    ]
}

fn experts(recipe: Recipe) -> Recipe {
    recipe.with(count("expert_count", 4)).with(count("expert_used_count", 2))
}

fn windowed(recipe: Recipe) -> Recipe {
    recipe.with(count("attention.sliding_window", 8))
}

fn granite(recipe: Recipe) -> Recipe {
    let scaled = recipe.with(number("logit_scale", 8.0)).with(number("residual_scale", 0.22));
    scaled.with(number("attention.scale", 0.0625))
}

fn yarn(recipe: Recipe) -> Recipe {
    recipe.with(string("rope.scaling.type", "yarn")).with(number("rope.scaling.factor", 4.0)).with(original(16))
}

fn long_rope(recipe: Recipe) -> Recipe {
    recipe.with(string("rope.scaling.type", "longrope")).with(number("rope.scaling.attn_factor", 1.19))
}

fn original(context: u32) -> super::recipe::FactValue {
    count("rope.scaling.original_context_length", context)
}

fn values(size: u32) -> super::recipe::FactValue {
    count("attention.value_length", size)
}

fn capped() -> super::recipe::FactValue {
    number("final_logit_softcapping", 20.0)
}
