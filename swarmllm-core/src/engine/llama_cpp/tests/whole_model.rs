//! Test-only: the whole model on llama.cpp's standard path from tokens to logits.

use std::ffi::CString;
use std::path::Path;
use std::ptr::NonNull;

use llama_cpp_sys_2 as ll;

use super::TokenRow;
use crate::engine::llama_cpp::log;
use crate::engine::llama_cpp::pool::Pools;
use crate::engine::{KvType, StageConfig};

/// The original file in llama.cpp.
pub(super) struct WholeModel {
    model: *mut ll::llama_model,
    pub context: *mut ll::llama_context,
    vocab: usize,
    width: usize,
    _pool: Option<std::sync::Arc<crate::engine::llama_cpp::pool::Pool>>,
}

impl WholeModel {
    /// Loads with llama.cpp's defaults, except for sizes and a stage's fixed settings.
    pub fn load(path: &Path, config: &StageConfig, pools: Option<&Pools>) -> Self {
        Self::load_with_layout(path, config, pools, true)
    }

    /// Like [`load`](Self::load); without `repack` all weights stay unpacked.
    pub fn load_with_layout(path: &Path, config: &StageConfig, pools: Option<&Pools>, repack: bool) -> Self {
        log::init();
        let path = CString::new(path.to_str().expect("text")).expect("no zero");
        let pool = pools.map(|pools| pools.get(config.threads).expect("a pool"));
        // SAFETY: a test; the calls are in the order that llama.h shows.
        unsafe {
            let mut params = ll::llama_model_default_params();
            params.use_extra_bufts = repack;
            let load = || ll::llama_model_load_from_file(path.as_ptr(), params);
            let model = log::explain(|| NonNull::new(load())).expect("the whole model loads").as_ptr();
            let mut params = ll::llama_context_default_params();
            params.n_ctx = config.context * config.max_sessions;
            params.n_batch = config.max_rows;
            params.n_ubatch = config.max_rows;
            params.n_seq_max = config.max_sessions;
            params.n_threads = config.threads as i32;
            params.n_threads_batch = config.threads as i32;
            if config.kv == KvType::Q8 {
                (params.type_k, params.type_v) = (ll::GGML_TYPE_Q8_0, ll::GGML_TYPE_Q8_0);
            }
            params.kv_unified = false;
            params.flash_attn_type = ll::LLAMA_FLASH_ATTN_TYPE_ENABLED;
            let context = ll::llama_init_from_model(model, params);
            assert!(!context.is_null(), "the whole context is made");
            if let Some(pool) = &pool {
                ll::llama_attach_threadpool(context, pool.raw(), pool.raw());
            }
            let vocab = ll::llama_vocab_n_tokens(ll::llama_model_get_vocab(model)) as usize;
            let width = ll::llama_model_n_embd(model) as usize;
            Self { model, context, vocab, width, _pool: pool }
        }
    }

    /// The logits of the wanted rows.
    pub fn step(&mut self, fed: &[TokenRow]) -> Vec<f32> {
        let vocab = self.vocab;
        // SAFETY: a test; the row was flagged as an output, and lives until the next step.
        self.compute(fed, |context, index| unsafe {
            std::slice::from_raw_parts(ll::llama_get_logits_ith(context, index), vocab)
        })
    }

    /// llama.cpp's embeddings of the rows, all of which must have output.
    pub fn states(&mut self, fed: &[TokenRow]) -> Vec<f32> {
        let width = self.width;
        // SAFETY: a test.
        unsafe { ll::llama_set_embeddings(self.context, true) };
        // SAFETY: as for logits.
        let states = self.compute(fed, |context, index| unsafe {
            std::slice::from_raw_parts(ll::llama_get_embeddings_ith(context, index), width)
        });
        // SAFETY: a test.
        unsafe { ll::llama_set_embeddings(self.context, false) };
        states
    }

    fn compute<'a>(&mut self, fed: &[TokenRow], row: impl Fn(*mut ll::llama_context, i32) -> &'a [f32]) -> Vec<f32> {
        let mut tokens: Vec<i32> = fed.iter().map(|row| row.token as i32).collect();
        let mut positions: Vec<i32> = fed.iter().map(|row| row.pos as i32).collect();
        let mut sessions: Vec<i32> = fed.iter().map(|row| row.slot as i32).collect();
        let mut counts = vec![1; fed.len()];
        let mut pointers: Vec<*mut i32> = sessions.iter_mut().map(|session| session as *mut i32).collect();
        let mut outputs: Vec<i8> = fed.iter().map(|row| i8::from(row.want)).collect();
        let batch = ll::llama_batch {
            n_tokens: fed.len() as i32,
            token: tokens.as_mut_ptr(),
            embd: std::ptr::null_mut(),
            pos: positions.as_mut_ptr(),
            n_seq_id: counts.as_mut_ptr(),
            seq_id: pointers.as_mut_ptr(),
            logits: outputs.as_mut_ptr(),
        };
        let mut out = Vec::new();
        // SAFETY: a test; the arrays live until the call returns.
        assert_eq!(unsafe { ll::llama_decode(self.context, batch) }, 0);
        for (index, _) in fed.iter().enumerate().filter(|(_, row)| row.want) {
            out.extend_from_slice(row(self.context, index as i32));
        }
        out
    }

    pub fn truncate(&mut self, slot: u32, len: u32) {
        // SAFETY: a test.
        assert!(unsafe { ll::llama_memory_seq_rm(ll::llama_get_memory(self.context), slot as i32, len as i32, -1) });
    }
}

impl Drop for WholeModel {
    fn drop(&mut self) {
        // SAFETY: a test; context before model.
        unsafe {
            ll::llama_free(self.context);
            ll::llama_model_free(self.model);
        }
    }
}
