//! The reference: llama.cpp with the original GGUF, through the `llama-cpp-2` wrapper.

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::OnceLock;

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::{KvCacheType, LlamaContextParams, LlamaPoolingType};
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;

/// Rows of one prefill chunk; the same as a stage's, because results depend on the shapes of steps.
pub const CHUNK: u32 = 512;
/// `LLAMA_FLASH_ATTN_TYPE_ENABLED`.
const FLASH_ATTENTION: i32 = 1;
/// `LLAMA_FLASH_ATTN_TYPE_DISABLED`.
const PLAIN_ATTENTION: i32 = 0;

/// Layers on an accelerator, as in stages: rounding depends on the accelerator.
const GPU_LAYERS: u32 = if cfg!(any(feature = "cuda", feature = "metal", feature = "vulkan")) { u32::MAX } else { 0 };

/// Never dropped: freeing the backend would also free it for the engine in the same process.
fn backend() -> &'static LlamaBackend {
    static BACKEND: OnceLock<LlamaBackend> = OnceLock::new();
    BACKEND.get_or_init(|| {
        // Before any load: both must use the same kernels.
        swarmllm_core::engine::llama_cpp::start();
        let mut backend = LlamaBackend::init().expect("llama.cpp starts once per process");
        backend.void_logs();
        backend
    })
}

/// A model in the reference.
pub struct ReferenceModel {
    model: LlamaModel,
    threads: u32,
}

impl ReferenceModel {
    /// Loads the GGUF; contexts compute with `threads`.
    pub fn load(path: &Path, threads: u32) -> ReferenceModel {
        let params = LlamaModelParams::default().with_n_gpu_layers(GPU_LAYERS);
        let model = LlamaModel::load_from_file(backend(), path, &params).expect("llama.cpp loads the test model");
        ReferenceModel { model, threads }
    }

    /// llama.cpp's tokens of a text, with the model's leading special tokens.
    pub fn tokenize(&self, text: &str) -> Vec<u32> {
        self.model.vocab().tokenize(text.as_bytes(), true, false).into_iter().map(|token| token.0 as u32).collect()
    }

    /// llama.cpp's tokens of a rendered prompt: parses special tokens in the text and adds none.
    pub fn tokenize_rendered(&self, text: &str) -> Vec<u32> {
        self.model.vocab().tokenize(text.as_bytes(), false, true).into_iter().map(|token| token.0 as u32).collect()
    }

    /// Whether the token ends an answer.
    pub fn ends(&self, token: u32) -> bool {
        self.model.vocab().is_eog(LlamaToken(token as i32))
    }

    /// An empty context of `cells` tokens.
    pub fn session(&self, cells: u32) -> ReferenceSession<'_> {
        self.session_with(cells, KvCacheType::F16, FLASH_ATTENTION)
    }

    /// An empty context of `cells` tokens with keys and values in f32, for comparison with an engine that does the same.
    /// Without flash attention, which would round them to f16.
    pub fn precise_session(&self, cells: u32) -> ReferenceSession<'_> {
        self.session_with(cells, KvCacheType::F32, PLAIN_ATTENTION)
    }

    fn session_with(&self, cells: u32, kv: KvCacheType, attention: i32) -> ReferenceSession<'_> {
        let params = self.params(cells, kv, attention);
        let context = self.model.new_context(backend(), params).expect("llama.cpp makes a context");
        ReferenceSession { context, batch: LlamaBatch::new(CHUNK as usize, 1), position: 0 }
    }

    fn params(&self, cells: u32, kv: KvCacheType, attention: i32) -> LlamaContextParams {
        LlamaContextParams::default()
            .with_type_k(kv)
            .with_type_v(kv)
            .with_n_ctx(NonZeroU32::new(cells))
            .with_n_batch(CHUNK)
            .with_n_ubatch(CHUNK)
            .with_n_seq_max(1)
            .with_n_threads(self.threads as i32)
            .with_n_threads_batch(self.threads as i32)
            .with_flash_attention_policy(attention)
    }

    /// At most `count` greedy tokens after `prompt`, without the end-of-generation token.
    pub fn greedy(&self, prompt: &[u32], count: u32) -> Vec<u32> {
        let mut session = self.session(prompt.len() as u32 + count);
        let mut answer = Vec::new();
        let mut next = session.feed(prompt);
        while !self.ends(next) {
            answer.push(next);
            if answer.len() == count as usize {
                break;
            }
            next = session.feed(&[next]);
        }
        answer
    }

    /// llama.cpp's embedding of a text of at most [`CHUNK`] tokens: the mean of the states, or the last one.
    pub fn embedding(&self, tokens: &[u32], last: bool) -> Vec<f32> {
        assert!(tokens.len() <= CHUNK as usize, "{} tokens are more than a chunk", tokens.len());
        let params = self
            .params(CHUNK, KvCacheType::F16, FLASH_ATTENTION)
            .with_embeddings(true)
            .with_pooling_type(if last { LlamaPoolingType::Last } else { LlamaPoolingType::Mean });
        let mut context = self.model.new_context(backend(), params).expect("llama.cpp makes a context");
        let mut batch = LlamaBatch::new(CHUNK as usize, 1);
        for (token, position) in tokens.iter().zip(0..) {
            batch.add(LlamaToken(*token as i32), position, &[0], true).expect("a chunk fits the batch");
        }
        context.decode(&mut batch).expect("llama.cpp computes a step");
        context.embeddings_seq_ith(0).expect("an embedding").to_vec()
    }

    /// Greedy answers to texts, see [`ReferenceModel::greedy`].
    pub fn answers(&self, texts: &[String], count: u32) -> Vec<Vec<u32>> {
        texts.iter().map(|text| self.greedy(&self.tokenize(text), count)).collect()
    }
}

/// A sequence of a reference model.
pub struct ReferenceSession<'m> {
    context: LlamaContext<'m>,
    batch: LlamaBatch<'static>,
    position: i32,
}

impl ReferenceSession<'_> {
    /// Computes `tokens` in chunks of [`CHUNK`] and returns the most likely next token; the lowest id of equal ones.
    pub fn feed(&mut self, tokens: &[u32]) -> u32 {
        likeliest(self.logits(tokens))
    }

    /// Computes `tokens` in chunks of [`CHUNK`] and returns the logits of the last.
    pub fn logits(&mut self, tokens: &[u32]) -> &[f32] {
        let mut fed = 0;
        for chunk in tokens.chunks(CHUNK as usize) {
            self.batch.clear();
            for &token in chunk {
                fed += 1;
                let last = fed == tokens.len();
                self.batch.add(LlamaToken(token as i32), self.position, &[0], last).expect("a chunk fits the batch");
                self.position += 1;
            }
            self.context.decode(&mut self.batch).expect("llama.cpp computes a step");
        }
        self.context.get_logits_ith(self.batch.n_tokens() - 1)
    }

    /// Clears the sequence.
    pub fn clear(&mut self) {
        self.context.clear_kv_cache();
        self.position = 0;
    }
}

/// Index of the largest logit; the lowest of equal ones.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}
