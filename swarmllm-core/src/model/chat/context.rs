//! The state of one rendering that all functions of a template share.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::arguments::invalid;
use super::meter::{Meter, MeteredText, StopReason};
use super::python;
use super::taint::Taint;
use super::values::{List, freeze, is_data};

/// Cost of one piece of a split text: about its size in memory.
pub const PIECE_COST: usize = 64;

/// The budget and the taint of one rendering.
#[derive(Debug)]
pub struct RenderContext {
    pub meter: Meter,
    pub taint: Taint,
}

impl RenderContext {
    /// The text of a value as `{{ }}` writes it.
    pub fn text(&self, value: &Value) -> Result<String, Error> {
        let mut text = MeteredText::new(&self.meter);
        self.append(&mut text, value)?;
        Ok(text.text)
    }

    /// Appends the text of a value.
    pub fn append(&self, text: &mut MeteredText<'_>, value: &Value) -> Result<(), Error> {
        self.meter.measure(value)?;
        python::write_value(text, value, self.taint).map_err(|_| self.meter.stop(StopReason::Memory))
    }

    /// The items of a list, the keys of a map, the characters of a text.
    pub fn items(&self, value: &Value) -> Result<Vec<Value>, Error> {
        if let Some(text) = value.as_str() {
            self.meter.charge_work(text.len())?;
        }
        match value.kind() {
            ValueKind::None => Err(invalid("none has no items")),
            _ => self.meter.collect(value),
        }
    }

    /// A new list with frozen copies of the items.
    pub fn list(&self, items: &[Value]) -> Result<Value, Error> {
        self.check_parts(items)?;
        let list = List::of(items.iter().map(freeze).collect());
        self.meter.charge_memory(self.meter.measure(&list)?)?;
        Ok(list)
    }

    /// The value, frozen, as a part of another.
    pub fn part(&self, value: &Value) -> Result<Value, Error> {
        self.check_parts(std::slice::from_ref(value))?;
        let part = freeze(value);
        self.meter.charge_memory(self.meter.measure(&part)?)?;
        Ok(part)
    }

    /// Refuses parts that are not data.
    pub fn check_parts(&self, parts: &[Value]) -> Result<(), Error> {
        match parts.iter().all(is_data) {
            true => Ok(()),
            false => Err(invalid("a namespace, a loop, a method or a macro cannot be put into a value")),
        }
    }

    /// Whether two values are equal.
    pub fn equal(&self, a: &Value, b: &Value) -> Result<bool, Error> {
        self.meter.measure(a)?;
        self.meter.measure(b)?;
        Ok(python::equal(a, b, self.taint))
    }

    /// A text, or the text of another value, tainted and plain.
    pub fn tainted(&self, value: &Value) -> Result<TaintedText, Error> {
        let marked = match value.as_str() {
            Some(text) => {
                self.meter.charge_work(text.len())?;
                text.to_owned()
            }
            None => self.text(value)?,
        };
        Ok(TaintedText { plain: self.taint.plain(&marked).into_owned(), marked, taint: self.taint })
    }

    /// A new text, charged to the meter.
    pub fn new_text(&self, text: impl AsRef<str> + Into<String>) -> Result<Value, Error> {
        self.meter.charge_memory(super::taint::cost(text.as_ref()))?;
        Ok(Value::from(text.into()))
    }
}

/// A text with its taint and its plain form. Searches use the plain form; results are cut from the tainted one.
#[derive(Debug)]
pub struct TaintedText {
    pub plain: String,
    pub marked: String,
    taint: Taint,
}

impl TaintedText {
    /// Parts of the tainted text by ascending byte ranges of the plain one.
    pub fn parts<'t>(
        &'t self,
        ranges: impl Iterator<Item = std::ops::Range<usize>> + 't,
    ) -> impl Iterator<Item = &'t str> {
        let mut at = Place::default();
        ranges.map(move |range| {
            let start = at.advance(self, range.start);
            let end = at.advance(self, range.end);
            self.marked.get(start..end).unwrap_or_default()
        })
    }

    /// One part.
    pub fn part(&self, range: std::ops::Range<usize>) -> &str {
        self.parts(std::iter::once(range)).next().unwrap_or_default()
    }

    /// Taints `text`, which was computed from the plain form, as [`Taint::like`] does.
    pub fn like(&self, text: String) -> String {
        self.taint.like(text.into(), &self.marked).into_owned()
    }
}

/// A position in both texts.
#[derive(Default)]
struct Place {
    plain: usize,
    marked: usize,
}

impl Place {
    /// Advances to a byte of the plain text and returns its position in the tainted one.
    fn advance(&mut self, tainted: &TaintedText, to: usize) -> usize {
        if tainted.plain.len() == tainted.marked.len() {
            return to;
        }
        let rest = tainted.marked.get(self.marked..).unwrap_or_default();
        for character in rest.chars() {
            if self.plain >= to {
                break;
            }
            self.plain += tainted.taint.plain_char(character).len_utf8();
            self.marked += character.len_utf8();
        }
        self.marked
    }
}
