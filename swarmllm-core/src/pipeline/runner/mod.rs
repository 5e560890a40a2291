//! Performs the actions of a [`SessionDriver`] with network, engine, sink and timers, and reports events to it.

pub mod job;
pub mod payments;
mod route_performer;

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use tokio::time::sleep_until;

use crate::base::{Event as NodeEvent, Fault, ModelId, NodeId, SessionId};
use crate::engine::{Embedder, MAX_OUTPUT_ROWS};
use crate::net::NetHandle;
use crate::pipeline::driver::{Action, Event, FirstRoute, SessionConfig, SessionDriver};
use crate::pipeline::host::standby_feed::StandbyFeed;
use crate::pipeline::link::message::Message;
use crate::pipeline::link::router::{CoordinatorInbox, Delivery, FrameSender, SessionStage};
use crate::pipeline::plan::Plan;
use crate::pipeline::plan::speeds::StageTiming;
use crate::pipeline::route::losses::LossWatcher;
use crate::pipeline::route::manager::RouteManager;
use crate::pipeline::route::watch;
use crate::pipeline::route::{OpenRoute, Route};
use crate::pipeline::runner::job::{Coordinator, Job, Outcome, TokenSink};
use crate::pipeline::session::drafter::{Drafter, Drafting};
use crate::pipeline::session::limits::Limits;
use crate::pipeline::session::pooling::{Pool, Pooling};
use crate::pipeline::session::speculation::DraftLimits;
use crate::pipeline::session::{Session, SessionEnd, SessionParams, SpeculationStats};
use crate::wire::control::Host;
use crate::wire::job::StepHeader;
use route_performer::RoutePerformer;

/// A session with open stages and without steps.
pub struct OpenedSession {
    routes: RouteManager,
    open: OpenRoute,
    inbox: CoordinatorInbox,
    losses: LossWatcher,
    began: Instant,
    opened_in: Duration,
}

impl OpenedSession {
    /// The plan of the open route.
    pub fn plan(&self) -> Plan {
        self.open.route.plan()
    }
}

/// Opens a session's stages on this route or, if a host of it fails, on another. After an error nothing stays open, and
/// the session's id is used up. The result must be passed to [`run`]. Not cancel-safe: use `job.cancel`.
pub async fn open(
    coordinator: &Coordinator,
    job: &Job,
    route: Route,
) -> Result<OpenedSession, Result<SessionEnd, Fault>> {
    let began = Instant::now();
    let inbox = coordinator.router.register_coordinator(job.session);
    let mut routes = RouteManager::new(job.open_params(), coordinator.router.local());
    let mut performer =
        RoutePerformer::new(coordinator.clone(), job, LossWatcher::new(coordinator.net.as_ref(), &coordinator.router));
    let prefix = coordinator.prefix_hasher.of(job.codec).hashes(job.model, job.exact, &job.prompt);
    routes.open(route, prefix);
    match job.limits().bound(first_route(&mut routes, &mut performer)).await {
        Ok(open) => {
            Ok(OpenedSession { routes, open, inbox, losses: performer.losses, began, opened_in: began.elapsed() })
        }
        Err(end) => {
            routes.abandon();
            performer.perform_all(&mut routes);
            Err(end)
        }
    }
}

/// Waits until a route is open.
async fn first_route(routes: &mut RouteManager, performer: &mut RoutePerformer) -> Result<OpenRoute, Fault> {
    loop {
        performer.perform_all(routes);
        let event = tokio::select! {
            event = performer.next_event() => event,
            () = until(routes.wake_at()) => Event::Wake,
        };
        let Some(event) = event.into_route_event() else { continue };
        if let Some(routed) = routes.on(event, Instant::now()) {
            performer.perform_all(routes);
            return routed;
        }
    }
}

/// Runs a session to its end and releases its stages, whatever happens. Not cancel-safe: use `job.cancel`.
pub async fn run<S: TokenSink>(coordinator: &Coordinator, job: Job, opened: OpenedSession, sink: &mut S) -> Outcome {
    let (began, opened_in) = (opened.began, opened.opened_in);
    let mut runner = Runner::new(coordinator, job, opened, sink);
    let end = runner.run().await;
    coordinator.balances.end();
    runner.record_findings();
    runner.outcome(end, began, opened_in)
}

/// A running session.
struct Runner<'a, S> {
    coordinator: &'a Coordinator,
    session: SessionId,
    driver: SessionDriver,
    sink: &'a mut S,
    limits: Limits,
    embedder: Arc<dyn Embedder>,
    /// The draft model.
    draft_model: Option<ModelId>,
    drafting: Drafting,
    inbox: Option<CoordinatorInbox>,
    /// Frames to the first stage.
    sender: FrameSender,
    /// Copies to its standby.
    copies: StandbyFeed,
    routes: RoutePerformer,
    /// The current probe of hosts, and its number.
    probe: Option<(u32, BoxFuture<'static, Event>)>,
    /// Whether anything has happened since the last yield to other tasks.
    yield_first: bool,
}

impl<'a, S: TokenSink> Runner<'a, S> {
    fn new(coordinator: &'a Coordinator, job: Job, opened: OpenedSession, sink: &'a mut S) -> Self {
        let OpenedSession { routes, open, inbox, losses, .. } = opened;
        let (session, embedder) = (job.session, job.embedder.clone());
        let limits = job.limits();
        let draft_model = job.drafter.as_ref().map(|drafter| drafter.draft().model);
        let config = SessionConfig {
            codec: job.codec,
            prefix_hasher: coordinator.prefix_hasher.of(job.codec),
            needs_all_states: job.pooling == Some(Pooling::Mean),
            is_embedding: job.pooling.is_some(),
            prompt: job.prompt.len(),
            max_answer_bytes: max_answer_bytes(job.vocab, embedder.width()),
        };
        let performer = RoutePerformer::new(coordinator.clone(), &job, losses);
        let mut drafter = None;
        let make = |start| {
            let (session, drafts) = make_session(coordinator, job, start);
            drafter = drafts;
            session
        };
        let driver = SessionDriver::new(config, routes, open, make, Instant::now());
        let nowhere = Host { node: coordinator.router.local(), addresses: Vec::new() };
        Self {
            coordinator,
            session,
            driver,
            sink,
            limits,
            embedder,
            draft_model,
            drafting: Drafting::new(drafter, coordinator.tasks.clone()),
            inbox: Some(inbox),
            sender: coordinator.router.sender(nowhere),
            copies: StandbyFeed::to(None, &coordinator.tasks),
            routes: performer,
            probe: None,
            yield_first: true,
        }
    }

    async fn run(&mut self) -> Result<SessionEnd, Fault> {
        loop {
            while let Some(action) = self.driver.next_action(Instant::now()) {
                if let Some(event) = self.perform(action).await {
                    self.on(event);
                }
            }
            if let Some(end) = self.driver.end() {
                return end.clone();
            }
            let event = self.next_event().await;
            self.on(event);
        }
    }

    fn on(&mut self, event: Event) {
        self.driver.on(event, Instant::now());
        self.yield_first = true;
    }

    /// The next event. While the sink has no room, answers are not read, so that no step follows; all other events are.
    /// Events that do not concern the route are skipped without resetting the watch over the hosts.
    async fn next_event(&mut self) -> Event {
        let (running, reads) = (self.driver.is_running(), self.sink.has_room());
        self.driver.pause(!reads, Instant::now());
        let Self { driver, sink, limits, inbox, sender, routes, probe, .. } = self;
        probe.take_if(|(number, _)| *number != driver.current_probe());
        let (mut wake, mut overdue) = (pin!(until(driver.wake_at())), pin!(limits.overdue()));
        loop {
            tokio::select! {
                biased;
                () = limits.cancel.cancelled() => return Event::Cancelled,
                delivery = next_of(inbox.as_mut()), if running && reads => match delivery {
                    Some((from, message)) if !driver.accepts(from, &message) => {
                        tracing::debug!(session = %message.session(), peer = %from, "a message was dropped");
                    }
                    delivery => return Event::Delivered(delivery),
                },
                room = sink.room(), if running && !reads => return room.err().map_or(Event::Wake, Event::LocalFailure),
                event = routes.next_event() => match event {
                    Event::Lost { loss, .. } if driver.is_affected_by(loss) => {
                        return Event::Lost { loss, link_ended: sender.has_ended() };
                    }
                    Event::Lost { .. } => {}
                    event => return event,
                },
                () = &mut overdue => return Event::DeadlinePassed,
                event = probed(probe.as_mut()) => {
                    *probe = None;
                    return event;
                }
                () = &mut wake => return Event::Wake,
            }
        }
    }

    /// Performs an action; returns an event that came of it.
    async fn perform(&mut self, action: Action) -> Option<Event> {
        let yields = matches!(action, Action::Emit(_) | Action::Draft { .. } | Action::DraftAhead { .. });
        if yields && std::mem::take(&mut self.yield_first) {
            // The link, and sessions whose tokens came with this one, go first: stages wait for them, and none waits
            // for text.
            tokio::task::yield_now().await;
        }
        match action {
            Action::RouteFailed(fault) => {
                tracing::warn!(session = %self.session, %fault, "a route failed; searching for another");
            }
            Action::Rerouted { epoch, kept, cause } => self.reroute(epoch, kept, cause),
            Action::UseRoute { first, copy, hosts } => {
                self.sender = self.coordinator.router.sender(first);
                let copy = copy.map(|host| self.coordinator.router.sender(host));
                self.copies = StandbyFeed::to(copy, &self.coordinator.tasks);
                self.coordinator.router.set_hosts(self.session, hosts);
            }
            Action::StopCopies => self.copies = StandbyFeed::to(None, &self.coordinator.tasks),
            Action::Send { header, tokens } => return self.send(header, &tokens).await,
            Action::Emit(sampled) => return self.sink.token(sampled).await.is_break().then_some(Event::ReaderStopped),
            Action::Draft { text, limits } => return Some(self.draft(&text, limits).await),
            Action::DraftAhead { text, max_tokens } => self.drafting.draft_ahead(text, max_tokens),
            Action::ProbeHosts { probe, stages } => self.probe_hosts(probe, stages),
            Action::Owe(debt) => self.coordinator.balances.spend(debt.peer, self.session, debt.rows, debt.milli),
            Action::Route(action) => self.routes.perform(action),
        }
        None
    }

    fn reroute(&mut self, epoch: u32, kept: u32, cause: Fault) {
        // The queue may have overflowed, and holds only messages of the failed route. Drop the old one before the new
        // one is registered.
        drop(self.inbox.take());
        self.inbox = Some(self.coordinator.router.register_coordinator(self.session));
        self.coordinator.events.send(NodeEvent::GenerationRerouted { session: self.session, epoch, kept, cause });
    }

    /// Asks the draft model. A failed draft model ends the speculation, not the answer.
    async fn draft(&mut self, text: &[u32], limits: DraftLimits) -> Event {
        self.void_background();
        tokio::select! {
            biased;
            () = self.limits.cancel.cancelled() => Event::Cancelled,
            () = self.limits.overdue() => Event::DeadlinePassed,
            drafted = self.drafting.ask(text, limits) => Event::Drafted(drafted),
        }
    }

    fn probe_hosts(&mut self, probe: u32, stages: Vec<(NodeId, SessionStage)>) {
        let Some(net) = self.coordinator.net.clone() else { return };
        let result = async move {
            let unresponsive = watch::probe_hosts(&net, &stages).await;
            Event::HostsProbed { probe, unresponsive }
        };
        self.probe = Some((probe, result.boxed()));
    }

    /// Drops the probe and the search that ran while the session waited. They would not be polled during a send, and a
    /// search that nobody polls would hold its place in the planner.
    fn void_background(&mut self) {
        self.probe = None;
        self.routes.void_search();
    }

    /// Sends a step to the first stage, waiting for room in the link, which others may read slowly. Meanwhile
    /// cancellation, deadline and losses are handled.
    async fn send(&mut self, header: StepHeader, tokens: &[u32]) -> Option<Event> {
        let mut hidden = Vec::new();
        if let Err(error) = self.embedder.embed(tokens, &mut hidden) {
            return Some(Event::LocalFailure(Fault::new(error.kind(), error)));
        }
        self.void_background();
        let message = Message::Step { header, hidden };
        self.copies.send(&message);
        let Self { sender, limits, driver, routes, .. } = self;
        let (mut sending, mut overdue) = (pin!(sender.send(message)), pin!(limits.overdue()));
        let event = loop {
            tokio::select! {
                biased;
                sent = &mut sending => return sent.err().map(Event::SendFailed),
                () = limits.cancel.cancelled() => break Event::Cancelled,
                () = &mut overdue => break Event::DeadlinePassed,
                // The send itself reports its link.
                loss = routes.losses.next() => driver.on(Event::Lost { loss, link_ended: false }, Instant::now()),
            }
            if !driver.is_running() {
                driver.on(Event::SendAborted, Instant::now());
                return None;
            }
        };
        driver.on(Event::SendAborted, Instant::now());
        Some(event)
    }

    /// Records the findings of the session.
    fn record_findings(&self) {
        let (findings, coordinator, model) = (self.driver.findings(), self.coordinator, self.driver.model());
        if let Some(stats) = findings.speculation {
            coordinator.speculation.record_ngrams(model, stats.ngrams);
            if let Some((draft, stats)) = self.draft_model.zip(stats.draft) {
                coordinator.speculation.record_draft(model, draft, stats);
            }
        }
        if let Some((prefill_us, rows, token_us)) = findings.chunks {
            coordinator.chunk_policy.record(model, prefill_us, rows, token_us);
        }
        if let Some((timings, token_us)) = findings.speeds {
            let peers = coordinator.net.as_ref().map(NetHandle::peers);
            let rtt = |node| peers.as_ref().and_then(|peers| peers.lookup(node)).and_then(|peer| peer.rtt);
            let micros = |node| rtt(node).map_or(0, |rtt| rtt.as_micros().try_into().unwrap_or(u32::MAX));
            let timings: Vec<StageTiming> =
                timings.into_iter().map(|timing| StageTiming { rtt_us: micros(timing.node), ..timing }).collect();
            coordinator.speeds.record(model, &timings, token_us);
        }
    }

    fn outcome(&self, end: Result<SessionEnd, Fault>, began: Instant, open: Duration) -> Outcome {
        let (driver, session) = (&self.driver, self.driver.session());
        Outcome {
            end,
            tokens: session.generated().to_vec(),
            cached: driver.cached(),
            draft_counts: session.draft_counts(),
            embedding: session.embedding(),
            stages: driver.reports().to_vec(),
            open,
            predicted_us: driver.route().predicted_us,
            first_token: driver.first_token().map(|at| at - began),
            total: began.elapsed(),
        }
    }
}

/// The session of a job over its first route, and its draft model.
fn make_session(coordinator: &Coordinator, job: Job, start: FirstRoute) -> (Session, Option<Drafter>) {
    let left = job.prompt.len() - start.cached as usize;
    let chunk = match job.exact {
        true => start.max_rows,
        false => coordinator.chunk_policy.chunk(job.model, left, start.stages, start.max_rows),
    };
    let draft = job.drafter.as_ref().map(|drafter| drafter.draft().model);
    let params = SessionParams {
        chunk,
        max_tokens: job.max_tokens,
        max_rows: start.max_rows,
        vocab: job.vocab,
        cached: start.cached,
        stats: SpeculationStats {
            ngrams: coordinator.speculation.ngram_stats(job.model),
            draft: draft.map(|draft| coordinator.speculation.draft_stats(job.model, draft)),
        },
        speculation: job.speculation(),
        prompt: job.prompt,
    };
    let session = Session::new(params, job.sampler, job.is_end);
    let session = match (job.guide, job.pooling) {
        (_, Some(pooling)) => session.pooled(Pool::new(pooling, job.embedder.width())),
        (Some(guide), None) => session.guided(guide),
        (None, None) => session,
    };
    (session, job.drafter)
}

async fn next_of(inbox: Option<&mut CoordinatorInbox>) -> Option<Delivery> {
    match inbox {
        Some(inbox) => inbox.next().await,
        None => pending().await,
    }
}

async fn probed(probe: Option<&mut (u32, BoxFuture<'static, Event>)>) -> Event {
    match probe {
        Some((_, result)) => result.await,
        None => pending().await,
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when.into()).await,
        None => pending().await,
    }
}

/// Bytes of the longest answer: [`MAX_OUTPUT_ROWS`] full rows of logits or states.
fn max_answer_bytes(vocab: u32, width: u32) -> usize {
    (MAX_OUTPUT_ROWS as usize).saturating_mul(vocab.max(width) as usize).saturating_mul(4)
}

#[cfg(test)]
mod tests;
