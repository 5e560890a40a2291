//! JSON as Python writes and reads it.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::given::{Given, invalid};
use super::inputs;
use super::limits::MAX_NESTED;
use super::meter::Text;
use super::python::{self, Number};
use super::rendering::Rendering;

/// Widest indentation of a level, in characters.
const MAX_INDENT: usize = 64;

struct Style {
    ascii: bool,
    sorted: bool,
    indent: Option<String>,
    between: String,
    colon: String,
}

/// The filter `tojson`, with the arguments that it has in transformers. What it gives is foreign as a whole, as its
/// quotes and brackets depend on what is in it.
pub fn tojson(rendering: &Rendering, args: &[Value]) -> Result<Value, Error> {
    let given = Given::of(args, &["value", "ensure_ascii", "indent", "separators", "sort_keys"])?;
    let value = given.need(0, "value")?;
    rendering.meter.weigh(value)?;
    let indent = match given.get(2, "indent").filter(|indent| !indent.is_none()) {
        None => None,
        Some(text) if text.as_str().is_some() => Some(text.as_str().unwrap_or_default().to_owned()),
        Some(_) => {
            Some(" ".repeat(usize::try_from(given.whole(2, "indent")?.unwrap_or(0)).unwrap_or(0).min(MAX_INDENT + 1)))
        }
    };
    if indent.as_ref().is_some_and(|indent| indent.len() > MAX_INDENT) {
        return Err(invalid(format!("an indentation has at most {MAX_INDENT} characters")));
    }
    let mut style = Style {
        ascii: given.flag(1, "ensure_ascii"),
        sorted: given.flag(4, "sort_keys"),
        between: if indent.is_some() { "," } else { ", " }.to_owned(),
        colon: ": ".to_owned(),
        indent,
    };
    if let Some(separators) = given.get(3, "separators").filter(|separators| !separators.is_none()) {
        let both = rendering.items(separators)?;
        let [Some(between), Some(colon)] = [both.first(), both.get(1)].map(|text| text?.as_str()) else {
            return Err(invalid("`separators` are two texts"));
        };
        (style.between, style.colon) = (between.to_owned(), colon.to_owned());
    }
    let mut text = Text::new(&rendering.meter);
    write(rendering, &mut text, value, &style, 0)?;
    rendering.new_text(rendering.shadow.mark(&text.text).into_owned())
}

fn write(rendering: &Rendering, out: &mut Text<'_>, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if let Some(text) = value.as_str() {
        return write_text(out, &rendering.shadow.plain(text), style);
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
                write(rendering, out, &item, style, depth + 1)?;
                count += 1;
            }
            end(out, style, count, depth)?;
            out.push("]")
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sorted {
                keys = python::sorted(keys, &|a, b| python::order(a, b, rendering.shadow))?;
            }
            out.push("{")?;
            for (at, key) in keys.iter().enumerate() {
                begin(out, style, at, depth + 1)?;
                match key.kind() {
                    ValueKind::None => out.push("\"null\"")?,
                    ValueKind::Bool => out.push(if key.is_true() { "\"true\"" } else { "\"false\"" })?,
                    ValueKind::Number => out.push(&format!("\"{}\"", number(key)?))?,
                    _ => write_text(out, &rendering.shadow.plain(key.as_str().unwrap_or_default()), style)?,
                }
                out.push(&style.colon)?;
                write(rendering, out, &value.get_item(key)?, style, depth + 1)?;
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

fn begin(out: &mut Text<'_>, style: &Style, at: usize, depth: usize) -> Result<(), Error> {
    if at > 0 {
        out.push(&style.between)?;
    }
    line(out, style, depth)
}

fn end(out: &mut Text<'_>, style: &Style, count: usize, depth: usize) -> Result<(), Error> {
    if count == 0 { Ok(()) } else { line(out, style, depth) }
}

fn line(out: &mut Text<'_>, style: &Style, depth: usize) -> Result<(), Error> {
    let Some(indent) = &style.indent else { return Ok(()) };
    out.push("\n")?;
    (0..depth).try_for_each(|_| out.push(indent))
}

fn write_text(out: &mut Text<'_>, text: &str, style: &Style) -> Result<(), Error> {
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

/// The filter `from_json`. What it gives is foreign where the text was.
pub fn from_json(rendering: &Rendering, args: &[Value]) -> Result<Value, Error> {
    let given = Given::of(args, &["value"])?;
    let text = given.text(0, "value")?.ok_or_else(|| invalid("`from_json` reads a text"))?;
    rendering.meter.work(text.len())?;
    // About what the parsed tree takes: a bracket or a comma for each value.
    let places = text.chars().filter(|at| matches!(rendering.shadow.plain_char(*at), '[' | '{' | ',' | ':')).count();
    rendering.meter.build(places.saturating_add(1).saturating_mul(super::rendering::PIECE_COST))?;
    let plain = rendering.shadow.plain(text);
    let json = serde_json::from_str(&plain).map_err(|_| invalid("the text is no JSON"))?;
    if inputs::size(&json, MAX_NESTED).is_none() {
        return Err(invalid("the JSON is nested too deep"));
    }
    let shadow = if rendering.shadow.marks(text) { rendering.shadow } else { super::shadow::Shadow::NONE };
    let value = inputs::value(&json, shadow, rendering.shadow);
    rendering.meter.build(rendering.meter.weigh(&value)?)?;
    Ok(value)
}
