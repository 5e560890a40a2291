//! The serving side: a task per session and stage, which owns the session's slot.
//!
//! It takes steps in order, computes them on the stage's thread and passes the result straight on: hidden states to the
//! next stage, logits to the coordinator. It ends, and frees the KV, when the session is released, its coordinator is
//! gone, a step fails, or nothing came for [`IDLE`], before the first step for [`FIRST_STEP`]; a step that is being computed
//! when its session ends is given up. A session that computes nothing for long, however often it is asked for, may be evicted
//! where others need its slot or its stage's memory; that is no more than the loss of a route to its coordinator. Whoever ends
//! a session here for want of room tells its coordinator, which asks for a stage whose answer is late, and never for a
//! stand-by. The node's own sessions are never evicted: nobody else can begin one, each has a
//! reader that is given up after a minute, and what its machine computes first is for its owner to say.

use std::time::{Duration, Instant};

use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::engine::KvCache;
use crate::ledger::{Tabs, price};
use crate::pipeline::links::{Agreed, Links, Outlet, SessionStage, StageInbox};
use crate::pipeline::message::Message;
use crate::pipeline::search::is_loss;
use crate::pipeline::slots::Owner;
use crate::pipeline::stages::{Claim, Lease, StageKey, StageTable};
use crate::pipeline::stand_by::Copies;
use crate::pipeline::turns::Turns;
use crate::rt::{Bounds, Shares, TaskSet};
use crate::wire::control::{OpenSession, Opened, is_session_of};
use crate::wire::job::{MAX_STAGES, StepHeader};
use crate::wire::prefix::Prefix;

/// A session of which nothing was heard for so long has lost its coordinator, who asks for it while an answer is late.
pub const IDLE: Duration = Duration::from_secs(120);
/// The same for a session that has computed nothing. Its coordinator asks for it thrice in this time, while other stages are
/// loaded and while those before compute the prompt ([`KEEP_ALIVE`](crate::pipeline::watch::KEEP_ALIVE)).
const FIRST_STEP: Duration = Duration::from_secs(6);
/// The same for a stand-by, which nobody asks for once the answer has begun.
const FIRST_COPY: Duration = Duration::from_secs(60);
/// A session that has computed nothing for so long is let go however often it is asked for: all stages are loaded within three
/// minutes (`OPEN_DEADLINE` of a coordinator).
const LONGEST_START: Duration = Duration::from_secs(300);
/// Sessions whose coordinators are being told that they have failed, which waits where a coordinator reads slowly; those of one
/// leave room for those of others, and each takes 8 KiB at most (`MAX_HEADER_BYTES`): 10 MiB. One that has no place is not told.
const TELLING: Bounds = Bounds { all: 1024, each: 256, reserve: 256 };
/// Addresses that a request may name for one peer.
const MAX_ADDRESSES: usize = 32;

/// What admits sessions to this node's stages.
#[derive(Clone)]
pub struct Serving {
    stages: StageTable,
    links: Links,
    tabs: Tabs,
    tasks: TaskSet,
    telling: Shares<NodeId>,
}

impl Serving {
    /// Serves the stages of this table over these links, and counts what it does for whom.
    pub fn new(stages: StageTable, links: Links, tabs: Tabs, tasks: TaskSet) -> Self {
        Self { stages, links, tabs, tasks, telling: Shares::new(TELLING) }
    }

    /// The stages.
    pub fn stages(&self) -> &StageTable {
        &self.stages
    }

    /// Admits a session, loading its stage if need be. `from` asked, and must be the coordinator.
    pub async fn open(&self, from: NodeId, mut open: OpenSession) -> Result<Opened, Fault> {
        if from != open.coordinator.node {
            return Err(Fault::new(ErrorKind::InvalidArgument, "only the coordinator opens its sessions"));
        }
        if !is_session_of(open.session, from) {
            return Err(Fault::new(ErrorKind::InvalidArgument, "the session's id is another coordinator's"));
        }
        if open.stage as usize >= MAX_STAGES {
            return Err(Fault::new(ErrorKind::InvalidArgument, format!("a route has {MAX_STAGES} stages at most")));
        }
        let named = [Some(&open.next), Some(&open.coordinator), open.copy.as_ref()];
        if named.into_iter().flatten().any(|host| host.addresses.len() > MAX_ADDRESSES) {
            return Err(Fault::new(ErrorKind::InvalidArgument, format!("more than {MAX_ADDRESSES} addresses")));
        }
        if !open.prefix.is_sound() {
            return Err(Fault::new(
                ErrorKind::InvalidArgument,
                "the prompt's prefix is not one that a coordinator names",
            ));
        }
        if open.exact && self.stages.limits().stage.kv != KvCache::Full {
            let text = "this node keeps keys and values in 8 bits, with which no answer is exact; ask without `exact`";
            return Err(Fault::new(ErrorKind::Unsupported, text));
        }
        let debtor = (from != self.links.local()).then_some(from);
        debtor.map_or(Ok(()), |debtor| self.tabs.admit(debtor))?;
        let key = StageKey { model: open.model, layers: open.layers, head: open.head, engine: open.engine.clone() };
        let weight = self.stages.weight_of(&key)?;
        // Another route is the end of those before, of which the word may be under way still.
        if let Some(earlier) = open.epoch.checked_sub(1) {
            self.links.end_session(open.session, earlier, from, &Prefix::default());
        }
        let opening = self.links.begin(key_of(&open), from)?;
        let (owner, over) = (owner_of(&open), opening.over());
        let claim = Claim { owner, least: open.least, prefix: &open.prefix, over: &over };
        let (lease, load_ms) = self.stages.acquire(key, claim).await?;
        let spec = lease.stage().spec();
        let (max_rows, cached) = (spec.config.max_rows, lease.cached());
        let (previous, next) = (open.previous, open.next.node);
        let stands_by = open.stands_by;
        let inbox = opening.register(Agreed { previous, next, width: spec.width, max_rows, stands_by })?;
        open.context = open.context.min(lease.context());
        let opened = Opened { width: spec.width, vocab: spec.vocab, max_rows, cached, context: open.context, load_ms };
        let bill = debtor.map(|debtor| Bill { debtor, weight, tabs: self.tabs.clone() });
        let links = self.links.clone();
        let copies = Copies::to(open.copy.as_ref().map(|host| links.outlet_to_named(host.node)), &self.tasks);
        links.meet(open.previous, from, &inbox.over());
        let next = links.outlet_to_named(open.next.node);
        let turns = Turns::new(open, opened.width, cached);
        let telling = self.telling.clone();
        let session = StageSession { turns, lease, links, next, copies, bill, telling };
        self.tasks.spawn("stage-session", session.run(inbox));
        Ok(opened)
    }

    /// Whether a stage of this coordinator's session is here.
    pub fn serves(&self, stage: SessionStage, coordinator: NodeId) -> bool {
        self.links.serves(stage, coordinator)
    }

    /// Ends a stage that its coordinator does not know to have begun.
    pub fn end_stage(&self, stage: SessionStage, coordinator: NodeId) {
        self.links.end_stage(stage, coordinator);
    }

    /// Ends a session of this coordinator, in this epoch and those before, and keeps of its KV what is named. One that is
    /// still loading its stage will not begin.
    pub fn release(&self, session: SessionId, epoch: u32, coordinator: NodeId, keep: &Prefix) {
        self.links.end_session(session, epoch, coordinator, keep);
    }
}

fn owner_of(open: &OpenSession) -> Owner {
    Owner { coordinator: open.coordinator.node, session: open.session, epoch: open.epoch }
}

fn key_of(open: &OpenSession) -> SessionStage {
    SessionStage { session: open.session, epoch: open.epoch, stage: open.stage }
}

/// Who pays for a session's steps, and what they cost.
struct Bill {
    debtor: NodeId,
    weight: u64,
    tabs: Tabs,
}

/// One session at one stage.
struct StageSession {
    turns: Turns,
    lease: Lease,
    links: Links,
    next: Outlet,
    copies: Copies,
    /// Nothing where the node computes for itself.
    bill: Option<Bill>,
    /// The places to tell a coordinator.
    telling: Shares<NodeId>,
}

impl StageSession {
    async fn run(mut self, mut inbox: StageInbox) {
        // A session that is over drops its step in the middle: the engine gives it up, and `held` does not count it.
        let (over, evicted) = (inbox.over(), self.lease.evicted());
        self.rest(0);
        let ended = over.run_until_cancelled(evicted.run_until_cancelled(self.serve(&mut inbox))).await.flatten();
        let (open, held, (keep, dropped)) = (self.turns.open(), self.turns.held(), inbox.end());
        let named = keep.within(held);
        match &ended {
            // What an engine or a peer has done wrong leaves nothing that is to be trusted.
            Some(Err(fault)) if !is_loss(fault.kind()) => {}
            _ if named.ids.is_empty() => self.lease.leave(owner_of(open), self.turns.lasting()),
            _ => self.lease.keep(open.coordinator.node, named),
        }
        let evicted = (evicted.is_cancelled() && !over.is_cancelled()).then(evicted_fault);
        let fault = ended.and_then(Result::err).or(dropped).or(evicted);
        let Self { turns, lease, links, telling, .. } = self;
        // Given back first: the coordinator may ask for it before it has heard of the end.
        drop(lease);
        inbox.close();
        let Some(fault) = fault else { return };
        match telling.take(turns.open().coordinator.node) {
            Some(_place) => fail(&links, &turns, fault).await,
            None => tracing::debug!(%fault, "the coordinator is not told: it has not read what it was told before"),
        }
    }

    /// Computes nothing from now on, so that others may have its place when that lasts; not where the node asks itself.
    fn rest(&self, computed: u32) {
        if self.bill.is_some() {
            self.lease.rest(computed);
        }
    }

    /// Serves until nothing came for long, or a step has failed.
    async fn serve(&mut self, inbox: &mut StageInbox) -> Result<(), Fault> {
        let (begun, mut last) = (Instant::now(), Instant::now());
        loop {
            let until = self.patience(begun, last.max(inbox.asked()));
            match tokio::time::timeout_at(until.into(), inbox.next()).await {
                Ok(Some((from, message))) => self.handle(from, message).await?,
                // It was asked for meanwhile.
                Err(_) if Instant::now() < self.patience(begun, last.max(inbox.asked())) => continue,
                Ok(None) | Err(_) => return Ok(()),
            }
            last = Instant::now();
        }
    }

    /// Until when a session lasts that began then, and was last heard of then.
    fn patience(&self, begun: Instant, heard: Instant) -> Instant {
        let open = self.turns.open();
        match open.stands_by {
            _ if self.turns.begun() || open.coordinator.node == self.links.local() => heard + IDLE,
            false => (heard + FIRST_STEP).min(begun + LONGEST_START),
            true => (heard + FIRST_COPY).min(begun + LONGEST_START),
        }
    }

    async fn handle(&mut self, from: NodeId, message: Message) -> Result<(), Fault> {
        match message {
            // This node's own links say that one to the next stage broke. It may have been another's: a break is told twice.
            Message::Failed { fault, .. } if from == self.links.local() => {
                if self.next.has_ended() {
                    Err(fault)
                } else {
                    Ok(())
                }
            }
            _ if !self.turns.admits(from) => {
                tracing::debug!(peer = %from, "a message from another peer than the one before was dropped");
                Ok(())
            }
            Message::Step { header, hidden } => self.step(header, hidden).await,
            Message::Failed { fault, .. } => Err(fault),
            Message::Logits { .. } => Ok(()),
        }
    }

    async fn step(&mut self, header: StepHeader, hidden: Vec<f32>) -> Result<(), Fault> {
        let job = self.turns.job(&header, hidden, self.lease.slot())?;
        self.bill.iter().try_for_each(|bill| bill.tabs.admit(bill.debtor))?;
        let returns = header.step == 0 && job.rewind;
        self.lease.compute();
        let computed = self.lease.stage().step(job).await;
        self.rest(if computed.is_ok() { header.rows } else { 0 });
        let (output, compute_us) = computed.map_err(|error| match returns {
            // Most likely the window of an earlier route's KV has moved on; without it the session can be computed from its
            // beginning. Where it is something else it comes again, and attempts are bounded.
            true if error.kind() == ErrorKind::EngineFailed => {
                Fault::new(ErrorKind::PeerLost, format!("what was kept cannot be gone back to: {error}"))
            }
            _ => Fault::new(error.kind(), error),
        })?;
        if let Some(Bill { debtor, weight, tabs }) = &self.bill {
            let wanted = if self.turns.open().stands_by { 0 } else { header.rows.saturating_sub(header.want_from) };
            tabs.earn(*debtor, price::milli(*weight, header.rows, wanted));
        }
        let Some(message) = self.turns.done(header, output, compute_us) else { return Ok(()) };
        self.copies.send(&message);
        self.next.send(message).await
    }
}

fn evicted_fault() -> Fault {
    Fault::new(ErrorKind::Overloaded, "no more room: the session computed nothing for long, and others need its place")
}

/// Tells the coordinator why its session ends.
async fn fail(links: &Links, turns: &Turns, fault: Fault) {
    // By a connection of its own making, if there is one.
    let mut coordinator = links.outlet_to_named(turns.open().coordinator.node);
    if let Err(fault) = coordinator.send(turns.failed(fault)).await {
        tracing::debug!(%fault, "the coordinator could not be told");
    }
}

#[cfg(test)]
mod tests;
