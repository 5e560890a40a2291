//! The JSON schemas in the text of a Lark grammar (`%json {...}`).
//!
//! They mean what a schema that stands alone means: objects are closed where they name keys, and white space ends. llguidance
//! reads a grammar's schemas itself, so they are changed in its text.

use std::ops::Range;

use serde_json::{Deserializer, Value};

/// A schema, and where it stands.
pub(super) struct Embedded {
    place: Range<usize>,
    pub schema: Value,
}

/// The schemas of a grammar, in their order; none where the grammar has none, or a value of its that is no JSON, for which
/// llguidance refuses it.
pub(super) fn find(grammar: &str) -> Vec<Embedded> {
    let (mut found, mut at, mut open) = (Vec::new(), 0, Open::default());
    while let Some(rest) = grammar.get(at..).filter(|rest| !rest.is_empty()) {
        let keyword = ["%json", "%regex", "%llguidance"].into_iter().find(|keyword| rest.starts_with(keyword));
        let Some(keyword) = keyword else {
            at += plain(rest, &mut open);
            continue;
        };
        let from = at + keyword.len();
        let mut values = Deserializer::from_str(&grammar[from..]).into_iter::<Value>();
        let Some(Ok(schema)) = values.next() else { return Vec::new() };
        at = from + values.byte_offset();
        if keyword == "%json" {
            found.push(Embedded { place: from..at, schema });
        }
    }
    found
}

/// The grammar with other schemas in the places of its own.
pub(super) fn replace<'e>(grammar: &str, embedded: impl Iterator<Item = (&'e Embedded, Value)>) -> String {
    let (mut text, mut at) = (String::new(), 0);
    for (Embedded { place, .. }, schema) in embedded {
        text.push_str(&grammar[at..place.start]);
        text.push(' ');
        // Lines keep their numbers, by which errors name them.
        text.extend(grammar[place.clone()].matches('\n'));
        text.push_str(&schema.to_string());
        at = place.end;
    }
    text.push_str(&grammar[at..]);
    text
}

/// Quotes of which none closes any more, from where they were looked for: a text of many would else be read from each.
#[derive(Default)]
struct Open {
    text: bool,
    expression: bool,
}

/// Bytes of the comment, the text, the expression, the control token or the character that a grammar goes on with.
fn plain(rest: &str, open: &mut Open) -> usize {
    let first = rest.chars().next().map_or(1, char::len_utf8);
    if rest.starts_with('#') || rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    let quoted = match rest.as_bytes().first() {
        Some(b'"') => end_of_quoted(rest, b'"', &mut open.text),
        Some(b'/') => end_of_quoted(rest, b'/', &mut open.expression),
        Some(b'<') => rest[1..].find(|char: char| char == '>' || char == '<' || char.is_whitespace()).and_then(|end| {
            let end = end + 1;
            (end > 1 && rest[end..].starts_with('>')).then_some(end + 1)
        }),
        _ => None,
    };
    quoted.unwrap_or(first)
}

/// Where what begins with a quote ends; nothing where it does not, and then none behind it does.
fn end_of_quoted(rest: &str, quote: u8, open: &mut bool) -> Option<usize> {
    if *open {
        return None;
    }
    let mut escaped = true;
    for (at, byte) in rest.bytes().enumerate() {
        if byte == quote && !escaped {
            return Some(at + 1);
        }
        // The opening quote is passed over, like what is escaped.
        escaped = byte == b'\\' && !escaped;
    }
    *open = true;
    None
}
