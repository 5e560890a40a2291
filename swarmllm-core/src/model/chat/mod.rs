//! Chat templates: render a conversation in the format that the model was trained on.
//!
//! Owns: the rendering of `tokenizer.chat_template`. Promises: time and memory are bounded for any template and any
//! conversation; a failure is a typed error. Refuses: inventing a template for a model without one, and parts of the
//! language that chats do not need (include, import, extends, blocks, recursive loops).
//!
//! Templates are untrusted programs; [`bytecode`] says how they are bounded. The texts of a request are untrusted too:
//! [`taint`] tracks them through the rendering, so that no control token is read in them.

mod arguments;
mod builtins;
mod bytecode;
mod checks;
mod clock;
mod context;
mod error;
mod filters;
mod format;
mod inputs;
mod json;
mod limits;
mod meter;
mod methods;
mod operators;
mod python;
mod taint;
mod values;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::civil::DateTime;
use minijinja::machinery::{eval, make_string_output};
use minijinja::{AutoEscape, Environment, ErrorKind as JinjaKind, Value};
use serde::{Deserialize, Serialize};

use crate::model::Fact;
use crate::model::tokenizer::{Facts, MAX_TOKENS, MarkedText, TokenizerError};
use context::RenderContext;
pub use error::TemplateError;
use error::{MAX_REASON, cut};
pub use inputs::TemplateInputs;
pub use limits::{MAX_BUILT_CHARS, MAX_CONVERSATION, MAX_MESSAGES, MAX_TEMPLATE};
use meter::{Meter, StopReason};
use taint::Taint;
use values::Dict;

/// Instructions of one rendering.
pub const FUEL: u64 = 1_000_000;
/// Nested frames: loops, and macros that call macros.
const MAX_FRAMES: usize = 256;
/// Stack of the rendering thread, in bytes. The parser and the compiler recurse as deep as [`bytecode`] admits.
const STACK: usize = 32 << 20;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// The speaker: `system`, `user`, `assistant`.
    pub role: String,
    /// The text.
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
    /// The template in the model's metadata. Compiles it once and returns the compiler's error.
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
        on_own_stack(|| bytecode::compile(&bytecode::prepare(&template.source)?).map(drop))?;
        Ok(template)
    }

    /// A template of the host's own; `bos` and `eos` are the texts of the model's begin and end tokens. Compiles it
    /// once and returns the compiler's error.
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate, TemplateError> {
        let template = ChatTemplate { source: source.into(), bos: bos.into(), eos: eos.into() };
        on_own_stack(|| bytecode::compile(&bytecode::prepare(&template.source)?).map(drop))?;
        Ok(template)
    }

    /// The template's source.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation; with `add_generation_prompt` the text ends where the answer begins. Blocks for at most
    /// about a second; runs on its own thread.
    ///
    /// Many templates write the begin token themselves. [`super::tokenizer::Tokenizer::encode_rendered`] does not add a
    /// second one.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        inputs: &TemplateInputs,
        add_generation_prompt: bool,
    ) -> Result<MarkedText, TemplateError> {
        self.render_at(messages, inputs, add_generation_prompt, clock::local(SystemTime::now()))
    }

    fn render_at(
        &self,
        messages: &[ChatMessage],
        inputs: &TemplateInputs,
        prompt: bool,
        now: DateTime,
    ) -> Result<MarkedText, TemplateError> {
        let size: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        let bytes = size.saturating_add(inputs.check()?);
        if bytes > MAX_CONVERSATION || messages.len() > MAX_MESSAGES {
            return Err(TemplateError::Conversation { bytes, messages: messages.len() });
        }
        let taint = self.taint(messages, inputs)?;
        on_own_stack(|| self.run(messages, inputs, prompt, now, taint))
    }

    /// The taint of the request's texts.
    fn taint(&self, messages: &[ChatMessage], inputs: &TemplateInputs) -> Result<Taint, TemplateError> {
        if inputs.parse_content {
            return Ok(Taint::NONE);
        }
        let odd = |role: &str| role.chars().any(|at| !at.is_alphanumeric() && at != '_' && at != '-');
        if let Some(message) = messages.iter().find(|message| odd(&message.role)) {
            return Err(TemplateError::Role { role: cut(&message.role, MAX_REASON).to_owned() });
        }
        let mut texts = vec![&*self.source, &*self.bos, &*self.eos];
        texts.extend(messages.iter().map(|message| message.content.as_str()));
        texts.extend(inputs.texts());
        Taint::unused_by(&texts).ok_or(TemplateError::PrivatePlanes)
    }

    fn run(
        &self,
        messages: &[ChatMessage],
        inputs: &TemplateInputs,
        prompt: bool,
        now: DateTime,
        taint: Taint,
    ) -> Result<MarkedText, TemplateError> {
        let prepared = bytecode::prepare(&self.source)?;
        let instructions = bytecode::compile(&prepared)?;
        let context = Arc::new(RenderContext { meter: Meter::new(), taint });
        let mut env: Environment<'_> = builtins::environment(&context, now);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(MAX_FRAMES);
        env.set_debug(false);
        let own = [
            ("messages", messages.iter().map(|message| message_value(message, taint)).collect::<Value>()),
            ("add_generation_prompt", Value::from(prompt)),
            ("bos_token", Value::from(&*self.bos)),
            ("eos_token", Value::from(&*self.eos)),
        ];
        let root = Value::from_pairs(inputs.variables(taint).chain(own));
        let (blocks, mut text) = (BTreeMap::new(), String::new());
        let done =
            eval(&env, &instructions, root, &blocks, &mut make_string_output(&mut text), AutoEscape::None).map(drop);
        match (done, context.meter.stopped()) {
            (_, Some(StopReason::Raised(message))) => Err(TemplateError::Raised { message }),
            (_, Some(StopReason::Unsupported(what))) => Err(TemplateError::Unsupported { what }),
            (_, Some(StopReason::Memory)) => Err(TemplateError::TooLarge { max: MAX_BUILT_CHARS }),
            (_, Some(StopReason::Work)) => Err(TemplateError::OutOfFuel),
            (Err(error), None) if error.kind() == JinjaKind::OutOfFuel => Err(TemplateError::OutOfFuel),
            (Err(error), None) => {
                Err(TemplateError::Render { reason: cut(&taint.plain(&error.to_string()), MAX_REASON).to_owned() })
            }
            (Ok(()), None) => Ok(taint.resolve(text)),
        }
    }
}

/// Runs `work` on a thread whose stack suffices for every admitted template.
fn on_own_stack<T: Send>(work: impl FnOnce() -> Result<T, TemplateError> + Send) -> Result<T, TemplateError> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat-template".into()).stack_size(STACK);
        let running = thread.spawn_scoped(scope, work).map_err(|_| TemplateError::Thread)?;
        running.join().unwrap_or(Err(TemplateError::Thread))
    })
}

#[cfg(test)]
mod tests;

/// A message as templates see it, with tainted content.
fn message_value(message: &ChatMessage, taint: Taint) -> Value {
    let content = taint.mark(&message.content);
    let pairs = [("role", Value::from(&*message.role)), ("content", Value::from(content))];
    Dict::of(pairs.map(|(name, value)| (Value::from(name), value)), taint)
}
