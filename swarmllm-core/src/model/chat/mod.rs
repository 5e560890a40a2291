//! Chat templates: a conversation as the text that a model was trained on.
//!
//! Owns: the rendering of `tokenizer.chat_template`. Promises: rendering is bounded in time and memory whatever the
//! template and the conversation are; a template that cannot be rendered gives a typed error. Refuses: guessing a
//! template where the model has none, and parts of the template language that chats do not need (include, import,
//! extends, blocks, recursive loops).
//!
//! Templates are foreign programs. How they are kept in bounds is told in [`program`]. The texts that a request brings
//! are foreign, too: what comes of them is marked in the result ([`shadow`]), so that no control token is read in it.

mod builtins;
mod checks;
mod clock;
mod error;
mod filters;
mod format;
mod given;
mod inputs;
mod json;
mod limits;
mod meter;
mod methods;
mod operators;
mod program;
mod python;
mod rendering;
mod shadow;
mod values;
mod zone;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use minijinja::machinery::{eval, make_string_output};
use minijinja::{AutoEscape, Environment, ErrorKind as JinjaKind, Value};
use serde::{Deserialize, Serialize};

use crate::model::Fact;
use crate::model::tokenizer::{Facts, MAX_TOKENS, MarkedText, TokenizerError};
pub use error::TemplateError;
use error::{MAX_REASON, cut};
pub use inputs::TemplateInputs;
pub use limits::{MAX_BUILT, MAX_CONVERSATION, MAX_MESSAGES, MAX_TEMPLATE};
use meter::{Meter, Stop};
use rendering::Rendering;
use shadow::Shadow;
use values::Dict;

/// Instructions that one rendering may run.
pub const FUEL: u64 = 1_000_000;
/// Nested frames: loops, and macros that call macros.
const MAX_FRAMES: usize = 256;
/// Stack of the thread that renders. Parser and compiler recurse as deep as [`program`] admits.
const STACK: usize = 32 << 20;
/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    bos: Arc<str>,
    eos: Arc<str>,
}

impl ChatTemplate {
    /// The template that the facts hold; it is compiled once to see that it can be.
    pub fn from_facts(facts: &[Fact]) -> Result<ChatTemplate, TemplateError> {
        let facts = Facts(facts);
        let source = facts.string("tokenizer.chat_template")?.ok_or(TemplateError::Missing)?;
        let tokens = facts.strings("tokenizer.ggml.tokens", MAX_TOKENS)?.unwrap_or_default();
        let text = |key| -> Result<Arc<str>, TokenizerError> {
            let id = facts.u32(key)?.and_then(|id| usize::try_from(id).ok());
            Ok(id.and_then(|id| tokens.get(id)).copied().unwrap_or_default().into())
        };
        let (bos, eos) = (text("tokenizer.ggml.bos_token_id")?, text("tokenizer.ggml.eos_token_id")?);
        let template = ChatTemplate { source: source.into(), bos, eos };
        on_own_stack(|| program::compile(&program::prepare(&template.source)?).map(drop))?;
        Ok(template)
    }

    /// A template of the host's own, for a model whose begin and end tokens have these texts; compiled once to see that it
    /// can be.
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        let template = ChatTemplate { source: source.into(), bos: bos.into(), eos: eos.into() };
        on_own_stack(|| program::compile(&program::prepare(&template.source)?).map(drop))?;
        Ok(template)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where the answer begins. Blocks for at most
    /// about a second; runs on a thread of its own.
    ///
    /// Many templates write the begin token themselves: encode the text so that it is not there twice
    /// ([`super::tokenizer::Tokenizer::encode_rendered`]).
    pub fn render(
        &self,
        messages: &[ChatMessage],
        inputs: &TemplateInputs,
        add_generation_prompt: bool,
    ) -> Result<MarkedText, TemplateError> {
        self.render_at(messages, inputs, add_generation_prompt, zone::local(SystemTime::now()))
    }

    fn render_at(
        &self,
        messages: &[ChatMessage],
        inputs: &TemplateInputs,
        prompt: bool,
        now: SystemTime,
    ) -> Result<MarkedText, TemplateError> {
        let talk: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let bytes = talk.saturating_add(inputs.check()?);
        if bytes > MAX_CONVERSATION || messages.len() > MAX_MESSAGES {
            return Err(TemplateError::Conversation { bytes, messages: messages.len() });
        }
        let shadow = self.shadow(messages, inputs)?;
        on_own_stack(|| self.run(messages, inputs, prompt, now, shadow))
    }

    /// What tells the texts of a request from the template's own.
    fn shadow(&self, messages: &[ChatMessage], inputs: &TemplateInputs) -> Result<Shadow, TemplateError> {
        if inputs.parse_content {
            return Ok(Shadow::NONE);
        }
        let odd = |role: &str| role.chars().any(|at| !at.is_alphanumeric() && at != '_' && at != '-');
        if let Some(message) = messages.iter().find(|message| odd(&message.role)) {
            return Err(TemplateError::Role { role: cut(&message.role, MAX_REASON).to_owned() });
        }
        let mut texts = vec![&*self.source, &*self.bos, &*self.eos];
        texts.extend(messages.iter().map(|message| message.content.as_str()));
        texts.extend(inputs.texts());
        Shadow::beside(&texts).ok_or(TemplateError::PrivatePlanes)
    }

    fn run(
        &self,
        messages: &[ChatMessage],
        inputs: &TemplateInputs,
        prompt: bool,
        now: SystemTime,
        shadow: Shadow,
    ) -> Result<MarkedText, TemplateError> {
        let prepared = program::prepare(&self.source)?;
        let instructions = program::compile(&prepared)?;
        let rendering = Arc::new(Rendering { meter: Meter::new(), shadow });
        let mut env: Environment<'_> = builtins::environment(&rendering, now);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(MAX_FRAMES);
        env.set_debug(false);
        let own = [
            ("messages", messages.iter().map(|message| message_value(message, shadow)).collect::<Value>()),
            ("add_generation_prompt", Value::from(prompt)),
            ("bos_token", Value::from(&*self.bos)),
            ("eos_token", Value::from(&*self.eos)),
        ];
        let root = Value::from_pairs(inputs.variables(shadow).chain(own));
        let (blocks, mut text) = (BTreeMap::new(), String::new());
        let done =
            eval(&env, &instructions, root, &blocks, &mut make_string_output(&mut text), AutoEscape::None).map(drop);
        match (done, rendering.meter.stopped()) {
            (_, Some(Stop::Raised(message))) => Err(TemplateError::Raised { message }),
            (_, Some(Stop::Unsupported(what))) => Err(TemplateError::Unsupported { what }),
            (_, Some(Stop::Built)) => Err(TemplateError::TooLarge { max: MAX_BUILT }),
            (_, Some(Stop::Work)) => Err(TemplateError::OutOfFuel),
            (Err(error), None) if error.kind() == JinjaKind::OutOfFuel => Err(TemplateError::OutOfFuel),
            (Err(error), None) => {
                Err(TemplateError::Render { reason: cut(&shadow.plain(&error.to_string()), MAX_REASON).to_owned() })
            }
            (Ok(()), None) => Ok(shadow.resolve(text)),
        }
    }
}

/// Runs `work` on a thread whose stack suffices for any template that is admitted.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, TemplateError> + Send) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat-template".into()).stack_size(STACK);
        let running = thread.spawn_scoped(scope, work).map_err(|_| TemplateError::Thread)?;
        running.join().unwrap_or(Err(TemplateError::Thread))
    })
}

#[cfg(test)]
mod tests;

/// A message as templates see it, its content in shadows.
fn message_value(message: &ChatMessage, shadow: Shadow) -> Value {
    let content = shadow.mark(&message.content);
    let pairs = [("role", Value::from(&*message.role)), ("content", Value::from(content))];
    Dict::of(pairs.map(|(name, value)| (Value::from(name), value)), shadow)
}
