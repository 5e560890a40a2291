//! Bounds on the numbers and the nesting of JSON output.
//!
//! A schema allows numbers of any length, and an object without a schema allows unbounded nesting. A model that repeats
//! itself fills its token limit with either. No schema keyword bounds the digits of a fraction, so the bounds apply during
//! generation: beyond a bound the tokens that go further are removed from the mask, if other tokens are left. If the schema
//! allows no others (`"minimum": 1e30`), they stay. The language only becomes narrower, so the output stays valid.

use llguidance::toktrie::{SimpleVob, TokTrie};

/// Most digits of a number before its point, and behind it: `u64::MAX` has 20, and 17 identify an `f64`.
const MAX_DIGITS: u32 = 20;
/// Most digits of an exponent: an `f64`'s is between -324 and 308.
const MAX_EXPONENT_DIGITS: u32 = 3;
/// Deepest nesting of arrays and objects, equal to a schema's limit. Many parsers refuse more than some hundred.
const MAX_LEVELS: u32 = 64;

/// State of the bounds within a JSON text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct JsonState {
    in_string: bool,
    escaped: bool,
    /// Digits of the current part of a number.
    digits: u32,
    /// Whether the current part is the exponent.
    exponent: bool,
    levels: u32,
}

impl JsonState {
    /// The state after these bytes.
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
            // The `e` of `true` follows no digit.
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

    fn exceeds(&self) -> bool {
        let digits = if self.exponent { MAX_EXPONENT_DIGITS } else { MAX_DIGITS };
        self.digits > digits || self.levels > MAX_LEVELS
    }

    /// Whether these bytes exceed a bound.
    fn exceeds_within(mut self, bytes: &[u8]) -> bool {
        bytes.iter().any(|byte| {
            self.step(*byte);
            self.exceeds()
        })
    }
}

/// The tokens of a vocabulary that may exceed a bound.
pub(super) struct UnboundedTokens {
    /// Tokens that begin with a digit.
    digits: Vec<u32>,
    /// Tokens with a byte that opens an array or an object.
    opening: Vec<u32>,
}

impl UnboundedTokens {
    pub fn of(trie: &TokTrie) -> Self {
        let of = |matches: &dyn Fn(&[u8]) -> bool| {
            (0..trie.vocab_size() as u32).filter(|token| matches(trie.token(*token))).collect()
        };
        Self {
            digits: of(&|bytes| bytes.first().is_some_and(u8::is_ascii_digit)),
            opening: of(&|bytes| bytes.iter().any(|byte| matches!(byte, b'{' | b'['))),
        }
    }

    /// Removes the tokens that exceed a bound from the mask, if others are left.
    pub fn bound(&self, state: JsonState, trie: &TokTrie, allowed: &mut SimpleVob) {
        let (digits, opening) = (state.digits > 0, state.levels > MAX_LEVELS / 2);
        let tokens = self.digits.iter().filter(|_| digits).chain(self.opening.iter().filter(|_| opening));
        let exceeds = |token: &u32| allowed.is_allowed(*token) && state.exceeds_within(trie.token(*token));
        let exceeding: Vec<u32> = tokens.copied().filter(exceeds).collect();
        if exceeding.is_empty() {
            return;
        }
        let without = |tokens: &mut dyn Iterator<Item = u32>| {
            let mut others = allowed.clone();
            tokens.for_each(|token| others.set(token as usize, false));
            (!others.is_zero()).then_some(others)
        };
        let is_zero = |token: &u32| trie.token(*token).iter().all(|byte| *byte == b'0');
        // If only digits may follow, only zeros are removed: a number above 0 may begin with any count of zeros.
        let bounded = without(&mut exceeding.iter().copied());
        if let Some(bounded) = bounded.or_else(|| without(&mut exceeding.iter().copied().filter(is_zero))) {
            *allowed = bounded;
        }
    }
}
