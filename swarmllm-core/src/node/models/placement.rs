//! Placement: where the host allows it, the node fetches layers that the swarm lacks, of models whose manifest it has, and
//! evicts layers that placement fetched before. `pipeline/placement` decides which. Shards that the host brought and shards
//! in use stay.
//!
//! A model with many concurrent requests gets more holders (`placement::holders`) once the demand has lasted for some
//! rounds: a whole range is transferred for it, and demand fluctuates. When demand falls, the shards stay until other layers
//! are short.
//!
//! Layers are evicted only after other holders confirmed, just before, that they hold them. If the disk has space for both,
//! the new layers are fetched before the old are evicted.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::base::{Fault, LayerRange, ModelId, NodeId, ShardId, merge_ranges};
use crate::model::catalog::{Catalog, Provenance};
use crate::model::{Manifest, ShardEntry, ShardKind};
use crate::node::api::request::Parts;
use crate::node::blocking::blocking;
use crate::node::models::fetch::{self, Requester};
use crate::node::models::handle::Models;
use crate::node::models::transfer::fault;
use crate::node::shared::SharedState;
use crate::node::swarm::registry::ModelRegistry;
use crate::pipeline::placement::{self, MIN_HOLDERS, Placement, PlacementNode, Reassignment};

/// Time between two decisions: a node's new layers are known everywhere within two seconds.
const ROUND: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };

/// Holders asked before an eviction. Two that answer are enough.
const MAX_ASKED: usize = 16;

/// Rounds for which demand must last.
const DEMAND_ROUNDS: usize = 6;

/// Holders of a model over the last rounds. Changes of free memory do not count: memory changes with every session.
#[derive(Default)]
struct ModelHistory {
    held: Vec<(NodeId, Vec<LayerRange>, bool)>,
    /// Rounds without a change of `held`.
    unchanged: u32,
    /// Holders that demand called for in the last rounds.
    wanted: VecDeque<u32>,
}

/// Input of the decision about one model.
struct PlacementInput {
    members: Vec<PlacementNode>,
    /// Rounds without a change of the holders.
    unchanged: u32,
    /// Holders that each layer should have.
    holders: u32,
}

/// Decides and acts in rounds until the node stops. All models together stay within `disk` bytes.
pub(crate) async fn run(shared: Arc<SharedState>, disk: u64) {
    let stopping = shared.tasks.stopping();
    let work = async {
        let mut histories: HashMap<ModelId, ModelHistory> = HashMap::new();
        loop {
            tokio::time::sleep(ROUND).await;
            let models = shared.models.catalog.models();
            histories.retain(|known, _| models.iter().any(|(model, _)| model == known));
            for (model, manifest) in models {
                let members = members(&shared, model, &manifest);
                let history = histories.entry(model).or_default();
                let (unchanged, holders) =
                    (history.update(&members), history.demand(wanted(&shared, model, manifest.layers)));
                if let Err(fault) =
                    place(&shared, &manifest, PlacementInput { members, unchanged, holders }, disk).await
                {
                    tracing::debug!(%fault, model = %model.short(), "placement failed");
                }
            }
        }
    };
    stopping.run_until_cancelled(work).await;
}

impl ModelHistory {
    /// Records the holders of this round; returns for how many rounds they have not changed.
    fn update(&mut self, members: &[PlacementNode]) -> u32 {
        let held = members.iter().map(|member| (member.node, member.layers.clone(), member.head)).collect();
        let same = self.held == held;
        self.held = held;
        self.unchanged = if same { self.unchanged.saturating_add(1) } else { 0 };
        self.unchanged
    }

    /// Records the holders that demand calls for now; returns the holders that lasting demand calls for.
    fn demand(&mut self, wanted: u32) -> u32 {
        if self.wanted.len() == DEMAND_ROUNDS {
            self.wanted.pop_front();
        }
        self.wanted.push_back(wanted);
        let lasting = self.wanted.iter().copied().min().filter(|_| self.wanted.len() == DEMAND_ROUNDS);
        lasting.unwrap_or(MIN_HOLDERS)
    }
}

/// Holders that a model should have, by the stages in use here and at peers.
fn wanted(shared: &SharedState, model: ModelId, layers: u32) -> u32 {
    let known = shared.registry.snapshot();
    let peers = known.values().filter(|announced| announced.serves).map(|announced| {
        let ours = announced.in_use.iter().filter(|stage| stage.model == model);
        ours.map(|stage| stage.layers).collect()
    });
    let here = shared.models.stages.in_use().into_iter().filter(|key| key.model == model).map(|key| key.layers);
    let in_use: Vec<Vec<LayerRange>> = peers.chain([here.collect()]).collect();
    placement::target_holders(layers, in_use.iter().map(Vec::as_slice))
}

/// This node and the peers that compute for others, in the order of their ids.
fn members(shared: &SharedState, model: ModelId, manifest: &Manifest) -> Vec<PlacementNode> {
    let held = shared.models.catalog.holding(model);
    let stages = &shared.models.stages;
    let capacity = stages.limits().memory;
    let member = |node, layers, head, capacity| {
        let (pinned, excluded) = (Vec::new(), Vec::new());
        PlacementNode { node, layers, head, capacity, pinned, excluded }
    };
    let known = shared.registry.snapshot();
    // Computed once per stage: thousands of peers may have it in use.
    let mut sizes: HashMap<(&str, u32, u32, bool), u64> = HashMap::new();
    let peers = known.iter().filter(|(_, announced)| announced.serves).map(|(node, announced)| {
        let holding = ModelRegistry::holding(&known, *node, model);
        let within = |range: &LayerRange| LayerRange::new(range.start, range.end.min(manifest.layers));
        let layers = holding.iter().flat_map(|holding| &holding.layers).map(within).filter(|range| !range.is_empty());
        // Memory of stages of this model counts as free for it.
        let busy = announced.in_use.iter().filter(|stage| stage.model == model && !within(&stage.layers).is_empty());
        let taken = busy.filter_map(|stage| {
            let engine = stages.engines().iter().find(|engine| engine.name() == stage.engine)?;
            let (layers, head) = (within(&stage.layers), stage.head);
            let memory = || stages.memory_of(engine.as_ref(), manifest, layers, head);
            Some(*sizes.entry((engine.name(), layers.start, layers.end, head)).or_insert_with(memory))
        });
        let capacity = taken.fold(announced.free_memory, u64::saturating_add);
        member(*node, layers.collect(), holding.is_some_and(|holding| holding.head), capacity)
    });
    let mut members: Vec<PlacementNode> = peers.chain([member(shared.id, held.layers, held.head, capacity)]).collect();
    members.sort_unstable_by_key(|member| member.node);
    members
}

/// Adds this node's constraints: it keeps layers that the host brought or pinned and layers in use, and refuses layers that
/// the host deleted.
fn add_own_constraints(shared: &SharedState, manifest: &Manifest, members: &mut [PlacementNode]) {
    let model = manifest.id();
    let busy: Vec<LayerRange> =
        shared.models.stages.in_use().into_iter().filter(|key| key.model == model).map(|key| key.layers).collect();
    let model_pinned = shared.models.catalog.is_pinned(model);
    let (mut pinned, mut excluded) = (Vec::new(), Vec::new());
    for (kind, provenance) in shared.models.catalog.provenance(model) {
        let layer = match kind {
            ShardKind::Layer(layer) => layer,
            // The last layer counts only with the head.
            ShardKind::Head if provenance == Provenance::Deleted => manifest.layers.saturating_sub(1),
            _ => continue,
        };
        let used = busy.iter().any(|layers| layers.start <= layer && layer < layers.end);
        if provenance == Provenance::Deleted {
            excluded.push(layer);
        } else if provenance != Provenance::Placed || model_pinned || used {
            pinned.push(layer);
        }
    }
    if let Some(local) = members.iter_mut().find(|member| member.node == shared.id) {
        (local.pinned, local.excluded) = (merge_ranges(pinned), merge_ranges(excluded));
    }
}

/// Layers to fetch and to evict.
struct PlacementAction {
    parts: Vec<Parts>,
    drop: Vec<LayerRange>,
    /// Whether the disk cannot hold old and new layers together.
    drop_first: bool,
}

/// Fetches layers that this node should hold and evicts those that it should not. If the disk cannot hold all, it fetches
/// fewer.
async fn place(
    shared: &Arc<SharedState>,
    manifest: &Arc<Manifest>,
    input: PlacementInput,
    disk: u64,
) -> Result<(), Fault> {
    let (deciding, known, holders) = (shared.clone(), manifest.clone(), input.holders);
    let action = blocking(move || next_action(&deciding, &known, input, disk)).await?;
    let Some(PlacementAction { parts, drop, drop_first }) = action else { return Ok(()) };
    if drop_first && !evict(shared, manifest, holders, &drop, true).await? {
        return Ok(());
    }
    for parts in parts {
        fetch::pull(shared, &manifest.id().to_string(), &parts, Requester::Placement, None, None).await?;
    }
    if !drop_first && !drop.is_empty() {
        evict(shared, manifest, holders, &drop, false).await?;
    }
    Ok(())
}

/// Calls `decide` with the placement problem of a model.
fn with_placement<T>(
    models: &Models,
    manifest: &Manifest,
    (members, holders): (&[PlacementNode], u32),
    decide: impl FnOnce(&Placement) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let (engine, cuts) = models.choose_engine(manifest)?;
    let size = |layers, head| models.stages.memory_of(engine.as_ref(), manifest, layers, head);
    let (model, layers) = (manifest.id(), manifest.layers);
    decide(&Placement { model, layers, cuts: &cuts, holders, members, size: &size })
}

/// The action for a model, if any. Takes milliseconds with thousands of nodes. Blocks.
fn next_action(
    shared: &SharedState,
    manifest: &Manifest,
    input: PlacementInput,
    disk: u64,
) -> Result<Option<PlacementAction>, Fault> {
    let PlacementInput { mut members, unchanged, holders } = input;
    add_own_constraints(shared, manifest, &mut members);
    let left = disk.saturating_sub(used(&shared.models.catalog));
    let fits =
        |bytes: u64| Ok::<_, Fault>(bytes <= left && shared.models.catalog.excess(bytes).map_err(fault)?.is_none());
    loop {
        let found = with_placement(&shared.models, manifest, (&members, holders), |placement| {
            let size = |found: &Reassignment| (placement.size)(found.hold, found.hold.end == manifest.layers);
            Ok(placement.decide(shared.id, unchanged).map(|found| (size(&found), found)))
        })?;
        let Some((size, found)) = found else { return Ok(None) };
        let mut parts = vec![Parts::Stage { layers: found.hold, head: found.hold.end == manifest.layers }];
        parts.extend((found.hold.start == 0).then_some(Parts::Coordinator));
        let missing = missing(&shared.models.catalog, manifest, &parts)?;
        let freed = manifest.shards.iter().filter(|entry| is_dropped(manifest, &found.drop, entry.kind));
        let freed = freed.map(|entry| entry.size).fold(0, u64::saturating_add);
        if fits(missing)? {
            return Ok(Some(PlacementAction { parts, drop: found.drop, drop_first: false }));
        }
        if fits(missing.saturating_sub(freed))? {
            return Ok(Some(PlacementAction { parts, drop: found.drop, drop_first: true }));
        }
        let smaller = size.saturating_sub(1);
        members.iter_mut().filter(|member| member.node == shared.id).for_each(|member| member.capacity = smaller);
    }
}

/// Whether evicting these layers evicts the shard.
fn is_dropped(manifest: &Manifest, drop: &[LayerRange], kind: ShardKind) -> bool {
    let within = |layer: u32| drop.iter().any(|range| range.start <= layer && layer < range.end);
    match kind {
        ShardKind::Layer(layer) => within(layer),
        ShardKind::Head => within(manifest.layers.saturating_sub(1)),
        _ => false,
    }
}

/// Evicts those layers that enough holders confirm now; with `whole` all or none. Returns whether all were evicted.
async fn evict(
    shared: &Arc<SharedState>,
    manifest: &Arc<Manifest>,
    holders: u32,
    drop: &[LayerRange],
    whole: bool,
) -> Result<bool, Fault> {
    let members = members(shared, manifest.id(), manifest);
    let before = with_placement(&shared.models, manifest, (&members, holders), |placement| {
        Ok(placement.holders_before(shared.id, drop))
    })?;
    let asked = before
        .into_iter()
        .take(MAX_ASKED)
        .map(|peer| async move { (peer, shared.announcer.hello(peer).await.is_ok()) });
    let answers = futures::future::join_all(asked).await;
    let there: HashSet<NodeId> = answers.into_iter().filter(|(_, there)| *there).map(|(peer, _)| peer).collect();
    let (shared, manifest, drop) = (shared.clone(), manifest.clone(), drop.to_vec());
    blocking(move || {
        let model = manifest.id();
        let mut members = self::members(&shared, model, &manifest);
        members.retain(|member| member.node == shared.id || there.contains(&member.node));
        add_own_constraints(&shared, &manifest, &mut members);
        let spare = with_placement(&shared.models, &manifest, (&members, holders), |placement| {
            Ok(placement.droppable(shared.id))
        })?;
        let spare = |layer: &u32| spare.iter().any(|range| range.start <= *layer && *layer < range.end);
        let dropped = merge_ranges(drop.iter().flat_map(|range| range.start..range.end).filter(spare).collect());
        if dropped.is_empty() || (whole && dropped != drop) {
            return Ok(false);
        }
        let overlaps =
            |layers: LayerRange| dropped.iter().any(|range| range.start < layers.end && layers.start < range.end);
        shared.models.stages.unload_idle_where(|key| key.model == model && overlaps(key.layers));
        let used = shared.models.shards_in_use(model, &manifest);
        let parts = |kind| is_dropped(&manifest, &dropped, kind);
        let evicted =
            shared.models.catalog.release_placed(model, &parts, &|kind| used.contains(&kind)).map_err(fault)?;
        tracing::info!(model = %model.short(), parts = evicted.len(), "evicted layers that enough peers hold");
        Ok(drop.iter().all(|range| (range.start..range.end).all(|layer| evicted.contains(&ShardKind::Layer(layer)))))
    })
    .await
}

/// Bytes of all shards held here.
fn used(catalog: &Catalog) -> u64 {
    let models = catalog.models();
    let shards = models.iter().flat_map(|(_, manifest)| &manifest.shards);
    let here: HashMap<ShardId, u64> =
        shards.filter(|entry| catalog.has(&entry.id)).map(|entry| (entry.id, entry.size)).collect();
    here.values().sum()
}

/// Bytes of missing shards of these parts.
fn missing(catalog: &Catalog, manifest: &Manifest, parts: &[Parts]) -> Result<u64, Fault> {
    let mut entries: Vec<&ShardEntry> = Vec::new();
    for parts in parts {
        entries.extend(parts.shards(manifest)?);
    }
    let mut seen = HashSet::new();
    let absent = entries.into_iter().filter(|entry| !catalog.has(&entry.id) && seen.insert(entry.id));
    Ok(absent.map(|entry| entry.size).sum())
}

#[cfg(test)]
mod tests;
