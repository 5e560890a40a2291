//! Errors of chat templates.

use super::limits::{MAX_CONVERSATION, MAX_MESSAGES, MAX_NESTED};
use crate::base::ErrorKind;
use crate::model::tokenizer::TokenizerError;

/// The request's field for variables of the template.
pub(super) const KWARGS: &str = "chat_template_kwargs";
/// Longest reason in an error, in bytes.
pub(super) const MAX_REASON: usize = 512;

/// A conversation cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The model has no template.
    #[error(
        "the model has no chat template; give one (`chat_template`, `--chat-template`), or have plain text completed \
         (`generate`, `POST /v1/completions`, `swarmllm chat --raw`)"
    )]
    Missing,
    /// The template's metadata is malformed.
    #[error("the chat template cannot be read: {0}")]
    Facts(#[from] TokenizerError),
    /// The template is too long.
    #[error("the chat template has {bytes} bytes, at most {max} are admitted")]
    TooLong { bytes: usize, max: usize },
    /// The conversation is too long.
    #[error(
        "the conversation has {bytes} bytes in {messages} messages, at most {} in {} are admitted",
        MAX_CONVERSATION,
        MAX_MESSAGES
    )]
    Conversation { bytes: usize, messages: usize },
    /// A variable has a name that the renderer sets itself.
    #[error("`{name}` is a variable of every chat template; choose another name")]
    Reserved { name: &'static str },
    /// A role has characters that may belong to a control token.
    #[error("`{role}` is not a role: a role has only letters, digits, `_` and `-`")]
    Role { role: String },
    /// The texts use both private planes of Unicode; the renderer needs one.
    #[error("the texts use characters of both private planes of Unicode; only one plane is admitted")]
    PrivatePlanes,
    /// An input nests too deep.
    #[error("it nests deeper than {} levels", MAX_NESTED)]
    Nested { input: &'static str },
    /// The template is not valid Jinja.
    #[error("the chat template cannot be compiled: {reason}")]
    Syntax { reason: String },
    /// The template uses a refused part of the language.
    #[error("the chat template uses a part of Jinja that is not admitted: {what}")]
    Unsupported { what: &'static str },
    /// Rendering took too many steps.
    #[error("the chat template does more work than is admitted")]
    OutOfFuel,
    /// Rendering built too many characters.
    #[error("the chat template builds more than {max} characters")]
    TooLarge { max: usize },
    /// The template refuses the conversation.
    #[error("the chat template refuses the conversation: {message}")]
    Raised { message: String },
    /// The template fails on the conversation.
    #[error("the chat template fails: {reason}")]
    Render { reason: String },
    /// The rendering thread did not start, or panicked.
    #[error("the chat template could not be run")]
    Thread,
}

impl TemplateError {
    /// The kind of error for C, Python and HTTP.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Conversation { .. }
            | Self::Reserved { .. }
            | Self::Nested { .. }
            | Self::Role { .. }
            | Self::PrivatePlanes => ErrorKind::InvalidArgument,
            Self::Thread => ErrorKind::Internal,
            _ => ErrorKind::BadTemplate,
        }
    }

    /// The faulty field of the request, by its name in C and Python.
    pub fn field(&self) -> Option<String> {
        match self {
            Self::Conversation { .. } | Self::Role { .. } | Self::PrivatePlanes | Self::Raised { .. } => {
                Some("messages".to_owned())
            }
            Self::Reserved { name } => Some(format!("{KWARGS}.{name}")),
            Self::Nested { input } => Some((*input).to_owned()),
            _ => None,
        }
    }

    pub(super) fn syntax(error: minijinja::Error) -> Self {
        Self::Syntax { reason: reason(&error) }
    }
}

fn reason(error: &minijinja::Error) -> String {
    cut(&error.to_string(), MAX_REASON).to_owned()
}

/// At most `max` bytes of `text`, in whole characters.
pub(super) fn cut(text: &str, max: usize) -> &str {
    text.split_at(text.floor_char_boundary(max)).0
}
