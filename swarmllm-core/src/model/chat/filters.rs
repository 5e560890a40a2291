//! Jinja2's filters.

use std::cmp::Ordering;

use minijinja::value::ValueKind;
use minijinja::{Error, State, Value};

use super::arguments::{Arguments, invalid};
use super::context::RenderContext;
use super::format::percent;
use super::json;
use super::meter::MeteredText;
use super::methods;
use super::operators::{dict, item, tuple};
use super::python::{self, Number};

type Answer = Result<Value, Error>;
type Filter = fn(&RenderContext, &[Value]) -> Answer;

/// Widest indentation, in bytes.
const MAX_INDENT: usize = 256;
/// Filters that call others. They do not call each other, since calls would nest as deep as the list of names.
const CALLERS: [&str; 5] = ["map", "select", "reject", "selectattr", "rejectattr"];

/// Filters that need only their arguments.
pub const FILTERS: &[(&str, Filter)] = &[
    ("abs", |_, args| {
        let arguments = Arguments::of(args, &["value"])?;
        match Number::of(arguments.need(0, "value")?) {
            Some(Number::Int(whole)) => Ok(Number::Int(whole.saturating_abs()).value()),
            Some(Number::Float(float)) => Ok(Value::from(float.abs())),
            None => Err(invalid("only numbers have an absolute value")),
        }
    }),
    ("attr", |context, args| {
        let arguments = Arguments::of(args, &["value", "name"])?;
        path(context, arguments.need(0, "value")?, arguments.need(1, "name")?)
    }),
    ("batch", batch),
    ("capitalize", |context, args| change_case(context, args, "capitalize")),
    ("count", length),
    ("d", default),
    ("default", default),
    ("dictsort", dictsort),
    ("e", escape),
    ("escape", escape),
    ("first", |context, args| first_or_last(context, args, true)),
    ("float", |context, args| {
        let arguments = Arguments::of(args, &["value", "default"])?;
        let float = number(context, arguments.need(0, "value")?).map(Number::float);
        Ok(float.map_or_else(|| arguments.get(1, "default").cloned().unwrap_or_else(|| Value::from(0.0)), Value::from))
    }),
    ("forceescape", escape),
    ("format", |context, args| {
        let arguments = Arguments::new(args)?;
        let (pattern, values) = arguments.values.split_first().ok_or_else(|| invalid("`format` needs a text"))?;
        match arguments.named.is_empty() {
            true => percent(context, pattern, values),
            false => {
                let named = arguments.named.into_iter().map(|(name, value)| (Value::from(name), value));
                percent(context, pattern, &[dict(context, named)?])
            }
        }
    }),
    ("from_json", json::from_json),
    ("groupby", groupby),
    ("indent", indent),
    ("int", int),
    ("items", |context, args| {
        let arguments = Arguments::of(args, &["value"])?;
        let value = arguments.need(0, "value")?;
        match value.kind() {
            ValueKind::Undefined => context.list(&[]),
            ValueKind::Map => methods::items(context, value),
            kind => Err(invalid(format!("a map has items, not {kind}"))),
        }
    }),
    ("join", join),
    ("last", |context, args| first_or_last(context, args, false)),
    ("length", length),
    ("list", |context, args| {
        let arguments = Arguments::of(args, &["value"])?;
        context.list(&context.items(arguments.need(0, "value")?)?)
    }),
    ("lower", |context, args| change_case(context, args, "lower")),
    ("max", |context, args| min_or_max(context, args, Ordering::Greater)),
    ("min", |context, args| min_or_max(context, args, Ordering::Less)),
    ("replace", |context, args| {
        let arguments = Arguments::of(args, &["value", "old", "new", "count"])?;
        let most = arguments.integer(3, "count")?.and_then(|most| usize::try_from(most).ok());
        let [text, old, new] = [arguments.need(0, "value")?, arguments.need(1, "old")?, arguments.need(2, "new")?]
            .map(|value| context.tainted(value));
        methods::replace(context, &text?, &old?, &new?, most)
    }),
    ("reverse", reverse),
    ("round", round),
    // Chats are not HTML: nothing is escaped automatically.
    ("safe", |_, args| Ok(Arguments::of(args, &["value"])?.need(0, "value")?.clone())),
    ("sort", sort),
    ("split", |context, args| {
        let arguments = Arguments::of(args, &["value", "sep", "maxsplit"])?;
        let most = arguments.integer(2, "maxsplit")?.and_then(|most| usize::try_from(most).ok());
        methods::split(context, &context.tainted(arguments.need(0, "value")?)?, arguments.text(1, "sep")?, most, false)
    }),
    ("string", |context, args| {
        let arguments = Arguments::of(args, &["value"])?;
        Ok(Value::from(context.text(arguments.need(0, "value")?)?))
    }),
    ("sum", sum),
    ("title", |context, args| {
        let arguments = Arguments::of(args, &["value"])?;
        let tainted = context.tainted(arguments.need(0, "value")?)?;
        context.new_text(tainted.like(title_case(&tainted.plain)))
    }),
    ("tojson", json::tojson),
    ("trim", |context, args| {
        let arguments = Arguments::of(args, &["value", "chars"])?;
        let tainted = context.tainted(arguments.need(0, "value")?)?;
        methods::strip(context, &tainted, arguments.text(1, "chars")?, true, true)
    }),
    ("unique", unique),
    ("upper", |context, args| change_case(context, args, "upper")),
    ("wordcount", |context, args| {
        let arguments = Arguments::of(args, &["value"])?;
        let tainted = context.tainted(arguments.need(0, "value")?)?;
        let words = tainted.plain.split(|at: char| !at.is_alphanumeric() && at != '_');
        Ok(Value::from(words.filter(|word| !word.is_empty()).count()))
    }),
    // Stands before each product, so that the compiler does not fold it.
    (super::bytecode::OPAQUE, |_, args| args.first().cloned().ok_or_else(|| invalid("there is one value"))),
];

fn change_case(context: &RenderContext, args: &[Value], how: &str) -> Answer {
    let arguments = Arguments::of(args, &["value"])?;
    let tainted = context.tainted(arguments.need(0, "value")?)?;
    context.new_text(tainted.like(methods::change_case(&tainted.plain, how)))
}

/// Capitalises each word, with Jinja2's rule for the begin of a word.
fn title_case(text: &str) -> String {
    let mut begins = true;
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match begins {
            true => out.extend(character.to_uppercase()),
            false => out.extend(character.to_lowercase()),
        }
        begins = super::taint::is_space(character) || matches!(character, '-' | '(' | '{' | '[' | '<');
    }
    out
}

fn default(_: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "default_value", "boolean"])?;
    let value = arguments.need(0, "value")?;
    let missing = value.is_undefined() || arguments.flag(2, "boolean") && !value.is_true();
    Ok(if missing {
        arguments.get(1, "default_value").cloned().unwrap_or_else(|| Value::from(""))
    } else {
        value.clone()
    })
}

fn length(context: &RenderContext, args: &[Value]) -> Answer {
    let value = Arguments::of(args, &["value"])?;
    let value = value.need(0, "value")?;
    context.meter.charge_work(1 + value.as_str().map_or(0, str::len))?;
    match value.kind() {
        ValueKind::Undefined => Ok(Value::from(0)),
        ValueKind::Iterable => Ok(Value::from(context.items(value)?.len())),
        kind => value.len().map(Value::from).ok_or_else(|| invalid(format!("{kind} has no length"))),
    }
}

fn first_or_last(context: &RenderContext, args: &[Value], first: bool) -> Answer {
    let arguments = Arguments::of(args, &["value"])?;
    let value = arguments.need(0, "value")?;
    if let Some(text) = value.as_str() {
        let found = if first { text.chars().next() } else { text.chars().next_back() };
        return Ok(found.map_or(Value::UNDEFINED, |character| Value::from(character.to_string())));
    }
    let mut items = context.items(value)?;
    Ok(if first { items.into_iter().next() } else { items.pop() }.unwrap_or_default())
}

fn reverse(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value"])?;
    let value = arguments.need(0, "value")?;
    if let Some(text) = value.as_str() {
        return context.new_text(text.chars().rev().collect::<String>());
    }
    let mut items = context.items(value)?;
    items.reverse();
    context.list(&items)
}

fn join(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "d", "attribute"])?;
    let mut items = context.items(arguments.need(0, "value")?)?;
    if let Some(attribute) = arguments.get(2, "attribute").filter(|name| !name.is_none()) {
        items = items.iter().map(|item| path(context, item, attribute)).collect::<Result<_, _>>()?;
    }
    methods::join(context, arguments.get(1, "d").unwrap_or(&Value::from("")), &items)
}

fn escape(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value"])?;
    let text = context.text(arguments.need(0, "value")?)?;
    let mut out = MeteredText::new(&context.meter);
    for character in text.chars() {
        let escaped = match context.taint.plain_char(character) {
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
        match context.taint.is_tainted(character) {
            true => out.push(&context.taint.mark(escaped))?,
            false => out.push(escaped)?,
        }
    }
    Ok(Value::from(out.text))
}

/// Line ends become `\n`, as in Jinja2. White space is never tainted, so that the tainted text can be split.
fn indent(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "width", "first", "blank"])?;
    let text = context.text(arguments.need(0, "value")?)?;
    let pad = match arguments.get(1, "width") {
        Some(pad) if pad.as_str().is_some() => pad.as_str().unwrap_or_default().to_owned(),
        _ => {
            let width = usize::try_from(arguments.integer(1, "width")?.unwrap_or(4)).unwrap_or(0);
            " ".repeat(width.min(MAX_INDENT + 1))
        }
    };
    if pad.len() > MAX_INDENT {
        return Err(invalid("the indentation is too wide"));
    }
    let (first, blank) = (arguments.flag(2, "first"), arguments.flag(3, "blank"));
    let mut out = MeteredText::new(&context.meter);
    // Jinja2 appends a line end before it splits, so that a text with a line end gets an empty last line.
    let mut lines = methods::lines(context, &text, false)?;
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

/// The number of a value, or in its text.
fn number(context: &RenderContext, value: &Value) -> Option<Number> {
    match value.as_str() {
        None => Number::of(value),
        Some(text) => {
            let text = context.taint.plain(text);
            let text = text.trim_matches(super::taint::is_space).replace('_', "");
            let whole = text.parse().map(Number::Int).ok();
            whole.or_else(|| text.parse().map(Number::Float).ok())
        }
    }
}

fn int(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "default", "base"])?;
    let value = arguments.need(0, "value")?;
    context.meter.measure(value)?;
    let base = arguments.integer(2, "base")?.and_then(|base| u32::try_from(base).ok()).unwrap_or(10);
    let whole = match value.as_str().filter(|_| base != 10 && (2..=36).contains(&base)) {
        Some(text) => {
            let text = context.taint.plain(text).to_ascii_lowercase();
            let digits = ["0x", "0o", "0b"].iter().find_map(|prefix| text.trim().strip_prefix(prefix));
            i128::from_str_radix(digits.unwrap_or(text.trim()), base).ok()
        }
        None => match number(context, value) {
            Some(Number::Int(whole)) => Some(whole),
            Some(Number::Float(float)) if float.is_finite() && float.abs() < 1e38 => Some(float.trunc() as i128),
            _ => None,
        },
    };
    let otherwise = || arguments.get(1, "default").cloned().unwrap_or_else(|| Value::from(0));
    Ok(whole.map_or_else(otherwise, |whole| Number::Int(whole).value()))
}

fn round(_: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "precision", "method"])?;
    let precision = arguments.integer(1, "precision")?.unwrap_or(0);
    let places = usize::try_from(precision).ok().filter(|places| *places <= 64);
    let places = places.ok_or_else(|| invalid("a number is rounded to between 0 and 64 places"))?;
    let method = arguments.text(2, "method")?.unwrap_or("common");
    let number = Number::of(arguments.need(0, "value")?).ok_or_else(|| invalid("only numbers are rounded"))?;
    let scale = 10f64.powi(i32::try_from(places).unwrap_or(0));
    Ok(Value::from(match (method, number) {
        ("common", Number::Int(_)) => return Ok(number.value()),
        // The formatter rounds exact ties to even, as Python does.
        ("common", Number::Float(float)) => format!("{float:.places$}").parse().unwrap_or(float),
        ("ceil", number) => (number.float() * scale).ceil() / scale,
        ("floor", number) => (number.float() * scale).floor() / scale,
        _ => return Err(invalid("a number is rounded by `common`, `ceil` or `floor`")),
    }))
}

/// The value at a dotted path or an index.
fn path(context: &RenderContext, value: &Value, name: &Value) -> Answer {
    let Some(text) = name.as_str() else { return item(context, &[value.clone(), name.clone()]) };
    let mut value = value.clone();
    for part in context.taint.plain(text).split('.') {
        let key = part.parse::<i64>().map_or_else(|_| Value::from(part), Value::from);
        value = item(context, &[value, key])?;
    }
    Ok(value)
}

/// The key by which an item is sorted and compared.
fn key(context: &RenderContext, item: &Value, attribute: Option<&Value>, cased: bool) -> Answer {
    let key = match attribute.filter(|name| !name.is_none()) {
        Some(name) => path(context, item, name)?,
        None => item.clone(),
    };
    context.meter.measure(&key)?;
    match key.as_str().filter(|_| !cased) {
        Some(text) => context.new_text(context.taint.plain(text).to_lowercase()),
        None => Ok(key),
    }
}

/// Rounds of a merge sort of `count` items.
fn merge_rounds(count: usize) -> usize {
    usize::BITS.saturating_sub(count.leading_zeros()) as usize
}

/// Sorts by keys. Fails where two keys have no order.
fn sort_by_keys(
    context: &RenderContext,
    keyed: Vec<(Value, Value)>,
    reverse: bool,
) -> Result<Vec<(Value, Value)>, Error> {
    // Each round compares each key at most once, at no more than the key's cost.
    let rounds = merge_rounds(keyed.len());
    for (key, _) in &keyed {
        context.meter.charge_work(context.meter.measure(key)?.saturating_mul(rounds))?;
    }
    python::sorted(keyed, &|(a, _), (b, _)| {
        let order = python::order(a, b, context.taint)?;
        Ok(if reverse { order.map(Ordering::reverse) } else { order })
    })
}

fn sort(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "reverse", "case_sensitive", "attribute"])?;
    let attribute = arguments.get(3, "attribute");
    let mut keyed = Vec::new();
    for item in context.items(arguments.need(0, "value")?)? {
        keyed.push((key(context, &item, attribute, arguments.flag(2, "case_sensitive"))?, item));
    }
    let keyed = sort_by_keys(context, keyed, arguments.flag(1, "reverse"))?;
    context.list(&keyed.into_iter().map(|(_, item)| item).collect::<Vec<_>>())
}

fn dictsort(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "case_sensitive", "by", "reverse"])?;
    let map = arguments.need(0, "value")?;
    if map.kind() != ValueKind::Map {
        return Err(invalid(format!("`dictsort` sorts a map, not {}", map.kind())));
    }
    let by_value = arguments.text(2, "by")? == Some("value");
    let mut keyed = Vec::new();
    for name in context.items(map)? {
        let value = map.get_item(&name)?;
        let by = key(context, if by_value { &value } else { &name }, None, arguments.flag(1, "case_sensitive"))?;
        keyed.push((by, tuple(context, &[name, value])?));
    }
    let keyed = sort_by_keys(context, keyed, arguments.flag(3, "reverse"))?;
    context.list(&keyed.into_iter().map(|(_, pair)| pair).collect::<Vec<_>>())
}

fn groupby(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "attribute", "default", "case_sensitive"])?;
    let attribute = arguments.need(1, "attribute")?;
    let mut keyed = Vec::new();
    for item in context.items(arguments.need(0, "value")?)? {
        keyed.push((key(context, &item, Some(attribute), arguments.flag(3, "case_sensitive"))?, item));
    }
    let keyed = sort_by_keys(context, keyed, false)?;
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (by, item) in keyed {
        match groups.last_mut().filter(|(last, _, _)| python::equal(last, &by, context.taint)) {
            Some((_, _, group)) => group.push(item),
            None => groups.push((by, path(context, &item, attribute)?, vec![item])),
        }
    }
    let groups = groups.into_iter().map(|(_, name, group)| tuple(context, &[name, context.list(&group)?]));
    context.list(&groups.collect::<Result<Vec<_>, Error>>()?)
}

fn unique(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "case_sensitive", "attribute"])?;
    let (mut seen, mut left) = (std::collections::BTreeSet::new(), Vec::new());
    for item in context.items(arguments.need(0, "value")?)? {
        let mut by = key(context, &item, arguments.get(2, "attribute"), arguments.flag(1, "case_sensitive"))?;
        // A search of the set takes logarithmically many comparisons.
        context.meter.charge_work(context.meter.measure(&by)?.saturating_mul(merge_rounds(seen.len())))?;
        if let Some(text) = by.as_str() {
            by = Value::from(context.taint.plain(text));
        }
        if seen.insert(by) {
            left.push(item);
        }
    }
    context.list(&left)
}

fn min_or_max(context: &RenderContext, args: &[Value], wanted: Ordering) -> Answer {
    let arguments = Arguments::of(args, &["value", "case_sensitive", "attribute"])?;
    let mut best: Option<(Value, Value)> = None;
    for item in context.items(arguments.need(0, "value")?)? {
        let by = key(context, &item, arguments.get(2, "attribute"), arguments.flag(1, "case_sensitive"))?;
        let better = match &best {
            None => true,
            Some((known, _)) => python::order(&by, known, context.taint)? == Some(wanted),
        };
        if better {
            best = Some((by, item));
        }
    }
    Ok(best.map(|(_, item)| item).unwrap_or_default())
}

fn sum(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "attribute", "start"])?;
    let mut total = arguments.get(2, "start").cloned().unwrap_or_else(|| Value::from(0));
    for item in context.items(arguments.need(0, "value")?)? {
        let part = match arguments.get(1, "attribute").filter(|name| !name.is_none()) {
            Some(name) => path(context, &item, name)?,
            None => item,
        };
        total = super::operators::add(context, &[total, part])?;
    }
    Ok(total)
}

fn batch(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["value", "linecount", "fill_with"])?;
    let size = usize::try_from(arguments.integer(1, "linecount")?.unwrap_or(0)).unwrap_or(0);
    if size == 0 {
        return Err(invalid("a batch has at least one item"));
    }
    let items = context.items(arguments.need(0, "value")?)?;
    let mut batches = Vec::new();
    for part in items.chunks(size) {
        let mut part = part.to_vec();
        if let Some(fill) = arguments.get(2, "fill_with").filter(|fill| !fill.is_none()) {
            context.meter.charge_memory((size - part.len()).saturating_mul(super::context::PIECE_COST))?;
            part.resize(size, fill.clone());
        }
        batches.push(context.list(&part)?);
    }
    context.list(&batches)
}

/// The items of a list; none where the value is false or missing.
fn items_if_true(context: &RenderContext, list: &Value) -> Result<Vec<Value>, Error> {
    if list.is_true() { context.items(list) } else { Ok(Vec::new()) }
}

/// Adds the name to an error of an unknown filter or test.
fn name_unknown(error: Error, what: &str, name: &str) -> Error {
    use minijinja::ErrorKind::{UnknownFilter, UnknownTest};
    match error.kind() {
        kind @ (UnknownFilter | UnknownTest) if error.detail().is_none() => {
            Error::new(kind, format!("{what} {name} is unknown"))
        }
        _ => error,
    }
}

/// `select`, `reject`, `selectattr` and `rejectattr`, which call a test by name.
pub fn select(
    context: &RenderContext,
    state: &mut State<'_, '_>,
    args: &[Value],
    by_attribute: bool,
    keep: bool,
) -> Answer {
    let arguments = Arguments::new(args)?;
    let (list, rest) = arguments.values.split_first().ok_or_else(|| invalid("a filter needs a value"))?;
    let (attribute, rest) = match by_attribute {
        false => (None, rest),
        true => rest.split_first().map(|(name, rest)| (Some(name), rest)).unwrap_or_default(),
    };
    let name = rest.first().map(|name| name.as_str().ok_or_else(|| invalid("a test has a name"))).transpose()?;
    let mut left = Vec::new();
    for item in items_if_true(context, list)? {
        let subject = match attribute {
            Some(name) => path(context, &item, name)?,
            None => item.clone(),
        };
        let passes = match name {
            None => subject.is_true(),
            Some(name) => {
                context.meter.charge_work(args.len())?;
                let args: Vec<Value> = std::iter::once(subject).chain(rest.iter().skip(1).cloned()).collect();
                state.perform_test(name, &args).map_err(|error| name_unknown(error, "test", name))?
            }
        };
        if passes == keep {
            left.push(item);
        }
    }
    context.list(&left)
}

/// `map`, which reads an attribute or calls a filter by name.
pub fn map(context: &RenderContext, state: &mut State<'_, '_>, args: &[Value]) -> Answer {
    let arguments = Arguments::new(args)?;
    let (list, rest) = arguments.values.split_first().ok_or_else(|| invalid("a filter needs a value"))?;
    let by_name = |wanted: &str| arguments.named.iter().find(|(name, _)| name == wanted).map(|(_, value)| value);
    let mut mapped = Vec::new();
    for item in items_if_true(context, list)? {
        mapped.push(match (by_name("attribute"), rest.first().and_then(Value::as_str)) {
            (Some(name), _) => {
                let found = path(context, &item, name)?;
                if found.is_undefined() { by_name("default").cloned().unwrap_or_default() } else { found }
            }
            (None, Some(name)) if CALLERS.contains(&name) => {
                return Err(invalid(format!("`{name}` within `map` is not admitted")));
            }
            (None, Some(name)) => {
                context.meter.charge_work(args.len())?;
                let args: Vec<Value> = std::iter::once(item).chain(args.iter().skip(2).cloned()).collect();
                state.apply_filter(name, &args).map_err(|error| name_unknown(error, "filter", name))?
            }
            (None, None) => return Err(invalid("`map` needs an attribute or a filter")),
        });
    }
    context.list(&mapped)
}
