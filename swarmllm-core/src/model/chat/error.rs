//! Why a conversation cannot be rendered.

use super::limits::{MAX_CONVERSATION, MAX_MESSAGES, MAX_NESTED};
use crate::base::ErrorKind;
use crate::model::tokenizer::TokenizerError;

/// What the borders call the variables of a template.
pub(super) const KWARGS: &str = "chat_template_kwargs";
/// Longest reason that an error repeats, in bytes.
pub(super) const MAX_REASON: usize = 512;

/// Why a conversation cannot be rendered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The model has no template.
    #[error(
        "the model has no chat template; give one (`chat_template`, `--chat-template`), or have plain text completed \
         (`generate`, `POST /v1/completions`, `swarmllm chat --raw`)"
    )]
    Missing,
    /// The facts about the template are malformed.
    #[error("the chat template cannot be read: {0}")]
    Facts(#[from] TokenizerError),
    /// The template is longer than is admitted.
    #[error("the chat template has {bytes} bytes, at most {max} are admitted")]
    TooLong { bytes: usize, max: usize },
    /// The conversation is longer than is admitted.
    #[error(
        "the conversation has {bytes} bytes in {messages} messages, at most {} in {} are admitted",
        MAX_CONVERSATION,
        MAX_MESSAGES
    )]
    Conversation { bytes: usize, messages: usize },
    /// An input has a name that the renderer itself gives.
    #[error("the chat template is given `{name}` already; choose another name")]
    Reserved { name: &'static str },
    /// A role has characters that could be a part of a control token.
    #[error("`{role}` is no role: a role has letters, digits, `_` and `-` only")]
    Role { role: String },
    /// The texts use characters of both private planes of Unicode, of which a rendering needs one.
    #[error("the texts use both private planes of Unicode, of which one is admitted")]
    PrivatePlanes,
    /// An input nests deeper than is admitted.
    #[error("it nests deeper than {} levels", MAX_NESTED)]
    Nested { input: &'static str },
    /// The template is not in the template language.
    #[error("the chat template cannot be compiled: {reason}")]
    Syntax { reason: String },
    /// The template uses a part of the language that is not admitted.
    #[error("the chat template uses what is not admitted in one: {what}")]
    Unsupported { what: &'static str },
    /// Rendering took more steps than are admitted.
    #[error("the chat template does more work than is admitted")]
    OutOfFuel,
    /// Rendering built more than is admitted.
    #[error("the chat template builds more than {max} characters")]
    TooLarge { max: usize },
    /// The template itself refuses the conversation.
    #[error("the chat template refuses the conversation: {message}")]
    Raised { message: String },
    /// The template fails on the conversation.
    #[error("the chat template fails: {reason}")]
    Render { reason: String },
    /// The thread that renders could not be started, or ended by a defect of ours.
    #[error("the chat template could not be run")]
    Thread,
}

impl TemplateError {
    /// The kind that crosses borders.
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

    /// The field of a request that is to blame, by its name in C and Python.
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
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}
