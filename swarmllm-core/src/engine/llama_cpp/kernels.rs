//! Selection of llama.cpp's CPU kernels for this machine.
//!
//! `llama-cpp-sys-2` has one build for nearly all CPUs (x86-64 with AVX2, FMA and F16C; 64-bit ARM) and registers it when
//! llama.cpp starts. `build.rs` adds builds for better CPUs. The best build that this machine can run replaces the first
//! one in the whole process. llama.cpp and this engine reach kernels only through their registry, so that the first build
//! is not used any more.
//!
//! Builds round differently: results are equal bit by bit only between machines of one level.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;

use llama_cpp_sys_2 as ll;

use super::levels::{LEVELS, Level, has};

type Entry = unsafe extern "C" fn() -> ll::ggml_backend_reg_t;

// `BUILT`: the built levels and their entry points, from the build script.
include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// The build of llama.cpp's CPU kernels that this machine uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    /// Name of the build: `base`, or that of a better level.
    pub level: &'static str,
    /// The best level for this CPU, if this program was built without it.
    pub missing: Option<MissingKernels>,
}

/// A level of kernels that this CPU supports and this program was built without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingKernels {
    /// Name of the level.
    pub level: &'static str,
    /// Why the build lacks it.
    pub reason: &'static str,
}

/// The build that this machine uses.
pub(super) fn selected() -> Kernels {
    let level = best().map_or("base", |(name, _)| name);
    let wanted = LEVELS.iter().find(|level| level.fits(has)).map_or("base", |level| level.name);
    let missing = (wanted != level).then_some(MissingKernels { level: wanted, reason: OMITTED_REASON });
    Kernels { level, missing }
}

/// Why the build script omitted levels.
const OMITTED_REASON: &str = match option_env!("SWARMLLM_FEWER_KERNELS") {
    Some(reason) => reason,
    None => "the build omitted it",
};

fn best() -> Option<(&'static str, Entry)> {
    let built = |level: &Level| BUILT.iter().find(|(name, _)| *name == level.name).copied();
    LEVELS.iter().filter(|level| level.fits(has)).find_map(built)
}

/// Registers the best build in place of the base build. Must be called once, before the first load.
pub(super) fn register_best() {
    if let Some(MissingKernels { level, reason }) = selected().missing {
        tracing::warn!(level, reason, "this build lacks llama.cpp's faster kernels for this CPU");
    }
    if let Some((_, entry)) = best() {
        // SAFETY: the machine can run the build; nothing has been taken from the registry yet, so that nothing of the
        // build that leaves it is in use. Both builds' registrations are static.
        unsafe {
            ll::ggml_backend_unload(ll::ggml_backend_cpu_reg());
            ll::ggml_backend_register(entry());
        }
    }
}

type NewPool = unsafe extern "C" fn(*mut ll::ggml_threadpool_params) -> *mut ll::ggml_threadpool;
type FreePool = unsafe extern "C" fn(*mut ll::ggml_threadpool);

/// The registered kernels' functions for thread pools.
#[derive(Clone, Copy)]
pub(super) struct PoolFunctions {
    new: NewPool,
    free: FreePool,
}

impl PoolFunctions {
    /// The functions of the registered kernels; `None` if they have none. Looked up once, because a stage may end during
    /// process exit, after llama.cpp's registry is destroyed.
    pub fn get() -> Option<Self> {
        static CALLS: OnceLock<Option<PoolFunctions>> = OnceLock::new();
        *CALLS.get_or_init(|| {
            let (new, free) = (function(c"ggml_threadpool_new")?, function(c"ggml_threadpool_free")?);
            // SAFETY: the registry gives the functions of these names, which have these types.
            unsafe {
                let new = std::mem::transmute::<*mut c_void, NewPool>(new);
                let free = std::mem::transmute::<*mut c_void, FreePool>(free);
                Some(Self { new, free })
            }
        })
    }

    /// Starts compute threads; `None` on failure.
    pub fn start(self, params: &mut ll::ggml_threadpool_params) -> Option<NonNull<ll::ggml_threadpool>> {
        // SAFETY: the parameters are only read.
        NonNull::new(unsafe { (self.new)(params) })
    }

    /// Ends compute threads.
    ///
    /// # Safety
    /// The pool was started by equal calls, and nothing computes with it any more.
    pub unsafe fn end(self, pool: NonNull<ll::ggml_threadpool>) {
        // SAFETY: the caller's promise.
        unsafe { (self.free)(pool.as_ptr()) }
    }
}

/// A function of the registered kernels.
fn function(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: the registry makes itself, with its CPU kernels, when it is first asked; the name ends with a zero.
    let found = unsafe {
        let device = ll::ggml_backend_dev_by_type(ll::GGML_BACKEND_DEVICE_TYPE_CPU);
        if device.is_null() {
            return None;
        }
        ll::ggml_backend_reg_get_proc_address(ll::ggml_backend_dev_backend_reg(device), name.as_ptr())
    };
    Some(found).filter(|found| !found.is_null())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_level_is_reported_with_its_reason() {
        let Kernels { level, missing } = selected();
        let wanted = LEVELS.iter().find(|level| level.fits(has)).map_or("base", |level| level.name);
        match missing {
            None => assert_eq!(level, wanted),
            Some(missing) => assert!(missing.level == wanted && level != wanted && !missing.reason.is_empty()),
        }
    }

    #[test]
    fn only_the_best_build_of_the_kernels_is_registered() {
        super::super::log::init();
        // SAFETY: llama.cpp has been started; registrations, their devices and their names live for ever.
        unsafe {
            let registered = (0..ll::ggml_backend_reg_count()).map(|index| ll::ggml_backend_reg_get(index));
            let of_cpu = |reg: &ll::ggml_backend_reg_t| CStr::from_ptr(ll::ggml_backend_reg_name(*reg)) == c"CPU";
            let kernels: Vec<_> = registered.filter(of_cpu).collect();
            let best = best().map_or_else(|| ll::ggml_backend_cpu_reg(), |(_, entry)| entry());
            assert_eq!(kernels, [best]);
            let device = ll::ggml_backend_dev_by_type(ll::GGML_BACKEND_DEVICE_TYPE_CPU);
            assert_eq!(ll::ggml_backend_dev_backend_reg(device), best);
        }
    }
}
