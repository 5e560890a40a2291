//! Operators of templates, with Python's rules.

use std::cmp::Ordering;

use minijinja::value::{Kwargs, Tuple, ValueKind};
use minijinja::{Error, Value};

use super::format::percent;
use super::given::{Given, MAX_ARGUMENTS, invalid};
use super::meter::Text;
use super::program::call;
use super::python::{self, Number};
use super::rendering::Rendering;
use super::values::{Dict, List, Method, Namespace, freeze};

type Answer = Result<Value, Error>;
type Operator = fn(&Rendering, &[Value]) -> Answer;

/// Each by the name that compiled templates call it by.
pub const OPERATORS: [(&str, Operator); 28] = [
    (call::ADD, add),
    (call::SUB, |rendering, args| arithmetic(rendering, args, "-")),
    (call::MUL, multiply),
    (call::DIV, |rendering, args| arithmetic(rendering, args, "/")),
    (call::FLOOR_DIV, |rendering, args| arithmetic(rendering, args, "//")),
    (call::REM, remainder),
    (call::POW, |rendering, args| arithmetic(rendering, args, "**")),
    (call::CONCAT, concat),
    (call::SLICE, slice),
    (call::ITEM, item),
    (call::ATTR, attribute),
    (call::LIST, |rendering, args| rendering.list(args)),
    (call::TUPLE, tuple),
    (call::MAP, map),
    (call::FRESH, fresh),
    (call::MERGE, merge),
    (call::SPREAD, spread),
    (call::EACH, each),
    (call::EQ, |rendering, args| two(args, |a, b| rendering.equal(a, b).map(Value::from))),
    (call::NE, |rendering, args| two(args, |a, b| rendering.equal(a, b).map(|same| Value::from(!same)))),
    (call::LT, |rendering, args| ordered(rendering, args, Ordering::is_lt)),
    (call::LE, |rendering, args| ordered(rendering, args, Ordering::is_le)),
    (call::GT, |rendering, args| ordered(rendering, args, Ordering::is_gt)),
    (call::GE, |rendering, args| ordered(rendering, args, Ordering::is_ge)),
    (call::IN, |rendering, args| two(args, |a, b| contains(rendering, a, b).map(Value::from))),
    (call::CHAIN, chain),
    (call::SET, set),
    (call::UNSUPPORTED, |rendering, args| {
        let what = args.first().and_then(Value::as_i64).and_then(|at| usize::try_from(at).ok());
        let what = what.and_then(|at| super::program::UNSUPPORTED.get(at)).copied();
        Err(rendering.meter.stop(super::meter::Stop::Unsupported(what.unwrap_or("an instruction"))))
    }),
];

fn two<T>(args: &[Value], then: impl FnOnce(&Value, &Value) -> Result<T, Error>) -> Result<T, Error> {
    match args {
        [a, b] => then(a, b),
        _ => Err(invalid("an operator needs two values")),
    }
}

fn concat(rendering: &Rendering, args: &[Value]) -> Answer {
    let mut text = Text::new(&rendering.meter);
    for value in args {
        rendering.append(&mut text, value)?;
    }
    Ok(Value::from(text.text))
}

pub fn add(rendering: &Rendering, args: &[Value]) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    let listed = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if a.as_str().is_some() && b.as_str().is_some() {
        return concat(rendering, args);
    }
    if listed(a) && listed(b) {
        let mut items = rendering.items(a)?;
        items.extend(rendering.items(b)?);
        return match a.is_tuple() {
            true => tuple(rendering, &items),
            false => rendering.list(&items),
        };
    }
    arithmetic(rendering, args, "+")
}

fn arithmetic(_: &Rendering, args: &[Value], sign: &str) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    let (Some(left), Some(right)) = (Number::of(a), Number::of(b)) else {
        return Err(invalid(format!("{} and {} have no `{sign}`", a.kind(), b.kind())));
    };
    let zero = right.float() == 0.0;
    if zero && matches!(sign, "/" | "//" | "%") {
        return Err(invalid("a division by zero"));
    }
    let number = match (left, right) {
        (Number::Whole(a), Number::Whole(b)) if sign != "/" && !(sign == "**" && b < 0) => {
            let whole = match sign {
                "+" => a.checked_add(b),
                "-" => a.checked_sub(b),
                "*" => a.checked_mul(b),
                "//" => a.checked_div_euclid(b).map(|part| if b < 0 && a.rem_euclid(b) != 0 { part - 1 } else { part }),
                "%" => a.checked_rem(b).map(|rest| if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }),
                _ => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            };
            Number::Whole(whole.ok_or_else(|| invalid(format!("the result of `{sign}` is too large")))?)
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

/// A text or a list several times, or a product.
fn multiply(rendering: &Rendering, args: &[Value]) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    let repeated = |value: &Value| matches!(value.kind(), ValueKind::String | ValueKind::Seq);
    let (value, times) = match (repeated(a), repeated(b)) {
        (true, false) => (a, b),
        (false, true) => (b, a),
        _ => return arithmetic(rendering, args, "*"),
    };
    let Some(Number::Whole(times)) = Number::of(times) else {
        return Err(invalid(format!("{} and {} have no `*`", a.kind(), b.kind())));
    };
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = value.as_str() {
        rendering.meter.build(super::shadow::cost(text).saturating_mul(times))?;
        return Ok(Value::from(if text.is_empty() { String::new() } else { text.repeat(times) }));
    }
    let items = rendering.items(value)?;
    if items.is_empty() {
        return rendering.list(&[]);
    }
    rendering.meter.build(rendering.meter.weigh(value)?.saturating_mul(times))?;
    let repeated = items.iter().cycle().take(items.len().saturating_mul(times)).cloned();
    rendering.list(&repeated.collect::<Vec<_>>())
}

fn remainder(rendering: &Rendering, args: &[Value]) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    if a.as_str().is_none() {
        return arithmetic(rendering, args, "%");
    }
    match b.is_tuple() {
        true => percent(rendering, a, &rendering.items(b)?),
        false => percent(rendering, a, std::slice::from_ref(b)),
    }
}

fn ordered(rendering: &Rendering, args: &[Value], by: fn(Ordering) -> bool) -> Answer {
    let [a, b] = args else { return Err(invalid("an operator needs two values")) };
    rendering.meter.weigh_all(args)?;
    Ok(Value::from(python::order(a, b, rendering.shadow)?.is_some_and(by)))
}

/// Whether `item` is in `holder`.
pub fn contains(rendering: &Rendering, item: &Value, holder: &Value) -> Result<bool, Error> {
    rendering.meter.weigh(item)?;
    rendering.meter.weigh(holder)?;
    let shadow = rendering.shadow;
    match (holder.kind(), holder.as_str()) {
        (_, Some(text)) => match item.as_str() {
            Some(part) => {
                rendering.meter.work(text.len())?;
                Ok(shadow.plain(text).contains(&*shadow.plain(part)))
            }
            None => Err(invalid(format!("a text contains texts, not {}", item.kind()))),
        },
        (ValueKind::Undefined, _) => Ok(false),
        (ValueKind::Map, _) => Ok(scalar(item) && holder.get_item(item).is_ok_and(|value| !value.is_undefined())),
        (ValueKind::Seq | ValueKind::Iterable, _) => {
            Ok(holder.try_iter()?.any(|other| python::equal(&other, item, shadow)))
        }
        (kind, _) => Err(invalid(format!("only texts, lists and maps contain something, not {kind}"))),
    }
}

/// A comparison with more behind it: the result, and the second value for the next one, for the engine to unpack.
fn chain(rendering: &Rendering, args: &[Value]) -> Answer {
    let [a, b, by] = args else { return Err(invalid("an operator needs two values")) };
    let operands = [a.clone(), b.clone()];
    let result = match by.as_str() {
        Some("==") => Value::from(rendering.equal(a, b)?),
        Some("!=") => Value::from(!rendering.equal(a, b)?),
        Some("<") => ordered(rendering, &operands, Ordering::is_lt)?,
        Some("<=") => ordered(rendering, &operands, Ordering::is_le)?,
        Some(">") => ordered(rendering, &operands, Ordering::is_gt)?,
        Some(">=") => ordered(rendering, &operands, Ordering::is_ge)?,
        Some("in") => Value::from(contains(rendering, a, b)?),
        _ => Value::from(!contains(rendering, a, b)?),
    };
    Ok(Value::from(vec![result, b.clone()]))
}

/// Keys that are cheap to hash.
pub fn scalar(key: &Value) -> bool {
    !matches!(key.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable | ValueKind::Plain)
}

/// `holder[key]`.
pub fn item(rendering: &Rendering, args: &[Value]) -> Answer {
    let [holder, key] = args else { return Err(invalid("an item needs a key")) };
    if holder.is_undefined() {
        return Err(invalid("what is undefined has no items"));
    }
    if !scalar(key) {
        return Ok(Value::UNDEFINED);
    }
    // Characters of a text are counted from its begin.
    rendering.meter.work(1 + key.as_str().map_or(0, str::len) + holder.as_str().map_or(0, str::len))?;
    if let (Some(text), Some(at)) = (holder.as_str(), key.as_i64()) {
        let found = picked_char(text, at);
        return Ok(found.map_or(Value::UNDEFINED, |character| Value::from(character.to_string())));
    }
    Ok(holder.get_item(key).unwrap_or_default())
}

fn picked_char(text: &str, at: i64) -> Option<char> {
    match usize::try_from(at) {
        Ok(at) => text.chars().nth(at),
        Err(_) => text.chars().rev().nth(usize::try_from(at.checked_neg()?).ok()?.checked_sub(1)?),
    }
}

/// `holder.name`, where that is the name of a map's method.
fn attribute(_: &Rendering, args: &[Value]) -> Answer {
    let [holder, name] = args else { return Err(invalid("an attribute needs a name")) };
    if holder.is_undefined() {
        return Err(invalid("what is undefined has no attributes"));
    }
    let name = name.as_str().unwrap_or_default();
    let method = super::program::MAP_METHODS.into_iter().find(|known| *known == name);
    match (holder.downcast_object_ref::<Dict>(), holder.as_object(), method) {
        (Some(_), Some(of), Some(name)) => Ok(Value::from_object(Method { of: of.clone(), name })),
        _ => Ok(holder.get_attr(name).unwrap_or_default()),
    }
}

/// A tuple of these items.
pub fn tuple(rendering: &Rendering, items: &[Value]) -> Answer {
    rendering.list(items)?;
    Ok(Value::from(Tuple::from(items.iter().map(freeze).collect::<Vec<_>>())))
}

fn map(rendering: &Rendering, args: &[Value]) -> Answer {
    let (pairs, _) = args.as_chunks::<2>();
    dict(rendering, pairs.iter().map(|[key, value]| (key.clone(), value.clone())))
}

/// A map of these pairs.
pub fn dict(rendering: &Rendering, pairs: impl Iterator<Item = (Value, Value)>) -> Answer {
    let mut parts = Vec::new();
    for (key, value) in pairs {
        if !scalar(&key) {
            return Err(invalid("a key is a text or a number"));
        }
        parts.push((rendering.part(&key)?, rendering.part(&value)?));
    }
    let dict = Dict::of(parts, rendering.shadow);
    rendering.meter.build(rendering.meter.weigh(&dict)?)?;
    Ok(dict)
}

/// A constant as a value of the run's own: the constant stays as it is when that is changed.
fn fresh(rendering: &Rendering, args: &[Value]) -> Answer {
    let [constant] = args else { return Err(invalid("there is one constant")) };
    match constant.kind() {
        ValueKind::Map => {
            let pairs: Vec<_> = rendering.items(constant)?.into_iter().collect();
            dict(rendering, pairs.into_iter().map(|key| (key.clone(), constant.get_item(&key).unwrap_or_default())))
        }
        ValueKind::Seq if !constant.is_tuple() => rendering.list(&rendering.items(constant)?),
        _ => Ok(constant.clone()),
    }
}

/// Arguments by name, of several maps.
fn merge(rendering: &Rendering, args: &[Value]) -> Answer {
    let mut named = Vec::new();
    for map in args {
        if map.kind() != ValueKind::Map {
            return Err(invalid("`**` takes a map"));
        }
        for key in rendering.items(map)? {
            let name = key.as_str().ok_or_else(|| invalid("an argument's name is a text"))?;
            // A foreign name stays one: `dict(**map)` makes a key of it.
            named.push((name.to_owned(), map.get_item(&key)?));
        }
    }
    Ok(Value::from(named.into_iter().collect::<Kwargs>()))
}

/// Arguments by place, of several lists.
fn spread(rendering: &Rendering, args: &[Value]) -> Answer {
    let mut all = Vec::new();
    for list in args {
        all.extend(rendering.items(list)?);
        // The value that a filter or a method is called on is one more.
        if all.len() > MAX_ARGUMENTS {
            return Err(invalid(format!("a call has more than {MAX_ARGUMENTS} arguments")));
        }
    }
    Ok(Value::from(all))
}

/// What a loop goes over.
fn each(rendering: &Rendering, args: &[Value]) -> Answer {
    let [value] = args else { return Err(invalid("a loop goes over one value")) };
    match value.kind() {
        ValueKind::None => Err(invalid("none cannot be gone over")),
        // A list that the loop itself appends to ends where it ended.
        ValueKind::Seq if value.downcast_object_ref::<List>().is_some() => {
            rendering.meter.work(value.len().unwrap_or(0).saturating_mul(super::rendering::PIECE_COST))?;
            Ok(freeze(value))
        }
        ValueKind::String => {
            rendering.meter.build(value.as_str().unwrap_or_default().len())?;
            Ok(value.clone())
        }
        // A map gives a list of its keys.
        _ => {
            rendering.meter.work(value.len().unwrap_or(0).saturating_mul(super::rendering::PIECE_COST))?;
            Ok(value.clone())
        }
    }
}

/// Python's slices. The instruction has the value, start, stop and step on the stack.
fn slice(rendering: &Rendering, args: &[Value]) -> Answer {
    let [value, start, stop, step] = args else { return Err(invalid("a slice needs a value")) };
    let index = |value: &Value| match value.is_none() {
        true => Ok(None),
        false => value.as_i64().map(Some).ok_or_else(|| invalid("a slice is of whole numbers")),
    };
    let (start, stop, step) = (index(start)?, index(stop)?, index(step)?.unwrap_or(1));
    if let Some(text) = value.as_str() {
        rendering.meter.work(text.len())?;
        rendering.meter.build(text.len().saturating_mul(size_of::<char>()))?;
        let characters: Vec<char> = text.chars().collect();
        return Ok(Value::from(picked(&characters, start, stop, step)?.into_iter().collect::<String>()));
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(invalid(format!("{} has no slices", value.kind())));
    }
    let items = picked(&rendering.items(value)?, start, stop, step)?;
    match value.is_tuple() {
        true => tuple(rendering, &items),
        false => rendering.list(&items),
    }
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

/// A new namespace, with the fields of a map and of arguments by name.
pub fn namespace(rendering: &Rendering, args: &[Value]) -> Answer {
    let given = Given::new(args)?;
    let space = Value::from_object(Namespace::default());
    for map in given.values {
        for key in rendering.items(map)? {
            set(rendering, &[map.get_item(&key)?, space.clone(), key])?;
        }
    }
    for (name, value) in given.named {
        set(rendering, &[value, space.clone(), Value::from(name)])?;
    }
    Ok(space)
}

/// Sets a field: the value, the namespace and the field's name.
fn set(rendering: &Rendering, args: &[Value]) -> Answer {
    let [value, space, name] = args else { return Err(invalid("a field needs a value")) };
    let space =
        space.downcast_object_ref::<Namespace>().ok_or_else(|| invalid("only a namespace's fields can be set"))?;
    let name = name.as_str().ok_or_else(|| invalid("a field has a name"))?;
    rendering.meter.build(super::rendering::PIECE_COST)?;
    // Weighed again as a part: values only grow deeper through lists, maps and fields.
    let part = rendering.part(value)?;
    let list = value.downcast_object_ref::<List>().is_some();
    space.set(&rendering.shadow.plain(name), if list { value.clone() } else { part });
    Ok(Value::UNDEFINED)
}
