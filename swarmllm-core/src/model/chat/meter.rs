//! What one rendering may still use, and why it was stopped.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::error::cut;
use super::limits::MAX_BUILT;
use super::shadow::cost;

/// Bytes and values that a rendering may look at; a comparison of two long texts looks at both.
const MAX_WORK: usize = 1 << 30;
/// How deep lists and maps may nest: rendering and dropping them recurses.
pub const MAX_DEPTH: usize = 24;
/// What a value counts for beside its bytes: about what it takes in memory.
const VALUE_COST: usize = 64;
/// Longest message of `raise_exception` that is kept, in bytes.
const MAX_RAISED: usize = 1024;

/// Counts down over one rendering. Shared by everything that a template can call.
#[derive(Debug)]
pub struct Meter {
    built: AtomicUsize,
    work: AtomicUsize,
    stop: Mutex<Option<Stop>>,
}

/// Why a rendering was stopped.
#[derive(Debug, Clone)]
pub enum Stop {
    /// It built more text than is admitted.
    Built,
    /// It worked longer than is admitted.
    Work,
    /// The template refused the conversation itself.
    Raised(String),
    /// It came to a part of the language that is not admitted.
    Unsupported(&'static str),
}

impl Meter {
    pub fn new() -> Meter {
        Meter { built: AtomicUsize::new(MAX_BUILT), work: AtomicUsize::new(MAX_WORK), stop: Mutex::new(None) }
    }

    /// The first reason to stop, if there was one.
    pub fn stopped(&self) -> Option<Stop> {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops the rendering with this error.
    pub fn stop(&self, stop: Stop) -> Error {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(stop);
        Error::new(ErrorKind::InvalidOperation, "stopped")
    }

    /// Stops with the template's own message.
    pub fn raise(&self, message: &str) -> Error {
        self.stop(Stop::Raised(cut(message, MAX_RAISED).to_owned()))
    }

    /// Takes `amount` of what may be built. Call it before building.
    pub fn build(&self, amount: usize) -> Result<(), Error> {
        take(&self.built, amount).ok_or_else(|| self.stop(Stop::Built))
    }

    /// Takes `amount` of the work.
    pub fn work(&self, amount: usize) -> Result<(), Error> {
        take(&self.work, amount).ok_or_else(|| self.stop(Stop::Work))
    }

    /// Looks a value over: its size with all that it holds, every place counted. Refuses what is nested too deep.
    pub fn weigh(&self, value: &Value) -> Result<usize, Error> {
        self.weigh_within(value, MAX_DEPTH)
    }

    /// Looks several values over.
    pub fn weigh_all(&self, values: &[Value]) -> Result<usize, Error> {
        values.iter().try_fold(0usize, |sum, value| Ok(sum.saturating_add(self.weigh(value)?)))
    }

    fn weigh_within(&self, value: &Value, depth: usize) -> Result<usize, Error> {
        let own = VALUE_COST + value.as_str().map_or(0, cost);
        self.work(own)?;
        let kind = value.kind();
        if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
            return Ok(own);
        }
        let deeper = depth.checked_sub(1).ok_or_else(|| self.stop(Stop::Work))?;
        // Not every map can be listed; one that cannot (a namespace) is never inside another value.
        let Ok(items) = value.try_iter() else { return Ok(own) };
        items.into_iter().try_fold(own, |sum, item| {
            let held = match kind {
                ValueKind::Map => self.weigh_within(&value.get_item(&item)?, deeper)?,
                _ => 0,
            };
            Ok(sum.saturating_add(held).saturating_add(self.weigh_within(&item, deeper)?))
        })
    }

    /// The items of a list.
    pub fn collect(&self, value: &Value) -> Result<Vec<Value>, Error> {
        let mut items = Vec::new();
        for item in value.try_iter()? {
            self.build(VALUE_COST)?;
            self.work(1)?;
            items.push(item);
        }
        Ok(items)
    }
}

/// Takes `amount` off `left`, if there is as much.
fn take(left: &AtomicUsize, amount: usize) -> Option<()> {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(amount)).ok().map(drop)
}

/// A text that grows only as far as the meter admits.
pub struct Text<'m> {
    pub meter: &'m Meter,
    pub text: String,
}

impl<'m> Text<'m> {
    /// An empty text.
    pub fn new(meter: &'m Meter) -> Text<'m> {
        Text { meter, text: String::new() }
    }

    /// Appends a part.
    pub fn push(&mut self, part: &str) -> Result<(), Error> {
        self.meter.build(cost(part))?;
        self.text.push_str(part);
        Ok(())
    }

    /// Appends a character several times.
    pub fn fill(&mut self, character: char, times: usize) -> Result<(), Error> {
        self.meter.build(times.saturating_mul(character.len_utf8()))?;
        self.text.extend(std::iter::repeat_n(character, times));
        Ok(())
    }
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.meter.build(cost(part)).map_err(|_| fmt::Error)?;
        self.text.push_str(part);
        Ok(())
    }
}
