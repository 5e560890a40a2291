//! `response_format`: the form that a client wants an answer to have.

use serde_json::Value;

use crate::node::Constraint;

/// OpenAI's forms, and grammars in the shape in which OpenAI's tools have them. Braces without fields: so that a foreign
/// field is refused there too.
#[derive(Debug, serde::Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum ResponseFormat {
    /// Any text.
    Text {},
    /// A JSON object.
    JsonObject {},
    /// JSON that a schema validates.
    JsonSchema { json_schema: NamedSchema },
    /// What a grammar derives.
    Grammar { grammar: Grammar },
}

/// A schema with what OpenAI has around it: names that only its own logs show, and `strict`, which changes nothing here
/// since every schema is enforced.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only the schema acts")]
pub(super) struct NamedSchema {
    name: Option<String>,
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
    /// What the node understands; nothing for plain text.
    pub(super) fn constraint(self) -> Option<Constraint> {
        match self {
            Self::Text {} => None,
            Self::JsonObject {} => Some(Constraint::JsonObject),
            Self::JsonSchema { json_schema } => Some(Constraint::JsonSchema(json_schema.schema)),
            Self::Grammar { grammar } => Some(match grammar.syntax {
                Syntax::Lark => Constraint::Lark(grammar.definition),
                Syntax::Regex => Constraint::Regex(grammar.definition),
            }),
        }
    }
}
