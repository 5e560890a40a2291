//! Process exit: exit handlers destroy llama.cpp's tables on the exiting thread while stages may compute. Handlers run in
//! reverse order of registration, so ours is registered after the tables exist and runs before they are destroyed.

use std::sync::OnceLock;
use std::time::Duration;

use crate::engine::exit_gate::EXIT_GATE;

/// How long process exit waits for stages: a computation ends within one node of its graph, but a stage may be loading.
const EXIT_TIMEOUT: Duration = Duration::from_secs(2);

/// Closes the exit gate when this process ends. Must be called after llama.cpp may have created tables; registers one
/// handler for each `moment`, because handlers cannot be removed.
pub(super) fn register(moment: &OnceLock<()>) {
    moment.get_or_init(|| {
        let _ = process();
        // SAFETY: the handler does not unwind and touches only statics. If the registration fails, a process that ends
        // during a computation may crash, as without a handler.
        unsafe { libc::atexit(at_exit) };
    });
}

/// Id of the process that computes. A forked child has none of its threads and must not wait.
fn process() -> u32 {
    static PROCESS: OnceLock<u32> = OnceLock::new();
    *PROCESS.get_or_init(std::process::id)
}

extern "C" fn at_exit() {
    if process() == std::process::id() {
        EXIT_GATE.close(EXIT_TIMEOUT);
    }
}
