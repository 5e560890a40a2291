//! What an encoding may take: a number of tokens, and as long as somebody waits for it.

use std::sync::atomic::{AtomicBool, Ordering};

use super::TokenizerError;
use super::bpe::{Bpe, decode_symbols};
use super::special::is_space;
use super::spm::SPACE;
use super::vocab::{Attr, Vocab};

/// Bounds of one encoding.
#[derive(Debug, Clone, Copy)]
pub struct EncodeBounds<'a> {
    /// Most tokens; a text of more is refused, most texts of far more before anything is computed.
    pub tokens: usize,
    /// Set where nobody waits for the tokens any more: the encoding ends early, with an error.
    pub given_up: Option<&'a AtomicBool>,
}

impl EncodeBounds<'_> {
    /// No bounds but those on the text itself.
    pub const NONE: EncodeBounds<'static> = EncodeBounds { tokens: usize::MAX, given_up: None };

    /// Refuses to go on behind `tokens` tokens. Called for each word and, within a long word, every few thousand steps.
    pub(super) fn check(&self, tokens: usize) -> Result<(), TokenizerError> {
        if tokens > self.tokens {
            return Err(TokenizerError::TooManyTokens { max: self.tokens });
        }
        match self.given_up.is_some_and(|given_up| given_up.load(Ordering::Relaxed)) {
            true => Err(TokenizerError::GivenUp),
            false => Ok(()),
        }
    }
}

/// Pairs of bytes that a text can have at one place.
const PAIRS: usize = 1 << 16;

/// How far the tokens of a vocabulary reach, from which follows how many tokens a text has at least.
///
/// A token covers no more bytes than the longest one that begins with the same two bytes. The fewest jumps of such lengths
/// from one end of the text to the other are found in one pass, and no encoding has fewer tokens.
#[derive(Debug)]
pub struct Reach {
    /// By the two bytes of the text where a token begins: the bytes that it covers at most. 128 KiB, since no token is
    /// longer than `MAX_TOKEN_BYTES`.
    longest: Vec<u16>,
    /// Bytes that may vanish without a token.
    free: Vec<bool>,
}

impl Reach {
    pub fn new(vocab: &Vocab, bpe: Option<&Bpe>) -> Reach {
        let mut reach = Reach { longest: vec![1; PAIRS], free: vec![false; usize::from(u8::MAX) + 1] };
        for (_, text, _) in vocab.iter() {
            match bpe {
                // Special tokens are written as they are, all others in the alphabet of bytes.
                Some(_) => [text.as_bytes(), &decode_symbols(text)].iter().for_each(|bytes| reach.add(bytes)),
                None => reach.add_spaced(text),
            }
        }
        // Some special tokens take the white space around them along.
        let strips = vocab.iter().any(|(_, _, attr)| attr.any(Attr::LSTRIP.and(Attr::RSTRIP)));
        for (byte, free) in (0..=u8::MAX).zip(&mut reach.free) {
            *free = (strips && is_space(byte)) || bpe.is_some_and(|bpe| bpe.drops(byte));
        }
        reach
    }

    fn add(&mut self, bytes: &[u8]) {
        self.add_as(bytes, bytes.len());
    }

    /// A token that covers at most `len` bytes where the text goes on as `bytes` begin.
    fn add_as(&mut self, bytes: &[u8], len: usize) {
        let [first, second, ..] = bytes else { return };
        if let Some(longest) = self.longest.get_mut(pair(*first, *second)) {
            *longest = (*longest).max(u16::try_from(len).unwrap_or(u16::MAX));
        }
    }

    /// A token in which each [`SPACE`] stands for a space, or for itself; the first may have been put before the text.
    fn add_spaced(&mut self, text: &str) {
        for text in [Some(text), text.strip_prefix(SPACE)].into_iter().flatten() {
            let (bytes, space) = (text.as_bytes(), SPACE.as_bytes());
            self.add(bytes);
            if let Some(rest) = bytes.strip_prefix(space) {
                self.add_as(&[b" ", rest].concat(), text.len());
                if rest.starts_with(space) {
                    self.add_as(b"  ", text.len());
                }
            } else if let Some((first, _)) = bytes.split_first().filter(|(_, rest)| rest.starts_with(space)) {
                self.add_as(&[*first, b' '], text.len());
            }
        }
    }

    /// Whether every encoding of `text` has more than `most` tokens. Takes one pass at most.
    pub fn exceeds(&self, text: &str, most: usize) -> bool {
        self.fewest(text, most) > most
    }

    /// As many tokens as every encoding of `text` has at least, counted up to one more than `most`. Takes one pass at most.
    pub fn fewest(&self, text: &str, most: usize) -> usize {
        let text = text.as_bytes();
        // All places up to `frontier` are reached with `tokens` tokens; from those before `looked` the next reaches to `furthest`.
        let (mut tokens, mut frontier, mut furthest, mut looked) = (0, 0, 0, 0);
        loop {
            while text.get(frontier).is_some_and(|byte| self.free.get(usize::from(*byte)) == Some(&true)) {
                frontier += 1;
            }
            if frontier >= text.len() {
                return tokens;
            }
            if tokens == most {
                return most.saturating_add(1);
            }
            while looked <= frontier {
                furthest = furthest.max(looked + self.longest_at(text, looked));
                looked += 1;
            }
            tokens += 1;
            frontier = furthest;
        }
    }

    fn longest_at(&self, text: &[u8], at: usize) -> usize {
        let pair = match text.get(at..at + 2) {
            Some(&[first, second]) => pair(first, second),
            _ => return 1,
        };
        self.longest.get(pair).copied().unwrap_or(1).into()
    }
}

fn pair(first: u8, second: u8) -> usize {
    usize::from(first) << 8 | usize::from(second)
}
