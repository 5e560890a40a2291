//! Tokenizers, built from a model's facts.
//!
//! Owns: byte-level BPE and SentencePiece as llama.cpp reads them, special tokens, text from tokens. Promises: the
//! tokens are llama.cpp's, one for one (compared by the contract tests on real models); hostile facts and texts give a
//! typed error, in time and memory linear in their size. Refuses: guessing at a tokenizer or a rule that it does not
//! know.

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
use bounds::Reach;
use bpe::{Bpe, decode_symbols};
use pre::{PRE, PreTokenizer};
use special::{Fragment, Read, Specials};
use spm::{SPACE, Spm};
use vocab::{Attr, Defaults, Vocab};

/// Longest text that is encoded, in bytes: more than the longest contexts in use hold. Encoding takes some 60 times
/// its text in memory at worst.
pub const MAX_TEXT: usize = 4 << 20;

const MODEL: &str = "tokenizer.ggml.model";
const NAME_SHOWN: usize = 64;

/// A model's tokenizer. Encoding borrows it shared: one serves all threads.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    specials: Specials,
    kind: Kind,
    reach: Reach,
    space_prefix: bool,
    warnings: Vec<TokenizerWarning>,
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
        let mut warnings = Vec::new();
        let (mut vocab, kind, space_prefix) =
            match facts.string(MODEL)?.ok_or(TokenizerError::Missing { key: MODEL })? {
                "gpt2" => {
                    let pre = facts.string(PRE)?;
                    if pre.is_none_or(str::is_empty) {
                        warnings.push(TokenizerWarning::NoPreTokenizer);
                    }
                    let pre = PreTokenizer::of_model(pre)?;
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
                    return Err(TokenizerError::Unsupported { what: "tokenizer", name });
                }
            };
        warnings.append(&mut vocab.warnings);
        let reach = Reach::new(&vocab, if let Kind::Bpe(bpe) = &kind { Some(bpe) } else { None });
        Ok(Tokenizer { specials: Specials::new(&vocab), vocab, kind, reach, space_prefix, warnings })
    }

    /// What of the facts it works without.
    pub fn warnings(&self) -> &[TokenizerWarning] {
        &self.warnings
    }

    /// The tokens of `text`. `add_special` adds the begin and end tokens that the model wants around a text;
    /// `parse_special` reads control tokens where their text occurs (never for a user's text).
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_within(text, add_special, parse_special, EncodeBounds::NONE)
    }

    /// The same within bounds: a text that must have more tokens is refused in one pass over its bytes, another one as soon
    /// as it has more.
    pub fn encode_within(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
        bounds: EncodeBounds<'_>,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = Vec::new();
        tokens.extend(self.vocab.bos.filter(|_| add_special && self.vocab.add_bos));
        let read = if parse_special { Read::Everywhere } else { Read::Nowhere };
        self.encode_onto(&mut tokens, text, read, &bounds)?;
        tokens.extend(self.vocab.eos.filter(|_| add_special && self.vocab.add_eos));
        bounds.check(tokens.len())?;
        Ok(tokens)
    }

    /// The tokens of a rendered chat template. Control tokens are read where the template wrote them, not in foreign
    /// text. The begin token is added only where the template did not write it, and no end token: the answer follows.
    pub fn encode_rendered(&self, rendered: &MarkedText) -> Result<Vec<u32>, TokenizerError> {
        self.encode_rendered_within(rendered, EncodeBounds::NONE)
    }

    /// The same within bounds, as [`encode_within`](Self::encode_within).
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
        self.encode_onto(&mut tokens, text, Read::Rendered(rendered, from), &bounds)?;
        bounds.check(tokens.len())?;
        Ok(tokens)
    }

    /// Whether the texts have more than `most` tokens together, as far as their bytes tell. That a token may reach from one
    /// into the next is not counted: for texts that stand apart.
    pub fn exceeds<'t>(&self, texts: impl Iterator<Item = &'t str>, most: usize) -> bool {
        let mut room = most;
        for text in texts {
            let least = self.reach.fewest(text, room);
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
        read: Read<'_>,
        bounds: &EncodeBounds<'_>,
    ) -> Result<(), TokenizerError> {
        // A longer text is not read. Whether there is room for its tokens is what its caller can do something about.
        let looked_at = text.get(..text.floor_char_boundary(MAX_TEXT)).unwrap_or(text);
        if self.reach.exceeds(looked_at, bounds.tokens) {
            return Err(TokenizerError::TooManyTokens { max: bounds.tokens });
        }
        if text.len() > MAX_TEXT {
            return Err(TokenizerError::TextTooLong { bytes: text.len(), max: MAX_TEXT });
        }
        let mut first = true;
        for fragment in self.specials.split(text, read)? {
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

/// The texts of a byte-level vocabulary's single bytes.
#[cfg(test)]
pub(crate) fn byte_symbols() -> Vec<String> {
    (0..=255).map(|byte| bpe::symbol_of(byte).to_string()).collect()
}

#[cfg(test)]
pub(crate) use tests::{byte_tokenizer, tokenizer_of_words};

#[cfg(test)]
mod tests;
