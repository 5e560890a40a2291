//! The environment of templates: operators, filters, tests, methods and functions. Each charges the meter first.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use jiff::civil::DateTime;
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, State, Value};

use super::arguments::{Arguments, MAX_ARGUMENTS, invalid};
use super::bytecode::call;
use super::checks::TESTS;
use super::clock;
use super::context::RenderContext;
use super::filters::{self, FILTERS};
use super::methods;
use super::operators::{self, OPERATORS, dict};
use super::python::Number;
use super::values::{Joiner, is_loop};

/// Longest list of `range`.
const MAX_RANGE: usize = 10_000;

/// Arguments; keyword arguments are the last value.
type Args = Rest<ValueOrKwargs>;
type Answer = Result<Value, Error>;

/// An environment with the functions that compiled templates call, and no others.
pub fn environment(context: &Arc<RenderContext>, now: DateTime) -> Environment<'static> {
    let mut env = Environment::empty();
    let shared = Arc::clone(context);
    env.set_formatter(move |out, _, value| {
        let text = shared.text(value)?;
        out.write_str(&text).map_err(|_| invalid("the output cannot be written"))
    });
    let shared = Arc::clone(context);
    env.set_unknown_method_callback(move |_, value, name, args| match args.len() > MAX_ARGUMENTS {
        true => Err(invalid(format!("a call has more than {MAX_ARGUMENTS} arguments"))),
        false => methods::call(&shared, value, name, args),
    });
    for (name, operator) in OPERATORS {
        let shared = Arc::clone(context);
        env.add_function(name, move |args: Args| operator(&shared, &args.into_values()));
    }
    for (name, method) in [(call::CHANGED, "changed"), (call::CYCLE, "cycle")] {
        let shared = Arc::clone(context);
        env.add_function(name, move |state: &mut State, args: Args| {
            loop_method(&shared, state, method, &limited(args)?)
        });
    }
    add_functions(&mut env, context, now);
    add_filters(&mut env, context);
    for (name, test) in TESTS {
        let shared = Arc::clone(context);
        env.add_test(*name, move |args: Args| -> Result<bool, Error> {
            let args = limited(args)?;
            let (value, rest) = args.split_first().ok_or_else(|| invalid("a test needs a value"))?;
            if !rest.is_empty() {
                shared.meter.measure_all(&args)?;
            }
            test(&shared, value, rest)
        });
    }
    env
}

/// The arguments of a call, at most [`MAX_ARGUMENTS`].
fn limited(args: Args) -> Result<Vec<Value>, Error> {
    let args = args.into_values();
    match args.len() > MAX_ARGUMENTS {
        true => Err(invalid(format!("a call has more than {MAX_ARGUMENTS} arguments"))),
        false => Ok(args),
    }
}

/// `loop.changed` and `loop.cycle`. The loop keeps the arguments of `changed` and compares them at the next call, so
/// they must not contain the loop.
fn loop_method(context: &RenderContext, state: &mut State<'_, '_>, name: &str, args: &[Value]) -> Answer {
    let (holder, args) = args.split_first().ok_or_else(|| invalid("a method needs a value"))?;
    if is_loop(holder) {
        if args.is_empty() {
            return Err(invalid(format!("`loop.{name}` needs a value")));
        }
        if name == "changed" {
            context.check_parts(args)?;
            context.meter.measure_all(args)?;
        }
    }
    holder.call_method(state, name, args)
}

fn add_functions(env: &mut Environment<'static>, context: &Arc<RenderContext>, now: DateTime) {
    let shared = Arc::clone(context);
    env.add_function("raise_exception", move |message: &Value| -> Answer {
        let message = shared.text(message)?;
        Err(shared.meter.raise(&shared.taint.plain(&message)))
    });
    let shared = Arc::clone(context);
    env.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        shared.meter.charge_work(format.len())?;
        let plain = shared.taint.plain(format);
        let text = clock::format(now, &plain);
        let text = text.ok_or_else(|| invalid(format!("the time format `{plain}` is not supported")))?;
        // A tainted format taints the whole result.
        Ok(if shared.taint.occurs_in(format) { shared.taint.mark(&text).into_owned() } else { text })
    });
    let shared = Arc::clone(context);
    env.add_function("namespace", move |args: Args| operators::namespace(&shared, &limited(args)?));
    let shared = Arc::clone(context);
    env.add_function("dict", move |args: Args| -> Answer {
        let args = limited(args)?;
        let arguments = Arguments::new(&args)?;
        let mut pairs = Vec::new();
        for map in arguments.values {
            for item in shared.items(map)? {
                match map.kind() {
                    ValueKind::Map => pairs.push((item.clone(), map.get_item(&item)?)),
                    _ => pairs.push((item.get_item(&Value::from(0))?, item.get_item(&Value::from(1))?)),
                }
            }
        }
        dict(
            &shared,
            pairs.into_iter().chain(arguments.named.into_iter().map(|(name, value)| (Value::from(name), value))),
        )
    });
    let shared = Arc::clone(context);
    env.add_function("joiner", move |args: Args| -> Answer {
        let args = limited(args)?;
        let arguments = Arguments::of(&args, &["sep"])?;
        let text = arguments.get(0, "sep").cloned().unwrap_or_else(|| Value::from(", "));
        let joiner = Joiner { text: Value::from(shared.text(&text)?), used: AtomicBool::new(false) };
        Ok(Value::from_object(joiner))
    });
    let shared = Arc::clone(context);
    env.add_function("range", move |from: i64, to: Option<i64>, step: Option<i64>| -> Answer {
        shared.list(&range(from, to, step.unwrap_or(1))?)
    });
}

/// Python's `range`. Computes in `i128`, since the distance of two `i64` may not fit into one.
fn range(from: i64, to: Option<i64>, step: i64) -> Result<Vec<Value>, Error> {
    let (start, end) = to.map_or((0, from), |to| (from, to));
    let (start, end, step) = (i128::from(start), i128::from(end), i128::from(step));
    if step == 0 {
        return Err(invalid("a range cannot have the step 0"));
    }
    let numbers = (0..).map(|at| start + at * step).take_while(|number| (*number - end) * step.signum() < 0);
    let numbers: Vec<Value> = numbers.take(MAX_RANGE + 1).map(|whole| Number::Int(whole).value()).collect();
    if numbers.len() > MAX_RANGE { Err(invalid("the range is too long")) } else { Ok(numbers) }
}

fn add_filters(env: &mut Environment<'static>, context: &Arc<RenderContext>) {
    for (name, filter) in FILTERS {
        let shared = Arc::clone(context);
        env.add_filter(*name, move |args: Args| -> Answer {
            let args = limited(args)?;
            shared.meter.charge_work(args.len())?;
            filter(&shared, &args)
        });
    }
    for (name, by_attribute, keep) in
        [("select", false, true), ("reject", false, false), ("selectattr", true, true), ("rejectattr", true, false)]
    {
        let shared = Arc::clone(context);
        env.add_filter(name, move |state: &mut State, args: Args| {
            filters::select(&shared, state, &limited(args)?, by_attribute, keep)
        });
    }
    let shared = Arc::clone(context);
    env.add_filter("map", move |state: &mut State, args: Args| filters::map(&shared, state, &limited(args)?));
}
