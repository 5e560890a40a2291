//! Jinja2's tests (`is ...`).

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::arguments::invalid;
use super::context::RenderContext;
use super::operators::contains;
use super::python::{self, Number};
use super::values::{Dict, List, is_data, same, same_object};

type Test = fn(&RenderContext, &Value, &[Value]) -> Result<bool, Error>;

/// Tests by name.
pub const TESTS: &[(&str, Test)] = &[
    ("boolean", |_, value, _| Ok(value.kind() == ValueKind::Bool)),
    ("callable", |_, value, _| Ok(value.kind() == ValueKind::Plain)),
    ("defined", |_, value, _| Ok(!value.is_undefined())),
    ("divisibleby", |_, value, args| match (Number::of(value), args.first().and_then(Number::of)) {
        (Some(Number::Int(integer)), Some(Number::Int(by))) if by != 0 => Ok(integer.checked_rem(by) == Some(0)),
        _ => Err(invalid("only integers are divisible")),
    }),
    ("eq", equal),
    ("equalto", equal),
    ("==", equal),
    ("even", |_, value, _| integer(value).map(|integer| integer % 2 == 0)),
    ("false", |_, value, _| Ok(value.kind() == ValueKind::Bool && !value.is_true())),
    ("float", |_, value, _| Ok(value.kind() == ValueKind::Number && !value.is_integer())),
    ("ge", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_ge)),
    (">=", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_ge)),
    ("greaterthan", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_gt)),
    ("gt", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_gt)),
    (">", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_gt)),
    ("in", |context, value, args| contains(context, value, argument(args)?)),
    ("integer", |_, value, _| Ok(value.kind() == ValueKind::Number && value.is_integer())),
    ("iterable", |_, value, _| {
        let kind = value.kind();
        let listed = matches!(kind, ValueKind::String | ValueKind::Seq | ValueKind::Iterable | ValueKind::Undefined);
        Ok(listed || kind == ValueKind::Map && value.len().is_some())
    }),
    ("le", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_le)),
    ("<=", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_le)),
    ("lessthan", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_lt)),
    ("lower", |context, value, _| has_case(context, value, char::is_lowercase, char::is_uppercase)),
    ("lt", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_lt)),
    ("<", |context, value, args| ordered(context, value, args, std::cmp::Ordering::is_lt)),
    ("mapping", |_, value, _| Ok(value.kind() == ValueKind::Map && value.len().is_some())),
    ("ne", |context, value, args| equal(context, value, args).map(|same| !same)),
    ("!=", |context, value, args| equal(context, value, args).map(|same| !same)),
    ("none", |_, value, _| Ok(value.is_none())),
    ("number", |_, value, _| Ok(matches!(value.kind(), ValueKind::Number | ValueKind::Bool))),
    ("odd", |_, value, _| integer(value).map(|integer| integer % 2 != 0)),
    ("sameas", |_, value, args| {
        let other = argument(args)?;
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
    ("startingwith", |context, value, args| Ok(plain(context, value).starts_with(&plain(context, argument(args)?)))),
    ("endingwith", |context, value, args| Ok(plain(context, value).ends_with(&plain(context, argument(args)?)))),
    ("string", |_, value, _| Ok(value.kind() == ValueKind::String)),
    ("true", |_, value, _| Ok(value.kind() == ValueKind::Bool && value.is_true())),
    ("undefined", |_, value, _| Ok(value.is_undefined())),
    ("upper", |context, value, _| has_case(context, value, char::is_uppercase, char::is_lowercase)),
];

fn argument(args: &[Value]) -> Result<&Value, Error> {
    args.first().ok_or_else(|| invalid("the test needs another value"))
}

fn integer(value: &Value) -> Result<i128, Error> {
    match Number::of(value) {
        Some(Number::Int(integer)) => Ok(integer),
        _ => Err(invalid("only integers are even or odd")),
    }
}

fn equal(context: &RenderContext, value: &Value, args: &[Value]) -> Result<bool, Error> {
    context.equal(value, argument(args)?)
}

fn ordered(
    context: &RenderContext,
    value: &Value,
    args: &[Value],
    by: fn(std::cmp::Ordering) -> bool,
) -> Result<bool, Error> {
    Ok(python::order(value, argument(args)?, context.taint)?.is_some_and(by))
}

fn plain(context: &RenderContext, value: &Value) -> String {
    context.taint.plain(value.as_str().unwrap_or_default()).into_owned()
}

fn has_case(
    context: &RenderContext,
    value: &Value,
    argument: fn(char) -> bool,
    none: fn(char) -> bool,
) -> Result<bool, Error> {
    let tainted = context.tainted(value)?;
    Ok(tainted.plain.chars().any(argument) && !tainted.plain.chars().any(none))
}
