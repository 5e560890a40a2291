//! Incremental detokenization.

use std::sync::Arc;

use super::Tokenizer;

/// Turns tokens into text one by one. Never yields a part of a character: at most three bytes are held back between
/// calls.
///
/// Bytes that are not UTF-8 become U+FFFD.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Whether special tokens are rendered.
    special: bool,
    /// Whether the encoder, not the text, put the space in front of the next token.
    strip: bool,
    /// Bytes of an incomplete character.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// For tokens that continue a prompt, as in a generation. Special tokens are skipped.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, special: false, strip: false, pending: Vec::new() }
    }

    /// For tokens from the begin of a text. Drops the space that the encoder put in front.
    pub fn from_start(tokenizer: Arc<Tokenizer>) -> Self {
        Self { strip: tokenizer.space_prefix(), ..Self::new(tokenizer) }
    }

    /// Sets whether special tokens are written by their text.
    pub fn with_special(self, special: bool) -> Self {
        Self { special, ..self }
    }

    /// The text that this token completes, if any. Ids outside the vocabulary are skipped.
    pub fn push(&mut self, token: u32) -> Option<String> {
        let piece = self.tokenizer.token_bytes(token, self.special);
        let strip = std::mem::take(&mut self.strip) && piece.first() == Some(&b' ');
        self.pending.extend_from_slice(piece.get(usize::from(strip)..).unwrap_or_default());
        let text = take_complete(&mut self.pending);
        (!text.is_empty()).then_some(text)
    }

    /// The rest: an incomplete character becomes U+FFFD.
    pub fn finish(mut self) -> Option<String> {
        let text = take_complete(&mut self.pending);
        let cut = if self.pending.is_empty() { "" } else { "\u{fffd}" };
        Some(text + cut).filter(|text| !text.is_empty())
    }
}

/// Removes all but a trailing incomplete character from `bytes`.
fn take_complete(bytes: &mut Vec<u8>) -> String {
    let mut text = String::new();
    let mut rest = bytes.as_slice();
    while let Some(chunk) = rest.utf8_chunks().next() {
        text.push_str(chunk.valid());
        let used = chunk.valid().len() + chunk.invalid().len();
        let incomplete = used == rest.len() && is_incomplete(chunk.invalid());
        if incomplete {
            let held = chunk.invalid().to_vec();
            *bytes = held;
            return text;
        }
        if !chunk.invalid().is_empty() {
            text.push('\u{fffd}');
        }
        rest = rest.get(used..).unwrap_or_default();
    }
    bytes.clear();
    text
}

/// Whether more bytes could complete a character.
fn is_incomplete(bytes: &[u8]) -> bool {
    !bytes.is_empty() && str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_in_chunks_of_any_size_give_the_same_text() {
        let bytes = b"a\xf0\x9f\x91\x8d\xff\xe2\x82b\xc3\xa9\xf0\x9f".as_slice();
        for size in 1..bytes.len() {
            let (mut pending, mut text) = (Vec::new(), String::new());
            for part in bytes.chunks(size) {
                pending.extend_from_slice(part);
                text += &take_complete(&mut pending);
                assert!(pending.len() < 4);
            }
            text += &String::from_utf8_lossy(&pending);
            assert_eq!(text, String::from_utf8_lossy(bytes));
        }
    }
}
