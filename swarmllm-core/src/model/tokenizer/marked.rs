//! A rendered text that knows which of its bytes are foreign.
//!
//! The renderer marks characters, not places between them, and not every character can carry a mark
//! ([`MarkedText::can_mark`]). So no control token is read that has a marked byte, and none that has no character that
//! could be marked.

use std::ops::Range;

/// A text with the byte ranges that came from outside of the template: no control token is read across them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MarkedText {
    text: String,
    /// In order, not empty, and apart from one another.
    foreign: Vec<Range<usize>>,
    /// Whether control tokens are read everywhere.
    trusted: bool,
}

/// Characters of the basic plane have marks.
const MARKED_BELOW: u32 = 0x1_0000;

impl MarkedText {
    /// A text in which control tokens are read everywhere.
    pub fn trusted(text: String) -> MarkedText {
        MarkedText { text, foreign: Vec::new(), trusted: true }
    }

    /// Whether a character can be marked as foreign: white space cannot, and nothing beyond the basic plane.
    pub fn can_mark(character: char) -> bool {
        u32::from(character) < MARKED_BELOW && !is_space(character)
    }

    /// Whether a control token with this text may be read at a place.
    pub(super) fn admits(&self, token: &str, place: Range<usize>) -> bool {
        if self.trusted {
            return true;
        }
        let next = self.foreign.partition_point(|range| range.end <= place.start);
        let apart = self.foreign.get(next).is_none_or(|range| range.start >= place.end);
        apart && token.chars().any(MarkedText::can_mark)
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The byte ranges of the text that are foreign, in order and apart from one another.
    pub fn foreign(&self) -> &[Range<usize>] {
        &self.foreign
    }

    /// Appends a part of the text.
    pub fn push(&mut self, part: &str, foreign: bool) {
        let start = self.text.len();
        self.text.push_str(part);
        if !foreign || part.is_empty() {
            return;
        }
        match self.foreign.last_mut() {
            Some(last) if last.end == start => last.end = self.text.len(),
            _ => self.foreign.push(start..self.text.len()),
        }
    }
}

/// White space as Python has it: templates strip it.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\x1c'..='\x1f').contains(&character)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_parts_that_touch_are_one_range() {
        let mut marked = MarkedText::default();
        for (part, foreign) in
            [("ab", false), ("", true), ("c", true), ("d", true), ("e", false), ("", true), ("fg", true)]
        {
            marked.push(part, foreign);
        }
        assert_eq!((marked.text(), marked.foreign()), ("abcdefg", &[2..4, 5..7][..]));
        for (place, admitted) in
            [(0..2, true), (1..3, false), (3..4, false), (4..5, true), (4..6, false), (6..7, false)]
        {
            assert_eq!(marked.admits("<s>", place.clone()), admitted, "{place:?}");
        }
        assert!(!marked.admits("\n\u{1F600}", 0..2));
        assert!(MarkedText::trusted("<s>".into()).admits("\n", 0..2));
    }
}
