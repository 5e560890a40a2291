//! Rendering of conversations: choice and inputs of the chat template.

use std::sync::Arc;

use crate::base::{ErrorKind, Fault};
use crate::model::chat::{ChatMessage, ChatTemplate, MAX_CONVERSATION, TemplateError, TemplateInputs};
use crate::model::tokenizer::{MarkedText, TokenizerError};
use crate::node::models::examine::TEMPLATE_HINT;
use crate::node::models::loaded::LoadedModel;

/// A conversation to answer.
pub(crate) struct Conversation {
    pub messages: Vec<ChatMessage>,
    pub inputs: TemplateInputs,
    /// Template that replaces the model's.
    pub template: Option<Arc<str>>,
}

impl Conversation {
    /// Total bytes. Refuses a conversation without messages and invalid inputs.
    pub fn bytes(&self) -> Result<usize, Fault> {
        if self.messages.is_empty() {
            let fault = Fault::new(ErrorKind::InvalidArgument, "is empty; a conversation has at least one");
            return Err(fault.about("messages"));
        }
        let messages: usize = self.messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let template = self.template.as_ref().map_or(0, |template| template.len());
        Ok(messages + template + self.inputs.check().map_err(refuse)?)
    }

    /// Renders the conversation for a model with a limit of `max_tokens`. Blocks for at most about a second.
    pub fn render(&self, model: &LoadedModel, max_tokens: usize) -> Result<MarkedText, Fault> {
        let Self { messages, inputs, template } = self;
        // Templates refuse longer conversations; the context's limit is the error that a caller can act on.
        let texts = || messages.iter().map(|message| message.content.as_str());
        if texts().map(str::len).sum::<usize>() > MAX_CONVERSATION && model.tokenizer.exceeds(texts(), max_tokens) {
            let error = TokenizerError::TooManyTokens { max: max_tokens };
            return Err(Fault::new(error.kind(), error).about("messages"));
        }
        match template {
            Some(source) => {
                let tokenizer = &model.tokenizer;
                let text = |token: Option<u32>| token.and_then(|token| tokenizer.token_text(token)).unwrap_or_default();
                let template = ChatTemplate::from_source(source, text(tokenizer.bos()), text(tokenizer.eos()));
                let rendered = template.and_then(|template| template.render(messages, inputs, true));
                rendered.map_err(|error| refuse_with(error, "it was given as `chat_template`"))
            }
            None => {
                let template = model.template.as_ref().map_err(|error| refuse_with(error.clone(), TEMPLATE_HINT))?;
                template.render(messages, inputs, true).map_err(|error| refuse_with(error, TEMPLATE_HINT))
            }
        }
    }
}

/// The fault of a template; `hint` says how to replace it.
fn refuse_with(error: TemplateError, hint: &str) -> Fault {
    match error.kind() {
        // `Missing` has the hint already.
        ErrorKind::BadTemplate if error != TemplateError::Missing => {
            let fault = Fault::new(ErrorKind::BadTemplate, format!("{error}; {hint}"));
            error.field().into_iter().fold(fault, Fault::of_field)
        }
        _ => refuse(error),
    }
}

fn refuse(error: TemplateError) -> Fault {
    let fault = Fault::new(error.kind(), &error);
    error.field().into_iter().fold(fault, Fault::about)
}
