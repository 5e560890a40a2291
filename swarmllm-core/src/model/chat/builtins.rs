//! What a template can call: operators, filters, tests, methods and functions, each metered before it builds.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use minijinja::value::{Kwargs, Object, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, functions, tests};
use minijinja_contrib::pycompat;

use super::clock;
use super::meter::{Meter, Text};
use super::program::call;

/// What one piece of a split text counts for: about what it takes in memory.
const PIECE_COST: usize = 64;
/// Longest list that `range` gives.
const MAX_RANGE: usize = 10_000;
/// Widest indentation, in spaces; a wider one is refused.
const MAX_INDENT: usize = 16;

type Args = Rest<Value>;
type Answer = Result<Value, Error>;

/// An environment in which everything that a compiled template calls is there, and nothing else.
pub fn environment(meter: &Arc<Meter>, now: SystemTime) -> Environment<'static> {
    let mut env = Environment::empty();
    let shared = Arc::clone(meter);
    env.set_formatter(move |out, _, value| {
        let text = shared.text(value)?;
        out.write_str(&text).map_err(|_| invalid("the output cannot be written"))
    });
    let shared = Arc::clone(meter);
    env.set_unknown_method_callback(move |state, value, name, args| {
        before(&shared, name, value, args)?;
        shared.keep(pycompat::unknown_method_callback(state, value, name, args)?)
    });
    add_operators(&mut env, meter);
    add_functions(&mut env, meter, now);
    add_filters(&mut env, meter);
    add_tests(&mut env, meter);
    env
}

fn add_operators(env: &mut Environment<'static>, meter: &Arc<Meter>) {
    type Operator = fn(&Meter, &[Value]) -> Answer;
    let operators: [(&'static str, Operator); 14] = [
        (call::ADD, add),
        (call::CONCAT, concat),
        (call::SLICE, slice),
        (call::ITEM, item),
        (call::LIST, |meter, args| contained(meter, args, Value::from(args.to_vec()))),
        (call::MAP, map),
        (call::EQ, |meter, args| compare(meter, args, |a, b| a == b)),
        (call::NE, |meter, args| compare(meter, args, |a, b| a != b)),
        (call::LT, |meter, args| compare(meter, args, |a, b| a < b)),
        (call::LE, |meter, args| compare(meter, args, |a, b| a <= b)),
        (call::GT, |meter, args| compare(meter, args, |a, b| a > b)),
        (call::GE, |meter, args| compare(meter, args, |a, b| a >= b)),
        (call::IN, contains),
        (call::SET, set),
    ];
    for (name, operator) in operators {
        let meter = Arc::clone(meter);
        env.add_function(name, move |args: Args| operator(&meter, &args));
    }
}

fn add_functions(env: &mut Environment<'static>, meter: &Arc<Meter>, now: SystemTime) {
    let shared = Arc::clone(meter);
    env.add_function("raise_exception", move |message: &Value| -> Answer { Err(shared.raise(&shared.text(message)?)) });
    let shared = Arc::clone(meter);
    env.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        shared.work(format.len())?;
        clock::format(now, format).ok_or_else(|| invalid("the time format is not supported"))
    });
    let shared = Arc::clone(meter);
    env.add_function("namespace", move |fields: Kwargs| -> Answer { namespace(&shared, &fields) });
    let shared = Arc::clone(meter);
    env.add_function("range", move |from: isize, to: Option<isize>, step: Option<isize>| -> Answer {
        let range = functions::range(from, to, step)?;
        match range.len() {
            Some(len) if len <= MAX_RANGE => shared.keep(Value::from(shared.collect(&range)?)),
            _ => Err(invalid("the range is too long")),
        }
    });
}

fn add_filters(env: &mut Environment<'static>, meter: &Arc<Meter>) {
    macro_rules! plain {
        ($($name:literal => $filter:path),* $(,)?) => { [$(($name, Value::from_function($filter))),*] };
    }
    let plain = plain! {
        "abs" => filters::abs, "attr" => filters::attr, "bool" => filters::bool, "capitalize" => filters::capitalize,
        "count" => filters::length, "d" => filters::default, "default" => filters::default,
        "dictsort" => filters::dictsort, "first" => filters::first, "float" => filters::float,
        "int" => filters::int, "items" => filters::items, "join" => filters::join, "last" => filters::last,
        "length" => filters::length, "list" => filters::list, "lower" => filters::lower, "map" => filters::map,
        "max" => filters::max, "min" => filters::min, "reject" => filters::reject,
        "rejectattr" => filters::rejectattr, "replace" => filters::replace, "reverse" => filters::reverse,
        "round" => filters::round, "select" => filters::select, "selectattr" => filters::selectattr,
        "sort" => filters::sort, "split" => filters::split, "string" => filters::string, "sum" => filters::sum,
        "title" => filters::title, "trim" => filters::trim, "unique" => filters::unique, "upper" => filters::upper,
    };
    for (name, filter) in plain {
        let shared = Arc::clone(meter);
        env.add_filter(name, move |state: &mut State, args: Rest<ValueOrKwargs>| -> Answer {
            // Arguments by name are the last of these values; the filter itself takes them apart.
            let args = args.into_values();
            let (value, rest) = args.split_first().ok_or_else(|| invalid("a filter needs a value"))?;
            before(&shared, name, value, rest)?;
            shared.keep(filter.call(state, &args)?)
        });
    }
    let shared = Arc::clone(meter);
    env.add_filter("tojson", move |value: &Value, options: Kwargs| json(&shared, value, &options));
    let shared = Arc::clone(meter);
    env.add_filter("indent", move |value: String, width: Option<usize>| -> Result<String, Error> {
        let width = width.unwrap_or(4);
        if width > MAX_INDENT {
            return Err(invalid("the indentation is too wide"));
        }
        let pad = " ".repeat(width);
        shared.work(value.len())?;
        shared.build(value.len().saturating_add(value.matches('\n').count().saturating_mul(pad.len())))?;
        let lines = value.split('\n').enumerate();
        let padded = lines.map(|(at, line)| [if at == 0 || line.is_empty() { "" } else { &*pad }, line].concat());
        Ok(padded.collect::<Vec<_>>().join("\n"))
    });
    // Nothing is escaped here: chats are not HTML.
    env.add_filter("safe", |value: Value| value);
}

fn add_tests(env: &mut Environment<'static>, meter: &Arc<Meter>) {
    macro_rules! metered {
        ($($name:literal => $test:path),* $(,)?) => { [$(($name, Value::from_function($test))),*] };
    }
    let all = metered! {
        "boolean" => tests::is_boolean, "defined" => tests::is_defined, "divisibleby" => tests::is_divisibleby,
        "eq" => tests::is_eq, "equalto" => tests::is_eq, "==" => tests::is_eq, "even" => tests::is_even,
        "false" => tests::is_false, "float" => tests::is_float, "ge" => tests::is_ge, "gt" => tests::is_gt,
        "in" => tests::is_in, "integer" => tests::is_integer, "iterable" => tests::is_iterable,
        "le" => tests::is_le, "lt" => tests::is_lt, "mapping" => tests::is_mapping, "ne" => tests::is_ne,
        "none" => tests::is_none, "number" => tests::is_number, "odd" => tests::is_odd,
        "sequence" => tests::is_sequence, "startingwith" => tests::is_startingwith,
        "endingwith" => tests::is_endingwith, "string" => tests::is_string, "true" => tests::is_true,
        "undefined" => tests::is_undefined,
    };
    for (name, test) in all {
        let shared = Arc::clone(meter);
        env.add_test(name, move |state: &mut State, args: Args| -> Result<bool, Error> {
            if let [_, _, ..] = args.as_slice() {
                shared.weigh_all(&args)?;
            }
            Ok(test.call(state, &args)?.is_true())
        });
    }
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

/// Takes what a filter or a method will build, where that can be more than what it is given.
fn before(meter: &Meter, name: &str, value: &Value, args: &[Value]) -> Result<(), Error> {
    let given = meter.weigh(value)?.saturating_add(meter.weigh_all(args)?);
    let text = value.as_str().unwrap_or_default();
    let argument = |at: usize| args.get(at).and_then(Value::as_str).unwrap_or_default();
    let places = |part: &str| if part.is_empty() { text.len() + 1 } else { text.matches(part).count() };
    let extra = match name {
        "replace" => places(argument(0)).saturating_mul(argument(1).len()),
        "split" if argument(0).is_empty() => text.split_whitespace().count().saturating_mul(PIECE_COST),
        "split" => (places(argument(0)) + 1).saturating_mul(PIECE_COST),
        "splitlines" => text.lines().count().saturating_mul(PIECE_COST),
        // The list is the filter's value, or the method's argument.
        "join" if value.kind() == ValueKind::String => {
            args.first().and_then(Value::len).unwrap_or(0).saturating_mul(text.len())
        }
        "join" => value.len().unwrap_or(0).saturating_mul(argument(0).len()),
        // Its formats can ask for any width.
        "format" => return Err(Error::from(ErrorKind::UnknownMethod)),
        _ => 0,
    };
    // Writing a value out quotes and escapes it: a few bytes for each.
    let copied = if matches!(name, "length" | "count" | "first" | "last" | "default" | "d") { 0 } else { given };
    meter.build(extra)?;
    meter.work(extra.saturating_add(copied))
}

fn two(args: &[Value]) -> Result<[&Value; 2], Error> {
    match args {
        [a, b] => Ok([a, b]),
        _ => Err(invalid("an operator needs two values")),
    }
}

fn concat(meter: &Meter, args: &[Value]) -> Answer {
    let mut text = Text { meter, text: String::new() };
    for value in args {
        meter.weigh(value)?;
        fmt::write(&mut text, format_args!("{value}")).map_err(|_| meter.stop(super::meter::Stop::Built))?;
    }
    Ok(Value::from(text.text))
}

fn add(meter: &Meter, args: &[Value]) -> Answer {
    let [a, b] = two(args)?;
    let listed = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if a.as_str().is_some() && b.as_str().is_some() {
        return concat(meter, args);
    }
    if listed(a) && listed(b) {
        let mut items = meter.collect(a)?;
        items.extend(meter.collect(b)?);
        return meter.keep(Value::from(items));
    }
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) {
        return a.checked_add(b).map(Value::from).ok_or_else(|| invalid("the sum is too large"));
    }
    match (f64::try_from(a.clone()), f64::try_from(b.clone())) {
        (Ok(a), Ok(b)) => Ok(Value::from(a + b)),
        _ => Err(Error::new(ErrorKind::InvalidOperation, format!("{} and {} cannot be added", a.kind(), b.kind()))),
    }
}

fn compare(meter: &Meter, args: &[Value], by: fn(&Value, &Value) -> bool) -> Answer {
    let [a, b] = two(args)?;
    meter.weigh_all(args)?;
    Ok(Value::from(by(a, b)))
}

/// `a in b`: the instruction has `a` below `b`.
fn contains(meter: &Meter, args: &[Value]) -> Answer {
    let [item, holder] = two(args)?;
    meter.weigh_all(args)?;
    let found = match (holder.kind(), holder.as_str()) {
        (_, Some(text)) => item.as_str().map(|part| text.contains(part)),
        (ValueKind::Undefined, _) => Some(false),
        (ValueKind::Map, _) => Some(scalar(item) && holder.get_item(item).is_ok_and(|value| !value.is_undefined())),
        _ => holder.try_iter().ok().map(|mut items| items.any(|other| other == *item)),
    };
    found.map(Value::from).ok_or_else(|| invalid("only texts, lists and maps contain something"))
}

/// Keys that are cheap to hash.
fn scalar(key: &Value) -> bool {
    !matches!(key.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain)
}

fn item(meter: &Meter, args: &[Value]) -> Answer {
    let [holder, key] = two(args)?;
    if !scalar(key) {
        return Err(invalid("an item is named by a text or a number"));
    }
    // Characters of a text are counted from its begin.
    meter.work(1 + key.as_str().map_or(0, str::len) + holder.as_str().map_or(0, str::len))?;
    holder.get_item(key)
}

/// A new list or map of `parts`.
fn contained(meter: &Meter, parts: &[Value], whole: Value) -> Answer {
    if parts.iter().any(|part| part.downcast_object_ref::<Namespace>().is_some()) {
        return Err(invalid("a namespace cannot be put into a value"));
    }
    meter.keep(whole)
}

fn map(meter: &Meter, args: &[Value]) -> Answer {
    let (pairs, _) = args.as_chunks::<2>();
    if pairs.iter().any(|[key, _]| !scalar(key)) {
        return Err(invalid("a key is a text or a number"));
    }
    contained(meter, args, Value::from_pairs(pairs.iter().map(|[key, value]| (key.clone(), value.clone()))))
}

/// Python's slices. The instruction has the value, start, stop and step on the stack.
fn slice(meter: &Meter, args: &[Value]) -> Answer {
    let [value, start, stop, step] = args else { return Err(invalid("a slice needs a value")) };
    let index = |value: &Value| match value.is_none() {
        true => Ok(None),
        false => value.as_i64().map(Some).ok_or_else(|| invalid("a slice is of whole numbers")),
    };
    let (start, stop, step) = (index(start)?, index(stop)?, index(step)?.unwrap_or(1));
    if let Some(text) = value.as_str() {
        meter.work(text.len())?;
        meter.build(text.len().saturating_mul(size_of::<char>()))?;
        let characters: Vec<char> = text.chars().collect();
        return Ok(Value::from(picked(&characters, start, stop, step)?.into_iter().collect::<String>()));
    }
    if value.is_undefined() || value.is_none() {
        return Ok(Value::from(Vec::<Value>::new()));
    }
    let items = meter.collect(value)?;
    meter.keep(Value::from(picked(&items, start, stop, step)?))
}

fn picked<T: Clone>(items: &[T], start: Option<i64>, stop: Option<i64>, step: i64) -> Result<Vec<T>, Error> {
    let len = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let place =
        |index: i64, low: i64, high: i64| (if index < 0 { index.saturating_add(len) } else { index }).clamp(low, high);
    let stride = usize::try_from(step.unsigned_abs()).unwrap_or(usize::MAX);
    let at = |index: i64| usize::try_from(index).unwrap_or(0);
    if step > 0 {
        let (start, stop) =
            (start.map_or(0, |index| place(index, 0, len)), stop.map_or(len, |index| place(index, 0, len)));
        let part = items.get(at(start)..at(stop)).unwrap_or_default();
        return Ok(part.iter().step_by(stride).cloned().collect());
    }
    if step == 0 {
        return Err(invalid("a slice cannot have the step 0"));
    }
    let (start, stop) =
        (start.map_or(len - 1, |index| place(index, -1, len - 1)), stop.map_or(-1, |index| place(index, -1, len - 1)));
    let part = items.get(at(stop + 1)..at(start + 1)).unwrap_or_default();
    Ok(part.iter().rev().step_by(stride).cloned().collect())
}

/// A value whose fields a template may set. It never holds itself: that would leak.
#[derive(Debug)]
struct Namespace(Mutex<BTreeMap<String, Value>>);

impl Object for Namespace {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key.as_str()?).cloned()
    }
}

fn namespace(meter: &Meter, fields: &Kwargs) -> Answer {
    let space = Namespace(Mutex::new(BTreeMap::new()));
    let space = Value::from_object(space);
    for name in fields.args() {
        set(meter, &[fields.get::<Value>(name)?, space.clone(), Value::from(name)])?;
    }
    Ok(space)
}

/// Sets a field: the value, the namespace and the field's name.
fn set(meter: &Meter, args: &[Value]) -> Answer {
    let [value, space, name] = args else { return Err(invalid("a field needs a value")) };
    let space =
        space.downcast_object_ref::<Namespace>().ok_or_else(|| invalid("only a namespace's fields can be set"))?;
    let name = name.as_str().ok_or_else(|| invalid("a field has a name"))?;
    meter.build(PIECE_COST)?;
    // Weighed again as a part: values only grow deeper through lists, maps and fields.
    let value = contained(meter, std::slice::from_ref(value), value.clone())?;
    space.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), value);
    Ok(Value::UNDEFINED)
}

fn json(meter: &Meter, value: &Value, options: &Kwargs) -> Answer {
    meter.weigh(value)?;
    let indent: Option<usize> = options.get("indent")?;
    // Templates in use pass this one; characters are never escaped here.
    let _ascii: Option<bool> = options.get("ensure_ascii")?;
    let mut text = Text { meter, text: String::new() };
    let written = match indent.filter(|width| *width > 0) {
        None => serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut text, Spaced)),
        Some(width) => {
            let spaces = " ".repeat(width.min(MAX_INDENT));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut text, pretty))
        }
    };
    written.map_err(|_| invalid("the value cannot be written as JSON"))?;
    Ok(Value::from(text.text))
}

/// JSON as Python writes it: a space after each comma and colon.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}
