//! Routes of a session: found, opened at every host, released; found again without the hosts that failed.
//!
//! Every attempt to open one has an epoch of its own, so that what belongs to an earlier one, a late frame or the order to
//! end it, never meets a later one.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, join_all};
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, ModelId, NodeId, SessionId};
use crate::net::NetHandle;
use crate::pipeline::control::{request, unexpected};
use crate::pipeline::job::Coordinator;
use crate::pipeline::links::SessionStage;
use crate::pipeline::losses::Losses;
use crate::pipeline::plan::{Plan, PlanStage};
use crate::pipeline::search::{Blame, LONGEST_LOOK, Next, Tried, is_loss};
use crate::pipeline::watch;
use crate::wire::control::{Host, OpenSession, Opened, Reply, Request};
use crate::wire::prefix::Prefix;

/// Loading a stage of many GiB from a cold disk takes a while; more than this is a hang.
const OPEN_DEADLINE: Duration = Duration::from_secs(180);
/// Telling a stage to free a session, and how often that is tried at a host that does not answer or is out of reach: for
/// longer than a silent peer stays connected, since one that is frozen may come to itself, and one that is cut off may not
/// have noticed; they would keep the KV.
pub const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
pub const RELEASES: u32 = 9;
/// How often a host that loads a stage is asked whether it is there, and how often in a row it may miss that where no route
/// does without it.
const WHILE_LOADING: Duration = Duration::from_millis(500);
const MISSES: u32 = 5;
/// How much longer than for the stages it is waited for their stand-bys.
pub const STAND_BY_WAIT: Duration = Duration::from_secs(2);
/// Who computes a session's stages, and how to reach and pay them.
#[derive(Debug, Clone)]
pub struct Route {
    /// The stages.
    pub plan: Plan,
    /// Addresses of each stage's host, in the plan's order.
    pub addresses: Vec<Vec<String>>,
    /// What the ledger prices each stage by.
    pub weights: Vec<u64>,
    /// Who follows each stage, where somebody is to.
    pub stand_bys: Vec<Option<Host>>,
}

impl Route {
    /// A stage's host.
    fn host(&self, stage: usize) -> Option<Host> {
        let node = self.plan.stages.get(stage)?.node;
        Some(Host { node, addresses: self.addresses.get(stage).cloned().unwrap_or_default() })
    }

    /// Who follows a stage.
    pub fn stand_by(&self, stage: usize) -> Option<&Host> {
        self.stand_bys.get(stage)?.as_ref()
    }

    /// All who have to do with it, each once.
    fn nodes(&self) -> Vec<NodeId> {
        let stages = self.plan.stages.iter().map(|stage| stage.node);
        let mut nodes: Vec<NodeId> = stages.chain(self.stand_bys.iter().flatten().map(|host| host.node)).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

/// Finds routes from what is known of the swarm now.
pub trait Routes: Send + Sync {
    /// The best route that does without these nodes.
    fn find(&self, without: Vec<NodeId>) -> BoxFuture<'_, Result<Route, Fault>>;
    /// A host seems silent: where it is the line, the other ways are of no use either until their connections are replaced.
    /// Asks all hosts of routes whether they are there, beside what goes on.
    fn rouse(&self);
}

/// A route whose stages are all open.
pub struct OpenRoute {
    /// Which of the session's routes.
    pub epoch: u32,
    /// The stages.
    pub route: Route,
    /// What each host said, in the plan's order.
    pub opened: Vec<Opened>,
    /// What each stand-by said that is there.
    pub following: Vec<Option<Opened>>,
    /// All who were asked.
    pub nodes: Vec<NodeId>,
}

/// What a session asks of every host.
pub struct Terms {
    pub session: SessionId,
    pub model: ModelId,
    pub engine: String,
    pub exact: bool,
    /// Positions at most.
    pub context: u32,
    /// Positions at least.
    pub least: u32,
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
    opening: Option<(u32, Vec<NodeId>)>,
    /// All who were ever asked.
    asked: BTreeSet<NodeId>,
    /// The text that hosts were told of.
    prefix: Prefix,
}

impl Finder {
    /// A finder that has tried nothing.
    pub fn new(coordinator: Coordinator, routes: Arc<dyn Routes>, terms: Terms) -> Self {
        Self {
            coordinator,
            routes,
            terms,
            tried: Tried::default(),
            opening: None,
            asked: BTreeSet::new(),
            prefix: Prefix::default(),
        }
    }

    /// Opens this route or, where a host of it fails, another, and gives it with what it loses from then on; see
    /// [`reopen`](Self::reopen) for `patience`. Where there is no other, the error says why the first failed. After an open that
    /// is not awaited to its end, [`abandon`](Self::abandon) ends what was begun.
    pub async fn open(
        &mut self,
        route: Route,
        prefix: &Prefix,
        patience: Duration,
    ) -> Result<(OpenRoute, Losses), Fault> {
        match self.attempt(route, prefix).await {
            Ok(open) => Ok(open),
            Err(blame) => self.reopen(blame, None, prefix, patience).await,
        }
    }

    /// From now on the session needs so many positions.
    pub fn needs(&mut self, least: u32) {
        self.terms.least = least.min(self.terms.context);
    }

    /// Opens another route than one whose hosts have failed: that on which stand-bys take their place, if there is one.
    /// Where there is none and hosts may return, it waits for them for as long as `patience` lasts; the error says why the
    /// last route failed.
    pub async fn reopen(
        &mut self,
        blame: Blame,
        mut takeover: Option<Route>,
        prefix: &Prefix,
        patience: Duration,
    ) -> Result<(OpenRoute, Losses), Fault> {
        let mut search = self.tried.search(blame, Instant::now(), patience);
        loop {
            let found = match takeover.take() {
                Some(route) => Ok(route),
                None => {
                    let longest = self.tried.look(&search);
                    self.find(search.lost(), longest).await
                }
            };
            match (self.tried.next(&mut search, found.is_ok(), Instant::now()), found) {
                (Next::Attempt, Ok(route)) => match self.attempt(route, prefix).await {
                    Ok(open) => return Ok(open),
                    Err(blame) => self.tried.blame(blame, &mut search, Instant::now()),
                },
                (Next::LookAgain, _) => tokio::time::sleep(self.tried.pause()).await,
                _ => return Err(search.cause),
            }
        }
    }

    /// Whether there is a route that does without these nodes, too.
    pub async fn can_avoid(&self, nodes: &[NodeId]) -> bool {
        self.find(nodes, LONGEST_LOOK).await.is_ok()
    }

    async fn find(&self, without: &[NodeId], longest: Duration) -> Result<Route, Fault> {
        let found = self.routes.find(self.tried.without(without));
        let none = || Fault::new(ErrorKind::NoPlan, format!("no route was found within {longest:?}"));
        tokio::time::timeout(longest, found).await.unwrap_or_else(|_| Err(none()))
    }

    /// Ends what an [`open`](Self::open) has begun that was not awaited to its end.
    pub fn abandon(&mut self) {
        if let Some((epoch, nodes)) = self.opening.take() {
            self.release(epoch, &nodes, &Prefix::default());
        }
    }

    /// Ends the session on the last of its routes, and once more at all who had to do with earlier ones: who was out of
    /// reach then, and has not noticed, would keep its KV.
    pub fn end(&self, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        self.release(epoch, nodes, keep);
        let others: Vec<NodeId> = self.asked.iter().copied().filter(|node| !nodes.contains(node)).collect();
        self.release(epoch, &others, &Prefix::default());
    }

    /// Tells all who have to do with a route to end the session, in the background; what of its KV may be kept is named in
    /// `keep`.
    pub fn release(&self, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        let local = self.coordinator.links.local();
        self.coordinator.serving.release(self.terms.session, epoch, local, keep);
        self.release_at(epoch, nodes, keep);
    }

    /// The same for nodes that have no part in a route which others have, this one only where it is among them. Those that no
    /// route before had may keep what they had of the prompt; what others have is the session's own.
    pub fn dismiss(&self, epoch: u32, nodes: &[NodeId], goes_on: bool) {
        let (local, nothing) = (self.coordinator.links.local(), Prefix::default());
        let keep = if goes_on { &nothing } else { &self.prefix };
        if nodes.contains(&local) {
            self.coordinator.serving.release(self.terms.session, epoch, local, keep);
        }
        self.release_at(epoch, nodes, keep);
    }

    fn release_at(&self, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        let (coordinator, session) = (&self.coordinator, self.terms.session);
        let local = coordinator.links.local();
        let Some(net) = &coordinator.net else { return };
        for peer in nodes.iter().copied().filter(|node| *node != local) {
            let (net, keep) = (net.clone(), keep.clone());
            let stopping = coordinator.tasks.stopping();
            coordinator.tasks.spawn("release", async move {
                let release = Request::Release { session, epoch, keep };
                for _ in 0..RELEASES {
                    let Err(fault) = request(&net, peer, &release, RELEASE_DEADLINE).await else { return };
                    tracing::debug!(%fault, "a stage could not be released");
                    let waits =
                        tokio::time::sleep(if is_loss(fault.kind()) { RELEASE_DEADLINE } else { Duration::ZERO });
                    let again = fault.kind() == ErrorKind::Timeout || is_loss(fault.kind());
                    if !again || stopping.run_until_cancelled(waits).await.is_none() {
                        return;
                    }
                }
            });
        }
    }

    /// Opens all stages at once, and stand-bys beside them.
    async fn attempt(&mut self, route: Route, prefix: &Prefix) -> Result<(OpenRoute, Losses), Blame> {
        // What was lost before, this attempt will find; what is lost from now on, its route has lost.
        let losses = Losses::new(&self.coordinator);
        self.prefix = prefix.clone();
        let (epoch, nodes) = (self.tried.attempt(), route.nodes());
        self.opening = Some((epoch, nodes.clone()));
        self.asked.extend(&nodes);
        let (answers, following) = tokio::select! {
            opened = self.open_all(&route, epoch, prefix) => opened,
            never = self.keep(&route, epoch) => match never {},
        };
        let (mut opened, mut failed) = (Vec::new(), Vec::new());
        for (stage, answer) in route.plan.stages.iter().zip(answers) {
            self.remember(stage.node, &answer);
            match answer {
                Ok(one) => opened.push(one),
                Err(fault) => failed.push((stage.node, fault)),
            }
        }
        let Some(blame) = Blame::unopened(failed, self.tried.goes_on()) else {
            self.opening = None;
            self.tried.opened(Instant::now());
            return Ok((OpenRoute { epoch, route, opened, following, nodes }, losses));
        };
        self.abandon();
        Err(blame)
    }

    /// Remembers, for the sessions to come, which hosts did not open their stages.
    fn remember(&self, host: NodeId, answer: &Result<Opened, Fault>) {
        if let Err(fault) = answer
            && host != self.coordinator.links.local()
        {
            self.coordinator.failures.refused(host, fault.kind());
        }
    }

    /// Asks for the stages that are open while others are loaded.
    async fn keep(&self, route: &Route, epoch: u32) -> Infallible {
        let (local, session) = (self.coordinator.links.local(), self.terms.session);
        let place = |stage: usize, node| (node, SessionStage { session, epoch, stage: stage as u32 });
        let hosts = route.plan.stages.iter().map(|stage| stage.node).enumerate();
        let stand_bys = route.stand_bys.iter().enumerate();
        let stand_bys = stand_bys.filter_map(|(stage, host)| Some((stage, host.as_ref()?.node)));
        let all = hosts.chain(stand_bys).filter(|(_, node)| *node != local);
        let places: Vec<_> = all.map(|(stage, node)| place(stage, node)).collect();
        match &self.coordinator.net {
            Some(net) => watch::keep(net, &places).await,
            None => std::future::pending().await,
        }
    }

    /// Opens the stages, and their stand-bys for as long as that takes and not much longer.
    async fn open_all(
        &self,
        route: &Route,
        epoch: u32,
        prefix: &Prefix,
    ) -> (Vec<Result<Opened, Fault>>, Vec<Option<Opened>>) {
        let (all, enough) = (0..route.plan.stages.len(), CancellationToken::new());
        let stages = async {
            let open = |index| self.open_one(route, index, (route.host(index), false), epoch, prefix);
            let answers = join_all(all.clone().map(open)).await;
            if answers.iter().all(Result::is_ok) {
                // Done before, where all are there.
                let _ = tokio::time::timeout(STAND_BY_WAIT, enough.cancelled()).await;
            }
            enough.cancel();
            answers
        };
        let stand_bys = async {
            let open = |index| {
                let open = self.open_one(route, index, (route.stand_by(index).cloned(), true), epoch, prefix);
                async { enough.run_until_cancelled(open).await.and_then(Result::ok) }
            };
            let following = join_all(all.clone().map(open)).await;
            enough.cancel();
            following
        };
        tokio::join!(stages, stand_bys)
    }

    /// Opens a stage at its host or, as the flag says, at its stand-by.
    async fn open_one(
        &self,
        route: &Route,
        index: usize,
        (host, stands_by): (Option<Host>, bool),
        epoch: u32,
        prefix: &Prefix,
    ) -> Result<Opened, Fault> {
        let nobody = || Fault::new(ErrorKind::NoPlan, "nobody was asked for");
        let Host { node, addresses } = host.ok_or_else(nobody)?;
        let (stage, coordinator, terms) = (&route.plan.stages[index], &self.coordinator, &self.terms);
        let local = coordinator.links.local();
        // Where they are is theirs to say.
        let named = |node| Host { node, addresses: Vec::new() };
        let node_of = |stage: usize| route.plan.stages.get(stage).map(|stage| stage.node);
        let open = OpenSession {
            session: terms.session,
            epoch,
            model: terms.model,
            engine: terms.engine.clone(),
            layers: stage.layers,
            head: stage.head,
            stage: index as u32,
            context: terms.context,
            least: terms.least,
            exact: terms.exact,
            prefix: prefix.clone(),
            next: named(node_of(index + 1).filter(|_| !stands_by).unwrap_or(local)),
            copy: route.stand_by(index + 1).filter(|_| !stands_by).map(|host| named(host.node)),
            stands_by,
            coordinator: named(local),
            previous: index.checked_sub(1).and_then(node_of).unwrap_or(local),
        };
        let opened = match &coordinator.net {
            _ if node == local => coordinator.serving.open(local, open).await?,
            Some(net) => self.ask(net, node, &addresses, open).await?,
            None => return Err(Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network")),
        };
        self.check(node, stage, &opened)?;
        Ok(opened)
    }

    /// A host whose stage has another shape than the manifest says has another model, or lies.
    fn check(&self, node: NodeId, stage: &PlanStage, opened: &Opened) -> Result<(), Fault> {
        let vocab_fits = !stage.head || opened.vocab == Some(self.terms.vocab);
        let (least, most) = (self.terms.least, self.terms.context);
        let no_room = opened.max_rows == 0 || opened.context < least || opened.cached > most;
        if opened.width != self.terms.width || !vocab_fits || no_room {
            let text = format!("peer {} opened a stage of another shape than the model's", node.short());
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
        let stage = SessionStage { session: open.session, epoch: open.epoch, stage: open.stage };
        let open = Request::Open(open);
        let reply = tokio::select! {
            reply = request(net, node, &open, OPEN_DEADLINE) => reply?,
            () = self.until_silent(net, node, stage) => {
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
    async fn until_silent(&self, net: &NetHandle, node: NodeId, stage: SessionStage) {
        let mut misses = 0;
        loop {
            tokio::time::sleep(WHILE_LOADING).await;
            misses = if watch::is_silent(net, node, stage, || self.routes.rouse()).await { misses + 1 } else { 0 };
            if misses >= MISSES || (misses > 0 && self.can_avoid(&[node]).await) {
                return;
            }
        }
    }
}
