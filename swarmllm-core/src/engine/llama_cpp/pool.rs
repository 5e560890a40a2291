//! Compute threads: each engine has one pool for each thread count. Its stages share the pool; one at a time uses it.
//!
//! Without a pool llama.cpp starts and ends its threads at each step. Between steps the workers sleep, see [`POLL`].

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use llama_cpp_sys_2 as ll;

use crate::engine::EngineError;

use super::error::ENGINE;
use super::kernels::PoolFunctions;

/// How long an idle worker spins before it sleeps, in ggml's unit of 131,072 polls (some 4 ms). Zero: waking a sleeping
/// worker does not measurably slow a stage, while a spinning one takes a core from the chain's next stage in another
/// process (on two cores one unit costs a third of the speed, ggml's default of 50 costs 70 %).
pub(super) const POLL: u32 = 0;

/// The pools of an engine by thread count. A pool ends with the last stage that uses it.
#[derive(Debug)]
pub(super) struct Pools {
    poll: u32,
    pools: Mutex<HashMap<u32, Weak<Pool>>>,
}

impl Default for Pools {
    fn default() -> Self {
        Self::with_poll(POLL)
    }
}

impl Pools {
    /// Pools whose workers spin for `poll` units.
    pub fn with_poll(poll: u32) -> Self {
        Self { poll, pools: Mutex::default() }
    }

    /// The pool of `threads` threads, the calling one included.
    pub fn get(&self, threads: u32) -> Result<Arc<Pool>, EngineError> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&threads).and_then(Weak::upgrade) {
            return Ok(pool);
        }
        pools.retain(|_, pool| pool.strong_count() > 0);
        let pool = Arc::new(Pool::new(threads, self.poll)?);
        pools.insert(threads, Arc::downgrade(&pool));
        Ok(pool)
    }
}

/// A pool of compute threads.
pub(super) struct Pool {
    raw: NonNull<ll::ggml_threadpool>,
    functions: PoolFunctions,
    in_use: Mutex<()>,
}

// SAFETY: ggml's pool is not bound to a thread; it is computed with only while `in_use` is held.
unsafe impl Send for Pool {}
// SAFETY: as above; everything else on `&Pool` only hands out the pointer.
unsafe impl Sync for Pool {}

impl Pool {
    fn new(threads: u32, poll: u32) -> Result<Self, EngineError> {
        let count = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: fills a struct from a count.
        let mut params = unsafe { ll::ggml_threadpool_params_default(count) };
        params.poll = poll;
        let started = PoolFunctions::get().and_then(|functions| Some((functions, functions.start(&mut params)?)));
        let (functions, raw) = started.ok_or_else(|| EngineError::Step {
            engine: ENGINE,
            reason: format!("{threads} compute threads could not be started"),
        })?;
        Ok(Self { raw, functions, in_use: Mutex::new(()) })
    }

    /// The raw pool. Computations with it must run inside [`Pool::compute`].
    pub fn raw(&self) -> *mut ll::ggml_threadpool {
        self.raw.as_ptr()
    }

    /// Runs a computation with exclusive use of the pool.
    pub fn compute<T>(&self, call: impl FnOnce() -> T) -> T {
        let _in_use = self.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        call()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the pool is ours, and no context uses it any more: each stage holds it for as long as its context.
        unsafe { self.functions.end(self.raw) };
    }
}
