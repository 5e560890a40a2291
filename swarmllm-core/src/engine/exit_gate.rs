//! Process exit. A host program may return from `main`, or call `exit`, while stages compute; exit handlers then destroy an
//! engine's tables while the stages' threads use them. So an engine with such tables closes this gate first: running
//! computations are cancelled and waited for, and no new ones start.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Interval at which a closing gate polls for running calls.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// Bit of a closed gate.
const CLOSED: u32 = 1 << 31;

/// The gate for all engine calls of stage threads.
pub(super) static EXIT_GATE: ExitGate = ExitGate::new();

/// A gate that counts running engine calls and can be closed for good.
pub(super) struct ExitGate {
    /// Number of running calls, and [`CLOSED`].
    state: AtomicU32,
}

/// Permission for one engine call, for as long as it is held.
pub(super) struct CallPermit<'a>(&'a ExitGate);

impl ExitGate {
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(0) }
    }

    /// Begins a call; `None` if the gate is closed.
    pub fn enter(&self) -> Option<CallPermit<'_>> {
        let permit = CallPermit(self);
        let before = self.state.fetch_add(1, Ordering::SeqCst);
        (before & CLOSED == 0).then_some(permit)
    }

    /// Whether running calls are to end.
    pub fn is_closed(&self) -> bool {
        self.state.load(Ordering::Relaxed) & CLOSED != 0
    }

    /// Closes the gate for good and waits until no call is running, at most for `timeout`. Blocks.
    pub fn close(&self, timeout: Duration) {
        let until = Instant::now() + timeout;
        self.state.fetch_or(CLOSED, Ordering::SeqCst);
        while self.state.load(Ordering::SeqCst) != CLOSED && Instant::now() < until {
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for CallPermit<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_gate_waits_for_running_calls_and_refuses_new_ones() {
        let gate = ExitGate::new();
        drop(gate.enter().expect("it is open"));
        let permit = gate.enter().expect("it is open");
        assert!(!gate.is_closed());
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| gate.close(Duration::from_secs(60)));
            while !gate.is_closed() {
                std::thread::yield_now();
            }
            assert!(gate.enter().is_none());
            drop(permit);
        });
        assert!(began.elapsed() < Duration::from_secs(30), "it waited for the timeout");
        assert!(gate.enter().is_none(), "it stays closed");
    }

    #[test]
    fn closing_waits_at_most_for_the_timeout() {
        let gate = ExitGate::new();
        let _permit = gate.enter();
        gate.close(Duration::from_millis(5));
        assert!(gate.is_closed());
    }
}
