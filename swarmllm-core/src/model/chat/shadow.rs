//! Foreign text that stays recognisable whatever a template does with it.
//!
//! Before a template runs, each character of the texts that a request brings is replaced by its *shadow*: the character
//! of the same number in a private plane of Unicode. One character stays one character, so that joining, slicing,
//! stripping and the like work on shadows as they are. What looks at characters (comparisons, searches, look-ups) looks
//! at the originals ([`Shadow::plain`]), and what builds a new text out of several in another way marks its result as a
//! whole. After the run shadows become their originals again, and their places are the foreign places of the text.
//!
//! White space has no shadow (templates strip it), nor have characters beyond the basic plane; no control token is read
//! that has such characters only ([`MarkedText`]). Numbers, true, false and none are no texts and not foreign.

use std::borrow::Cow;

use crate::model::tokenizer::MarkedText;
pub(super) use crate::model::tokenizer::is_space;

/// Begins of the two private planes.
const PLANES: [u32; 2] = [0xF_0000, 0x10_0000];
/// So many characters are in a plane.
const PLANE_LEN: u32 = 0x1_0000;

/// Which plane the shadows of one rendering are in, if there are shadows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shadow(Option<u32>);

impl Shadow {
    /// Nothing is shadowed.
    pub const NONE: Shadow = Shadow(None);

    /// Shadows in a private plane that none of the texts uses; `None` where they use both.
    pub fn beside(texts: &[&str]) -> Option<Shadow> {
        let used =
            |plane: u32| texts.iter().any(|text| may_be_marked(text) && text.chars().any(|at| within(plane, at)));
        PLANES.into_iter().find(|plane| !used(*plane)).map(|plane| Shadow(Some(plane)))
    }

    /// Whether the text holds a shadow.
    pub fn marks(self, text: &str) -> bool {
        self.0.is_some_and(|plane| may_be_marked(text) && text.chars().any(|character| within(plane, character)))
    }

    /// Whether the character is a shadow.
    pub fn is_mark(self, character: char) -> bool {
        self.0.is_some_and(|plane| within(plane, character))
    }

    /// The character's shadow; itself where it has none.
    pub fn mark_char(self, character: char) -> char {
        match self.0 {
            Some(plane) if MarkedText::can_mark(character) => {
                char::from_u32(plane + u32::from(character)).unwrap_or(character)
            }
            _ => character,
        }
    }

    /// The character that a shadow stands for; others are themselves.
    pub fn plain_char(self, character: char) -> char {
        match self.0 {
            Some(plane) if within(plane, character) => {
                char::from_u32(u32::from(character) - plane).unwrap_or(character)
            }
            _ => character,
        }
    }

    /// The text's characters without shadows.
    pub fn plain_chars(self, text: &str) -> impl Iterator<Item = char> {
        text.chars().map(move |character| self.plain_char(character))
    }

    /// The text in shadows.
    pub fn mark<'t>(self, text: &'t str) -> Cow<'t, str> {
        match self.0 {
            None => text.into(),
            Some(_) => text.chars().map(|character| self.mark_char(character)).collect::<String>().into(),
        }
    }

    /// The text without shadows.
    pub fn plain<'t>(self, text: &'t str) -> Cow<'t, str> {
        match self.marks(text) {
            false => text.into(),
            true => text.chars().map(|character| self.plain_char(character)).collect::<String>().into(),
        }
    }

    /// `result`, computed from the plain form of `from`, in shadows where `from` was: place by place, where there are
    /// as many characters, or else as a whole.
    pub fn like<'r>(self, result: Cow<'r, str>, from: &str) -> Cow<'r, str> {
        if !self.marks(from) {
            return result;
        }
        if result.chars().count() != from.chars().count() {
            return self.mark(&result).into_owned().into();
        }
        let pairs = result.chars().zip(from.chars());
        pairs.map(|(to, from)| if self.is_mark(from) { self.mark_char(to) } else { to }).collect::<String>().into()
    }

    /// The text that was rendered.
    pub fn resolve(self, text: String) -> MarkedText {
        if self.0.is_none() {
            return MarkedText::trusted(text);
        }
        let mut marked = MarkedText::default();
        for character in text.chars() {
            let plain = self.plain_char(character);
            marked.push(plain.encode_utf8(&mut [0; 4]), plain != character);
        }
        marked
    }
}

fn within(plane: u32, character: char) -> bool {
    (plane..plane + PLANE_LEN).contains(&u32::from(character))
}

/// Whether a text has characters of the private planes: quick to say of others.
fn may_be_marked(text: &str) -> bool {
    !text.is_ascii() && text.bytes().any(|byte| byte >= 0xF3)
}

/// What a text counts for: one for each character, so that a limit means the same with shadows. What is in memory is
/// at most four times what is counted.
pub fn cost(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shadow() -> Shadow {
        Shadow::beside(&["a"]).expect("a plane is free")
    }

    #[test]
    fn shadows_are_one_for_one_and_resolve_to_foreign_places() {
        let text = "<a b>\u{1F600}é\n";
        let marked = shadow().mark(text).into_owned();
        assert_eq!((marked.chars().count(), cost(&marked)), (text.chars().count(), cost(text)));
        assert_eq!(shadow().plain(&marked), text);
        let resolved = shadow().resolve(format!("<{marked}>"));
        assert_eq!(resolved.text(), format!("<{text}>"));
        assert_eq!(resolved.foreign(), [1..3, 4..6, 10..12]);
    }

    #[test]
    fn a_plane_in_use_is_left_alone() {
        let icons = ["\u{F0001}", "\u{100001}"];
        let beside = Shadow::beside(&icons[..1]).expect("the other is free");
        assert_eq!(beside.resolve(beside.mark("\u{F0001}<").into_owned()).text(), "\u{F0001}<");
        assert_eq!(Shadow::beside(&icons), None);
    }

    #[test]
    fn results_are_marked_place_by_place_or_as_a_whole() {
        let from = format!("a{}", shadow().mark("ß"));
        let foreign = |text: &str| {
            let like = shadow().like(text.into(), &from).into_owned();
            let places: Vec<_> =
                shadow().resolve(like).foreign().iter().map(|range| (range.start, range.end)).collect();
            places
        };
        assert_eq!((foreign("Aß"), foreign("ASS")), (vec![(1, 3)], vec![(0, 3)]));
        assert_eq!(Shadow::NONE.mark("<"), "<");
    }
}
