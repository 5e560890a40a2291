//! JSON options of calls. Keys mirror the Rust fields; unknown keys are refused, `null` means "not given".

use std::time::Duration;

use serde_json::{Map, Value};
use swarmllm_core::base::{Fault, LayerRange};
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{ChatMessage, ChatRequest, GenerateOptions, ImportOptions, Parts, TemplateInputs, WebSource};

use crate::status::refuse;

/// Messages of a chat: `[{"role": "user", "content": "..."}]`.
pub fn messages(text: &str) -> Result<Vec<ChatMessage>, Fault> {
    serde_json::from_str(text).map_err(|cause| refuse(format_args!("`messages` is not a list of messages: {cause}")))
}

/// A request for an answer to a chat. Its options are those of a generation and, in the same object, what the chat template
/// is given: `tools`, `documents`, `chat_template_kwargs`, `enable_thinking`, `chat_template` and `parse_content`.
pub fn chat(model: &str, messages: &str, options: Option<&str>) -> Result<ChatRequest, Fault> {
    let messages = self::messages(messages)?;
    let mut fields = object(options)?;
    let inputs = inputs(&mut fields)?;
    let chat_template = take(&mut fields, "chat_template")?;
    Ok(ChatRequest { model: model.to_owned(), messages, options: generation(fields)?, inputs, chat_template })
}

fn inputs(fields: &mut Map<String, Value>) -> Result<TemplateInputs, Fault> {
    let mut kwargs: Map<String, Value> = take(fields, "chat_template_kwargs")?.unwrap_or_default();
    if let Some(on) = take::<bool>(fields, "enable_thinking")?
        && kwargs.insert("enable_thinking".to_owned(), Value::Bool(on)).is_some()
    {
        return Err(refuse("`enable_thinking` is given twice"));
    }
    let (tools, documents) = (take(fields, "tools")?, take(fields, "documents")?);
    let (tools, documents) = (tools.unwrap_or_default(), documents.unwrap_or_default());
    let parse_content = take(fields, "parse_content")?.unwrap_or_default();
    Ok(TemplateInputs { tools, documents, kwargs, parse_content })
}

/// Options of a generation; none given means the defaults.
pub fn generate(text: Option<&str>) -> Result<GenerateOptions, Fault> {
    generation(object(text)?)
}

fn generation(mut fields: Map<String, Value>) -> Result<GenerateOptions, Fault> {
    let deadline = take::<u64>(&mut fields, "deadline_ms")?;
    let default = GenerateOptions::default();
    Ok(GenerateOptions {
        max_tokens: take(&mut fields, "max_tokens")?,
        stop: stop(fields.remove("stop"))?,
        deadline: deadline.map(Duration::from_millis),
        exact: take(&mut fields, "exact")?.unwrap_or(default.exact),
        guess: take(&mut fields, "guess")?.unwrap_or(default.guess),
        draft: take(&mut fields, "draft")?,
        stand_by: take(&mut fields, "stand_by")?.unwrap_or(default.stand_by),
        wire: take(&mut fields, "wire")?.unwrap_or(default.wire),
        logprobs: take(&mut fields, "logprobs")?,
        constraint: take(&mut fields, "constraint")?,
        caller: take(&mut fields, "caller")?.unwrap_or(default.caller),
        sampling: sampling(fields)?,
    })
}

/// Options of an import: `name`, `anyway`, and `parts` as in [`parts`].
pub fn import(text: Option<&str>) -> Result<ImportOptions, Fault> {
    kept(object(text)?)
}

/// The same with those of a source on the web.
pub fn import_url(address: &str, text: Option<&str>) -> Result<(WebSource, ImportOptions), Fault> {
    let mut fields = object(text)?;
    let source = source(address, &mut fields)?;
    Ok((source, kept(fields)?))
}

/// A source on the web with its options: `hub` and `token`.
pub fn web(address: &str, text: Option<&str>) -> Result<WebSource, Fault> {
    let mut fields = object(text)?;
    let source = source(address, &mut fields)?;
    no_more(&fields).map(|()| source)
}

fn source(address: &str, fields: &mut Map<String, Value>) -> Result<WebSource, Fault> {
    let mut source = WebSource { token: take(fields, "token")?, ..WebSource::new(address) };
    if let Some(hub) = take(fields, "hub")? {
        source.hub = hub;
    }
    Ok(source)
}

fn kept(mut fields: Map<String, Value>) -> Result<ImportOptions, Fault> {
    let name = take(&mut fields, "name")?;
    let anyway = take(&mut fields, "anyway")?.unwrap_or_default();
    let parts = match fields.remove("parts") {
        None => None,
        Some(Value::Array(parts)) => Some(parts.iter().map(part).collect::<Result<_, _>>()?),
        Some(_) => return Err(refuse("`parts` is not a list")),
    };
    no_more(&fields).map(|()| ImportOptions { name, parts, anyway, progress: None })
}

fn no_more(fields: &Map<String, Value>) -> Result<(), Fault> {
    match fields.keys().next() {
        Some(key) => Err(refuse(format_args!("there is no option `{key}`"))),
        None => Ok(()),
    }
}

/// Which shards: `"all"`, `"coordinator"`, or `{"start": 0, "end": 10, "head": false}`; none given means all.
pub fn parts(text: Option<&str>) -> Result<Parts, Fault> {
    let Some(text) = text else { return Ok(Parts::All) };
    part(&serde_json::from_str(text).map_err(|cause| refuse(format_args!("`parts` is not JSON: {cause}")))?)
}

fn part(value: &Value) -> Result<Parts, Fault> {
    let number = |key| value.get(key).and_then(Value::as_u64).and_then(|number| u32::try_from(number).ok());
    match (value.as_str(), number("start"), number("end")) {
        (Some("all"), ..) => Ok(Parts::All),
        (Some("coordinator"), ..) => Ok(Parts::Coordinator),
        (None, Some(start), Some(end)) => {
            let head = value.get("head").is_some_and(|head| *head == Value::Bool(true));
            Ok(Parts::Stage { layers: LayerRange::new(start, end), head })
        }
        _ => Err(refuse("a part is \"all\", \"coordinator\" or {\"start\": 0, \"end\": 10, \"head\": false}")),
    }
}

fn object(text: Option<&str>) -> Result<Map<String, Value>, Fault> {
    let Some(text) = text else { return Ok(Map::new()) };
    let fields = serde_json::from_str::<Map<String, Value>>(text);
    let fields = fields.map_err(|cause| refuse(format_args!("`options` is not a JSON object: {cause}")))?;
    Ok(fields.into_iter().filter(|(_, value)| !value.is_null()).collect())
}

fn take<T: serde::de::DeserializeOwned>(fields: &mut Map<String, Value>, key: &str) -> Result<Option<T>, Fault> {
    let value = fields.remove(key).map(serde_json::from_value).transpose();
    value.map_err(|cause| refuse(format_args!("option `{key}`: {cause}")))
}

fn stop(value: Option<Value>) -> Result<Vec<String>, Fault> {
    match value {
        None => Ok(Vec::new()),
        Some(Value::String(stop)) => Ok(vec![stop]),
        Some(list) => serde_json::from_value(list).map_err(|cause| refuse(format_args!("option `stop`: {cause}"))),
    }
}

/// Every field that `SamplingParams` has is an option, and nothing else is.
fn sampling(fields: Map<String, Value>) -> Result<SamplingParams, Fault> {
    let odd = |cause: serde_json::Error| refuse(format_args!("sampling options: {cause}"));
    let mut whole = serde_json::to_value(SamplingParams::default()).map_err(odd)?;
    for (key, value) in fields {
        let slot = whole.get_mut(&key);
        *slot.ok_or_else(|| refuse(format_args!("there is no option `{key}`")))? = value;
    }
    serde_json::from_value(whole).map_err(odd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use swarmllm_core::node::Constraint;

    #[test]
    fn options_reach_their_fields_and_null_is_not_given() {
        let text = r#"{"max_tokens": 3, "temperature": 0, "seed": 7, "stop": "x", "deadline_ms": 5, "top_k": null}"#;
        let options = generate(Some(text)).unwrap();
        assert_eq!((options.max_tokens, options.sampling.seed, options.sampling.temperature), (Some(3), Some(7), 0.0));
        assert_eq!(options.sampling.top_k, SamplingParams::default().top_k);
        assert_eq!((options.stop, options.deadline), (vec!["x".to_owned()], Some(Duration::from_millis(5))));
    }

    #[test]
    fn constraints_biases_and_logprobs_are_read() {
        let text = r#"{"logit_bias": {"7": -100}, "typical_p": 0.5, "logprobs": 3, "constraint": {"regex": "a+"}}"#;
        let options = generate(Some(text)).unwrap();
        assert_eq!((options.sampling.logit_bias[&7], options.sampling.typical_p), (-100.0, 0.5));
        assert_eq!((options.logprobs, options.constraint), (Some(3), Some(Constraint::Regex("a+".to_owned()))));
        let forms = [
            (r#"{"constraint": "json_object"}"#, Constraint::JsonObject),
            (r#"{"constraint": {"json_schema": true}}"#, Constraint::JsonSchema(Value::Bool(true))),
            (r#"{"constraint": {"lark": "start: A"}}"#, Constraint::Lark("start: A".to_owned())),
        ];
        for (text, form) in forms {
            assert_eq!(generate(Some(text)).unwrap().constraint, Some(form), "{text}");
        }
    }

    #[test]
    fn what_a_template_is_given_stands_among_the_options_of_a_chat() {
        let messages = r#"[{"role": "user", "content": "x"}]"#;
        let text = r#"{"tools": [{"type": "function"}], "documents": [{"text": "d"}], "enable_thinking": false,
            "chat_template_kwargs": {"reasoning_effort": "low"}, "chat_template": "{{ x }}", "parse_content": true, "max_tokens": 3}"#;
        let request = chat("m", messages, Some(text)).unwrap();
        assert_eq!((request.model.as_str(), request.messages.len(), request.options.max_tokens), ("m", 1, Some(3)));
        assert_eq!((request.inputs.tools.len(), request.inputs.documents.len()), (1, 1));
        let kwargs = serde_json::json!({"reasoning_effort": "low", "enable_thinking": false});
        assert_eq!(Value::Object(request.inputs.kwargs), kwargs);
        assert_eq!((request.chat_template.as_deref(), request.inputs.parse_content), (Some("{{ x }}"), true));
        assert!(!chat("m", messages, None).unwrap().inputs.parse_content);
        let twice = r#"{"enable_thinking": true, "chat_template_kwargs": {"enable_thinking": true}}"#;
        for text in [twice, r#"{"tools": {}}"#, r#"{"enable_thinking": "no"}"#, r#"{"chat_template": 3}"#] {
            assert!(chat("m", messages, Some(text)).is_err(), "{text}");
        }
        assert!(generate(Some(r#"{"tools": []}"#)).is_err(), "a plain text has no template");
    }

    #[test]
    fn unknown_and_mistyped_options_are_refused() {
        let typed = [r#"{"max_tokens": -1}"#, r#"{"stop": 3}"#, r#"{"seed": "x"}"#, r#"{"constraint": "yaml"}"#];
        for text in [r#"{"max_token": 3}"#, "[]", "{", r#"{"logit_bias": {"x": 1}}"#].iter().chain(&typed) {
            assert!(generate(Some(text)).is_err(), "{text}");
        }
        for text in [r#"{"parts": "all"}"#, r#"{"parts": ["half"]}"#, r#"{"nam": "x"}"#] {
            assert!(import(Some(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn a_source_on_the_web_has_its_options_beside_those_of_an_import() {
        let text = r#"{"name": "x", "anyway": true, "token": "t", "hub": "https://example.org"}"#;
        let (source, kept) = import_url("hf:o/r/a.gguf", Some(text)).unwrap();
        assert_eq!((source.address.as_str(), source.hub.as_str()), ("hf:o/r/a.gguf", "https://example.org"));
        assert_eq!((source.token.as_deref(), kept.name.as_deref(), kept.anyway), (Some("t"), Some("x"), true));
        assert!(kept.parts.is_none() && !import(None).unwrap().anyway);
        assert_eq!(web("hf:o/r/a.gguf", None), Ok(WebSource::new("hf:o/r/a.gguf")));
        assert!(web("hf:o/r/a.gguf", Some(text)).is_err() && import(Some(text)).is_err());
    }

    #[test]
    fn parts_are_read() {
        assert_eq!(parts(None), Ok(Parts::All));
        assert_eq!(parts(Some("\"coordinator\"")), Ok(Parts::Coordinator));
        let stage = Parts::Stage { layers: LayerRange::new(1, 3), head: true };
        assert_eq!(parts(Some(r#"{"start": 1, "end": 3, "head": true}"#)), Ok(stage));
        assert!(parts(Some(r#"{"start": 1}"#)).is_err());
    }
}
