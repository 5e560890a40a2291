//! Errors and warnings of tokenizers.

use crate::base::ErrorKind;

/// A tokenizer cannot be built from a model's metadata, or cannot encode a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A required key is missing.
    #[error("the model lacks `{key}`, which its tokenizer needs")]
    Missing { key: &'static str },
    /// A value has the wrong type or is truncated.
    #[error("`{key}` of the model is malformed: {reason}")]
    Malformed { key: &'static str, reason: &'static str },
    /// An unknown kind of tokenizer. Guessing one would give wrong answers silently.
    #[error(
        "the model's {what} `{name}` is unknown, and another one would give wrong tokens; update this software, or use a \
         file of the model that names a known one"
    )]
    Unsupported { what: &'static str, name: String },
    /// An array has too many entries.
    #[error("`{key}` has {given} entries, at most {max} are admitted")]
    TooMany { key: &'static str, given: u64, max: u64 },
    /// An array has fewer entries than the vocabulary.
    #[error("`{key}` has {given} entries for {tokens} tokens")]
    Length { key: &'static str, given: usize, tokens: usize },
    /// A token of the vocabulary cannot be used.
    #[error("token {id} of the vocabulary cannot be used: {reason}")]
    Token { id: usize, reason: &'static str },
    /// A merge rule cannot be used.
    #[error("merge {index} of the tokenizer cannot be used: {reason}")]
    Merge { index: usize, reason: &'static str },
    /// The metadata demands a begin or end token and does not name it.
    #[error("the model demands a {what} token for every text and does not name it")]
    MissingSpecial { what: &'static str },
    /// The text is too long.
    #[error("the text has {bytes} bytes, at most {max} are admitted")]
    TextTooLong { bytes: usize, max: usize },
    /// The text has too many tokens.
    #[error(
        "the text has more than {max} tokens, which is all that fits; shorten it, or give the node a longer `context` if \
         the model supports it"
    )]
    TooManyTokens { max: usize },
    /// The caller has cancelled the encoding.
    #[error("the encoding was cancelled")]
    Cancelled,
    /// The search for special tokens takes too much work.
    #[error("the text has more than {max} candidates for special tokens")]
    TooManySpecials { max: usize },
    /// No token covers a byte of the text.
    #[error("the vocabulary has no token for the byte {byte:#04x}")]
    NoByteToken { byte: u8 },
}

/// Metadata that is missing or ignored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerWarning {
    /// No pre-tokenizer is named; the default one is used.
    #[error(
        "the model does not name its pre-tokenizer; `default` is used, and answers may be worse: use a newer file of the model"
    )]
    NoPreTokenizer,
    /// A special token is not in the vocabulary.
    #[error("`{key}` names token {id}, the vocabulary has {tokens}; the token is ignored")]
    SpecialToken { key: &'static str, id: u32, tokens: usize },
}

impl TokenizerError {
    /// The kind of error for C, Python and HTTP.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooManyTokens { .. } => ErrorKind::ContextOverflow,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::TextTooLong { .. } | Self::TooManySpecials { .. } => ErrorKind::InvalidArgument,
            _ => ErrorKind::BadTokenizer,
        }
    }
}
