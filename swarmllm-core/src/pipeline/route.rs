//! Routes of a session: found, opened at every host, released; found again without the hosts that failed.
//!
//! Every attempt to open one has an epoch of its own, so that what belongs to an earlier one, a late frame or the order to
//! end it, never meets a later one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};

use crate::base::{ErrorKind, Fault, ModelId, NodeId, SessionId};
use crate::net::NetHandle;
use crate::pipeline::control::{request, unexpected};
use crate::pipeline::job::Coordinator;
use crate::pipeline::plan::{Plan, PlanStage};
use crate::pipeline::search::{Blame, LOOK_AGAIN, Next, Tried};
use crate::pipeline::watch;
use crate::wire::control::{OpenSession, Opened, Reply, Request};
use crate::wire::prefix::Prefix;

/// Loading a stage of many GiB from a cold disk takes a while; more than this is a hang.
const OPEN_DEADLINE: Duration = Duration::from_secs(180);
/// Telling a stage to free a session, and how often that is tried at a host that does not answer: for longer than a
/// silent peer stays connected, since one that is frozen may come to itself and would keep the KV.
pub const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
pub const RELEASES: u32 = 9;
/// How often a host that loads a stage is asked whether it is there, and how often in a row it may miss that where no route
/// does without it.
const WHILE_LOADING: Duration = Duration::from_millis(500);
const MISSES: u32 = 5;
/// Longest search for another route: the swarm's table may be slow to say that it knows of nobody.
const SEARCH: Duration = Duration::from_secs(3);
/// Who computes a session's stages, and how to reach and pay them.
#[derive(Debug, Clone)]
pub struct Route {
    /// The stages.
    pub plan: Plan,
    /// Addresses of each stage's host, in the plan's order.
    pub addresses: Vec<Vec<String>>,
    /// What the ledger prices each stage by.
    pub weights: Vec<u64>,
}

/// Finds routes from what is known of the swarm now.
pub trait Routes: Send + Sync {
    /// The best route that does without these nodes.
    fn find(&self, without: Vec<NodeId>) -> BoxFuture<'_, Result<Route, Fault>>;
}

/// A route whose stages are all open.
pub struct OpenRoute {
    /// Which of the session's routes.
    pub epoch: u32,
    /// The stages.
    pub route: Route,
    /// What each host said, in the plan's order.
    pub opened: Vec<Opened>,
}

/// What a session asks of every host.
pub struct Terms {
    pub session: SessionId,
    pub model: ModelId,
    pub engine: String,
    pub exact: bool,
    /// Positions.
    pub context: u32,
    /// Floats of a state.
    pub width: u32,
    /// Logits of a row.
    pub vocab: u32,
}

/// Finds and opens the routes of one session.
pub struct Finder {
    coordinator: Coordinator,
    routes: Arc<dyn Routes>,
    terms: Terms,
    tried: Tried,
    /// The attempt under way.
    opening: Option<(u32, Vec<PlanStage>)>,
}

impl Finder {
    /// A finder that has tried nothing.
    pub fn new(coordinator: Coordinator, routes: Arc<dyn Routes>, terms: Terms) -> Self {
        Self { coordinator, routes, terms, tried: Tried::default(), opening: None }
    }

    /// Opens this route or, where a host of it fails, another. Where there is no other, the error says why the first
    /// failed. After an open that is not awaited to its end, [`abandon`](Self::abandon) ends what was begun.
    pub async fn open(&mut self, route: Route, prefix: &Prefix) -> Result<OpenRoute, Fault> {
        match self.attempt(route, prefix).await {
            Ok(open) => Ok(open),
            Err(blame) => self.reopen(blame, prefix, Duration::ZERO).await,
        }
    }

    /// Opens another route than one whose hosts have failed. Where there is none and hosts may return, it waits for them
    /// for as long as `patience` lasts; the error says why the last route failed.
    pub async fn reopen(&mut self, blame: Blame, prefix: &Prefix, patience: Duration) -> Result<OpenRoute, Fault> {
        let mut search = self.tried.search(blame, Instant::now(), patience);
        loop {
            let found = self.find(search.lost()).await;
            match (self.tried.next(&mut search, found.is_ok(), Instant::now()), found) {
                (Next::Attempt, Ok(route)) => match self.attempt(route, prefix).await {
                    Ok(open) => return Ok(open),
                    Err(blame) => self.tried.blame(blame, &mut search),
                },
                (Next::LookAgain, _) => tokio::time::sleep(LOOK_AGAIN).await,
                _ => return Err(search.cause),
            }
        }
    }

    /// Whether there is a route that does without these nodes, too.
    pub async fn can_avoid(&self, nodes: &[NodeId]) -> bool {
        self.find(nodes).await.is_ok()
    }

    async fn find(&self, without: &[NodeId]) -> Result<Route, Fault> {
        let found = self.routes.find(self.tried.without(without));
        let none = || Fault::new(ErrorKind::NoPlan, format!("no route was found within {SEARCH:?}"));
        tokio::time::timeout(SEARCH, found).await.unwrap_or_else(|_| Err(none()))
    }

    /// Ends what an [`open`](Self::open) has begun that was not awaited to its end.
    pub fn abandon(&mut self) {
        if let Some((epoch, stages)) = self.opening.take() {
            self.release(epoch, &stages, &Prefix::default());
        }
    }

    /// Tells every stage of a route to end the session, in the background; what of its KV may be kept is named in `keep`.
    pub fn release(&self, epoch: u32, stages: &[PlanStage], keep: &Prefix) {
        let (coordinator, session) = (&self.coordinator, self.terms.session);
        let local = coordinator.links.local();
        coordinator.serving.release(session, epoch, local, keep);
        let Some(net) = &coordinator.net else { return };
        let mut peers: Vec<NodeId> = stages.iter().map(|stage| stage.node).filter(|node| *node != local).collect();
        peers.sort_unstable();
        peers.dedup();
        for peer in peers {
            let (net, keep) = (net.clone(), keep.clone());
            let stopping = coordinator.tasks.stopping();
            coordinator.tasks.spawn("release", async move {
                let release = Request::Release { session, epoch, keep };
                for _ in 0..RELEASES {
                    let Err(fault) = request(&net, peer, &release, RELEASE_DEADLINE).await else { return };
                    tracing::debug!(%fault, "a stage could not be released");
                    if fault.kind() != ErrorKind::Timeout || stopping.is_cancelled() {
                        // Without a connection the host frees the session by itself.
                        return;
                    }
                }
            });
        }
    }

    /// Opens all stages at once.
    async fn attempt(&mut self, route: Route, prefix: &Prefix) -> Result<OpenRoute, Blame> {
        let epoch = self.tried.attempt();
        self.opening = Some((epoch, route.plan.stages.clone()));
        let opens = (0..route.plan.stages.len()).map(|index| self.open_one(&route, index, epoch, prefix));
        let answers = join_all(opens).await;
        let (mut opened, mut failed) = (Vec::new(), Vec::new());
        for (stage, answer) in route.plan.stages.iter().zip(answers) {
            match answer {
                Ok(one) => opened.push(one),
                Err(fault) => failed.push((stage.node, fault)),
            }
        }
        let Some(blame) = Blame::unopened(failed) else {
            self.opening = None;
            return Ok(OpenRoute { epoch, route, opened });
        };
        self.abandon();
        Err(blame)
    }

    async fn open_one(&self, route: &Route, index: usize, epoch: u32, prefix: &Prefix) -> Result<Opened, Fault> {
        let (stage, coordinator, terms) = (&route.plan.stages[index], &self.coordinator, &self.terms);
        let local = coordinator.links.local();
        let own = (coordinator.addresses)();
        let addresses_of = |index: usize| route.addresses.get(index).cloned();
        let open = OpenSession {
            session: terms.session,
            epoch,
            model: terms.model,
            engine: terms.engine.clone(),
            layers: stage.layers,
            head: stage.head,
            stage: index as u32,
            context: terms.context,
            exact: terms.exact,
            prefix: prefix.clone(),
            next: route.plan.stages.get(index + 1).map_or(local, |next| next.node),
            next_addresses: addresses_of(index + 1).unwrap_or_else(|| own.clone()),
            coordinator: local,
            coordinator_addresses: own,
        };
        let opened = match &coordinator.net {
            _ if stage.node == local => coordinator.serving.open(local, open).await?,
            Some(net) => self.ask(net, stage.node, &addresses_of(index).unwrap_or_default(), open).await?,
            None => return Err(Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network")),
        };
        self.check(stage, &opened)?;
        Ok(opened)
    }

    /// A host whose stage has another shape than the manifest says has another model, or lies.
    fn check(&self, stage: &PlanStage, opened: &Opened) -> Result<(), Fault> {
        let vocab_fits = !stage.head || opened.vocab == Some(self.terms.vocab);
        if opened.width != self.terms.width || !vocab_fits || opened.max_rows == 0 || opened.cached > self.terms.context
        {
            let text = format!("peer {} opened a stage of another shape than the model's", stage.node.short());
            return Err(Fault::new(ErrorKind::BadFrame, text));
        }
        Ok(())
    }

    /// Asks a peer to open its stage. Loading may take long, so that meanwhile it is asked whether it is there at all.
    async fn ask(
        &self,
        net: &NetHandle,
        node: NodeId,
        addresses: &[String],
        open: OpenSession,
    ) -> Result<Opened, Fault> {
        net.ensure_connected(node, addresses).await.map_err(|error| Fault::new(error.kind(), error))?;
        let open = Request::Open(open);
        let reply = tokio::select! {
            reply = request(net, node, &open, OPEN_DEADLINE) => reply?,
            () = self.until_silent(net, node) => {
                let text = format!("peer {} does not answer", node.short());
                return Err(Fault::new(ErrorKind::PeerUnreachable, text));
            }
        };
        match reply {
            Reply::Opened(opened) => Ok(opened),
            _ => Err(unexpected(node)),
        }
    }

    /// Waits until a peer is silent, and for longer where no route does without it.
    async fn until_silent(&self, net: &NetHandle, node: NodeId) {
        let mut misses = 0;
        loop {
            tokio::time::sleep(WHILE_LOADING).await;
            misses = if watch::is_silent(net, node).await { misses + 1 } else { 0 };
            if misses >= MISSES || (misses > 0 && self.can_avoid(&[node]).await) {
                return;
            }
        }
    }
}
