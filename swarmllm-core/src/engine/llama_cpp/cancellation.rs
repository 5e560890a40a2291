//! Cancels a running computation through llama.cpp's abort callback, which is called before each node of the graph. A
//! prefill chunk takes seconds on a slow machine, and its caller may be gone after the first of them.

use std::cell::Cell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::engine::StepOptions;

/// A borrow whose lifetime [`Cancellation::run`] upholds.
type CancelledFn = *const (dyn Fn() -> bool + Sync);

/// The cancellation check of the running computation.
pub(super) struct Cancellation {
    check: Cell<Option<CancelledFn>>,
}

impl Cancellation {
    /// Without a check.
    pub fn new() -> Box<Self> {
        Box::new(Self { check: Cell::new(None) })
    }

    /// Runs a computation of the context, which ends early once `options` are cancelled.
    pub fn run<T>(&self, options: StepOptions<'_>, compute: impl FnOnce() -> T) -> T {
        struct ClearOnDrop<'a>(&'a Cancellation);
        impl Drop for ClearOnDrop<'_> {
            fn drop(&mut self) {
                self.0.check.set(None);
            }
        }
        let _clear = ClearOnDrop(self);
        // SAFETY: only the lifetime is erased: `options` outlive this call, at whose end the check is removed.
        let erase = |check: &(dyn Fn() -> bool + Sync)| unsafe { std::mem::transmute::<_, CancelledFn>(check) };
        let check = options.cancelled.map(erase);
        self.check.set(check);
        compute()
    }

    /// llama.cpp's abort callback; called on the computing thread.
    pub unsafe extern "C" fn on_node(cancellation: *mut c_void) -> bool {
        // SAFETY: `cancellation` is the boxed value of the computing context; it is only read, on the one thread that uses
        // it.
        let cancellation = unsafe { &*cancellation.cast::<Cancellation>() };
        let cancelled = || {
            // SAFETY: set by `run`, which is on the stack below this call.
            let check = cancellation.check.get().map(|check| unsafe { &*check });
            StepOptions { cancelled: check, ..StepOptions::default() }.is_cancelled()
        };
        catch_unwind(AssertUnwindSafe(cancelled)).unwrap_or(true)
    }
}
