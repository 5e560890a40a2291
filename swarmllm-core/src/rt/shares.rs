//! A pool whose places are shared out: nobody can take all of them, and whoever has none yet finds one.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// How many places there are.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// For all together.
    pub all: usize,
    /// For each of those who take them.
    pub each: usize,
    /// Beyond `all`, for those who have none yet.
    pub reserve: usize,
}

/// See the module. Clones are the same pool.
#[derive(Debug)]
pub struct Shares<K: Hash + Eq> {
    inner: Arc<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K: Hash + Eq> {
    bounds: Bounds,
    taken: Mutex<Taken<K>>,
    given_back: Notify,
}

#[derive(Debug)]
struct Taken<K> {
    all: usize,
    by: HashMap<K, usize>,
}

/// Places of a pool. Given back when dropped.
#[derive(Debug)]
pub struct Place<K: Hash + Eq> {
    inner: Arc<Inner<K>>,
    by: K,
    size: usize,
}

impl<K: Hash + Eq> Clone for Shares<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K: Hash + Eq> Inner<K> {
    fn taken(&self) -> MutexGuard<'_, Taken<K>> {
        // Only sums change under the lock; a panic cannot leave them half-changed.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// A pool of which nothing is taken.
    pub fn new(bounds: Bounds) -> Self {
        let taken = Mutex::new(Taken { all: 0, by: HashMap::new() });
        Self { inner: Arc::new(Inner { bounds, taken, given_back: Notify::new() }) }
    }

    /// One place, where there is one for this taker.
    pub fn take(&self, by: K) -> Option<Place<K>> {
        self.take_many(by, 1)
    }

    /// So many places at once, a whole share at most.
    pub fn take_many(&self, by: K, size: usize) -> Option<Place<K>> {
        let Bounds { all, each, reserve } = self.inner.bounds;
        let size = size.min(each);
        let mut taken = self.inner.taken();
        let own = taken.by.get(&by).copied().unwrap_or(0);
        let most = if own == 0 { all.saturating_add(reserve) } else { all };
        if own + size > each || taken.all + size > most {
            return None;
        }
        taken.all += size;
        *taken.by.entry(by.clone()).or_default() += size;
        drop(taken);
        Some(Place { inner: self.inner.clone(), by, size })
    }

    /// The same, and waits until there are so many. Cancel-safe.
    pub async fn wait(&self, by: K, size: usize) -> Place<K> {
        loop {
            let changed = self.inner.given_back.notified();
            tokio::pin!(changed);
            // From here on nothing is missed that is given back.
            changed.as_mut().enable();
            if let Some(place) = self.take_many(by.clone(), size) {
                return place;
            }
            changed.await;
        }
    }
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut taken = self.inner.taken();
        taken.all = taken.all.saturating_sub(self.size);
        if let Some(own) = taken.by.get_mut(&self.by) {
            *own = own.saturating_sub(self.size);
            if *own == 0 {
                taken.by.remove(&self.by);
            }
        }
        drop(taken);
        self.inner.given_back.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const BOUNDS: Bounds = Bounds { all: 4, each: 3, reserve: 2 };

    #[test]
    fn nobody_takes_all_and_who_has_none_finds_a_place() {
        let shares = Shares::new(BOUNDS);
        let taken: Vec<_> = std::iter::repeat_with(|| shares.take('a')).map_while(|place| place).collect();
        assert_eq!(taken.len(), 3);
        let second = shares.take('b').unwrap();
        assert!(shares.take('b').is_none(), "all four are taken, and it has one");
        let (third, fourth) = (shares.take('c'), shares.take('d'));
        assert!(third.is_some() && fourth.is_some() && shares.take('e').is_none());
        drop((taken, second, third, fourth));
        assert!(shares.take('e').is_some() && shares.inner.taken().by.is_empty());
    }

    #[tokio::test]
    async fn who_waits_gets_what_is_given_back() {
        let shares = Shares::new(BOUNDS);
        let (first, _second) = (shares.wait('a', 2).await, shares.wait('b', 2).await);
        let mut waiting = std::pin::pin!(shares.wait('a', 1));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(first);
        waiting.await;
        // More than a share counts as one.
        assert_eq!(Shares::new(BOUNDS).wait('a', 99).await.size, 3);
    }
}
