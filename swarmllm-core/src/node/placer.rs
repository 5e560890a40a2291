//! Fetches by itself what the swarm is short of, of models whose manifest is here, where the host allows it. What that is
//! is decided in `pipeline/placement.rs`. Nothing is given up: what is on the disk is its owner's.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::base::{Fault, LayerRange, ModelId, NodeId, ShardId};
use crate::model::{Manifest, ShardEntry};
use crate::node::fetch;
use crate::node::generation::blocking;
use crate::node::loaded::choose;
use crate::node::registry::Registry;
use crate::node::request::Parts;
use crate::node::shared::Shared;
use crate::pipeline::placement::{HOLDERS, Member, Placement};

/// Time between two decisions: what a node has got is known everywhere within a second or two.
const ROUND: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };

/// What was seen of a model, and in how many rounds since it changed. A node's room changes with what it computes, which
/// is no news here.
#[derive(Default)]
struct View {
    held: Vec<(NodeId, Vec<LayerRange>, bool)>,
    waited: u32,
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
                let waited = views.entry(model).or_default().look(&members);
                if let Err(fault) = place(&shared, &manifest, members, waited, disk).await {
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
        *self = Self { held, waited: if same { self.waited.saturating_add(1) } else { 0 } };
        self.waited
    }
}

/// This node and the peers that compute for others, in the order of their names.
fn members(shared: &Shared, model: ModelId, manifest: &Manifest) -> Vec<Member> {
    let held = shared.catalog.holding(model);
    let room = shared.serving.stages().limits().memory;
    let local = Member { node: shared.id, layers: held.layers, head: held.head, room };
    let known = shared.registry.snapshot();
    let peers = known.iter().filter(|(_, announced)| announced.serves).map(|(node, announced)| {
        let holding = Registry::holding(&known, *node, model);
        let within = |range: &LayerRange| LayerRange::new(range.start, range.end.min(manifest.layers));
        let layers = holding.iter().flat_map(|holding| &holding.layers).map(within).filter(|range| !range.is_empty());
        let head = holding.is_some_and(|holding| holding.head);
        Member { node: *node, layers: layers.collect(), head, room: announced.free_memory }
    });
    let mut members: Vec<Member> = peers.chain([local]).collect();
    members.sort_unstable_by_key(|member| member.node);
    members
}

/// Fetches what this node should hold, if anything; less of it where the disk has no room for all.
async fn place(
    shared: &Arc<Shared>,
    manifest: &Arc<Manifest>,
    members: Vec<Member>,
    waited: u32,
    disk: u64,
) -> Result<(), Fault> {
    let (deciding, known) = (shared.clone(), manifest.clone());
    let wanted = blocking(move || wanted(&deciding, &known, members, waited, disk)).await?;
    for parts in wanted {
        fetch::pull(shared, &manifest.id().to_string(), &parts, None, None).await?;
    }
    Ok(())
}

/// Takes milliseconds where thousands of nodes are known.
fn wanted(
    shared: &Shared,
    manifest: &Manifest,
    mut members: Vec<Member>,
    waited: u32,
    disk: u64,
) -> Result<Vec<Parts>, Fault> {
    let stages = shared.serving.stages();
    let (engine, cuts) = choose(stages.engines(), shared.config.engine.as_deref(), manifest)?;
    let size = |layers, head| stages.memory_of(engine.as_ref(), manifest, layers, head);
    let left = disk.saturating_sub(used(shared));
    loop {
        let placement = Placement {
            model: manifest.id(),
            layers: manifest.layers,
            cuts: &cuts,
            holders: HOLDERS,
            gives_up: false,
            members: &members,
            size: &size,
        };
        let Some(found) = placement.decide(shared.id, waited) else { return Ok(Vec::new()) };
        let head = found.hold.end == manifest.layers;
        let mut parts = vec![Parts::Stage { layers: found.hold, head }];
        parts.extend((found.hold.start == 0).then_some(Parts::Coordinator));
        if missing(shared, manifest, &parts)? <= left {
            return Ok(parts);
        }
        let smaller = size(found.hold, head).saturating_sub(1);
        members.iter_mut().filter(|member| member.node == shared.id).for_each(|member| member.room = smaller);
    }
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
