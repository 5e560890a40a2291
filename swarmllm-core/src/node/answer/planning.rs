//! What the planner is told of this node and of its peers, and the routes that follow.

use std::cell::Cell;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use tokio::sync::watch::Receiver;

use crate::base::{ErrorKind, Fault, LayerRange, NodeId};
use crate::node::answer::readiness::Unplanned;
use crate::node::api::error::GenerateError;
use crate::node::blocking::blocking;
use crate::node::models::loaded::{LoadedModel, Planned};
use crate::node::models::prepare::load;
use crate::node::shared::Shared;
use crate::node::swarm::announce::rtt_us;
use crate::node::swarm::directory::Announced;
use crate::node::swarm::greeting;
use crate::node::swarm::lookup::seek;
use crate::node::swarm::table_keys::key_of;
use crate::pipeline::context::LEAST_CONTEXT;
use crate::pipeline::plan::{Candidate, NoPlan, Plan, PlanRequest, PlanStage, plan};
use crate::pipeline::route::{Route, RouteStage, Routes};
use crate::pipeline::stages::StageKey;
use crate::pipeline::{stand_by, watch};
use crate::wire::announce::{Announcement, InUse};
use crate::wire::control::Host;

/// Round trip assumed for a peer that has not been measured yet: a far one.
const UNKNOWN_RTT_US: u32 = 500_000;
/// Least time between two plans while holders are sought, however much becomes known of the swarm.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Time after which a plan is looked for although nothing else became known: hosts that failed may be tried again.
const LOOK_ANYWAY: Duration = Duration::from_secs(1);
/// Longest wait for lost peers to return.
const RETURNS: Duration = Duration::from_secs(2);
/// Who is connected again says within this time what it holds.
const GREETS: Duration = Duration::from_millis(500);

/// Wait for nodes that are known by gossip alone, where hosts that failed lately could answer as well.
const GREETINGS: Duration = Duration::from_secs(1);

/// Which stages would answer.
pub(crate) async fn plan_for(shared: &Arc<Shared>, name: &str) -> Result<Plan, GenerateError> {
    let model = load(shared, name).await?;
    Ok(first_route(shared, &model, false).await?.plan())
}

/// The best route for a new answer. Where there is none, and peers that were lost are being dialled, it waits a moment for
/// them: this machine may have slept, or its line may just be back.
pub(super) async fn first_route(
    shared: &Arc<Shared>,
    model: &Arc<LoadedModel>,
    stand_by: bool,
) -> Result<Route, Fault> {
    let none = match find_route(shared, model, &HashSet::new(), stand_by).await {
        Err(fault) if fault.kind() == ErrorKind::NoPlan => fault,
        found => return found,
    };
    let mut until = Instant::now();
    let last = until + RETURNS;
    let mut looks = Looks::new(shared.registry.changes());
    loop {
        if reconnect(shared).await > 0 {
            until = last.min(Instant::now() + GREETS);
        }
        if Instant::now() >= until {
            return Err(none);
        }
        // Dials may have ended meanwhile without a change.
        let _ = tokio::time::timeout(GREETS / 2, looks.next()).await;
        if let Ok(plan) = make_plan(shared, model, unfailing(shared, &HashSet::new())).await {
            return route_of(shared, model, &HashSet::new(), stand_by, plan).await;
        }
    }
}

/// Dials who was lost; how many of them are being dialled.
async fn reconnect(shared: &Shared) -> usize {
    match &shared.net {
        Some(net) => net.reconnect().await.unwrap_or(0),
        None => 0,
    }
}

/// The best route that does without some nodes. Hosts that failed lately come last, behind those that are known by gossip alone
/// and are greeted first. Where all of them do not give a route, who was lost is dialled, and those that the swarm's table
/// names are asked too.
async fn find_route(
    shared: &Arc<Shared>,
    model: &Arc<LoadedModel>,
    without: &HashSet<NodeId>,
    stand_by: bool,
) -> Result<Route, Fault> {
    let plan = match make_plan(shared, model, unfailing(shared, without)).await {
        Ok(plan) => {
            greeting::greet_in_background(shared, model.id);
            plan
        }
        Err(_) => later_plan(shared, model, without).await?,
    };
    route_of(shared, model, without, stand_by, plan).await
}

/// These nodes, and those that failed lately.
fn unfailing(shared: &Shared, without: &HashSet<NodeId>) -> HashSet<NodeId> {
    without | &shared.coordinator.failures.now()
}

/// A plan where the greeted hosts that have not failed lately give none.
async fn later_plan(shared: &Arc<Shared>, model: &Arc<LoadedModel>, without: &HashSet<NodeId>) -> Result<Plan, Fault> {
    let none = match make_plan(shared, model, without.clone()).await {
        Ok(with_failed) if greeting::any(shared, model.id) => {
            let greeted = search_plan(shared, model, without, greeting::greet(shared, model.id));
            return match tokio::time::timeout(GREETINGS, greeted).await {
                Ok(Some(plan)) => Ok(plan),
                Ok(None) | Err(_) => Ok(with_failed),
            };
        }
        Ok(with_failed) => return Ok(with_failed),
        Err(none) => none,
    };
    // Peers that were lost come first: a session has little time for another route. Candidates that do not answer must not hold
    // up the table.
    reconnect(shared).await;
    let search = async {
        let (greeted, found) = tokio::join!(greeting::greet(shared, model.id), seek(shared, key_of(model.id)));
        greeted + found
    };
    search_plan(shared, model, without, search).await.ok_or(none)
}

/// Searches for holders until there is a plan with them: it waits for no search that is slow, and for none that is vain.
async fn search_plan(
    shared: &Arc<Shared>,
    model: &Arc<LoadedModel>,
    without: &HashSet<NodeId>,
    search: impl Future<Output = usize>,
) -> Option<Plan> {
    let mut looks = Looks::new(shared.registry.changes());
    tokio::pin!(search);
    loop {
        let ended = tokio::select! {
            _ = &mut search => true,
            () = looks.next() => false,
        };
        if let Ok(plan) = make_plan(shared, model, unfailing(shared, without)).await {
            return Some(plan);
        }
        if ended {
            return None;
        }
    }
}

/// When a plan is looked for while nodes are awaited: soon after each change of what is known, and seldom without one.
struct Looks {
    changes: Receiver<()>,
    anyway: Duration,
}

impl Looks {
    fn new(mut changes: Receiver<()>) -> Self {
        // Since the plan before there may have been some.
        changes.mark_changed();
        Self { changes, anyway: LOOK_ANYWAY }
    }

    /// Waits for the next time. Cancel-safe.
    async fn next(&mut self) {
        tokio::time::sleep(LOOK_AGAIN).await;
        // The writer lives as long as the node.
        let _ = tokio::time::timeout(self.anyway, self.changes.changed()).await;
    }
}

async fn route_of(
    shared: &Arc<Shared>,
    model: &Arc<LoadedModel>,
    without: &HashSet<NodeId>,
    stand_by: bool,
    plan: Plan,
) -> Result<Route, Fault> {
    let (shared, model, without) = (shared.clone(), model.clone(), without.clone());
    blocking(move || {
        let addresses = addresses(&shared, plan.stages.iter().map(|stage| stage.node));
        let stand_bys = if stand_by { stand_bys(&shared, &model, &without, &plan) } else { Vec::new() };
        let stand_bys = stand_bys.into_iter().chain(std::iter::repeat(None));
        let stage = |((planned, addresses), stand_by): ((PlanStage, Vec<String>), Option<Host>)| {
            let weight = model.manifest.stage_weight(planned.layers, planned.head);
            RouteStage::new(planned, addresses, weight, stand_by)
        };
        let stages = plan.stages.iter().copied().zip(addresses).zip(stand_bys).map(stage).collect();
        Ok(Route { model: plan.model, stages, token_us: plan.token_us })
    })
    .await
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
        let without: HashSet<NodeId> = without.into_iter().collect();
        Box::pin(async move { find_route(&self.shared, &self.model, &without, self.stand_by).await })
    }

    fn rouse(&self) {
        let Some(net) = self.shared.net.clone() else { return };
        let hosts = candidates(&self.shared, self.model.planned(), Announced::greeted)
            .into_iter()
            .map(|candidate| candidate.node);
        let peers: Vec<NodeId> = hosts.filter(|node| *node != self.shared.id).collect();
        self.shared.tasks.spawn("rouse", async move { watch::rouse(&net, peers.into_iter()).await });
    }
}

/// The best plan that does without some nodes. Made off the runtime, and few at once: most take less than a millisecond, but
/// where thousands of hosts have little memory each, so that no chain of the fewest stages fits, one takes a tenth of a second.
async fn make_plan(shared: &Arc<Shared>, model: &Arc<LoadedModel>, without: HashSet<NodeId>) -> Result<Plan, Fault> {
    let (planning, model) = (shared.clone(), model.clone());
    let plan = move || {
        let candidates = candidates_without(&planning, model.planned(), &without);
        plan_among(&planning, model.planned(), &candidates).map_err(|none| none.of(&model))
    };
    shared.planners.make(plan).await
}

fn candidates_without(shared: &Shared, model: Planned, without: &HashSet<NodeId>) -> Vec<Candidate> {
    let mut candidates = candidates(shared, model, Announced::greeted);
    candidates.retain(|candidate| !without.contains(&candidate.node));
    candidates
}

/// The plan that a request would have, as many of those nodes included that are known by gossip alone as it would greet: the
/// judgement of whether the model is ready. Blocks.
pub(crate) fn likely_plan(shared: &Shared, model: Planned) -> Result<Plan, Unplanned> {
    let told = Cell::new(0);
    let likely = |announced: &Announced| {
        let new = !announced.greeted() && announced.holding(model.id).is_some();
        told.set(told.get() + usize::from(new));
        !new || told.get() <= greeting::MOST
    };
    plan_among(shared, model, &candidates(shared, model, likely))
}

/// Hosts shrink a context that nobody set to what fits. So where no chain fits with the usual context, the plan is that with
/// the longest for which one does.
fn plan_among(shared: &Shared, model: Planned, candidates: &[Candidate]) -> Result<Plan, Unplanned> {
    let stages = shared.serving.stages();
    let mut contexts = stages.planned_contexts(model.manifest).peekable();
    loop {
        let context = contexts.next().unwrap_or(LEAST_CONTEXT);
        match with_request(shared, model, candidates, Some(context), plan) {
            Err(NoPlan::NoMemory { .. }) if contexts.peek().is_some() => {}
            found => return found.map_err(|reason| Unplanned { reason, savings: stages.savings(context) }),
        }
    }
}

/// Who may follow each stage of a plan.
fn stand_bys(shared: &Shared, model: &LoadedModel, without: &HashSet<NodeId>, plan: &Plan) -> Vec<Option<Host>> {
    let (model, ask) = (model.planned(), |request: &PlanRequest| stand_by::choose(request, &plan.stages));
    let candidates = candidates_without(shared, model, without);
    let chosen = with_request(shared, model, &candidates, None, ask);
    let of = |node: NodeId| Host { node, addresses: addresses(shared, [node].into_iter()).concat() };
    chosen.into_iter().map(|node| node.map(of)).collect()
}

/// Hands what is known to the planner, which counts on stages with the given context, else with the usual one.
fn with_request<T>(
    shared: &Shared,
    model: Planned,
    candidates: &[Candidate],
    context: Option<u32>,
    ask: impl FnOnce(&PlanRequest) -> T,
) -> T {
    let Planned { id, manifest, engine, cuts } = model;
    let stages = shared.serving.stages();
    let memory = |layers, head| match context {
        Some(context) => stages.memory_with(engine, manifest, (layers, head), context),
        None => stages.memory_of(engine, manifest, layers, head),
    };
    let weight = |layers, head| manifest.stage_weight(layers, head);
    let known = shared.registry.snapshot();
    let told = |candidate: &Candidate| Some((candidate.node, &known.get(&candidate.node)?.round_trips[..]));
    let told = candidates.iter().filter_map(told).collect();
    let request = PlanRequest {
        model: id,
        layers: manifest.layers,
        cuts,
        candidates,
        memory: &memory,
        weight: &weight,
        told: &told,
    };
    ask(&request)
}

/// This node and every peer among these that says it serves the model. What a peer claims decides only who is asked.
fn candidates(shared: &Shared, model: Planned, among: impl Fn(&Announced) -> bool) -> Vec<Candidate> {
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
    let peer = |(node, announcement): (&NodeId, &Announced)| {
        let holding = announcement.holding(model.id)?;
        let clipped = |range: &LayerRange| LayerRange::new(range.start, range.end.min(model.manifest.layers));
        let layers = holding.layers.iter().map(clipped).filter(|range| !range.is_empty()).collect();
        peer_candidate(shared, model, (*node, announcement), layers, holding.head)
    };
    let peers = known.iter().filter(|(_, announced)| among(announced));
    std::iter::once(local).chain(peers.filter_map(peer)).collect()
}

/// A peer that says it computes for others, as if it held these layers.
fn peer_candidate(
    shared: &Shared,
    model: Planned,
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

/// The plan if this peer held the whole model.
pub(crate) async fn plan_if_held(shared: &Arc<Shared>, model: &str, peer: NodeId) -> Result<Plan, Fault> {
    let (planning, model) = (shared.clone(), load(shared, model).await?);
    let plan = move || {
        let known = planning.registry.snapshot();
        let silent = || {
            let text = format!("peer {} is not known to compute for others", peer.short());
            Fault::new(ErrorKind::PeerUnreachable, text)
        };
        let announcement = known.get(&peer).ok_or_else(silent)?;
        let whole = vec![LayerRange::new(0, model.manifest.layers)];
        let planned = model.planned();
        let candidate = peer_candidate(&planning, planned, (peer, announcement), whole, true).ok_or_else(silent)?;
        let mut among = candidates(&planning, planned, Announced::greeted);
        among.retain(|other| other.node != peer);
        among.push(candidate);
        plan_among(&planning, planned, &among).map_err(|none| none.of(&model))
    };
    shared.planners.make(plan).await
}

/// Where each of these nodes may be dialled.
fn addresses(shared: &Shared, nodes: impl Iterator<Item = NodeId>) -> Vec<Vec<String>> {
    let known = shared.registry.snapshot();
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
    use crate::pipeline::slots::Owner;
    use crate::pipeline::stages::{Claim, Lease};
    use crate::wire::prefix::Prefix;

    /// The echo engine, of whatever architecture; takes one byte for each position of a layer.
    struct Positions;

    impl Engine for Positions {
        fn name(&self) -> &'static str {
            "positions"
        }

        fn cuts(&self, _: &Manifest) -> Result<CutRules, EngineError> {
            Ok(CutRules::free())
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

    /// A model of four layers that was trained for so many positions.
    fn model(context: u32) -> Vec<u8> {
        let mut bytes = small_model("small", 4, false, true, 1);
        let key = b"llama.context_length";
        let at = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len() + size_of::<u32>();
        bytes[at..at + size_of::<u32>()].copy_from_slice(&context.to_le_bytes());
        bytes
    }

    #[tokio::test]
    async fn a_plan_is_looked_for_after_a_change_and_seldom_without_one() {
        const SELDOM: Duration = Duration::from_millis(400);
        let (news, changes) = watch::channel(());
        let took = async |looks: &mut Looks| {
            let begun = Instant::now();
            looks.next().await;
            begun.elapsed()
        };
        // Were a change missed, this would not end.
        let mut looks = Looks { anyway: Duration::from_secs(3600), ..Looks::new(changes.clone()) };
        assert!(took(&mut looks).await >= LOOK_AGAIN, "what changed before counts");
        news.send_replace(());
        news.send_replace(());
        assert!(took(&mut looks).await >= LOOK_AGAIN);
        let mut looks = Looks { anyway: SELDOM, ..looks };
        assert!(took(&mut looks).await >= SELDOM, "nothing has changed since");
    }

    #[tokio::test]
    async fn a_stage_that_had_to_shrink_is_loaded_anew_for_a_longer_text_when_there_is_room() {
        const BUDGET: u64 = 10_000;
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("model.gguf");
        std::fs::write(&file, model(8192)).unwrap();
        let builder = Node::builder().data_dir(dir.path().join("data")).preset(Preset::Offline).memory(BUDGET);
        let node = builder.engines(vec![Arc::new(Positions)]).start().await.unwrap();
        let model = node.import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap().id;
        let stages = node.shared().serving.stages();
        let open = async |start, least| -> Result<Lease, Fault> {
            let (layers, engine) = (LayerRange::new(start, start + 2), Positions.name().to_owned());
            let key = StageKey { model, layers, head: start == 2, engine };
            let owner = Owner { coordinator: node.id(), session: SessionId([1; 16]), epoch: 0 };
            let claim = Claim { owner, least, prefix: &Prefix::default(), over: &CancellationToken::new() };
            Ok(stages.acquire(key, claim).await?.0)
        };
        let whole = open(0, 8).await.unwrap();
        assert_eq!(whole.context(), 4096, "half of the memory does not allow more");
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
