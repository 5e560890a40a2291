//! llama.cpp's CPU kernels: which build of them this machine gets.
//!
//! `llama-cpp-sys-2` brings one build, for what nearly all have (x86-64 with AVX2, FMA and F16C; 64-bit ARM), and
//! registers it at llama.cpp's start. `build.rs` adds builds for better processors; the best one that this machine can
//! run takes the other's place, for the whole process. llama.cpp and this engine reach kernels through their registry
//! only, so that nothing of the first build is used beside it.
//!
//! Two builds round differently: results are equal, bit by bit, between machines of one level only.

use std::ffi::{CStr, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;

use llama_cpp_sys_2 as ll;

use super::levels::{LEVELS, has};

type Entry = unsafe extern "C" fn() -> ll::ggml_backend_reg_t;

macro_rules! entries {
    ($($name:literal $entry:ident,)*) => {
        unsafe extern "C" {
            $(#[cfg(kernels = $name)] fn $entry() -> ll::ggml_backend_reg_t;)*
        }

        /// Levels that have an entry point, where they came along.
        #[cfg(test)]
        const KNOWN: &[&str] = &[$($name),*];

        /// The entry point of a level's build, where it came along.
        fn entry(name: &str) -> Option<Entry> {
            match name {
                $(#[cfg(kernels = $name)] $name => Some($entry),)*
                _ => None,
            }
        }
    };
}

entries! {
    "avx512_bf16" swarmllm_kernels_avx512_bf16,
    "avx512_vbmi" swarmllm_kernels_avx512_vbmi,
    "avx512_vnni" swarmllm_kernels_avx512_vnni,
    "avx512" swarmllm_kernels_avx512,
    "avx_vnni" swarmllm_kernels_avx_vnni,
    "i8mm" swarmllm_kernels_i8mm,
    "dotprod" swarmllm_kernels_dotprod,
}

/// Which build of llama.cpp's CPU kernels this machine gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernels {
    /// Its name: `base` for the one that all get, or that of a better one.
    pub level: &'static str,
    /// The best one that the processor could run, where it did not come along.
    pub missing: Option<MissingKernels>,
}

/// A build of the kernels that this machine would get if it had come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingKernels {
    /// Its name.
    pub level: &'static str,
    /// Why it did not come along.
    pub reason: &'static str,
}

/// Which build this machine gets.
pub(super) fn found() -> Kernels {
    let level = best().map_or("base", |(name, _)| name);
    let wanted = LEVELS.iter().find(|level| level.fits(has)).map_or("base", |level| level.name);
    let missing = (wanted != level).then_some(MissingKernels { level: wanted, reason: WHY_FEWER });
    Kernels { level, missing }
}

/// Why the build script left levels out.
const WHY_FEWER: &str = match option_env!("SWARMLLM_FEWER_KERNELS") {
    Some(reason) => reason,
    None => "the build left it out",
};

fn best() -> Option<(&'static str, Entry)> {
    LEVELS.iter().filter(|level| level.fits(has)).find_map(|level| Some((level.name, entry(level.name)?)))
}

/// Puts the best build in the place of the registered one. To be called once, before anything is loaded.
pub(super) fn choose() {
    if let Some(MissingKernels { level, reason }) = found().missing {
        tracing::warn!(level, reason, "llama.cpp's faster kernels for this processor did not come along");
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

/// How the kernels in use start compute threads and end them.
#[derive(Clone, Copy)]
pub(super) struct PoolCalls {
    new: NewPool,
    free: FreePool,
}

impl PoolCalls {
    /// Those of the registered kernels. They are looked up once: a stage may end while the process does, when llama.cpp's
    /// registry is gone already. Nothing where the kernels have none.
    pub fn get() -> Option<Self> {
        static CALLS: OnceLock<Option<PoolCalls>> = OnceLock::new();
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

    /// Starts compute threads; nothing where they could not be.
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
    fn each_level_that_the_build_script_may_bring_is_known_here() {
        let levels = super::super::levels::X86_64.iter().chain(super::super::levels::AARCH64);
        assert_eq!(levels.map(|level| level.name).collect::<Vec<_>>(), KNOWN);
    }

    #[test]
    fn a_better_build_that_did_not_come_along_is_told_with_the_reason() {
        let Kernels { level, missing } = found();
        let wanted = LEVELS.iter().find(|level| level.fits(has)).map_or("base", |level| level.name);
        match missing {
            None => assert_eq!(level, wanted),
            Some(missing) => assert!(missing.level == wanted && level != wanted && !missing.reason.is_empty()),
        }
    }

    #[test]
    fn one_build_of_the_kernels_is_registered_and_it_is_the_best_that_this_machine_can_run() {
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
