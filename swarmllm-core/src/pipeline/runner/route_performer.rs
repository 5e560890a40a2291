//! Performs the actions of a [`RouteManager`] with the network, the node's own stages and its tasks.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;

use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::net::NetHandle;
use crate::pipeline::driver::Event;
use crate::pipeline::link::request::is_loss;
use crate::pipeline::link::request::{request, unexpected};
use crate::pipeline::link::router::SessionStage;
use crate::pipeline::route::losses::LossWatcher;
use crate::pipeline::route::manager::{RouteAction, RouteEvent, RouteManager, SearchPurpose, Verdict};
use crate::pipeline::route::watch;
use crate::pipeline::route::{OPEN_DEADLINE, RELEASE_DEADLINE, RELEASES, Routes};
use crate::pipeline::runner::job::{Coordinator, Job};
use crate::wire::control::{OpenSession, Opened, Reply, Request};
use crate::wire::prefix::Prefix;

type Answer = BoxFuture<'static, RouteEvent>;

/// See the module.
pub(super) struct RoutePerformer {
    coordinator: Coordinator,
    routes: Arc<dyn Routes>,
    session: SessionId,
    /// Losses since the current attempt began.
    pub losses: LossWatcher,
    /// Requests of the current attempt.
    attempt: FuturesUnordered<Answer>,
    /// The current search for a route.
    find: Option<Answer>,
}

impl RoutePerformer {
    pub fn new(coordinator: Coordinator, job: &Job, losses: LossWatcher) -> Self {
        let (routes, session) = (job.routes.clone(), job.session);
        Self { coordinator, routes, session, losses, attempt: FuturesUnordered::new(), find: None }
    }

    /// The next result of an action, or a loss, which is reported as one that did not end the link. Cancel-safe.
    pub async fn next_event(&mut self) -> Event {
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
            loss = losses.next() => Event::Lost { loss, link_ended: false },
            event = replied => Event::Route(event),
            event = found => {
                *find = None;
                Event::Route(event)
            }
        }
    }

    /// Drops the search that runs beside a session.
    pub fn void_search(&mut self) {
        self.find = None;
    }

    /// Performs all pending actions.
    pub fn perform_all(&mut self, routes: &mut RouteManager) {
        while let Some(action) = routes.next_action() {
            self.perform(action);
        }
    }

    pub fn perform(&mut self, action: RouteAction) {
        match action {
            RouteAction::Find { purpose, without, timeout } => self.find(purpose, without, timeout),
            RouteAction::BeginAttempt { stages, .. } => {
                // Earlier losses show up in the replies of this attempt; later ones concern its route.
                self.losses = LossWatcher::new(self.coordinator.net.as_ref(), &self.coordinator.router);
                self.attempt.clear();
                self.with_net(|net| keep_stages_alive(net, stages).boxed());
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
                        let silent = watch::is_silent(&net, node, stage, || routes.probe_all()).await;
                        RouteEvent::Probed { epoch: stage.epoch, place, silent }
                    };
                    probe.boxed()
                });
            }
            RouteAction::EndAttempt => self.attempt.clear(),
            RouteAction::Release { epoch, nodes, keep } => self.release(epoch, &nodes, &keep),
            RouteAction::Record { node, verdict } => match verdict {
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

    fn find(&mut self, purpose: SearchPurpose, without: Vec<NodeId>, timeout: Duration) {
        let routes = self.routes.clone();
        let finds = async move {
            let none = || Fault::new(ErrorKind::NoPlan, format!("no route was found within {timeout:?}"));
            let found = tokio::time::timeout(timeout, routes.find(without)).await;
            RouteEvent::Found { purpose, found: found.unwrap_or_else(|_| Err(none())) }
        };
        match purpose {
            SearchPurpose::AvoidLoading { .. } => self.attempt.push(finds.boxed()),
            SearchPurpose::Open | SearchPurpose::AvoidSilent { .. } => self.find = Some(finds.boxed()),
        }
    }

    /// Tells nodes to end the session, in the background.
    fn release(&self, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        let (coordinator, session) = (&self.coordinator, self.session);
        let local = coordinator.router.local();
        if nodes.contains(&local) {
            coordinator.stage_server.release(session, epoch, local, keep);
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

/// Keeps open stages alive while others are loaded. Never returns.
async fn keep_stages_alive(net: NetHandle, stages: Vec<(NodeId, SessionStage)>) -> RouteEvent {
    match watch::keep_alive(&net, &stages).await {}
}

/// Asks a host, which may be this node, to open a stage. Loading may take long.
async fn ask_to_open(coordinator: &Coordinator, node: NodeId, open: OpenSession) -> Result<Opened, Fault> {
    let local = coordinator.router.local();
    match &coordinator.net {
        _ if node == local => coordinator.stage_server.open(local, open).await,
        Some(net) => match request(net, node, &Request::Open(open), OPEN_DEADLINE).await? {
            Reply::Opened(opened) => Ok(opened),
            _ => Err(unexpected(node)),
        },
        None => Err(Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network")),
    }
}
