//! The end of the process. A host may return from its `main`, or call `exit`, while stages compute; exit handlers then take
//! an engine's tables from under the stages' threads. So an engine that has such tables shuts this gate first: whatever is
//! inside is given up and waited for, and nothing enters any more.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How often a gate that is shut looks whether somebody is still inside.
const LOOK: Duration = Duration::from_millis(1);
/// Set in a gate that is shut.
const SHUT: u32 = 1 << 31;

/// The gate through which stages' threads enter their engines.
pub(super) static GATE: Gate = Gate::new();

/// See the module.
pub(super) struct Gate {
    /// How many are inside, and [`SHUT`].
    state: AtomicU32,
}

/// Leave to be inside, for as long as it is held.
pub(super) struct Pass<'a>(&'a Gate);

impl Gate {
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(0) }
    }

    /// Enters; refused where the gate is shut.
    pub fn enter(&self) -> Option<Pass<'_>> {
        let pass = Pass(self);
        let before = self.state.fetch_add(1, Ordering::SeqCst);
        (before & SHUT == 0).then_some(pass)
    }

    /// Whether those who are inside are to leave.
    pub fn is_shut(&self) -> bool {
        self.state.load(Ordering::Relaxed) & SHUT != 0
    }

    /// Shuts the gate for good and waits until nobody is inside, at most so long. Blocks.
    pub fn shut(&self, patience: Duration) {
        let until = Instant::now() + patience;
        self.state.fetch_or(SHUT, Ordering::SeqCst);
        while self.state.load(Ordering::SeqCst) != SHUT && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_that_is_shut_waits_for_who_is_inside_and_lets_nobody_in() {
        let gate = Gate::new();
        drop(gate.enter().expect("it is open"));
        let pass = gate.enter().expect("it is open");
        assert!(!gate.is_shut());
        let began = Instant::now();
        std::thread::scope(|scope| {
            scope.spawn(|| gate.shut(Duration::from_secs(60)));
            while !gate.is_shut() {
                std::thread::yield_now();
            }
            assert!(gate.enter().is_none());
            drop(pass);
        });
        assert!(began.elapsed() < Duration::from_secs(30), "it waited for nobody");
        assert!(gate.enter().is_none(), "it stays shut");
    }

    #[test]
    fn a_gate_waits_no_longer_than_it_is_told() {
        let gate = Gate::new();
        let _pass = gate.enter();
        gate.shut(Duration::from_millis(5));
        assert!(gate.is_shut());
    }
}
