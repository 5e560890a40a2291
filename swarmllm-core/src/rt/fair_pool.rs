//! A pool of permits with a limit per key and a reserve for keys without permits: no key can starve the others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Limits of a pool.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Permits of all keys together.
    pub total: usize,
    /// Permits per key.
    pub per_key: usize,
    /// Permits beyond `total` for keys without one.
    pub reserve: usize,
}

/// A pool, see the module. Clones share it.
#[derive(Debug)]
pub struct FairPool<K: Hash + Eq> {
    inner: Arc<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K: Hash + Eq> {
    limits: PoolLimits,
    taken: Mutex<Usage<K>>,
    returned: Notify,
}

#[derive(Debug)]
struct Usage<K> {
    all: usize,
    by_key: HashMap<K, usize>,
}

/// Permits of a pool, returned on drop.
#[derive(Debug)]
pub struct PoolPermit<K: Hash + Eq> {
    inner: Arc<Inner<K>>,
    key: K,
    size: usize,
}

impl<K: Hash + Eq> Clone for FairPool<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K: Hash + Eq> Inner<K> {
    fn taken(&self) -> MutexGuard<'_, Usage<K>> {
        // Only counters change under the lock; a panic leaves them consistent.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone> FairPool<K> {
    /// A pool without permits taken.
    pub fn new(limits: PoolLimits) -> Self {
        let taken = Mutex::new(Usage { all: 0, by_key: HashMap::new() });
        Self { inner: Arc::new(Inner { limits, taken, returned: Notify::new() }) }
    }

    /// Takes a permit, if available to this key.
    pub fn take(&self, key: K) -> Option<PoolPermit<K>> {
        self.take_many(key, 1)
    }

    /// Takes `size` permits at once, capped at the limit per key.
    pub fn take_many(&self, key: K, size: usize) -> Option<PoolPermit<K>> {
        let PoolLimits { total, per_key, reserve } = self.inner.limits;
        let size = size.min(per_key);
        let mut taken = self.inner.taken();
        let own = taken.by_key.get(&key).copied().unwrap_or(0);
        let limit = if own == 0 { total.saturating_add(reserve) } else { total };
        if own + size > per_key || taken.all + size > limit {
            return None;
        }
        taken.all += size;
        *taken.by_key.entry(key.clone()).or_default() += size;
        drop(taken);
        Some(PoolPermit { inner: self.inner.clone(), key, size })
    }

    /// Like [`take_many`](Self::take_many), but waits until the permits are available. Cancel-safe.
    pub async fn wait(&self, key: K, size: usize) -> PoolPermit<K> {
        loop {
            let changed = self.inner.returned.notified();
            tokio::pin!(changed);
            // From here on no returned permit is missed.
            changed.as_mut().enable();
            if let Some(permit) = self.take_many(key.clone(), size) {
                return permit;
            }
            changed.await;
        }
    }
}

impl<K: Hash + Eq> Drop for PoolPermit<K> {
    fn drop(&mut self) {
        let mut taken = self.inner.taken();
        taken.all = taken.all.saturating_sub(self.size);
        if let Some(own) = taken.by_key.get_mut(&self.key) {
            *own = own.saturating_sub(self.size);
            if *own == 0 {
                taken.by_key.remove(&self.key);
            }
        }
        drop(taken);
        self.inner.returned.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const LIMITS: PoolLimits = PoolLimits { total: 4, per_key: 3, reserve: 2 };

    #[test]
    fn no_key_takes_all_and_the_reserve_serves_new_keys() {
        let pool = FairPool::new(LIMITS);
        let taken: Vec<_> = std::iter::repeat_with(|| pool.take('a')).map_while(|permit| permit).collect();
        assert_eq!(taken.len(), 3);
        let second = pool.take('b').unwrap();
        assert!(pool.take('b').is_none(), "the pool is full and the key has a permit");
        let (third, fourth) = (pool.take('c'), pool.take('d'));
        assert!(third.is_some() && fourth.is_some() && pool.take('e').is_none());
        drop((taken, second, third, fourth));
        assert!(pool.take('e').is_some() && pool.inner.taken().by_key.is_empty());
    }

    #[tokio::test]
    async fn a_waiter_gets_a_returned_permit() {
        let pool = FairPool::new(LIMITS);
        let (first, _second) = (pool.wait('a', 2).await, pool.wait('b', 2).await);
        let mut waiting = std::pin::pin!(pool.wait('a', 1));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(first);
        waiting.await;
        // A larger size is capped at the limit per key.
        assert_eq!(FairPool::new(LIMITS).wait('a', 99).await.size, 3);
    }
}
