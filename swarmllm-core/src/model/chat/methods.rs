//! Python's methods of texts, lists and maps.

use std::ops::Range;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::arguments::{Arguments, invalid};
use super::context::{PIECE_COST, RenderContext, TaintedText};
use super::format::braces;
use super::meter::MeteredText;
use super::operators::tuple;
use super::taint::is_space;
use super::values::List;

type Answer = Result<Value, Error>;

/// Calls a method.
pub fn call(context: &RenderContext, value: &Value, name: &str, args: &[Value]) -> Answer {
    context.meter.measure_all(args)?;
    match value.kind() {
        ValueKind::String => text_method(context, value, name, args),
        ValueKind::Map => map_method(context, value, name, args),
        ValueKind::Seq => list_method(context, value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn text_method(context: &RenderContext, value: &Value, name: &str, args: &[Value]) -> Answer {
    if name == "format" {
        return braces(context, value.as_str().unwrap_or_default(), args);
    }
    let tainted = context.tainted(value)?;
    let none = |args: &[Value]| Arguments::of(args, &[]).map(drop);
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let arguments = Arguments::of(args, &["chars"])?;
            strip(context, &tainted, arguments.text(0, "chars")?, name != "rstrip", name != "lstrip")
        }
        "split" | "rsplit" => {
            let arguments = Arguments::of(args, &["sep", "maxsplit"])?;
            let most = arguments.integer(1, "maxsplit")?.and_then(|most| usize::try_from(most).ok());
            split(context, &tainted, arguments.text(0, "sep")?, most, name == "rsplit")
        }
        "splitlines" => {
            let arguments = Arguments::of(args, &["keepends"])?;
            pieces(context, &tainted, lines(context, &tainted.plain, arguments.flag(0, "keepends"))?.into_iter())
        }
        "partition" | "rpartition" => partition(context, &tainted, args, name == "rpartition"),
        "replace" => {
            let arguments = Arguments::of(args, &["old", "new", "count"])?;
            let [old, new] = [arguments.need(0, "old")?, arguments.need(1, "new")?];
            let most = arguments.integer(2, "count")?.and_then(|most| usize::try_from(most).ok());
            replace(context, &tainted, &context.tainted(old)?, &context.tainted(new)?, most)
        }
        "removeprefix" | "removesuffix" => {
            let arguments = Arguments::of(args, &["affix"])?;
            let affix = plain(context, arguments.need(0, "affix")?)?;
            let cut = match name {
                "removeprefix" => {
                    tainted.plain.strip_prefix(&affix).map(|rest| tainted.plain.len() - rest.len()..tainted.plain.len())
                }
                _ => tainted.plain.strip_suffix(&affix).map(|rest| 0..rest.len()),
            };
            context.new_text(tainted.part(cut.unwrap_or(0..tainted.plain.len())))
        }
        "startswith" | "endswith" => {
            let arguments = Arguments::of(args, &["affix"])?;
            let affix = arguments.need(0, "affix")?;
            let affixes = if affix.as_str().is_some() { vec![affix.clone()] } else { context.items(affix)? };
            for affix in &affixes {
                let affix = plain(context, affix)?;
                let found = if name == "startswith" {
                    tainted.plain.starts_with(&affix)
                } else {
                    tainted.plain.ends_with(&affix)
                };
                if found {
                    return Ok(Value::from(true));
                }
            }
            Ok(Value::from(false))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(context, &tainted, name, args),
        "join" => {
            let arguments = Arguments::of(args, &["items"])?;
            join(context, value, &context.items(arguments.need(0, "items")?)?)
        }
        "upper" | "lower" | "casefold" | "capitalize" | "title" | "swapcase" => {
            none(args)?;
            context.new_text(tainted.like(change_case(&tainted.plain, name)))
        }
        "center" | "ljust" | "rjust" | "zfill" => pad(context, &tainted, name, args),
        _ => {
            none(args).and_then(|()| is_all(&tainted.plain, name).ok_or_else(|| Error::from(ErrorKind::UnknownMethod)))
        }
        .map(Value::from),
    }
}

/// A text in plain characters.
fn plain(context: &RenderContext, value: &Value) -> Result<String, Error> {
    let text = value.as_str().ok_or_else(|| invalid(format!("a text is expected, not {}", value.kind())))?;
    context.meter.charge_work(text.len())?;
    Ok(context.taint.plain(text).into_owned())
}

/// The text without the characters, or without white space, at its ends.
pub fn strip(context: &RenderContext, tainted: &TaintedText, chars: Option<&str>, left: bool, right: bool) -> Answer {
    let chars = chars.map(|chars| context.taint.plain(chars).chars().collect::<std::collections::BTreeSet<_>>());
    let off = |character: char| chars.as_ref().map_or_else(|| is_space(character), |chars| chars.contains(&character));
    let text = tainted.plain.as_str();
    let rest = if left { text.trim_start_matches(off) } else { text };
    let start = text.len() - rest.len();
    let rest = if right { rest.trim_end_matches(off) } else { rest };
    context.new_text(tainted.part(start..start + rest.len()))
}

/// The pieces between separators, or between runs of white space.
pub fn split(
    context: &RenderContext,
    tainted: &TaintedText,
    by: Option<&str>,
    most: Option<usize>,
    last: bool,
) -> Answer {
    let text = tainted.plain.as_str();
    let most = most.unwrap_or(usize::MAX);
    let mut gaps: Vec<Range<usize>> = match by.map(|by| context.taint.plain(by)) {
        Some(by) if by.is_empty() => return Err(invalid("the separator is empty")),
        Some(by) if last => ranges(context, text.rmatch_indices(&*by).take(most))?,
        Some(by) => ranges(context, text.match_indices(&*by).take(most))?,
        None => return pieces(context, tainted, words(context, text, most, last)?.into_iter()),
    };
    if last {
        gaps.reverse();
    }
    let starts = std::iter::once(0).chain(gaps.iter().map(|gap| gap.end));
    let ends = gaps.iter().map(|gap| gap.start).chain(std::iter::once(text.len()));
    let ranges: Vec<_> = starts.zip(ends).map(|(start, end)| start..end).collect();
    pieces(context, tainted, ranges.into_iter())
}

/// The ranges of matches. Each is charged before the search for the next.
fn ranges<'t>(
    context: &RenderContext,
    matches: impl Iterator<Item = (usize, &'t str)>,
) -> Result<Vec<Range<usize>>, Error> {
    let mut found = Vec::new();
    for (at, part) in matches {
        take_range(context)?;
        found.push(at..at + part.len());
    }
    Ok(found)
}

fn take_range(context: &RenderContext) -> Result<(), Error> {
    context.meter.charge_memory(size_of::<Range<usize>>())
}

/// The words between white space, after at most `most` splits.
fn words(context: &RenderContext, text: &str, most: usize, last: bool) -> Result<Vec<Range<usize>>, Error> {
    let (mut found, mut rest) = (Vec::new(), 0..text.len());
    loop {
        let part = text.get(rest.clone()).unwrap_or_default();
        let trimmed = if last { part.trim_end_matches(is_space) } else { part.trim_start_matches(is_space) };
        if trimmed.is_empty() {
            break;
        }
        take_range(context)?;
        rest = if last { rest.start..rest.start + trimmed.len() } else { rest.end - trimmed.len()..rest.end };
        let cut = if last { trimmed.rfind(is_space) } else { trimmed.find(is_space) };
        match cut {
            Some(at) if found.len() < most => {
                if last {
                    let space = trimmed.get(at..).and_then(|rest| rest.chars().next()).map_or(1, char::len_utf8);
                    found.push(rest.start + at + space..rest.end);
                    rest = rest.start..rest.start + at;
                } else {
                    found.push(rest.start..rest.start + at);
                    rest = rest.start + at..rest.end;
                }
            }
            _ => {
                found.push(rest);
                break;
            }
        }
    }
    if last {
        found.reverse();
    }
    Ok(found)
}

/// The lines of a text, as in Python's `splitlines`.
pub fn lines(context: &RenderContext, text: &str, keep: bool) -> Result<Vec<Range<usize>>, Error> {
    let is_end =
        |at: char| matches!(at, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut found, mut start) = (Vec::new(), 0);
    while let Some(rest) = text.get(start..).filter(|rest| !rest.is_empty()) {
        take_range(context)?;
        let Some(at) = rest.find(is_end) else {
            found.push(start..text.len());
            break;
        };
        let end = rest.get(at..).unwrap_or_default();
        let length = if end.starts_with("\r\n") { 2 } else { end.chars().next().map_or(1, char::len_utf8) };
        found.push(start..start + at + if keep { length } else { 0 });
        start += at + length;
    }
    Ok(found)
}

fn pieces(
    context: &RenderContext,
    tainted: &TaintedText,
    ranges: impl ExactSizeIterator<Item = Range<usize>>,
) -> Answer {
    context.meter.charge_memory(ranges.len().saturating_mul(PIECE_COST))?;
    context.meter.charge_memory(super::taint::cost(&tainted.marked))?;
    Ok(List::of(tainted.parts(ranges).map(Value::from).collect()))
}

fn partition(context: &RenderContext, tainted: &TaintedText, args: &[Value], last: bool) -> Answer {
    let arguments = Arguments::of(args, &["sep"])?;
    let by = plain(context, arguments.need(0, "sep")?)?;
    let (text, len) = (tainted.plain.as_str(), tainted.plain.len());
    let found = if last { text.rfind(&by) } else { text.find(&by) };
    let [a, b] = match found.filter(|_| !by.is_empty()) {
        Some(at) => [at, at + by.len()],
        None if last => [0, 0],
        None => [len, len],
    };
    let parts: Vec<Value> = tainted.parts([0..a, a..b, b..len].into_iter()).map(Value::from).collect();
    tuple(context, &parts)
}

/// The text with `new` in the place of `old`.
pub fn replace(
    context: &RenderContext,
    tainted: &TaintedText,
    old: &TaintedText,
    new: &TaintedText,
    most: Option<usize>,
) -> Answer {
    let text = tainted.plain.as_str();
    let found = text.match_indices(&*old.plain).take(most.unwrap_or(usize::MAX));
    let (mut out, mut next) = (MeteredText::new(&context.meter), 0);
    let mut ranges = Vec::new();
    for (at, part) in found {
        context.meter.charge_memory(size_of::<Range<usize>>())?;
        ranges.push(next..at);
        next = at + part.len();
    }
    let count = ranges.len();
    ranges.push(next..text.len());
    for (at, part) in tainted.parts(ranges.into_iter()).enumerate() {
        out.push(part)?;
        out.push(if at < count { &new.marked } else { "" })?;
    }
    Ok(Value::from(out.text))
}

fn search(context: &RenderContext, tainted: &TaintedText, name: &str, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["sub", "start", "end"])?;
    let wanted = plain(context, arguments.need(0, "sub")?)?;
    let length = tainted.plain.chars().count();
    let bound = |index: Option<i64>, otherwise: usize| match index {
        None => otherwise,
        Some(index) => usize::try_from(index)
            .unwrap_or_else(|_| length.saturating_sub(usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX))),
    };
    let (start, end) = (bound(arguments.integer(1, "start")?, 0), bound(arguments.integer(2, "end")?, length));
    let part: String = tainted.plain.chars().take(end).skip(start).collect();
    if name == "count" {
        let count = if wanted.is_empty() { part.chars().count() + 1 } else { part.matches(&wanted).count() };
        return Ok(Value::from(count));
    }
    let found = if name.starts_with('r') { part.rfind(&wanted) } else { part.find(&wanted) };
    match found.and_then(|at| part.get(..at)) {
        Some(before) => Ok(Value::from(start + before.chars().count())),
        None if name.ends_with("find") => Ok(Value::from(-1)),
        None => Err(invalid("the text is not found")),
    }
}

/// Texts with a separator.
pub fn join(context: &RenderContext, between: &Value, items: &[Value]) -> Answer {
    let mut text = MeteredText::new(&context.meter);
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            context.append(&mut text, between)?;
        }
        context.append(&mut text, item)?;
    }
    Ok(Value::from(text.text))
}

/// The text in another case.
pub fn change_case(text: &str, how: &str) -> String {
    let first_upper = |word: &str| {
        let mut characters = word.chars();
        let first: String = characters.next().into_iter().flat_map(char::to_uppercase).collect();
        first + &characters.as_str().to_lowercase()
    };
    match how {
        "upper" => text.to_uppercase(),
        "lower" | "casefold" => text.to_lowercase(),
        "capitalize" => first_upper(text),
        "swapcase" => text
            .chars()
            .map(|at| if at.is_uppercase() { at.to_lowercase().to_string() } else { at.to_uppercase().to_string() })
            .collect(),
        _ => {
            let mut within = false;
            let mut out = String::with_capacity(text.len());
            for character in text.chars() {
                match within {
                    true => out.extend(character.to_lowercase()),
                    false => out.extend(character.to_uppercase()),
                }
                within = character.is_alphabetic();
            }
            out
        }
    }
}

fn pad(context: &RenderContext, tainted: &TaintedText, name: &str, args: &[Value]) -> Answer {
    let arguments = Arguments::of(args, &["width", "fillchar"])?;
    let width = arguments.integer(0, "width")?.and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
    let fill = match (name, arguments.text(1, "fillchar")?) {
        ("zfill", _) => '0',
        (_, None) => ' ',
        (_, Some(fill)) => fill.chars().next().ok_or_else(|| invalid("a field is filled with one character"))?,
    };
    let length = tainted.plain.chars().count();
    let missing = width.saturating_sub(length);
    let sign = usize::from(name == "zfill" && tainted.plain.starts_with(['+', '-']));
    let left = match name {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let mut text = MeteredText::new(&context.meter);
    text.push(tainted.part(0..sign))?;
    text.fill(fill, left)?;
    text.push(tainted.part(sign..tainted.plain.len()))?;
    text.fill(fill, missing - left)?;
    Ok(Value::from(text.text))
}

/// Python's tests of all characters; `None` for an unknown name.
fn is_all(text: &str, name: &str) -> Option<bool> {
    let all = |is: fn(char) -> bool| !text.is_empty() && text.chars().all(is);
    Some(match name {
        "isalnum" => all(char::is_alphanumeric),
        "isalpha" => all(char::is_alphabetic),
        "isascii" => text.is_ascii(),
        "isdigit" | "isdecimal" | "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "islower" => text.chars().any(char::is_lowercase) && !text.chars().any(char::is_uppercase),
        "isupper" => text.chars().any(char::is_uppercase) && !text.chars().any(char::is_lowercase),
        _ => return None,
    })
}

fn map_method(context: &RenderContext, value: &Value, name: &str, args: &[Value]) -> Answer {
    // A namespace has no methods.
    if value.len().is_none() || value.is_kwargs() {
        return Err(Error::from(ErrorKind::UnknownMethod));
    }
    match name {
        "get" => {
            let arguments = Arguments::of(args, &["key", "default"])?;
            let key = arguments.need(0, "key")?;
            let found = if super::operators::scalar(key) { value.get_item(key)? } else { Value::UNDEFINED };
            let otherwise = || arguments.get(1, "default").cloned().unwrap_or_else(|| Value::from(()));
            Ok(if found.is_undefined() { otherwise() } else { found })
        }
        "items" | "keys" | "values" | "copy" => {
            Arguments::of(args, &[])?;
            let keys = context.items(value)?;
            match name {
                "keys" => context.list(&keys),
                "items" => items(context, value),
                "copy" => Ok(value.clone()),
                _ => {
                    let values: Result<Vec<_>, _> = keys.iter().map(|key| value.get_item(key)).collect();
                    context.list(&values?)
                }
            }
        }
        "pop" | "popitem" | "update" | "clear" | "setdefault" => {
            Err(invalid(format!("`.{name}` changes a map, which is not admitted in a chat template")))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// The pairs of a map, as tuples.
pub fn items(context: &RenderContext, map: &Value) -> Answer {
    let pairs = context.items(map)?.into_iter().map(|key| {
        let value = map.get_item(&key)?;
        tuple(context, &[key, value])
    });
    context.list(&pairs.collect::<Result<Vec<_>, _>>()?)
}

fn list_method(context: &RenderContext, value: &Value, name: &str, args: &[Value]) -> Answer {
    let own = || {
        let frozen = || invalid(format!("`.{name}` changes a list that is a part of another value"));
        value.downcast_object_ref::<List>().ok_or_else(frozen)
    };
    match name {
        "append" => {
            let arguments = Arguments::of(args, &["item"])?;
            let part = context.part(arguments.need(0, "item")?)?;
            context.meter.charge_memory(PIECE_COST)?;
            own()?.change(|items| items.push(part));
            Ok(Value::from(()))
        }
        "pop" => {
            let arguments = Arguments::of(args, &["index"])?;
            let index = arguments.integer(0, "index")?.unwrap_or(-1);
            context.meter.charge_work(value.len().unwrap_or(0))?;
            let popped = own()?.change(|items| {
                let from_end = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
                let at = if index < 0 { items.len().checked_sub(from_end)? } else { from_end };
                (at < items.len()).then(|| items.remove(at))
            });
            popped.ok_or_else(|| invalid("the list has no such item"))
        }
        "count" | "index" => {
            let arguments = Arguments::of(args, &["item"])?;
            let wanted = arguments.need(0, "item")?;
            let mut places = Vec::new();
            for (at, item) in context.items(value)?.iter().enumerate() {
                if context.equal(item, wanted)? {
                    places.push(at);
                }
            }
            match (name, places.first()) {
                ("count", _) => Ok(Value::from(places.len())),
                (_, Some(at)) => Ok(Value::from(*at)),
                (_, None) => Err(invalid("the item is not in the list")),
            }
        }
        "copy" => context.list(&context.items(value)?),
        "extend" | "insert" | "remove" | "clear" | "sort" | "reverse" => {
            Err(invalid(format!("`.{name}` of a list is not admitted in a chat template")))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}
