//! A rendered text with its untrusted byte ranges.
//!
//! The renderer marks characters, and not every character can be marked ([`MarkedText::can_mark`]). So a control token
//! is read only where none of its bytes is marked and at least one of its characters can be marked.

use std::ops::Range;

/// A text with the byte ranges that come from the request, in which no control token is read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkedText {
    text: String,
    /// Ascending, not empty, not adjacent.
    untrusted: Vec<Range<usize>>,
    /// Whether control tokens are read everywhere.
    trusted: bool,
}

/// Only characters of the basic plane can be marked.
const MARKED_BELOW: u32 = 0x1_0000;

impl MarkedText {
    /// A text in which control tokens are read everywhere.
    pub fn trusted(text: String) -> MarkedText {
        MarkedText { text, untrusted: Vec::new(), trusted: true }
    }

    /// Whether a character can be marked as untrusted: not white space, and in the basic plane.
    pub fn can_mark(character: char) -> bool {
        u32::from(character) < MARKED_BELOW && !is_space(character)
    }

    /// Whether a control token with the text `token` may be read at `place`.
    pub(super) fn admits(&self, token: &str, place: Range<usize>) -> bool {
        if self.trusted {
            return true;
        }
        let next = self.untrusted.partition_point(|range| range.end <= place.start);
        let apart = self.untrusted.get(next).is_none_or(|range| range.start >= place.end);
        apart && token.chars().any(MarkedText::can_mark)
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The untrusted byte ranges, ascending and not adjacent.
    pub fn untrusted(&self) -> &[Range<usize>] {
        &self.untrusted
    }

    /// Appends a part of the text.
    pub fn push(&mut self, part: &str, untrusted: bool) {
        let start = self.text.len();
        self.text.push_str(part);
        if !untrusted || part.is_empty() {
            return;
        }
        match self.untrusted.last_mut() {
            Some(last) if last.end == start => last.end = self.text.len(),
            _ => self.untrusted.push(start..self.text.len()),
        }
    }
}

/// Python's white space, which templates strip.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_untrusted_parts_are_one_range() {
        let mut marked = MarkedText::default();
        for (part, untrusted) in
            [("ab", false), ("", true), ("c", true), ("d", true), ("e", false), ("", true), ("fg", true)]
        {
            marked.push(part, untrusted);
        }
        assert_eq!((marked.text(), marked.untrusted()), ("abcdefg", &[2..4, 5..7][..]));
        for (place, admitted) in
            [(0..2, true), (1..3, false), (3..4, false), (4..5, true), (4..6, false), (6..7, false)]
        {
            assert_eq!(marked.admits("<s>", place.clone()), admitted, "{place:?}");
        }
        assert!(!marked.admits("\n\u{1F600}", 0..2));
        assert!(MarkedText::trusted("<s>".into()).admits("\n", 0..2));
    }
}
