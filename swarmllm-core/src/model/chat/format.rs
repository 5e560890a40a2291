//! Python's two formats: `'{}'.format(x)` and `'%s' % x`.

use std::collections::BTreeMap;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::arguments::{Arguments, invalid};
use super::context::RenderContext;
use super::meter::MeteredText;
use super::python::{self, Number};

/// Widest field and longest fraction, in characters. Bounds the digits of a number, which no meter counts.
const MAX_WIDTH: usize = 4096;

/// The format of one value.
#[derive(Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    comma: bool,
    width: usize,
    precision: Option<usize>,
    kind: Option<char>,
}

/// The values for the fields of a format.
struct Fields<'a> {
    values: &'a [Value],
    named: BTreeMap<&'a str, &'a Value>,
    /// The position for the next field without a name.
    next: usize,
}

/// `pattern.format(...)`. A tainted pattern taints the whole result.
pub fn braces(context: &RenderContext, pattern: &str, args: &[Value]) -> Result<Value, Error> {
    match context.taint.occurs_in(pattern) {
        false => trusted_braces(context, pattern, args),
        true => taint_whole(context, &trusted_braces(context, &context.taint.plain(pattern), args)?),
    }
}

/// A result, tainted as a whole.
fn taint_whole(context: &RenderContext, value: &Value) -> Result<Value, Error> {
    context.new_text(context.taint.mark(value.as_str().unwrap_or_default()).into_owned())
}

fn trusted_braces(context: &RenderContext, pattern: &str, args: &[Value]) -> Result<Value, Error> {
    let arguments = Arguments::new(args)?;
    let mut text = MeteredText::new(&context.meter);
    // The first of several equal names wins.
    let named = arguments.named.iter().rev().map(|(name, value)| (name.as_str(), value)).collect();
    let mut fields = Fields { values: arguments.values, named, next: 0 };
    let mut rest = pattern;
    while let Some(at) = rest.find(['{', '}']) {
        text.push(rest.get(..at).unwrap_or_default())?;
        let brace = rest.get(at..=at).unwrap_or_default();
        rest = rest.get(at + 1..).unwrap_or_default();
        if let Some(after) = rest.strip_prefix(brace) {
            text.push(brace)?;
            rest = after;
            continue;
        }
        let end = rest.find('}').filter(|_| brace == "{").ok_or_else(|| invalid("a format has an unmatched brace"))?;
        let field = rest.get(..end).unwrap_or_default().to_owned();
        if field.contains('{') {
            return Err(invalid("nested fields of a format are not admitted"));
        }
        rest = rest.get(end + 1..).unwrap_or_default();
        write_field(context, &mut text, &field, &mut fields)?;
    }
    text.push(rest)?;
    Ok(Value::from(text.text))
}

fn write_field(
    context: &RenderContext,
    text: &mut MeteredText<'_>,
    field: &str,
    arguments: &mut Fields<'_>,
) -> Result<(), Error> {
    let (head, spec) = field.split_once(':').unwrap_or((field, ""));
    let (path, conversion) = head.split_once('!').map_or((head, None), |(path, how)| (path, Some(how)));
    let name_end = path.find(['.', '[']).unwrap_or(path.len());
    let (name, steps) = path.split_at(name_end);
    let value = match (name.is_empty(), name.parse::<usize>()) {
        (true, _) => {
            arguments.next += 1;
            arguments.values.get(arguments.next - 1)
        }
        (false, Ok(at)) => arguments.values.get(at),
        (false, Err(_)) => arguments.named.get(name).copied(),
    };
    let mut value = value.cloned().ok_or_else(|| invalid(format!("the format's field `{name}` has no argument")))?;
    for step in steps.split(['.', '[']).filter(|step| !step.is_empty()) {
        let step = step.strip_suffix(']').unwrap_or(step);
        let key = step.parse::<i64>().map_or_else(|_| Value::from(step), Value::from);
        value = super::operators::item(context, &[value, key])?;
    }
    let mut written = parse_spec(spec)?;
    match conversion {
        None => (),
        Some("s") => value = Value::from(context.text(&value)?),
        Some("r") => value = repr(context, &value)?,
        Some(other) => return Err(invalid(format!("the format's conversion `!{other}` is not admitted"))),
    }
    if value.kind() == ValueKind::String && written.align.is_none() {
        written.align = Some('<');
    }
    write_spec(context, text, &value, &written)
}

fn repr(context: &RenderContext, value: &Value) -> Result<Value, Error> {
    context.meter.measure(value)?;
    let mut text = MeteredText::new(&context.meter);
    python::write_repr(&mut text, value, context.taint)
        .map_err(|_| context.meter.stop(super::meter::StopReason::Memory))?;
    context.new_text(context.taint.mark(&text.text).into_owned())
}

/// `[[fill]align][sign][#][0][width][,][.precision][type]`.
fn parse_spec(text: &str) -> Result<Spec, Error> {
    let mut spec = Spec::default();
    let characters: Vec<char> = text.chars().collect();
    let aligns = |character: Option<&char>| character.is_some_and(|at| matches!(at, '<' | '>' | '^' | '='));
    let mut at = 0;
    if aligns(characters.get(1)) {
        (spec.fill, spec.align) = (characters.first().copied(), characters.get(1).copied());
        at = 2;
    } else if aligns(characters.first()) {
        spec.align = characters.first().copied();
        at = 1;
    }
    let mut take = |wanted: fn(char) -> bool| {
        let found = characters.get(at).copied().filter(|character| wanted(*character));
        at += usize::from(found.is_some());
        found
    };
    spec.sign = take(|character| matches!(character, '+' | '-' | ' '));
    spec.alternate = take(|character| character == '#').is_some();
    if take(|character| character == '0').is_some() && spec.align.is_none() {
        (spec.fill, spec.align) = (Some('0'), Some('='));
    }
    let number = |take: &mut dyn FnMut(fn(char) -> bool) -> Option<char>| {
        let mut number = None;
        while let Some(digit) = take(|character| character.is_ascii_digit()).and_then(|digit| digit.to_digit(10)) {
            let value = number.unwrap_or(0usize).saturating_mul(10).saturating_add(digit as usize);
            number = Some(value.min(MAX_WIDTH + 1));
        }
        number
    };
    spec.width = number(&mut take).unwrap_or(0);
    spec.comma = take(|character| character == ',').is_some();
    if take(|character| character == '.').is_some() {
        spec.precision = Some(number(&mut take).unwrap_or(0));
    }
    spec.kind = take(|character| character.is_ascii_alphabetic() || character == '%');
    if at < characters.len() {
        return Err(invalid(format!("the format `{text}` is not admitted")));
    }
    if spec.width > MAX_WIDTH || spec.precision.is_some_and(|precision| precision > MAX_WIDTH) {
        return Err(invalid(format!("a field of a format has at most {MAX_WIDTH} characters")));
    }
    Ok(spec)
}

/// Writes a value. Numbers align right in their field, others left.
fn write_spec(context: &RenderContext, text: &mut MeteredText<'_>, value: &Value, spec: &Spec) -> Result<(), Error> {
    let number = Number::of(value).filter(|_| value.kind() == ValueKind::Number || spec.kind.is_some());
    let (sign, body) = match (number, spec.kind) {
        (_, Some('s')) | (None, None) => {
            let whole = context.text(value)?;
            let cut = match spec.precision {
                Some(most) => whole.chars().take(most).collect(),
                None => whole,
            };
            (String::new(), cut)
        }
        (Some(number), kind) => number_text(number, kind, spec)?,
        (None, Some(kind)) => return Err(invalid(format!("the format `{kind}` is for numbers"))),
    };
    let length = sign.chars().count() + body.chars().count();
    let missing = spec.width.saturating_sub(length);
    let fill = spec.fill.unwrap_or(' ');
    let align = spec.align.unwrap_or(if number.is_some() && spec.kind != Some('s') { '>' } else { '<' });
    let left = match align {
        '<' | '=' => 0,
        '^' => missing / 2,
        _ => missing,
    };
    text.fill(fill, left)?;
    text.push(&sign)?;
    text.fill(fill, if align == '=' { missing } else { 0 })?;
    text.push(&body)?;
    text.fill(fill, if align == '=' { 0 } else { missing - left })
}

/// The sign of a number and its digits.
fn number_text(number: Number, kind: Option<char>, spec: &Spec) -> Result<(String, String), Error> {
    let negative = number.float().is_sign_negative() && number.float() != 0.0;
    let sign = match (negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    let whole = |number: Number| match number {
        Number::Int(whole) => Ok(whole.unsigned_abs()),
        Number::Float(_) => Err(invalid("the format is for integers")),
    };
    let prefix = |prefix: &'static str| if spec.alternate { prefix } else { "" };
    let size = number.float().abs();
    let body = match (kind, number) {
        (Some('d'), _) => whole(number)?.to_string(),
        (None, Number::Int(whole)) => whole.unsigned_abs().to_string(),
        (None, Number::Float(float)) if spec.precision.is_none() => Number::Float(float.abs()).to_string(),
        (Some('x'), _) => format!("{}{:x}", prefix("0x"), whole(number)?),
        (Some('X'), _) => format!("{}{:X}", prefix("0X"), whole(number)?),
        (Some('o'), _) => format!("{}{:o}", prefix("0o"), whole(number)?),
        (Some('b'), _) => format!("{}{:b}", prefix("0b"), whole(number)?),
        (Some('f' | 'F'), _) => format!("{size:.*}", spec.precision.unwrap_or(6)),
        (Some('%'), _) => format!("{:.*}%", spec.precision.unwrap_or(6), size * 100.0),
        (kind, _) => {
            let name = kind.map_or_else(|| ".".to_owned(), |kind| kind.to_string());
            return Err(invalid(format!("the format `{name}` of numbers is not admitted")));
        }
    };
    Ok((sign.to_owned(), if spec.comma { grouped(&body) } else { body }))
}

/// Commas between groups of three digits.
fn grouped(body: &str) -> String {
    let digits = body.find(|character: char| !character.is_ascii_digit()).unwrap_or(body.len());
    let (whole, rest) = body.split_at(digits);
    let mut text = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text + rest
}

/// `pattern % values`, and the filter `format`. A tainted pattern taints the whole result.
pub fn percent(context: &RenderContext, pattern: &Value, values: &[Value]) -> Result<Value, Error> {
    let pattern = context.text(pattern)?;
    match context.taint.occurs_in(&pattern) {
        false => trusted_percent(context, &pattern, values),
        true => taint_whole(context, &trusted_percent(context, &context.taint.plain(&pattern), values)?),
    }
}

fn trusted_percent(context: &RenderContext, pattern: &str, values: &[Value]) -> Result<Value, Error> {
    let mut text = MeteredText::new(&context.meter);
    let (mut rest, mut next) = (pattern, 0);
    while let Some((before, after)) = rest.split_once('%') {
        text.push(before)?;
        let after_name = after.strip_prefix('(').and_then(|name| name.split_once(')'));
        let (name, directive) = after_name.map_or((None, after), |(name, after)| (Some(name), after));
        let end = directive.find(|at: char| at.is_ascii_alphabetic() || at == '%');
        let end = end.ok_or_else(|| invalid("a format has a `%` without a directive"))?;
        let (flags, kind) = (directive.get(..end).unwrap_or_default(), directive.get(end..=end).unwrap_or_default());
        rest = directive.get(end + 1..).unwrap_or_default();
        if kind == "%" {
            text.push("%")?;
            continue;
        }
        let value = match name {
            Some(name) => {
                let holder = values.first().cloned().unwrap_or_default();
                super::operators::item(context, &[holder, Value::from(name)])?
            }
            None => {
                next += 1;
                values.get(next - 1).cloned().ok_or_else(|| invalid("a format has fewer values than fields"))?
            }
        };
        let left = flags.contains('-');
        let mut spec = parse_spec(&flags.replace('-', ""))?;
        let value = match kind {
            "s" => Value::from(context.text(&value)?),
            "r" => repr(context, &value)?,
            "d" | "i" | "u" => match Number::of(&value) {
                Some(Number::Float(float)) => Value::from(float.trunc() as i64),
                _ => value,
            },
            _ => value,
        };
        spec.kind = match kind {
            "r" | "s" => Some('s'),
            "i" | "u" => Some('d'),
            other => other.chars().next(),
        };
        if spec.kind == Some('s') && spec.align == Some('=') {
            spec.fill = None;
        }
        spec.align = if left { Some('<') } else { Some(spec.align.unwrap_or('>')) };
        write_spec(context, &mut text, &value, &spec)?;
    }
    text.push(rest)?;
    if next < values.len() && values.first().is_none_or(|value| value.kind() != ValueKind::Map) {
        return Err(invalid("a format has more values than fields"));
    }
    Ok(Value::from(text.text))
}

#[cfg(test)]
mod tests {
    use super::super::meter::Meter;
    use super::super::taint::Taint;
    use super::*;

    #[test]
    fn values_are_written_as_python_writes_them() {
        let context = RenderContext { meter: Meter::new(), taint: Taint::NONE };
        for (pattern, value, text) in [
            ("{}|{{}}", Value::from(7), "7|{}"),
            ("{:>4}|", Value::from("ab"), "  ab|"),
            ("{:*^5}|", Value::from("a"), "**a**|"),
            ("{:04d}", Value::from(-7), "-007"),
            ("{:,}", Value::from(1_234_567), "1,234,567"),
            ("{:.2f}", Value::from(2.675), "2.67"),
            ("{0:x}{0:#X}", Value::from(255), "ff0XFF"),
            ("{:.1}|{!r}", Value::from("ab"), ""),
            ("{:+}", Value::from(3), "+3"),
            ("{:.0%}", Value::from(0.5), "50%"),
            ("{0[1]}", Value::from(vec![1, 2]), "2"),
            ("{:5}|", Value::from(7), "    7|"),
        ] {
            let written = braces(&context, pattern, &[value]).map(|value| value.to_string()).unwrap_or_default();
            assert_eq!(written, text, "{pattern}");
        }
        for (pattern, value, text) in [
            ("%s%%", Value::from("a"), "a%"),
            ("%5.1f|", Value::from(1.25), "  1.2|"),
            ("%-5d|", Value::from(3), "3    |"),
            ("%03d", Value::from(7), "007"),
            ("%5s|", Value::from("ab"), "   ab|"),
        ] {
            let written = percent(&context, &Value::from(pattern), &[value]).map(|value| value.to_string());
            assert_eq!(written.unwrap_or_default(), text, "{pattern}");
        }
        assert!(braces(&context, "{:99999}", &[Value::from(1)]).is_err());
    }
}
