//! `response_format`: the form that a client wants an answer to have.

use serde_json::{Map, Value};

use crate::node::Constraint;
use crate::server::reject::Reject;

/// OpenAI's forms, and grammars in the shape in which OpenAI's tools have them.
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
    /// JSON that a schema validates.
    JsonSchema,
    /// What a grammar derives.
    Grammar,
}

/// A schema with what OpenAI has around it: names that only its own logs show, and `strict`. Every schema is enforced;
/// `strict` says that it must be one that OpenAI's own strict mode takes, see [`strict_fault`].
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
    /// What the node understands; nothing for plain text. A schema that is not what its `strict` says is refused.
    pub(super) fn constraint(self) -> Result<Option<Constraint>, Reject> {
        let Self { form, json_schema, grammar } = self;
        let json_schema = belonging("json_schema", json_schema, form == Form::JsonSchema)?;
        let grammar = belonging("grammar", grammar, form == Form::Grammar)?;
        let strict = json_schema.as_ref().is_some_and(|named| named.strict == Some(true));
        let constraint = match (json_schema, grammar) {
            (Some(named), _) => Constraint::JsonSchema(named.schema),
            (None, Some(Grammar { syntax: Syntax::Lark, definition })) => Constraint::Lark(definition),
            (None, Some(Grammar { syntax: Syntax::Regex, definition })) => Constraint::Regex(definition),
            (None, None) if form == Form::JsonObject => Constraint::JsonObject,
            (None, None) => return Ok(None),
        };
        // Its size is bounded before anything looks at it.
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

/// A field that a form has, and no other form.
fn belonging<T>(field: &str, given: Option<T>, wanted: bool) -> Result<Option<T>, Reject> {
    let refuse =
        |why: &str| Err(Reject::field(format!("response_format.{field}"), format!("{why} `type` is `{field}`")));
    match (given.is_some(), wanted) {
        (false, true) => refuse("is missing, where"),
        (true, false) => refuse("is only accepted where"),
        _ => Ok(given),
    }
}

/// Where a request has its schema.
const SCHEMA: &str = "response_format.json_schema.schema";
/// Keywords that OpenAI's strict mode does not have.
const NOT_STRICT: [&str; 8] = ["allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas"];

/// Where a schema is none of OpenAI's strict mode, and why. There the root is an object, every object says
/// `"additionalProperties": false`, and every property is required.
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
        if let Some(why) = open_object(fields) {
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

/// Longest path into a schema, in bytes. Those of all its schemas may be held at once, 4096 at most: 16 MiB.
const MAX_PATH: usize = 4096;

/// Why an object of a schema is not what strict mode wants; nothing for what is no object.
fn open_object(fields: &Map<String, Value>) -> Option<String> {
    let is_object = match fields.get("type") {
        Some(Value::Array(types)) => types.contains(&Value::from("object")),
        Some(one) => one == "object",
        None => fields.contains_key("properties"),
    };
    if is_object && fields.get("additionalProperties") != Some(&Value::Bool(false)) {
        return Some("must say `additionalProperties: false`, as `strict` is true".to_owned());
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
    fn strict_takes_the_schemas_that_openai_takes() {
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
