//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::collections::{HashMap, HashSet};

use axum::Json;
use axum::extract::{Path, State};
use serde::Serialize;

use crate::base::ErrorKind;
use crate::node::{ModelInfo, Node};
use crate::server::reject::Reject;

/// A model in OpenAI's format; the node's own fields are in `swarmllm`.
#[derive(Debug, Serialize)]
pub(super) struct Model {
    id: String,
    object: &'static str,
    /// Always 0: models are identified by their content.
    created: u64,
    owned_by: &'static str,
    /// Context length of a request in tokens, prompt and answer together, under the two names of other servers. Left out if
    /// unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    context_length: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
    swarmllm: ModelInfo,
}

#[derive(Debug, Serialize)]
pub(super) struct List {
    object: &'static str,
    data: Vec<Model>,
}

/// The models that a client may use. Models that are kept for other nodes and cannot run here are left out.
pub(super) async fn list(State(node): State<Node>) -> Result<Json<List>, Reject> {
    let list = move |models: &[ModelInfo]| {
        let named = NameCounts::of(models);
        offered(models).map(|model| shown(model, &named)).collect()
    };
    Ok(Json(List { object: "list", data: of_models(node, list).await? }))
}

fn offered(models: &[ModelInfo]) -> impl Iterator<Item = &ModelInfo> {
    models.iter().filter(|model| model.refusal().is_none())
}

/// Maps the list of models. The first call examines each model, which blocks.
async fn of_models<T: Send + 'static>(
    node: Node,
    map: impl FnOnce(&[ModelInfo]) -> T + Send + 'static,
) -> Result<T, Reject> {
    let mapped = tokio::task::spawn_blocking(move || map(&node.models())).await;
    mapped.map_err(|error| Reject::of(ErrorKind::Internal, error.to_string()))
}

pub(super) async fn one(State(node): State<Node>, Path(asked): Path<String>) -> Result<Json<Model>, Reject> {
    // An ambiguous name examines its candidates, which blocks.
    let (resolver, meant) = (node.clone(), asked);
    let id = tokio::task::spawn_blocking(move || resolver.resolve(&meant)).await;
    let id = id.map_err(|error| Reject::of(ErrorKind::Internal, error.to_string()))?;
    let id = id.map_err(|error| Reject::from(error.fault()))?;
    let gone = || Reject {
        param: Some("model".to_owned()),
        ..Reject::of(ErrorKind::ModelNotFound, "it was removed meanwhile")
    };
    let find = move |models: &[ModelInfo]| {
        let found = models.iter().find(|model| model.id == id)?;
        Some((found.clone(), shown(found, &NameCounts::of(models))))
    };
    let (found, shown) = of_models(node, find).await?.ok_or_else(gone)?;
    if let Some(reason) = found.refusal() {
        let kind = found.findings.iter().find(|finding| finding.refuses).map_or(ErrorKind::Unsupported, |it| it.kind);
        return Err(Reject { param: Some("model".to_owned()), ..Reject::of(kind, reason) });
    }
    Ok(Json(shown))
}

/// Number of models with each name, case-insensitive.
struct NameCounts(HashMap<String, usize>);

impl NameCounts {
    fn of(models: &[ModelInfo]) -> Self {
        let mut named = HashMap::new();
        for model in models {
            let names: HashSet<String> = model.names.iter().map(|name| name.to_lowercase()).collect();
            names.into_iter().for_each(|name| *named.entry(name).or_default() += 1);
        }
        Self(named)
    }
}

/// The model under its name, or under its id if several models have the name.
fn shown(model: &ModelInfo, named: &NameCounts) -> Model {
    let alone = named.0.get(&model.name.to_lowercase()) == Some(&1);
    let id = if alone { model.name.clone() } else { model.id.to_string() };
    let context = Some(model.served_context).filter(|context| *context > 0);
    Model {
        id,
        object: "model",
        created: 0,
        owned_by: "swarmllm",
        context_length: context,
        max_model_len: context,
        swarmllm: model.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ModelId;
    use crate::node::{Finding, Subject};

    fn model(name: &str, byte: u8) -> ModelInfo {
        ModelInfo {
            id: ModelId([byte; 32]),
            name: name.to_owned(),
            names: vec![name.to_owned()],
            aliases: Vec::new(),
            findings: Vec::new(),
            architecture: "llama".to_owned(),
            layers: 1,
            context: 2,
            served_context: 1,
            size: 1,
            held: Vec::new(),
            has_metadata: false,
            has_embedding: false,
            has_head: false,
            covered: Vec::new(),
            ready: false,
            warnings: Vec::new(),
        }
    }

    #[test]
    fn a_model_lists_its_served_context() {
        let known = model("a", 1);
        let json = serde_json::to_value(shown(&known, &NameCounts::of(std::slice::from_ref(&known)))).unwrap();
        assert_eq!((&json["context_length"], &json["max_model_len"]), (&1.into(), &1.into()));
        let foreign = ModelInfo { served_context: 0, ..known };
        let json = serde_json::to_value(shown(&foreign, &NameCounts::of(&[]))).unwrap();
        assert!(json.get("context_length").is_none() && json.get("max_model_len").is_none());
    }

    #[test]
    fn a_model_that_cannot_run_is_not_listed() {
        let finding = |refuses| Finding {
            subject: Subject::Tokenizer,
            kind: ErrorKind::BadTokenizer,
            reason: "because".to_owned(),
            refuses,
        };
        let models = [(1, vec![finding(true)]), (2, vec![finding(false)]), (3, Vec::new())];
        let models = models.map(|(byte, findings)| ModelInfo { findings, ..model("a", byte) });
        let ids: Vec<ModelId> = offered(&models).map(|model| model.id).collect();
        assert_eq!(ids, [models[1].id, models[2].id]);
    }

    #[test]
    fn models_with_the_same_name_are_listed_by_id() {
        let models = [model("a", 1), model("twin", 2), model("twin", 3)];
        let named = NameCounts::of(&models);
        let ids: Vec<String> = models.iter().map(|one| shown(one, &named).id).collect();
        assert_eq!(ids, ["a".to_owned(), models[1].id.to_string(), models[2].id.to_string()]);
    }
}
