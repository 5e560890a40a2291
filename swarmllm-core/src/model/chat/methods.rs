//! Methods of texts, lists and maps, as Python has them.

use std::ops::Range;

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

use super::format::braces;
use super::given::{Given, invalid};
use super::meter::Text;
use super::operators::tuple;
use super::rendering::{PIECE_COST, Rendering, Twin};
use super::shadow::is_space;
use super::values::List;

type Answer = Result<Value, Error>;

/// Calls a method.
pub fn call(rendering: &Rendering, value: &Value, name: &str, args: &[Value]) -> Answer {
    rendering.meter.weigh_all(args)?;
    match value.kind() {
        ValueKind::String => text_method(rendering, value, name, args),
        ValueKind::Map => map_method(rendering, value, name, args),
        ValueKind::Seq => list_method(rendering, value, name, args),
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

fn text_method(rendering: &Rendering, value: &Value, name: &str, args: &[Value]) -> Answer {
    if name == "format" {
        return braces(rendering, value.as_str().unwrap_or_default(), args);
    }
    let twin = rendering.twin(value)?;
    let none = |args: &[Value]| Given::of(args, &[]).map(drop);
    match name {
        "strip" | "lstrip" | "rstrip" => {
            let given = Given::of(args, &["chars"])?;
            strip(rendering, &twin, given.text(0, "chars")?, name != "rstrip", name != "lstrip")
        }
        "split" | "rsplit" => {
            let given = Given::of(args, &["sep", "maxsplit"])?;
            let most = given.whole(1, "maxsplit")?.and_then(|most| usize::try_from(most).ok());
            split(rendering, &twin, given.text(0, "sep")?, most, name == "rsplit")
        }
        "splitlines" => {
            let given = Given::of(args, &["keepends"])?;
            pieces(rendering, &twin, lines(rendering, &twin.plain, given.flag(0, "keepends"))?.into_iter())
        }
        "partition" | "rpartition" => partition(rendering, &twin, args, name == "rpartition"),
        "replace" => {
            let given = Given::of(args, &["old", "new", "count"])?;
            let [old, new] = [given.need(0, "old")?, given.need(1, "new")?];
            let most = given.whole(2, "count")?.and_then(|most| usize::try_from(most).ok());
            replace(rendering, &twin, &rendering.twin(old)?, &rendering.twin(new)?, most)
        }
        "removeprefix" | "removesuffix" => {
            let given = Given::of(args, &["affix"])?;
            let affix = plain(rendering, given.need(0, "affix")?)?;
            let cut = match name {
                "removeprefix" => {
                    twin.plain.strip_prefix(&affix).map(|rest| twin.plain.len() - rest.len()..twin.plain.len())
                }
                _ => twin.plain.strip_suffix(&affix).map(|rest| 0..rest.len()),
            };
            rendering.new_text(twin.part(cut.unwrap_or(0..twin.plain.len())))
        }
        "startswith" | "endswith" => {
            let given = Given::of(args, &["affix"])?;
            let affix = given.need(0, "affix")?;
            let affixes = if affix.as_str().is_some() { vec![affix.clone()] } else { rendering.items(affix)? };
            for affix in &affixes {
                let affix = plain(rendering, affix)?;
                let found =
                    if name == "startswith" { twin.plain.starts_with(&affix) } else { twin.plain.ends_with(&affix) };
                if found {
                    return Ok(Value::from(true));
                }
            }
            Ok(Value::from(false))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => search(rendering, &twin, name, args),
        "join" => {
            let given = Given::of(args, &["items"])?;
            join(rendering, value, &rendering.items(given.need(0, "items")?)?)
        }
        "upper" | "lower" | "casefold" | "capitalize" | "title" | "swapcase" => {
            none(args)?;
            rendering.new_text(twin.like(cased(&twin.plain, name)))
        }
        "center" | "ljust" | "rjust" | "zfill" => pad(rendering, &twin, name, args),
        _ => {
            { none(args).and_then(|()| is_all(&twin.plain, name).ok_or_else(|| Error::from(ErrorKind::UnknownMethod))) }
                .map(Value::from)
        }
    }
}

/// A text without shadows.
fn plain(rendering: &Rendering, value: &Value) -> Result<String, Error> {
    let text = value.as_str().ok_or_else(|| invalid(format!("a text is wanted, not {}", value.kind())))?;
    rendering.meter.work(text.len())?;
    Ok(rendering.shadow.plain(text).into_owned())
}

/// What is left without these characters, or without white space, at the ends.
pub fn strip(rendering: &Rendering, twin: &Twin, chars: Option<&str>, left: bool, right: bool) -> Answer {
    let chars = chars.map(|chars| rendering.shadow.plain(chars).chars().collect::<std::collections::BTreeSet<_>>());
    let off = |character: char| chars.as_ref().map_or_else(|| is_space(character), |chars| chars.contains(&character));
    let text = twin.plain.as_str();
    let rest = if left { text.trim_start_matches(off) } else { text };
    let start = text.len() - rest.len();
    let rest = if right { rest.trim_end_matches(off) } else { rest };
    rendering.new_text(twin.part(start..start + rest.len()))
}

/// The pieces between separators, or between white space.
pub fn split(rendering: &Rendering, twin: &Twin, by: Option<&str>, most: Option<usize>, last: bool) -> Answer {
    let text = twin.plain.as_str();
    let most = most.unwrap_or(usize::MAX);
    let mut gaps: Vec<Range<usize>> = match by.map(|by| rendering.shadow.plain(by)) {
        Some(by) if by.is_empty() => return Err(invalid("an empty text separates nothing")),
        Some(by) if last => ranges(rendering, text.rmatch_indices(&*by).take(most))?,
        Some(by) => ranges(rendering, text.match_indices(&*by).take(most))?,
        None => return pieces(rendering, twin, words(rendering, text, most, last)?.into_iter()),
    };
    if last {
        gaps.reverse();
    }
    let starts = std::iter::once(0).chain(gaps.iter().map(|gap| gap.end));
    let ends = gaps.iter().map(|gap| gap.start).chain(std::iter::once(text.len()));
    let ranges: Vec<_> = starts.zip(ends).map(|(start, end)| start..end).collect();
    pieces(rendering, twin, ranges.into_iter())
}

/// Where matches are, each taken off the meter before the next is sought.
fn ranges<'t>(
    rendering: &Rendering,
    matches: impl Iterator<Item = (usize, &'t str)>,
) -> Result<Vec<Range<usize>>, Error> {
    let mut found = Vec::new();
    for (at, part) in matches {
        take_range(rendering)?;
        found.push(at..at + part.len());
    }
    Ok(found)
}

fn take_range(rendering: &Rendering) -> Result<(), Error> {
    rendering.meter.build(size_of::<Range<usize>>())
}

/// Words between white space; beyond `most` splits the rest stays whole.
fn words(rendering: &Rendering, text: &str, most: usize, last: bool) -> Result<Vec<Range<usize>>, Error> {
    let (mut found, mut rest) = (Vec::new(), 0..text.len());
    loop {
        let part = text.get(rest.clone()).unwrap_or_default();
        let trimmed = if last { part.trim_end_matches(is_space) } else { part.trim_start_matches(is_space) };
        if trimmed.is_empty() {
            break;
        }
        take_range(rendering)?;
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

/// The lines of a text, as Python's `splitlines` finds them.
pub fn lines(rendering: &Rendering, text: &str, keep: bool) -> Result<Vec<Range<usize>>, Error> {
    let is_end =
        |at: char| matches!(at, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut found, mut start) = (Vec::new(), 0);
    while let Some(rest) = text.get(start..).filter(|rest| !rest.is_empty()) {
        take_range(rendering)?;
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

fn pieces(rendering: &Rendering, twin: &Twin, ranges: impl ExactSizeIterator<Item = Range<usize>>) -> Answer {
    rendering.meter.build(ranges.len().saturating_mul(PIECE_COST))?;
    rendering.meter.build(super::shadow::cost(&twin.marked))?;
    Ok(List::of(twin.parts(ranges).map(Value::from).collect()))
}

fn partition(rendering: &Rendering, twin: &Twin, args: &[Value], last: bool) -> Answer {
    let given = Given::of(args, &["sep"])?;
    let by = plain(rendering, given.need(0, "sep")?)?;
    let (text, len) = (twin.plain.as_str(), twin.plain.len());
    let found = if last { text.rfind(&by) } else { text.find(&by) };
    let [a, b] = match found.filter(|_| !by.is_empty()) {
        Some(at) => [at, at + by.len()],
        None if last => [0, 0],
        None => [len, len],
    };
    let parts: Vec<Value> = twin.parts([0..a, a..b, b..len].into_iter()).map(Value::from).collect();
    tuple(rendering, &parts)
}

/// The text with `new` where `old` is.
pub fn replace(rendering: &Rendering, twin: &Twin, old: &Twin, new: &Twin, most: Option<usize>) -> Answer {
    let text = twin.plain.as_str();
    let found = text.match_indices(&*old.plain).take(most.unwrap_or(usize::MAX));
    let (mut out, mut next) = (Text::new(&rendering.meter), 0);
    let mut ranges = Vec::new();
    for (at, part) in found {
        rendering.meter.build(size_of::<Range<usize>>())?;
        ranges.push(next..at);
        next = at + part.len();
    }
    let count = ranges.len();
    ranges.push(next..text.len());
    for (at, part) in twin.parts(ranges.into_iter()).enumerate() {
        out.push(part)?;
        out.push(if at < count { &new.marked } else { "" })?;
    }
    Ok(Value::from(out.text))
}

fn search(rendering: &Rendering, twin: &Twin, name: &str, args: &[Value]) -> Answer {
    let given = Given::of(args, &["sub", "start", "end"])?;
    let wanted = plain(rendering, given.need(0, "sub")?)?;
    let length = twin.plain.chars().count();
    let bound = |index: Option<i64>, otherwise: usize| match index {
        None => otherwise,
        Some(index) => usize::try_from(index)
            .unwrap_or_else(|_| length.saturating_sub(usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX))),
    };
    let (start, end) = (bound(given.whole(1, "start")?, 0), bound(given.whole(2, "end")?, length));
    let part: String = twin.plain.chars().take(end).skip(start).collect();
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

/// Texts, with another between them.
pub fn join(rendering: &Rendering, between: &Value, items: &[Value]) -> Answer {
    let mut text = Text::new(&rendering.meter);
    for (at, item) in items.iter().enumerate() {
        if at > 0 {
            rendering.append(&mut text, between)?;
        }
        rendering.append(&mut text, item)?;
    }
    Ok(Value::from(text.text))
}

/// The text in another case.
pub fn cased(text: &str, how: &str) -> String {
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

fn pad(rendering: &Rendering, twin: &Twin, name: &str, args: &[Value]) -> Answer {
    let given = Given::of(args, &["width", "fillchar"])?;
    let width = given.whole(0, "width")?.and_then(|width| usize::try_from(width).ok()).unwrap_or(0);
    let fill = match (name, given.text(1, "fillchar")?) {
        ("zfill", _) => '0',
        (_, None) => ' ',
        (_, Some(fill)) => fill.chars().next().ok_or_else(|| invalid("a field is filled with one character"))?,
    };
    let length = twin.plain.chars().count();
    let missing = width.saturating_sub(length);
    let sign = usize::from(name == "zfill" && twin.plain.starts_with(['+', '-']));
    let left = match name {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let mut text = Text::new(&rendering.meter);
    text.push(twin.part(0..sign))?;
    text.fill(fill, left)?;
    text.push(twin.part(sign..twin.plain.len()))?;
    text.fill(fill, missing - left)?;
    Ok(Value::from(text.text))
}

/// Tests of all characters; `None` for a name that is none of them.
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

fn map_method(rendering: &Rendering, value: &Value, name: &str, args: &[Value]) -> Answer {
    // A namespace has fields and no methods.
    if value.len().is_none() || value.is_kwargs() {
        return Err(Error::from(ErrorKind::UnknownMethod));
    }
    match name {
        "get" => {
            let given = Given::of(args, &["key", "default"])?;
            let key = given.need(0, "key")?;
            let found = if super::operators::scalar(key) { value.get_item(key)? } else { Value::UNDEFINED };
            let otherwise = || given.get(1, "default").cloned().unwrap_or_else(|| Value::from(()));
            Ok(if found.is_undefined() { otherwise() } else { found })
        }
        "items" | "keys" | "values" | "copy" => {
            Given::of(args, &[])?;
            let keys = rendering.items(value)?;
            match name {
                "keys" => rendering.list(&keys),
                "items" => items(rendering, value),
                "copy" => Ok(value.clone()),
                _ => {
                    let values: Result<Vec<_>, _> = keys.iter().map(|key| value.get_item(key)).collect();
                    rendering.list(&values?)
                }
            }
        }
        "pop" | "popitem" | "update" | "clear" | "setdefault" => {
            Err(invalid(format!("`.{name}` changes a map, which is not admitted in a chat template")))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}

/// The pairs of a map.
pub fn items(rendering: &Rendering, map: &Value) -> Answer {
    let pairs = rendering.items(map)?.into_iter().map(|key| {
        let value = map.get_item(&key)?;
        tuple(rendering, &[key, value])
    });
    rendering.list(&pairs.collect::<Result<Vec<_>, _>>()?)
}

fn list_method(rendering: &Rendering, value: &Value, name: &str, args: &[Value]) -> Answer {
    let own = || {
        let frozen = || invalid(format!("`.{name}` changes a list that is a part of another value"));
        value.downcast_object_ref::<List>().ok_or_else(frozen)
    };
    match name {
        "append" => {
            let given = Given::of(args, &["item"])?;
            let part = rendering.part(given.need(0, "item")?)?;
            rendering.meter.build(PIECE_COST)?;
            own()?.change(|items| items.push(part));
            Ok(Value::from(()))
        }
        "pop" => {
            let given = Given::of(args, &["index"])?;
            let index = given.whole(0, "index")?.unwrap_or(-1);
            rendering.meter.work(value.len().unwrap_or(0))?;
            let popped = own()?.change(|items| {
                let from_end = usize::try_from(index.unsigned_abs()).unwrap_or(usize::MAX);
                let at = if index < 0 { items.len().checked_sub(from_end)? } else { from_end };
                (at < items.len()).then(|| items.remove(at))
            });
            popped.ok_or_else(|| invalid("there is no such item to pop"))
        }
        "count" | "index" => {
            let given = Given::of(args, &["item"])?;
            let wanted = given.need(0, "item")?;
            let mut places = Vec::new();
            for (at, item) in rendering.items(value)?.iter().enumerate() {
                if rendering.equal(item, wanted)? {
                    places.push(at);
                }
            }
            match (name, places.first()) {
                ("count", _) => Ok(Value::from(places.len())),
                (_, Some(at)) => Ok(Value::from(*at)),
                (_, None) => Err(invalid("the item is not in the list")),
            }
        }
        "copy" => rendering.list(&rendering.items(value)?),
        "extend" | "insert" | "remove" | "clear" | "sort" | "reverse" => {
            Err(invalid(format!("`.{name}` of a list is not admitted in a chat template")))
        }
        _ => Err(Error::from(ErrorKind::UnknownMethod)),
    }
}
