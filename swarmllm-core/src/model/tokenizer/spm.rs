//! SentencePiece as in llama.cpp (`tokenizer.ggml.model = llama`): characters are merged into tokens, best score first;
//! characters without a token become byte tokens.

use std::collections::HashSet;

use super::TokenizerError;
use super::bounds::EncodeBounds;
use super::merge::{Chain, Merge, NONE, Symbol};
use super::vocab::Vocab;

/// The character for a space in the vocabulary.
pub const SPACE: &str = "\u{2581}";

/// Most kept pairs of neighbours: a vocabulary of 256,000 tokens in use has about 200,000. Each takes about 10 bytes.
const MAX_NEIGHBOURS: usize = 1 << 21;

#[derive(Debug)]
pub struct Spm {
    /// Whether a space is put in front of a text, at its begin and after a special token.
    pub space_prefix: bool,
    /// The token of each byte, if any.
    bytes: Vec<Option<u32>>,
    /// Bytes of the longest token.
    longest: usize,
    /// Pairs of characters that are neighbours in some token. No merge crosses any other pair, so a text is split there
    /// and each piece encoded alone: mostly at spaces, with which tokens begin. `None` where a vocabulary has too many
    /// pairs.
    neighbours: Option<HashSet<(char, char)>>,
}

impl Spm {
    pub fn new(vocab: &Vocab, space_prefix: bool) -> Spm {
        let byte_token = |byte: u8| {
            let single = char::from(byte).is_ascii().then(|| char::from(byte).to_string());
            vocab.id(&format!("<0x{byte:02X}>")).or_else(|| vocab.id(&single?))
        };
        let bytes = (0..=u8::MAX).map(byte_token).collect();
        let longest = vocab.iter().map(|(_, text, _)| text.len()).max().unwrap_or(0);
        let mut neighbours = HashSet::new();
        let texts = vocab.iter().map(|(_, text, _)| text);
        let mut pairs = texts.flat_map(|text| text.chars().zip(text.chars().skip(1)));
        let all = pairs.try_for_each(|pair| {
            neighbours.insert(pair);
            (neighbours.len() <= MAX_NEIGHBOURS).then_some(())
        });
        Spm { space_prefix, bytes, longest, neighbours: all.map(|()| neighbours) }
    }

    /// Appends the tokens of `text`. With `first` it begins the whole text or follows a special token.
    pub fn encode(
        &self,
        text: &str,
        first: bool,
        vocab: &Vocab,
        tokens: &mut Vec<u32>,
        bounds: &EncodeBounds<'_>,
    ) -> Result<(), TokenizerError> {
        let prefix = if self.space_prefix && first { SPACE } else { "" };
        let text = [prefix, &text.replace(' ', SPACE)].concat();
        let mut chain = Chain::default();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            bounds.check(tokens.len())?;
            let (piece, after) = rest.split_at_checked(self.piece_len(rest)).unwrap_or((rest, ""));
            self.encode_piece(piece, vocab, &mut chain, tokens, bounds)?;
            rest = after;
        }
        bounds.check(tokens.len())
    }

    /// Bytes up to the first pair of neighbours that no token has.
    fn piece_len(&self, text: &str) -> usize {
        let Some(neighbours) = &self.neighbours else { return text.len() };
        let mut pairs = text.chars().zip(text.char_indices().skip(1));
        let apart = |(one, (at, other))| (!neighbours.contains(&(one, other))).then_some(at);
        pairs.find_map(apart).unwrap_or(text.len())
    }

    fn encode_piece(
        &self,
        text: &str,
        vocab: &Vocab,
        chain: &mut Chain,
        tokens: &mut Vec<u32>,
        bounds: &EncodeBounds<'_>,
    ) -> Result<(), TokenizerError> {
        chain.clear();
        for character in text.chars() {
            chain.push(character.len_utf8(), vocab.id(character.encode_utf8(&mut [0; 4])));
        }
        let merge = |left: &Symbol, right: &Symbol| {
            let joined = left.start as usize..right.end();
            if joined.len() > self.longest {
                return None;
            }
            let token = vocab.id(text.get(joined)?)?;
            Some(Merge { rank: rank_of(vocab.score(token)), token })
        };
        let had = tokens.len();
        chain.run(merge, || bounds.check(had))?;
        for symbol in chain.finished() {
            if symbol.token != NONE {
                tokens.push(symbol.token);
                continue;
            }
            for byte in text.get(symbol.start as usize..symbol.end()).unwrap_or_default().bytes() {
                let token = self.bytes.get(usize::from(byte)).copied().flatten();
                tokens.push(token.ok_or(TokenizerError::NoByteToken { byte })?);
            }
        }
        Ok(())
    }
}

/// A rank that falls as the score rises. Scores are not NaN; both zeros have the same rank.
fn rank_of(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_scores_from_best_to_worst() {
        let scores = [f32::INFINITY, 3.5, 1e-30, 0.0, -1e-30, -0.5, -1e30, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|pair| rank_of(pair[0]) < rank_of(pair[1])));
        assert_eq!(rank_of(0.0), rank_of(-0.0));
    }
}
