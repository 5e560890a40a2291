//! Gives a computation up in its middle: llama.cpp asks before each node of its graph whether to stop. A prompt's slice
//! takes seconds on a slow machine, and nobody may want it any more after the first of them.

use std::cell::Cell;
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::engine::Terms;

/// A borrow whose lifetime [`Stop::watched`] keeps.
type Asked = *const (dyn Fn() -> bool + Sync);

/// Whom to ask during the computation that runs.
pub(super) struct Stop {
    asked: Cell<Option<Asked>>,
}

impl Stop {
    /// Asks nobody yet.
    pub fn new() -> Box<Self> {
        Box::new(Self { asked: Cell::new(None) })
    }

    /// Runs a computation of the context that this belongs to, which is given up where `terms` say so.
    pub fn watched<T>(&self, terms: Terms<'_>, compute: impl FnOnce() -> T) -> T {
        struct Unset<'a>(&'a Stop);
        impl Drop for Unset<'_> {
            fn drop(&mut self) {
                self.0.asked.set(None);
            }
        }
        let _unset = Unset(self);
        // SAFETY: only the lifetime is forgotten: `terms` outlive this call, at whose end nobody is asked any more.
        let forget = |asked: &(dyn Fn() -> bool + Sync)| unsafe { std::mem::transmute::<_, Asked>(asked) };
        let asked = terms.abandoned.map(forget);
        self.asked.set(asked);
        compute()
    }

    /// llama.cpp's abort callback; it is called on the thread that computes.
    pub unsafe extern "C" fn on_node(stop: *mut c_void) -> bool {
        // SAFETY: `stop` is the boxed one of the context that computes; it is only read, on the one thread that uses it.
        let stop = unsafe { &*stop.cast::<Stop>() };
        let abandoned = || {
            // SAFETY: set by `watched`, which is on the stack below this call.
            let asked = stop.asked.get().map(|asked| unsafe { &*asked });
            Terms { abandoned: asked, ..Terms::default() }.is_abandoned()
        };
        catch_unwind(AssertUnwindSafe(abandoned)).unwrap_or(true)
    }
}
