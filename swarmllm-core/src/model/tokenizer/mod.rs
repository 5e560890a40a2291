//! Tokenizers, built from a model's facts.
//!
//! Owns: byte-level BPE and SentencePiece as llama.cpp reads them, special tokens, text from tokens. Promises: the
//! tokens are llama.cpp's, one for one (compared by the contract tests on real models); hostile facts and texts give a
//! typed error, in time and memory linear in their size. Refuses: guessing at a tokenizer or a rule that it does not
//! know.

mod bpe;
mod error;
mod facts;
mod merge;
mod pre;
mod special;
mod spm;
mod stream;
mod vocab;

use std::borrow::Cow;

pub use error::TokenizerError;
pub(crate) use facts::Facts;
pub use special::MAX_CANDIDATES;
pub use stream::Detokenizer;
pub use vocab::{MAX_TOKEN_BYTES, MAX_TOKENS};

use crate::model::Fact;
use bpe::{Bpe, byte_of};
use pre::PreTokenizer;
use special::{Fragment, Specials};
use spm::{SPACE, Spm};
use vocab::{Attr, Defaults, Vocab};

/// Longest text that is encoded, in bytes: more than the longest contexts in use hold. Encoding takes some 60 times
/// its text in memory at worst.
pub const MAX_TEXT: usize = 4 << 20;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const NAME_SHOWN: usize = 64;

/// A model's tokenizer. Encoding borrows it shared: one serves all threads.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    specials: Specials,
    kind: Kind,
    space_prefix: bool,
}

#[derive(Debug)]
enum Kind {
    Bpe(Bpe),
    Spm(Spm),
}

impl Tokenizer {
    /// Builds the tokenizer that the facts describe.
    pub fn from_facts(facts: &[Fact]) -> Result<Tokenizer, TokenizerError> {
        let facts = Facts(facts);
        let prefix = facts.bool("tokenizer.ggml.add_space_prefix")?;
        let (vocab, kind, space_prefix) = match facts.string(MODEL)?.ok_or(TokenizerError::Missing { key: MODEL })? {
            "gpt2" => {
                let pre = PreTokenizer::named(facts.string(PRE)?.ok_or(TokenizerError::Missing { key: PRE })?)?;
                // Without facts llama.cpp takes token 11 for begin and end.
                let bos = if pre.no_bos { None } else { Some(11) };
                let vocab = Vocab::from_facts(facts, Defaults { bos, eos: Some(11), add_bos: pre.add_bos })?;
                let bpe = Bpe::from_facts(facts, pre, &vocab)?;
                (vocab, Kind::Bpe(bpe), prefix.unwrap_or(false))
            }
            "llama" => {
                let vocab = Vocab::from_facts(facts, Defaults { bos: Some(1), eos: Some(2), add_bos: true })?;
                let spm = Spm::new(&vocab, prefix.unwrap_or(true));
                (vocab, Kind::Spm(spm), prefix.unwrap_or(true))
            }
            other => {
                let name = other.chars().take(NAME_SHOWN).collect();
                let supported = "gpt2, llama".to_owned();
                return Err(TokenizerError::Unsupported { what: "tokenizer", name, supported });
            }
        };
        Ok(Tokenizer { specials: Specials::new(&vocab), vocab, kind, space_prefix })
    }

    /// The tokens of `text`. `add_special` adds the begin and end tokens that the model wants around a text;
    /// `parse_special` reads control tokens where their text occurs (for rendered templates, never for a user's text).
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, TokenizerError> {
        if text.len() > MAX_TEXT {
            return Err(TokenizerError::TextTooLong { bytes: text.len(), max: MAX_TEXT });
        }
        let mut tokens = Vec::new();
        tokens.extend(self.vocab.bos.filter(|_| add_special && self.vocab.add_bos));
        let mut first = true;
        for fragment in self.specials.split(text, parse_special)? {
            match fragment {
                Fragment::Token(token) => tokens.push(token),
                Fragment::Text(part) => match &self.kind {
                    Kind::Bpe(bpe) => bpe.encode(part, &self.vocab, &mut tokens),
                    Kind::Spm(spm) => spm.encode(part, first, &self.vocab, &mut tokens)?,
                },
            }
            first = matches!(fragment, Fragment::Token(_));
        }
        tokens.extend(self.vocab.eos.filter(|_| add_special && self.vocab.add_eos));
        Ok(tokens)
    }

    /// The tokens of a rendered chat template: control tokens are read, and the begin token is added only where the
    /// template did not write it.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let bos = self.vocab.bos.filter(|_| self.vocab.add_bos).and_then(|id| self.vocab.text(id));
        let text = bos.and_then(|bos| text.strip_prefix(bos)).unwrap_or(text);
        self.encode(text, true, true)
    }

    /// What a token renders as: any bytes, perhaps part of a character. Control and unknown tokens render as nothing
    /// unless `special`; ids outside the vocabulary always do.
    pub fn token_bytes(&self, id: u32, special: bool) -> Cow<'_, [u8]> {
        let hidden = Attr::CONTROL.and(Attr::UNKNOWN);
        let (attr, text) = (self.vocab.attr(id), self.vocab.text(id).unwrap_or_default());
        if attr.any(hidden) && !special {
            return Cow::default();
        }
        if attr.any(hidden.and(Attr::USER_DEFINED)) {
            return text.as_bytes().into();
        }
        if attr.any(Attr::NORMAL) {
            return match self.kind {
                Kind::Spm(_) => text.replace(SPACE, " ").into_bytes().into(),
                Kind::Bpe(_) => decode_symbols(text).into(),
            };
        }
        let byte = self.vocab.byte(id).filter(|_| attr.any(Attr::BYTE));
        byte.map_or(Cow::default(), |byte| vec![byte].into())
    }

    /// The text of these tokens, from the begin of a text. Bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32], special: bool) -> String {
        let mut bytes = Vec::new();
        for (at, token) in tokens.iter().enumerate() {
            let piece = self.token_bytes(*token, special);
            let strip = at == 0 && self.space_prefix && piece.first() == Some(&b' ');
            bytes.extend_from_slice(piece.get(usize::from(strip)..).unwrap_or_default());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many tokens there are.
    pub fn vocab(&self) -> u32 {
        // `MAX_TOKENS` bounds it.
        self.vocab.len() as u32
    }

    /// The token that begins a text, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos
    }

    /// The token that ends a text, if there is one.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos
    }

    /// The token that ends a turn, if there is one.
    pub fn eot(&self) -> Option<u32> {
        self.vocab.eot
    }

    /// Whether `encode` with `add_special` puts [`Tokenizer::bos`] in front.
    pub fn adds_bos(&self) -> bool {
        self.vocab.add_bos
    }

    /// Whether `encode` with `add_special` puts [`Tokenizer::eos`] at the end.
    pub fn adds_eos(&self) -> bool {
        self.vocab.add_eos
    }

    /// Whether a generation ends with this token.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.vocab.ends_generation(id)
    }

    /// The text by which a token is written in the vocabulary (`<|im_end|>`, `Ġthe`).
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocab.text(id)
    }

    /// Whether the encoder puts a space in front of a text.
    pub(crate) fn space_prefix(&self) -> bool {
        self.space_prefix
    }
}

/// The bytes of a BPE token's text. A character that stands for no byte is itself.
fn decode_symbols(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    for symbol in text.chars() {
        match byte_of(symbol) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(symbol.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests;
