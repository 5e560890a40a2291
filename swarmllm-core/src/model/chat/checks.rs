//! Tests of templates (`is ...`), as Jinja2 has them.

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::given::invalid;
use super::operators::contains;
use super::python::{self, Number};
use super::rendering::Rendering;
use super::values::{Dict, List, is_data, same, same_object};

type Test = fn(&Rendering, &Value, &[Value]) -> Result<bool, Error>;

/// The tests.
pub const TESTS: &[(&str, Test)] = &[
    ("boolean", |_, value, _| Ok(value.kind() == ValueKind::Bool)),
    ("callable", |_, value, _| Ok(value.kind() == ValueKind::Plain)),
    ("defined", |_, value, _| Ok(!value.is_undefined())),
    ("divisibleby", |_, value, args| match (Number::of(value), args.first().and_then(Number::of)) {
        (Some(Number::Whole(whole)), Some(Number::Whole(by))) if by != 0 => Ok(whole.checked_rem(by) == Some(0)),
        _ => Err(invalid("only whole numbers are divided")),
    }),
    ("eq", equal),
    ("equalto", equal),
    ("==", equal),
    ("even", |_, value, _| whole(value).map(|whole| whole % 2 == 0)),
    ("false", |_, value, _| Ok(value.kind() == ValueKind::Bool && !value.is_true())),
    ("float", |_, value, _| Ok(value.kind() == ValueKind::Number && !value.is_integer())),
    ("ge", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_ge)),
    (">=", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_ge)),
    ("greaterthan", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_gt)),
    ("gt", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_gt)),
    (">", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_gt)),
    ("in", |rendering, value, args| contains(rendering, value, one(args)?)),
    ("integer", |_, value, _| Ok(value.kind() == ValueKind::Number && value.is_integer())),
    ("iterable", |_, value, _| {
        let kind = value.kind();
        let listed = matches!(kind, ValueKind::String | ValueKind::Seq | ValueKind::Iterable | ValueKind::Undefined);
        Ok(listed || kind == ValueKind::Map && value.len().is_some())
    }),
    ("le", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_le)),
    ("<=", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_le)),
    ("lessthan", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_lt)),
    ("lower", |rendering, value, _| cased(rendering, value, char::is_lowercase, char::is_uppercase)),
    ("lt", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_lt)),
    ("<", |rendering, value, args| ordered(rendering, value, args, std::cmp::Ordering::is_lt)),
    ("mapping", |_, value, _| Ok(value.kind() == ValueKind::Map && value.len().is_some())),
    ("ne", |rendering, value, args| equal(rendering, value, args).map(|same| !same)),
    ("!=", |rendering, value, args| equal(rendering, value, args).map(|same| !same)),
    ("none", |_, value, _| Ok(value.is_none())),
    ("number", |_, value, _| Ok(matches!(value.kind(), ValueKind::Number | ValueKind::Bool))),
    ("odd", |_, value, _| whole(value).map(|whole| whole % 2 != 0)),
    ("sameas", |_, value, args| {
        let other = one(args)?;
        let known = same_object::<List>(value, other).or_else(|| same_object::<Dict>(value, other));
        Ok(known.unwrap_or_else(|| match is_data(value) && is_data(other) {
            true => value.kind() == other.kind() && value == other,
            false => same(value, other),
        }))
    }),
    ("sequence", |_, value, _| {
        let kind = value.kind();
        let listed = matches!(kind, ValueKind::String | ValueKind::Seq | ValueKind::Undefined);
        Ok(listed || kind == ValueKind::Map && value.len().is_some())
    }),
    ("startingwith", |rendering, value, args| Ok(plain(rendering, value).starts_with(&plain(rendering, one(args)?)))),
    ("endingwith", |rendering, value, args| Ok(plain(rendering, value).ends_with(&plain(rendering, one(args)?)))),
    ("string", |_, value, _| Ok(value.kind() == ValueKind::String)),
    ("true", |_, value, _| Ok(value.kind() == ValueKind::Bool && value.is_true())),
    ("undefined", |_, value, _| Ok(value.is_undefined())),
    ("upper", |rendering, value, _| cased(rendering, value, char::is_uppercase, char::is_lowercase)),
];

fn one(args: &[Value]) -> Result<&Value, Error> {
    args.first().ok_or_else(|| invalid("the test needs another value"))
}

fn whole(value: &Value) -> Result<i128, Error> {
    match Number::of(value) {
        Some(Number::Whole(whole)) => Ok(whole),
        _ => Err(invalid("only whole numbers are even or odd")),
    }
}

fn equal(rendering: &Rendering, value: &Value, args: &[Value]) -> Result<bool, Error> {
    rendering.equal(value, one(args)?)
}

fn ordered(
    rendering: &Rendering,
    value: &Value,
    args: &[Value],
    by: fn(std::cmp::Ordering) -> bool,
) -> Result<bool, Error> {
    Ok(python::order(value, one(args)?, rendering.shadow)?.is_some_and(by))
}

fn plain(rendering: &Rendering, value: &Value) -> String {
    rendering.shadow.plain(value.as_str().unwrap_or_default()).into_owned()
}

fn cased(rendering: &Rendering, value: &Value, one: fn(char) -> bool, none: fn(char) -> bool) -> Result<bool, Error> {
    let twin = rendering.twin(value)?;
    Ok(twin.plain.chars().any(one) && !twin.plain.chars().any(none))
}
