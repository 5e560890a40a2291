//! Filters of templates, as Jinja2 has them.

use std::cmp::Ordering;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::format::percent;
use super::given::{Given, invalid};
use super::json;
use super::meter::Text;
use super::methods;
use super::operators::{dict, item, tuple};
use super::python::{self, Number};
use super::rendering::Rendering;

type Answer = Result<Value, Error>;
type Filter = fn(&Rendering, &[Value]) -> Answer;

/// Widest indentation, in bytes; a wider one is refused.
const MAX_INDENT: usize = 256;
/// The filters that call others. They call none of these: calls would nest as deep as there are names.
const CALLERS: [&str; 5] = ["map", "select", "reject", "selectattr", "rejectattr"];

/// The filters that need nothing but their arguments.
pub const FILTERS: &[(&str, Filter)] = &[
    ("abs", |_, args| {
        let given = Given::of(args, &["value"])?;
        match Number::of(given.need(0, "value")?) {
            Some(Number::Whole(whole)) => Ok(Number::Whole(whole.saturating_abs()).value()),
            Some(Number::Float(float)) => Ok(Value::from(float.abs())),
            None => Err(invalid("only numbers have a size")),
        }
    }),
    ("attr", |rendering, args| {
        let given = Given::of(args, &["value", "name"])?;
        path(rendering, given.need(0, "value")?, given.need(1, "name")?)
    }),
    ("batch", batch),
    ("capitalize", |rendering, args| cased(rendering, args, "capitalize")),
    ("count", length),
    ("d", default),
    ("default", default),
    ("dictsort", dictsort),
    ("e", escape),
    ("escape", escape),
    ("first", |rendering, args| end_of(rendering, args, true)),
    ("float", |rendering, args| {
        let given = Given::of(args, &["value", "default"])?;
        let float = number(rendering, given.need(0, "value")?).map(Number::float);
        Ok(float.map_or_else(|| given.get(1, "default").cloned().unwrap_or_else(|| Value::from(0.0)), Value::from))
    }),
    ("forceescape", escape),
    ("format", |rendering, args| {
        let given = Given::new(args)?;
        let (pattern, values) = given.values.split_first().ok_or_else(|| invalid("`format` needs a text"))?;
        match given.named.is_empty() {
            true => percent(rendering, pattern, values),
            false => {
                let named = given.named.into_iter().map(|(name, value)| (Value::from(name), value));
                percent(rendering, pattern, &[dict(rendering, named)?])
            }
        }
    }),
    ("from_json", json::from_json),
    ("groupby", groupby),
    ("indent", indent),
    ("int", int),
    ("items", |rendering, args| {
        let given = Given::of(args, &["value"])?;
        let value = given.need(0, "value")?;
        match value.kind() {
            ValueKind::Undefined => rendering.list(&[]),
            ValueKind::Map => methods::items(rendering, value),
            kind => Err(invalid(format!("a map has items, not {kind}"))),
        }
    }),
    ("join", join),
    ("last", |rendering, args| end_of(rendering, args, false)),
    ("length", length),
    ("list", |rendering, args| {
        let given = Given::of(args, &["value"])?;
        rendering.list(&rendering.items(given.need(0, "value")?)?)
    }),
    ("lower", |rendering, args| cased(rendering, args, "lower")),
    ("max", |rendering, args| extreme(rendering, args, Ordering::Greater)),
    ("min", |rendering, args| extreme(rendering, args, Ordering::Less)),
    ("replace", |rendering, args| {
        let given = Given::of(args, &["value", "old", "new", "count"])?;
        let most = given.whole(3, "count")?.and_then(|most| usize::try_from(most).ok());
        let [text, old, new] =
            [given.need(0, "value")?, given.need(1, "old")?, given.need(2, "new")?].map(|value| rendering.twin(value));
        methods::replace(rendering, &text?, &old?, &new?, most)
    }),
    ("reverse", reverse),
    ("round", round),
    // Nothing is escaped here: chats are not HTML.
    ("safe", |_, args| Ok(Given::of(args, &["value"])?.need(0, "value")?.clone())),
    ("sort", sort),
    ("split", |rendering, args| {
        let given = Given::of(args, &["value", "sep", "maxsplit"])?;
        let most = given.whole(2, "maxsplit")?.and_then(|most| usize::try_from(most).ok());
        methods::split(rendering, &rendering.twin(given.need(0, "value")?)?, given.text(1, "sep")?, most, false)
    }),
    ("string", |rendering, args| {
        let given = Given::of(args, &["value"])?;
        Ok(Value::from(rendering.text(given.need(0, "value")?)?))
    }),
    ("sum", sum),
    ("title", |rendering, args| {
        let given = Given::of(args, &["value"])?;
        let twin = rendering.twin(given.need(0, "value")?)?;
        rendering.new_text(twin.like(titled(&twin.plain)))
    }),
    ("tojson", json::tojson),
    ("trim", |rendering, args| {
        let given = Given::of(args, &["value", "chars"])?;
        let twin = rendering.twin(given.need(0, "value")?)?;
        methods::strip(rendering, &twin, given.text(1, "chars")?, true, true)
    }),
    ("unique", unique),
    ("upper", |rendering, args| cased(rendering, args, "upper")),
    ("wordcount", |rendering, args| {
        let given = Given::of(args, &["value"])?;
        let twin = rendering.twin(given.need(0, "value")?)?;
        let words = twin.plain.split(|at: char| !at.is_alphanumeric() && at != '_');
        Ok(Value::from(words.filter(|word| !word.is_empty()).count()))
    }),
    // What the program puts before a product, so that the compiler does not compute it.
    (super::program::OPAQUE, |_, args| args.first().cloned().ok_or_else(|| invalid("there is one value"))),
];

fn cased(rendering: &Rendering, args: &[Value], how: &str) -> Answer {
    let given = Given::of(args, &["value"])?;
    let twin = rendering.twin(given.need(0, "value")?)?;
    rendering.new_text(twin.like(methods::cased(&twin.plain, how)))
}

/// Each word with a capital: Jinja2 has its own idea of where words begin.
fn titled(text: &str) -> String {
    let mut begins = true;
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match begins {
            true => out.extend(character.to_uppercase()),
            false => out.extend(character.to_lowercase()),
        }
        begins = super::shadow::is_space(character) || matches!(character, '-' | '(' | '{' | '[' | '<');
    }
    out
}

fn default(_: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "default_value", "boolean"])?;
    let value = given.need(0, "value")?;
    let missing = value.is_undefined() || given.flag(2, "boolean") && !value.is_true();
    Ok(if missing { given.get(1, "default_value").cloned().unwrap_or_else(|| Value::from("")) } else { value.clone() })
}

fn length(rendering: &Rendering, args: &[Value]) -> Answer {
    let value = Given::of(args, &["value"])?;
    let value = value.need(0, "value")?;
    rendering.meter.work(1 + value.as_str().map_or(0, str::len))?;
    match value.kind() {
        ValueKind::Undefined => Ok(Value::from(0)),
        ValueKind::Iterable => Ok(Value::from(rendering.items(value)?.len())),
        kind => value.len().map(Value::from).ok_or_else(|| invalid(format!("{kind} has no length"))),
    }
}

fn end_of(rendering: &Rendering, args: &[Value], first: bool) -> Answer {
    let given = Given::of(args, &["value"])?;
    let value = given.need(0, "value")?;
    if let Some(text) = value.as_str() {
        let found = if first { text.chars().next() } else { text.chars().next_back() };
        return Ok(found.map_or(Value::UNDEFINED, |character| Value::from(character.to_string())));
    }
    let mut items = rendering.items(value)?;
    Ok(if first { items.into_iter().next() } else { items.pop() }.unwrap_or_default())
}

fn reverse(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value"])?;
    let value = given.need(0, "value")?;
    if let Some(text) = value.as_str() {
        return rendering.new_text(text.chars().rev().collect::<String>());
    }
    let mut items = rendering.items(value)?;
    items.reverse();
    rendering.list(&items)
}

fn join(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "d", "attribute"])?;
    let mut items = rendering.items(given.need(0, "value")?)?;
    if let Some(attribute) = given.get(2, "attribute").filter(|name| !name.is_none()) {
        items = items.iter().map(|item| path(rendering, item, attribute)).collect::<Result<_, _>>()?;
    }
    methods::join(rendering, given.get(1, "d").unwrap_or(&Value::from("")), &items)
}

fn escape(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value"])?;
    let text = rendering.text(given.need(0, "value")?)?;
    let mut out = Text::new(&rendering.meter);
    for character in text.chars() {
        let escaped = match rendering.shadow.plain_char(character) {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            '"' => "&#34;",
            '\'' => "&#39;",
            _ => {
                out.push(character.encode_utf8(&mut [0; 4]))?;
                continue;
            }
        };
        match rendering.shadow.is_mark(character) {
            true => out.push(&rendering.shadow.mark(escaped))?,
            false => out.push(escaped)?,
        }
    }
    Ok(Value::from(out.text))
}

/// Line ends become `\n`, as in Jinja2; white space has no shadows, so that the text can be cut as it is.
fn indent(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "width", "first", "blank"])?;
    let text = rendering.text(given.need(0, "value")?)?;
    let pad = match given.get(1, "width") {
        Some(pad) if pad.as_str().is_some() => pad.as_str().unwrap_or_default().to_owned(),
        _ => {
            let width = usize::try_from(given.whole(1, "width")?.unwrap_or(4)).unwrap_or(0);
            " ".repeat(width.min(MAX_INDENT + 1))
        }
    };
    if pad.len() > MAX_INDENT {
        return Err(invalid("the indentation is too wide"));
    }
    let (first, blank) = (given.flag(2, "first"), given.flag(3, "blank"));
    let mut out = Text::new(&rendering.meter);
    // Jinja2 puts a line end behind the text, so that one that is there already makes an empty last line.
    let mut lines = methods::lines(rendering, &text, false)?;
    if text.is_empty()
        || text.ends_with(['\n', '\r', '\x0b', '\x0c', '\x1c', '\x1d', '\x1e', '\u{85}', '\u{2028}', '\u{2029}'])
    {
        lines.push(text.len()..text.len());
    }
    for (at, line) in lines.into_iter().enumerate() {
        let line = text.get(line).unwrap_or_default();
        out.push(if at > 0 { "\n" } else { "" })?;
        let padded = if at == 0 { first } else { blank || !line.is_empty() };
        out.push(if padded { &pad } else { "" })?;
        out.push(line)?;
    }
    Ok(Value::from(out.text))
}

/// The number that a value is, or that its text says.
fn number(rendering: &Rendering, value: &Value) -> Option<Number> {
    match value.as_str() {
        None => Number::of(value),
        Some(text) => {
            let text = rendering.shadow.plain(text);
            let text = text.trim_matches(super::shadow::is_space).replace('_', "");
            let whole = text.parse().map(Number::Whole).ok();
            whole.or_else(|| text.parse().map(Number::Float).ok())
        }
    }
}

fn int(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "default", "base"])?;
    let value = given.need(0, "value")?;
    rendering.meter.weigh(value)?;
    let base = given.whole(2, "base")?.and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
    let whole = match value.as_str().filter(|_| base != 10 && (2..=36).contains(&base)) {
        Some(text) => {
            let text = rendering.shadow.plain(text).to_ascii_lowercase();
            let digits = ["0x", "0o", "0b"].iter().find_map(|prefix| text.trim().strip_prefix(prefix));
            i128::from_str_radix(digits.unwrap_or(text.trim()), base).ok()
        }
        None => match number(rendering, value) {
            Some(Number::Whole(whole)) => Some(whole),
            Some(Number::Float(float)) if float.is_finite() && float.abs() < 1e38 => Some(float.trunc() as i128),
            _ => None,
        },
    };
    let otherwise = || given.get(1, "default").cloned().unwrap_or_else(|| Value::from(0));
    Ok(whole.map_or_else(otherwise, |whole| Number::Whole(whole).value()))
}

fn round(_: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "precision", "method"])?;
    let precision = given.whole(1, "precision")?.unwrap_or(0);
    let places = usize::try_from(precision).ok().filter(|places| *places <= 64);
    let places = places.ok_or_else(|| invalid("a number is rounded to between 0 and 64 places"))?;
    let method = given.text(2, "method")?.unwrap_or("common");
    let number = Number::of(given.need(0, "value")?).ok_or_else(|| invalid("only numbers are rounded"))?;
    let scale = 10f64.powi(i32::try_from(places).unwrap_or(0));
    Ok(Value::from(match (method, number) {
        ("common", Number::Whole(_)) => return Ok(number.value()),
        // Of two as near numbers the even one, exactly, as the formatter does it.
        ("common", Number::Float(float)) => format!("{float:.places$}").parse().unwrap_or(float),
        ("ceil", number) => (number.float() * scale).ceil() / scale,
        ("floor", number) => (number.float() * scale).floor() / scale,
        _ => return Err(invalid("a number is rounded by `common`, `ceil` or `floor`")),
    }))
}

/// What a dotted name or a number leads to from a value.
fn path(rendering: &Rendering, value: &Value, name: &Value) -> Answer {
    let Some(text) = name.as_str() else { return item(rendering, &[value.clone(), name.clone()]) };
    let mut value = value.clone();
    for part in rendering.shadow.plain(text).split('.') {
        let key = part.parse::<i64>().map_or_else(|_| Value::from(part), Value::from);
        value = item(rendering, &[value, key])?;
    }
    Ok(value)
}

/// What items are sorted and compared by.
fn key(rendering: &Rendering, item: &Value, attribute: Option<&Value>, cased: bool) -> Answer {
    let key = match attribute.filter(|name| !name.is_none()) {
        Some(name) => path(rendering, item, name)?,
        None => item.clone(),
    };
    rendering.meter.weigh(&key)?;
    match key.as_str().filter(|_| !cased) {
        Some(text) => rendering.new_text(rendering.shadow.plain(text).to_lowercase()),
        None => Ok(key),
    }
}

/// How often one doubles to so many.
fn rounds(count: usize) -> usize {
    usize::BITS.saturating_sub(count.leading_zeros()) as usize
}

/// Sorts by keys; an error where two have no order.
fn sort_by_keys(
    rendering: &Rendering,
    keyed: Vec<(Value, Value)>,
    reverse: bool,
) -> Result<Vec<(Value, Value)>, Error> {
    // Each round of a merge takes each key once, after a comparison that costs no more than the key.
    let rounds = rounds(keyed.len());
    for (key, _) in &keyed {
        rendering.meter.work(rendering.meter.weigh(key)?.saturating_mul(rounds))?;
    }
    python::sorted(keyed, &|(a, _), (b, _)| {
        let order = python::order(a, b, rendering.shadow)?;
        Ok(if reverse { order.map(Ordering::reverse) } else { order })
    })
}

fn sort(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "reverse", "case_sensitive", "attribute"])?;
    let attribute = given.get(3, "attribute");
    let mut keyed = Vec::new();
    for item in rendering.items(given.need(0, "value")?)? {
        keyed.push((key(rendering, &item, attribute, given.flag(2, "case_sensitive"))?, item));
    }
    let keyed = sort_by_keys(rendering, keyed, given.flag(1, "reverse"))?;
    rendering.list(&keyed.into_iter().map(|(_, item)| item).collect::<Vec<_>>())
}

fn dictsort(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "case_sensitive", "by", "reverse"])?;
    let map = given.need(0, "value")?;
    if map.kind() != ValueKind::Map {
        return Err(invalid(format!("`dictsort` sorts a map, not {}", map.kind())));
    }
    let by_value = given.text(2, "by")? == Some("value");
    let mut keyed = Vec::new();
    for name in rendering.items(map)? {
        let value = map.get_item(&name)?;
        let by = key(rendering, if by_value { &value } else { &name }, None, given.flag(1, "case_sensitive"))?;
        keyed.push((by, tuple(rendering, &[name, value])?));
    }
    let keyed = sort_by_keys(rendering, keyed, given.flag(3, "reverse"))?;
    rendering.list(&keyed.into_iter().map(|(_, pair)| pair).collect::<Vec<_>>())
}

fn groupby(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "attribute", "default", "case_sensitive"])?;
    let attribute = given.need(1, "attribute")?;
    let mut keyed = Vec::new();
    for item in rendering.items(given.need(0, "value")?)? {
        keyed.push((key(rendering, &item, Some(attribute), given.flag(3, "case_sensitive"))?, item));
    }
    let keyed = sort_by_keys(rendering, keyed, false)?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (by, item) in keyed {
        match groups.last_mut().filter(|(last, _, _)| python::equal(last, &by, rendering.shadow)) {
            Some((_, _, group)) => group.push(item),
            None => groups.push((by, path(rendering, &item, attribute)?, vec![item])),
        }
    }
    let groups = groups.into_iter().map(|(_, name, group)| tuple(rendering, &[name, rendering.list(&group)?]));
    rendering.list(&groups.collect::<Result<Vec<_>, Error>>()?)
}

fn unique(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "case_sensitive", "attribute"])?;
    let (mut seen, mut left) = (std::collections::BTreeSet::new(), Vec::new());
    for item in rendering.items(given.need(0, "value")?)? {
        let mut by = key(rendering, &item, given.get(2, "attribute"), given.flag(1, "case_sensitive"))?;
        // A search of the set compares with a few for each time that the set has doubled.
        rendering.meter.work(rendering.meter.weigh(&by)?.saturating_mul(rounds(seen.len())))?;
        if let Some(text) = by.as_str() {
            by = Value::from(rendering.shadow.plain(text));
        }
        if seen.insert(by) {
            left.push(item);
        }
    }
    rendering.list(&left)
}

fn extreme(rendering: &Rendering, args: &[Value], wanted: Ordering) -> Answer {
    let given = Given::of(args, &["value", "case_sensitive", "attribute"])?;
    let mut best: Option<(Value, Value)> = None;
    for item in rendering.items(given.need(0, "value")?)? {
        let by = key(rendering, &item, given.get(2, "attribute"), given.flag(1, "case_sensitive"))?;
        let better = match &best {
            None => true,
            Some((known, _)) => python::order(&by, known, rendering.shadow)? == Some(wanted),
        };
        if better {
            best = Some((by, item));
        }
    }
    Ok(best.map(|(_, item)| item).unwrap_or_default())
}

fn sum(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "attribute", "start"])?;
    let mut total = given.get(2, "start").cloned().unwrap_or_else(|| Value::from(0));
    for item in rendering.items(given.need(0, "value")?)? {
        let part = match given.get(1, "attribute").filter(|name| !name.is_none()) {
            Some(name) => path(rendering, &item, name)?,
            None => item,
        };
        total = super::operators::add(rendering, &[total, part])?;
    }
    Ok(total)
}

fn batch(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::of(args, &["value", "linecount", "fill_with"])?;
    let size = usize::try_from(given.whole(1, "linecount")?.unwrap_or(0)).unwrap_or(0);
    if size == 0 {
        return Err(invalid("a batch has at least one item"));
    }
    let items = rendering.items(given.need(0, "value")?)?;
    let mut batches = Vec::new();
    for part in items.chunks(size) {
        let mut part = part.to_vec();
        if let Some(fill) = given.get(2, "fill_with").filter(|fill| !fill.is_none()) {
            rendering.meter.build((size - part.len()).saturating_mul(super::rendering::PIECE_COST))?;
            part.resize(size, fill.clone());
        }
        batches.push(rendering.list(&part)?);
    }
    rendering.list(&batches)
}

/// The items of a list, none of what is false or missing.
fn some_items(rendering: &Rendering, list: &Value) -> Result<Vec<Value>, Error> {
    if list.is_true() { rendering.items(list) } else { Ok(Vec::new()) }
}

/// The error with the name of what is unknown.
fn named(error: Error, what: &str, name: &str) -> Error {
    use minijinja::ErrorKind::{UnknownFilter, UnknownTest};
    match error.kind() {
        kind @ (UnknownFilter | UnknownTest) if error.detail().is_none() => {
            Error::new(kind, format!("{what} {name} is unknown"))
        }
        _ => error,
    }
}

/// The filters that call other filters or tests by name.
pub fn select(
    rendering: &Rendering,
    state: &mut State<'_, '_>,
    args: &[Value],
    by_attribute: bool,
    keep: bool,
) -> Answer {
    let given = Given::new(args)?;
    let (list, rest) = given.values.split_first().ok_or_else(|| invalid("a filter needs a value"))?;
    let (attribute, rest) = match by_attribute {
        false => (None, rest),
        true => rest.split_first().map(|(name, rest)| (Some(name), rest)).unwrap_or_default(),
    };
    let name = rest.first().map(|name| name.as_str().ok_or_else(|| invalid("a test has a name"))).transpose()?;
    let mut left = Vec::new();
    for item in some_items(rendering, list)? {
        let subject = match attribute {
            Some(name) => path(rendering, &item, name)?,
            None => item.clone(),
        };
        let passes = match name {
            None => subject.is_true(),
            Some(name) => {
                rendering.meter.work(args.len())?;
                let args: Vec<Value> = std::iter::once(subject).chain(rest.iter().skip(1).cloned()).collect();
                state.perform_test(name, &args).map_err(|error| named(error, "test", name))?
            }
        };
        if passes == keep {
            left.push(item);
        }
    }
    rendering.list(&left)
}

/// The filter `map`.
pub fn map(rendering: &Rendering, state: &mut State<'_, '_>, args: &[Value]) -> Answer {
    let given = Given::new(args)?;
    let (list, rest) = given.values.split_first().ok_or_else(|| invalid("a filter needs a value"))?;
    let by_name = |wanted: &str| given.named.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let mut mapped = Vec::new();
    for item in some_items(rendering, list)? {
        mapped.push(match (by_name("attribute"), rest.first().and_then(Value::as_str)) {
            (Some(name), _) => {
                let found = path(rendering, &item, name)?;
                if found.is_undefined() { by_name("default").cloned().unwrap_or_default() } else { found }
            }
            (None, Some(name)) if CALLERS.contains(&name) => {
                return Err(invalid(format!("`{name}` within `map` is not admitted")));
            }
            (None, Some(name)) => {
                rendering.meter.work(args.len())?;
                let args: Vec<Value> = std::iter::once(item).chain(args.iter().skip(2).cloned()).collect();
                state.apply_filter(name, &args).map_err(|error| named(error, "filter", name))?
            }
            (None, None) => return Err(invalid("`map` needs an attribute or a filter")),
        });
    }
    rendering.list(&mapped)
}
