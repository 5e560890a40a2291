//! Conversations made texts of: which template is used, and what it is given.

use std::sync::Arc;

use crate::base::{ErrorKind, Fault};
use crate::model::chat::{ChatMessage, ChatTemplate, MAX_CONVERSATION, TemplateError, TemplateInputs};
use crate::model::tokenizer::{MarkedText, TokenizerError};
use crate::node::models::examine::ANOTHER;
use crate::node::models::loaded::LoadedModel;

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
            let fault = Fault::new(ErrorKind::InvalidArgument, "is empty; a conversation has at least one");
            return Err(fault.about("messages"));
        }
        let messages: usize = self.messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let own = self.own.as_ref().map_or(0, |template| template.len());
        Ok(messages + own + self.inputs.check().map_err(refuse)?)
    }

    /// The text that it is for a model, of which `most` tokens are read. Blocks, for about a second at most.
    pub fn render(&self, model: &LoadedModel, most: usize) -> Result<MarkedText, Fault> {
        let Self { messages, inputs, own } = self;
        // No template takes more. That the context does not either is what a caller can do something about.
        let texts = || messages.iter().map(|message| message.content.as_str());
        if texts().map(str::len).sum::<usize>() > MAX_CONVERSATION && model.tokenizer.exceeds(texts(), most) {
            let error = TokenizerError::TooManyTokens { max: most };
            return Err(Fault::new(error.kind(), error).about("messages"));
        }
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

/// Refuses what a template has done; `help` says what can be done about the template.
fn refuse_with(error: TemplateError, help: &str) -> Fault {
    match error.kind() {
        // It says so itself.
        ErrorKind::BadTemplate if error != TemplateError::Missing => {
            let fault = Fault::new(ErrorKind::BadTemplate, format!("{error}; {help}"));
            error.field().into_iter().fold(fault, Fault::of_field)
        }
        _ => refuse(error),
    }
}

fn refuse(error: TemplateError) -> Fault {
    let fault = Fault::new(error.kind(), &error);
    error.field().into_iter().fold(fault, Fault::about)
}
