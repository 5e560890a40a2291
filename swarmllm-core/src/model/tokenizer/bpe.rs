//! Byte-level BPE (`tokenizer.ggml.model = gpt2`): a pre-tokenizer splits words, whose bytes are merged by rank.
//!
//! The vocabulary writes tokens in an alphabet of 256 visible characters, one for each byte.

use std::collections::HashMap;

use super::TokenizerError;
use super::bounds::EncodeBounds;
use super::facts::Facts;
use super::merge::{Chain, Merge, NONE, Symbol};
use super::pre::PreTokenizer;
use super::vocab::Vocab;

/// Most merge rules; the largest tokenizer in use has about 450,000.
pub const MAX_MERGES: u64 = 1 << 21;

const MERGES: &str = "tokenizer.ggml.merges";

#[derive(Debug)]
pub struct Bpe {
    pre: PreTokenizer,
    /// The merge of two neighbouring tokens.
    merges: HashMap<(u32, u32), Merge>,
    /// The token of each single byte, if any.
    bytes: Vec<Option<u32>>,
}

impl Bpe {
    pub fn from_facts(facts: Facts<'_>, pre: PreTokenizer, vocab: &Vocab) -> Result<Bpe, TokenizerError> {
        let rules = facts.strings(MERGES, MAX_MERGES)?.ok_or(TokenizerError::Missing { key: MERGES })?;
        let mut merges = HashMap::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            let (pair, token) = read_rule(rule, vocab).map_err(|reason| TokenizerError::Merge { index, reason })?;
            // `MAX_MERGES` keeps ranks far below 2^32. The first of two equal rules wins.
            merges.entry(pair).or_insert(Merge { rank: index as u32, token });
        }
        let bytes = (0..=u8::MAX).map(|byte| vocab.id(symbol_of(byte).encode_utf8(&mut [0; 4]))).collect();
        Ok(Bpe { pre, merges, bytes })
    }

    /// Appends the tokens of `text`. A byte without a token is dropped, as in llama.cpp.
    pub fn encode(
        &self,
        text: &str,
        vocab: &Vocab,
        tokens: &mut Vec<u32>,
        bounds: &EncodeBounds<'_>,
    ) -> Result<(), TokenizerError> {
        let mut chain = Chain::default();
        self.pre.each_word(text, &mut |word| {
            bounds.check(tokens.len())?;
            if let Some(token) = self.whole_word(word, vocab) {
                tokens.push(token);
                return Ok(());
            }
            chain.clear();
            for byte in word.bytes() {
                chain.push(1, self.bytes.get(usize::from(byte)).copied().flatten());
            }
            let merge = |left: &Symbol, right: &Symbol| self.merges.get(&(left.token, right.token)).copied();
            let had = tokens.len();
            chain.run(merge, || bounds.check(had))?;
            tokens.extend(chain.finished().map(|symbol| symbol.token).filter(|token| *token != NONE));
            Ok(())
        })?;
        bounds.check(tokens.len())
    }

    /// Whether this byte has no token.
    pub fn drops(&self, byte: u8) -> bool {
        self.bytes.get(usize::from(byte)).copied().flatten().is_none()
    }

    fn whole_word(&self, word: &str, vocab: &Vocab) -> Option<u32> {
        // No token is longer than `MAX_TOKEN_BYTES`, and the alphabet never shortens a word.
        if !self.pre.whole_words || word.len() > super::vocab::MAX_TOKEN_BYTES {
            return None;
        }
        vocab.id(&word.bytes().map(symbol_of).collect::<String>())
    }
}

/// The two tokens of a rule and their merge.
fn read_rule(rule: &str, vocab: &Vocab) -> Result<((u32, u32), u32), &'static str> {
    // The left part may itself be a space, so the search begins at the second byte.
    let space = rule.bytes().skip(1).position(|byte| byte == b' ').ok_or("it has only one part")?;
    let (left, right) = rule.split_at_checked(space + 1).ok_or("its parts are not UTF-8")?;
    let right = right.get(1..).unwrap_or_default();
    let token = |text: &str| vocab.id(text).ok_or("it names a token that is not in the vocabulary");
    Ok(((token(left)?, token(right)?), token(&[left, right].concat())?))
}

/// The character of a byte: the byte itself where it is visible in Latin-1, else one from U+0100 on.
pub fn symbol_of(byte: u8) -> char {
    let shift = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => return char::from(byte),
        0..=0x20 => 0,
        0x7f..=0xa0 => 0x7f - 0x21,
        0xad => 0xad - 0x43,
    };
    // At most U+0143: always a character.
    char::from_u32(0x100 + u32::from(byte - shift)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The bytes of a BPE token's text. A character outside the alphabet gives its UTF-8 bytes.
pub fn decode_symbols(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for symbol in text.chars() {
        match byte_of(symbol) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(symbol.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

/// The byte of a character of the alphabet.
pub fn byte_of(symbol: char) -> Option<u8> {
    let code = u32::from(symbol);
    let byte = match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_round_trips_through_its_own_character() {
        let symbols: std::collections::BTreeSet<char> = (0..=255).map(symbol_of).collect();
        assert_eq!(symbols.len(), 256);
        assert!((0..=255).all(|byte| byte_of(symbol_of(byte)) == Some(byte)));
        assert_eq!((symbol_of(b' '), symbol_of(b'\n'), symbol_of(0xad)), ('Ġ', 'Ċ', 'Ń'));
        assert_eq!(byte_of('東'), None);
    }
}
