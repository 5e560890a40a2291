//! The candle engine against independent implementations on the same GGUFs. These tests certify its architectures.
//!
//! If candle has a model with the same operations (llama, qwen2), the logits of every split are identical bit by bit.
//! Otherwise the whole model is compared with llama.cpp and candle's other models within a bound for rounding; the engine's
//! own tests show that a split is identical to the whole.
//!
//! candle's threads spin while they wait: on a busy machine `CANDLE_NUM_THREADS=1` is faster.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{gemma3, quantized_llama, quantized_qwen2, quantized_qwen3};
use swarmllm_core::base::LayerRange;
use swarmllm_core::engine::llama_cpp::LlamaCpp;
use swarmllm_tests::chain::{Chain, Imported};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::reference::{ReferenceModel, likeliest};
use swarmllm_tests::tiny::{self, Tiny};

/// Tokens after the first prompt.
const TOKENS: usize = 64;
/// Tokens after each other prompt, and with one and with three stages, which answer the first prompt only.
const FEW_TOKENS: usize = 16;
/// Prompt length of tiny models, several attention windows, and tokens after it.
const TINY_TOKENS: (usize, usize) = (40, 6);
/// Maximum relative difference of logits of tiny f32 models with only the rounding of sums differing.
const ROUNDING: f32 = 1e-5;
/// The maximum with llama.cpp's f16 GELU table, for few layers and for 62.
const TABLE: f32 = 2e-3;
/// See [`TABLE`].
const DEEP_TABLE: f32 = 1e-2;

const PROMPTS: [&str; 10] = [
    "The capital of France is",
    "Once upon a time there was a small dragon who",
    "Water boils at a temperature of",
    "fn main() {",
    "My favourite season is autumn, because",
    "1 2 3 4 5 6",
    "To bake bread you need flour, water, salt and",
    "The three laws of thermodynamics say that",
    "Dear Sir or Madam, I am writing to you because",
    "In 1969 people first walked on the",
];

/// A step of a whole model: from tokens and the position of the first to the logits of the last.
type Step<'a> = Box<dyn FnMut(&[u32], usize) -> Vec<f32> + 'a>;

/// The device of both: the accelerator in a build with one for candle.
fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| match () {
        () if cfg!(feature = "candle-cuda") => Device::new_cuda(0).unwrap(),
        () if cfg!(feature = "candle-metal") => Device::new_metal(0).unwrap(),
        () => Device::Cpu,
    })
}

fn read(path: &Path) -> (Content, File) {
    let mut file = File::open(path).unwrap();
    (Content::read(&mut file).unwrap(), file)
}

/// A step of a candle model.
fn step_of<'a>(mut forward: impl FnMut(&Tensor, usize) -> candle_core::Result<Tensor> + 'a) -> Step<'a> {
    Box::new(move |tokens, pos| {
        let tokens = Tensor::new(tokens, device()).unwrap().unsqueeze(0).unwrap();
        forward(&tokens, pos).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    })
}

fn candles_llama(path: &Path) -> Step<'static> {
    let (content, mut file) = read(path);
    let mut model = quantized_llama::ModelWeights::from_gguf(content, &mut file, device()).unwrap();
    step_of(move |tokens, pos| model.forward(tokens, pos))
}

fn candles_qwen2(path: &Path) -> Step<'static> {
    let (content, mut file) = read(path);
    let mut model = quantized_qwen2::ModelWeights::from_gguf(content, &mut file, device()).unwrap();
    step_of(move |tokens, pos| model.forward(tokens, pos))
}

fn candles_qwen3(path: &Path) -> Step<'static> {
    let (content, mut file) = read(path);
    let mut model = quantized_qwen3::ModelWeights::from_gguf(content, &mut file, device()).unwrap();
    step_of(move |tokens, pos| model.forward(tokens, pos))
}

/// candle's unquantised Gemma 3: the quantised one uses SiLU instead of GELU, and applies windows in the first step only.
fn candles_gemma3(recipe: &Tiny) -> Step<'static> {
    let config = gemma3::Config {
        attention_bias: false,
        head_dim: recipe.head as usize,
        hidden_activation: Activation::GeluPytorchTanh,
        hidden_size: tiny::WIDTH as usize,
        intermediate_size: tiny::INNER as usize,
        num_attention_heads: tiny::HEADS as usize,
        num_hidden_layers: recipe.layers as usize,
        num_key_value_heads: recipe.kv_heads as usize,
        rms_norm_eps: tiny::EPSILON.into(),
        rope_theta: tiny::ROPE_BASE.into(),
        rope_local_base_freq: 10_000.0,
        vocab_size: tiny::VOCAB as usize,
        final_logit_softcapping: None,
        attn_logit_softcapping: None,
        query_pre_attn_scalar: recipe.head as usize,
        // Longer than any test: candle's window differs from the architecture's.
        sliding_window: 128,
        sliding_window_pattern: 2,
        max_position_embeddings: 256,
    };
    let tensors: HashMap<String, Tensor> = recipe
        .tensors()
        .iter()
        .map(|(name, tensor)| {
            let tensor = tensor.dequantize(device()).unwrap();
            // The norm weights in GGUFs include the 1 that this model adds.
            let tensor = if tensor.rank() == 1 { (tensor - 1.0).unwrap() } else { tensor };
            (candles_name(name), tensor)
        })
        .collect();
    let variables = VarBuilder::from_tensors(tensors, DType::F32, device());
    let mut model = gemma3::Model::new(false, &config, variables).unwrap();
    step_of(move |tokens, pos| model.forward(tokens, pos))
}

/// candle's name for a GGUF tensor of Gemma 3.
fn candles_name(name: &str) -> String {
    let part = |part: &str| match part {
        "attn_norm.weight" => "input_layernorm.weight".to_owned(),
        "post_attention_norm.weight" => "post_attention_layernorm.weight".to_owned(),
        "ffn_norm.weight" => "pre_feedforward_layernorm.weight".to_owned(),
        "post_ffw_norm.weight" => "post_feedforward_layernorm.weight".to_owned(),
        "attn_output.weight" => "self_attn.o_proj.weight".to_owned(),
        "attn_q_norm.weight" => "self_attn.q_norm.weight".to_owned(),
        "attn_k_norm.weight" => "self_attn.k_norm.weight".to_owned(),
        attn if attn.starts_with("attn_") => attn.replace("attn_", "self_attn.").replace(".weight", "_proj.weight"),
        ffn => ffn.replace("ffn_", "mlp.").replace(".weight", "_proj.weight"),
    };
    match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
        Some((layer, rest)) => format!("model.layers.{layer}.{}", part(rest)),
        None if name == "output_norm.weight" => "model.norm.weight".to_owned(),
        None => "model.embed_tokens.weight".to_owned(),
    }
}

/// Greedy tokens with the bits of their logits.
type Greedy = Vec<(u32, Vec<u32>)>;

/// The prompt in one step, then `count` greedy tokens, one per step. `step(tokens, pos)` returns the last token's logits.
fn greedy(prompt: &[u32], count: usize, mut step: impl FnMut(&[u32], usize) -> Vec<f32>) -> Greedy {
    let (mut logits, mut given) = (step(prompt, 0), Vec::new());
    for pos in prompt.len()..prompt.len() + count {
        let token = likeliest(&logits);
        given.push((token, logits.into_iter().map(f32::to_bits).collect()));
        logits = step(&[token], pos);
    }
    given
}

fn staged(chain: &mut Chain, prompt: &[u32], count: usize) -> Greedy {
    chain.clear();
    greedy(prompt, count, |tokens, _| chain.feed(tokens))
}

#[test]
fn every_split_has_the_logits_of_candles_llama() {
    let path = TestModel::SmolLm2.path();
    let model = Imported::open(&path);
    let tokenizer = model.tokenizer();
    let mut reference = candles_llama(&path);
    let cuts: [&[u32]; 3] = [&[], &[15], &[10, 20]];
    let mut chains = cuts.map(|cuts| model.chain(cuts));

    for (index, prompt) in PROMPTS.iter().enumerate() {
        let tokens = tokenizer.encode(prompt, true, false).unwrap();
        let length = if index == 0 { TOKENS } else { FEW_TOKENS };
        let expected = greedy(&tokens, length, &mut reference);
        for (stages, chain) in (1..).zip(&mut chains) {
            let count = match (stages, index) {
                (2, _) => length,
                (_, 0) => FEW_TOKENS,
                _ => continue,
            };
            let given = staged(chain, &tokens, count);
            assert_eq!(given.len(), count);
            for (step, (given, expected)) in given.iter().zip(&expected).enumerate() {
                assert!(given == expected, "`{prompt}`, {stages} stages, token {step}: {} {}", given.0, expected.0);
            }
        }
    }
}

/// A tiny model, written and imported, with the directory of its file.
fn written(recipe: &Tiny) -> (Imported, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    recipe.write(&directory.path().join(FILE));
    (Imported::open(&directory.path().join(FILE)), directory)
}

const FILE: &str = "tiny.gguf";

#[test]
fn every_logit_of_every_split_is_that_of_candles_whole_qwen2() {
    let quantised = Tiny { ty: GgmlDType::Q8_0, ..Tiny::new("qwen2") };
    for recipe in [Tiny { tied: false, ..Tiny::new("qwen2") }, quantised] {
        let (model, directory) = written(&recipe);
        let mut reference = candles_qwen2(&directory.path().join(FILE));
        let (prompt, count) = (tiny::tokens(1, TINY_TOKENS.0), TINY_TOKENS.1);
        let expected = greedy(&prompt, count, &mut reference);
        for cuts in [&[][..], &[1], &[2], &[1, 2]] {
            let given = staged(&mut model.chain(cuts), &prompt, count);
            assert!(given == expected, "{:?}, cuts {cuts:?}", recipe.ty);
        }
    }
}

/// The maximum difference of logits relative to the largest logit, over a prompt's last token and the tokens after it.
fn distance(model: &Imported, mut reference: impl FnMut(&[u32], usize) -> Vec<f32>) -> f32 {
    let mut chain = model.chain(&[1]);
    let text = tiny::tokens(1, TINY_TOKENS.0 + TINY_TOKENS.1);
    let (prompt, rest) = text.split_at(TINY_TOKENS.0);
    let mut worst = 0.0_f32;
    let mut compare = |tokens: &[u32], pos: usize| {
        let (given, expected) = (chain.feed(tokens), reference(tokens, pos));
        assert_eq!(given.len(), expected.len());
        let largest = expected.iter().fold(0.0_f32, |largest, logit| largest.max(logit.abs()));
        let apart = given.iter().zip(&expected).map(|(given, expected)| (given - expected).abs());
        worst = apart.fold(worst, |worst, apart| worst.max(apart / largest));
    };
    compare(prompt, 0);
    for (pos, token) in (prompt.len()..).zip(rest) {
        compare(&[*token], pos);
    }
    worst
}

/// Asserts that llama.cpp computes the same logits within `bound`.
fn agrees_with_llama_cpp(recipe: &Tiny, bound: f32) {
    let (model, directory) = written(recipe);
    let whole = ReferenceModel::load(&directory.path().join(FILE), 1);
    let mut session = whole.precise_session(256);
    let distance = distance(&model, |tokens, _| session.logits(tokens).to_vec());
    assert!(distance < bound, "{recipe:?}: {distance}");
}

#[test]
fn llama_cpp_computes_the_same_llamas() {
    agrees_with_llama_cpp(&Tiny::new("llama"), ROUNDING);
    // Mistral Nemo's heads are wider than width / heads.
    agrees_with_llama_cpp(&Tiny { head: 32, rope_factors: true, tied: false, ..Tiny::new("llama") }, ROUNDING);
    for kind in ["linear", "none"] {
        let facts =
            vec![("rope.scaling.type", Value::String(kind.to_owned())), ("rope.scaling.factor", Value::F32(4.0))];
        agrees_with_llama_cpp(&Tiny { facts, ..Tiny::new("llama") }, ROUNDING);
    }
}

#[test]
fn llama_cpp_computes_the_same_qwens() {
    for architecture in ["qwen2", "qwen3"] {
        agrees_with_llama_cpp(&Tiny::new(architecture), ROUNDING);
        agrees_with_llama_cpp(&Tiny { tied: false, layers: 2, ..Tiny::new(architecture) }, ROUNDING);
    }
    agrees_with_llama_cpp(&Tiny { head: 32, ..Tiny::new("qwen3") }, ROUNDING);
}

#[test]
fn llama_cpp_computes_the_same_gemmas() {
    let window = ("attention.sliding_window", Value::U32(8));
    let base = Tiny { head: 32, layers: 7, facts: vec![window], ..Tiny::new("gemma3") };
    agrees_with_llama_cpp(&base, TABLE);
    let further =
        |facts: Vec<(&'static str, Value)>| Tiny { facts: [base.facts.clone(), facts].concat(), ..base.clone() };
    let mut third = further(vec![
        ("attention.sliding_window_pattern", Value::U32(3)),
        ("rope.freq_base_swa", Value::F32(500.0)),
        ("rope.scaling.type", Value::String("linear".to_owned())),
        ("rope.scaling.factor", Value::F32(8.0)),
    ]);
    agrees_with_llama_cpp(&third, TABLE);
    third.facts.push(("final_logit_softcapping", Value::F32(1.0)));
    third.tied = false;
    agrees_with_llama_cpp(&third, TABLE);
    let pattern = [false, true, true, false, true, true, false].map(Value::Bool);
    agrees_with_llama_cpp(&further(vec![("attention.sliding_window_pattern", Value::Array(pattern.into()))]), TABLE);
    // The largest Gemma 3, recognised by its number of layers, has another attention scale.
    agrees_with_llama_cpp(&Tiny { layers: 62, ..base.clone() }, DEEP_TABLE);
}

#[test]
fn candles_other_models_compute_the_same_qwen3_and_gemma3() {
    let qwen = Tiny { head: 32, ..Tiny::new("qwen3") };
    let (model, directory) = written(&qwen);
    let apart = distance(&model, candles_qwen3(&directory.path().join(FILE)));
    assert!(apart < ROUNDING, "qwen3: {apart}");

    let facts =
        vec![("attention.sliding_window", Value::U32(128)), ("attention.sliding_window_pattern", Value::U32(2))];
    // candle's own model fails with several key heads.
    let gemma = Tiny { head: 32, kv_heads: 1, facts, ..Tiny::new("gemma3") };
    let (model, _directory) = written(&gemma);
    let apart = distance(&model, candles_gemma3(&gemma));
    assert!(apart < ROUNDING, "gemma3: {apart}");
}

#[test]
fn candle_cuts_anywhere_and_refuses_unsupported_models() {
    let window = ("attention.sliding_window", Value::U32(8));
    let (model, _directory) = written(&Tiny { facts: vec![window], ..Tiny::new("gemma3") });
    let rules = model.cuts().unwrap();
    assert!((0..3).all(|layer| rules.violation(LayerRange::new(layer, layer + 1)).is_none()));
    let (model, _directory) = written(&Tiny::new("gemma2"));
    assert!(model.cuts().is_err());
}

#[test]
fn embeddings_of_the_real_gemma3_are_llama_cpps_bit_by_bit() {
    let model = Imported::open(&TestModel::Gemma3.path());
    let tokens: Vec<u32> = (0..600).map(|index| index * 431 % model.manifest.vocab).collect();
    let (mut given, mut expected) = (Vec::new(), Vec::new());
    model.embedder().embed(&tokens, &mut given).unwrap();
    model.embedder_of(&LlamaCpp::new()).embed(&tokens, &mut expected).unwrap();
    let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<u32>>();
    assert!(bits(&given) == bits(&expected));
}

/// Log-probabilities of a row of logits.
fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = f64::from(logits.iter().copied().fold(f32::MIN, f32::max));
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - max - sum.ln()).collect()
}

/// Differences of logits from expected ones.
#[derive(Debug, Default)]
struct Apart {
    rows: u32,
    /// Rows with the expected most likely token.
    same: u32,
    /// Sum of the Kullback-Leibler divergences.
    divergence: f64,
    /// Maximum expected log-probability gap between the expected and the chosen token.
    gap: f64,
}

impl Apart {
    fn add(&mut self, expected: &[f32], given: &[f32]) {
        let (best, chosen) = (likeliest(expected) as usize, likeliest(given) as usize);
        let (expected, given) = (log_probabilities(expected), log_probabilities(given));
        self.rows += 1;
        self.same += u32::from(best == chosen);
        self.gap = self.gap.max(expected[best] - expected[chosen]);
        self.divergence += expected.iter().zip(&given).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    }
}

/// The real model's weights and activations have few bits, so any other order of sums changes its logits: llama.cpp itself
/// chooses other tokens with flash attention than without. candle's difference must be of that order.
#[test]
fn the_real_gemma3_is_as_near_to_llama_cpps_as_that_is_to_itself() {
    let path = TestModel::Gemma3.path();
    let (model, whole) = (Imported::open(&path), ReferenceModel::load(&path, 1));
    let (mut chain, tokenizer) = (model.chain(&[7]), model.tokenizer());
    let (mut candle, mut flash) = (Apart::default(), Apart::default());
    for prompt in PROMPTS {
        chain.clear();
        let (mut precise, mut fast) = (whole.precise_session(256), whole.session(256));
        let mut next = whole.tokenize(prompt);
        assert_eq!(next, tokenizer.encode(prompt, true, false).unwrap());
        for _ in 0..FEW_TOKENS {
            let expected = precise.logits(&next).to_vec();
            candle.add(&expected, &chain.feed(&next));
            flash.add(&expected, fast.logits(&next));
            // All continue with the same token.
            next = vec![likeliest(&expected)];
        }
    }
    assert!(candle.divergence < 2.0 * flash.divergence, "candle {candle:?}, flash attention {flash:?}");
    assert!(candle.same * 10 > candle.rows * 9 && candle.gap < 1.0, "{candle:?}");
}
