//! SentencePiece in llama.cpp's reading (`tokenizer.ggml.model = llama`): characters are joined where the joined text
//! is a token, the best score first; what is left without a token becomes byte tokens.

use super::TokenizerError;
use super::merge::{Chain, Join, NONE, Symbol};
use super::vocab::Vocab;

/// What stands for a space in the texts of tokens.
pub const SPACE: &str = "\u{2581}";

#[derive(Debug)]
pub struct Spm {
    /// Whether a text gets a space in front, at its begin and after a special token.
    pub space_prefix: bool,
    /// The token of each byte, if it has one.
    bytes: Vec<Option<u32>>,
    /// Length of the longest token's text.
    longest: usize,
}

impl Spm {
    pub fn new(vocab: &Vocab, space_prefix: bool) -> Spm {
        let byte_token = |byte: u8| {
            let single = char::from(byte).is_ascii().then(|| char::from(byte).to_string());
            vocab.id(&format!("<0x{byte:02X}>")).or_else(|| vocab.id(&single?))
        };
        let bytes = (0..=u8::MAX).map(byte_token).collect();
        let longest = vocab.iter().map(|(_, text, _)| text.len()).max().unwrap_or(0);
        Spm { space_prefix, bytes, longest }
    }

    /// Appends the tokens of `text`, which follows a special token or begins the whole if `first`.
    pub fn encode(&self, text: &str, first: bool, vocab: &Vocab, tokens: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let prefix = if self.space_prefix && first { SPACE } else { "" };
        let text = [prefix, &text.replace(' ', SPACE)].concat();
        let mut chain = Chain::default();
        for character in text.chars() {
            chain.push(character.len_utf8(), vocab.id(character.encode_utf8(&mut [0; 4])));
        }
        chain.run(|left: &Symbol, right: &Symbol| {
            let joined = left.start as usize..right.end();
            if joined.len() > self.longest {
                return None;
            }
            let token = vocab.id(text.get(joined)?)?;
            Some(Join { rank: rank_of(vocab.score(token)), token })
        });
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

/// A rank that falls as the score rises. Scores are no NaN; both zeros are one.
fn rank_of(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    !ascending
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_order_scores_from_the_best_to_the_worst() {
        let scores = [f32::INFINITY, 3.5, 1e-30, 0.0, -1e-30, -0.5, -1e30, f32::NEG_INFINITY];
        assert!(scores.windows(2).all(|pair| rank_of(pair[0]) < rank_of(pair[1])));
        assert_eq!(rank_of(0.0), rank_of(-0.0));
    }
}
