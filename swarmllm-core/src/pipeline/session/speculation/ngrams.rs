//! The n-gram index of a text: where the current suffix occurred before, and what followed it.

use std::collections::HashMap;

use super::NGramMatch;

/// Longest and shortest suffix that is looked up.
const MAX_LENGTH: usize = 4;
const MIN_LENGTH: usize = 2;

/// The text so far with its n-gram index, and the earlier place that it currently matches.
pub struct NGrams {
    tokens: Vec<u32>,
    /// From the hash of an n-gram to the position behind its last occurrence but the current one.
    seen: [HashMap<u64, u32>; MAX_LENGTH - MIN_LENGTH + 1],
    source: Option<Source>,
}

/// An earlier place of the text that matches its end.
#[derive(Debug, Clone, Copy)]
struct Source {
    /// Position of the predicted next token.
    next: usize,
    /// How well the place matches.
    matched: NGramMatch,
}

impl NGrams {
    /// The index of a text, to be extended by [`push`](Self::push).
    pub fn new(tokens: &[u32]) -> Self {
        let room = Vec::with_capacity(tokens.len());
        let mut index = Self { tokens: room, seen: Default::default(), source: None };
        tokens.iter().for_each(|token| index.push(*token));
        index
    }

    /// Appends a token. N-grams that ended before it can be found from now on.
    pub fn push(&mut self, token: u32) {
        let end = self.tokens.len();
        for (seen, length) in self.seen.iter_mut().zip(MIN_LENGTH..=MAX_LENGTH) {
            if let Some(gram) = end.checked_sub(length).and_then(|start| self.tokens.get(start..end)) {
                // A context is far below 2^32 tokens.
                seen.insert(hash(gram), end as u32);
            }
        }
        self.tokens.push(token);
        self.source = self.source.and_then(|source| self.advanced(source, token)).or_else(|| self.lookup());
    }

    /// The predicted next token, and the match that predicts it.
    pub fn next(&self) -> Option<(u32, NGramMatch)> {
        let source = self.source?;
        Some((*self.tokens.get(source.next)?, source.matched))
    }

    /// Proposes the tokens that followed at the matching place, at most `max`; none without a match. A match that
    /// covers the whole piece up to the end is taken to be periodic.
    pub fn propose(&self, max: usize) -> Vec<u32> {
        let Some(Source { next, matched }) = self.source else { return Vec::new() };
        let piece = self.tokens.get(next..).unwrap_or_default();
        let periodic = matches!(matched, NGramMatch::Contiguous(length) if length >= piece.len());
        piece.iter().cycle().take(if periodic { max } else { max.min(piece.len()) }).copied().collect()
    }

    /// The source behind one more token. A token that differs from the source may have replaced the token of the
    /// source, or been inserted before it.
    fn advanced(&self, source: Source, token: u32) -> Option<Source> {
        let Source { next, matched } = source;
        let is_at = |place: usize| self.tokens.get(place) == Some(&token);
        if is_at(next) {
            return Some(Source { next: next + 1, matched: matched.extended(1) });
        }
        match matched {
            NGramMatch::AfterMismatch(_) if is_at(next - 1) => Some(Source { next, matched: matched.extended(1) }),
            NGramMatch::Contiguous(length) if length >= MAX_LENGTH => {
                self.lookup().or(Some(Source { next: next + 1, matched: NGramMatch::AfterMismatch(length) }))
            }
            _ => None,
        }
    }

    /// The place where the longest known suffix of the text last occurred.
    fn lookup(&self) -> Option<Source> {
        let end = self.tokens.len();
        self.seen.iter().rev().zip((MIN_LENGTH..=MAX_LENGTH).rev()).find_map(|(seen, length)| {
            let gram = self.tokens.get(end.checked_sub(length)?..end)?;
            // A hash collision costs one rejected draft token.
            let next = *seen.get(&hash(gram))? as usize;
            Some(Source { next, matched: NGramMatch::Contiguous(length) })
        })
    }
}

/// FNV-1a over the tokens.
fn hash(gram: &[u32]) -> u64 {
    let bytes = gram.iter().flat_map(|token| token.to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_continuation_of_the_longest_known_suffix_is_proposed() {
        let text = [1, 2, 3, 4, 5, 9, 2, 3, 4, 7, 7, 1, 2, 3, 4];
        let grams = NGrams::new(&text);
        // `1 2 3 4` was followed by `5 9 2`, the more recent `2 3 4` by `7`: the longer suffix counts.
        assert_eq!(grams.propose(3), [5, 9, 2]);
        assert!(NGrams::new(&[1, 2, 3]).propose(3).is_empty());
        assert!(NGrams::new(&[]).propose(3).is_empty());
        assert_eq!(NGrams::new(&[8, 8, 8]).propose(5), [8; 5], "a periodic text");
        assert_eq!(NGrams::new(&[1, 2, 3, 1, 2]).propose(5), [3, 1, 2], "the text ends there");
        assert_eq!(NGrams::new(&[1, 2, 3, 1, 2, 3]).propose(5), [1, 2, 3, 1, 2]);
    }

    #[test]
    fn a_match_survives_one_changed_token() {
        let place: Vec<u32> = (10..30).collect();
        let next = NGrams::next;
        let after = |continuation: &[u32]| {
            let mut grams = NGrams::new(&place);
            continuation.iter().for_each(|token| grams.push(*token));
            grams
        };
        assert_eq!(next(&after(&[10])), None, "one token is no n-gram");
        assert_eq!(next(&after(&[10, 11])), Some((12, NGramMatch::Contiguous(2))));
        let (six, other) = ([10, 11, 12, 13, 14, 15], 7);
        assert_eq!(next(&after(&six)), Some((16, NGramMatch::Contiguous(6))));
        // Another token in place of 16.
        let changed = [&six[..], &[other]].concat();
        assert_eq!(next(&after(&changed)), Some((17, NGramMatch::AfterMismatch(6))));
        assert_eq!(after(&changed).propose(3), [17, 18, 19]);
        assert_eq!(next(&after(&[&changed[..], &[17]].concat())), Some((18, NGramMatch::Contiguous(4))));
        // Another token before 16.
        assert_eq!(next(&after(&[&changed[..], &[16]].concat())), Some((17, NGramMatch::Contiguous(4))));
        assert_eq!(next(&after(&[&changed[..], &[8]].concat())), None);
        assert_eq!(next(&after(&[10, 11, other])), None, "a match of two tokens does not survive a mismatch");
        // A place at the end of the text predicts nothing more.
        assert_eq!(NGrams::new(&[1, 2, 1, 2]).next(), Some((1, NGramMatch::Contiguous(2))));
        assert!(after(&place).propose(3).starts_with(&[10]), "the text may repeat");
    }

    proptest! {
        #[test]
        fn a_proposal_is_a_piece_of_the_text(text in proptest::collection::vec(0u32..4, 0..60), most in 0usize..12) {
            let proposal = NGrams::new(&text).propose(most);
            prop_assert!(proposal.len() <= most);
            // A periodic continuation is a piece of the text and itself.
            let all = [&text[..], &proposal].concat();
            prop_assert!(proposal.is_empty() || (0..text.len()).any(|start| all[start..].starts_with(&proposal)));
        }
    }
}
