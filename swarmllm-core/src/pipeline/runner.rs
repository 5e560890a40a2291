//! The coordinator's side of a session: opens its stages, drives [`Session`], watches for what can go wrong.

use std::collections::VecDeque;
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use tokio::sync::broadcast;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, LayerRange, ModelId, NodeId, SessionId};
use crate::engine::Embedder;
use crate::engine::constraint::Guide;
use crate::engine::sample::{Sampled, Sampler};
use crate::ledger::{Tabs, price};
use crate::net::NetHandle;
use crate::pipeline::control::{request, unexpected};
use crate::pipeline::draft::{Costs, Lessons, Took};
use crate::pipeline::drafter::Drafter;
use crate::pipeline::links::{CoordinatorInbox, Delivery, Links};
use crate::pipeline::message::Message;
use crate::pipeline::overlap::Overlap;
use crate::pipeline::plan::{Plan, PlanStage};
use crate::pipeline::pool::{Pool, Pooling};
use crate::pipeline::prefix::{EXACT_BLOCK, Namer};
use crate::pipeline::serve::Serving;
use crate::pipeline::session::{Action, End, Guess, Session, SessionParams};
use crate::rt::TaskSet;
use crate::wire::control::{OpenSession, Opened, Reply, Request};
use crate::wire::job::{LogitsHeader, StepHeader};
use crate::wire::prefix::Prefix;

/// Loading a stage of many GiB from a cold disk takes a while; more than this is a hang.
const OPEN_DEADLINE: Duration = Duration::from_secs(180);
/// Telling a stage to free a session.
const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
/// No answer from the chain for so long means that a stage hangs; a dead one is noticed by its connection long before.
const STALL_DEADLINE: Duration = Duration::from_secs(120);

/// What every runner of a node uses.
#[derive(Clone)]
pub struct Coordinator {
    pub links: Links,
    pub serving: Serving,
    pub net: Option<NetHandle>,
    pub tasks: TaskSet,
    /// Where this node may be dialled, for the last stage.
    pub addresses: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Names the texts whose KV hosts may keep.
    pub namer: Namer,
    /// How long a prompt's chunks are.
    pub overlap: Arc<Overlap>,
    /// How long windows of guesses are.
    pub lessons: Arc<Lessons>,
    /// What peers are asked for is owed to them.
    pub tabs: Tabs,
}

/// One generation's work order.
pub struct Job {
    pub session: SessionId,
    pub model: ModelId,
    pub plan: Plan,
    /// Addresses of each stage's host, in the plan's order.
    pub addresses: Vec<Vec<String>>,
    /// What the ledger prices each stage by.
    pub weights: Vec<u64>,
    pub engine: String,
    pub prompt: Vec<u32>,
    /// Whether steps keep the shapes of a plain run.
    pub exact: bool,
    /// Whether to guess ahead; never in the exact mode, nor under a constraint.
    pub guess: bool,
    /// The draft model that guesses, in the place of what repeats itself.
    pub drafter: Option<Drafter>,
    /// What holds the answer to a constraint.
    pub guide: Option<Guide>,
    /// Whether the prompt is only read, for its embedding.
    pub pooling: Option<Pooling>,
    pub max_tokens: u32,
    pub vocab: u32,
    pub embedder: Arc<dyn Embedder>,
    pub sampler: Sampler,
    pub is_end: Box<dyn Fn(u32) -> bool + Send + Sync>,
    pub deadline: Option<Instant>,
    pub cancel: CancellationToken,
}

impl Job {
    fn guess(&self) -> Guess {
        match &self.drafter {
            _ if !self.guess || self.exact => Guess::Never,
            Some(_) => Guess::Draft,
            None => Guess::Repeats,
        }
    }
}

/// Takes the tokens as they come.
pub trait TokenSink: Send {
    /// One token; a `Break` ends the session there, the token included.
    fn token(&mut self, sampled: Sampled) -> impl Future<Output = ControlFlow<()>> + Send;
}

/// One stage as it was used.
#[derive(Debug, Clone, PartialEq)]
pub struct StageReport {
    /// Which stage.
    pub stage: PlanStage,
    /// Milliseconds that loading took, 0 where it was loaded.
    pub load_ms: u32,
    /// Microseconds of compute of each prefill step.
    pub prefill_us: u64,
    /// Microseconds of compute of each decode step.
    pub decode_us: Vec<u32>,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Well, or why not.
    pub end: Result<End, Fault>,
    /// Tokens chosen.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt that were not computed again.
    pub cached: u32,
    /// Guesses that were made, and how many were right.
    pub guesses: (u32, u32),
    /// Of a prompt that was only read.
    pub embedding: Option<Vec<f32>>,
    /// The stages, in order; empty where opening failed.
    pub stages: Vec<StageReport>,
    /// From the order to all stages being open.
    pub open: Duration,
    /// From the order to the first token.
    pub first_token: Option<Duration>,
    /// From the order to the end.
    pub total: Duration,
}

/// Runs a session to its end and releases its stages, whatever happens. Not cancel-safe: use `job.cancel`.
pub async fn run<S: TokenSink>(coordinator: &Coordinator, job: Job, sink: &mut S) -> Outcome {
    let began = Instant::now();
    let losses = coordinator.net.as_ref().map(NetHandle::disconnects);
    let inbox = coordinator.links.register_coordinator(job.session);
    let hosts = job.plan.stages.clone();
    let opened = match open_or_cancel(coordinator, &job).await {
        Ok(opened) => opened,
        Err(end) => {
            release(coordinator, job.session, &hosts, Prefix::default());
            return Outcome::unopened(end, began.elapsed());
        }
    };
    let open = began.elapsed();
    let session = job.session;
    let mut drive = Drive::new(coordinator, job, &opened, began);
    let end = drive.run(inbox, losses, sink).await;
    let keep = if end.is_ok() { drive.keep() } else { Prefix::default() };
    release(coordinator, session, &hosts, keep);
    if end.is_ok() {
        // Computed, most likely, and needed no more. Of a route that failed, what was not answered is not paid.
        drive.sent.iter().for_each(|sent| drive.owe(sent));
    }
    coordinator.tabs.end();
    drive.learn();
    let Drive { session, stages, first_token, job, .. } = drive;
    let (tokens, guesses, embedding) = (session.generated().to_vec(), session.guesses(), session.embedding());
    Outcome { end, tokens, cached: job.cached, guesses, embedding, stages, open, first_token, total: began.elapsed() }
}

impl Outcome {
    /// Of a session whose stages were not opened.
    fn unopened(end: Result<End, Fault>, total: Duration) -> Self {
        let (tokens, stages) = (Vec::new(), Vec::new());
        let (guesses, embedding, first_token) = ((0, 0), None, None);
        Self { end, tokens, cached: 0, guesses, embedding, stages, open: total, first_token, total }
    }
}

async fn open_or_cancel(coordinator: &Coordinator, job: &Job) -> Result<Vec<Opened>, Result<End, Fault>> {
    let deadline = async {
        match job.deadline {
            Some(deadline) => sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        opened = open_all(coordinator, job) => opened.map_err(Err),
        () = job.cancel.cancelled() => Err(Ok(End::Cancelled)),
        () = deadline => Err(Err(late())),
    }
}

/// The fault of a request whose deadline has passed.
pub fn late() -> Fault {
    Fault::new(ErrorKind::Timeout, "the deadline of the request passed; allow more time or ask for fewer tokens")
}

/// Opens all stages at once; the first refusal wins.
async fn open_all(coordinator: &Coordinator, job: &Job) -> Result<Vec<Opened>, Fault> {
    let context = (job.prompt.len() as u64 + u64::from(job.max_tokens)).try_into().unwrap_or(u32::MAX);
    let local = coordinator.links.local();
    let own = (coordinator.addresses)();
    let prefix = coordinator.namer.name(job.model, job.exact, &job.prompt);
    let open = |index: usize, stage: &PlanStage| {
        let next = job.plan.stages.get(index + 1).map_or(local, |next| next.node);
        let next_addresses = job.addresses.get(index + 1).cloned().unwrap_or_else(|| own.clone());
        OpenSession {
            session: job.session,
            epoch: 0,
            model: job.model,
            engine: job.engine.clone(),
            layers: stage.layers,
            head: stage.head,
            stage: index as u32,
            context,
            exact: job.exact,
            prefix: prefix.clone(),
            next,
            next_addresses,
            coordinator: local,
            coordinator_addresses: own.clone(),
        }
    };
    let opens = job.plan.stages.iter().enumerate().map(|(index, stage)| {
        let addresses = job.addresses.get(index).cloned().unwrap_or_default();
        open_one(coordinator, stage.node, addresses, open(index, stage))
    });
    let opened: Vec<Opened> = join_all(opens).await.into_iter().collect::<Result<_, _>>()?;
    check_opened(job, &opened)?;
    Ok(opened)
}

async fn open_one(
    coordinator: &Coordinator,
    node: NodeId,
    addresses: Vec<String>,
    open: OpenSession,
) -> Result<Opened, Fault> {
    if node == coordinator.links.local() {
        return coordinator.serving.open(node, open).await;
    }
    let net = coordinator.net.as_ref();
    let net = net.ok_or_else(|| Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network"))?;
    net.ensure_connected(node, &addresses).await.map_err(|error| Fault::new(error.kind(), error))?;
    match request(net, node, &Request::Open(open), OPEN_DEADLINE).await? {
        Reply::Opened(opened) => Ok(opened),
        _ => Err(unexpected(node)),
    }
}

/// A host whose stage has another shape than the manifest says has another model, or lies.
fn check_opened(job: &Job, opened: &[Opened]) -> Result<(), Fault> {
    let width = job.embedder.width();
    for (stage, opened) in job.plan.stages.iter().zip(opened) {
        let vocab_fits = !stage.head || opened.vocab == Some(job.vocab);
        let cached_fits = opened.cached as usize <= job.prompt.len();
        if opened.width != width || !vocab_fits || opened.max_rows == 0 || !cached_fits {
            let text = format!("peer {} opened a stage of another shape than the model's", stage.node.short());
            return Err(Fault::new(ErrorKind::BadFrame, text));
        }
    }
    Ok(())
}

/// Tells every stage to end the session, in the background; what of its KV may be kept is named in `keep`.
fn release(coordinator: &Coordinator, session: SessionId, stages: &[PlanStage], keep: Prefix) {
    let local = coordinator.links.local();
    coordinator.serving.release(session, local, &keep);
    let Some(net) = &coordinator.net else { return };
    let mut peers: Vec<NodeId> = stages.iter().map(|stage| stage.node).filter(|node| *node != local).collect();
    peers.sort_unstable();
    peers.dedup();
    for peer in peers {
        let (net, keep) = (net.clone(), keep.clone());
        coordinator.tasks.spawn("release", async move {
            if let Err(fault) = request(&net, peer, &Request::Release { session, keep }, RELEASE_DEADLINE).await {
                tracing::debug!(%fault, "a stage could not be released; it frees the session by itself");
            }
        });
    }
}

/// A session under way.
struct Drive<'a> {
    coordinator: &'a Coordinator,
    job: Facts,
    session: Session,
    stages: Vec<StageReport>,
    began: Instant,
    first_token: Option<Duration>,
    drafter: Option<Drafter>,
    /// The steps under way.
    sent: VecDeque<Sent>,
    /// When the last answer came.
    answered: Instant,
    /// When guesses were asked for that have not been sent yet.
    asked: Option<Instant>,
    /// Tokens that the sink has taken.
    emitted: usize,
}

/// A step under way.
struct Sent {
    /// When it was sent, or its guesses were asked for.
    begun: Instant,
    rows: u32,
    /// Rows whose output is wanted.
    wanted: u32,
}

/// What of the job the drive still needs.
struct Facts {
    session: SessionId,
    model: ModelId,
    exact: bool,
    /// Whether what guesses cost is remembered: a draft model's own time is part of theirs.
    learns: bool,
    max_rows: u32,
    cached: u32,
    first: NodeId,
    first_addresses: Vec<String>,
    last: NodeId,
    /// The peers of the route, and what the ledger prices their stages by.
    paid: Vec<(NodeId, u64)>,
    embedder: Arc<dyn Embedder>,
    deadline: Option<Instant>,
    cancel: CancellationToken,
}

impl<'a> Drive<'a> {
    fn new(coordinator: &'a Coordinator, job: Job, opened: &[Opened], began: Instant) -> Self {
        let max_rows = opened.iter().map(|opened| opened.max_rows).min().unwrap_or(1);
        let report = |(stage, opened): (&PlanStage, &Opened)| StageReport {
            stage: *stage,
            load_ms: opened.load_ms,
            prefill_us: 0,
            decode_us: Vec::new(),
        };
        let stages = job.plan.stages.iter().zip(opened).map(report).collect();
        let local = coordinator.links.local();
        let cached = opened.iter().map(|opened| opened.cached).min().unwrap_or(0);
        // Of a mean all states are needed, and they are not kept.
        let cached = if job.pooling == Some(Pooling::Mean) { 0 } else { cached };
        let cached = usable(cached, job.prompt.len() as u32, job.exact);
        let guess = job.guess();
        let facts = Facts {
            session: job.session,
            model: job.model,
            exact: job.exact,
            learns: guess == Guess::Repeats,
            max_rows,
            cached,
            first: job.plan.stages.first().map_or(local, |stage| stage.node),
            first_addresses: job.addresses.first().cloned().unwrap_or_default(),
            last: job.plan.stages.last().map_or(local, |stage| stage.node),
            paid: job
                .plan
                .stages
                .iter()
                .map(|stage| stage.node)
                .zip(job.weights)
                .filter(|(node, _)| *node != local)
                .collect(),
            embedder: job.embedder,
            deadline: job.deadline,
            cancel: job.cancel,
        };
        let left = job.prompt.len() - cached as usize;
        let chunk = match job.exact {
            true => max_rows,
            false => coordinator.overlap.chunk(job.model, left, opened.len(), max_rows),
        };
        let params = SessionParams {
            chunk,
            prompt: job.prompt,
            max_tokens: job.max_tokens,
            max_rows,
            vocab: job.vocab,
            cached,
            costs: if facts.learns { coordinator.lessons.of(job.model) } else { Costs::default() },
            guess,
        };
        let session = Session::new(params, job.sampler, job.is_end);
        let session = match (job.guide, job.pooling) {
            (_, Some(pooling)) => session.reading(Pool::new(pooling, facts.embedder.width())),
            (Some(guide), None) => session.guided(guide),
            (None, None) => session,
        };
        Self {
            coordinator,
            job: facts,
            session,
            stages,
            began,
            first_token: None,
            drafter: job.drafter,
            sent: VecDeque::new(),
            answered: Instant::now(),
            asked: None,
            emitted: 0,
        }
    }

    /// The text whose KV hosts may keep. In the exact mode that is what was computed in whole chunks of the plain run's
    /// size.
    fn keep(&self) -> Prefix {
        let text = match self.job.exact {
            false => self.session.computed(),
            true if self.job.max_rows == EXACT_BLOCK => self.session.prompt_sent().to_vec(),
            true => Vec::new(),
        };
        self.coordinator.namer.name(self.job.model, self.job.exact, &text)
    }

    /// Remembers what windows took, and what the stage whose rows took longest took, for the chunks of later prompts.
    fn learn(&self) {
        if self.job.learns {
            self.coordinator.lessons.learn(self.job.model, self.session.costs());
        }
        let Some(slowest) = self.stages.iter().max_by_key(|report| report.prefill_us) else { return };
        let mut tokens = slowest.decode_us.clone();
        tokens.sort_unstable();
        let rows = (self.session.prompt_sent().len() as u32).saturating_sub(self.job.cached);
        if let Some(token_us) = tokens.get(tokens.len() / 2) {
            self.coordinator.overlap.learn(self.job.model, slowest.prefill_us, rows, *token_us);
        }
    }

    async fn run<S: TokenSink>(
        &mut self,
        mut inbox: CoordinatorInbox,
        mut losses: Option<broadcast::Receiver<NodeId>>,
        sink: &mut S,
    ) -> Result<End, Fault> {
        let mut actions = self.session.start();
        loop {
            if let Some(end) = self.act(&mut actions, sink).await {
                return end;
            }
            actions = self.wait(&mut inbox, &mut losses).await;
        }
    }

    /// Waits for the next thing that happens to the session.
    async fn wait(
        &mut self,
        inbox: &mut CoordinatorInbox,
        losses: &mut Option<broadcast::Receiver<NodeId>>,
    ) -> Vec<Action> {
        let deadline = self.job.deadline;
        let overdue = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.job.cancel.cancelled() => self.session.stop(End::Cancelled),
            delivery = inbox.next() => self.on_delivery(delivery),
            peer = next_loss(losses) => self.on_loss(peer),
            () = overdue => self.session.on_fault(late()),
            () = sleep(STALL_DEADLINE) => {
                let text = format!("the stages gave no answer for {STALL_DEADLINE:?}");
                self.session.on_fault(Fault::new(ErrorKind::Timeout, text))
            }
        }
    }

    fn on_delivery(&mut self, delivery: Option<Delivery>) -> Vec<Action> {
        match delivery {
            Some((from, Message::Logits { header, rows })) if from == self.job.last && header.epoch == 0 => {
                self.record(&header);
                let sent = self.sent.pop_front();
                let took = self.took(&header, sent.as_ref());
                let actions = self.session.on_logits(header.step, &rows, took);
                // An answer that is none is not paid.
                if !actions.iter().any(|action| matches!(action, Action::Fail(_))) {
                    sent.iter().for_each(|sent| self.owe(sent));
                }
                actions
            }
            Some((from, Message::Failed { stage, fault, .. })) if self.is_host(from) => {
                let text = format!("stage {stage} at peer {}: {fault}", from.short());
                self.session.on_fault(Fault::new(fault.kind(), text))
            }
            Some((from, _)) => {
                tracing::warn!(peer = %from, "an answer from a peer outside the route was dropped");
                Vec::new()
            }
            None => self.session.on_fault(Fault::new(ErrorKind::BadFrame, "the last stage sent more than was asked")),
        }
    }

    fn on_loss(&mut self, peer: NodeId) -> Vec<Action> {
        let lost = self.stages.iter().find(|report| report.stage.node == peer).map(|report| report.stage.layers);
        match lost {
            None => Vec::new(),
            Some(layers) => self.session.on_fault(peer_lost(peer, layers)),
        }
    }

    fn is_host(&self, peer: NodeId) -> bool {
        self.stages.iter().any(|report| report.stage.node == peer)
    }

    /// Takes the per-stage timings of an answer; called before the session sees it.
    fn record(&mut self, header: &LogitsHeader) {
        let prefill = self.session.in_prefill();
        for (report, us) in self.stages.iter_mut().zip(&header.compute_us) {
            match prefill {
                true => report.prefill_us += u64::from(*us),
                false => report.decode_us.push(*us),
            }
        }
    }

    /// Every peer of the route is owed for a step.
    fn owe(&self, sent: &Sent) {
        for (peer, weight) in &self.job.paid {
            let milli = price::milli(*weight, sent.rows, sent.wanted);
            self.coordinator.tabs.spend(*peer, self.job.session, sent.rows, milli);
        }
    }

    /// What an answer took; steps are answered in their order.
    fn took(&mut self, header: &LogitsHeader, sent: Option<&Sent>) -> Took {
        let (now, micros) = (Instant::now(), |time: Duration| time.as_micros().try_into().unwrap_or(u32::MAX));
        let round = micros(sent.map_or(Duration::ZERO, |sent| now - sent.begun));
        let gap = micros(now - std::mem::replace(&mut self.answered, now));
        Took { round, gap, busy: header.compute_us.iter().copied().max().unwrap_or(round) }
    }

    /// Carries out what the session wants: steps first, so that the stages work while the token is looked at.
    async fn act<S: TokenSink>(&mut self, actions: &mut Vec<Action>, sink: &mut S) -> Option<Result<End, Fault>> {
        while !actions.is_empty() {
            let batch = std::mem::take(actions);
            let (steps, rest): (Vec<Action>, Vec<Action>) =
                batch.into_iter().partition(|action| matches!(action, Action::Step { .. }));
            let guess = rest.iter().find_map(|action| match action {
                Action::Guess { most } => Some(*most),
                _ => None,
            });
            for step in steps {
                if let Err(fault) = self.send(step).await {
                    actions.extend(self.session.on_fault(fault));
                    break;
                }
            }
            // The link, and sessions whose tokens came with this one, go first: stages wait for them, nobody does for text.
            tokio::task::yield_now().await;
            for action in rest {
                match action {
                    Action::Emit(sampled) => {
                        self.first_token.get_or_insert_with(|| self.began.elapsed());
                        self.emitted += 1;
                        if sink.token(sampled).await.is_break() {
                            // Tokens that were chosen behind it are not part of the answer.
                            self.session.stop_after(self.emitted);
                            return Some(Ok(End::Stop));
                        }
                    }
                    Action::End(end) => return Some(Ok(end)),
                    Action::Fail(fault) => return Some(Err(fault)),
                    Action::Step { .. } | Action::Guess { .. } => {}
                }
            }
            if let Some(most) = guess {
                actions.extend(self.guess(most).await);
            }
        }
        None
    }

    /// Asks the draft model. A draft that fails ends the guessing, not the answer.
    async fn guess(&mut self, most: usize) -> Vec<Action> {
        let text = self.session.text();
        let cancel = self.job.cancel.clone();
        let ask = async {
            let drafter = self.drafter.as_mut()?;
            // The prompt is read once, so that it says nothing about what a window costs.
            let read = if drafter.is_ready() { Ok(()) } else { drafter.read(&text).await };
            self.asked = Some(Instant::now());
            let guesses = match read {
                Ok(()) => drafter.guess(&text, most).await,
                Err(error) => Err(error),
            };
            guesses.inspect_err(|error| tracing::warn!(%error, "the draft model is given up")).ok()
        };
        let guesses = tokio::select! {
            biased;
            () = cancel.cancelled() => return self.session.stop(End::Cancelled),
            guesses = ask => guesses,
        };
        if guesses.is_none() {
            self.drafter = None;
        }
        self.session.on_guesses(guesses)
    }

    async fn send(&mut self, action: Action) -> Result<(), Fault> {
        let Action::Step { step, pos, tokens, want_from, want } = action else { return Ok(()) };
        let embedder = &self.job.embedder;
        let mut hidden = Vec::new();
        embedder.embed(&tokens, &mut hidden).map_err(|error| Fault::new(error.kind(), error))?;
        let header = StepHeader {
            session: self.job.session,
            epoch: 0,
            stage: 0,
            step,
            pos,
            rows: tokens.len() as u32,
            width: embedder.width(),
            want_from,
            want,
            compute_us: Vec::with_capacity(self.stages.len()),
        };
        let message = Message::Step { header, hidden };
        let (begun, rows) = (self.asked.take().unwrap_or_else(Instant::now), tokens.len() as u32);
        self.sent.push_back(Sent { begun, rows, wanted: rows.saturating_sub(want_from) });
        self.coordinator.links.send(self.job.first, &self.job.first_addresses, message).await
    }
}

/// How much of the KV that every stage has is of use: in the exact mode whole chunks, of which the last is computed again
/// where it has the prompt's last token.
fn usable(cached: u32, prompt: u32, exact: bool) -> u32 {
    let last = prompt.saturating_sub(1);
    match exact {
        false => cached.min(last),
        true => cached.min(last) / EXACT_BLOCK * EXACT_BLOCK,
    }
}

fn peer_lost(peer: NodeId, layers: LayerRange) -> Fault {
    let text = format!("peer {} with layers {layers} is gone", peer.short());
    Fault::new(ErrorKind::PeerLost, text)
}

/// The next peer that lost its last connection. A lagging receiver skips: the stall deadline covers what it missed.
async fn next_loss(losses: &mut Option<broadcast::Receiver<NodeId>>) -> NodeId {
    let Some(receiver) = losses else { return std::future::pending().await };
    loop {
        match receiver.recv().await {
            Ok(peer) => return peer,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}
