//! Tiny random models of the certified architectures, written as F32 GGUF files: odd layer counts, untied heads, other
//! patterns, heads that differ between layers, biases and rope factors, which the real test models do not have.

use std::path::PathBuf;

use super::whole::Whole;
use super::{Chain, Cut, bits, run, tokens};
use crate::base::LayerRange;
use crate::engine::llama_cpp::LlamaCpp;
use crate::engine::llama_cpp::facts::ty;
use crate::engine::{Engine, EngineError, Row, StageConfig};

const VOCAB: u64 = 96;
const WIDTH: u64 = 64;
const HEAD: u64 = 16;
const FEED: u64 = 96;

/// A model in the making.
struct Recipe {
    architecture: &'static str,
    layers: u32,
    /// Query and key heads, per layer.
    heads: Vec<(u64, u64)>,
    tied: bool,
    /// Further facts: key, type, value.
    facts: Vec<(&'static str, u32, Vec<u8>)>,
    biases: bool,
    rope_factors: bool,
    /// A tensor that holds no numbers.
    poisoned: Option<&'static str>,
}

impl Recipe {
    fn new(architecture: &'static str, layers: u32) -> Self {
        let heads = vec![(4, 2); layers as usize];
        let (facts, poisoned) = (Vec::new(), None);
        Self { architecture, layers, heads, tied: true, facts, biases: false, rope_factors: false, poisoned }
    }

    fn gemma3(layers: u32) -> Self {
        let window = ("attention.sliding_window", ty::U32, 8_u32.to_le_bytes().to_vec());
        Self { facts: vec![window], ..Self::new("gemma3", layers) }
    }

    /// Names and shapes of the tensors.
    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let mut tensors = vec![("token_embd.weight".to_owned(), vec![WIDTH, VOCAB])];
        if !self.tied {
            tensors.push(("output.weight".to_owned(), vec![WIDTH, VOCAB]));
        }
        tensors.push(("output_norm.weight".to_owned(), vec![WIDTH]));
        if self.rope_factors {
            tensors.push(("rope_freqs.weight".to_owned(), vec![HEAD / 2]));
        }
        for (layer, (heads, kv_heads)) in self.heads.iter().enumerate() {
            let (queries, keys) = (heads * HEAD, kv_heads * HEAD);
            let mut add = |part: &str, dims: &[u64]| tensors.push((format!("blk.{layer}.{part}"), dims.to_vec()));
            add("attn_norm.weight", &[WIDTH]);
            add("attn_q.weight", &[WIDTH, queries]);
            add("attn_k.weight", &[WIDTH, keys]);
            add("attn_v.weight", &[WIDTH, keys]);
            add("attn_output.weight", &[queries, WIDTH]);
            add("ffn_norm.weight", &[WIDTH]);
            add("ffn_gate.weight", &[WIDTH, FEED]);
            add("ffn_up.weight", &[WIDTH, FEED]);
            add("ffn_down.weight", &[FEED, WIDTH]);
            if self.architecture == "gemma3" {
                add("attn_q_norm.weight", &[HEAD]);
                add("attn_k_norm.weight", &[HEAD]);
                add("post_attention_norm.weight", &[WIDTH]);
                add("post_ffw_norm.weight", &[WIDTH]);
            }
            if self.biases {
                add("attn_q.bias", &[queries]);
                add("attn_k.bias", &[keys]);
                add("attn_v.bias", &[keys]);
                add("attn_output.bias", &[WIDTH]);
                add("ffn_down.bias", &[WIDTH]);
            }
        }
        tensors
    }

    fn facts(&self) -> Vec<(String, u32, Vec<u8>)> {
        let word = |value: u64| (value as u32).to_le_bytes().to_vec();
        let words = |values: Vec<u64>| {
            let head = [&ty::U32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
            [head, values.into_iter().flat_map(word).collect()].concat()
        };
        let own = |key: &str| format!("{}.{key}", self.architecture);
        let heads = words(self.heads.iter().map(|heads| heads.0).collect());
        let kv_heads = words(self.heads.iter().map(|heads| heads.1).collect());
        let mut facts = vec![
            ("general.architecture".to_owned(), ty::STRING, text(self.architecture)),
            ("tokenizer.ggml.model".to_owned(), ty::STRING, text("no_vocab")),
            (own("vocab_size"), ty::U32, word(VOCAB)),
            (own("block_count"), ty::U32, word(self.layers.into())),
            (own("context_length"), ty::U32, word(4096)),
            (own("embedding_length"), ty::U32, word(WIDTH)),
            (own("feed_forward_length"), ty::U32, word(FEED)),
            (own("attention.head_count"), ty::ARRAY, heads),
            (own("attention.head_count_kv"), ty::ARRAY, kv_heads),
            (own("attention.key_length"), ty::U32, word(HEAD)),
            (own("attention.value_length"), ty::U32, word(HEAD)),
            (own("attention.layer_norm_rms_epsilon"), ty::F32, 1e-6_f32.to_le_bytes().to_vec()),
            (own("rope.dimension_count"), ty::U32, word(HEAD)),
        ];
        facts.extend(self.facts.iter().map(|(key, ty, raw)| (own(key), *ty, raw.clone())));
        facts
    }

    /// Writes the model; the file lives as long as the directory.
    fn write(&self, directory: &tempfile::TempDir) -> Cut {
        let (facts, tensors) = (self.facts(), self.tensors());
        let mut file = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
        file.extend((tensors.len() as u64).to_le_bytes());
        file.extend((facts.len() as u64).to_le_bytes());
        for (key, ty, raw) in facts {
            file.extend([text(&key), ty.to_le_bytes().to_vec(), raw].concat());
        }
        let mut data: Vec<u8> = Vec::new();
        for (seed, (name, dims)) in tensors.iter().enumerate() {
            file.extend(text(name));
            file.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| file.extend(dim.to_le_bytes()));
            file.extend(0_u32.to_le_bytes());
            file.extend((data.len() as u64).to_le_bytes());
            let poisoned = self.poisoned == Some(name.as_str());
            let weights = weights(seed as u32, dims).into_iter().map(|weight| if poisoned { f32::NAN } else { weight });
            data.extend(weights.flat_map(f32::to_le_bytes));
            data.resize(data.len().next_multiple_of(32), 0);
        }
        file.resize(file.len().next_multiple_of(32), 0);
        file.extend(data);
        let path: PathBuf = directory.path().join("model.gguf");
        std::fs::write(&path, file).expect("written");
        Cut::open(&path)
    }
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

/// Norms, biases and factors near 1, matrices small and of both signs.
fn weights(seed: u32, dims: &[u64]) -> Vec<f32> {
    let count = dims.iter().product::<u64>() as usize;
    let unit = tokens(seed + 100, count, 2001).into_iter().map(|value| value as f32 / 1000.0 - 1.0);
    match dims {
        [_] => unit.map(|value| 1.0 + value / 4.0).collect(),
        _ => unit.map(|value| value / 6.0).collect(),
    }
}

/// Every cut into two, and the cut into single layers where it is legal, against llama.cpp on the file.
fn every_cut_equals_the_whole(recipe: &Recipe) {
    let directory = tempfile::tempdir().expect("a directory");
    let cut = recipe.write(&directory);
    let engine = LlamaCpp::new();
    let rules = engine.cuts(&cut.manifest).expect("cut rules");
    let legal = |cuts: &[u32]| {
        let bounds: Vec<u32> = [0].into_iter().chain(cuts.iter().copied()).chain([recipe.layers]).collect();
        let range = |pair: &[u32]| LayerRange::new(pair[0], pair[1]);
        bounds.windows(2).all(|pair| rules.refuses(range(pair)).is_none())
    };
    let config = StageConfig { context: 256, max_sessions: 2, max_rows: 64, threads: 1 };
    let singles: Vec<u32> = (1..recipe.layers).collect();
    let halves = (1..recipe.layers).map(|layer| vec![layer]);
    let mut compared = 0;
    for cuts in halves.chain([vec![], singles]).filter(|cuts| legal(cuts)) {
        let mut whole = Whole::load(&cut.path, &config, None);
        let mut chain = Chain::load(&engine, &cut, &cuts, &config);
        let prompt = run(0, 0, &tokens(1, 40, VOCAB as u32));
        assert!(bits(&whole.step(&prompt)) == bits(&chain.step(&prompt)), "prefill differs, cut at {cuts:?}");
        for (pos, token) in (40..).zip(tokens(2, 6, VOCAB as u32)) {
            let fed = run(0, pos, &[token]);
            assert!(bits(&whole.step(&fed)) == bits(&chain.step(&fed)), "position {pos} differs, cut at {cuts:?}");
        }
        compared += 1;
    }
    assert!(compared > recipe.layers / 2, "cuts were compared");
}

#[test]
fn every_cut_of_small_random_llamas_equals_the_whole() {
    every_cut_equals_the_whole(&Recipe::new("llama", 7));
    every_cut_equals_the_whole(&Recipe { tied: false, biases: true, rope_factors: true, ..Recipe::new("llama", 3) });
}

#[test]
fn layers_that_differ_in_their_heads_are_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let cut = Recipe { heads: vec![(4, 2), (8, 2), (4, 2)], ..Recipe::new("llama", 3) }.write(&directory);
    assert!(matches!(LlamaCpp::new().cuts(&cut.manifest), Err(EngineError::BadModel { .. })));
}

#[test]
fn every_cut_of_small_random_llamas_with_scaled_positions_equals_the_whole() {
    let factor = ("rope.scaling.factor", ty::F32, 4_f32.to_le_bytes().to_vec());
    let original = ("rope.scaling.original_context_length", ty::U32, 16_u32.to_le_bytes().to_vec());
    for kind in ["linear", "yarn", "none"] {
        let facts = vec![("rope.scaling.type", ty::STRING, text(kind)), factor.clone(), original.clone()];
        every_cut_equals_the_whole(&Recipe { facts, ..Recipe::new("llama", 3) });
    }
}

#[test]
fn every_legal_cut_of_small_random_gemmas_equals_the_whole() {
    every_cut_equals_the_whole(&Recipe::gemma3(13));
    every_cut_equals_the_whole(&Recipe { tied: false, ..Recipe::gemma3(7) });
    let mut every_third = Recipe::gemma3(8);
    every_third.facts.push(("attention.sliding_window_pattern", ty::U32, 3_u32.to_le_bytes().to_vec()));
    every_third.facts.push(("final_logit_softcapping", ty::F32, 30_f32.to_le_bytes().to_vec()));
    every_third.facts.push(("rope.freq_base_swa", ty::F32, 5000_f32.to_le_bytes().to_vec()));
    every_cut_equals_the_whole(&every_third);
    let mut odd = Recipe::gemma3(5);
    let pattern = [&ty::BOOL.to_le_bytes()[..], &5_u64.to_le_bytes(), &[0, 1, 1, 0, 1]].concat();
    odd.facts.push(("attention.sliding_window_pattern", ty::ARRAY, pattern));
    every_cut_equals_the_whole(&odd);
}

#[test]
fn a_gemma3_of_62_layers_is_only_run_whole() {
    let directory = tempfile::tempdir().expect("a directory");
    let cut = Recipe::gemma3(62).write(&directory);
    let rules = LlamaCpp::new().cuts(&cut.manifest).expect("cut rules");
    assert!(rules.refuses(LayerRange::new(0, 61)).is_some());
    assert!(rules.refuses(LayerRange::new(0, 62)).is_none());
}

#[test]
fn a_model_that_computes_no_numbers_makes_a_step_error_and_the_session_is_gone() {
    let directory = tempfile::tempdir().expect("a directory");
    let recipe = Recipe { poisoned: Some("blk.1.ffn_down.weight"), ..Recipe::new("llama", 2) };
    let cut = recipe.write(&directory);
    let config = StageConfig { context: 256, max_sessions: 2, max_rows: 64, threads: 1 };
    for source in [cut.all(), cut.stage(LayerRange::new(0, 2), false)] {
        let mut stage = LlamaCpp::new().load_stage(source, &config).expect("a stage");
        let hidden = vec![0.5; WIDTH as usize];
        let mut out = Vec::new();
        // Position 0 is asked for again each time: the step that failed left nothing behind.
        for _ in 0..2 {
            let refused = stage.step(&hidden, &[Row { slot: 0, pos: 0, want: true }], &mut out);
            assert!(matches!(refused, Err(EngineError::Step { .. })), "{refused:?}");
            assert!(out.is_empty());
        }
    }
}
