//! The candle engine, in one, two and three stages, against candle's own whole model on the same GGUF: every logit of
//! every greedy token is equal bit by bit. This is what certifies an architecture for that engine.
//!
//! candle's threads spin while they wait for each other: on a busy machine `CANDLE_NUM_THREADS=1` is faster.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use swarmllm_core::base::LayerRange;
use swarmllm_core::engine::candle::Candle;
use swarmllm_core::engine::{Embedder, Engine, Row, Stage, StageConfig};
use swarmllm_core::model::{EmbeddingSource, Fact, Manifest, SourceTensor, StageSource, TensorEntry};

const MODEL: &str = "SWARMLLM_TEST_SMOLLM2";
/// Tokens after the first prompt.
const TOKENS: usize = 64;
/// Tokens after each other prompt, and in one and in three stages, which answer the first prompt only.
const FEW_TOKENS: usize = 16;

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

/// The GGUF as sources for an engine, read with candle's own header reader.
struct Model {
    manifest: Arc<Manifest>,
    tensors: BTreeMap<String, SourceTensor>,
    vocabulary: Vec<String>,
}

impl Model {
    fn open(path: &str) -> Self {
        let mut file = File::open(path).unwrap();
        let content = Content::read(&mut file).unwrap();
        let file = Arc::new(file);
        let number = |key: &str| content.metadata[key].to_u32().unwrap();
        let facts = content.metadata.iter().filter_map(|(key, value)| fact(key, value)).collect();
        let Value::Array(tokens) = &content.metadata["tokenizer.ggml.tokens"] else { panic!("no vocabulary") };
        let manifest = Manifest {
            format: Manifest::FORMAT,
            name: "SmolLM2".to_owned(),
            architecture: "llama".to_owned(),
            layers: number("llama.block_count"),
            width: number("llama.embedding_length"),
            vocab: tokens.len() as u32,
            context: number("llama.context_length"),
            tied: !content.tensor_infos.contains_key("output.weight"),
            alignment: 32,
            facts,
            shards: Vec::new(),
        };
        let vocabulary = tokens.iter().map(|token| token.to_string().unwrap().clone()).collect();
        let tensors = content.tensor_infos.iter().map(|(name, info)| {
            let dims: Vec<u64> = info.shape.dims().iter().rev().map(|&dim| dim as u64).collect();
            let elements = dims.iter().product::<u64>();
            let size = elements / info.ggml_dtype.block_size() as u64 * info.ggml_dtype.type_size() as u64;
            let entry = TensorEntry { name: name.clone(), ty: ggml_type(info.ggml_dtype), dims, offset: 0, size };
            let offset = content.tensor_data_offset + info.offset;
            (name.clone(), SourceTensor { entry, file: file.clone(), offset })
        });
        Self { tensors: tensors.collect(), manifest: Arc::new(manifest), vocabulary }
    }

    /// Stages between `cuts`, the last with the head.
    fn chain(&self, cuts: &[u32]) -> Vec<Box<dyn Stage>> {
        let layers = self.manifest.layers;
        let bounds: Vec<u32> = [0].into_iter().chain(cuts.iter().copied()).chain([layers]).collect();
        bounds.windows(2).map(|pair| self.stage(LayerRange::new(pair[0], pair[1]))).collect()
    }

    fn stage(&self, layers: LayerRange) -> Box<dyn Stage> {
        let head = layers.end == self.manifest.layers;
        let belongs = |name: &str| match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, _)) => (layers.start..layers.end).contains(&layer.parse().unwrap()),
            None => head && (name != "token_embd.weight" || self.manifest.tied),
        };
        let tensors = self.tensors.values().filter(|tensor| belongs(&tensor.entry.name)).cloned().collect();
        let source = StageSource { manifest: self.manifest.clone(), layers, head, tensors };
        let config = StageConfig { context: 1024, ..StageConfig::default() };
        Candle::new().load_stage(source, &config).unwrap()
    }

    fn embedder(&self) -> Arc<dyn Embedder> {
        let tensor = self.tensors["token_embd.weight"].clone();
        Candle::new().load_embedder(EmbeddingSource { manifest: self.manifest.clone(), tensor }).unwrap()
    }

    /// Longest match, which gives valid tokens, if not always those of the real tokenizer.
    fn tokenize(&self, text: &str) -> Vec<u32> {
        let text = text.replace(' ', "Ġ");
        let mut rest = text.as_str();
        let mut tokens = Vec::new();
        while !rest.is_empty() {
            let fits = |(_, token): &(usize, &String)| !token.is_empty() && rest.starts_with(token.as_str());
            let (id, token) =
                self.vocabulary.iter().enumerate().filter(fits).max_by_key(|(_, token)| token.len()).unwrap();
            tokens.push(id as u32);
            rest = &rest[token.len()..];
        }
        tokens
    }
}

fn fact(key: &str, value: &Value) -> Option<Fact> {
    let (ty, raw) = match value {
        Value::U32(value) => (4, value.to_le_bytes().to_vec()),
        Value::F32(value) => (6, value.to_le_bytes().to_vec()),
        _ => return None,
    };
    key.starts_with("llama.").then(|| Fact { key: key.to_owned(), ty, raw })
}

fn ggml_type(dtype: GgmlDType) -> u32 {
    match dtype {
        GgmlDType::F32 => 0,
        GgmlDType::Q4_1 => 3,
        GgmlDType::Q8_0 => 8,
        other => panic!("the test model has no {other:?}"),
    }
}

fn argmax(logits: &[f32]) -> u32 {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    logits.iter().position(|&logit| logit == max).unwrap() as u32
}

/// Greedy tokens, each with the bits of the logits that it was chosen from.
type Greedy = Vec<(u32, Vec<u32>)>;

/// The prompt in one step, then `count` greedy tokens one a step. `forward(tokens, pos)` gives the last token's logits.
fn greedy(prompt: &[u32], count: usize, mut forward: impl FnMut(&[u32], usize) -> Vec<f32>) -> Greedy {
    let (mut logits, mut given) = (forward(prompt, 0), Vec::new());
    for pos in prompt.len()..prompt.len() + count {
        let token = argmax(&logits);
        given.push((token, logits.into_iter().map(f32::to_bits).collect()));
        logits = forward(&[token], pos);
    }
    given
}

fn whole(model: &mut ModelWeights, prompt: &[u32], count: usize) -> Greedy {
    greedy(prompt, count, |tokens, pos| {
        let tokens = Tensor::new(tokens, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        model.forward(&tokens, pos).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    })
}

fn staged(chain: &mut [Box<dyn Stage>], embedder: &dyn Embedder, prompt: &[u32], count: usize) -> Greedy {
    chain.iter_mut().for_each(|stage| stage.release(0));
    greedy(prompt, count, |tokens, pos| {
        let last = pos + tokens.len() - 1;
        let row = |pos: usize| Row { slot: 0, pos: pos as u32, want: pos == last };
        let rows: Vec<Row> = (pos..=last).map(row).collect();
        let (mut hidden, mut out) = (Vec::new(), Vec::new());
        embedder.embed(tokens, &mut hidden).unwrap();
        for stage in chain.iter_mut() {
            stage.step(&hidden, &rows, &mut out).unwrap();
            std::mem::swap(&mut hidden, &mut out);
        }
        hidden
    })
}

#[test]
fn every_logit_of_every_split_is_that_of_candles_whole_model() {
    let Ok(path) = std::env::var(MODEL) else {
        eprintln!("SKIPPED: {MODEL} names no model");
        return;
    };
    let model = Model::open(&path);
    let mut file = File::open(&path).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut reference = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let embedder = model.embedder();
    let cuts: [&[u32]; 3] = [&[], &[15], &[10, 20]];
    let mut chains = cuts.map(|cuts| model.chain(cuts));

    for (index, prompt) in PROMPTS.iter().enumerate() {
        let tokens = model.tokenize(prompt);
        let length = if index == 0 { TOKENS } else { FEW_TOKENS };
        let expected = whole(&mut reference, &tokens, length);
        for (stages, chain) in (1..).zip(&mut chains) {
            let count = match (stages, index) {
                (2, _) => length,
                (_, 0) => FEW_TOKENS,
                _ => continue,
            };
            let given = staged(chain, &*embedder, &tokens, count);
            assert_eq!(given.len(), count);
            for (step, (given, expected)) in given.iter().zip(&expected).enumerate() {
                assert!(given == expected, "`{prompt}`, {stages} stages, token {step}: {} {}", given.0, expected.0);
            }
        }
    }
}
