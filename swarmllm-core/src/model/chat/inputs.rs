//! The variables of a template beside the messages.

use minijinja::Value;
use serde::{Deserialize, Serialize};

use super::error::{KWARGS, TemplateError};
use super::limits::MAX_NESTED;
use super::taint::Taint;
use super::values::Dict;

/// Variables of the renderer, which `kwargs` cannot set.
const RESERVED: [&str; 6] = ["messages", "add_generation_prompt", "bos_token", "eos_token", "tools", "documents"];
/// Cost of a value beside its text: about its size in memory.
const VALUE_COST: usize = 64;

/// Variables of a template beside the messages; none by default.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TemplateInputs {
    /// Tools that the model may call, in the shape of OpenAI's `tools`. An empty list is `none` in the template.
    pub tools: Vec<serde_json::Value>,
    /// Documents for the answer. An empty list is `none` in the template.
    pub documents: Vec<serde_json::Value>,
    /// Further variables by name (`enable_thinking`).
    pub kwargs: serde_json::Map<String, serde_json::Value>,
    /// Whether control tokens are read in the request's texts too. A text can then forge turns of other speakers.
    pub parse_content: bool,
}

impl TemplateInputs {
    /// The size of the inputs, in bytes. Refuses reserved names and deep nesting.
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

    /// All texts of the inputs.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        texts(self.tools.iter().chain(&self.documents).chain(self.kwargs.values()))
    }

    /// The variables of the template, tainted.
    pub(super) fn variables(&self, taint: Taint) -> impl Iterator<Item = (&str, Value)> {
        let value = move |json: &serde_json::Value| value(json, taint, taint);
        let list = |values: &[serde_json::Value]| match values {
            [] => Value::from(()),
            values => values.iter().map(value).collect(),
        };
        let given = [("tools", list(&self.tools)), ("documents", list(&self.documents))];
        given.into_iter().chain(self.kwargs.iter().map(move |(name, given)| (name.as_str(), value(given))))
    }
}

/// The texts of the values, keys included.
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

/// The size of a value, in bytes; `None` where it nests deeper than `depth`.
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

/// A value as templates see it. `taint` taints its texts; `all` is the rendering's taint, by which maps find keys. The
/// caller has bounded the nesting with [`size`].
pub fn value(json: &serde_json::Value, taint: Taint, all: Taint) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(flag) => Value::from(*flag),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(whole), _) => Value::from(whole),
            (None, Some(whole)) => Value::from(whole),
            (None, None) => Value::from(number.as_f64()),
        },
        Json::String(text) => Value::from(taint.mark(text)),
        Json::Array(items) => items.iter().map(|item| value(item, taint, all)).collect(),
        Json::Object(fields) => {
            let pairs = fields.iter().map(|(name, item)| (Value::from(taint.mark(name)), value(item, taint, all)));
            Dict::of(pairs, all)
        }
    }
}
