//! What the planner is told of this node and of its peers, and the routes that follow.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

use crate::base::{ErrorKind, Fault, LayerRange, NodeId};
use crate::node::error::GenerateError;
use crate::node::generation::load;
use crate::node::loaded::LoadedModel;
use crate::node::registry::{Known, Registry};
use crate::node::seek::{key_of, seek};
use crate::node::shared::Shared;
use crate::pipeline::plan::{Candidate, Plan, PlanRequest, plan};
use crate::pipeline::route::{Route, Routes};
use crate::pipeline::stages::StageKey;
use crate::pipeline::{stand_by, watch};
use crate::wire::announce::{Announcement, InUse};
use crate::wire::control::Host;

/// Round trip assumed for a peer that has not been measured yet: a far one.
const UNKNOWN_RTT_US: u32 = 500_000;
/// How often a plan is looked for while holders are sought.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longest wait for lost peers to return.
const RETURNS: Duration = Duration::from_secs(2);
/// Who is connected again says within this time what it holds.
const GREETS: Duration = Duration::from_millis(500);

/// Which stages would answer.
pub(crate) async fn plan_for(shared: &Arc<Shared>, name: &str) -> Result<Plan, GenerateError> {
    let model = load(shared, name).await?;
    Ok(first_route(shared, &model, false).await?.plan)
}

/// The best route for a new answer. Where there is none, and peers that were lost are being dialled, it waits a moment for
/// them: this machine may have slept, or its line may just be back.
pub(super) async fn first_route(shared: &Arc<Shared>, model: &LoadedModel, stand_by: bool) -> Result<Route, Fault> {
    let none = match find_route(shared, model, &[], stand_by).await {
        Err(fault) if fault.kind() == ErrorKind::NoPlan => fault,
        found => return found,
    };
    let mut until = Instant::now();
    let last = until + RETURNS;
    let mut attempts = Attempts::default();
    loop {
        if reconnect(shared).await > 0 {
            until = last.min(Instant::now() + GREETS);
        }
        if Instant::now() >= until {
            return Err(none);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
        if let Some(plan) = attempts.plan(shared, model, &[]) {
            return Ok(route_of(shared, model, &[], stand_by, plan));
        }
    }
}

/// Plans that are tried while peers are awaited: each as soon as something else is known of the swarm, and not before, since
/// among thousands of nodes one takes some 20 ms.
#[derive(Default)]
struct Attempts {
    tried: Option<Arc<Known>>,
}

impl Attempts {
    fn plan(&mut self, shared: &Shared, model: &LoadedModel, without: &[NodeId]) -> Option<Plan> {
        let known = shared.registry.snapshot();
        if self.tried.as_ref().is_some_and(|tried| Arc::ptr_eq(tried, &known)) {
            return None;
        }
        self.tried = Some(known);
        make_plan(shared, model, without).ok()
    }
}

/// Dials who was lost; how many of them are being dialled.
async fn reconnect(shared: &Shared) -> usize {
    match &shared.net {
        Some(net) => net.reconnect().await.unwrap_or(0),
        None => 0,
    }
}

/// The best route that does without some nodes; where those that are known do not give one, who was lost is dialled, and
/// those that the swarm's table names are asked too.
async fn find_route(
    shared: &Arc<Shared>,
    model: &LoadedModel,
    without: &[NodeId],
    stand_by: bool,
) -> Result<Route, Fault> {
    let plan = match make_plan(shared, model, without) {
        Err(none) => seek_plan(shared, model, without).await.ok_or(none)?,
        Ok(plan) => plan,
    };
    Ok(route_of(shared, model, without, stand_by, plan))
}

/// Seeks holders until there is a plan with them: it waits for no search that is slow, and for none that is vain.
async fn seek_plan(shared: &Arc<Shared>, model: &LoadedModel, without: &[NodeId]) -> Option<Plan> {
    let mut attempts = Attempts::default();
    reconnect(shared).await;
    let search = seek(shared, key_of(model.id));
    tokio::pin!(search);
    loop {
        let ended = tokio::time::timeout(LOOK_AGAIN, &mut search).await.is_ok();
        if let Some(plan) = attempts.plan(shared, model, without) {
            return Some(plan);
        }
        if ended {
            return None;
        }
    }
}

fn route_of(shared: &Shared, model: &LoadedModel, without: &[NodeId], stand_by: bool, plan: Plan) -> Route {
    let nodes = plan.stages.iter().map(|stage| stage.node);
    let (addresses, weights) = (addresses(shared, nodes), weights(model, &plan));
    let stand_bys = if stand_by { stand_bys(shared, model, without, &plan) } else { Vec::new() };
    Route { addresses, weights, stand_bys, plan }
}

/// Finds routes for a session under way.
pub(super) struct Finding {
    pub shared: Arc<Shared>,
    pub model: Arc<LoadedModel>,
    /// Whether stages are to have stand-bys.
    pub stand_by: bool,
}

impl Routes for Finding {
    fn find(&self, without: Vec<NodeId>) -> BoxFuture<'_, Result<Route, Fault>> {
        Box::pin(async move { find_route(&self.shared, &self.model, &without, self.stand_by).await })
    }

    fn rouse(&self) {
        let Some(net) = self.shared.net.clone() else { return };
        let hosts = candidates(&self.shared, &self.model).into_iter().map(|candidate| candidate.node);
        let peers: Vec<NodeId> = hosts.filter(|node| *node != self.shared.id).collect();
        self.shared.tasks.spawn("rouse", async move { watch::rouse(&net, peers.into_iter()).await });
    }
}

fn make_plan(shared: &Shared, model: &LoadedModel, without: &[NodeId]) -> Result<Plan, Fault> {
    plan_among(shared, model, &candidates_without(shared, model, without))
}

fn candidates_without(shared: &Shared, model: &LoadedModel, without: &[NodeId]) -> Vec<Candidate> {
    let mut candidates = candidates(shared, model);
    candidates.retain(|candidate| !without.contains(&candidate.node));
    candidates
}

fn plan_among(shared: &Shared, model: &LoadedModel, candidates: &[Candidate]) -> Result<Plan, Fault> {
    with_request(shared, model, candidates, plan)
        .map_err(|error| Fault::new(ErrorKind::NoPlan, format!("no plan for {}: {error}", model.manifest.name)))
}

/// Who may follow each stage of a plan.
fn stand_bys(shared: &Shared, model: &LoadedModel, without: &[NodeId], plan: &Plan) -> Vec<Option<Host>> {
    let candidates = candidates_without(shared, model, without);
    let chosen = with_request(shared, model, &candidates, |request| stand_by::choose(request, &plan.stages));
    let of = |node: NodeId| Host { node, addresses: addresses(shared, [node].into_iter()).concat() };
    chosen.into_iter().map(|node| node.map(of)).collect()
}

fn with_request<T>(
    shared: &Shared,
    model: &LoadedModel,
    candidates: &[Candidate],
    ask: impl FnOnce(&PlanRequest) -> T,
) -> T {
    let stages = shared.serving.stages();
    let memory = |layers, head| stages.memory_of(model.engine.as_ref(), &model.manifest, layers, head);
    let weight = |layers, head| model.manifest.stage_weight(layers, head);
    let known = shared.registry.snapshot();
    let told = known.iter().map(|(node, announcement)| (*node, &announcement.round_trips[..])).collect();
    let request = PlanRequest {
        model: model.id,
        layers: model.manifest.layers,
        cuts: &model.cuts,
        candidates,
        memory: &memory,
        weight: &weight,
        told: &told,
    };
    ask(&request)
}

/// This node and every peer that says it serves the model. What a peer claims decides only who is asked.
fn candidates(shared: &Shared, model: &LoadedModel) -> Vec<Candidate> {
    let held = shared.catalog.holding(model.id);
    let stages = shared.serving.stages();
    let pace_ns = |node| shared.coordinator.speeds.pace_ns(model.id, node);
    let ours = |key: &StageKey| key.model == model.id && key.engine == model.engine.name();
    let loaded = stages.in_use().into_iter().filter(ours);
    let local = Candidate {
        node: shared.id,
        layers: held.layers,
        head: held.head,
        rtt_us: 0,
        pace_ns: pace_ns(shared.id),
        free_memory: stages.memory_free(),
        loaded: loaded.map(|key| (key.layers, key.head)).collect(),
    };
    let known = shared.registry.snapshot();
    let peer = |(node, announcement): (&NodeId, &Announcement)| {
        let holding = Registry::holding(&known, *node, model.id)?;
        let clipped = |range: &LayerRange| LayerRange::new(range.start, range.end.min(model.manifest.layers));
        let layers = holding.layers.iter().map(clipped).filter(|range| !range.is_empty()).collect();
        peer_candidate(shared, model, (*node, announcement), layers, holding.head)
    };
    std::iter::once(local).chain(known.iter().filter_map(peer)).collect()
}

/// A peer that says it computes for others, as if it held these layers.
fn peer_candidate(
    shared: &Shared,
    model: &LoadedModel,
    (node, announcement): (NodeId, &Announcement),
    layers: Vec<LayerRange>,
    head: bool,
) -> Option<Candidate> {
    let rtt = shared.net.as_ref()?.peers().lookup(node).and_then(|peer| peer.rtt);
    let rtt_us = rtt.map_or(UNKNOWN_RTT_US, rtt_us);
    let pace_ns = shared.coordinator.speeds.pace_ns(model.id, node);
    let ours = |stage: &&InUse| stage.model == model.id && stage.engine == model.engine.name();
    let loaded = announcement.in_use.iter().filter(ours).map(|stage| (stage.layers, stage.head)).collect();
    let free_memory = announcement.free_memory;
    announcement.serves.then_some(Candidate { node, layers, head, rtt_us, pace_ns, free_memory, loaded })
}

/// A measured round trip in microseconds; only a node itself is none away from itself.
pub(super) fn rtt_us(rtt: Duration) -> u32 {
    rtt.as_micros().try_into().unwrap_or(u32::MAX).max(1)
}

/// The plan if this peer held the whole model.
pub(super) async fn plan_if_held(shared: &Arc<Shared>, model: &str, peer: NodeId) -> Result<Plan, Fault> {
    let model = load(shared, model).await?;
    let known = shared.registry.snapshot();
    let silent = || {
        let text = format!("peer {} is not known to compute for others", peer.short());
        Fault::new(ErrorKind::PeerUnreachable, text)
    };
    let announcement = known.get(&peer).ok_or_else(silent)?;
    let whole = vec![LayerRange::new(0, model.manifest.layers)];
    let candidate = peer_candidate(shared, &model, (peer, announcement), whole, true).ok_or_else(silent)?;
    let mut among = candidates(shared, &model);
    among.retain(|other| other.node != peer);
    among.push(candidate);
    plan_among(shared, &model, &among)
}

/// Where each of these nodes may be dialled.
fn addresses(shared: &Shared, nodes: impl Iterator<Item = NodeId>) -> Vec<Vec<String>> {
    let known = shared.registry.snapshot();
    let of = |node: NodeId| known.get(&node).map(|announcement| announcement.addresses.clone()).unwrap_or_default();
    nodes.map(of).collect()
}

/// What the ledger prices each stage by.
fn weights(model: &LoadedModel, plan: &Plan) -> Vec<u64> {
    plan.stages.iter().map(|stage| model.manifest.stage_weight(stage.layers, stage.head)).collect()
}
