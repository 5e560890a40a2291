//! What a [`RouteManager`] wants done, done with the network, the node's own stages and its tasks.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;

use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::net::NetHandle;
use crate::pipeline::control::{request, unexpected};
use crate::pipeline::driver::{Purpose, RouteAction, RouteEvent, RouteManager, Verdict};
use crate::pipeline::job::{Coordinator, Job};
use crate::pipeline::links::SessionStage;
use crate::pipeline::losses::{Loss, Losses};
use crate::pipeline::route::{OPEN_DEADLINE, RELEASE_DEADLINE, RELEASES, Routes};
use crate::pipeline::search::is_loss;
use crate::pipeline::watch;
use crate::wire::control::{OpenSession, Opened, Reply, Request};
use crate::wire::prefix::Prefix;

type Answer = BoxFuture<'static, RouteEvent>;

/// What happens to a session's routes.
pub(super) enum Happens {
    Answered(RouteEvent),
    Lost(Loss),
}

/// See the module.
pub(super) struct RoutePerformer {
    coordinator: Coordinator,
    routes: Arc<dyn Routes>,
    session: SessionId,
    /// What is lost from the present attempt on.
    pub losses: Losses,
    /// What is asked for the attempt under way.
    attempt: FuturesUnordered<Answer>,
    /// A route that is looked for.
    find: Option<Answer>,
}

impl RoutePerformer {
    pub fn new(coordinator: Coordinator, job: &Job, losses: Losses) -> Self {
        let (routes, session) = (job.routes.clone(), job.session);
        Self { coordinator, routes, session, losses, attempt: FuturesUnordered::new(), find: None }
    }

    /// The next answer to what was asked, or loss. Cancel-safe.
    pub async fn happens(&mut self) -> Happens {
        let Self { losses, attempt, find, .. } = self;
        let found = async {
            match find.as_mut() {
                Some(find) => find.await,
                None => pending().await,
            }
        };
        let replied = async {
            match attempt.next().await {
                Some(event) => event,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            loss = losses.next() => Happens::Lost(loss),
            event = replied => Happens::Answered(event),
            event = found => {
                *find = None;
                Happens::Answered(event)
            }
        }
    }

    /// What was looked for while a session runs is of no use any more.
    pub fn void_search(&mut self) {
        self.find = None;
    }

    /// Does all that is wanted now.
    pub fn perform_all(&mut self, routes: &mut RouteManager) {
        while let Some(action) = routes.next_action() {
            self.perform(action);
        }
    }

    pub fn perform(&mut self, action: RouteAction) {
        match action {
            RouteAction::Find { purpose, without, longest } => self.find(purpose, without, longest),
            RouteAction::Attempt { stages, .. } => {
                // What was lost before, this attempt will find; what is lost from now on, its route has lost.
                self.losses = Losses::new(&self.coordinator);
                self.attempt.clear();
                self.with_net(|net| keep(net, stages).boxed());
            }
            RouteAction::Connect { epoch, place, host } => {
                let connected = move |connected| RouteEvent::Connected { epoch, place, connected };
                let Some(net) = self.coordinator.net.clone() else {
                    let fault = Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network");
                    return self.attempt.push(async move { connected(Err(fault)) }.boxed());
                };
                self.attempt.push(
                    async move {
                        let done = net.ensure_connected(host.node, &host.addresses).await;
                        connected(done.map_err(|error| Fault::new(error.kind(), error)))
                    }
                    .boxed(),
                );
            }
            RouteAction::Open { place, node, open } => {
                let (epoch, coordinator) = (open.epoch, self.coordinator.clone());
                let opens = async move {
                    RouteEvent::Replied { epoch, place, reply: ask_to_open(&coordinator, node, *open).await }
                };
                self.attempt.push(opens.boxed());
            }
            RouteAction::Probe { place, node, stage } => {
                let routes = self.routes.clone();
                self.with_net(|net| {
                    let probe = async move {
                        let silent = watch::is_silent(&net, node, stage, || routes.rouse()).await;
                        RouteEvent::Probed { epoch: stage.epoch, place, silent }
                    };
                    probe.boxed()
                });
            }
            RouteAction::Settled => self.attempt.clear(),
            RouteAction::Release { epoch, nodes, keep } => self.release(epoch, &nodes, &keep),
            RouteAction::Note { node, verdict } => match verdict {
                Verdict::Refused(kind) => self.coordinator.failures.refused(node, kind),
                Verdict::Failed => self.coordinator.failures.failed(node),
                Verdict::Full => self.coordinator.failures.full(node),
                Verdict::Worked => self.coordinator.failures.worked(node),
            },
        }
    }

    fn with_net(&self, ask: impl FnOnce(NetHandle) -> Answer) {
        if let Some(net) = self.coordinator.net.clone() {
            self.attempt.push(ask(net));
        }
    }

    fn find(&mut self, purpose: Purpose, without: Vec<NodeId>, longest: Duration) {
        let routes = self.routes.clone();
        let finds = async move {
            let none = || Fault::new(ErrorKind::NoPlan, format!("no route was found within {longest:?}"));
            let found = tokio::time::timeout(longest, routes.find(without)).await;
            RouteEvent::Found { purpose, found: found.unwrap_or_else(|_| Err(none())) }
        };
        match purpose {
            Purpose::Loading { .. } => self.attempt.push(finds.boxed()),
            Purpose::Next | Purpose::Silent { .. } => self.find = Some(finds.boxed()),
        }
    }

    /// Tells nodes to end the session, in the background.
    fn release(&self, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        let (coordinator, session) = (&self.coordinator, self.session);
        let local = coordinator.links.local();
        if nodes.contains(&local) {
            coordinator.serving.release(session, epoch, local, keep);
        }
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
}

/// Asks for the stages that are open while others are loaded, without end.
async fn keep(net: NetHandle, stages: Vec<(NodeId, SessionStage)>) -> RouteEvent {
    match watch::keep(&net, &stages).await {}
}

/// Asks a host, which may be this node, to open a stage. Loading may take long.
async fn ask_to_open(coordinator: &Coordinator, node: NodeId, open: OpenSession) -> Result<Opened, Fault> {
    let local = coordinator.links.local();
    match &coordinator.net {
        _ if node == local => coordinator.serving.open(local, open).await,
        Some(net) => match request(net, node, &Request::Open(open), OPEN_DEADLINE).await? {
            Reply::Opened(opened) => Ok(opened),
            _ => Err(unexpected(node)),
        },
        None => Err(Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network")),
    }
}
