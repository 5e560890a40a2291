//! The body of a chat request. Every field has an effect, is refused by name, or is declared as accepted without effect.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::choices::NodeRequest;
use super::format::ResponseFormat;
use super::request::{Absent, CheckedRequest, NotStored, ServiceTier, Tokens, body};
use crate::base::json::BoundedU32;
use crate::node::{ChatMessage, ChatRequest, MAX_ALTERNATIVES, TemplateInputs};
use crate::server::reject::Reject;

/// Maximum number of messages in a request.
const MAX_MESSAGES: usize = 4096;
/// Maximum length of a tool's name in bytes, as at OpenAI.
const MAX_TOOL_NAME: usize = 64;

body! {
    /// The body of `POST /v1/chat/completions`.
    #[expect(dead_code, reason = "fields that must be absent, or have no effect, are only declared")]
    pub(crate) struct ChatBody {
        messages: Vec<Message>,
        max_completion_tokens: Option<Tokens>,
        logprobs: Option<bool>,
        top_logprobs: Option<BoundedU32<0, MAX_ALTERNATIVES>>,
        response_format: Option<ResponseFormat>,
        /// For the chat template. A tool call is part of the answer's text, as the model writes it.
        tools: Option<Vec<Value>>,
        tool_choice: Option<ToolChoice>,
        /// A variable of the chat template.
        reasoning_effort: Option<Effort>,
        /// Documents for the chat template, as in other servers.
        documents: Option<Vec<Value>>,
        /// Variables of the chat template, as in other servers.
        chat_template_kwargs: Option<Map<String, Value>>,
        audio: Absent,
        function_call: Absent,
        functions: Absent,
        modalities: Absent,
        prediction: Absent,
        /// Accepted without effect, like all up to `user`, but only without tools.
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

/// Whether the template receives the tools. Forced calls are not supported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum ToolChoice {
    Auto,
    None,
}

/// Reasoning effort, for templates that support it.
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
#[expect(dead_code, reason = "fields that must be absent, or have no effect, are only declared")]
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
    /// The name of `system` in newer clients.
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

/// Text, or text parts, which are joined by line feeds; or `null`, which clients send for an answer without text.
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
    /// Checks all limits and returns the node's request.
    pub(crate) fn check(mut self) -> Result<CheckedRequest, Reject> {
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
        let without_text = |message: &Message| message.content.is_none() && !matches!(message.role, Role::Assistant);
        if let Some(at) = self.messages.iter().position(without_text) {
            return Err(Reject::field(format!("messages[{at}].content"), "must be text, or a list of text parts"));
        }
        let inputs = self.inputs()?;
        checked.options.constraint = self.response_format.map(ResponseFormat::constraint).transpose()?.flatten();
        let message = |message: Message| ChatMessage {
            role: message.role.name().to_owned(),
            content: message.content.unwrap_or_default(),
        };
        let messages = self.messages.into_iter().map(message).collect();
        Ok(checked.into_request(|model, options| {
            NodeRequest::Chat(ChatRequest { model, messages, options, inputs, chat_template: None })
        }))
    }

    /// The number of alternatives for each token; `None` for no log-probabilities.
    fn logprobs(&self) -> Result<Option<u32>, Reject> {
        match (self.logprobs.unwrap_or(false), self.top_logprobs) {
            (false, Some(_)) => Err(Reject::field("top_logprobs", "is only accepted where `logprobs` is true")),
            (true, asked) => Ok(Some(asked.map_or(0, |asked| asked.0))),
            (false, None) => Ok(None),
        }
    }

    /// Inputs of the chat template. The node checks their size.
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
        let tools = if self.tool_choice == Some(ToolChoice::None) { Vec::new() } else { tools };
        let documents = self.documents.take().unwrap_or_default();
        Ok(TemplateInputs { tools, documents, kwargs, ..TemplateInputs::default() })
    }
}

/// Whether a tool is a function in OpenAI's format, the kind that chat templates support.
fn is_function(tool: &Value) -> bool {
    let name = tool.pointer("/function/name").and_then(Value::as_str);
    tool.get("type").and_then(Value::as_str) == Some("function")
        && name.is_some_and(|name| (1..=MAX_TOOL_NAME).contains(&name.len()))
}
