//! Listing of the models that a node knows.

use std::collections::{HashMap, HashSet};

use crate::base::{ErrorKind, Fault, LayerRange, ModelId};
use crate::model::Manifest;
use crate::node::answer::planning;
use crate::node::answer::readiness::PlanFailure;
use crate::node::api::findings::{Finding, Subject};
use crate::node::api::report::ModelInfo;
use crate::node::models::handle::Models;
use crate::node::models::loaded::PlannedModel;
use crate::node::shared::SharedState;
use crate::node::swarm::registry::{KnownNodes, ModelRegistry, union};
use crate::pipeline::plan::NoPlan;

/// Listed models of other nodes: strangers can invent 256 in each announcement.
const MAX_OTHERS: usize = 1024;

/// Models held here, wholly or in part, and models of peers. Blocks: it examines each new model and plans for each model.
pub(crate) fn all(shared: &SharedState) -> Vec<ModelInfo> {
    let mut models: Vec<ModelInfo> =
        shared.models.catalog.models().into_iter().map(|(id, manifest)| info(shared, id, &manifest)).collect();
    let ours = models.iter().map(|model| model.id).collect();
    models.extend(of_others(&shared.registry.snapshot(), &ours));
    models.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    models
}

/// Models that only other nodes announce. Models of connected nodes come before models known by gossip.
fn of_others(known: &KnownNodes, ours: &HashSet<ModelId>) -> Vec<ModelInfo> {
    let mut others: HashMap<ModelId, (&[String], Vec<LayerRange>)> = HashMap::new();
    let (greeted, gossiped): (Vec<_>, Vec<_>) = known.values().partition(|announced| announced.greeted());
    for holding in greeted.into_iter().chain(gossiped).flat_map(|announced| &announced.holdings) {
        let fits = others.len() < MAX_OTHERS || others.contains_key(&holding.model);
        if fits && !ours.contains(&holding.model) {
            let (_, layers) = others.entry(holding.model).or_insert((&holding.names, Vec::new()));
            layers.extend(&holding.layers);
        }
    }
    others.into_iter().map(|(id, (names, layers))| foreign(id, names, union(layers.into_iter()))).collect()
}

/// A model known here. Blocks if it was not examined yet.
pub(crate) fn known(shared: &SharedState, id: ModelId) -> Result<ModelInfo, Fault> {
    let gone = || Fault::new(ErrorKind::ModelNotFound, format!("model {} was removed meanwhile", id.short()));
    Ok(info(shared, id, &*shared.models.catalog.manifest(id).ok_or_else(gone)?))
}

fn info(shared: &SharedState, id: ModelId, manifest: &Manifest) -> ModelInfo {
    let report = shared.models.examine(id, manifest);
    let held = shared.models.catalog.holding(id);
    let known = shared.registry.snapshot();
    let covered = union(held.layers.iter().copied().chain(peer_layers(&known, id)));
    let head = held.head || known.keys().any(|node| ModelRegistry::holding(&known, *node, id).is_some_and(|h| h.head));
    let whole = covered.first().is_some_and(|range| range.start == 0 && range.end >= manifest.layers);
    let complete = held.metadata && held.embedding && whole && head && !report.refuses();
    let failure = || shared.answers.readiness.get(id, || plan_failure(shared, id, manifest));
    let plan_failure = if complete { failure() } else { None };
    let memory = plan_failure.as_deref().and_then(memory_finding);
    ModelInfo {
        id,
        name: shared.models.catalog.display_name(id),
        names: shared.models.catalog.names(id),
        aliases: shared.models.catalog.aliases(id),
        architecture: manifest.architecture.clone(),
        layers: manifest.layers,
        context: manifest.context,
        served_context: served_context(&shared.models, id, manifest, &held.layers),
        size: manifest.size(),
        ready: complete && plan_failure.is_none(),
        held: held.layers,
        has_metadata: held.metadata,
        has_embedding: held.embedding,
        has_head: held.head,
        covered,
        warnings: report.warnings().into_iter().chain(memory.as_ref().map(Finding::to_string)).collect(),
        findings: report.findings.iter().cloned().chain(memory).collect(),
    }
}

/// Why a request for the model would find no plan now.
fn plan_failure(shared: &SharedState, id: ModelId, manifest: &Manifest) -> Option<PlanFailure> {
    let (engine, cuts) = shared.models.choose_engine(manifest).ok()?;
    planning::likely_plan(shared, PlannedModel { id, manifest, engine: engine.as_ref(), cuts: &cuts }).err()
}

/// A shortage of memory is a finding of the moment; it may pass.
fn memory_finding(plan_failure: &PlanFailure) -> Option<Finding> {
    let finding = |reason| Finding { subject: Subject::Memory, kind: ErrorKind::NoPlan, reason, refuses: false };
    matches!(plan_failure.reason, NoPlan::NoMemory { .. }).then(|| finding(plan_failure.to_string()))
}

fn served_context(models: &Models, id: ModelId, manifest: &Manifest, held: &[LayerRange]) -> u32 {
    match models.choose_engine(manifest) {
        Ok((engine, _)) => models.stages.context_of(engine.as_ref(), id, manifest, held),
        Err(_) => 0,
    }
}

fn peer_layers(known: &KnownNodes, model: ModelId) -> impl Iterator<Item = LayerRange> + '_ {
    let holdings = known.keys().filter_map(move |node| ModelRegistry::holding(known, *node, model));
    holdings.flat_map(|holding| holding.layers.iter().copied())
}

fn foreign(id: ModelId, names: &[String], covered: Vec<LayerRange>) -> ModelInfo {
    ModelInfo {
        id,
        name: names.first().cloned().unwrap_or_else(|| id.short()),
        names: names.to_vec(),
        aliases: Vec::new(),
        architecture: String::new(),
        layers: 0,
        context: 0,
        served_context: 0,
        size: 0,
        held: Vec::new(),
        has_metadata: false,
        has_embedding: false,
        has_head: false,
        covered,
        ready: false,
        warnings: Vec::new(),
        findings: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeId;
    use crate::node::swarm::registry::millis;
    use crate::wire::announce::{Announcement, Holding};

    fn id(number: usize) -> ModelId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        ModelId(id)
    }

    fn announce(registry: &ModelRegistry, node: u8, layers: (u32, u32), models: std::ops::Range<usize>) {
        let holding = |number| Holding {
            model: id(number),
            names: vec![format!("of {node}")],
            layers: vec![LayerRange::new(layers.0, layers.1)],
            metadata: false,
            embedding: false,
            head: false,
        };
        let announcement = Announcement {
            version: millis(),
            agent: String::new(),
            serves: true,
            free_memory: 0,
            in_use: Vec::new(),
            addresses: Vec::new(),
            round_trips: Vec::new(),
            holdings: models.map(holding).collect(),
        };
        registry.on_hello(NodeId([node; 32]), announcement);
    }

    #[test]
    fn models_of_peers_are_listed_once_with_all_layers_and_bounded() {
        let registry = ModelRegistry::new();
        announce(&registry, 1, (0, 2), 1..2);
        announce(&registry, 2, (2, 4), 0..2);
        let others = of_others(&registry.snapshot(), &HashSet::from([id(0)]));
        assert_eq!(others.len(), 1, "models known here are left out");
        assert_eq!((others[0].id, others[0].covered.clone()), (id(1), vec![LayerRange::new(0, 4)]));
        (3..9)
            .for_each(|node| announce(&registry, node, (0, 1), usize::from(node) * 256..usize::from(node) * 256 + 256));
        assert_eq!(of_others(&registry.snapshot(), &HashSet::new()).len(), MAX_OTHERS);
    }
}
