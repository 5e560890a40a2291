//! The remaining budget of one rendering, and the reason for its stop.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::error::cut;
use super::limits::MAX_BUILT_CHARS;
use super::taint::cost;

/// Most bytes and values that a rendering reads; a comparison of two texts reads both.
const MAX_WORK: usize = 1 << 30;
/// Deepest nesting of lists and maps: rendering and dropping them recurses.
pub const MAX_DEPTH: usize = 24;
/// Cost of a value beside its text: about its size in memory.
const VALUE_COST: usize = 64;
/// Longest kept message of `raise_exception`, in bytes.
const MAX_RAISED: usize = 1024;

/// The budget of one rendering. All functions that a template can call share it.
#[derive(Debug)]
pub struct Meter {
    memory: AtomicUsize,
    work: AtomicUsize,
    stop: Mutex<Option<StopReason>>,
}

/// Why a rendering was stopped.
#[derive(Debug, Clone)]
pub enum StopReason {
    /// It built more than [`MAX_BUILT_CHARS`].
    Memory,
    /// It read more than [`MAX_WORK`], or values nest deeper than [`MAX_DEPTH`].
    Work,
    /// The template refused the conversation itself.
    Raised(String),
    /// It ran a refused part of the language.
    Unsupported(&'static str),
}

impl Meter {
    pub fn new() -> Meter {
        Meter { memory: AtomicUsize::new(MAX_BUILT_CHARS), work: AtomicUsize::new(MAX_WORK), stop: Mutex::new(None) }
    }

    /// The first reason to stop, if any.
    pub fn stopped(&self) -> Option<StopReason> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops the rendering. The first reason is kept.
    pub fn stop(&self, stop: StopReason) -> Error {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(stop);
        Error::new(ErrorKind::InvalidOperation, "stopped")
    }

    /// Stops with the template's own message.
    pub fn raise(&self, message: &str) -> Error {
        self.stop(StopReason::Raised(cut(message, MAX_RAISED).to_owned()))
    }

    /// Charges `amount` characters (or bytes of a list). Call it before the allocation.
    pub fn charge_memory(&self, amount: usize) -> Result<(), Error> {
        take(&self.memory, amount).ok_or_else(|| self.stop(StopReason::Memory))
    }

    /// Charges `amount` bytes or values that are read.
    pub fn charge_work(&self, amount: usize) -> Result<(), Error> {
        take(&self.work, amount).ok_or_else(|| self.stop(StopReason::Work))
    }

    /// The size of a value with all its parts, shared parts counted each time. Refuses deep nesting. Charges the work.
    pub fn measure(&self, value: &Value) -> Result<usize, Error> {
        self.measure_within(value, MAX_DEPTH)
    }

    /// The size of several values.
    pub fn measure_all(&self, values: &[Value]) -> Result<usize, Error> {
        values.iter().try_fold(0usize, |sum, value| Ok(sum.saturating_add(self.measure(value)?)))
    }

    fn measure_within(&self, value: &Value, depth: usize) -> Result<usize, Error> {
        let own = VALUE_COST + value.as_str().map_or(0, cost);
        self.charge_work(own)?;
        let kind = value.kind();
        if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            return Ok(own);
        }
        let deeper = depth.checked_sub(1).ok_or_else(|| self.stop(StopReason::Work))?;
        // A namespace cannot be listed, and is never inside another value.
        let Ok(items) = value.try_iter() else { return Ok(own) };
        items.into_iter().try_fold(own, |sum, item| {
            let held = match kind {
                ValueKind::Map => self.measure_within(&value.get_item(&item)?, deeper)?,
                _ => 0,
            };
            Ok(sum.saturating_add(held).saturating_add(self.measure_within(&item, deeper)?))
        })
    }

    /// The items of a list.
    pub fn collect(&self, value: &Value) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        for item in value.try_iter()? {
            self.charge_memory(VALUE_COST)?;
            self.charge_work(1)?;
            items.push(item);
        }
        Ok(items)
    }
}

/// Subtracts `amount` from `left`, if `left` is large enough.
fn take(left: &AtomicUsize, amount: usize) -> Option<()> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(amount)).ok().map(drop)
}

/// A text whose growth is charged to a meter.
pub struct MeteredText<'m> {
    pub meter: &'m Meter,
    pub text: String,
}

impl<'m> MeteredText<'m> {
    /// An empty text.
    pub fn new(meter: &'m Meter) -> MeteredText<'m> {
        MeteredText { meter, text: String::new() }
    }

    /// Appends a part.
    pub fn push(&mut self, part: &str) -> Result<(), Error> {
        self.meter.charge_memory(cost(part))?;
        self.text.push_str(part);
        Ok(())
    }

    /// Appends a character several times.
    pub fn fill(&mut self, character: char, times: usize) -> Result<(), Error> {
        self.meter.charge_memory(times.saturating_mul(character.len_utf8()))?;
        self.text.extend(std::iter::repeat_n(character, times));
        Ok(())
    }
}

impl fmt::Write for MeteredText<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.meter.charge_memory(cost(part)).map_err(|_| fmt::Error)?;
        self.text.push_str(part);
        Ok(())
    }
}
