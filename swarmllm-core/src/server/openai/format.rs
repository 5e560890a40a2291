//! `response_format`: the form of an answer.

use serde_json::{Map, Value};

use crate::node::Constraint;
use crate::server::reject::Reject;

/// OpenAI's forms, and grammars in the format of OpenAI's tools.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ResponseFormat {
    #[serde(rename = "type")]
    form: Form,
    json_schema: Option<NamedSchema>,
    grammar: Option<Grammar>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Form {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that conforms to a schema.
    JsonSchema,
    /// A text derived from a grammar.
    Grammar,
}

/// A schema in OpenAI's envelope. Name and description have no effect. Every schema is enforced; `strict` requires a schema
/// of OpenAI's strict mode, see [`strict_fault`].
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NamedSchema {
    #[expect(dead_code, reason = "it does not act")]
    name: Option<String>,
    #[expect(dead_code, reason = "it does not act")]
    description: Option<String>,
    schema: Value,
    strict: Option<bool>,
}

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Grammar {
    syntax: Syntax,
    definition: String,
}

#[derive(Debug, Clone, Copy, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Syntax {
    Lark,
    Regex,
}

impl ResponseFormat {
    /// The node's constraint; `None` for plain text. Refuses a schema outside strict mode if `strict` is true.
    pub(super) fn constraint(self) -> Result<Option<Constraint>, Reject> {
        let Self { form, json_schema, grammar } = self;
        let json_schema = field_of_form("json_schema", json_schema, form == Form::JsonSchema)?;
        let grammar = field_of_form("grammar", grammar, form == Form::Grammar)?;
        let strict = json_schema.as_ref().is_some_and(|named| named.strict == Some(true));
        let constraint = match (json_schema, grammar) {
            (Some(named), _) => Constraint::JsonSchema(named.schema),
            (None, Some(Grammar { syntax: Syntax::Lark, definition })) => Constraint::Lark(definition),
            (None, Some(Grammar { syntax: Syntax::Regex, definition })) => Constraint::Regex(definition),
            (None, None) if form == Form::JsonObject => Constraint::JsonObject,
            (None, None) => return Ok(None),
        };
        // This bounds its size before the checks below.
        constraint.check().map_err(|error| Reject::field("response_format", error))?;
        match &constraint {
            Constraint::JsonSchema(schema) if strict => match strict_fault(schema) {
                Some((path, why)) => Err(Reject::field(format!("{SCHEMA}{path}"), why)),
                None => Ok(Some(constraint)),
            },
            _ => Ok(Some(constraint)),
        }
    }
}

/// Requires a field of a form, and refuses it for other forms.
fn field_of_form<T>(field: &str, given: Option<T>, wanted: bool) -> Result<Option<T>, Reject> {
    let refuse =
        |why: &str| Err(Reject::field(format!("response_format.{field}"), format!("{why} `type` is `{field}`")));
    match (given.is_some(), wanted) {
        (false, true) => refuse("is missing, where"),
        (true, false) => refuse("is only accepted where"),
        _ => Ok(given),
    }
}

/// Path of the schema in a body.
const SCHEMA: &str = "response_format.json_schema.schema";
/// Keywords outside OpenAI's strict mode.
const NOT_STRICT: [&str; 8] = ["allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas"];

/// Path and reason of the first violation of OpenAI's strict mode: the root must be an object, every object must have
/// `"additionalProperties": false`, and every property must be required.
fn strict_fault(schema: &Value) -> Option<(String, String)> {
    if schema.get("type") != Some(&Value::from("object")) {
        return Some((String::new(), "must have the type `object`, as `strict` is true".to_owned()));
    }
    if schema.get("anyOf").is_some() {
        return Some((".anyOf".to_owned(), "is not admitted at the root of a schema, as `strict` is true".to_owned()));
    }
    let mut left = vec![(schema, String::new())];
    while let Some((schema, path)) = left.pop() {
        if path.len() > MAX_PATH {
            return Some((path, "is nested too deep".to_owned()));
        }
        let Some(fields) = schema.as_object() else { continue };
        if let Some(keyword) = NOT_STRICT.iter().find(|keyword| fields.contains_key(**keyword)) {
            return Some((format!("{path}.{keyword}"), "is not admitted, as `strict` is true".to_owned()));
        }
        if let Some(why) = object_fault(fields) {
            return Some((path, why));
        }
        for keyword in ["properties", "$defs", "definitions"] {
            let schemas = fields.get(keyword).and_then(Value::as_object).into_iter().flatten();
            left.extend(schemas.map(|(name, schema)| (schema, format!("{path}.{keyword}.{name}"))));
        }
        left.extend(fields.get("items").map(|schema| (schema, format!("{path}.items"))));
        for keyword in ["anyOf", "prefixItems"] {
            let schemas = fields.get(keyword).and_then(Value::as_array).into_iter().flatten();
            left.extend(schemas.zip(0..).map(|(schema, at)| (schema, format!("{path}.{keyword}.{at}"))));
        }
    }
    None
}

/// Maximum length of a path into a schema, in bytes. At most 4096 paths are held at once: 16 MiB.
const MAX_PATH: usize = 4096;

/// Why an object of a schema violates strict mode; `None` for anything but an object.
fn object_fault(fields: &Map<String, Value>) -> Option<String> {
    let is_object = match fields.get("type") {
        Some(Value::Array(types)) => types.contains(&Value::from("object")),
        Some(one) => one == "object",
        None => fields.contains_key("properties"),
    };
    if is_object && fields.get("additionalProperties") != Some(&Value::Bool(false)) {
        return Some("must have `additionalProperties: false`, as `strict` is true".to_owned());
    }
    let required = fields.get("required").and_then(Value::as_array);
    let is_required = |name: &str| required.is_some_and(|names| names.iter().any(|other| other == name));
    let mut named = fields.get("properties").and_then(Value::as_object).into_iter().flatten();
    let missing = named.find(|(name, _)| is_object && !is_required(name));
    missing.map(|(name, _)| format!("must list `{name}` in `required`, as `strict` is true"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: Value, strict: Value) -> Option<String> {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": strict}});
        let format: ResponseFormat = serde_json::from_value(format).unwrap();
        format.constraint().err().map(|reject| reject.param.unwrap_or_default())
    }

    #[test]
    fn strict_accepts_the_schemas_of_openai() {
        let object = |fields: Value| {
            let names: Vec<&String> = fields.as_object().unwrap().keys().collect();
            json!({"type": "object", "properties": fields, "required": names, "additionalProperties": false})
        };
        let good =
            object(json!({"a": {"type": ["string", "null"]}, "b": {"anyOf": [{"type": "null"}, object(json!({}))]},
            "c": {"type": "array", "items": {"$ref": "#"}}}));
        assert_eq!(refused(good.clone(), json!(true)), None);
        let with = |path: &str, value: Value| {
            let mut bad = good.clone();
            *bad.pointer_mut(path).unwrap() = value;
            bad
        };
        let open = json!({"type": "object", "properties": {}});
        let optional =
            json!({"type": "object", "properties": {"z": {}}, "required": [], "additionalProperties": false});
        let table = [
            (json!({"type": "array", "items": {"type": "null"}}), ""),
            (json!(true), ""),
            (with("/additionalProperties", json!({"type": "null"})), ""),
            (with("/required", json!(["a", "b"])), ""),
            (with("/properties/b/anyOf/1", open.clone()), ".properties.b.anyOf.1"),
            (with("/properties/c/items", optional), ".properties.c.items"),
            (with("/properties/a", json!({"allOf": []})), ".properties.a.allOf"),
            (json!({"type": "object", "anyOf": []}), ".anyOf"),
        ];
        for (schema, path) in table {
            assert_eq!(refused(schema.clone(), json!(true)), Some(format!("{SCHEMA}{path}")), "{schema}");
            assert_eq!(refused(schema.clone(), json!(false)), None, "{schema}");
            assert_eq!(refused(schema, json!(null)), None);
        }
    }
}
