//! Conversations made texts of: which template is used, and what it is given.

use std::sync::Arc;

use crate::base::{ErrorKind, Fault};
use crate::model::chat::{ChatMessage, ChatTemplate, TemplateError, TemplateInputs};
use crate::model::tokenizer::MarkedText;
use crate::node::loaded::LoadedModel;

/// A conversation that is to be answered.
pub(crate) struct Conversation {
    pub messages: Vec<ChatMessage>,
    pub inputs: TemplateInputs,
    /// A template in the place of the model's.
    pub own: Option<Arc<str>>,
}

impl Conversation {
    /// Bytes of all of it. Refuses a conversation without messages, and inputs that no template may have.
    pub fn bytes(&self) -> Result<usize, Fault> {
        if self.messages.is_empty() {
            return Err(Fault::new(ErrorKind::InvalidArgument, "`messages` is empty; a conversation has at least one"));
        }
        let messages: usize = self.messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let own = self.own.as_ref().map_or(0, |template| template.len());
        Ok(messages + own + self.inputs.check().map_err(refuse)?)
    }

    /// The text that it is for a model. Blocks, for about a second at most.
    pub fn render(&self, model: &LoadedModel) -> Result<MarkedText, Fault> {
        let Self { messages, inputs, own } = self;
        match own {
            Some(source) => {
                let tokenizer = &model.tokenizer;
                let text = |token: Option<u32>| token.and_then(|token| tokenizer.token_text(token)).unwrap_or_default();
                let template = ChatTemplate::from_source(source, text(tokenizer.bos()), text(tokenizer.eos()));
                let rendered = template.and_then(|template| template.render(messages, inputs, true));
                rendered.map_err(|error| refuse_with(error, "it was given as `chat_template`"))
            }
            None => {
                let template = model.template.as_ref().map_err(|error| refuse_with(error.clone(), ANOTHER))?;
                template.render(messages, inputs, true).map_err(|error| refuse_with(error, ANOTHER))
            }
        }
    }
}

/// What helps where a model's template does not serve.
pub(super) const ANOTHER: &str = "another may be given (`chat_template`, `--chat-template`)";

/// Refuses what a template has done; `help` says what can be done about the template.
fn refuse_with(error: TemplateError, help: &str) -> Fault {
    match error.kind() {
        // It says so itself.
        ErrorKind::BadTemplate if error != TemplateError::Missing => {
            Fault::new(ErrorKind::BadTemplate, format!("{error}; {help}"))
        }
        _ => refuse(error),
    }
}

fn refuse(error: TemplateError) -> Fault {
    Fault::new(error.kind(), error)
}
