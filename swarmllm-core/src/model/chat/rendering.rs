//! What everything that a template can call shares while it renders.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::given::invalid;
use super::meter::{Meter, Stop, Text};
use super::python;
use super::shadow::Shadow;
use super::values::{List, freeze, is_data};

/// What one piece of a split text counts for: about what it takes in memory.
pub const PIECE_COST: usize = 64;

/// One run of a template: what it may still use, and how foreign text is told from its own.
#[derive(Debug)]
pub struct Rendering {
    pub meter: Meter,
    pub shadow: Shadow,
}

impl Rendering {
    /// The text of a value as `{{ }}` writes it.
    pub fn text(&self, value: &Value) -> Result<String, Error> {
        let mut text = Text::new(&self.meter);
        self.append(&mut text, value)?;
        Ok(text.text)
    }

    /// Appends the text of a value.
    pub fn append(&self, text: &mut Text<'_>, value: &Value) -> Result<(), Error> {
        self.meter.weigh(value)?;
        python::write_value(text, value, self.shadow).map_err(|_| self.meter.stop(Stop::Built))
    }

    /// The items of a list, the keys of a map, the characters of a text.
    pub fn items(&self, value: &Value) -> Result<Vec<Value>, Error> {
        if let Some(text) = value.as_str() {
            self.meter.work(text.len())?;
        }
        match value.kind() {
            ValueKind::None => Err(invalid("none has no items")),
            _ => self.meter.collect(value),
        }
    }

    /// A list of these items.
    pub fn list(&self, items: &[Value]) -> Result<Value, Error> {
        self.check_parts(items)?;
        let list = List::of(items.iter().map(freeze).collect());
        self.meter.build(self.meter.weigh(&list)?)?;
        Ok(list)
    }

    /// The value as a part of another.
    pub fn part(&self, value: &Value) -> Result<Value, Error> {
        self.check_parts(std::slice::from_ref(value))?;
        let part = freeze(value);
        self.meter.build(self.meter.weigh(&part)?)?;
        Ok(part)
    }

    /// Refuses parts that are no data.
    pub fn check_parts(&self, parts: &[Value]) -> Result<(), Error> {
        match parts.iter().all(is_data) {
            true => Ok(()),
            false => Err(invalid("a namespace, a loop, a method or a macro cannot be put into a value")),
        }
    }

    /// Whether two values are equal.
    pub fn equal(&self, a: &Value, b: &Value) -> Result<bool, Error> {
        self.meter.weigh(a)?;
        self.meter.weigh(b)?;
        Ok(python::equal(a, b, self.shadow))
    }

    /// A text, or the text of another value, with its shadows and without.
    pub fn twin(&self, value: &Value) -> Result<Twin, Error> {
        let marked = match value.as_str() {
            Some(text) => {
                self.meter.work(text.len())?;
                text.to_owned()
            }
            None => self.text(value)?,
        };
        Ok(Twin { plain: self.shadow.plain(&marked).into_owned(), marked, shadow: self.shadow })
    }

    /// A new text.
    pub fn new_text(&self, text: impl AsRef<str> + Into<String>) -> Result<Value, Error> {
        self.meter.build(super::shadow::cost(text.as_ref()))?;
        Ok(Value::from(text.into()))
    }
}

/// A text in shadows and in plain characters. Searches are made in the plain one; what is cut is cut from the other.
#[derive(Debug)]
pub struct Twin {
    pub plain: String,
    pub marked: String,
    shadow: Shadow,
}

impl Twin {
    /// Parts of the text, given by byte ranges of the plain one that follow one another.
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

    /// `text`, computed from the plain characters, in shadows where this was.
    pub fn like(&self, text: String) -> String {
        self.shadow.like(text.into(), &self.marked).into_owned()
    }
}

/// A place in both texts.
#[derive(Default)]
struct Place {
    plain: usize,
    marked: usize,
}

impl Place {
    /// Goes on to a place of the plain text; what it is in the other one.
    fn advance(&mut self, twin: &Twin, to: usize) -> usize {
        if twin.plain.len() == twin.marked.len() {
            return to;
        }
        let rest = twin.marked.get(self.marked..).unwrap_or_default();
        for character in rest.chars() {
            if self.plain >= to {
                break;
            }
            self.plain += twin.shadow.plain_char(character).len_utf8();
            self.marked += character.len_utf8();
        }
        self.marked
    }
}
