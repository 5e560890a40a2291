//! Serves the stages of sessions: one task per session and stage, which owns the session's slot.
//!
//! The task takes steps in order, computes them on the stage's thread and sends the result on: hidden states to the
//! next stage, logits to the coordinator. It ends, and frees the KV, when the session is released, its coordinator is
//! gone, a step fails, or nothing arrives for [`IDLE_TIMEOUT`] ([`FIRST_STEP_TIMEOUT`] before the first step). A
//! running step is given up when its session ends.
//!
//! A session that computes nothing for long, however often it is probed, may be evicted where others need its slot or
//! its stage's memory. Its coordinator handles that as the loss of a route. A task whose session ends for lack of space
//! reports that to the coordinator, which probes only stages whose answers are late, and never a standby. The node's
//! own sessions are never evicted: no other node can begin one, each has a reader that is given up after a minute, and
//! the owner of a machine decides what it computes first.

use std::time::{Duration, Instant};

use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::engine::KvType;
use crate::ledger::{Balances, price};
use crate::pipeline::host::slots::SlotOwner;
use crate::pipeline::host::stage_session::StageSession;
use crate::pipeline::host::stages::{SlotLease, SlotRequest, StageKey, StageTable};
use crate::pipeline::host::standby_feed::StandbyFeed;
use crate::pipeline::link::message::Message;
use crate::pipeline::link::request::is_loss;
use crate::pipeline::link::router::{FrameSender, SessionRouter, SessionStage, StageAgreement, StageInbox};
use crate::rt::{FairPool, PoolLimits, TaskSet};
use crate::wire::control::{OpenSession, Opened, is_session_of};
use crate::wire::job::{MAX_STAGES, StepHeader};
use crate::wire::prefix::Prefix;

/// Time without a message after which a session has lost its coordinator, which probes a stage while an answer is late.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// The same before the first step. The coordinator probes the stage three times in this period, while other stages are
/// loaded and while the previous stages compute the prompt ([`KEEP_ALIVE`](crate::pipeline::route::watch::KEEP_ALIVE)).
const FIRST_STEP_TIMEOUT: Duration = Duration::from_secs(6);
/// The same for a standby, which is not probed once the answer has begun.
const FIRST_COPY_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time before the first step, however often the stage is probed: all stages are loaded within three minutes
/// (`OPEN_DEADLINE` of a coordinator).
const MAX_START: Duration = Duration::from_secs(300);
/// Failure reports under way, which wait for slow coordinators. The reports to one coordinator leave places for others.
/// Each report takes 8 KiB at most (`MAX_HEADER_BYTES`), together 10 MiB. A report without a place is not sent.
const FAILURE_REPORTS: PoolLimits = PoolLimits { total: 1024, per_key: 256, reserve: 256 };
/// Most addresses of one peer in a request.
const MAX_ADDRESSES: usize = 32;

/// Admits sessions to this node's stages.
#[derive(Clone)]
pub struct StageServer {
    stages: StageTable,
    router: SessionRouter,
    balances: Balances,
    tasks: TaskSet,
    failure_reports: FairPool<NodeId>,
}

impl StageServer {
    /// Serves the stages of this table over this router, and charges the work to the coordinators' balances.
    pub fn new(stages: StageTable, router: SessionRouter, balances: Balances, tasks: TaskSet) -> Self {
        Self { stages, router, balances, tasks, failure_reports: FairPool::new(FAILURE_REPORTS) }
    }

    /// The stage table.
    pub fn stages(&self) -> &StageTable {
        &self.stages
    }

    /// Admits a session, and loads its stage if need be. The requester `from` must be the coordinator.
    pub async fn open(&self, from: NodeId, mut open: OpenSession) -> Result<Opened, Fault> {
        if from != open.coordinator.node {
            return Err(Fault::new(ErrorKind::InvalidArgument, "only the coordinator opens its sessions"));
        }
        if !is_session_of(open.session, from) {
            return Err(Fault::new(ErrorKind::InvalidArgument, "the session's id belongs to another coordinator"));
        }
        if open.stage as usize >= MAX_STAGES {
            return Err(Fault::new(ErrorKind::InvalidArgument, format!("a route has {MAX_STAGES} stages at most")));
        }
        let named = [Some(&open.next), Some(&open.coordinator), open.copy.as_ref()];
        if named.into_iter().flatten().any(|host| host.addresses.len() > MAX_ADDRESSES) {
            return Err(Fault::new(ErrorKind::InvalidArgument, format!("more than {MAX_ADDRESSES} addresses")));
        }
        if !open.prefix.is_valid() {
            return Err(Fault::new(ErrorKind::InvalidArgument, "the prompt's prefix is malformed"));
        }
        if open.exact && self.stages.limits().stage.kv != KvType::Full {
            let text = "this node keeps keys and values in 8 bits, with which no answer is exact; ask without `exact`";
            return Err(Fault::new(ErrorKind::Unsupported, text));
        }
        let debtor = (from != self.router.local()).then_some(from);
        debtor.map_or(Ok(()), |debtor| self.balances.admit(debtor))?;
        let key = StageKey { model: open.model, layers: open.layers, head: open.head, engine: open.engine.clone() };
        let weight = self.stages.weight_of(&key)?;
        // A new route ends the earlier routes, whose release may still be under way.
        if let Some(earlier) = open.epoch.checked_sub(1) {
            self.router.end_session(open.session, earlier, from, &Prefix::default());
        }
        let reservation = self.router.reserve(key_of(&open), from)?;
        let (owner, over) = (owner_of(&open), reservation.over());
        let request = SlotRequest { owner, least: open.least, prefix: &open.prefix, over: &over };
        let (lease, load_ms) = self.stages.acquire(key, request).await?;
        let spec = lease.stage().spec();
        let (max_rows, cached) = (spec.config.max_rows, lease.cached());
        let (previous, next) = (open.previous, open.next.node);
        let is_standby = open.is_standby;
        let inbox = reservation.register(StageAgreement { previous, next, width: spec.width, max_rows, is_standby })?;
        open.context = open.context.min(lease.context());
        let opened = Opened { width: spec.width, vocab: spec.vocab, max_rows, cached, context: open.context, load_ms };
        let billing = debtor.map(|debtor| Billing { debtor, weight, balances: self.balances.clone() });
        let router = self.router.clone();
        let standby = StandbyFeed::to(open.copy.as_ref().map(|host| router.sender_to_named(host.node)), &self.tasks);
        router.connect_previous(open.previous, from, &inbox.over());
        let next = router.sender_to_named(open.next.node);
        let state = StageSession::new(open, opened.width, cached);
        let failure_reports = self.failure_reports.clone();
        let session = ServedSession { state, lease, router, next, standby, billing, failure_reports };
        self.tasks.spawn("stage-session", session.run(inbox));
        Ok(opened)
    }

    /// Whether a stage of this coordinator's session is here.
    pub fn serves(&self, stage: SessionStage, coordinator: NodeId) -> bool {
        self.router.serves(stage, coordinator)
    }

    /// Ends one stage that its coordinator does not know to have begun.
    pub fn end_stage(&self, stage: SessionStage, coordinator: NodeId) {
        self.router.end_stage(stage, coordinator);
    }

    /// Ends a session of this coordinator, in this epoch and those before, and keeps the KV of the prefix `keep`. A
    /// session that still loads its stage will not begin.
    pub fn release(&self, session: SessionId, epoch: u32, coordinator: NodeId, keep: &Prefix) {
        self.router.end_session(session, epoch, coordinator, keep);
    }
}

fn owner_of(open: &OpenSession) -> SlotOwner {
    SlotOwner { coordinator: open.coordinator.node, session: open.session, epoch: open.epoch }
}

fn key_of(open: &OpenSession) -> SessionStage {
    SessionStage { session: open.session, epoch: open.epoch, stage: open.stage }
}

/// The debtor of a session's steps, and the weight of the stage.
struct Billing {
    debtor: NodeId,
    weight: u64,
    balances: Balances,
}

/// One session at one stage.
struct ServedSession {
    state: StageSession,
    lease: SlotLease,
    router: SessionRouter,
    next: FrameSender,
    standby: StandbyFeed,
    /// Nothing where the node computes for itself.
    billing: Option<Billing>,
    failure_reports: FairPool<NodeId>,
}

impl ServedSession {
    async fn run(mut self, mut inbox: StageInbox) {
        // The end of a session drops its running step: the engine gives it up, and `held` does not count it.
        let (over, evicted) = (inbox.over(), self.lease.evicted());
        self.mark_idle(0);
        let ended = over.run_until_cancelled(evicted.run_until_cancelled(self.serve(&mut inbox))).await.flatten();
        let (open, held, (keep, dropped)) = (self.state.open(), self.state.held(), inbox.end());
        let named = keep.within(held);
        match &ended {
            // After an error of the engine or a peer the KV is not to be trusted.
            Some(Err(fault)) if !is_loss(fault.kind()) => {}
            _ if named.ids.is_empty() => self.lease.keep_for_next_route(owner_of(open), self.state.reusable()),
            _ => self.lease.keep_prefix(open.coordinator.node, named),
        }
        let evicted = (evicted.is_cancelled() && !over.is_cancelled()).then(evicted_fault);
        let fault = ended.and_then(Result::err).or(dropped).or(evicted);
        let Self { state, lease, router, failure_reports, .. } = self;
        // Freed first: the coordinator may request the slot again before it has read of the end.
        drop(lease);
        inbox.close();
        let Some(fault) = fault else { return };
        match failure_reports.take(state.open().coordinator.node) {
            Some(_place) => report_failure(&router, &state, fault).await,
            None => tracing::debug!(%fault, "too many failure reports wait for the coordinator; this one is not sent"),
        }
    }

    /// Marks the slot as idle, so that the session may be evicted where that lasts. The node's own sessions are exempt.
    fn mark_idle(&self, computed: u32) {
        if self.billing.is_some() {
            self.lease.mark_idle(computed);
        }
    }

    /// Serves until a timeout, the end of the inbox or a failure.
    async fn serve(&mut self, inbox: &mut StageInbox) -> Result<(), Fault> {
        let (begun, mut last) = (Instant::now(), Instant::now());
        loop {
            let until = self.deadline(begun, last.max(inbox.last_probed()));
            match tokio::time::timeout_at(until.into(), inbox.next()).await {
                Ok(Some((from, message))) => self.handle(from, message).await?,
                // The stage was probed meanwhile.
                Err(_) if Instant::now() < self.deadline(begun, last.max(inbox.last_probed())) => continue,
                Ok(None) | Err(_) => return Ok(()),
            }
            last = Instant::now();
        }
    }

    /// When a session times out that began at `begun` and got its last message or probe at `last`.
    fn deadline(&self, begun: Instant, last: Instant) -> Instant {
        let open = self.state.open();
        match open.is_standby {
            _ if self.state.begun() || open.coordinator.node == self.router.local() => last + IDLE_TIMEOUT,
            false => (last + FIRST_STEP_TIMEOUT).min(begun + MAX_START),
            true => (last + FIRST_COPY_TIMEOUT).min(begun + MAX_START),
        }
    }

    async fn handle(&mut self, from: NodeId, message: Message) -> Result<(), Fault> {
        match message {
            // This node's router reports a broken link to the next host. A break is reported twice, so that it may be
            // an earlier link.
            Message::Failed { fault, .. } if from == self.router.local() => {
                if self.next.has_ended() {
                    Err(fault)
                } else {
                    Ok(())
                }
            }
            _ if !self.state.admits(from) => {
                tracing::debug!(peer = %from, "a message from a peer that is not the previous host was dropped");
                Ok(())
            }
            Message::Step { header, hidden } => self.step(header, hidden).await,
            Message::Failed { fault, .. } => Err(fault),
            Message::Logits { .. } => Ok(()),
        }
    }

    async fn step(&mut self, header: StepHeader, hidden: Vec<f32>) -> Result<(), Fault> {
        let job = self.state.job(&header, hidden, self.lease.slot())?;
        self.billing.iter().try_for_each(|billing| billing.balances.admit(billing.debtor))?;
        let reuses_kv = header.step == 0 && job.rewind;
        self.lease.mark_computing();
        let computed = self.lease.stage().step(job).await;
        self.mark_idle(if computed.is_ok() { header.rows } else { 0 });
        let (output, compute_us) = computed.map_err(|error| match reuses_kv {
            // Most likely the sliding window of an earlier route's KV has moved on; without that KV the session can be
            // computed from its beginning. Another cause would recur, and attempts are bounded.
            true if error.kind() == ErrorKind::EngineFailed => {
                Fault::new(ErrorKind::PeerLost, format!("the kept KV cannot be rewound: {error}"))
            }
            _ => Fault::new(error.kind(), error),
        })?;
        if let Some(Billing { debtor, weight, balances }) = &self.billing {
            let wanted = if self.state.open().is_standby { 0 } else { header.rows.saturating_sub(header.want_from) };
            balances.earn(*debtor, price::step_cost(*weight, header.rows, wanted));
        }
        let Some(message) = self.state.done(header, output, compute_us) else { return Ok(()) };
        self.standby.send(&message);
        self.next.send(message).await
    }
}

fn evicted_fault() -> Fault {
    Fault::new(ErrorKind::Overloaded, "no more room: the session computed nothing for long, and others need its place")
}

/// Reports to the coordinator why its session ends.
async fn report_failure(router: &SessionRouter, state: &StageSession, fault: Fault) {
    // Over a connection that the coordinator has made, if there is one.
    let mut coordinator = router.sender_to_named(state.open().coordinator.node);
    if let Err(fault) = coordinator.send(state.failed(fault)).await {
        tracing::debug!(%fault, "a failure could not be reported to the coordinator");
    }
}

#[cfg(test)]
mod tests;
