//! What a conversation brings along for its template beside its messages.

use minijinja::Value;
use serde::{Deserialize, Serialize};

use super::error::{KWARGS, TemplateError};
use super::limits::MAX_NESTED;
use super::shadow::Shadow;
use super::values::Dict;

/// Variables that `kwargs` cannot set: they are the renderer's own.
const RESERVED: [&str; 6] = ["messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"];
/// What a value counts for beside its bytes: about what it takes in memory.
const VALUE_COST: usize = 64;

/// What a template is given beside the messages. The default is nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TemplateInputs {
    /// Tools that the model may call, each in the shape of OpenAI's `tools`. Templates see `none` where there are none.
    pub tools: Vec<serde_json::Value>,
    /// Documents that the answer is grounded on. Templates see `none` where there are none.
    pub documents: Vec<serde_json::Value>,
    /// Further variables of the template, by name (`enable_thinking`).
    pub kwargs: serde_json::Map<String, serde_json::Value>,
    /// Whether control tokens are read in what the request brings, too. Then a text can forge turns of others.
    pub parse_content: bool,
}

impl TemplateInputs {
    /// What the inputs take, in bytes. Refuses names that are taken, and what is nested too deep.
    pub(crate) fn check(&self) -> Result<usize, TemplateError> {
        if let Some(name) = RESERVED.iter().find(|name| self.kwargs.contains_key(**name)) {
            return Err(TemplateError::Reserved { name });
        }
        let tools = self.tools.iter().map(|tool| ("tools", tool));
        let documents = self.documents.iter().map(|document| ("documents", document));
        let kwargs = self.kwargs.values().map(|value| (KWARGS, value));
        let names: usize = self.kwargs.keys().map(String::len).sum();
        tools.chain(documents).chain(kwargs).try_fold(names, |sum, (input, value)| {
            Ok(sum + size(value, MAX_NESTED).ok_or(TemplateError::Nested { input })?)
        })
    }

    /// The texts of the inputs.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        texts(self.tools.iter().chain(&self.documents).chain(self.kwargs.values()))
    }

    /// The variables that a template sees, in shadows.
    pub(super) fn variables(&self, shadow: Shadow) -> impl Iterator<Item = (&str, Value)> {
        let value = move |json: &serde_json::Value| value(json, shadow, shadow);
        let list = |values: &[serde_json::Value]| match values {
            [] => Value::from(()),
            values => values.iter().map(value).collect(),
        };
        let given = [("tools", list(&self.tools)), ("documents", list(&self.documents))];
        given.into_iter().chain(self.kwargs.iter().map(move |(name, given)| (name.as_str(), value(given))))
    }
}

/// The texts that these values hold, keys included, in turn.
fn texts<'j>(values: impl Iterator<Item = &'j serde_json::Value>) -> impl Iterator<Item = &'j str> {
    let mut waiting: Vec<&serde_json::Value> = values.collect();
    let mut keys: Vec<&str> = Vec::new();
    std::iter::from_fn(move || {
        loop {
            if let Some(key) = keys.pop() {
                return Some(key);
            }
            match waiting.pop()? {
                serde_json::Value::String(text) => return Some(text),
                serde_json::Value::Array(items) => waiting.extend(items),
                serde_json::Value::Object(fields) => {
                    waiting.extend(fields.values());
                    keys.extend(fields.keys().map(String::as_str));
                }
                _ => (),
            }
        }
    })
}

/// What a value takes, in bytes; `None` where it is nested deeper than `depth`.
pub fn size(value: &serde_json::Value, depth: usize) -> Option<usize> {
    use serde_json::Value as Json;
    let held = match value {
        Json::String(text) => text.len(),
        Json::Array(items) => {
            let deeper = depth.checked_sub(1)?;
            items.iter().try_fold(0, |sum, item| Some(sum + size(item, deeper)?))?
        }
        Json::Object(fields) => {
            let deeper = depth.checked_sub(1)?;
            fields.iter().try_fold(0, |sum, (name, item)| Some(sum + name.len() + size(item, deeper)?))?
        }
        Json::Null | Json::Bool(_) | Json::Number(_) => 0,
    };
    Some(VALUE_COST + held)
}

/// A value as templates see it, its texts in shadows. [`size`] has bounded how deep it nests. Maps find keys by what
/// `all` says of them.
pub fn value(json: &serde_json::Value, shadow: Shadow, all: Shadow) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(whole)) => Value::from(whole),
            (None, None) => Value::from(number.as_f64()),
        },
        Json::String(text) => Value::from(shadow.mark(text)),
        Json::Array(items) => items.iter().map(|item| value(item, shadow, all)).collect(),
        Json::Object(fields) => {
            let pairs = fields.iter().map(|(name, item)| (Value::from(shadow.mark(name)), value(item, shadow, all)));
            Dict::of(pairs, all)
        }
    }
}
