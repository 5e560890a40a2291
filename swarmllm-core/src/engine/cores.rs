//! Admission control for the machine's cores, shared by all stages of all nodes of this process.
//!
//! An engine's threads spin at barriers. If two stages compute at once with more threads than cores, each barrier waits for
//! a thread without a core, and both stages are several times slower than one after the other. So a stage acquires cores
//! for all of its threads before it decides what to compute. Requests are served first come, first served.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The process-wide pool.
static POOL: LazyLock<CorePool> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    CorePool::new(u32::try_from(cores).unwrap_or(u32::MAX))
});

/// A pool of cores.
struct CorePool {
    state: Mutex<State>,
    changed: Condvar,
    users: AtomicU64,
}

struct State {
    free: u32,
    all: u32,
    /// The next ticket to issue.
    next_ticket: u64,
    /// The ticket that is served next.
    serving: u64,
    /// The last uses by two different users, the later one first.
    last: [Option<LastUse>; 2],
}

#[derive(Clone, Copy)]
struct LastUse {
    user: u64,
    count: u32,
    until: Instant,
}

/// A user of the pool with a fixed number of cores.
pub(super) struct CoreUser<'a> {
    cores: &'a CorePool,
    id: u64,
    count: u32,
}

/// Acquired cores; released on drop.
pub(super) struct CoreGuard<'a> {
    user: &'a CoreUser<'a>,
    /// When another user last held cores that exclude this user's; `None` if there is no such user.
    pub contended_until: Option<Instant>,
    used: bool,
}

impl CoreUser<'static> {
    /// A user of `count` cores of the process-wide pool, at most all of them.
    pub fn new(count: u32) -> Self {
        POOL.user(count)
    }
}

impl<'a> CoreUser<'a> {
    /// Acquires the cores. Blocks.
    pub fn acquire(&self) -> CoreGuard<'_> {
        let mut state = self.cores.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        while state.serving != ticket || state.free < self.count {
            state = self.cores.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.serving += 1;
        state.free -= self.count;
        // Cores may be left for the next user too.
        self.cores.changed.notify_all();
        CoreGuard { user: self, contended_until: state.contended_until(self), used: true }
    }

    /// Time since the last user released its cores; zero if a user holds cores now or none ever did.
    pub fn idle(&self) -> Duration {
        let state = self.cores.lock();
        let last = state.last[0].filter(|_| state.free == state.all);
        last.map_or(Duration::ZERO, |last| last.until.elapsed())
    }
}

impl CoreGuard<'_> {
    /// Releases the cores without recording a use.
    pub fn release_unused(mut self) {
        self.used = false;
    }
}

impl State {
    /// Records a use.
    fn record(&mut self, user: &CoreUser<'_>, until: Instant) {
        if self.last[0].is_none_or(|last| last.user != user.id) {
            self.last[1] = self.last[0];
        }
        self.last[0] = Some(LastUse { user: user.id, count: user.count, until });
    }

    /// When another user that does not fit beside this one last computed.
    fn contended_until(&self, user: &CoreUser<'_>) -> Option<Instant> {
        let last = self.last.iter().flatten().find(|last| last.user != user.id);
        last.filter(|last| last.count.saturating_add(user.count) > self.all).map(|last| last.until)
    }
}

impl CorePool {
    fn new(all: u32) -> Self {
        let all = all.max(1);
        let state = State { free: all, all, next_ticket: 0, serving: 0, last: [None; 2] };
        Self { state: Mutex::new(state), changed: Condvar::new(), users: AtomicU64::new(0) }
    }

    fn user(&self, count: u32) -> CoreUser<'_> {
        let (id, all) = (self.users.fetch_add(1, Ordering::Relaxed), self.lock().all);
        CoreUser { cores: self, id, count: count.min(all) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for CoreGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.user.cores.lock();
        state.free += self.user.count;
        if self.used {
            state.record(self.user, Instant::now());
        }
        self.user.cores.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn cores_are_never_oversubscribed_and_every_user_gets_some() {
        let (cores, used) = (CorePool::new(3), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for count in [1, 2, 3, 7, 2, 1] {
                let (user, used) = (cores.user(count), &used);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let guard = user.acquire();
                        let now = used.fetch_add(user.count, Ordering::SeqCst) + user.count;
                        assert!(now <= 3, "{now} in use");
                        used.fetch_sub(user.count, Ordering::SeqCst);
                        drop(guard);
                    }
                });
            }
        });
        assert_eq!(cores.lock().free, 3);
    }

    #[test]
    fn requests_are_served_in_order_even_if_a_later_one_would_fit() {
        let cores = CorePool::new(2);
        let order = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            let one = cores.user(1);
            let first = one.acquire();
            let wait_for = |tickets: u64| {
                while cores.lock().next_ticket < tickets {
                    std::thread::yield_now();
                }
            };
            for (name, count) in [("both", 2), ("one", 1)] {
                let (user, order) = (cores.user(count), &order);
                let before = cores.lock().next_ticket;
                scope.spawn(move || {
                    let _taken = user.acquire();
                    order.lock().expect("no panic").push(name);
                });
                wait_for(before + 1);
            }
            assert!(order.lock().expect("no panic").is_empty());
            drop(first);
        });
        assert_eq!(order.into_inner().expect("no panic"), ["both", "one"]);
    }

    #[test]
    fn a_guard_reports_the_last_use_by_a_conflicting_user() {
        let cores = CorePool::new(2);
        let (one, two, small, tiny) = (cores.user(2), cores.user(2), cores.user(1), cores.user(1));
        assert_eq!(one.acquire().contended_until, None);
        assert_eq!(one.acquire().contended_until, None, "there is no other user");
        let between = Instant::now();
        assert!(two.acquire().contended_until.is_some_and(|until| until <= between));
        assert!(two.acquire().contended_until.is_some_and(|until| until <= between), "its own uses do not count");
        assert!(one.acquire().contended_until.is_some_and(|until| until >= between));
        small.acquire().release_unused();
        assert!(small.acquire().contended_until.is_some());
        assert_eq!(tiny.acquire().contended_until, None, "both fit");
        two.acquire().release_unused();
        assert_eq!(small.acquire().contended_until, None, "it has not computed");
    }

    #[test]
    fn idle_time_begins_with_the_last_release() {
        let cores = CorePool::new(2);
        let (one, other) = (cores.user(1), cores.user(1));
        assert_eq!(one.idle(), Duration::ZERO, "no user has computed yet");
        drop(one.acquire());
        let since = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(other.idle() >= Duration::from_millis(2));
        assert!(other.idle() >= since.elapsed() - Duration::from_millis(1));
        let guard = other.acquire();
        assert_eq!(one.idle(), Duration::ZERO);
        drop(guard);
        assert!(one.idle() < since.elapsed());
    }
}
