//! JSON in Python's style.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::arguments::{Arguments, invalid};
use super::context::RenderContext;
use super::inputs;
use super::limits::MAX_NESTED;
use super::meter::MeteredText;
use super::python::{self, Number};

/// Widest indentation of a level, in characters.
const MAX_INDENT: usize = 64;

struct Style {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    between: String,
    colon: String,
}

/// The filter `tojson`, with transformers' arguments. The result is tainted as a whole, since its quotes and brackets
/// depend on the contents.
pub fn tojson(context: &RenderContext, args: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::of(args, &["value", "ensure_ascii", "indent", "separators", "sort_keys"])?;
    let value = arguments.need(0, "value")?;
    context.meter.measure(value)?;
    let indent = match arguments.get(2, "indent").filter(|indent| !indent.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => Some(text.as_str().unwrap_or_default().to_owned()),
        Some(_) => Some(
            " ".repeat(usize::try_from(arguments.integer(2, "indent")?.unwrap_or(0)).unwrap_or(0).min(MAX_INDENT + 1)),
        ),
    };
    if indent.as_ref().is_some_and(|indent| indent.len() > MAX_INDENT) {
        return Err(invalid(format!("an indentation has at most {MAX_INDENT} characters")));
    }
    let mut style = Style {
        ascii: arguments.flag(1, "ensure_ascii"),
        sorted: arguments.flag(4, "sort_keys"),
        between: if indent.is_some() { "," } else { ", " }.to_owned(),
        colon: ": ".to_owned(),
        indent,
    };
    if let Some(separators) = arguments.get(3, "separators").filter(|separators| !separators.is_none()) {
        let both = context.items(separators)?;
        let [Some(between), Some(colon)] = [both.first(), both.get(1)].map(|text| text?.as_str()) else {
            return Err(invalid("`separators` are two texts"));
        };
        (style.between, style.colon) = (between.to_owned(), colon.to_owned());
    }
    let mut text = MeteredText::new(&context.meter);
    write(context, &mut text, value, &style, 0)?;
    context.new_text(context.taint.mark(&text.text).into_owned())
}

fn write(
    context: &RenderContext,
    out: &mut MeteredText<'_>,
    value: &Value,
    style: &Style,
    depth: usize,
) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return write_text(out, &context.taint.plain(text), style);
    }
    match value.kind() {
        ValueKind::None => out.push("null"),
        ValueKind::Bool => out.push(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push(&number(value)?),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?;
            let mut count = 0;
            out.push("[")?;
            for item in items {
                begin(out, style, count, depth + 1)?;
                write(context, out, &item, style, depth + 1)?;
                count += 1;
            }
            end(out, style, count, depth)?;
            out.push("]")
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sorted {
                keys = python::sorted(keys, &|a, b| python::order(a, b, context.taint))?;
            }
            out.push("{")?;
            for (at, key) in keys.iter().enumerate() {
                begin(out, style, at, depth + 1)?;
                match key.kind() {
                    ValueKind::None => out.push("\"null\"")?,
                    ValueKind::Bool => out.push(if key.is_true() { "\"true\"" } else { "\"false\"" })?,
                    ValueKind::Number => out.push(&format!("\"{}\"", number(key)?))?,
                    _ => write_text(out, &context.taint.plain(key.as_str().unwrap_or_default()), style)?,
                }
                out.push(&style.colon)?;
                write(context, out, &value.get_item(key)?, style, depth + 1)?;
            }
            end(out, style, keys.len(), depth)?;
            out.push("}")
        }
        kind => Err(invalid(format!("{kind} cannot be written as JSON"))),
    }
}

fn number(value: &Value) -> Result<String, Error> {
    let number = Number::of(value).ok_or_else(|| invalid("the number cannot be written as JSON"))?;
    Ok(match number {
        Number::Float(float) if float.is_nan() => "NaN".to_owned(),
        Number::Float(float) if float.is_infinite() => if float > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        number => number.to_string(),
    })
}

fn begin(out: &mut MeteredText<'_>, style: &Style, at: usize, depth: usize) -> Result<(), Error> {
    if at > 0 {
        out.push(&style.between)?;
    }
    line(out, style, depth)
}

fn end(out: &mut MeteredText<'_>, style: &Style, count: usize, depth: usize) -> Result<(), Error> {
    if count == 0 { Ok(()) } else { line(out, style, depth) }
}

fn line(out: &mut MeteredText<'_>, style: &Style, depth: usize) -> Result<(), Error> {
    let Some(indent) = &style.indent else { return Ok(()) };
    out.push("\n")?;
    (0..depth).try_for_each(|_| out.push(indent))
}

fn write_text(out: &mut MeteredText<'_>, text: &str, style: &Style) -> Result<(), Error> {
    out.push("\"")?;
    for character in text.chars() {
        match character {
            '"' => out.push("\\\"")?,
            '\\' => out.push("\\\\")?,
            '\n' => out.push("\\n")?,
            '\r' => out.push("\\r")?,
            '\t' => out.push("\\t")?,
            '\u{8}' => out.push("\\b")?,
            '\u{c}' => out.push("\\f")?,
            _ if character < ' ' || style.ascii && !character.is_ascii() => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    out.push(&format!("\\u{unit:04x}"))?;
                }
            }
            _ if style.ascii && character == '\u{7f}' => out.push("\u{7f}")?,
            _ => out.push(character.encode_utf8(&mut [0; 4]))?,
        }
    }
    out.push("\"")
}

/// The filter `from_json`. A tainted text gives tainted values.
pub fn from_json(context: &RenderContext, args: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::of(args, &["value"])?;
    let text = arguments.text(0, "value")?.ok_or_else(|| invalid("`from_json` reads a text"))?;
    context.meter.charge_work(text.len())?;
    // About the size of the parsed tree: each value has a bracket, a comma or a colon.
    let places = text.chars().filter(|at| matches!(context.taint.plain_char(*at), '[' | '{' | ',' | ':')).count();
    context.meter.charge_memory(places.saturating_add(1).saturating_mul(super::context::PIECE_COST))?;
    let plain = context.taint.plain(text);
    let json = serde_json::from_str(&plain).map_err(|_| invalid("the text is not JSON"))?;
    if inputs::size(&json, MAX_NESTED).is_none() {
        return Err(invalid("the JSON is nested too deep"));
    }
    let taint = if context.taint.occurs_in(text) { context.taint } else { super::taint::Taint::NONE };
    let value = inputs::value(&json, taint, context.taint);
    context.meter.charge_memory(context.meter.measure(&value)?)?;
    Ok(value)
}
