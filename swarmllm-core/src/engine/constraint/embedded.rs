//! JSON schemas embedded in a Lark grammar (`%json {...}`).
//!
//! They follow the rules of a separate schema: objects with named keys are closed, and white space is bounded. llguidance
//! reads embedded schemas itself, so they are rewritten in the grammar's text.

use std::ops::Range;

use serde_json::{Deserializer, Value};

/// An embedded schema and its byte range.
pub(super) struct EmbeddedSchema {
    range: Range<usize>,
    pub schema: Value,
}

/// The schemas of a grammar in their order; none if the grammar has invalid JSON, which llguidance refuses.
pub(super) fn find(grammar: &str) -> Vec<EmbeddedSchema> {
    let (mut found, mut at, mut unclosed) = (Vec::new(), 0, UnclosedQuotes::default());
    while let Some(rest) = grammar.get(at..).filter(|rest| !rest.is_empty()) {
        let keyword = ["%json", "%regex", "%llguidance"].into_iter().find(|keyword| rest.starts_with(keyword));
        let Some(keyword) = keyword else {
            at += token_len(rest, &mut unclosed);
            continue;
        };
        let from = at + keyword.len();
        let mut values = Deserializer::from_str(&grammar[from..]).into_iter::<Value>();
        let Some(Ok(schema)) = values.next() else { return Vec::new() };
        at = from + values.byte_offset();
        if keyword == "%json" {
            found.push(EmbeddedSchema { range: from..at, schema });
        }
    }
    found
}

/// The grammar with its schemas replaced.
pub(super) fn replace<'e>(grammar: &str, embedded: impl Iterator<Item = (&'e EmbeddedSchema, Value)>) -> String {
    let (mut text, mut at) = (String::new(), 0);
    for (EmbeddedSchema { range, .. }, schema) in embedded {
        text.push_str(&grammar[at..range.start]);
        text.push(' ');
        // Line numbers stay, because errors refer to them.
        text.extend(grammar[range.clone()].matches('\n'));
        text.push_str(&schema.to_string());
        at = range.end;
    }
    text.push_str(&grammar[at..]);
    text
}

/// Kinds of quotes without a closing one in the rest of the text, so that the rest is not searched again for each quote.
#[derive(Default)]
struct UnclosedQuotes {
    text: bool,
    expression: bool,
}

/// Bytes of the next comment, string, regular expression, control token or character.
fn token_len(rest: &str, unclosed: &mut UnclosedQuotes) -> usize {
    let first = rest.chars().next().map_or(1, char::len_utf8);
    if rest.starts_with('#') || rest.starts_with("//") {
        return rest.find('\n').unwrap_or(rest.len());
    }
    let quoted = match rest.as_bytes().first() {
        Some(b'"') => end_of_quoted(rest, b'"', &mut unclosed.text),
        Some(b'/') => end_of_quoted(rest, b'/', &mut unclosed.expression),
        Some(b'<') => rest[1..].find(|char: char| char == '>' || char == '<' || char.is_whitespace()).and_then(|end| {
            let end = end + 1;
            (end > 1 && rest[end..].starts_with('>')).then_some(end + 1)
        }),
        _ => None,
    };
    quoted.unwrap_or(first)
}

/// End of the quoted text at the start of `rest`; `None` if the quote is not closed, and then no later one is.
fn end_of_quoted(rest: &str, quote: u8, unclosed: &mut bool) -> Option<usize> {
    if *unclosed {
        return None;
    }
    let mut escaped = true;
    for (at, byte) in rest.bytes().enumerate() {
        if byte == quote && !escaped {
            return Some(at + 1);
        }
        // The opening quote is skipped like an escaped byte.
        escaped = byte == b'\\' && !escaped;
    }
    *unclosed = true;
    None
}
