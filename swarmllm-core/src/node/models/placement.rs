//! Fetches by itself what the swarm is short of, of models whose manifest is here, where the host allows it, and gives up
//! for it what it had fetched so before. What that is is decided in `pipeline/placement.rs`. What the host brought stays, and
//! so does what runs.
//!
//! A model that is asked for by many at once gets more holders (`placement::holders`), once that has lasted for some rounds:
//! a whole range is transferred for it, and demand comes and goes. When it goes, what was fetched for it stays until something
//! else is short.
//!
//! Nothing goes before those who are counted on were asked, this moment, whether they hold it. Where the disk has room for
//! both, the new comes before the old goes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::base::{Fault, LayerRange, ModelId, NodeId, ShardId, merge_ranges};
use crate::model::catalog::Mark;
use crate::model::{Manifest, ShardEntry, ShardKind};
use crate::node::api::request::Parts;
use crate::node::blocking::blocking;
use crate::node::models::eviction::in_use;
use crate::node::models::fetch::{self, Asker};
use crate::node::models::loaded::choose;
use crate::node::models::transfer::fault;
use crate::node::shared::Shared;
use crate::node::swarm::directory::Registry;
use crate::pipeline::placement::{self, HOLDERS, Member, Move, Placement};

/// Time between two decisions: what a node has got is known everywhere within a second or two.
const ROUND: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };

/// Holders that are asked before something is given up. Two are enough, of those who answer.
const MAX_ASKED: usize = 16;

/// Rounds for which demand must have lasted.
const LASTS: usize = 6;

/// What was seen of a model, and in how many rounds since it changed. A node's room changes with what it computes, which
/// is no news here.
#[derive(Default)]
struct View {
    held: Vec<(NodeId, Vec<LayerRange>, bool)>,
    waited: u32,
    /// Holders that it ought to have had in the last rounds.
    wanted: VecDeque<u32>,
}

/// By what a node decides on a model, beside what it holds itself.
struct Sight {
    members: Vec<Member>,
    waited: u32,
    /// Holders that each layer is to have.
    holders: u32,
}

/// Decides every now and then, and fetches, for as long as all models here take at most `disk` bytes; until the node stops.
pub(crate) async fn run(shared: Arc<Shared>, disk: u64) {
    let stopping = shared.tasks.stopping();
    let work = async {
        let mut views: HashMap<ModelId, View> = HashMap::new();
        loop {
            tokio::time::sleep(ROUND).await;
            let models = shared.catalog.models();
            views.retain(|known, _| models.iter().any(|(model, _)| model == known));
            for (model, manifest) in models {
                let members = members(&shared, model, &manifest);
                let view = views.entry(model).or_default();
                let (waited, holders) = (view.look(&members), view.demand(wanted(&shared, model, manifest.layers)));
                if let Err(fault) = place(&shared, &manifest, Sight { members, waited, holders }, disk).await {
                    tracing::debug!(%fault, model = %model.short(), "nothing was placed");
                }
            }
        }
    };
    stopping.run_until_cancelled(work).await;
}

impl View {
    /// Looks again; gives for how many rounds nothing has changed.
    fn look(&mut self, members: &[Member]) -> u32 {
        let held = members.iter().map(|member| (member.node, member.layers.clone(), member.head)).collect();
        let same = self.held == held;
        self.held = held;
        self.waited = if same { self.waited.saturating_add(1) } else { 0 };
        self.waited
    }

    /// Takes how many holders a model ought to have by what is computed now; gives how many by what has lasted.
    fn demand(&mut self, wanted: u32) -> u32 {
        if self.wanted.len() == LASTS {
            self.wanted.pop_front();
        }
        self.wanted.push_back(wanted);
        let lasting = self.wanted.iter().copied().min().filter(|_| self.wanted.len() == LASTS);
        lasting.unwrap_or(HOLDERS)
    }
}

/// Holders that a model ought to have by what this node and its peers say that they compute now.
fn wanted(shared: &Shared, model: ModelId, layers: u32) -> u32 {
    let known = shared.registry.snapshot();
    let peers = known.values().filter(|announced| announced.serves).map(|announced| {
        let ours = announced.in_use.iter().filter(|stage| stage.model == model);
        ours.map(|stage| stage.layers).collect()
    });
    let here = shared.serving.stages().in_use().into_iter().filter(|key| key.model == model).map(|key| key.layers);
    let in_use: Vec<Vec<LayerRange>> = peers.chain([here.collect()]).collect();
    placement::holders(layers, in_use.iter().map(Vec::as_slice))
}

/// This node and the peers that compute for others, in the order of their names.
fn members(shared: &Shared, model: ModelId, manifest: &Manifest) -> Vec<Member> {
    let held = shared.catalog.holding(model);
    let stages = shared.serving.stages();
    let room = stages.limits().memory;
    let member = |node, layers, head, room| {
        let (keeps, refuses) = (Vec::new(), Vec::new());
        Member { node, layers, head, room, keeps, refuses }
    };
    let known = shared.registry.snapshot();
    // Asked once for each stage, since thousands of peers may have it in use.
    let mut sizes: HashMap<(&str, u32, u32, bool), u64> = HashMap::new();
    let peers = known.iter().filter(|(_, announced)| announced.serves).map(|(node, announced)| {
        let holding = Registry::holding(&known, *node, model);
        let within = |range: &LayerRange| LayerRange::new(range.start, range.end.min(manifest.layers));
        let layers = holding.iter().flat_map(|holding| &holding.layers).map(within).filter(|range| !range.is_empty());
        // What it computes of this very model takes memory that is the model's anyway.
        let busy = announced.in_use.iter().filter(|stage| stage.model == model && !within(&stage.layers).is_empty());
        let taken = busy.filter_map(|stage| {
            let engine = stages.engines().iter().find(|engine| engine.name() == stage.engine)?;
            let (layers, head) = (within(&stage.layers), stage.head);
            let memory = || stages.memory_of(engine.as_ref(), manifest, layers, head);
            Some(*sizes.entry((engine.name(), layers.start, layers.end, head)).or_insert_with(memory))
        });
        let room = taken.fold(announced.free_memory, u64::saturating_add);
        member(*node, layers.collect(), holding.is_some_and(|holding| holding.head), room)
    });
    let mut members: Vec<Member> = peers.chain([member(shared.id, held.layers, held.head, room)]).collect();
    members.sort_unstable_by_key(|member| member.node);
    members
}

/// Adds what only this node knows of itself: it keeps what its host brought or pinned and what sessions use, and does not
/// take what its host deleted.
fn know_self(shared: &Shared, manifest: &Manifest, members: &mut [Member]) {
    let model = manifest.id();
    let busy: Vec<LayerRange> =
        shared.serving.stages().in_use().into_iter().filter(|key| key.model == model).map(|key| key.layers).collect();
    let pinned = shared.catalog.is_pinned(model);
    let (mut keeps, mut refuses) = (Vec::new(), Vec::new());
    for (kind, mark) in shared.catalog.marks(model) {
        let layer = match kind {
            ShardKind::Layer(layer) => layer,
            // The last layer counts only with the head.
            ShardKind::Head if mark == Mark::Deleted => manifest.layers.saturating_sub(1),
            _ => continue,
        };
        let used = busy.iter().any(|layers| layers.start <= layer && layer < layers.end);
        if mark == Mark::Deleted {
            refuses.push(layer);
        } else if mark != Mark::Placed || pinned || used {
            keeps.push(layer);
        }
    }
    if let Some(local) = members.iter_mut().find(|member| member.node == shared.id) {
        (local.keeps, local.refuses) = (merge_ranges(keeps), merge_ranges(refuses));
    }
}

/// What there is to do.
struct Errand {
    parts: Vec<Parts>,
    drop: Vec<LayerRange>,
    /// Whether the disk has no room for the new beside the old.
    drop_first: bool,
}

/// Fetches what this node should hold, if anything, and gives up what it should not; less of it where the disk has no room
/// for all.
async fn place(shared: &Arc<Shared>, manifest: &Arc<Manifest>, sight: Sight, disk: u64) -> Result<(), Fault> {
    let (deciding, known, holders) = (shared.clone(), manifest.clone(), sight.holders);
    let errand = blocking(move || errand(&deciding, &known, sight, disk)).await?;
    let Some(Errand { parts, drop, drop_first }) = errand else { return Ok(()) };
    if drop_first && !give_up(shared, manifest, holders, &drop, true).await? {
        return Ok(());
    }
    for parts in parts {
        fetch::pull(shared, &manifest.id().to_string(), &parts, Asker::Placement, None, None).await?;
    }
    if !drop_first && !drop.is_empty() {
        give_up(shared, manifest, holders, &drop, false).await?;
    }
    Ok(())
}

/// Hands this node's view of a model to the decisions about it.
fn with<T>(
    shared: &Shared,
    manifest: &Manifest,
    (members, holders): (&[Member], u32),
    decide: impl FnOnce(&Placement) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let stages = shared.serving.stages();
    let (engine, cuts) = choose(stages.engines(), shared.config.engine.as_deref(), manifest)?;
    let size = |layers, head| stages.memory_of(engine.as_ref(), manifest, layers, head);
    let (model, layers) = (manifest.id(), manifest.layers);
    decide(&Placement { model, layers, cuts: &cuts, holders, members, size: &size })
}

/// Takes milliseconds where thousands of nodes are known.
fn errand(shared: &Shared, manifest: &Manifest, sight: Sight, disk: u64) -> Result<Option<Errand>, Fault> {
    let Sight { mut members, waited, holders } = sight;
    know_self(shared, manifest, &mut members);
    let left = disk.saturating_sub(used(shared));
    let fits = |bytes: u64| Ok::<_, Fault>(bytes <= left && shared.catalog.excess(bytes).map_err(fault)?.is_none());
    loop {
        let found = with(shared, manifest, (&members, holders), |placement| {
            let size = |found: &Move| (placement.size)(found.hold, found.hold.end == manifest.layers);
            Ok(placement.decide(shared.id, waited).map(|found| (size(&found), found)))
        })?;
        let Some((size, found)) = found else { return Ok(None) };
        let mut parts = vec![Parts::Stage { layers: found.hold, head: found.hold.end == manifest.layers }];
        parts.extend((found.hold.start == 0).then_some(Parts::Coordinator));
        let missing = missing(shared, manifest, &parts)?;
        let freed = manifest.shards.iter().filter(|entry| goes(manifest, &found.drop, entry.kind));
        let freed = freed.map(|entry| entry.size).fold(0, u64::saturating_add);
        if fits(missing)? {
            return Ok(Some(Errand { parts, drop: found.drop, drop_first: false }));
        }
        if fits(missing.saturating_sub(freed))? {
            return Ok(Some(Errand { parts, drop: found.drop, drop_first: true }));
        }
        let smaller = size.saturating_sub(1);
        members.iter_mut().filter(|member| member.node == shared.id).for_each(|member| member.room = smaller);
    }
}

/// Whether a shard goes with these layers.
fn goes(manifest: &Manifest, drop: &[LayerRange], kind: ShardKind) -> bool {
    let within = |layer: u32| drop.iter().any(|range| range.start <= layer && layer < range.end);
    match kind {
        ShardKind::Layer(layer) => within(layer),
        ShardKind::Head => within(manifest.layers.saturating_sub(1)),
        _ => false,
    }
}

/// Gives up those of these layers that enough others have, who say so when they are asked; with `whole` all or none of
/// them. Says whether all went.
async fn give_up(
    shared: &Arc<Shared>,
    manifest: &Arc<Manifest>,
    holders: u32,
    drop: &[LayerRange],
    whole: bool,
) -> Result<bool, Fault> {
    let members = members(shared, manifest.id(), manifest);
    let before =
        with(shared, manifest, (&members, holders), |placement| Ok(placement.holders_before(shared.id, drop)))?;
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
        know_self(&shared, &manifest, &mut members);
        let spare = with(&shared, &manifest, (&members, holders), |placement| Ok(placement.spare(shared.id)))?;
        let spare = |layer: &u32| spare.iter().any(|range| range.start <= *layer && *layer < range.end);
        let going = merge_ranges(drop.iter().flat_map(|range| range.start..range.end).filter(spare).collect());
        if going.is_empty() || (whole && going != drop) {
            return Ok(false);
        }
        let overlaps =
            |layers: LayerRange| going.iter().any(|range| range.start < layers.end && layers.start < range.end);
        shared.serving.stages().unload_idle_where(|key| key.model == model && overlaps(key.layers));
        let used = in_use(&shared, model, &manifest);
        let parts = |kind| goes(&manifest, &going, kind);
        let gone = shared.catalog.give_up(model, &parts, &|kind| used.contains(&kind)).map_err(fault)?;
        tracing::info!(model = %model.short(), parts = gone.len(), "what enough others hold was given up");
        Ok(drop.iter().all(|range| (range.start..range.end).all(|layer| gone.contains(&ShardKind::Layer(layer)))))
    })
    .await
}

/// Bytes of all shards here.
fn used(shared: &Shared) -> u64 {
    let models = shared.catalog.models();
    let shards = models.iter().flat_map(|(_, manifest)| &manifest.shards);
    let here: HashMap<ShardId, u64> =
        shards.filter(|entry| shared.catalog.has(&entry.id)).map(|entry| (entry.id, entry.size)).collect();
    here.values().sum()
}

/// Bytes of shards of these parts that are not here.
fn missing(shared: &Shared, manifest: &Manifest, parts: &[Parts]) -> Result<u64, Fault> {
    let mut entries: Vec<&ShardEntry> = Vec::new();
    for parts in parts {
        entries.extend(fetch::select(manifest, parts)?);
    }
    let mut seen = HashSet::new();
    let absent = entries.into_iter().filter(|entry| !shared.catalog.has(&entry.id) && seen.insert(entry.id));
    Ok(absent.map(|entry| entry.size).sum())
}

#[cfg(test)]
mod tests;
