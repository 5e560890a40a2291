//! Handles: numbers that C holds instead of pointers. A stale handle gives an error code instead of a crash.
//!
//! A handle is `kind << 56 | generation << 24 | slot`. Slots are reused, generations are not: a slot without generations
//! left is retired. The kind tells a handle of another object type.

use std::sync::{Arc, Mutex, PoisonError};

use swarmllm_core::base::{ErrorKind, Fault};

use crate::status::refuse;

/// Maximum number of open handles of one kind.
const MAX_OPEN: usize = 1 << 16;
const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 32;

struct Slot<T> {
    generation: u32,
    value: Option<Arc<T>>,
}

struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

/// The open handles of one kind.
pub struct Registry<T> {
    kind: u8,
    noun: &'static str,
    inner: Mutex<Slots<T>>,
}

impl<T> Registry<T> {
    /// An empty registry. `kind` is not 0 and unique among registries.
    pub const fn new(kind: u8, noun: &'static str) -> Self {
        Self { kind, noun, inner: Mutex::new(Slots { slots: Vec::new(), free: Vec::new() }) }
    }

    /// Opens a handle.
    pub fn insert(&self, value: T) -> Result<u64, Fault> {
        let mut inner = self.lock();
        let index = match inner.free.pop() {
            Some(index) => index,
            None if inner.slots.len() < MAX_OPEN => {
                inner.slots.push(Slot { generation: 0, value: None });
                inner.slots.len() - 1
            }
            None => return Err(Fault::new(ErrorKind::Overloaded, format_args!("{MAX_OPEN} {}s are open", self.noun))),
        };
        let slot = &mut inner.slots[index];
        slot.value = Some(Arc::new(value));
        Ok(u64::from(self.kind) << (SLOT_BITS + GENERATION_BITS)
            | u64::from(slot.generation) << SLOT_BITS
            | index as u64)
    }

    /// The value of an open handle.
    pub fn get(&self, id: u64) -> Result<Arc<T>, Fault> {
        let inner = self.lock();
        let slot = self
            .index(id)
            .and_then(|(index, generation)| inner.slots.get(index).filter(|slot| slot.generation == generation));
        slot.and_then(|slot| slot.value.clone()).ok_or_else(|| self.stale(id))
    }

    /// Closes a handle and returns its value, which calls in other threads may still use.
    pub fn remove(&self, id: u64) -> Result<Arc<T>, Fault> {
        let mut inner = self.lock();
        let Slots { slots, free } = &mut *inner;
        let (index, generation) = self.index(id).ok_or_else(|| self.stale(id))?;
        let slot = slots.get_mut(index).filter(|slot| slot.generation == generation);
        let slot = slot.ok_or_else(|| self.stale(id))?;
        let value = slot.value.take().ok_or_else(|| self.stale(id))?;
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            free.push(index);
        }
        Ok(value)
    }

    fn index(&self, id: u64) -> Option<(usize, u32)> {
        let kind = id >> (SLOT_BITS + GENERATION_BITS);
        let index = id & ((1 << SLOT_BITS) - 1);
        // Truncated to its 32 bits on purpose.
        let generation = (id >> SLOT_BITS) as u32;
        (kind == u64::from(self.kind)).then_some((index as usize, generation))
    }

    fn stale(&self, id: u64) -> Fault {
        let noun = self.noun;
        match id {
            0 => refuse(format_args!("the {noun} handle is 0")),
            _ => refuse(format_args!("no open {noun} has the handle {id:#x}: freed, or of another kind")),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slots<T>> {
        // No code panics while it holds the lock; the state would be consistent all the same.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_handle_is_refused_after_its_slot_is_reused() {
        let registry = Registry::new(1, "thing");
        let first = registry.insert("first").unwrap();
        registry.remove(first).unwrap();
        let second = registry.insert("second").unwrap();
        assert_ne!(first, second);
        assert!(registry.get(first).is_err() && registry.remove(first).is_err());
        assert_eq!(*registry.get(second).unwrap(), "second");
    }

    #[test]
    fn zero_and_handles_of_another_kind_are_refused() {
        let (nodes, others) = (Registry::new(1, "node"), Registry::<u8>::new(2, "other"));
        let node = nodes.insert(()).unwrap();
        assert!(nodes.get(node).is_ok());
        assert!(others.get(node).is_err() && nodes.get(0).is_err() && nodes.get(u64::MAX).is_err());
    }

    #[test]
    fn a_slot_without_generations_left_is_retired() {
        let registry = Registry::new(1, "thing");
        let first = registry.insert(0).unwrap();
        registry.lock().slots[0].generation = u32::MAX;
        let last = first | u64::from(u32::MAX) << SLOT_BITS;
        registry.remove(last).unwrap();
        let next = registry.insert(1).unwrap();
        assert_eq!(next & 1, 1, "the next handle has a fresh slot");
        assert!(registry.get(last).is_err());
    }

    #[test]
    fn open_handles_are_bounded() {
        let registry = Registry::new(1, "thing");
        for _ in 0..MAX_OPEN {
            registry.insert(()).unwrap();
        }
        assert_eq!(registry.insert(()).unwrap_err().kind(), ErrorKind::Overloaded);
    }
}
