//! What followed the last time when these tokens were seen.

use std::collections::HashMap;

use super::Ground;

/// Longest and shortest suffix that is looked up.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// The text so far, by its n-grams, and the earlier place that it goes on like.
pub struct NGrams {
    tokens: Vec<u32>,
    /// Hash of an n-gram to the position behind its last occurrence but the present one.
    seen: [HashMap<u64, u32>; LONGEST - SHORTEST + 1],
    source: Option<Source>,
}

/// An earlier place of the text.
#[derive(Debug, Clone, Copy)]
struct Source {
    /// Of the token that is thought to come next.
    next: usize,
    /// What speaks for that token.
    ground: Ground,
}

impl NGrams {
    /// An index of a text, to be extended by [`push`](Self::push).
    pub fn new(tokens: &[u32]) -> Self {
        let room = Vec::with_capacity(tokens.len());
        let mut index = Self { tokens: room, seen: Default::default(), source: None };
        tokens.iter().for_each(|token| index.push(*token));
        index
    }

    /// Takes a token into the text. The n-grams that ended before it become findable.
    pub fn push(&mut self, token: u32) {
        let end = self.tokens.len();
        for (seen, length) in self.seen.iter_mut().zip(SHORTEST..=LONGEST) {
            if let Some(gram) = end.checked_sub(length).and_then(|start| self.tokens.get(start..end)) {
                // A context is far below 2^32 tokens.
                seen.insert(hash(gram), end as u32);
            }
        }
        self.tokens.push(token);
        self.source = self.source.and_then(|source| self.along(source, token)).or_else(|| self.found());
    }

    /// The next token as it is thought to come, and what speaks for it.
    pub fn next(&self) -> Option<(u32, Ground)> {
        let source = self.source?;
        Some((*self.tokens.get(source.next)?, source.ground))
    }

    /// What followed at the place that the text goes on like, at most `most` tokens; empty where there is none. What has
    /// gone round once is thought to go round again.
    pub fn guess(&self, most: usize) -> Vec<u32> {
        let Some(Source { next, ground }) = self.source else { return Vec::new() };
        let piece = self.tokens.get(next..).unwrap_or_default();
        let round = matches!(ground, Ground::Repeats(support) if support >= piece.len());
        piece.iter().cycle().take(if round { most } else { most.min(piece.len()) }).copied().collect()
    }

    /// How the source goes on behind a token. Where it says another one, the text may have that token in the place of the
    /// source's, or before it.
    fn along(&self, source: Source, token: u32) -> Option<Source> {
        let Source { next, ground } = source;
        let is_at = |place: usize| self.tokens.get(place) == Some(&token);
        if is_at(next) {
            return Some(Source { next: next + 1, ground: ground.later(1) });
        }
        match ground {
            Ground::Parted(_) if is_at(next - 1) => Some(Source { next, ground: ground.later(1) }),
            Ground::Repeats(support) if support >= LONGEST => {
                self.found().or(Some(Source { next: next + 1, ground: Ground::Parted(support) }))
            }
            _ => None,
        }
    }

    /// The place where the longest known suffix of the text was last seen.
    fn found(&self) -> Option<Source> {
        let end = self.tokens.len();
        self.seen.iter().rev().zip((SHORTEST..=LONGEST).rev()).find_map(|(seen, support)| {
            let gram = self.tokens.get(end.checked_sub(support)?..end)?;
            // Equal hashes of other n-grams would only cost a wrong guess.
            let next = *seen.get(&hash(gram))? as usize;
            Some(Source { next, ground: Ground::Repeats(support) })
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
    fn what_followed_the_longest_known_suffix_is_guessed() {
        let text = [1, 2, 3, 4, 5, 9, 2, 3, 4, 7, 7, 1, 2, 3, 4];
        let grams = NGrams::new(&text);
        // `1 2 3 4` was followed by `5 9 2`, the more recent `2 3 4` by `7`: the longer suffix counts.
        assert_eq!(grams.guess(3), [5, 9, 2]);
        assert!(NGrams::new(&[1, 2, 3]).guess(3).is_empty());
        assert!(NGrams::new(&[]).guess(3).is_empty());
        assert_eq!(NGrams::new(&[8, 8, 8]).guess(5), [8; 5], "it goes round");
        assert_eq!(NGrams::new(&[1, 2, 3, 1, 2]).guess(5), [3, 1, 2], "that is not known yet");
        assert_eq!(NGrams::new(&[1, 2, 3, 1, 2, 3]).guess(5), [1, 2, 3, 1, 2]);
    }

    #[test]
    fn a_place_that_the_text_goes_on_like_is_followed_and_a_changed_token_does_not_lose_it() {
        let place: Vec<u32> = (10..30).collect();
        let next = NGrams::next;
        let after = |said: &[u32]| {
            let mut grams = NGrams::new(&place);
            said.iter().for_each(|token| grams.push(*token));
            grams
        };
        assert_eq!(next(&after(&[10])), None, "one token is no reason");
        assert_eq!(next(&after(&[10, 11])), Some((12, Ground::Repeats(2))));
        let (six, other) = ([10, 11, 12, 13, 14, 15], 7);
        assert_eq!(next(&after(&six)), Some((16, Ground::Repeats(6))));
        // Another token in the place of 16.
        let changed = [&six[..], &[other]].concat();
        assert_eq!(next(&after(&changed)), Some((17, Ground::Parted(6))));
        assert_eq!(after(&changed).guess(3), [17, 18, 19]);
        assert_eq!(next(&after(&[&changed[..], &[17]].concat())), Some((18, Ground::Repeats(4))));
        // Or before it.
        assert_eq!(next(&after(&[&changed[..], &[16]].concat())), Some((17, Ground::Repeats(4))));
        assert_eq!(next(&after(&[&changed[..], &[8]].concat())), None);
        assert_eq!(next(&after(&[10, 11, other])), None, "two tokens were a chance");
        // At its end a place has nothing more to say.
        assert_eq!(NGrams::new(&[1, 2, 1, 2]).next(), Some((1, Ground::Repeats(2))));
        assert!(after(&place).guess(3).starts_with(&[10]), "it may begin again");
    }

    proptest! {
        #[test]
        fn a_guess_is_a_piece_of_the_text(text in proptest::collection::vec(0u32..4, 0..60), most in 0usize..12) {
            let guess = NGrams::new(&text).guess(most);
            prop_assert!(guess.len() <= most);
            // Where it goes round, of the text and itself.
            let all = [&text[..], &guess].concat();
            prop_assert!(guess.is_empty() || (0..text.len()).any(|start| all[start..].starts_with(&guess)));
        }
    }
}
