//! Operators of templates, with Python's rules.

use std::cmp::Ordering;

use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, Value};

use super::arguments::{Arguments, MAX_ARGUMENTS, invalid};
use super::bytecode::call;
use super::context::RenderContext;
use super::format::percent;
use super::meter::MeteredText;
use super::python::{self, Number};
use super::values::{Dict, List, Method, Namespace, freeze};

type Answer = Result<Value, Error>;
type Operator = fn(&RenderContext, &[Value]) -> Answer;

/// Operators by the name under which compiled templates call them.
pub const OPERATORS: [(&str, Operator); 28] = [
    (call::ADD, add),
    (call::SUB, |context, args| arithmetic(context, args, "-")),
    (call::MUL, multiply),
    (call::DIV, |context, args| arithmetic(context, args, "/")),
    (call::FLOOR_DIV, |context, args| arithmetic(context, args, "//")),
    (call::REM, remainder),
    (call::POW, |context, args| arithmetic(context, args, "**")),
    (call::CONCAT, concat),
    (call::SLICE, slice),
    (call::ITEM, item),
    (call::ATTR, attribute),
    (call::LIST, |context, args| context.list(args)),
    (call::TUPLE, tuple),
    (call::MAP, map),
    (call::COPY, copy_constant),
    (call::MERGE, merge),
    (call::SPREAD, spread),
    (call::ITER, loop_items),
    (call::EQ, |context, args| binary(args, |a, b| context.equal(a, b).map(Value::from))),
    (call::NE, |context, args| binary(args, |a, b| context.equal(a, b).map(|same| Value::from(!same)))),
    (call::LT, |context, args| ordered(context, args, Ordering::is_lt)),
    (call::LE, |context, args| ordered(context, args, Ordering::is_le)),
    (call::GT, |context, args| ordered(context, args, Ordering::is_gt)),
    (call::GE, |context, args| ordered(context, args, Ordering::is_ge)),
    (call::IN, |context, args| binary(args, |a, b| contains(context, a, b).map(Value::from))),
    (call::COMPARE, chained_comparison),
    (call::SET, set),
    (call::UNSUPPORTED, |context, args| {
        let what = args.first().and_then(Value::as_i64).and_then(|at| usize::try_from(at).ok());
        let what = what.and_then(|at| super::bytecode::UNSUPPORTED.get(at)).copied();
        Err(context.meter.stop(super::meter::StopReason::Unsupported(what.unwrap_or("an instruction"))))
    }),
];

fn binary<T>(args: &[Value], then: impl FnOnce(&Value, &Value) -> Result<T, Error>) -> Result<T, Error> {
    match args {
        [a, b] => then(a, b),
        _ => Err(invalid("an operator needs two values")),
    }
}

fn concat(context: &RenderContext, args: &[Value]) -> Answer {
    let mut text = MeteredText::new(&context.meter);
    for value in args {
        context.append(&mut text, value)?;
    }
    Ok(Value::from(text.text))
}

pub fn add(context: &RenderContext, args: &[Value]) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    let listed = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if a.as_str().is_some() && b.as_str().is_some() {
        return concat(context, args);
    }
    if listed(a) && listed(b) {
        let mut items = context.items(a)?;
        items.extend(context.items(b)?);
        return match a.is_tuple() {
            true => tuple(context, &items),
            false => context.list(&items),
        };
    }
    arithmetic(context, args, "+")
}

fn arithmetic(_: &RenderContext, args: &[Value], sign: &str) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    let (Some(left), Some(right)) = (Number::of(a), Number::of(b)) else {
        return Err(invalid(format!("{} and {} have no `{sign}`", a.kind(), b.kind())));
    };
    let zero = right.float() == 0.0;
    if zero && matches!(sign, "/" | "//" | "%") {
        return Err(invalid("a division by zero"));
    }
    let number = match (left, right) {
        (Number::Int(a), Number::Int(b)) if sign != "/" && !(sign == "**" && b < 0) => {
            let whole = match sign {
                "+" => a.checked_add(b),
                "-" => a.checked_sub(b),
                "*" => a.checked_mul(b),
                "//" => a.checked_div_euclid(b).map(|part| if b < 0 && a.rem_euclid(b) != 0 { part - 1 } else { part }),
                "%" => a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }),
                _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            };
            Number::Int(whole.ok_or_else(|| invalid(format!("the result of `{sign}` is too large")))?)
        }
        _ => {
            let (a, b) = (left.float(), right.float());
            Number::Float(match sign {
                "+" => a + b,
                "-" => a - b,
                "*" => a * b,
                "/" => a / b,
                "//" => (a / b).floor(),
                "%" => a - b * (a / b).floor(),
                _ => a.powf(b),
            })
        }
    };
    Ok(number.value())
}

/// A product of numbers, or a repeated text or list.
fn multiply(context: &RenderContext, args: &[Value]) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    let repeated = |value: &Value| matches!(value.kind(), ValueKind::String | ValueKind::Seq);
    let (value, times) = match (repeated(a), repeated(b)) {
        (true, false) => (a, b),
        (false, true) => (b, a),
        _ => return arithmetic(context, args, "*"),
    };
    let Some(Number::Int(times)) = Number::of(times) else {
        return Err(invalid(format!("{} and {} have no `*`", a.kind(), b.kind())));
    };
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = value.as_str() {
        context.meter.charge_memory(super::taint::cost(text).saturating_mul(times))?;
        return Ok(Value::from(if text.is_empty() { String::new() } else { text.repeat(times) }));
    }
    let items = context.items(value)?;
    if items.is_empty() {
        return context.list(&[]);
    }
    context.meter.charge_memory(context.meter.measure(value)?.saturating_mul(times))?;
    let repeated = items.iter().cycle().take(items.len().saturating_mul(times)).cloned();
    context.list(&repeated.collect::<Vec<_>>())
}

fn remainder(context: &RenderContext, args: &[Value]) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    if a.as_str().is_none() {
        return arithmetic(context, args, "%");
    }
    match b.is_tuple() {
        true => percent(context, a, &context.items(b)?),
        false => percent(context, a, std::slice::from_ref(b)),
    }
}

fn ordered(context: &RenderContext, args: &[Value], by: fn(Ordering) -> bool) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    context.meter.measure_all(args)?;
    Ok(Value::from(python::order(a, b, context.taint)?.is_some_and(by)))
}

/// Whether `item` is in `holder`.
pub fn contains(context: &RenderContext, item: &Value, holder: &Value) -> Result<bool, Error> {
    context.meter.measure(item)?;
    context.meter.measure(holder)?;
    let taint = context.taint;
    match (holder.kind(), holder.as_str()) {
        (_, Some(text)) => match item.as_str() {
            Some(part) => {
                context.meter.charge_work(text.len())?;
                Ok(taint.plain(text).contains(&*taint.plain(part)))
            }
            None => Err(invalid(format!("a text contains texts, not {}", item.kind()))),
        },
        (ValueKind::Undefined, _) => Ok(false),
        (ValueKind::Map, _) => Ok(scalar(item) && holder.get_item(item).is_ok_and(|value| !value.is_undefined())),
        (ValueKind::Seq | ValueKind::Iterable, _) => {
            Ok(holder.try_iter()?.any(|other| python::equal(&other, item, taint)))
        }
        (kind, _) => Err(invalid(format!("only texts, lists and maps contain something, not {kind}"))),
    }
}

/// A comparison in a chain. Returns the result and the second value, the first of the next comparison.
fn chained_comparison(context: &RenderContext, args: &[Value]) -> Answer {
    let [a, b, by] = args else { return Err(invalid("an operator needs two values")) };
    let operands = [a.clone(), b.clone()];
    let result = match by.as_str() {
        Some("==") => Value::from(context.equal(a, b)?),
        Some("!=") => Value::from(!context.equal(a, b)?),
        Some("<") => ordered(context, &operands, Ordering::is_lt)?,
        Some("<=") => ordered(context, &operands, Ordering::is_le)?,
        Some(">") => ordered(context, &operands, Ordering::is_gt)?,
        Some(">=") => ordered(context, &operands, Ordering::is_ge)?,
        Some("in") => Value::from(contains(context, a, b)?),
        _ => Value::from(!contains(context, a, b)?),
    };
    Ok(Value::from(vec![result, b.clone()]))
}

/// Whether a key is cheap to hash.
pub fn scalar(key: &Value) -> bool {
    !matches!(key.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain)
}

/// `holder[key]`.
pub fn item(context: &RenderContext, args: &[Value]) -> Answer {
    let [holder, key] = args else { return Err(invalid("an item needs a key")) };
    if holder.is_undefined() {
        return Err(invalid("an undefined value has no items"));
    }
    if !scalar(key) {
        return Ok(Value::UNDEFINED);
    }
    // Finding a character takes a scan of the text.
    context.meter.charge_work(1 + key.as_str().map_or(0, str::len) + holder.as_str().map_or(0, str::len))?;
    if let (Some(text), Some(at)) = (holder.as_str(), key.as_i64()) {
        let found = char_at(text, at);
        return Ok(found.map_or(Value::UNDEFINED, |character| Value::from(character.to_string())));
    }
    Ok(holder.get_item(key).unwrap_or_default())
}

fn char_at(text: &str, at: i64) -> Option<char> {
    match usize::try_from(at) {
        Ok(at) => text.chars().nth(at),
        Err(_) => text.chars().rev().nth(usize::try_from(at.checked_neg()?).ok()?.checked_sub(1)?),
    }
}

/// `holder.name`, where `name` is a method of maps.
fn attribute(_: &RenderContext, args: &[Value]) -> Answer {
    let [holder, name] = args else { return Err(invalid("an attribute needs a name")) };
    if holder.is_undefined() {
        return Err(invalid("an undefined value has no attributes"));
    }
    let name = name.as_str().unwrap_or_default();
    let method = super::bytecode::MAP_METHODS.into_iter().find(|known| *known == name);
    match (holder.downcast_object_ref::<Dict>(), holder.as_object(), method) {
        (Some(_), Some(of), Some(name)) => Ok(Value::from_object(Method { of: of.clone(), name })),
        _ => Ok(holder.get_attr(name).unwrap_or_default()),
    }
}

/// A new tuple with frozen copies of the items.
pub fn tuple(context: &RenderContext, items: &[Value]) -> Answer {
    context.list(items)?;
    Ok(Value::from(Tuple::from(items.iter().map(freeze).collect::<Vec<_>>())))
}

fn map(context: &RenderContext, args: &[Value]) -> Answer {
    let (pairs, _) = args.as_chunks::<2>();
    dict(context, pairs.iter().map(|[key, value]| (key.clone(), value.clone())))
}

/// A new map of the pairs.
pub fn dict(context: &RenderContext, pairs: impl Iterator<Item = (Value, Value)>) -> Answer {
    let mut parts = Vec::new();
    for (key, value) in pairs {
        if !scalar(&key) {
            return Err(invalid("a key is a text or a number"));
        }
        parts.push((context.part(&key)?, context.part(&value)?));
    }
    let dict = Dict::of(parts, context.taint);
    context.meter.charge_memory(context.meter.measure(&dict)?)?;
    Ok(dict)
}

/// A copy of a constant, so that changes of the copy do not change the constant.
fn copy_constant(context: &RenderContext, args: &[Value]) -> Answer {
    let [constant] = args else { return Err(invalid("there is one constant")) };
    match constant.kind() {
        ValueKind::Map => {
            let pairs: Vec<_> = context.items(constant)?.into_iter().collect();
            dict(context, pairs.into_iter().map(|key| (key.clone(), constant.get_item(&key).unwrap_or_default())))
        }
        ValueKind::Seq if !constant.is_tuple() => context.list(&context.items(constant)?),
        _ => Ok(constant.clone()),
    }
}

/// Keyword arguments from several maps.
fn merge(context: &RenderContext, args: &[Value]) -> Answer {
    let mut named = Vec::new();
    for map in args {
        if map.kind() != ValueKind::Map {
            return Err(invalid("`**` takes a map"));
        }
        for key in context.items(map)? {
            let name = key.as_str().ok_or_else(|| invalid("an argument's name is a text"))?;
            // The name keeps its taint: `dict(**map)` makes a key of it.
            named.push((name.to_owned(), map.get_item(&key)?));
        }
    }
    Ok(Value::from(named.into_iter().collect::<Kwargs>()))
}

/// Positional arguments from several lists.
fn spread(context: &RenderContext, args: &[Value]) -> Answer {
    let mut all = Vec::new();
    for list in args {
        all.extend(context.items(list)?);
        // The receiver of a filter or a method comes in addition.
        if all.len() > MAX_ARGUMENTS {
            return Err(invalid(format!("a call has more than {MAX_ARGUMENTS} arguments")));
        }
    }
    Ok(Value::from(all))
}

/// The items of a loop.
fn loop_items(context: &RenderContext, args: &[Value]) -> Answer {
    let [value] = args else { return Err(invalid("a loop has one value")) };
    match value.kind() {
        ValueKind::None => Err(invalid("none has no items")),
        // Items that the loop's body appends are not visited.
        ValueKind::Seq if value.downcast_object_ref::<List>().is_some() => {
            context.meter.charge_work(value.len().unwrap_or(0).saturating_mul(super::context::PIECE_COST))?;
            Ok(freeze(value))
        }
        ValueKind::String => {
            context.meter.charge_memory(value.as_str().unwrap_or_default().len())?;
            Ok(value.clone())
        }
        // The engine lists the keys of a map.
        _ => {
            context.meter.charge_work(value.len().unwrap_or(0).saturating_mul(super::context::PIECE_COST))?;
            Ok(value.clone())
        }
    }
}

/// Python's slices. The instruction has the value, start, stop and step on the stack.
fn slice(context: &RenderContext, args: &[Value]) -> Answer {
    let [value, start, stop, step] = args else { return Err(invalid("a slice needs a value")) };
    let index = |value: &Value| match value.is_none() {
        true => Ok(None),
        false => value.as_i64().map(Some).ok_or_else(|| invalid("a slice is of whole numbers")),
    };
    let (start, stop, step) = (index(start)?, index(stop)?, index(step)?.unwrap_or(1));
    if let Some(text) = value.as_str() {
        context.meter.charge_work(text.len())?;
        context.meter.charge_memory(text.len().saturating_mul(size_of::<char>()))?;
        let characters: Vec<char> = text.chars().collect();
        return Ok(Value::from(slice_of(&characters, start, stop, step)?.into_iter().collect::<String>()));
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(invalid(format!("{} has no slices", value.kind())));
    }
    let items = slice_of(&context.items(value)?, start, stop, step)?;
    match value.is_tuple() {
        true => tuple(context, &items),
        false => context.list(&items),
    }
}

fn slice_of<T: Clone>(items: &[T], start: Option<i64>, stop: Option<i64>, step: i64) -> Result<Vec<T>, Error> {
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

/// A new namespace with the entries of maps and the keyword arguments as fields.
pub fn namespace(context: &RenderContext, args: &[Value]) -> Answer {
    let arguments = Arguments::new(args)?;
    let space = Value::from_object(Namespace::default());
    for map in arguments.values {
        for key in context.items(map)? {
            set(context, &[map.get_item(&key)?, space.clone(), key])?;
        }
    }
    for (name, value) in arguments.named {
        set(context, &[value, space.clone(), Value::from(name)])?;
    }
    Ok(space)
}

/// Sets a field. The arguments are the value, the namespace and the field's name.
fn set(context: &RenderContext, args: &[Value]) -> Answer {
    let [value, space, name] = args else { return Err(invalid("a field needs a value")) };
    let space =
        space.downcast_object_ref::<Namespace>().ok_or_else(|| invalid("only a namespace's fields can be set"))?;
    let name = name.as_str().ok_or_else(|| invalid("a field has a name"))?;
    context.meter.charge_memory(super::context::PIECE_COST)?;
    // Measured as a part, since values nest deeper only through lists, maps and fields.
    let part = context.part(value)?;
    let list = value.downcast_object_ref::<List>().is_some();
    space.set(&context.taint.plain(name), if list { value.clone() } else { part });
    Ok(Value::UNDEFINED)
}
