//! The coordinator's side of a session, performed: what a [`SessionDriver`] wants done is done with network, engine, sink and
//! timers, and what happens is told to it.

mod route_performer;

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, FutureExt};
use tokio::time::sleep_until;

use crate::base::{Event as News, Fault, ModelId, NodeId, SessionId};
use crate::engine::{Embedder, WANTED_ROWS};
use crate::net::NetHandle;
use crate::pipeline::draft::Horizon;
use crate::pipeline::drafter::{Drafter, Drafting};
use crate::pipeline::driver::{Action, Event, RouteEvent, RouteManager, SessionConfig, SessionDriver, Start};
use crate::pipeline::job::{Coordinator, Job, Limits, Outcome, TokenSink};
use crate::pipeline::links::{CoordinatorInbox, Delivery, Outlet, SessionStage};
use crate::pipeline::losses::{Loss, Losses};
use crate::pipeline::message::Message;
use crate::pipeline::plan::Plan;
use crate::pipeline::pool::{Pool, Pooling};
use crate::pipeline::route::{OpenRoute, Route};
use crate::pipeline::session::{End, LearntOfGuesses, Session, SessionParams};
use crate::pipeline::speeds::Seen;
use crate::pipeline::stand_by::Copies;
use crate::pipeline::watch;
use crate::wire::control::Host;
use crate::wire::job::StepHeader;
use route_performer::{Happens, RoutePerformer};

/// A session whose stages are open, and which has computed nothing.
pub struct Begun {
    routes: RouteManager,
    open: OpenRoute,
    inbox: CoordinatorInbox,
    losses: Losses,
    began: Instant,
    opened_in: Duration,
}

impl Begun {
    /// The route that was opened.
    pub fn plan(&self) -> Plan {
        self.open.route.plan()
    }
}

/// Opens a session's stages on this route or, where a host of it fails, on another. Where the error comes nothing stays
/// open, and the session's id is used up. Not cancel-safe: use `job.cancel`. What it gives is to be [`run`].
pub async fn open(coordinator: &Coordinator, job: &Job, route: Route) -> Result<Begun, Result<End, Fault>> {
    let began = Instant::now();
    let inbox = coordinator.links.register_coordinator(job.session);
    let mut routes = RouteManager::new(job.open_params(), coordinator.links.local());
    let mut performer = RoutePerformer::new(coordinator.clone(), job, Losses::new(coordinator));
    let prefix = coordinator.namer.of(job.codec).name(job.model, job.exact, &job.prompt);
    routes.open(route, prefix);
    match job.limits().bound(first_route(&mut routes, &mut performer)).await {
        Ok(open) => Ok(Begun { routes, open, inbox, losses: performer.losses, began, opened_in: began.elapsed() }),
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
            happens = performer.happens() => match happens {
                Happens::Answered(event) => event,
                Happens::Lost(Loss::Peer(peer)) => RouteEvent::Lost(peer),
                Happens::Lost(Loss::Link(_)) => continue,
            },
            () = until(routes.wake_at()) => RouteEvent::Time,
        };
        if let Some(routed) = routes.on(event, Instant::now()) {
            performer.perform_all(routes);
            return routed;
        }
    }
}

/// Runs a session to its end and releases its stages, whatever happens. Not cancel-safe: use `job.cancel`.
pub async fn run<S: TokenSink>(coordinator: &Coordinator, job: Job, begun: Begun, sink: &mut S) -> Outcome {
    let (began, opened_in) = (begun.began, begun.opened_in);
    let mut runner = Runner::new(coordinator, job, begun, sink);
    let end = runner.run().await;
    coordinator.tabs.end();
    runner.learn();
    runner.outcome(end, began, opened_in)
}

/// A session under way.
struct Runner<'a, S> {
    coordinator: &'a Coordinator,
    session: SessionId,
    driver: SessionDriver,
    sink: &'a mut S,
    limits: Limits,
    embedder: Arc<dyn Embedder>,
    /// The draft model.
    draft: Option<ModelId>,
    drafting: Drafting,
    inbox: Option<CoordinatorInbox>,
    /// What goes to the first stage.
    outlet: Outlet,
    /// What goes to its stand-by.
    copies: Copies,
    routes: RoutePerformer,
    /// The question whether hosts are there, and its number.
    asked: Option<(u32, BoxFuture<'static, Event>)>,
    /// Whether something has happened since others had their turn.
    busy: bool,
}

impl<'a, S: TokenSink> Runner<'a, S> {
    fn new(coordinator: &'a Coordinator, job: Job, begun: Begun, sink: &'a mut S) -> Self {
        let Begun { routes, open, inbox, losses, .. } = begun;
        let (session, embedder) = (job.session, job.embedder.clone());
        let limits = job.limits();
        let draft = job.drafter.as_ref().map(|drafter| drafter.draft().model);
        let config = SessionConfig {
            codec: job.codec,
            namer: coordinator.namer.of(job.codec),
            needs_all: job.pooling == Some(Pooling::Mean),
            reads: job.pooling.is_some(),
            prompt: job.prompt.len(),
            longest: longest_answer(job.vocab, embedder.width()),
        };
        let performer = RoutePerformer::new(coordinator.clone(), &job, losses);
        let mut drafter = None;
        let make = |start| {
            let (session, drafts) = make_session(coordinator, job, start);
            drafter = drafts;
            session
        };
        let driver = SessionDriver::new(config, routes, open, make, Instant::now());
        let nowhere = Host { node: coordinator.links.local(), addresses: Vec::new() };
        Self {
            coordinator,
            session,
            driver,
            sink,
            limits,
            embedder,
            draft,
            drafting: Drafting::new(drafter, coordinator.tasks.clone()),
            inbox: Some(inbox),
            outlet: coordinator.links.outlet(nowhere),
            copies: Copies::to(None, &coordinator.tasks),
            routes: performer,
            asked: None,
            busy: true,
        }
    }

    async fn run(&mut self) -> Result<End, Fault> {
        loop {
            while let Some(action) = self.driver.next_action(Instant::now()) {
                if let Some(event) = self.perform(action).await {
                    self.on(event);
                }
            }
            if let Some(end) = self.driver.end() {
                return end.clone();
            }
            let event = self.happens().await;
            self.on(event);
        }
    }

    fn on(&mut self, event: Event) {
        self.driver.on(event, Instant::now());
        self.busy = true;
    }

    /// The next thing that happens to the session. Where the sink has no room answers are left where they are, so that no step
    /// follows; all else is heard. What does not concern the route is passed over, and the hosts are watched all the while:
    /// others may come and go, or talk, as often as they like.
    async fn happens(&mut self) -> Event {
        let (running, reads) = (self.driver.is_running(), self.sink.has_room());
        self.driver.pause(!reads, Instant::now());
        let Self { driver, sink, limits, inbox, outlet, routes, asked, .. } = self;
        asked.take_if(|(question, _)| *question != driver.question());
        let (mut woken, mut overdue) = (pin!(until(driver.wake_at())), pin!(limits.overdue()));
        loop {
            tokio::select! {
                biased;
                () = limits.cancel.cancelled() => return Event::Cancelled,
                delivery = next_of(inbox.as_mut()), if running && reads => match delivery {
                    Some((from, message)) if !driver.hears(from, &message) => {
                        tracing::debug!(session = %message.session(), peer = %from, "a message was dropped");
                    }
                    delivery => return Event::Delivered(delivery),
                },
                room = sink.room(), if running && !reads => return room.err().map_or(Event::Time, Event::Failed),
                happens = routes.happens() => match happens {
                    Happens::Answered(event) => return Event::Route(event),
                    Happens::Lost(loss) if driver.is_concerned(loss) => {
                        return Event::Lost { loss, link_ended: outlet.has_ended() };
                    }
                    Happens::Lost(_) => {}
                },
                () = &mut overdue => return Event::Overdue,
                event = answer_of(asked.as_mut()) => {
                    *asked = None;
                    return event;
                }
                () = &mut woken => return Event::Time,
            }
        }
    }

    /// Does what the driver wants; says what happened meanwhile.
    async fn perform(&mut self, action: Action) -> Option<Event> {
        let says = matches!(action, Action::Emit(_) | Action::Draft { .. } | Action::Foresee { .. });
        if says && std::mem::take(&mut self.busy) {
            // The link, and sessions whose tokens came with this one, go first: stages wait for them, nobody does for text.
            tokio::task::yield_now().await;
        }
        match action {
            Action::Broken(fault) => {
                tracing::warn!(session = %self.session, %fault, "a route broke; looking for another");
            }
            Action::Rerouted { epoch, kept, cause } => self.reroute(epoch, kept, cause),
            Action::Follow { first, copy, hosts } => {
                self.outlet = self.coordinator.links.outlet(first);
                let copy = copy.map(|host| self.coordinator.links.outlet(host));
                self.copies = Copies::to(copy, &self.coordinator.tasks);
                self.coordinator.links.set_hosts(self.session, hosts);
            }
            Action::StopCopies => self.copies = Copies::to(None, &self.coordinator.tasks),
            Action::Send { header, tokens } => return self.send(header, &tokens).await,
            Action::Emit(sampled) => return self.sink.token(sampled).await.is_break().then_some(Event::Enough),
            Action::Draft { text, horizon } => return Some(self.draft(&text, horizon).await),
            Action::Foresee { text, most } => self.drafting.foresee(text, most),
            Action::Ask { question, stages } => self.ask(question, stages),
            Action::Owe(debt) => self.coordinator.tabs.spend(debt.peer, self.session, debt.rows, debt.milli),
            Action::Route(action) => self.routes.perform(action),
        }
        None
    }

    fn reroute(&mut self, epoch: u32, kept: u32, cause: Fault) {
        // The queue may have overflowed, and has nothing that is of use any more. The old one goes before the new one comes.
        drop(self.inbox.take());
        self.inbox = Some(self.coordinator.links.register_coordinator(self.session));
        self.coordinator.events.send(News::GenerationRerouted { session: self.session, epoch, kept, cause });
    }

    /// Asks the draft model. A draft that fails ends the guessing, not the answer.
    async fn draft(&mut self, text: &[u32], horizon: Horizon) -> Event {
        self.void_questions();
        tokio::select! {
            biased;
            () = self.limits.cancel.cancelled() => Event::Cancelled,
            () = self.limits.overdue() => Event::Overdue,
            drafted = self.drafting.ask(text, horizon) => Event::Drafted(drafted),
        }
    }

    fn ask(&mut self, question: u32, stages: Vec<(NodeId, SessionStage)>) {
        let Some(net) = self.coordinator.net.clone() else { return };
        let asks = async move { Event::Present { question, absent: watch::attendance(&net, &stages).await } };
        self.asked = Some((question, asks.boxed()));
    }

    /// What was asked while nothing came is of no use once something is sent, and nobody would poll it meanwhile: a plan that is
    /// waited for would hold its turn.
    fn void_questions(&mut self) {
        self.asked = None;
        self.routes.void_search();
    }

    /// Sends a step to the first stage, waiting for room on the way there. Meanwhile it hears what ends the session or its
    /// route: others may be slow to read what is before it.
    async fn send(&mut self, header: StepHeader, tokens: &[u32]) -> Option<Event> {
        let mut hidden = Vec::new();
        if let Err(error) = self.embedder.embed(tokens, &mut hidden) {
            return Some(Event::Failed(Fault::new(error.kind(), error)));
        }
        self.void_questions();
        let message = Message::Step { header, hidden };
        self.copies.send(&message);
        let Self { outlet, limits, driver, routes, .. } = self;
        let (mut sending, mut overdue) = (pin!(outlet.send(message)), pin!(limits.overdue()));
        let event = loop {
            tokio::select! {
                biased;
                sent = &mut sending => return sent.err().map(Event::Unsent),
                () = limits.cancel.cancelled() => break Event::Cancelled,
                () = &mut overdue => break Event::Overdue,
                // Who sends hears of its link itself.
                loss = routes.losses.next() => driver.on(Event::Lost { loss, link_ended: false }, Instant::now()),
            }
            if !driver.is_running() {
                driver.on(Event::NotSent, Instant::now());
                return None;
            }
        };
        driver.on(Event::NotSent, Instant::now());
        Some(event)
    }

    /// Remembers what the session teaches those to come.
    fn learn(&self) {
        let (lessons, coordinator, model) = (self.driver.lessons(), self.coordinator, self.driver.model());
        if let Some(learnt) = lessons.guesses {
            coordinator.lessons.learn(model, learnt.repeats);
            if let Some((draft, learnt)) = self.draft.zip(learnt.draft) {
                coordinator.lessons.learn_draft(model, draft, learnt);
            }
        }
        if let Some((prefill_us, rows, token_us)) = lessons.chunks {
            coordinator.overlap.learn(model, prefill_us, rows, token_us);
        }
        if let Some((seen, token_us)) = lessons.speeds {
            let peers = coordinator.net.as_ref().map(NetHandle::peers);
            let rtt = |node| peers.as_ref().and_then(|peers| peers.lookup(node)).and_then(|peer| peer.rtt);
            let micros = |node| rtt(node).map_or(0, |rtt| rtt.as_micros().try_into().unwrap_or(u32::MAX));
            let seen: Vec<Seen> = seen.into_iter().map(|seen| Seen { rtt_us: micros(seen.node), ..seen }).collect();
            coordinator.speeds.learn(model, &seen, token_us);
        }
    }

    fn outcome(&self, end: Result<End, Fault>, began: Instant, open: Duration) -> Outcome {
        let (driver, session) = (&self.driver, self.driver.session());
        Outcome {
            end,
            tokens: session.generated().to_vec(),
            cached: driver.cached(),
            guesses: session.guesses(),
            embedding: session.embedding(),
            stages: driver.reports().to_vec(),
            open,
            predicted_us: driver.way().predicted_us,
            first_token: driver.first_token().map(|at| at - began),
            total: began.elapsed(),
        }
    }
}

/// The session of a job over the route at hand, and the draft model that it asks.
fn make_session(coordinator: &Coordinator, job: Job, start: Start) -> (Session, Option<Drafter>) {
    let left = job.prompt.len() - start.cached as usize;
    let chunk = match job.exact {
        true => start.max_rows,
        false => coordinator.overlap.chunk(job.model, left, start.stages, start.max_rows),
    };
    let draft = job.drafter.as_ref().map(|drafter| drafter.draft().model);
    let params = SessionParams {
        chunk,
        max_tokens: job.max_tokens,
        max_rows: start.max_rows,
        vocab: job.vocab,
        cached: start.cached,
        learnt: LearntOfGuesses {
            repeats: coordinator.lessons.of(job.model),
            draft: draft.map(|draft| coordinator.lessons.of_draft(job.model, draft)),
        },
        guess: job.guess(),
        prompt: job.prompt,
    };
    let session = Session::new(params, job.sampler, job.is_end);
    let session = match (job.guide, job.pooling) {
        (_, Some(pooling)) => session.reading(Pool::new(pooling, job.embedder.width())),
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

async fn answer_of(asked: Option<&mut (u32, BoxFuture<'static, Event>)>) -> Event {
    match asked {
        Some((_, asked)) => asked.await,
        None => pending().await,
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when.into()).await,
        None => pending().await,
    }
}

/// Bytes of the longest answer: so many rows of logits, or of states, in full.
fn longest_answer(vocab: u32, width: u32) -> usize {
    (WANTED_ROWS as usize).saturating_mul(vocab.max(width) as usize).saturating_mul(4)
}

#[cfg(test)]
mod tests;
