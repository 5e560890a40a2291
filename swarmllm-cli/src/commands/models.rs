//! `swarmllm models`: the models held here.

use std::process::ExitCode;

use swarmllm_core::base::Bytes;
use swarmllm_core::node::ModelInfo;

use super::ranges;
use crate::context::{Context, close};
use crate::failure::Failure;
use crate::print;

pub async fn models(context: &Context) -> Result<ExitCode, Failure> {
    let node = context.offline().await?;
    let models = node.models();
    close(node).await;
    show(context, &models)?;
    for model in models.iter().filter(|_| !context.json) {
        if let Some(reason) = model.refusal() {
            print::note(&print::clean(&format!("{} ({}) cannot run here: {reason}", model.name, model.id.short())));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints models, as a JSON list or as a table.
pub fn show(context: &Context, models: &[ModelInfo]) -> Result<(), Failure> {
    if context.json {
        return print::json(&models);
    }
    if models.is_empty() {
        print::note("no model is held here; use `swarmllm import` or `swarmllm pull`");
        return Ok(());
    }
    let rows: Vec<[String; 8]> = models.iter().map(row).collect();
    print::line(&print::table(
        ["name", "id", "architecture", "size", "layers", "held", "also held", "runs here"],
        &rows,
    ))
}

fn row(model: &ModelInfo) -> [String; 8] {
    let also = [(model.has_metadata, "metadata"), (model.has_embedding, "embedding"), (model.has_head, "head")];
    let also: Vec<&str> = also.into_iter().filter_map(|(held, what)| held.then_some(what)).collect();
    [
        if model.names.is_empty() { model.name.clone() } else { model.names.join(", ") },
        model.id.short(),
        model.architecture.clone(),
        Bytes(model.size).to_string(),
        model.layers.to_string(),
        ranges(&model.held),
        if also.is_empty() { "-".to_owned() } else { also.join(",") },
        if model.refusal().is_none() { "yes" } else { "no" }.to_owned(),
    ]
}
