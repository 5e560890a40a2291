//! llama.cpp's process-wide state: log, abort callback, initialisation and exit.
//!
//! The log goes to `tracing` with target `llama.cpp` and level debug. The abort callback logs the reason of an abort and
//! replaces ggml's backtrace, which would start a debugger as a child process. Both are set at the first load; a host that
//! uses llama.cpp itself may set its own afterwards.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use llama_cpp_sys_2 as ll;

use super::{exit, kernels};

/// Longest reason of a failed load, in bytes.
const MAX_REASON: usize = 512;

static STARTED: OnceLock<()> = OnceLock::new();

thread_local! {
    /// The errors that llama.cpp logged on this thread during the current load.
    static REASON: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Initialises llama.cpp, once.
pub(super) fn init() {
    STARTED.get_or_init(|| {
        // SAFETY: the callbacks are functions without state that never unwind.
        unsafe {
            ll::llama_log_set(Some(on_log), std::ptr::null_mut());
            ll::ggml_set_abort_callback(Some(on_abort));
            ll::llama_backend_init();
        }
        kernels::register_best();
    });
    static GUARDED: OnceLock<()> = OnceLock::new();
    exit::register(&GUARDED);
}

/// Runs `call`; on `None` returns the errors that llama.cpp logged meanwhile.
pub(super) fn explain<T>(call: impl FnOnce() -> Option<T>) -> Result<T, String> {
    REASON.with_borrow_mut(String::clear);
    call().ok_or_else(|| match REASON.with_borrow_mut(std::mem::take) {
        reason if reason.is_empty() => "llama.cpp gave no reason".to_owned(),
        reason => reason,
    })
}

fn keep_reason(text: &str) {
    REASON.with_borrow_mut(|reason| {
        // The first errors are the cause; later ones only propagate it.
        if reason.len() + text.len() < MAX_REASON {
            if !reason.is_empty() {
                reason.push_str("; ");
            }
            reason.push_str(text);
        }
    });
}

unsafe extern "C" fn on_log(level: ll::ggml_log_level, text: *const c_char, _: *mut c_void) {
    if text.is_null() {
        return;
    }
    // A subscriber of the host may panic; the panic must not cross into C and cannot be reported.
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: llama.cpp gives a string that ends with a zero and lives as long as this call.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        let text = text.trim_end();
        if level == ll::GGML_LOG_LEVEL_ERROR {
            keep_reason(text);
        }
        if !text.is_empty() {
            tracing::debug!(target: "llama.cpp", "{text}");
        }
    }));
}

unsafe extern "C" fn on_abort(message: *const c_char) {
    let _ = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: ggml gives a string that ends with a zero and lives as long as this call.
        let message = unsafe { CStr::from_ptr(message) }.to_string_lossy();
        tracing::error!(target: "llama.cpp", "llama.cpp aborts the process: {message}");
        eprintln!("llama.cpp aborts the process: {message}");
    }));
}
