//! Bounds on the numbers and the nesting of a JSON answer.
//!
//! A schema's number may have any count of digits, and an object whose schema is silent may hold objects without end. A
//! model that has fallen into a rut writes either until its token limit. No keyword of a schema bounds the digits of a
//! fraction, so the bound is kept while the answer is written: beyond it the tokens that go further are not admitted, where
//! anything else may follow. Where the schema leaves only them (`"minimum": 1e30`) they stay. So what is admitted is
//! narrower, and an answer is as valid as without.

use llguidance::toktrie::{SimpleVob, TokTrie};

/// Digits of a number before its point, and behind it: `u64::MAX` has 20, and 17 tell an `f64` from all others.
const MAX_DIGITS: u32 = 20;
/// Digits of an exponent: those of an `f64` end at 308 and -324.
const MAX_EXPONENT_DIGITS: u32 = 3;
/// Levels of arrays and objects: as many as a schema may have. Many parsers refuse more than some hundred.
const MAX_LEVELS: u32 = 64;

/// Where in a JSON text an answer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Place {
    in_string: bool,
    escaped: bool,
    /// Digits of the number's part that is being written.
    digits: u32,
    /// Whether that part is the exponent.
    exponent: bool,
    levels: u32,
}

impl Place {
    /// The place behind these bytes.
    pub fn after(mut self, bytes: &[u8]) -> Self {
        bytes.iter().for_each(|byte| self.step(*byte));
        self
    }

    fn step(&mut self, byte: u8) {
        if self.in_string {
            self.in_string = byte != b'"' || self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            return;
        }
        match byte {
            b'0'..=b'9' => self.digits = self.digits.saturating_add(1),
            // That of `true` follows no digit.
            b'e' | b'E' => (self.exponent, self.digits) = (self.digits > 0, 0),
            b'+' | b'-' => self.digits = 0,
            _ => {
                (self.exponent, self.digits) = (false, 0);
                match byte {
                    b'"' => self.in_string = true,
                    b'{' | b'[' => self.levels = self.levels.saturating_add(1),
                    b'}' | b']' => self.levels = self.levels.saturating_sub(1),
                    _ => {}
                }
            }
        }
    }

    fn is_beyond(&self) -> bool {
        let digits = if self.exponent { MAX_EXPONENT_DIGITS } else { MAX_DIGITS };
        self.digits > digits || self.levels > MAX_LEVELS
    }

    /// Whether the answer is beyond a bound somewhere in these bytes.
    fn goes_beyond(mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|byte| {
            self.step(*byte);
            self.is_beyond()
        })
    }
}

/// The tokens of a vocabulary that may lead an answer beyond its bounds.
pub(super) struct Growing {
    /// Those that begin with a digit.
    digits: Vec<u32>,
    /// Those that open an array or an object, or have the byte for it in a string.
    opening: Vec<u32>,
}

impl Growing {
    pub fn of(trie: &TokTrie) -> Self {
        let of = |grows: &dyn Fn(&[u8]) -> bool| {
            (0..trie.vocab_size() as u32).filter(|token| grows(trie.token(*token))).collect()
        };
        Self {
            digits: of(&|bytes| bytes.first().is_some_and(u8::is_ascii_digit)),
            opening: of(&|bytes| bytes.iter().any(|byte| matches!(byte, b'{' | b'['))),
        }
    }

    /// Takes the tokens that go beyond a bound from those that are allowed, where others are left.
    pub fn bound(&self, place: Place, trie: &TokTrie, allowed: &mut SimpleVob) {
        let (digits, opening) = (place.digits > 0, place.levels > MAX_LEVELS / 2);
        let tokens = self.digits.iter().filter(|_| digits).chain(self.opening.iter().filter(|_| opening));
        let is_beyond = |token: &u32| allowed.is_allowed(*token) && place.goes_beyond(trie.token(*token));
        let beyond: Vec<u32> = tokens.copied().filter(is_beyond).collect();
        if beyond.is_empty() {
            return;
        }
        let without = |tokens: &mut dyn Iterator<Item = u32>| {
            let mut others = allowed.clone();
            tokens.for_each(|token| others.set(token as usize, false));
            (!others.is_zero()).then_some(others)
        };
        let is_zero = |token: &u32| trie.token(*token).iter().all(|byte| *byte == b'0');
        // Where digits must follow, zeros alone may lead to no end: a number above 0 may begin with any count of them.
        let bounded = without(&mut beyond.iter().copied());
        if let Some(bounded) = bounded.or_else(|| without(&mut beyond.iter().copied().filter(is_zero))) {
            *allowed = bounded;
        }
    }
}
