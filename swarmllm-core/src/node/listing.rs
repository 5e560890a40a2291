//! What a node says of the models that it knows.

use std::collections::{HashMap, HashSet};

use crate::base::{ErrorKind, Fault, LayerRange, ModelId};
use crate::model::Manifest;
use crate::node::answer::planning;
use crate::node::answer::readiness::Unplanned;
use crate::node::api::findings::{Finding, Subject};
use crate::node::api::report::ModelInfo;
use crate::node::models::loaded::{Planned, choose};
use crate::node::shared::Shared;
use crate::node::swarm::directory::{Known, Registry, union};
use crate::pipeline::plan::NoPlan;

/// Models of others that are listed: strangers can make up 256 in each announcement.
const MAX_OTHERS: usize = 1024;

/// Models held here, wholly or in part, and models that connected peers hold. Blocks where one was not examined yet, and for a
/// plan for each.
pub(crate) fn all(shared: &Shared) -> Vec<ModelInfo> {
    let mut models: Vec<ModelInfo> =
        shared.catalog.models().into_iter().map(|(id, manifest)| info(shared, id, &manifest)).collect();
    let ours = models.iter().map(|model| model.id).collect();
    models.extend(of_others(&shared.registry.snapshot(), &ours));
    models.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    models
}

/// Models that are not known here and that others say they hold: those of connected nodes go before what is only told of.
fn of_others(known: &Known, ours: &HashSet<ModelId>) -> Vec<ModelInfo> {
    let mut others: HashMap<ModelId, (&[String], Vec<LayerRange>)> = HashMap::new();
    let (greeted, told): (Vec<_>, Vec<_>) = known.values().partition(|announced| announced.greeted());
    for holding in greeted.into_iter().chain(told).flat_map(|announced| &announced.holdings) {
        let room = others.len() < MAX_OTHERS || others.contains_key(&holding.model);
        if room && !ours.contains(&holding.model) {
            let (_, layers) = others.entry(holding.model).or_insert((&holding.names, Vec::new()));
            layers.extend(&holding.layers);
        }
    }
    others.into_iter().map(|(id, (names, layers))| foreign(id, names, union(layers.into_iter()))).collect()
}

/// A model that is known here. Blocks where it was not examined yet.
pub(crate) fn known(shared: &Shared, id: ModelId) -> Result<ModelInfo, Fault> {
    let gone = || Fault::new(ErrorKind::ModelNotFound, format!("model {} was removed meanwhile", id.short()));
    Ok(info(shared, id, &*shared.catalog.manifest(id).ok_or_else(gone)?))
}

fn info(shared: &Shared, id: ModelId, manifest: &Manifest) -> ModelInfo {
    let report = shared.report_of(id, manifest);
    let held = shared.catalog.holding(id);
    let known = shared.registry.snapshot();
    let covered = union(held.layers.iter().copied().chain(peer_layers(&known, id)));
    let head = held.head || known.keys().any(|node| Registry::holding(&known, *node, id).is_some_and(|h| h.head));
    let whole = covered.first().is_some_and(|range| range.start == 0 && range.end >= manifest.layers);
    let complete = held.metadata && held.embedding && whole && head && !report.refuses();
    let judge = || shared.judged.of(id, || unplanned(shared, id, manifest));
    let unplanned = if complete { judge() } else { None };
    let memory = unplanned.as_deref().and_then(memory_finding);
    ModelInfo {
        id,
        name: shared.catalog.title(id),
        names: shared.catalog.names(id),
        aliases: shared.catalog.aliases(id),
        architecture: manifest.architecture.clone(),
        layers: manifest.layers,
        context: manifest.context,
        served_context: served_context(shared, id, manifest, &held.layers),
        size: manifest.size(),
        ready: complete && unplanned.is_none(),
        held: held.layers,
        has_metadata: held.metadata,
        has_embedding: held.embedding,
        has_head: held.head,
        covered,
        warnings: report.warnings().into_iter().chain(memory.as_ref().map(Finding::to_string)).collect(),
        findings: report.findings.iter().cloned().chain(memory).collect(),
    }
}

/// Why a request for the model would have no plan now.
fn unplanned(shared: &Shared, id: ModelId, manifest: &Manifest) -> Option<Unplanned> {
    let engines = shared.serving.stages().engines();
    let (engine, cuts) = choose(engines, shared.config.engine.as_deref(), manifest).ok()?;
    planning::likely_plan(shared, Planned { id, manifest, engine: engine.as_ref(), cuts: &cuts }).err()
}

/// That memory is short is found of a model now, and may be over soon.
fn memory_finding(unplanned: &Unplanned) -> Option<Finding> {
    let finding = |reason| Finding { subject: Subject::Memory, kind: ErrorKind::NoPlan, reason, refuses: false };
    matches!(unplanned.reason, NoPlan::NoMemory { .. }).then(|| finding(unplanned.to_string()))
}

fn served_context(shared: &Shared, id: ModelId, manifest: &Manifest, held: &[LayerRange]) -> u32 {
    let stages = shared.serving.stages();
    match choose(stages.engines(), shared.config.engine.as_deref(), manifest) {
        Ok((engine, _)) => stages.context_of(engine.as_ref(), id, manifest, held),
        Err(_) => 0,
    }
}

fn peer_layers(known: &Known, model: ModelId) -> impl Iterator<Item = LayerRange> + '_ {
    let holdings = known.keys().filter_map(move |node| Registry::holding(known, *node, model));
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
    use crate::node::swarm::directory::millis;
    use crate::wire::announce::{Announcement, Holding};

    fn id(number: usize) -> ModelId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&(number as u64).to_le_bytes());
        ModelId(id)
    }

    fn hear(registry: &Registry, node: u8, layers: (u32, u32), models: std::ops::Range<usize>) {
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
        registry.hear(NodeId([node; 32]), announcement);
    }

    #[test]
    fn models_of_others_are_listed_once_with_all_their_layers_and_no_more_than_so_many() {
        let registry = Registry::new();
        hear(&registry, 1, (0, 2), 1..2);
        hear(&registry, 2, (2, 4), 0..2);
        let others = of_others(&registry.snapshot(), &HashSet::from([id(0)]));
        assert_eq!(others.len(), 1, "what is known here is no other's");
        assert_eq!((others[0].id, others[0].covered.clone()), (id(1), vec![LayerRange::new(0, 4)]));
        (3..9).for_each(|node| hear(&registry, node, (0, 1), usize::from(node) * 256..usize::from(node) * 256 + 256));
        assert_eq!(of_others(&registry.snapshot(), &HashSet::new()).len(), MAX_OTHERS);
    }
}
