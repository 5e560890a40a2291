//! Python's text, equality and order of values.

use std::cmp::Ordering;
use std::fmt::{self, Write};

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::arguments::invalid;
use super::meter::MeteredText;
use super::taint::Taint;
use super::values::{is_data, same};

/// Python writes floats with an exponent from the first on, and below the second.
const EXPONENTS: (f64, f64) = (1e16, 1e-4);

/// The order of two values; `None` for `nan`.
type Order = Result<Option<Ordering>, Error>;

/// 2^127, the first float beyond the range of `i128`.
const BEYOND: f64 = 170_141_183_460_469_231_731_687_303_715_884_105_728.0;

/// A number; booleans are 1 and 0.
#[derive(Debug, Clone, Copy)]
pub enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    /// The value as a number, if it is one.
    pub fn of(value: &Value) -> Option<Number> {
        match value.kind() {
            ValueKind::Bool => Some(Number::Int(i128::from(value.is_true()))),
            ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Number::Int),
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Number::Float),
            _ => None,
        }
    }

    /// As a float.
    pub fn float(self) -> f64 {
        match self {
            Number::Int(whole) => whole as f64,
            Number::Float(float) => float,
        }
    }

    /// As a value.
    pub fn value(self) -> Value {
        match self {
            Number::Int(whole) => i64::try_from(whole).map_or_else(|_| Value::from(whole), Value::from),
            Number::Float(float) => Value::from(float),
        }
    }

    /// The order of two numbers.
    pub fn compare(self, other: Number) -> Option<Ordering> {
        match (self, other) {
            (Number::Int(a), Number::Int(b)) => Some(a.cmp(&b)),
            (Number::Float(a), Number::Float(b)) => a.partial_cmp(&b),
            (Number::Int(a), Number::Float(b)) => compare_exactly(a, b),
            (Number::Float(a), Number::Int(b)) => compare_exactly(b, a).map(Ordering::reverse),
        }
    }
}

/// Compares an integer with a float exactly, as Python does: the conversion of a large integer would round.
fn compare_exactly(whole: i128, float: f64) -> Option<Ordering> {
    if float.is_nan() {
        return None;
    }
    if float >= BEYOND {
        return Some(Ordering::Less);
    }
    if float < -BEYOND {
        return Some(Ordering::Greater);
    }
    let fraction = || 0.0.partial_cmp(&float.fract()).unwrap_or(Ordering::Equal);
    Some(whole.cmp(&(float.trunc() as i128)).then_with(fraction))
}

impl fmt::Display for Number {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Number::Int(whole) => write!(out, "{whole}"),
            Number::Float(float) => write_float(out, float),
        }
    }
}

fn write_float(out: &mut fmt::Formatter<'_>, float: f64) -> fmt::Result {
    if float.is_nan() {
        return out.write_str("nan");
    }
    if float.is_infinite() {
        return out.write_str(if float > 0.0 { "inf" } else { "-inf" });
    }
    let size = float.abs();
    if size != 0.0 && !(EXPONENTS.1..EXPONENTS.0).contains(&size) {
        let text = format!("{float:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return write!(out, "{digits}e{sign}{exponent:0>2}");
    }
    write!(out, "{float:?}")
}

/// A value as `{{ }}` writes it.
pub fn write_value(out: &mut MeteredText<'_>, value: &Value, taint: Taint) -> fmt::Result {
    if let Some(text) = value.as_str() {
        return out.write_str(text);
    }
    if value.is_undefined() {
        return Ok(());
    }
    // Quotes and brackets depend on the contents, so the text of a list or a map is tainted as a whole.
    let start = out.text.len();
    write_repr(out, value, taint)?;
    if matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        let marked = taint.mark(out.text.get(start..).unwrap_or_default()).into_owned();
        out.text.truncate(start);
        out.text.push_str(&marked);
    }
    Ok(())
}

/// A value as Python's `repr` writes it, in plain characters. The caller has measured the value, which bounds its
/// nesting.
pub fn write_repr(out: &mut MeteredText<'_>, value: &Value, taint: Taint) -> fmt::Result {
    if let Some(number) = Number::of(value).filter(|_| value.kind() == ValueKind::Number) {
        return write!(out, "{number}");
    }
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::None => out.write_str("None"),
        ValueKind::Bool => out.write_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::String => write_quoted(out, &taint.plain(value.as_str().unwrap_or_default())),
        ValueKind::Seq | ValueKind::Iterable => {
            let (open, close) = if value.is_tuple() { ("(", ")") } else { ("[", "]") };
            out.write_str(open)?;
            let mut count = 0;
            for item in value.try_iter().into_iter().flatten() {
                out.write_str(if count > 0 { ", " } else { "" })?;
                write_repr(out, &item, taint)?;
                count += 1;
            }
            out.write_str(if value.is_tuple() && count == 1 { "," } else { "" })?;
            out.write_str(close)
        }
        ValueKind::Map => {
            out.write_str("{")?;
            for (at, key) in value.try_iter().into_iter().flatten().enumerate() {
                out.write_str(if at > 0 { ", " } else { "" })?;
                write_repr(out, &key, taint)?;
                out.write_str(": ")?;
                write_repr(out, &value.get_item(&key).unwrap_or_default(), taint)?;
            }
            out.write_str("}")
        }
        _ => write!(out, "{value}"),
    }
}

fn write_quoted(out: &mut MeteredText<'_>, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for character in text.chars() {
        let number = u32::from(character);
        match character {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\\' => out.write_str("\\\\")?,
            _ if character == quote => write!(out, "\\{quote}")?,
            ' '..='~' => out.write_char(character)?,
            _ if is_printable(character) => out.write_char(character)?,
            _ if number <= 0xFF => write!(out, "\\x{number:02x}")?,
            _ if number <= 0xFFFF => write!(out, "\\u{number:04x}")?,
            _ => write!(out, "\\U{number:08x}")?,
        }
    }
    out.write_char(quote)
}

/// About Python's `isprintable`, from Rust's own escapes.
fn is_printable(character: char) -> bool {
    !character.is_whitespace() && character.escape_debug().len() == 1
        || character.is_alphanumeric()
        || matches!(character, '\u{300}'..='\u{36f}')
}

/// Whether two values are equal. The caller has measured both.
pub fn equal(a: &Value, b: &Value, taint: Taint) -> bool {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return a == b || taint.plain_chars(a).eq(taint.plain_chars(b));
    }
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return a.compare(b) == Some(Ordering::Equal);
    }
    if !is_data(a) || !is_data(b) {
        return same(a, b);
    }
    match (a.kind(), b.kind()) {
        (ValueKind::Seq | ValueKind::Iterable, ValueKind::Seq | ValueKind::Iterable) => {
            let (Ok(mut left), Ok(mut right)) = (a.try_iter(), b.try_iter()) else { return false };
            loop {
                match (left.next(), right.next()) {
                    (None, None) => return true,
                    (Some(a), Some(b)) if equal(&a, &b, taint) => (),
                    _ => return false,
                }
            }
        }
        (ValueKind::Map, ValueKind::Map) => {
            let Ok(mut keys) = a.try_iter() else { return false };
            let same = |key: &Value| match (a.get_item(key), b.get_item(key)) {
                (Ok(a), Ok(b)) => !b.is_undefined() && equal(&a, &b, taint),
                _ => false,
            };
            a.len() == b.len() && keys.all(|key| same(&key))
        }
        (ValueKind::Undefined, ValueKind::Undefined) | (ValueKind::None, ValueKind::None) => true,
        (ValueKind::Number, ValueKind::Number) | (ValueKind::Bytes, ValueKind::Bytes) => a == b,
        _ => false,
    }
}

/// The order of two numbers, texts or lists. The caller has measured both.
pub fn order(a: &Value, b: &Value, taint: Taint) -> Order {
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return Ok(Some(taint.plain_chars(a).cmp(taint.plain_chars(b))));
    }
    if let (Some(a), Some(b)) = (Number::of(a), Number::of(b)) {
        return Ok(a.compare(b));
    }
    if let (ValueKind::Seq, ValueKind::Seq) = (a.kind(), b.kind()) {
        let (mut left, mut right) = (a.try_iter()?, b.try_iter()?);
        loop {
            match (left.next(), right.next()) {
                (Some(a), Some(b)) if equal(&a, &b, taint) => (),
                (Some(a), Some(b)) => return order(&a, &b, taint),
                (a, b) => return Ok(Some(a.is_some().cmp(&b.is_some()))),
            }
        }
    }
    Err(invalid(format!("{} and {} have no order", a.kind(), b.kind())))
}

/// A stable merge sort that fails where two items have no order (a text and a number, `nan`). The standard sort may
/// panic there. The caller has charged the work.
pub fn sorted<T>(mut items: Vec<T>, order: &dyn Fn(&T, &T) -> Order) -> Result<Vec<T>, Error> {
    if items.len() < 2 {
        return Ok(items);
    }
    let right = sorted(items.split_off(items.len() / 2), order)?;
    let left = sorted(items, order)?;
    let mut merged = Vec::with_capacity(left.len() + right.len());
    let (mut left, mut right) = (left.into_iter().peekable(), right.into_iter().peekable());
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let found = order(a, b)?.ok_or_else(|| invalid("`nan` has no order"))?;
        merged.extend(if found.is_gt() { right.next() } else { left.next() });
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

#[cfg(test)]
mod tests {
    use super::super::meter::Meter;
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (float, text) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (-2.5e-5, "-2.5e-05"),
            (1e16, "1e+16"),
            (123_456_789.125, "123456789.125"),
            (1e-4, "0.0001"),
            (1e300, "1e+300"),
            (-0.0, "-0.0"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(Number::Float(float).to_string(), text);
        }
    }

    #[test]
    fn texts_are_quoted_as_python_quotes_them() {
        for (text, quoted) in
            [("a'b", "\"a'b\""), ("a'\"", "'a\\'\"'"), ("é\n\u{1}\u{200b}", "'é\\n\\x01\\u200b'"), ("\\", "'\\\\'")]
        {
            let meter = Meter::new();
            let mut out = MeteredText { meter: &meter, text: String::new() };
            write_repr(&mut out, &Value::from(text), Taint::NONE).expect("it is short");
            assert_eq!(out.text, quoted);
        }
    }
}
