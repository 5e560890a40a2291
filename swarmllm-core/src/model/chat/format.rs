//! Python's two ways to put values into a text: `'{}'.format(x)` and `'%s' % x`.

use std::collections::BTreeMap;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::given::{Given, invalid};
use super::meter::Text;
use super::python::{self, Number};
use super::rendering::Rendering;

/// Widest field and longest fraction. What is built is metered beside; the digits of a number are not.
const MAX_WIDTH: usize = 4096;

/// How one value is written.
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

/// What the fields of a format are filled from.
struct Fields<'a> {
    values: &'a [Value],
    named: BTreeMap<&'a str, &'a Value>,
    /// The place of the next field without a name.
    next: usize,
}

/// `pattern.format(...)`. Of a foreign pattern the whole result is foreign.
pub fn braces(rendering: &Rendering, pattern: &str, args: &[Value]) -> Result<Value, Error> {
    match rendering.shadow.marks(pattern) {
        false => own_braces(rendering, pattern, args),
        true => foreign(rendering, &own_braces(rendering, &rendering.shadow.plain(pattern), args)?),
    }
}

/// A result, marked as a whole.
fn foreign(rendering: &Rendering, value: &Value) -> Result<Value, Error> {
    rendering.new_text(rendering.shadow.mark(value.as_str().unwrap_or_default()).into_owned())
}

fn own_braces(rendering: &Rendering, pattern: &str, args: &[Value]) -> Result<Value, Error> {
    let given = Given::new(args)?;
    let mut text = Text::new(&rendering.meter);
    // Of a name that comes twice the first counts.
    let named = given.named.iter().rev().map(|(name, value)| (name.as_str(), value)).collect();
    let mut fields = Fields { values: given.values, named, next: 0 };
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
        let end = rest.find('}').filter(|_| brace == "{").ok_or_else(|| invalid("a brace stands alone in a format"))?;
        let field = rest.get(..end).unwrap_or_default().to_owned();
        if field.contains('{') {
            return Err(invalid("a field within a field of a format is not admitted"));
        }
        rest = rest.get(end + 1..).unwrap_or_default();
        write_field(rendering, &mut text, &field, &mut fields)?;
    }
    text.push(rest)?;
    Ok(Value::from(text.text))
}

fn write_field(rendering: &Rendering, text: &mut Text<'_>, field: &str, given: &mut Fields<'_>) -> Result<(), Error> {
    let (head, spec) = field.split_once(':').unwrap_or((field, ""));
    let (path, conversion) = head.split_once('!').map_or((head, None), |(path, how)| (path, Some(how)));
    let name_end = path.find(['.', '[']).unwrap_or(path.len());
    let (name, steps) = path.split_at(name_end);
    let value = match (name.is_empty(), name.parse::<usize>()) {
        (true, _) => {
            given.next += 1;
            given.values.get(given.next - 1)
        }
        (false, Ok(at)) => given.values.get(at),
        (false, Err(_)) => given.named.get(name).copied(),
    };
    let mut value = value.cloned().ok_or_else(|| invalid(format!("the format's field `{name}` is not given")))?;
    for step in steps.split(['.', '[']).filter(|step| !step.is_empty()) {
        let step = step.strip_suffix(']').unwrap_or(step);
        let key = step.parse::<i64>().map_or_else(|_| Value::from(step), Value::from);
        value = super::operators::item(rendering, &[value, key])?;
    }
    let mut written = parse_spec(spec)?;
    match conversion {
        None => (),
        Some("s") => value = Value::from(rendering.text(&value)?),
        Some("r") => value = repr(rendering, &value)?,
        Some(other) => return Err(invalid(format!("the format's conversion `!{other}` is not admitted"))),
    }
    if value.kind() == ValueKind::String && written.align.is_none() {
        written.align = Some('<');
    }
    write_spec(rendering, text, &value, &written)
}

fn repr(rendering: &Rendering, value: &Value) -> Result<Value, Error> {
    rendering.meter.weigh(value)?;
    let mut text = Text::new(&rendering.meter);
    python::write_repr(&mut text, value, rendering.shadow)
        .map_err(|_| rendering.meter.stop(super::meter::Stop::Built))?;
    rendering.new_text(rendering.shadow.mark(&text.text).into_owned())
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

/// Writes a value. Numbers stand at the right end of their field, others at the left.
fn write_spec(rendering: &Rendering, text: &mut Text<'_>, value: &Value, spec: &Spec) -> Result<(), Error> {
    let number = Number::of(value).filter(|_| value.kind() == ValueKind::Number || spec.kind.is_some());
    let (sign, body) = match (number, spec.kind) {
        (_, Some('s')) | (None, None) => {
            let whole = rendering.text(value)?;
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

/// The sign of a number and the rest of it.
fn number_text(number: Number, kind: Option<char>, spec: &Spec) -> Result<(String, String), Error> {
    let negative = number.float().is_sign_negative() && number.float() != 0.0;
    let sign = match (negative, spec.sign) {
        (true, _) => "-",
        (false, Some('+')) => "+",
        (false, Some(' ')) => " ",
        _ => "",
    };
    let whole = |number: Number| match number {
        Number::Whole(whole) => Ok(whole.unsigned_abs()),
        Number::Float(_) => Err(invalid("the format is for whole numbers")),
    };
    let prefix = |prefix: &'static str| if spec.alternate { prefix } else { "" };
    let size = number.float().abs();
    let body = match (kind, number) {
        (Some('d'), _) => whole(number)?.to_string(),
        (None, Number::Whole(whole)) => whole.unsigned_abs().to_string(),
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

/// A comma between groups of three digits.
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

/// `pattern % values`, and the filter `format`. Of a foreign pattern the whole result is foreign.
pub fn percent(rendering: &Rendering, pattern: &Value, values: &[Value]) -> Result<Value, Error> {
    let pattern = rendering.text(pattern)?;
    match rendering.shadow.marks(&pattern) {
        false => own_percent(rendering, &pattern, values),
        true => foreign(rendering, &own_percent(rendering, &rendering.shadow.plain(&pattern), values)?),
    }
}

fn own_percent(rendering: &Rendering, pattern: &str, values: &[Value]) -> Result<Value, Error> {
    let mut text = Text::new(&rendering.meter);
    let (mut rest, mut next) = (pattern, 0);
    while let Some((before, after)) = rest.split_once('%') {
        text.push(before)?;
        let after_name = after.strip_prefix('(').and_then(|name| name.split_once(')'));
        let (name, directive) = after_name.map_or((None, after), |(name, after)| (Some(name), after));
        let end = directive.find(|at: char| at.is_ascii_alphabetic() || at == '%');
        let end = end.ok_or_else(|| invalid("a `%` stands alone in a format"))?;
        let (flags, kind) = (directive.get(..end).unwrap_or_default(), directive.get(end..=end).unwrap_or_default());
        rest = directive.get(end + 1..).unwrap_or_default();
        if kind == "%" {
            text.push("%")?;
            continue;
        }
        let value = match name {
            Some(name) => {
                let holder = values.first().cloned().unwrap_or_default();
                super::operators::item(rendering, &[holder, Value::from(name)])?
            }
            None => {
                next += 1;
                values.get(next - 1).cloned().ok_or_else(|| invalid("a format has fewer values than places"))?
            }
        };
        let left = flags.contains('-');
        let mut spec = parse_spec(&flags.replace('-', ""))?;
        let value = match kind {
            "s" => Value::from(rendering.text(&value)?),
            "r" => repr(rendering, &value)?,
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
        write_spec(rendering, &mut text, &value, &spec)?;
    }
    text.push(rest)?;
    if next < values.len() && values.first().is_none_or(|value| value.kind() != ValueKind::Map) {
        return Err(invalid("a format has more values than places"));
    }
    Ok(Value::from(text.text))
}

#[cfg(test)]
mod tests {
    use super::super::meter::Meter;
    use super::super::shadow::Shadow;
    use super::*;

    #[test]
    fn values_are_written_as_python_writes_them() {
        let rendering = Rendering { meter: Meter::new(), shadow: Shadow::NONE };
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
            let written = braces(&rendering, pattern, &[value]).map(|value| value.to_string()).unwrap_or_default();
            assert_eq!(written, text, "{pattern}");
        }
        for (pattern, value, text) in [
            ("%s%%", Value::from("a"), "a%"),
            ("%5.1f|", Value::from(1.25), "  1.2|"),
            ("%-5d|", Value::from(3), "3    |"),
            ("%03d", Value::from(7), "007"),
            ("%5s|", Value::from("ab"), "   ab|"),
        ] {
            let written = percent(&rendering, &Value::from(pattern), &[value]).map(|value| value.to_string());
            assert_eq!(written.unwrap_or_default(), text, "{pattern}");
        }
        assert!(braces(&rendering, "{:99999}", &[Value::from(1)]).is_err());
    }
}
