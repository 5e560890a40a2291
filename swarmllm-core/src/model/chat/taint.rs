//! Taint tracking of the untrusted texts of a request, through any template.
//!
//! Before a template runs, each character of an untrusted text is replaced by a *tainted* one: the character with the
//! same number in a private plane of Unicode. One character stays one character, so that joining, slicing and stripping
//! work unchanged. Functions that look at characters (comparisons, searches, look-ups) look at the originals
//! ([`Taint::plain`]). Functions that compute a new text taint it as a whole. After the run tainted characters become
//! their originals again, and their byte ranges are the untrusted ranges of the result.
//!
//! White space cannot be tainted (templates strip it), nor can characters beyond the basic plane; a control token of
//! such characters alone is not read ([`MarkedText`]). Numbers, booleans and none are trusted.

use std::borrow::Cow;

use crate::model::tokenizer::MarkedText;
pub(super) use crate::model::tokenizer::is_space;

/// First code points of the two private planes.
const PLANES: [u32; 2] = [0xF_0000, 0x10_0000];
/// Characters of a plane.
const PLANE_LEN: u32 = 0x1_0000;

/// The plane of one rendering's tainted characters; `None` where texts are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taint(Option<u32>);

impl Taint {
    /// No text is tainted.
    pub const NONE: Taint = Taint(None);

    /// A taint in a private plane that none of the texts uses; `None` where they use both.
    pub fn unused_by(texts: &[&str]) -> Option<Taint> {
        let used =
            |plane: u32| texts.iter().any(|text| may_be_tainted(text) && text.chars().any(|at| within(plane, at)));
        PLANES.into_iter().find(|plane| !used(*plane)).map(|plane| Taint(Some(plane)))
    }

    /// Whether the text has a tainted character.
    pub fn occurs_in(self, text: &str) -> bool {
        self.0.is_some_and(|plane| may_be_tainted(text) && text.chars().any(|character| within(plane, character)))
    }

    /// Whether the character is tainted.
    pub fn is_tainted(self, character: char) -> bool {
        self.0.is_some_and(|plane| within(plane, character))
    }

    /// The tainted character; the character itself where it cannot be tainted.
    pub fn mark_char(self, character: char) -> char {
        match self.0 {
            Some(plane) if MarkedText::can_mark(character) => {
                char::from_u32(plane + u32::from(character)).unwrap_or(character)
            }
            _ => character,
        }
    }

    /// The original of a character.
    pub fn plain_char(self, character: char) -> char {
        match self.0 {
            Some(plane) if within(plane, character) => {
                char::from_u32(u32::from(character) - plane).unwrap_or(character)
            }
            _ => character,
        }
    }

    /// The originals of a text's characters.
    pub fn plain_chars(self, text: &str) -> impl Iterator<Item = char> {
        text.chars().map(move |character| self.plain_char(character))
    }

    /// The tainted text.
    pub fn mark<'t>(self, text: &'t str) -> Cow<'t, str> {
        match self.0 {
            None => text.into(),
            Some(_) => text.chars().map(|character| self.mark_char(character)).collect::<String>().into(),
        }
    }

    /// The original text.
    pub fn plain<'t>(self, text: &'t str) -> Cow<'t, str> {
        match self.occurs_in(text) {
            false => text.into(),
            true => text.chars().map(|character| self.plain_char(character)).collect::<String>().into(),
        }
    }

    /// Taints `result`, which was computed from the original of `from`: character by character where both have equally
    /// many, else as a whole.
    pub fn like<'r>(self, result: Cow<'r, str>, from: &str) -> Cow<'r, str> {
        if !self.occurs_in(from) {
            return result;
        }
        if result.chars().count() != from.chars().count() {
            return self.mark(&result).into_owned().into();
        }
        let pairs = result.chars().zip(from.chars());
        pairs.map(|(to, from)| if self.is_tainted(from) { self.mark_char(to) } else { to }).collect::<String>().into()
    }

    /// The originals of a rendered text, with its untrusted ranges.
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

/// A quick check that excludes most texts without characters of the private planes.
fn may_be_tainted(text: &str) -> bool {
    !text.is_ascii() && text.bytes().any(|byte| byte >= 0xF3)
}

/// The cost of a text: its characters, so that a limit means the same with taint. A character takes at most four bytes.
pub fn cost(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint() -> Taint {
        Taint::unused_by(&["a"]).expect("a plane is free")
    }

    #[test]
    fn tainted_characters_resolve_to_untrusted_ranges() {
        let text = "<a b>\u{1F600}é\n";
        let marked = taint().mark(text).into_owned();
        assert_eq!((marked.chars().count(), cost(&marked)), (text.chars().count(), cost(text)));
        assert_eq!(taint().plain(&marked), text);
        let resolved = taint().resolve(format!("<{marked}>"));
        assert_eq!(resolved.text(), format!("<{text}>"));
        assert_eq!(resolved.untrusted(), [1..3, 4..6, 10..12]);
    }

    #[test]
    fn a_plane_in_use_is_not_chosen() {
        let icons = ["\u{F0001}", "\u{100001}"];
        let other = Taint::unused_by(&icons[..1]).expect("the other is free");
        assert_eq!(other.resolve(other.mark("\u{F0001}<").into_owned()).text(), "\u{F0001}<");
        assert_eq!(Taint::unused_by(&icons), None);
    }

    #[test]
    fn results_are_tainted_by_character_or_as_a_whole() {
        let from = format!("a{}", taint().mark("ß"));
        let untrusted = |text: &str| {
            let like = taint().like(text.into(), &from).into_owned();
            let places: Vec<_> =
                taint().resolve(like).untrusted().iter().map(|range| (range.start, range.end)).collect();
            places
        };
        assert_eq!((untrusted("Aß"), untrusted("ASS")), (vec![(1, 3)], vec![(0, 3)]));
        assert_eq!(Taint::NONE.mark("<"), "<");
    }
}
