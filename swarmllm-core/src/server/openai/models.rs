//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use crate::base::ErrorKind;
use crate::node::{ModelInfo, Node};
use crate::server::reject::Reject;

/// Fewest hexadecimal digits that stand for an id.
const MIN_PREFIX: usize = 8;

/// A model as OpenAI's clients read it; our own facts are under `swarmllm`.
#[derive(Debug, Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    /// Not known of a model that is named by its content.
    created: u64,
    owned_by: &'static str,
    swarmllm: ModelInfo,
}

#[derive(Debug, Serialize)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Model>,
}

pub(super) async fn list(State(node): State<Node>) -> Json<List> {
    let models = node.models();
    let data = models.iter().map(|model| shown(model, &models)).collect();
    Json(List { object: "list", data })
}

pub(super) async fn one(State(node): State<Node>, Path(asked): Path<String>) -> Result<Json<Model>, Reject> {
    let models = node.models();
    let found = find(&models, &asked)?;
    Ok(Json(shown(found, &models)))
}

/// The model under its name, or under its id where several have the name.
fn shown(model: &ModelInfo, all: &[ModelInfo]) -> Model {
    let alone = all.iter().filter(|other| other.name == model.name).count() == 1;
    let id = if alone { model.name.clone() } else { model.id.to_string() };
    Model { id, object: "model", created: 0, owned_by: "swarmllm", swarmllm: model.clone() }
}

/// The only model with this name, id, or prefix of an id.
fn find<'a>(models: &'a [ModelInfo], asked: &str) -> Result<&'a ModelInfo, Reject> {
    let by_id = |model: &&ModelInfo| asked.len() >= MIN_PREFIX && model.id.to_string().starts_with(asked);
    let mut found: Vec<&ModelInfo> = models.iter().filter(|model| model.name == asked).collect();
    if found.is_empty() {
        found = models.iter().filter(by_id).collect();
    }
    let refuse = |why: &str| {
        let message = format!("{why} `{asked}`; GET /v1/models lists the names and ids");
        Reject { param: Some("model".to_owned()), ..Reject::of(ErrorKind::ModelNotFound, message) }
    };
    match found.as_slice() {
        [model] => Ok(model),
        [] => Err(refuse("no model is known as")),
        _ => Err(refuse("several models are known as")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ModelId;

    fn model(name: &str, byte: u8) -> ModelInfo {
        ModelInfo {
            id: ModelId([byte; 32]),
            name: name.to_owned(),
            architecture: "llama".to_owned(),
            layers: 1,
            context: 1,
            size: 1,
            held: Vec::new(),
            has_metadata: false,
            has_embedding: false,
            has_head: false,
            covered: Vec::new(),
            ready: false,
        }
    }

    #[test]
    fn a_model_is_found_by_name_or_prefix_and_an_ambiguous_name_is_refused() {
        let models = [model("a/b", 1), model("twin", 2), model("twin", 3)];
        assert_eq!(find(&models, "a/b").unwrap().id, models[0].id);
        assert_eq!(find(&models, "03030303").unwrap().id, models[2].id);
        for refused in ["twin", "0303", "c", ""] {
            assert_eq!(find(&models, refused).unwrap_err().code, "model_not_found", "{refused}");
        }
    }

    #[test]
    fn models_of_one_name_are_listed_by_their_ids() {
        let models = [model("a", 1), model("twin", 2), model("twin", 3)];
        let ids: Vec<String> = models.iter().map(|one| shown(one, &models).id).collect();
        assert_eq!(ids, ["a".to_owned(), models[1].id.to_string(), models[2].id.to_string()]);
    }
}
