//! What becomes of stages when the process ends: llama.cpp's tables are destroyed by exit handlers, on whatever thread
//! ends the process, while ours may compute. Of the handlers that a process has the last registered runs first, so that
//! ours is registered once the tables are there.

use std::sync::OnceLock;
use std::time::Duration;

use crate::engine::gate::GATE;

/// How long the end of a process waits for stages: a computation is given up within a node of its graph, but a stage may
/// be just loading.
const PATIENCE: Duration = Duration::from_secs(2);

/// Shuts the engines' gate when this process ends. To be called where llama.cpp may have made new tables; counts once
/// for each `moment`, since handlers stay for ever.
pub(super) fn guard(moment: &OnceLock<()>) {
    moment.get_or_init(|| {
        let _ = process();
        // SAFETY: the handler unwinds from nothing and touches only statics. Where it cannot be registered, a process that
        // ends while it computes may crash at its very end, as it would without.
        unsafe { libc::atexit(at_exit) };
    });
}

/// The process that computes: a forked child has none of its threads, and nobody to wait for.
fn process() -> u32 {
    static PROCESS: OnceLock<u32> = OnceLock::new();
    *PROCESS.get_or_init(std::process::id)
}

extern "C" fn at_exit() {
    if process() == std::process::id() {
        GATE.shut(PATIENCE);
    }
}
