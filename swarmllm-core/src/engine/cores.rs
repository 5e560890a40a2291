//! The cores of this machine, shared out among all stages of this process, of whatever node.
//!
//! An engine's threads spin at barriers: where two stages compute at once with more threads than there are cores, each
//! meeting waits for a thread that has none, and both are several times slower than one after the other. So a stage takes
//! cores for all of its threads before it chooses what to compute, and waits until there are as many. Whoever came first
//! goes first.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The cores that all stages of this process share.
static ALL: LazyLock<Cores> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    Cores::new(u32::try_from(cores).unwrap_or(u32::MAX))
});

/// See the module.
struct Cores {
    state: Mutex<State>,
    changed: Condvar,
    users: AtomicU64,
}

struct State {
    free: u32,
    all: u32,
    /// Who comes next, and who goes next.
    tickets: (u64, u64),
    /// The last two users: how many cores they had, and when they gave them back. The later one first.
    last: [Option<Use>; 2],
}

#[derive(Clone, Copy)]
struct Use {
    user: u64,
    count: u32,
    until: Instant,
}

/// One of those who share the cores, and how many it needs.
pub(super) struct User<'a> {
    cores: &'a Cores,
    id: u64,
    count: u32,
}

/// Cores that a user has. Given back when dropped.
pub(super) struct Taken<'a> {
    user: &'a User<'a>,
    /// Until when somebody else had cores that this user had to wait for, or would have had to.
    pub others: Option<Instant>,
    used: bool,
}

impl User<'static> {
    /// Of this process's cores so many, or all where that is more than there are.
    pub fn new(count: u32) -> Self {
        ALL.user(count)
    }
}

impl<'a> User<'a> {
    /// Waits for the cores. Blocks.
    pub fn take(&self) -> Taken<'_> {
        let mut state = self.cores.locked();
        let ticket = state.tickets.0;
        state.tickets.0 += 1;
        while state.tickets.1 != ticket || state.free < self.count {
            state = self.cores.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.tickets.1 += 1;
        state.free -= self.count;
        // Cores may be left for the next one too.
        self.cores.changed.notify_all();
        Taken { user: self, others: state.others(self), used: true }
    }

    /// For how long nobody has had any cores: no time where somebody has some now, or nobody ever had.
    pub fn idle(&self) -> Duration {
        let state = self.cores.locked();
        let last = state.last[0].filter(|_| state.free == state.all);
        last.map_or(Duration::ZERO, |last| last.until.elapsed())
    }
}

impl Taken<'_> {
    /// Gives them back without having computed.
    pub fn unused(mut self) {
        self.used = false;
    }
}

impl State {
    /// Notes that a user has computed.
    fn note(&mut self, user: &User<'_>, until: Instant) {
        if self.last[0].is_none_or(|last| last.user != user.id) {
            self.last[1] = self.last[0];
        }
        self.last[0] = Some(Use { user: user.id, count: user.count, until });
    }

    /// Until when another one computed that does not fit beside this user.
    fn others(&self, user: &User<'_>) -> Option<Instant> {
        let last = self.last.iter().flatten().find(|last| last.user != user.id);
        last.filter(|last| last.count.saturating_add(user.count) > self.all).map(|last| last.until)
    }
}

impl Cores {
    fn new(all: u32) -> Self {
        let all = all.max(1);
        let state = State { free: all, all, tickets: (0, 0), last: [None; 2] };
        Self { state: Mutex::new(state), changed: Condvar::new(), users: AtomicU64::new(0) }
    }

    fn user(&self, count: u32) -> User<'_> {
        let (id, all) = (self.users.fetch_add(1, Ordering::Relaxed), self.locked().all);
        User { cores: self, id, count: count.min(all) }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut state = self.user.cores.locked();
        state.free += self.user.count;
        if self.used {
            state.note(self.user, Instant::now());
        }
        self.user.cores.changed.notify_all();
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
                let (user, used) = (cores.user(count), &used);
                scope.spawn(move || {
                    for _ in 0..200 {
                        let taken = user.take();
                        let now = used.fetch_add(user.count, Ordering::SeqCst) + user.count;
                        assert!(now <= 3, "{now} in use");
                        used.fetch_sub(user.count, Ordering::SeqCst);
                        drop(taken);
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
            let one = cores.user(1);
            let first = one.take();
            let wait_for = |tickets: u64| {
                while cores.locked().tickets.0 < tickets {
                    std::thread::yield_now();
                }
            };
            for (name, count) in [("both", 2), ("one", 1)] {
                let (user, order) = (cores.user(count), &order);
                let before = cores.locked().tickets.0;
                scope.spawn(move || {
                    let _taken = user.take();
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
    fn a_user_hears_until_when_somebody_computed_who_does_not_fit_beside_it() {
        let cores = Cores::new(2);
        let (one, two, small, tiny) = (cores.user(2), cores.user(2), cores.user(1), cores.user(1));
        assert_eq!(one.take().others, None);
        assert_eq!(one.take().others, None, "nobody else was there");
        let between = Instant::now();
        assert!(two.take().others.is_some_and(|until| until <= between));
        assert!(two.take().others.is_some_and(|until| until <= between), "its own computing does not count");
        assert!(one.take().others.is_some_and(|until| until >= between));
        small.take().unused();
        assert!(small.take().others.is_some());
        assert_eq!(tiny.take().others, None, "both fit");
        two.take().unused();
        assert_eq!(small.take().others, None, "it has not computed");
    }

    #[test]
    fn cores_are_idle_from_when_the_last_who_computed_gave_them_back() {
        let cores = Cores::new(2);
        let (one, other) = (cores.user(1), cores.user(1));
        assert_eq!(one.idle(), Duration::ZERO, "nobody has computed yet");
        drop(one.take());
        let since = Instant::now();
        std::thread::sleep(Duration::from_millis(2));
        assert!(other.idle() >= Duration::from_millis(2));
        assert!(other.idle() >= since.elapsed() - Duration::from_millis(1));
        let taken = other.take();
        assert_eq!(one.idle(), Duration::ZERO);
        drop(taken);
        assert!(one.idle() < since.elapsed());
    }
}
