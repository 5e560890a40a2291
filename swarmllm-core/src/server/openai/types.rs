//! What a chat request may say. Every field either acts or is refused by name, but for those that are accepted without effect.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::choices::Asked;
use super::format::ResponseFormat;
use super::request::{Absent, Ask, NotStored, ServiceTier, Tokens, body};
use crate::base::json::Whole;
use crate::node::{ChatMessage, ChatRequest, MAX_ALTERNATIVES, TemplateInputs};
use crate::server::reject::Reject;

/// Most messages of one request.
const MAX_MESSAGES: usize = 4096;
/// Longest name of a tool, in bytes; OpenAI's are of at most 64.
const MAX_TOOL_NAME: usize = 64;

body! {
    /// The body of `POST /v1/chat/completions`.
    #[expect(dead_code, reason = "fields that must be absent, or have no effect, are only named")]
    pub(crate) struct ChatBody {
        messages: Vec<Message>,
        max_completion_tokens: Option<Tokens>,
        logprobs: Option<bool>,
        top_logprobs: Option<Whole<0, MAX_ALTERNATIVES>>,
        response_format: Option<ResponseFormat>,
        /// They reach the chat template. A call that the model writes is text of the answer, as the model writes it.
        tools: Option<Vec<Value>>,
        tool_choice: Option<ToolChoice>,
        /// Reaches the chat template, by its name.
        reasoning_effort: Option<Effort>,
        /// As other servers have it: documents for the chat template.
        documents: Option<Vec<Value>>,
        /// As other servers have it: variables of the chat template.
        chat_template_kwargs: Option<Map<String, Value>>,
        audio: Absent,
        function_call: Absent,
        functions: Absent,
        modalities: Absent,
        prediction: Absent,
        /// Accepted without effect, like all up to `user`. This one only where there are no tools.
        parallel_tool_calls: Option<bool>,
        metadata: Option<Map<String, Value>>,
        prompt_cache_key: Option<String>,
        safety_identifier: Option<String>,
        service_tier: Option<ServiceTier>,
        store: Option<NotStored>,
        user: Option<String>,
        verbosity: Absent,
        web_search_options: Absent,
    }
}

/// Whether the model is told of its tools. A call cannot be forced here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum ToolChoice {
    Auto,
    None,
}

/// How hard the model is to think, for templates that can say it.
#[derive(Debug, Clone, Copy, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Effort {
    None,
    Minimal,
    Low,
    Medium,
    High,
    XHigh,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "fields that must be absent, or have no effect, are only named")]
struct Message {
    role: Role,
    #[serde(deserialize_with = "content")]
    content: Option<String>,
    /// Accepted without effect.
    name: Option<String>,
    refusal: Absent,
    annotations: Absent,
    audio: Absent,
    function_call: Absent,
    tool_call_id: Absent,
    tool_calls: Absent,
}

#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    /// What newer clients call the system.
    Developer,
    User,
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    #[serde(rename = "type")]
    _kind: PartKind,
    text: String,
}

#[derive(Debug, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum PartKind {
    Text,
}

/// Text, or parts of text, which are joined by line feeds; `null` too, which clients send for an answer without text.
struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Option<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text, or a list of text parts")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Option<String>, E> {
        Ok(None)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Option<String>, E> {
        Ok(Some(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Option<String>, A::Error> {
        let mut text = String::new();
        while let Some(part) = parts.next_element::<Part>()? {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&part.text);
        }
        Ok(Some(text))
    }
}

fn content<'de, D: Deserializer<'de>>(json: D) -> Result<Option<String>, D::Error> {
    json.deserialize_any(ContentVisitor)
}

impl ChatBody {
    /// Checks every bound and gives what the node understands.
    pub(crate) fn check(mut self) -> Result<Ask, Reject> {
        let mut checked = self.common().check()?;
        if self.messages.is_empty() || self.messages.len() > MAX_MESSAGES {
            return Err(Reject::field("messages", format!("must be 1 to {MAX_MESSAGES} messages")));
        }
        match (checked.options.max_tokens, self.max_completion_tokens) {
            (_, None) => {}
            (Some(_), Some(_)) => {
                return Err(Reject::field("max_tokens", "give it or `max_completion_tokens`, not both"));
            }
            (None, Some(given)) => checked.options.max_tokens = Some(given.0),
        }
        checked.options.logprobs = self.logprobs()?;
        if self.parallel_tool_calls.is_some() && self.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
            return Err(Reject::field("parallel_tool_calls", "is only accepted where there are no `tools`"));
        }
        let silent = |message: &Message| message.content.is_none() && !matches!(message.role, Role::Assistant);
        if let Some(at) = self.messages.iter().position(silent) {
            return Err(Reject::field(format!("messages[{at}].content"), "must be text, or a list of text parts"));
        }
        let inputs = self.inputs()?;
        checked.options.constraint = self.response_format.map(ResponseFormat::constraint).transpose()?.flatten();
        let message = |message: Message| ChatMessage {
            role: message.role.name().to_owned(),
            content: message.content.unwrap_or_default(),
        };
        let messages = self.messages.into_iter().map(message).collect();
        Ok(checked
            .ask(|model, options| Asked::Chat(ChatRequest { model, messages, options, inputs, chat_template: None })))
    }

    /// How many alternatives to tell beside each token; `None` where nothing is to be told.
    fn logprobs(&self) -> Result<Option<u32>, Reject> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (false, Some(_)) => Err(Reject::field("top_logprobs", "is only accepted where `logprobs` is true")),
            (true, asked) => Ok(Some(asked.map_or(0, |asked| asked.0))),
            (false, None) => Ok(None),
        }
    }

    /// What the chat template is given; how much of it there may be the node checks.
    fn inputs(&mut self) -> Result<TemplateInputs, Reject> {
        let mut kwargs = self.chat_template_kwargs.take().unwrap_or_default();
        if let Some(effort) = self.reasoning_effort {
            let effort = serde_json::to_value(effort).map_err(|cause| Reject::field("reasoning_effort", cause))?;
            if kwargs.insert("reasoning_effort".to_owned(), effort).is_some() {
                return Err(Reject::field("reasoning_effort", "is in `chat_template_kwargs` too"));
            }
        }
        let tools = self.tools.take().unwrap_or_default();
        if let Some(at) = tools.iter().position(|tool| !is_function(tool)) {
            let why = format!("must be a function with a name of 1 to {MAX_TOOL_NAME} bytes");
            return Err(Reject::field(format!("tools[{at}]"), why));
        }
        let told = self.tool_choice != Some(ToolChoice::None);
        let tools = if told { tools } else { Vec::new() };
        let documents = self.documents.take().unwrap_or_default();
        Ok(TemplateInputs { tools, documents, kwargs, ..TemplateInputs::default() })
    }
}

/// Whether a tool is one of OpenAI's functions, which is what chat templates know.
fn is_function(tool: &Value) -> bool {
    let name = tool.pointer("/function/name").and_then(Value::as_str);
    tool.get("type").and_then(Value::as_str) == Some("function")
        && name.is_some_and(|name| (1..=MAX_TOOL_NAME).contains(&name.len()))
}
