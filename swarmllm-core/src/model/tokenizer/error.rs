//! Why a tokenizer cannot be built or used.

use crate::base::ErrorKind;

/// Why a tokenizer cannot be built from a model's facts, or cannot encode a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerError {
    /// A fact that a tokenizer needs is not in the model.
    #[error("the model lacks `{key}`, which its tokenizer needs")]
    Missing { key: &'static str },
    /// A fact is not of the type that its key has, or its bytes are cut short.
    #[error("`{key}` of the model is malformed: {reason}")]
    Malformed { key: &'static str, reason: &'static str },
    /// A kind of tokenizer that this build does not know. It is never guessed: wrong tokens give wrong answers silently.
    #[error(
        "the model's {what} `{name}` is not known, and another one would give wrong tokens; take a newer version, or a \
         file of the model that names a known one"
    )]
    Unsupported { what: &'static str, name: String },
    /// An array has more entries than is admitted.
    #[error("`{key}` has {given} entries, at most {max} are admitted")]
    TooMany { key: &'static str, given: u64, max: u64 },
    /// An array has fewer entries than there are tokens.
    #[error("`{key}` has {given} entries for {tokens} tokens")]
    Length { key: &'static str, given: usize, tokens: usize },
    /// A token of the vocabulary cannot be used.
    #[error("token {id} of the vocabulary cannot be used: {reason}")]
    Token { id: usize, reason: &'static str },
    /// A merge rule cannot be used.
    #[error("merge {index} of the tokenizer cannot be used: {reason}")]
    Merge { index: usize, reason: &'static str },
    /// The facts ask for a token at the begin or end of every text, and name none.
    #[error("the model wants a {what} token around every text and names none")]
    NoSpecial { what: &'static str },
    /// The text is longer than is admitted.
    #[error("a text of {bytes} bytes was given, at most {max} are admitted")]
    TextTooLong { bytes: usize, max: usize },
    /// The text has more tokens than may be used.
    #[error(
        "the text has more than the {max} tokens that there is room for; shorten it, or give the node a longer `context` \
         where the model's own is longer"
    )]
    TooManyTokens { max: usize },
    /// Nobody waits for the tokens any more.
    #[error("the text is not read any further, since nobody waits for it")]
    GivenUp,
    /// Finding special tokens in the text would take more work than is admitted.
    #[error("the text has more than {max} candidates for special tokens")]
    TooManySpecials { max: usize },
    /// A byte of the text has no token, and no other token covers it.
    #[error("the vocabulary has no token for the byte {byte:#04x}")]
    NoByteToken { byte: u8 },
}

/// Something of a model's facts that its tokenizer works without.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenizerWarning {
    /// No pre-tokenizer is named, so that the default one cuts the words.
    #[error(
        "the model does not name its pre-tokenizer; `default` is taken, and answers may be worse for it: a newer file of the \
         model names it"
    )]
    NoPreTokenizer,
    /// A special token that the vocabulary does not have.
    #[error("`{key}` names token {id}, the vocabulary has {tokens}; the token is ignored")]
    SpecialToken { key: &'static str, id: u32, tokens: usize },
}

impl TokenizerError {
    /// The kind that crosses borders.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::TooManyTokens { .. } => ErrorKind::ContextOverflow,
            Self::GivenUp => ErrorKind::Cancelled,
            Self::TextTooLong { .. } | Self::TooManySpecials { .. } => ErrorKind::InvalidArgument,
            _ => ErrorKind::BadTokenizer,
        }
    }
}
