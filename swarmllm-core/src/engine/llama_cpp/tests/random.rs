//! Every legal cut of tiny random models of every certified architecture, against llama.cpp on the whole file.

use super::recipe::{Recipe, VOCAB, WIDTH, count, counts, flags, number, string};
use super::whole_model::WholeModel;
use super::{Chain, bits, run, tiny, tokens};
use crate::base::LayerRange;
use crate::engine::llama_cpp::LlamaCpp;
use crate::engine::llama_cpp::architectures::CERTIFIED;
use crate::engine::{CutRules, Engine, EngineError, KvType, Row, StageConfig};

const CONFIG: StageConfig = StageConfig {
    context: 256,
    max_sessions: 2,
    max_rows: 64,
    threads: 1,
    kv: KvType::Full,
    gpu_layers: u32::MAX,
    keep_awake: false,
};

fn is_legal(rules: &CutRules, layers: u32, cuts: &[u32]) -> bool {
    let bounds: Vec<u32> = [0].into_iter().chain(cuts.iter().copied()).chain([layers]).collect();
    bounds.windows(2).all(|pair| rules.violation(LayerRange::new(pair[0], pair[1])).is_none())
}

/// Every cut into two stages, and the cut into the smallest legal stages, against llama.cpp on the file.
fn every_cut_equals_the_whole(recipe: &Recipe) {
    let directory = tempfile::tempdir().expect("a directory");
    let cut = recipe.write(&directory);
    let engine = LlamaCpp::new();
    let rules = engine.cuts(&cut.manifest).expect("cut rules");
    let halves = (1..recipe.layers).map(|layer| vec![layer]);
    let pieces = (1..recipe.layers).filter(|layer| layer % rules.align == 0).collect();
    let legal = |cuts: &Vec<u32>| is_legal(&rules, recipe.layers, cuts);
    let mut compared = 0;
    for cuts in halves.chain([vec![], pieces]).filter(legal) {
        let mut whole = WholeModel::load(&cut.path, &CONFIG, None);
        let mut chain = Chain::load(&engine, &cut, &cuts, &CONFIG);
        let what = format!("{} of {} layers, cut at {cuts:?}", recipe.architecture, recipe.layers);
        let prompt = run(0, 0, &tokens(1, 40, VOCAB as u32));
        assert!(bits(&whole.step(&prompt)) == bits(&chain.step(&prompt)), "{what}: prefill differs");
        for (pos, token) in (40..).zip(tokens(2, 6, VOCAB as u32)) {
            let fed = run(0, pos, &[token]);
            assert!(bits(&whole.step(&fed)) == bits(&chain.step(&fed)), "{what}: position {pos} differs");
        }
        // A second session, then one row of each in one call.
        let other = run(1, 0, &tokens(4, 12, VOCAB as u32));
        assert!(bits(&whole.step(&other)) == bits(&chain.step(&other)), "{what}: a second session differs");
        let both = [run(0, 46, &[7]), run(1, 12, &[9])].concat();
        assert!(bits(&whole.step(&both)) == bits(&chain.step(&both)), "{what}: two sessions at once differ");
        // States of a text, then logits.
        let (text, next) = (run(1, 0, &tokens(5, 9, VOCAB as u32)), run(1, 9, &[11]));
        chain.release(1);
        whole.truncate(1, 0);
        assert!(bits(&whole.states(&text)) == bits(&chain.states(&text)), "{what}: states differ");
        assert!(bits(&whole.step(&next)) == bits(&chain.step(&next)), "{what}: logits behind states differ");
        compared += 1;
    }
    assert!(compared >= (recipe.layers / rules.align).min(2), "{}: cuts were compared", recipe.architecture);
}

#[test]
fn every_legal_cut_of_every_certified_architecture_equals_the_whole() {
    // All architectures run, so that a failure on an accelerator lists all that differ.
    let mut failed = Vec::new();
    for architecture in CERTIFIED {
        let models = tiny::models(architecture.name);
        assert!(!models.is_empty(), "there is no tiny model of {}", architecture.name);
        for (index, model) in models.iter().enumerate() {
            if std::panic::catch_unwind(|| every_cut_equals_the_whole(model)).is_err() {
                failed.push(format!("{} {index}", architecture.name));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn chunks_of_llama4_longer_than_a_window_equal_the_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let recipe = tiny::models("llama4").remove(1);
    let cut = recipe.write(&directory);
    let config = StageConfig {
        context: 8448,
        max_sessions: 2,
        max_rows: 512,
        threads: 1,
        kv: KvType::Full,
        ..StageConfig::default()
    };
    let mut whole = WholeModel::load(&cut.path, &config, None);
    let mut chain = Chain::load(&LlamaCpp::new(), &cut, &[4], &config);
    let text = tokens(5, 8210, VOCAB as u32);
    for (from, part) in (0..).step_by(512).zip(text.chunks(512)) {
        let mut fed = run(0, from, part);
        let last = fed.len() - 1;
        fed.iter_mut().take(last).for_each(|row| row.want = false);
        assert!(bits(&whole.step(&fed)) == bits(&chain.step(&fed)), "prefill at {from} differs");
    }
}

#[test]
fn cut_rules_are_those_of_the_architecture() {
    let rules = |recipe: &Recipe| {
        let directory = tempfile::tempdir().expect("a directory");
        LlamaCpp::new().cuts(&recipe.write(&directory).manifest).expect("cut rules")
    };
    assert_eq!(rules(&tiny::models("smollm3")[0]).align, 4);
    assert_eq!(rules(&tiny::models("llama4")[1]).align, 4);
    assert_eq!(rules(&tiny::models("llama4")[2]).align, 12);
    let deepseek = rules(&tiny::models("deepseek2")[0]);
    assert!(
        deepseek.violation(LayerRange::new(0, 26)).is_some() && deepseek.violation(LayerRange::new(0, 25)).is_none()
    );
    assert_eq!(rules(&tiny::models("deepseek2")[4]), CutRules::any());
    assert_eq!(rules(&tiny::models("gpt-oss")[0]).must_contain, [0, 2, 4, 6]);
    for (name, special) in [("gemma2", 46), ("gemma3", 62)] {
        let model = |layers| Recipe::new(name, layers).with(count("attention.sliding_window", 8));
        let (whole, larger) = (rules(&model(special)), rules(&model(special + 2)));
        assert!(whole.violation(LayerRange::new(0, special - 1)).is_some(), "{name} is only run whole");
        assert!(whole.violation(LayerRange::new(0, special)).is_none());
        assert!(larger.violation(LayerRange::new(0, special)).is_some(), "a stage would be taken for the whole {name}");
        assert!(larger.violation(LayerRange::new(0, special - 1)).is_none());
    }
}

#[test]
fn layers_that_differ_in_their_heads_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let false_facts = vec![counts("attention.head_count", &[6, 12, 6])];
    let cut = Recipe { false_facts, ..Recipe::new("llama", 3) }.write(&directory);
    assert!(matches!(LlamaCpp::new().cuts(&cut.manifest), Err(EngineError::BadModel { .. })));
}

/// Facts that would abort llama.cpp, or make a stage differ from the whole model.
#[test]
fn facts_that_are_not_certified_are_refused() {
    let model = |name, index: usize| tiny::models(name).swap_remove(index);
    for (recipe, lie) in [
        (model("llama", 0), count("expert_used_count", 2)),
        (model("llama", 4), count("expert_used_count", 5)),
        (model("llama", 4), count("expert_count", 2000)),
        (model("llama", 4), count("expert_group_count", 2)),
        (model("qwen2", 0), count("attention.head_count", 4)),
        (model("qwen2", 0), count("pooling_type", 3)),
        (model("qwen2", 0), count("expert_count", 4)),
        (model("qwen3", 0), string("rope.scaling.type", "longrope")),
        (model("qwen3", 0), number("rope.scaling.alpha", 1.0)),
        (model("qwen3moe", 0), counts("expert_used_count", &[1, 2, 2, 2])),
        (model("phi3", 0), count("rope.dimension_count", 18)),
        (model("gemma2", 0), number("final_logit_softcapping", 0.0)),
        (model("gemma2", 0), flags("attention.sliding_window_pattern", &[0; 7])),
        (model("granite", 0), counts("deepstack_mapping", &[0, 1, 2, 3])),
        (model("granite", 0), number("logit_scale", 0.0)),
        (model("granite", 0), number("embedding_scale", f32::NAN)),
        (model("gpt-oss", 0), count("attention.sliding_window", 0)),
        (model("deepseek2", 0), count("attention.kv_lora_rank", 33)),
        (model("deepseek2", 0), count("attention.value_length_mla", 0)),
        (model("deepseek2", 0), count("rope.dimension_count", 24)),
        (model("deepseek2", 0), count("expert_shared_count", 0)),
        (model("deepseek2", 0), count("expert_gating_func", 3)),
        (model("deepseek2", 3), count("expert_group_count", 3)),
        (model("deepseek2", 3), count("expert_group_count", 8)),
        (model("deepseek2", 3), count("expert_group_used_count", 4)),
        (model("deepseek2", 0), number("attention.temperature_scale", 0.1)),
        (model("deepseek2", 0), count("nextn_predict_layers", 1)),
        (model("llama4", 0), count("attention.sliding_window", 0)),
        (model("llama4", 0), count("interleave_moe_layer_step", 5000)),
        (model("glm4", 0), counts("rope.dimension_sections", &[4, 2, 2, 0])),
        (model("olmoe", 0), count("attention.head_count_kv", 2)),
        (model("command-r", 0), number("logit_scale", f32::INFINITY)),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let what = format!("{} with {lie:?}", recipe.architecture);
        let refused = LlamaCpp::new().cuts(&Recipe { false_facts: vec![lie], ..recipe }.write(&directory).manifest);
        assert!(matches!(refused, Err(EngineError::BadModel { .. })), "{what}: {refused:?}");
    }
}

#[test]
fn an_output_matrix_must_be_present_exactly_if_llama_cpp_uses_it() {
    for (name, index) in [("gemma2", 0), ("command-r", 0), ("gpt-oss", 0), ("olmo2", 0)] {
        let directory = tempfile::tempdir().expect("a directory");
        let cut = tiny::models(name).swap_remove(index).write(&directory);
        let mut manifest = (*cut.manifest).clone();
        manifest.tied = !manifest.tied;
        assert!(matches!(LlamaCpp::new().cuts(&manifest), Err(EngineError::BadModel { .. })), "{name}");
    }
}

#[test]
fn a_longrope_model_is_limited_to_its_original_context() {
    let directory = tempfile::tempdir().expect("a directory");
    let cut = tiny::models("phi3").swap_remove(2).write(&directory);
    let config = StageConfig { context: 16384, ..CONFIG };
    let stage = LlamaCpp::new().load_stage(cut.all(), &config).expect("a stage");
    assert_eq!(stage.spec().config.context, 4096);
}

#[test]
fn a_model_with_nan_weights_fails_each_step() {
    let directory = tempfile::tempdir().expect("a directory");
    let recipe = Recipe { poisoned: Some("blk.1.ffn_down.weight"), ..Recipe::new("llama", 2) };
    let cut = recipe.write(&directory);
    for source in [cut.all(), cut.stage(LayerRange::new(0, 2), false)] {
        let mut stage = LlamaCpp::new().load_stage(source, &CONFIG).expect("a stage");
        let hidden = vec![0.5; WIDTH as usize];
        let mut out = Vec::new();
        // Position 0 each time: a failed step leaves nothing behind.
        for _ in 0..2 {
            let refused = stage.step(&hidden, &[Row { slot: 0, pos: 0, want: true }], &mut out);
            assert!(matches!(refused, Err(EngineError::Step { .. })), "{refused:?}");
            assert!(out.is_empty());
        }
    }
}

#[test]
fn scales_of_matrices_are_accepted() {
    let directory = tempfile::TempDir::new().expect("a temporary directory");
    let cut = Recipe::new("llama", 1).full().write(&directory);
    let entries: Vec<_> = cut.manifest.shards.iter().flat_map(|shard| &shard.tensors).collect();
    for name in ["blk.0.attn_q.scale", "blk.0.attn_output.input_scale", "blk.0.ffn_down.scale"] {
        let factor = entries.iter().find(|entry| entry.name == name);
        assert_eq!(factor.map(|factor| &factor.dims[..]), Some(&[1][..]), "{name}");
    }
    assert!(LlamaCpp::new().cuts(&cut.manifest).is_ok());
}
