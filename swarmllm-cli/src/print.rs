//! Printing: results to stdout, notes to stderr. Foreign text never reaches a terminal with control characters.

use std::io::{IsTerminal, Write};

use serde::Serialize;
use swarmllm_core::base::ErrorKind;

use crate::failure::Failure;

/// Writes to stdout and flushes; fails when the reader is gone.
pub fn text(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|cause| Failure::io("standard output", &cause))
}

/// Writes a line to stdout.
pub fn line(line: &str) -> Result<(), Failure> {
    text(&format!("{line}\n"))
}

/// Writes a value to stdout as one line of JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    match serde_json::to_string(value) {
        Ok(text) => line(&text),
        Err(cause) => Err(Failure::new(ErrorKind::Internal, cause)),
    }
}

/// Writes a line to stderr; errors are ignored.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Text of a model or a peer for a terminal: control characters, which could move the cursor, become U+FFFD. Line feeds and
/// tabs stay.
pub fn clean(text: &str) -> String {
    let harmless = |letter: char| matches!(letter, '\n' | '\t') || !letter.is_control();
    text.chars().map(|letter| if harmless(letter) { letter } else { char::REPLACEMENT_CHARACTER }).collect()
}

/// Writes text of a model: cleaned for a terminal, unchanged for a pipe.
pub fn answer(part: &str) -> Result<(), Failure> {
    match std::io::stdout().is_terminal() {
        true => text(&clean(part)),
        false => text(part),
    }
}

/// A table with a header; each column is as wide as its widest cell.
pub fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let head = head.map(str::to_owned);
    let width = |column: usize| {
        let cells = std::iter::once(&head).chain(rows).filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let shown = |row: &[String; N]| {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{:width$}", clean(cell))).collect();
        cells.join("  ").trim_end().to_owned()
    };
    std::iter::once(&head).chain(rows).map(shown).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_cannot_control_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\r\u{9b}\n\tc"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}\n\tc");
    }

    #[test]
    fn columns_are_aligned() {
        let rows = [["long name".to_owned(), "1".to_owned()], ["é".to_owned(), "22".to_owned()]];
        assert_eq!(table(["name", "n"], &rows), "name       n\nlong name  1\né          22");
    }
}
