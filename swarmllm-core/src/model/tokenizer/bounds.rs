//! Bounds of one encoding: a number of tokens, and cancellation.

use std::sync::atomic::{AtomicBool, Ordering};

use super::TokenizerError;
use super::bpe::{Bpe, decode_symbols};
use super::special::is_space;
use super::spm::SPACE;
use super::vocab::{Attr, Vocab};

/// Bounds of one encoding.
#[derive(Debug, Clone, Copy)]
pub struct EncodeBounds<'a> {
    /// Most tokens. A text with more is refused; if it has far more, mostly before any work.
    pub tokens: usize,
    /// Set by the caller to cancel: the encoding ends early, with [`TokenizerError::Cancelled`].
    pub cancelled: Option<&'a AtomicBool>,
}

impl EncodeBounds<'_> {
    /// No bounds but those on the text itself.
    pub const NONE: EncodeBounds<'static> = EncodeBounds { tokens: usize::MAX, cancelled: None };

    /// Refuses to continue after `tokens` tokens. Called for each word and, in a long word, every few thousand steps.
    pub(super) fn check(&self, tokens: usize) -> Result<(), TokenizerError> {
        if tokens > self.tokens {
            return Err(TokenizerError::TooManyTokens { max: self.tokens });
        }
        match self.cancelled.is_some_and(|cancelled| cancelled.load(Ordering::Relaxed)) {
            true => Err(TokenizerError::Cancelled),
            false => Ok(()),
        }
    }
}

/// Number of pairs of bytes.
const PAIRS: usize = 1 << 16;

/// A lower bound on the tokens of a text, from the lengths of a vocabulary's tokens.
///
/// A token covers at most as many bytes as the longest token that begins with the same two bytes. The fewest jumps of
/// such lengths across the text are found in one pass, and no encoding has fewer tokens.
#[derive(Debug)]
pub struct TokenLowerBound {
    /// Most bytes of a token, by its first two bytes. 128 KiB; `MAX_TOKEN_BYTES` fits into 16 bits.
    longest: Vec<u16>,
    /// Whether a byte may vanish without a token.
    droppable: Vec<bool>,
}

impl TokenLowerBound {
    pub fn new(vocab: &Vocab, bpe: Option<&Bpe>) -> TokenLowerBound {
        let mut lower_bound =
            TokenLowerBound { longest: vec![1; PAIRS], droppable: vec![false; usize::from(u8::MAX) + 1] };
        for (_, text, _) in vocab.iter() {
            match bpe {
                // Special tokens are plain text, all others are in the alphabet of bytes.
                Some(_) => [text.as_bytes(), &decode_symbols(text)].iter().for_each(|bytes| lower_bound.add(bytes)),
                None => lower_bound.add_spaced(text),
            }
        }
        // Some special tokens swallow the white space around them.
        let strips = vocab.iter().any(|(_, _, attr)| attr.intersects(Attr::LSTRIP.union(Attr::RSTRIP)));
        for (byte, droppable) in (0..=u8::MAX).zip(&mut lower_bound.droppable) {
            *droppable = (strips && is_space(byte)) || bpe.is_some_and(|bpe| bpe.drops(byte));
        }
        lower_bound
    }

    fn add(&mut self, bytes: &[u8]) {
        self.add_as(bytes, bytes.len());
    }

    /// Adds a token that covers at most `len` bytes of a text, which begins like `bytes`.
    fn add_as(&mut self, bytes: &[u8], len: usize) {
        let [first, second, ..] = bytes else { return };
        if let Some(longest) = self.longest.get_mut(pair(*first, *second)) {
            *longest = (*longest).max(u16::try_from(len).unwrap_or(u16::MAX));
        }
    }

    /// Adds a token in which each [`SPACE`] stands for a space or itself. The encoder may have put the first one there.
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

    /// Whether every encoding of `text` has more than `most` tokens. Takes at most one pass.
    pub fn exceeds(&self, text: &str, most: usize) -> bool {
        self.min_tokens(text, most) > most
    }

    /// The lower bound for `text`, capped at `most + 1`. Takes at most one pass.
    pub fn min_tokens(&self, text: &str, most: usize) -> usize {
        let text = text.as_bytes();
        // `tokens` tokens cover the text up to `frontier`. One more, begun before `visited`, covers it up to
        // `furthest`.
        let (mut tokens, mut frontier, mut furthest, mut visited) = (0, 0, 0, 0);
        loop {
            while text.get(frontier).is_some_and(|byte| self.droppable.get(usize::from(*byte)) == Some(&true)) {
                frontier += 1;
            }
            if frontier >= text.len() {
                return tokens;
            }
            if tokens == most {
                return most.saturating_add(1);
            }
            while visited <= frontier {
                furthest = furthest.max(visited + self.longest_at(text, visited));
                visited += 1;
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
