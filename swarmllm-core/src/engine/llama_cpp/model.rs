//! Owned llama.cpp models and contexts.

use std::ptr::NonNull;

use llama_cpp_sys_2 as ll;

use super::cancellation::Cancellation;
use super::capture::Capture;
use super::file::with_file;
use super::huge_pages::HugePages;
use super::image::Image;
use super::log::explain;
use super::pool::Pool;

/// A loaded model.
pub(super) struct Model(NonNull<ll::llama_model>);

impl Model {
    /// Loads a stage image, with the last `gpu_layers` layers on an accelerator. The error is llama.cpp's, or that of
    /// reading a shard.
    pub fn load(image: &Image, gpu_layers: i32) -> Result<Self, String> {
        let load = || {
            with_file(image, |file| {
                let mut huge_pages = HugePages::before_load();
                // SAFETY: the stream is open for as long as the call; the parameters are llama.cpp's defaults, changed
                // only in plain fields and in the progress callback, whose data outlive the call.
                NonNull::new(unsafe {
                    let mut params = ll::llama_model_default_params();
                    params.load_mode = ll::LLAMA_LOAD_MODE_NONE;
                    params.n_gpu_layers = gpu_layers;
                    params.progress_callback = Some(HugePages::on_progress);
                    params.progress_callback_user_data = (&raw mut huge_pages).cast();
                    ll::llama_model_load_from_file_ptr(file.cast(), params)
                })
            })
        };
        let mut failure = None;
        let loaded = explain(|| {
            load().unwrap_or_else(|error| {
                failure = Some(error);
                None
            })
        });
        match failure {
            Some(error) => Err(format!("a shard could not be read: {error}")),
            None => loaded.map(Self),
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: the model is ours, and its context is dropped before it.
        unsafe { ll::llama_model_free(self.0.as_ptr()) };
    }
}

/// Parameters of a context.
pub(super) struct ContextParams {
    /// KV cells, in tokens; llama.cpp rounds them up to 256.
    pub cells: u32,
    /// Most rows of one step.
    pub rows: u32,
    /// Most rows of one step with logits; 0 for all.
    pub outputs: u32,
    pub sessions: u32,
    pub threads: u32,
    /// Type of the KV cache.
    pub kv: ll::ggml_type,
    /// Whether an accelerator is used.
    pub offload: bool,
}

/// A context. Fields drop in order: the context before the values that it points to.
pub(super) struct Context {
    raw: NonNull<ll::llama_context>,
    /// Boxed, because the context stores the address.
    pub capture: Box<Capture>,
    /// Boxed, because the context stores the address.
    pub cancellation: Box<Cancellation>,
    _model: Model,
}

impl Context {
    /// Creates a context of `model` that computes with `pool`. The pool must outlive the context.
    pub fn new(model: Model, params: &ContextParams, mut capture: Box<Capture>, pool: &Pool) -> Result<Self, String> {
        let threads = i32::try_from(params.threads).unwrap_or(i32::MAX);
        let mut cancellation = Cancellation::new();
        // SAFETY: the defaults are changed in plain fields only; capture and cancellation are boxed and live as long as the
        // context.
        let make = || unsafe {
            let mut given = ll::llama_context_default_params();
            given.n_ctx = params.cells;
            given.n_batch = params.rows;
            given.n_ubatch = params.rows;
            given.n_outputs_max = params.outputs;
            given.n_seq_max = params.sessions;
            given.n_threads = threads;
            given.n_threads_batch = threads;
            given.flash_attn_type = ll::LLAMA_FLASH_ATTN_TYPE_ENABLED;
            given.type_k = params.kv;
            given.type_v = params.kv;
            given.kv_unified = false;
            given.swa_full = true;
            given.no_perf = true;
            given.offload_kqv = params.offload;
            given.op_offload = params.offload;
            given.cb_eval = Some(Capture::on_eval);
            given.cb_eval_user_data = (&raw mut *capture).cast();
            given.abort_callback = Some(Cancellation::on_node);
            given.abort_callback_data = (&raw mut *cancellation).cast();
            NonNull::new(ll::llama_init_from_model(model.0.as_ptr(), given))
        };
        let raw = explain(make)?;
        // SAFETY: both are alive, and the caller keeps the pool.
        unsafe { ll::llama_attach_threadpool(raw.as_ptr(), pool.raw(), pool.raw()) };
        Ok(Self { raw, capture, cancellation, _model: model })
    }

    /// The raw context.
    pub fn raw(&mut self) -> *mut ll::llama_context {
        self.raw.as_ptr()
    }

    /// The context's KV memory.
    pub fn memory(&mut self) -> ll::llama_memory_t {
        // SAFETY: the context is alive.
        unsafe { ll::llama_get_memory(self.raw.as_ptr()) }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is ours, and its model is dropped after it.
        unsafe { ll::llama_free(self.raw.as_ptr()) };
    }
}
