//! Input of the planner, and the routes made from its plans.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::watch::Receiver;

use crate::base::{ErrorKind, Fault, LayerRange, NodeId};
use crate::net::NetHandle;
use crate::node::answer::readiness::PlanFailure;
use crate::node::api::error::GenerateError;
use crate::node::blocking::blocking;
use crate::node::models::loaded::{LoadedModel, PlannedModel};
use crate::node::models::prepare::load;
use crate::node::shared::SharedState;
use crate::node::swarm::announcer::rtt_us;
use crate::node::swarm::dht_keys::dht_key;
use crate::node::swarm::greeting;
use crate::node::swarm::lookup::greet_providers;
use crate::node::swarm::registry::{KnownNode, ModelRegistry};
use crate::pipeline::host::context::MIN_CONTEXT;
use crate::pipeline::host::stages::StageKey;
use crate::pipeline::plan::standby;
use crate::pipeline::plan::{Candidate, NoPlan, Plan, PlanRequest, PlanStage, plan};
use crate::pipeline::route::failures::Failures;
use crate::pipeline::route::watch;
use crate::pipeline::route::{Route, RouteStage, Routes};
use crate::wire::announce::{Announcement, StageInUse};
use crate::wire::control::Host;

/// RTT assumed for an unmeasured peer: a far one.
const UNKNOWN_RTT_US: u32 = 500_000;
/// Least time between two plans during a search for holders, however often the registry changes.
const REPLAN_PAUSE: Duration = Duration::from_millis(50);
/// Time after which a plan is retried without a change: failed hosts may be usable again.
const REPLAN_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for lost peers to reconnect.
const RECONNECT_WAIT: Duration = Duration::from_secs(2);
/// Time for the hello of a reconnected peer.
const HELLO_WAIT: Duration = Duration::from_millis(500);
/// Longest wait for candidates if recently failed hosts would give a plan too.
const GREETING_WAIT: Duration = Duration::from_secs(1);

/// The plan that a request would get.
pub(crate) async fn plan_for(shared: &Arc<SharedState>, name: &str) -> Result<Plan, GenerateError> {
    let model = load(shared, name).await?;
    Ok(first_route(shared, &model, false).await?.plan())
}

/// The best route for a new answer. If there is none and lost peers are being dialled, it waits a moment for them: the
/// machine may have slept, or its link may have just returned. Cancel-safe.
pub(super) async fn first_route(
    shared: &Arc<SharedState>,
    model: &Arc<LoadedModel>,
    standby: bool,
) -> Result<Route, Fault> {
    let none = match find_route(shared, model, &HashSet::new(), standby).await {
        Err(fault) if fault.kind() == ErrorKind::NoPlan => fault,
        found => return found,
    };
    let mut until = Instant::now();
    let last = until + RECONNECT_WAIT;
    let mut retry = PlanRetry::new(shared.registry.changes());
    loop {
        if reconnect(shared.net.as_ref()).await > 0 {
            until = last.min(Instant::now() + HELLO_WAIT);
        }
        if Instant::now() >= until {
            return Err(none);
        }
        // Dials may have ended without a change of the registry.
        let _ = tokio::time::timeout(HELLO_WAIT / 2, retry.next()).await;
        if let Ok(plan) = make_plan(shared, model, with_failed(&shared.coordinator.failures, &HashSet::new())).await {
            return route_of(shared, model, &HashSet::new(), standby, plan).await;
        }
    }
}

/// Dials lost peers; returns how many dials run.
async fn reconnect(net: Option<&NetHandle>) -> usize {
    match net {
        Some(net) => net.reconnect().await.unwrap_or(0),
        None => 0,
    }
}

/// The best route without some nodes. Preference: greeted hosts, then candidates, then recently failed hosts. If they give
/// no route, lost peers are dialled and providers from the DHT are greeted.
async fn find_route(
    shared: &Arc<SharedState>,
    model: &Arc<LoadedModel>,
    without: &HashSet<NodeId>,
    standby: bool,
) -> Result<Route, Fault> {
    let plan = match make_plan(shared, model, with_failed(&shared.coordinator.failures, without)).await {
        Ok(plan) => {
            greeting::greet_in_background(shared, model.id);
            plan
        }
        Err(_) => fallback_plan(shared, model, without).await?,
    };
    route_of(shared, model, without, standby, plan).await
}

/// `without`, and the recently failed nodes.
fn with_failed(failures: &Failures, without: &HashSet<NodeId>) -> HashSet<NodeId> {
    without | &failures.now()
}

/// A plan if greeted hosts without recent failures give none.
async fn fallback_plan(
    shared: &Arc<SharedState>,
    model: &Arc<LoadedModel>,
    without: &HashSet<NodeId>,
) -> Result<Plan, Fault> {
    let none = match make_plan(shared, model, without.clone()).await {
        Ok(with_failed) if greeting::has_candidates(shared, model.id) => {
            let greeted = search_plan(shared, model, without, greeting::greet(shared, model.id));
            return match tokio::time::timeout(GREETING_WAIT, greeted).await {
                Ok(Some(plan)) => Ok(plan),
                Ok(None) | Err(_) => Ok(with_failed),
            };
        }
        Ok(with_failed) => return Ok(with_failed),
        Err(none) => none,
    };
    // Lost peers come first: a session has little time for a new route. Greetings and the lookup run in parallel: silent
    // candidates must not delay the DHT.
    reconnect(shared.net.as_ref()).await;
    let search = async {
        let (greeted, found) =
            tokio::join!(greeting::greet(shared, model.id), greet_providers(shared, dht_key(model.id)));
        greeted + found
    };
    search_plan(shared, model, without, search).await.ok_or(none)
}

/// Searches for holders until they give a plan; returns as soon as they do, or `None` when the search ends without one.
async fn search_plan(
    shared: &Arc<SharedState>,
    model: &Arc<LoadedModel>,
    without: &HashSet<NodeId>,
    search: impl Future<Output = usize>,
) -> Option<Plan> {
    let mut retry = PlanRetry::new(shared.registry.changes());
    tokio::pin!(search);
    loop {
        let ended = tokio::select! {
            _ = &mut search => true,
            () = retry.next() => false,
        };
        if let Ok(plan) = make_plan(shared, model, with_failed(&shared.coordinator.failures, without)).await {
            return Some(plan);
        }
        if ended {
            return None;
        }
    }
}

/// Schedule of plans during a search: soon after each change of the registry, rarely without one.
struct PlanRetry {
    changes: Receiver<()>,
    timeout: Duration,
}

impl PlanRetry {
    fn new(mut changes: Receiver<()>) -> Self {
        // The registry may have changed since the previous plan.
        changes.mark_changed();
        Self { changes, timeout: REPLAN_TIMEOUT }
    }

    /// Waits until the next plan is due. Cancel-safe.
    async fn next(&mut self) {
        tokio::time::sleep(REPLAN_PAUSE).await;
        // Never closed: the registry lives as long as the node.
        let _ = tokio::time::timeout(self.timeout, self.changes.changed()).await;
    }
}

async fn route_of(
    shared: &Arc<SharedState>,
    model: &Arc<LoadedModel>,
    without: &HashSet<NodeId>,
    standby: bool,
    plan: Plan,
) -> Result<Route, Fault> {
    let (shared, model, without) = (shared.clone(), model.clone(), without.clone());
    blocking(move || {
        let addresses = addresses(&shared.registry, plan.stages.iter().map(|stage| stage.node));
        let standbys = if standby { standbys(&shared, &model, &without, &plan) } else { Vec::new() };
        let standbys = standbys.into_iter().chain(std::iter::repeat(None));
        let stage = |((planned, addresses), standby): ((PlanStage, Vec<String>), Option<Host>)| {
            let weight = model.manifest.stage_weight(planned.layers, planned.head);
            RouteStage::new(planned, addresses, weight, standby)
        };
        let stages = plan.stages.iter().copied().zip(addresses).zip(standbys).map(stage).collect();
        Ok(Route { model: plan.model, stages, token_us: plan.token_us })
    })
    .await
}

/// Finds routes for a running session.
pub(super) struct RouteFinder {
    pub shared: Arc<SharedState>,
    pub model: Arc<LoadedModel>,
    /// Whether stages get hot standbys.
    pub standby: bool,
}

impl Routes for RouteFinder {
    fn find(&self, without: Vec<NodeId>) -> BoxFuture<'_, Result<Route, Fault>> {
        let without: HashSet<NodeId> = without.into_iter().collect();
        Box::pin(async move { find_route(&self.shared, &self.model, &without, self.standby).await })
    }

    fn probe_all(&self) {
        let Some(net) = self.shared.net.clone() else { return };
        let hosts = candidates(&self.shared, self.model.planned(), KnownNode::greeted)
            .into_iter()
            .map(|candidate| candidate.node);
        let peers: Vec<NodeId> = hosts.filter(|node| *node != self.shared.id).collect();
        self.shared.tasks.spawn("probe_all", async move { watch::probe_all(&net, peers.into_iter()).await });
    }
}

/// The best plan without some nodes. Runs in the plan pool: most plans take less than a millisecond, but with thousands of
/// hosts of little memory, where no chain of the fewest stages fits, a plan takes a tenth of a second.
async fn make_plan(
    shared: &Arc<SharedState>,
    model: &Arc<LoadedModel>,
    without: HashSet<NodeId>,
) -> Result<Plan, Fault> {
    let (planning, model) = (shared.clone(), model.clone());
    let plan = move || {
        let candidates = candidates_without(&planning, model.planned(), &without);
        plan_among(&planning, model.planned(), &candidates).map_err(|failure| failure.fault(&model))
    };
    shared.answers.planners.run(plan).await
}

fn candidates_without(shared: &SharedState, model: PlannedModel, without: &HashSet<NodeId>) -> Vec<Candidate> {
    let mut candidates = candidates(shared, model, KnownNode::greeted);
    candidates.retain(|candidate| !without.contains(&candidate.node));
    candidates
}

/// The plan that a request would get, including as many candidates as it would greet. Determines the model's readiness.
/// Blocks.
pub(crate) fn likely_plan(shared: &SharedState, model: PlannedModel) -> Result<Plan, PlanFailure> {
    let count = Cell::new(0);
    let likely = |announced: &KnownNode| {
        let new = !announced.greeted() && announced.holding(model.id).is_some();
        count.set(count.get() + usize::from(new));
        !new || count.get() <= greeting::MAX_CANDIDATES
    };
    plan_among(shared, model, &candidates(shared, model, likely))
}

/// Without a set context, hosts shrink it to the memory. If no chain fits the usual context, the plan is the one with the
/// longest context that fits.
fn plan_among(shared: &SharedState, model: PlannedModel, candidates: &[Candidate]) -> Result<Plan, PlanFailure> {
    let stages = &shared.models.stages;
    let mut contexts = stages.planned_contexts(model.manifest).peekable();
    loop {
        let context = contexts.next().unwrap_or(MIN_CONTEXT);
        match with_request(shared, model, candidates, Some(context), plan) {
            Err(NoPlan::NoMemory { .. }) if contexts.peek().is_some() => {}
            found => return found.map_err(|reason| PlanFailure { reason, savings: stages.savings(context) }),
        }
    }
}

/// A standby for each stage of a plan.
fn standbys(shared: &SharedState, model: &LoadedModel, without: &HashSet<NodeId>, plan: &Plan) -> Vec<Option<Host>> {
    let (model, ask) = (model.planned(), |request: &PlanRequest| standby::choose_standbys(request, &plan.stages));
    let candidates = candidates_without(shared, model, without);
    let chosen = with_request(shared, model, &candidates, None, ask);
    let of = |node: NodeId| Host { node, addresses: addresses(&shared.registry, [node].into_iter()).concat() };
    chosen.into_iter().map(|node| node.map(of)).collect()
}

/// Calls the planner with stages of the given context, by default the usual one.
fn with_request<T>(
    shared: &SharedState,
    model: PlannedModel,
    candidates: &[Candidate],
    context: Option<u32>,
    ask: impl FnOnce(&PlanRequest) -> T,
) -> T {
    let PlannedModel { id, manifest, engine, cuts } = model;
    let stages = &shared.models.stages;
    let memory = |layers, head| match context {
        Some(context) => stages.memory_with(engine, manifest, (layers, head), context),
        None => stages.memory_of(engine, manifest, layers, head),
    };
    let weight = |layers, head| manifest.stage_weight(layers, head);
    let known = shared.registry.snapshot();
    let reported = |candidate: &Candidate| Some((candidate.node, &known.get(&candidate.node)?.round_trips[..]));
    let reported = candidates.iter().filter_map(reported).collect();
    let request = PlanRequest {
        model: id,
        layers: manifest.layers,
        cuts,
        candidates,
        memory: &memory,
        weight: &weight,
        round_trips: &reported,
    };
    ask(&request)
}

/// This node and each peer accepted by `among` that announces to serve the model. Claims are untrusted: they only decide
/// which hosts are asked.
fn candidates(shared: &SharedState, model: PlannedModel, among: impl Fn(&KnownNode) -> bool) -> Vec<Candidate> {
    let held = shared.models.catalog.holding(model.id);
    let stages = &shared.models.stages;
    let ns_per_unit = |node| shared.coordinator.speeds.ns_per_unit(model.id, node);
    let ours = |key: &StageKey| key.model == model.id && key.engine == model.engine.name();
    let loaded = stages.in_use().into_iter().filter(ours);
    let local = Candidate {
        node: shared.id,
        layers: held.layers,
        head: held.head,
        rtt_us: 0,
        ns_per_unit: ns_per_unit(shared.id),
        free_memory: stages.memory_free(),
        loaded: loaded.map(|key| (key.layers, key.head)).collect(),
    };
    let known = shared.registry.snapshot();
    let peer = |(node, announcement): (&NodeId, &KnownNode)| {
        let holding = announcement.holding(model.id)?;
        let clipped = |range: &LayerRange| LayerRange::new(range.start, range.end.min(model.manifest.layers));
        let layers = holding.layers.iter().map(clipped).filter(|range| !range.is_empty()).collect();
        peer_candidate(shared, model, (*node, announcement), layers, holding.head)
    };
    let peers = known.iter().filter(|(_, announced)| among(announced));
    std::iter::once(local).chain(peers.filter_map(peer)).collect()
}

/// A serving peer as a planner's candidate, with these layers.
fn peer_candidate(
    shared: &SharedState,
    model: PlannedModel,
    (node, announcement): (NodeId, &Announcement),
    layers: Vec<LayerRange>,
    head: bool,
) -> Option<Candidate> {
    let rtt = shared.peers.lookup(node).and_then(|peer| peer.rtt);
    let rtt_us = rtt.map_or(UNKNOWN_RTT_US, rtt_us);
    let ns_per_unit = shared.coordinator.speeds.ns_per_unit(model.id, node);
    let ours = |stage: &&StageInUse| stage.model == model.id && stage.engine == model.engine.name();
    let loaded = announcement.in_use.iter().filter(ours).map(|stage| (stage.layers, stage.head)).collect();
    let free_memory = announcement.free_memory;
    announcement.serves.then_some(Candidate { node, layers, head, rtt_us, ns_per_unit, free_memory, loaded })
}

/// The plan if this peer held the whole model.
pub(crate) async fn plan_if_held(shared: &Arc<SharedState>, model: &str, peer: NodeId) -> Result<Plan, Fault> {
    let (planning, model) = (shared.clone(), load(shared, model).await?);
    let plan = move || {
        let known = planning.registry.snapshot();
        let unknown = || {
            let text = format!("peer {} is not known to compute for others", peer.short());
            Fault::new(ErrorKind::PeerUnreachable, text)
        };
        let announcement = known.get(&peer).ok_or_else(unknown)?;
        let whole = vec![LayerRange::new(0, model.manifest.layers)];
        let planned = model.planned();
        let candidate = peer_candidate(&planning, planned, (peer, announcement), whole, true).ok_or_else(unknown)?;
        let mut among = candidates(&planning, planned, KnownNode::greeted);
        among.retain(|other| other.node != peer);
        among.push(candidate);
        plan_among(&planning, planned, &among).map_err(|failure| failure.fault(&model))
    };
    shared.answers.planners.run(plan).await
}

/// Announced addresses of each node.
fn addresses(registry: &ModelRegistry, nodes: impl Iterator<Item = NodeId>) -> Vec<Vec<String>> {
    let known = registry.snapshot();
    let of = |node: NodeId| known.get(&node).map(|announcement| announcement.addresses.clone()).unwrap_or_default();
    nodes.map(of).collect()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::sync::watch;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::base::SessionId;
    use crate::engine::echo::EchoStage;
    use crate::engine::{CutRules, Embedder, Engine, EngineError, Stage, StageConfig};
    use crate::model::manifest::tests::small_model;
    use crate::model::{EmbeddingSource, Manifest, StageSource};
    use crate::node::{ImportOptions, Node, Preset};
    use crate::pipeline::host::slots::SlotOwner;
    use crate::pipeline::host::stages::{SlotLease, SlotRequest};
    use crate::wire::prefix::Prefix;

    /// The echo engine for any architecture; takes one byte of memory per position of a layer.
    struct Positions;

    impl Engine for Positions {
        fn name(&self) -> &'static str {
            "positions"
        }

        fn cuts(&self, _: &Manifest) -> Result<CutRules, EngineError> {
            Ok(CutRules::any())
        }

        fn memory(&self, _: &Manifest, layers: LayerRange, _: bool, config: &StageConfig) -> u64 {
            u64::from(layers.len()) * u64::from(config.context)
        }

        fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
            Ok(Box::new(EchoStage::new(7, source.layers, source.manifest.width, None, config.clone())))
        }

        fn load_embedder(&self, _: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
            Err(EngineError::Gone)
        }
    }

    /// A model of four layers with a trained context of `context`.
    fn model(context: u32) -> Vec<u8> {
        let mut bytes = small_model("small", 4, false, true, 1);
        let key = b"llama.context_length";
        let at = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len() + size_of::<u32>();
        bytes[at..at + size_of::<u32>()].copy_from_slice(&context.to_le_bytes());
        bytes
    }

    #[tokio::test]
    async fn plans_are_retried_after_changes_and_rarely_without() {
        const RARELY: Duration = Duration::from_millis(400);
        let (registry, changes) = watch::channel(());
        let took = async |retry: &mut PlanRetry| {
            let begun = Instant::now();
            retry.next().await;
            begun.elapsed()
        };
        // A missed change would block this test.
        let mut retry = PlanRetry { timeout: Duration::from_secs(3600), ..PlanRetry::new(changes.clone()) };
        assert!(took(&mut retry).await >= REPLAN_PAUSE, "earlier changes count");
        registry.send_replace(());
        registry.send_replace(());
        assert!(took(&mut retry).await >= REPLAN_PAUSE);
        let mut retry = PlanRetry { timeout: RARELY, ..retry };
        assert!(took(&mut retry).await >= RARELY, "nothing changed since");
    }

    #[tokio::test]
    async fn a_shrunk_stage_is_reloaded_for_a_longer_text() {
        const BUDGET: u64 = 10_000;
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("model.gguf");
        std::fs::write(&file, model(8192)).unwrap();
        let builder = Node::builder().data_dir(dir.path().join("data")).preset(Preset::Offline).memory(BUDGET);
        let node = builder.engines(vec![Arc::new(Positions)]).start().await.unwrap();
        let model = node.import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap().id;
        let stages = &node.shared().models.stages;
        let open = async |start, least| -> Result<SlotLease, Fault> {
            let (layers, engine) = (LayerRange::new(start, start + 2), Positions.name().to_owned());
            let key = StageKey { model, layers, head: start == 2, engine };
            let owner = SlotOwner { coordinator: node.id(), session: SessionId([1; 16]), epoch: 0 };
            let claim = SlotRequest { owner, least, prefix: &Prefix::default(), over: &CancellationToken::new() };
            Ok(stages.acquire(key, claim).await?.0)
        };
        let whole = open(0, 8).await.unwrap();
        assert_eq!(whole.context(), 4096, "half of the memory is the limit");
        let rest = (BUDGET - 2 * 4096) / 2;
        let shrunk = open(2, 8).await.unwrap();
        assert!((600..=rest as u32).contains(&shrunk.context()), "{} of {rest}", shrunk.context());
        let refused = open(2, 2000).await.err().unwrap();
        assert_eq!(refused.kind(), ErrorKind::ContextOverflow, "{refused}");
        for setting in ["`memory`", "`context`", "`sessions`"] {
            assert!(refused.to_string().contains(setting), "{refused} names {setting}");
        }
        drop((whole, shrunk));
        while stages.memory_free() < BUDGET {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(open(2, 2000).await.unwrap().context(), 4096);
        node.shutdown(Duration::from_secs(5)).await;
    }
}
