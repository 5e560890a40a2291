//! The cores of this machine, shared out among all that computes here in this process.
//!
//! llama.cpp's threads spin at barriers: where two stages compute at once with more threads than there are cores, each
//! meeting waits for a thread that has none, and both are several times slower than one after the other. So a
//! computation waits until there are cores for all of its threads. Whoever came first goes first.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// See the module.
pub(super) struct Cores {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    free: u32,
    all: u32,
    /// Who comes next, and who goes next.
    tickets: (u64, u64),
}

/// Cores that a computation has. Given back when dropped.
pub(super) struct Taken<'a> {
    cores: &'a Cores,
    count: u32,
}

impl Cores {
    /// So many cores.
    pub fn new(all: u32) -> Self {
        let all = all.max(1);
        Self { state: Mutex::new(State { free: all, all, tickets: (0, 0) }), changed: Condvar::new() }
    }

    /// Waits for `count` of them, or for all where that is more than there are. Blocks.
    pub fn take(&self, count: u32) -> Taken<'_> {
        let mut state = self.locked();
        let count = count.min(state.all);
        let ticket = state.tickets.0;
        state.tickets.0 += 1;
        while state.tickets.1 != ticket || state.free < count {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.tickets.1 += 1;
        state.free -= count;
        // Cores may be left for the next one too.
        self.changed.notify_all();
        Taken { cores: self, count }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        self.cores.locked().free += self.count;
        self.cores.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn no_more_cores_are_in_use_than_there_are_and_everybody_gets_some() {
        let (cores, used) = (Cores::new(3), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for count in [1, 2, 3, 7, 2, 1] {
                let (cores, used) = (&cores, &used);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let taken = cores.take(count);
                        let now = used.fetch_add(taken.count, Ordering::SeqCst) + taken.count;
                        assert!(now <= 3, "{now} in use");
                        used.fetch_sub(taken.count, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(cores.locked().free, 3);
    }

    #[test]
    fn who_came_first_goes_first_also_where_a_later_one_would_fit() {
        let cores = Cores::new(2);
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let first = cores.take(1);
            let wait_for = |tickets: u64| {
                while cores.locked().tickets.0 < tickets {
                    std::thread::yield_now();
                }
            };
            for (name, count) in [("both", 2), ("one", 1)] {
                let (cores, order) = (&cores, &order);
                let before = cores.locked().tickets.0;
                scope.spawn(move || {
                    let _taken = cores.take(count);
                    order.lock().expect("no panic").push(name);
                });
                wait_for(before + 1);
            }
            assert!(order.lock().expect("no panic").is_empty());
            drop(first);
        });
        assert_eq!(order.into_inner().expect("no panic"), ["both", "one"]);
    }
}
