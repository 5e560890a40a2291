//! Tokenizers, built from a model's metadata.
//!
//! Owns: byte-level BPE and SentencePiece as in llama.cpp, special tokens, detokenization. Promises: the tokens equal
//! llama.cpp's (the contract tests compare them on real models); hostile metadata and texts give a typed error, in time
//! and memory linear in their size. Refuses: guessing an unknown tokenizer or rule.

mod bounds;
mod bpe;
mod error;
mod facts;
mod marked;
mod merge;
mod pre;
mod special;
mod spm;
mod stream;
mod vocab;

use std::borrow::Cow;

pub use bounds::EncodeBounds;
pub use error::{TokenizerError, TokenizerWarning};
pub(crate) use facts::Facts;
pub use marked::MarkedText;
pub(crate) use marked::is_space;
pub use special::MAX_CANDIDATES;
pub use stream::Detokenizer;
pub use vocab::{MAX_TOKEN_BYTES, MAX_TOKENS};

use crate::model::Fact;
use bounds::TokenLowerBound;
use bpe::{Bpe, decode_symbols};
use pre::{PRE, PreTokenizer};
use special::{Fragment, ParseSpecial, SpecialTokens};
use spm::{SPACE, Spm};
use vocab::{Attr, Defaults, Vocab};

/// Longest text that is encoded, in bytes: more than the longest contexts in use hold. Encoding takes up to about 60
/// bytes of memory for each.
pub const MAX_TEXT: usize = 4 << 20;

const MODEL: &str = "tokenizer.ggml.model";
const NAME_SHOWN: usize = 64;

/// A model's tokenizer. All threads can encode with it at once.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    specials: SpecialTokens,
    kind: Kind,
    lower_bound: TokenLowerBound,
    space_prefix: bool,
    warnings: Vec<TokenizerWarning>,
}

#[derive(Debug)]
enum Kind {
    Bpe(Bpe),
    Spm(Spm),
}

impl Tokenizer {
    /// Builds the tokenizer that the metadata describes.
    pub fn from_facts(facts: &[Fact]) -> Result<Tokenizer, TokenizerError> {
        let facts = Facts(facts);
        let prefix = facts.bool("tokenizer.ggml.add_space_prefix")?;
        let mut warnings = Vec::new();
        let (mut vocab, kind, space_prefix) =
            match facts.string(MODEL)?.ok_or(TokenizerError::Missing { key: MODEL })? {
                "gpt2" => {
                    let pre = facts.string(PRE)?;
                    if pre.is_none_or(str::is_empty) {
                        warnings.push(TokenizerWarning::NoPreTokenizer);
                    }
                    let pre = PreTokenizer::of_model(pre)?;
                    // llama.cpp's default for begin and end is token 11.
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
                    return Err(TokenizerError::Unsupported { what: "tokenizer", name });
                }
            };
        warnings.append(&mut vocab.warnings);
        let lower_bound = TokenLowerBound::new(&vocab, if let Kind::Bpe(bpe) = &kind { Some(bpe) } else { None });
        Ok(Tokenizer { specials: SpecialTokens::new(&vocab), vocab, kind, lower_bound, space_prefix, warnings })
    }

    /// Missing or ignored metadata.
    pub fn warnings(&self) -> &[TokenizerWarning] {
        &self.warnings
    }

    /// The tokens of `text`. `add_special` adds the begin and end tokens that the model wants around a text.
    /// `parse_special` reads control tokens in the text; never set it for a user's text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_within(text, add_special, parse_special, EncodeBounds::NONE)
    }

    /// [`encode`](Self::encode) within bounds. A text whose bytes imply too many tokens is refused in one pass; any
    /// other text is refused as soon as it has too many.
    pub fn encode_within(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
        bounds: EncodeBounds<'_>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = Vec::new();
        tokens.extend(self.vocab.bos.filter(|_| add_special && self.vocab.add_bos));
        let parse = if parse_special { ParseSpecial::Always } else { ParseSpecial::Never };
        self.encode_onto(&mut tokens, text, parse, &bounds)?;
        tokens.extend(self.vocab.eos.filter(|_| add_special && self.vocab.add_eos));
        bounds.check(tokens.len())?;
        Ok(tokens)
    }

    /// The tokens of a rendered chat template. Control tokens are read in the template's own text, not in untrusted
    /// text. The begin token is added unless the template wrote it. No end token is added, since the answer follows.
    pub fn encode_rendered(&self, rendered: &MarkedText) -> Result<Vec<u32>, TokenizerError> {
        self.encode_rendered_within(rendered, EncodeBounds::NONE)
    }

    /// [`encode_rendered`](Self::encode_rendered) within bounds.
    pub fn encode_rendered_within(
        &self,
        rendered: &MarkedText,
        bounds: EncodeBounds<'_>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = Vec::new();
        let begin = self.vocab.bos.filter(|_| self.vocab.add_bos);
        tokens.extend(begin);
        let written = begin
            .and_then(|id| self.vocab.text(id))
            .filter(|begin| rendered.text().starts_with(begin) && rendered.admits(begin, 0..begin.len()));
        let from = written.map_or(0, str::len);
        let text = rendered.text().get(from..).unwrap_or_default();
        self.encode_onto(&mut tokens, text, ParseSpecial::Rendered(rendered, from), &bounds)?;
        bounds.check(tokens.len())?;
        Ok(tokens)
    }

    /// Whether the bytes of the texts imply more than `most` tokens in total. Assumes that no token spans two texts.
    pub fn exceeds<'t>(&self, texts: impl Iterator<Item = &'t str>, most: usize) -> bool {
        let mut room = most;
        for text in texts {
            let least = self.lower_bound.min_tokens(text, room);
            match room.checked_sub(least) {
                Some(left) => room = left,
                None => return true,
            }
        }
        false
    }

    fn encode_onto(
        &self,
        tokens: &mut Vec<u32>,
        text: &str,
        parse: ParseSpecial<'_>,
        bounds: &EncodeBounds<'_>,
    ) -> Result<(), TokenizerError> {
        // Too many tokens is the more useful error of the two, so it is checked first, in at most `MAX_TEXT` bytes.
        let looked_at = text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or(text);
        if self.lower_bound.exceeds(looked_at, bounds.tokens) {
            return Err(TokenizerError::TooManyTokens { max: bounds.tokens });
        }
        if text.len() > MAX_TEXT {
            return Err(TokenizerError::TextTooLong { bytes: text.len(), max: MAX_TEXT });
        }
        let mut first = true;
        for fragment in self.specials.split(text, parse)? {
            match fragment {
                Fragment::Token(token) => tokens.push(token),
                Fragment::Text(part) => match &self.kind {
                    Kind::Bpe(bpe) => bpe.encode(part, &self.vocab, tokens, bounds)?,
                    Kind::Spm(spm) => spm.encode(part, first, &self.vocab, tokens, bounds)?,
                },
            }
            first = matches!(fragment, Fragment::Token(_));
        }
        Ok(())
    }

    /// The bytes of a token, perhaps a part of a character. Control and unknown tokens are empty unless `special`; ids
    /// outside the vocabulary are always empty.
    pub fn token_bytes(&self, id: u32, special: bool) -> Cow<'_, [u8]> {
        let hidden = Attr::CONTROL.union(Attr::UNKNOWN);
        let (attr, text) = (self.vocab.attr(id), self.vocab.text(id).unwrap_or_default());
        if attr.intersects(hidden) && !special {
            return Cow::default();
        }
        if attr.intersects(hidden.union(Attr::USER_DEFINED)) {
            return text.as_bytes().into();
        }
        if attr.intersects(Attr::NORMAL) {
            return match self.kind {
                Kind::Spm(_) => text.replace(SPACE, " ").into_bytes().into(),
                Kind::Bpe(_) => decode_symbols(text).into(),
            };
        }
        let byte = self.vocab.byte(id).filter(|_| attr.intersects(Attr::BYTE));
        byte.map_or(Cow::default(), |byte| vec![byte].into())
    }

    /// The text of tokens from the begin of a text. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32], special: bool) -> String {
        let mut bytes = Vec::new();
        for (at, token) in tokens.iter().enumerate() {
            let piece = self.token_bytes(*token, special);
            let strip = at == 0 && self.space_prefix && piece.first() == Some(&b' ');
            bytes.extend_from_slice(piece.get(usize::from(strip)..).unwrap_or_default());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The size of the vocabulary.
    pub fn vocab(&self) -> u32 {
        // `MAX_TOKENS` bounds it.
        self.vocab.len() as u32
    }

    /// The token that begins a text, if any.
    pub fn bos(&self) -> Option<u32> {
        self.vocab.bos
    }

    /// The token that ends a text, if any.
    pub fn eos(&self) -> Option<u32> {
        self.vocab.eos
    }

    /// The token that ends a turn, if any.
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
        self.vocab.is_eog(id)
    }

    /// The token's entry in the vocabulary (`<|im_end|>`, `Ġthe`).
    pub fn token_text(&self, id: u32) -> Option<&str> {
        self.vocab.text(id)
    }

    /// Whether the encoder puts a space in front of a text.
    pub(crate) fn space_prefix(&self) -> bool {
        self.space_prefix
    }
}

/// The texts of a byte-level vocabulary's single bytes.
#[cfg(test)]
pub(crate) fn byte_symbols() -> Vec<String> {
    (0..=255).map(|byte| bpe::symbol_of(byte).to_string()).collect()
}

#[cfg(test)]
pub(crate) use tests::{byte_tokenizer, tokenizer_of_words};

#[cfg(test)]
mod tests;
