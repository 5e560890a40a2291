//! JSON options of calls. Keys are those of the Rust fields; unknown keys are errors, `null` means "not given".

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, Unexpected, Visitor};
use serde_json::{Map, Value};
use swarmllm_core::base::json::{self, JsonError};
use swarmllm_core::base::{Fault, LayerRange};
use swarmllm_core::node::{
    ChatMessage, ChatRequest, GenerateOptions, ImportOptions, PartialOptions, Parts, TemplateInputs, WebSource,
};

use crate::status::refuse;

/// Messages of a chat: `[{"role": "user", "content": "..."}]`.
pub fn messages(text: &str) -> Result<Vec<ChatMessage>, Fault> {
    whole(text, "messages")
}

/// A chat request. Its options are those of a generation and, in the same object, the inputs of the chat template: `tools`,
/// `documents`, `chat_template_kwargs`, `enable_thinking`, `chat_template` and `parse_content`.
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
        return Err(unfit(&JsonError::field("enable_thinking", "is in `chat_template_kwargs` too")));
    }
    let (tools, documents) = (take(fields, "tools")?, take(fields, "documents")?);
    let (tools, documents) = (tools.unwrap_or_default(), documents.unwrap_or_default());
    let parse_content = take(fields, "parse_content")?.unwrap_or_default();
    Ok(TemplateInputs { tools, documents, kwargs, parse_content })
}

/// Options of a generation; `None` gives the defaults.
pub fn generate(text: Option<&str>) -> Result<GenerateOptions, Fault> {
    generation(object(text)?)
}

fn generation(fields: Map<String, Value>) -> Result<GenerateOptions, Fault> {
    let options: PartialOptions = json::convert(Value::Object(fields)).map_err(|error| unfit(&error))?;
    Ok(options.complete())
}

/// Options of an import: `name`, `anyway`, and a list `parts` of [`parts`].
pub fn import(text: Option<&str>) -> Result<ImportOptions, Fault> {
    import_options(object(text)?)
}

/// Options of an import and of its source on the web.
pub fn import_url(address: &str, text: Option<&str>) -> Result<(WebSource, ImportOptions), Fault> {
    let mut fields = object(text)?;
    let source = source(address, &mut fields)?;
    Ok((source, import_options(fields)?))
}

/// A source on the web; its options are `hub` and `token`.
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

fn import_options(mut fields: Map<String, Value>) -> Result<ImportOptions, Fault> {
    let name = take(&mut fields, "name")?;
    let anyway = take(&mut fields, "anyway")?.unwrap_or_default();
    let parts = take::<Vec<Part>>(&mut fields, "parts")?;
    let parts = parts.map(|parts| parts.into_iter().map(|part| part.0).collect());
    no_more(&fields).map(|()| ImportOptions { name, parts, anyway, progress: None })
}

fn no_more(fields: &Map<String, Value>) -> Result<(), Fault> {
    match fields.keys().next() {
        Some(key) => Err(unfit(&JsonError::field(key, json::UNKNOWN_FIELD))),
        None => Ok(()),
    }
}

/// Parts of a model: `"all"`, `"coordinator"`, or `{"start": 0, "end": 10, "head": false}`; `None` gives all.
pub fn parts(text: Option<&str>) -> Result<Parts, Fault> {
    text.map_or(Ok(Parts::All), |text| whole::<Part>(text, "parts").map(|part| part.0))
}

struct Part(Parts);

/// The object of a stage.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stage {
    start: u32,
    end: u32,
    head: Option<bool>,
}

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        json.deserialize_any(PartVisitor)
    }
}

struct PartVisitor;

impl<'de> Visitor<'de> for PartVisitor {
    type Value = Part;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#""all", "coordinator" or {"start": 0, "end": 10, "head": false}"#)
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Part, E> {
        match name {
            "all" => Ok(Part(Parts::All)),
            "coordinator" => Ok(Part(Parts::Coordinator)),
            _ => Err(E::invalid_value(Unexpected::Str(name), &self)),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Part, A::Error> {
        let Stage { start, end, head } = Stage::deserialize(MapAccessDeserializer::new(fields))?;
        Ok(Part(Parts::Stage { layers: LayerRange::new(start, end), head: head.unwrap_or_default() }))
    }
}

fn object(text: Option<&str>) -> Result<Map<String, Value>, Fault> {
    let Some(text) = text else { return Ok(Map::new()) };
    let fields: Map<String, Value> = json::parse(text.as_bytes()).map_err(|error| unfit(&error))?;
    Ok(fields.into_iter().filter(|(_, value)| !value.is_null()).collect())
}

/// Reads the JSON of an argument.
fn whole<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, Fault> {
    json::parse(text.as_bytes()).map_err(|error| refuse(error.nested_in(name).sentence(&format!("`{name}`"))))
}

fn take<T: DeserializeOwned>(fields: &mut Map<String, Value>, key: &str) -> Result<Option<T>, Fault> {
    let value = fields.remove(key).map(json::convert).transpose();
    value.map_err(|error| unfit(&error.nested_in(key)))
}

/// The fault of an error in the options.
fn unfit(error: &JsonError) -> Fault {
    refuse(error.sentence("`options`"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use swarmllm_core::engine::sample::SamplingParams;
    use swarmllm_core::node::Constraint;

    #[test]
    fn options_reach_their_fields_and_null_means_not_given() {
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
    fn inputs_of_the_template_are_options_of_a_chat() {
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
    fn an_error_names_the_field_the_wanted_and_the_found_value() {
        let whole = "must be a whole number from 0 to 4294967295, not";
        let tokens = "must be a whole number from 1 to 4294967295, not";
        let table = [
            ("[]", "`options` must be an object, not a list".to_owned()),
            ("{", "`options` is not JSON: it ends too early, at line 1 column 1".to_owned()),
            (r#"{"max_token": 3}"#, "`max_token`: is not known; leave it out".to_owned()),
            (r#"{"max_tokens": "3"}"#, format!("`max_tokens`: {tokens} \"3\"")),
            (r#"{"max_tokens": -1}"#, format!("`max_tokens`: {tokens} -1")),
            (r#"{"max_tokens": 0}"#, format!("`max_tokens`: {tokens} 0")),
            (r#"{"logprobs": 21}"#, "`logprobs`: must be a whole number from 0 to 20, not 21".to_owned()),
            (r#"{"top_k": 5000000000}"#, format!("`top_k`: {whole} 5000000000")),
            (r#"{"logit_bias": {"x": 1}}"#, format!("`logit_bias.x`: {whole} \"x\"")),
            (r#"{"stop": 3}"#, "`stop`: must be text, or a list of at most 16 texts, not 3".to_owned()),
            (r#"{"stop": ["a", 3]}"#, "`stop[1]`: must be text, not 3".to_owned()),
            (r#"{"wire": "f64"}"#, "`wire`: must be one of `f32`, `bf16`, `int8`, not \"f64\"".to_owned()),
            (r#"{"constraint": {"regex": 3}}"#, "`constraint.regex`: must be text, not 3".to_owned()),
            (r#"{"seed": "x"}"#, "`seed`: must be a whole number from 0 to 18446744073709551615, not \"x\"".to_owned()),
        ];
        for (text, sentence) in table {
            assert_eq!(generate(Some(text)).unwrap_err().message(), sentence, "{text}");
        }
        let part = r#"must be "all", "coordinator" or {"start": 0, "end": 10, "head": false}, not"#;
        let table = [
            (r#"{"parts": "all"}"#, "`parts`: must be a list, not \"all\"".to_owned()),
            (r#"{"parts": ["half"]}"#, format!("`parts[0]`: {part} \"half\"")),
            (r#"{"parts": [{"start": 0}]}"#, "`parts[0].end`: is missing".to_owned()),
            (
                r#"{"parts": [{"start": 0, "end": 1, "head": 1}]}"#,
                "`parts[0].head`: must be true or false, not 1".to_owned(),
            ),
            (
                r#"{"parts": [{"start": 0, "end": 1, "hed": true}]}"#,
                "`parts[0].hed`: is not known; leave it out".to_owned(),
            ),
            (r#"{"nam": "x"}"#, "`nam`: is not known; leave it out".to_owned()),
        ];
        for (text, sentence) in table {
            assert_eq!(import(Some(text)).err().unwrap().message(), sentence, "{text}");
        }
        assert_eq!(parts(Some("3")).unwrap_err().message(), format!("`parts`: {part} 3"));
        assert_eq!(messages(r#"[{"role": "user"}]"#).unwrap_err().message(), "`messages[0].content`: is missing");
        assert_eq!(messages("x").unwrap_err().message(), "`messages` is not JSON: expected value at line 1 column 1");
    }

    #[test]
    fn options_of_a_web_source_are_beside_those_of_an_import() {
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
