//! The serving side: a task per session and stage, which owns the session's slot.
//!
//! It takes steps in order, computes them on the stage's thread and passes the result straight on: hidden states to the
//! next stage, logits to the coordinator. It ends, and frees the KV, when the session is released, its coordinator is
//! gone, a step fails, or nothing came for [`IDLE`]; a step that is being computed when its session ends is given up.

use std::time::Duration;

use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::engine::KvCache;
use crate::ledger::{Tabs, price};
use crate::pipeline::links::{Links, Outlet, SessionStage, StageInbox};
use crate::pipeline::message::Message;
use crate::pipeline::search::is_loss;
use crate::pipeline::stages::{Claim, Lease, Owner, StageKey, StageTable};
use crate::pipeline::stand_by::Copies;
use crate::pipeline::turns::Turns;
use crate::rt::TaskSet;
use crate::wire::control::{Host, OpenSession, Opened};
use crate::wire::job::StepHeader;
use crate::wire::prefix::Prefix;

/// A session from which nothing came for so long has lost its coordinator.
pub const IDLE: Duration = Duration::from_secs(600);
/// Addresses that a request may name for one peer.
const MAX_ADDRESSES: usize = 32;

/// What admits sessions to this node's stages.
#[derive(Clone)]
pub struct Serving {
    stages: StageTable,
    links: Links,
    tabs: Tabs,
    tasks: TaskSet,
}

impl Serving {
    /// Serves the stages of this table over these links, and counts what it does for whom.
    pub fn new(stages: StageTable, links: Links, tabs: Tabs, tasks: TaskSet) -> Self {
        Self { stages, links, tabs, tasks }
    }

    /// The stages.
    pub fn stages(&self) -> &StageTable {
        &self.stages
    }

    /// Admits a session, loading its stage if need be. `from` asked, and must be the coordinator.
    pub async fn open(&self, from: NodeId, open: OpenSession) -> Result<Opened, Fault> {
        if from != open.coordinator.node {
            return Err(Fault::new(ErrorKind::InvalidArgument, "only the coordinator opens its sessions"));
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
        let claim = Claim { owner, context: open.context, prefix: &open.prefix, over: &over };
        let (lease, load_ms) = self.stages.acquire(key, claim).await?;
        let inbox = opening.register(open.next.node)?;
        let spec = lease.stage().spec();
        let (max_rows, cached) = (spec.config.max_rows, lease.cached());
        let opened = Opened { width: spec.width, vocab: spec.vocab, max_rows, cached, load_ms };
        let bill = debtor.map(|debtor| Bill { debtor, weight, tabs: self.tabs.clone() });
        let links = self.links.clone();
        let copies = Copies::to(open.copy.clone(), &links, &self.tasks);
        let next = links.outlet(open.next.clone());
        let turns = Turns::new(open, opened.width, cached);
        let session = StageSession { turns, lease, links, next, copies, bill };
        self.tasks.spawn("stage-session", session.run(inbox));
        Ok(opened)
    }

    /// Whether a stage of this coordinator's session is here.
    pub fn serves(&self, stage: SessionStage, coordinator: NodeId) -> bool {
        self.links.serves(stage, coordinator)
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
}

impl StageSession {
    async fn run(mut self, mut inbox: StageInbox) {
        // A session that is over drops its step in the middle: the engine gives it up, and `held` does not count it.
        let ended = inbox.over().run_until_cancelled(self.serve(&mut inbox)).await;
        let (open, held) = (self.turns.open(), self.turns.held());
        let named = inbox.keep().within(held);
        match &ended {
            // What an engine or a peer has done wrong leaves nothing that is to be trusted.
            Some(Err(fault)) if !is_loss(fault.kind()) => {}
            _ if named.ids.is_empty() => self.lease.leave(owner_of(open), self.turns.lasting()),
            _ => self.lease.keep(open.coordinator.node, named),
        }
        let Self { turns, lease, links, .. } = self;
        // Given back first: the coordinator may ask for it before it has heard of the end.
        drop(lease);
        if let Some(Err(fault)) = ended {
            fail(&links, &turns, fault).await;
        }
    }

    /// Serves until nothing came for [`IDLE`], or a step has failed.
    async fn serve(&mut self, inbox: &mut StageInbox) -> Result<(), Fault> {
        while let Ok(Some((from, message))) = tokio::time::timeout(IDLE, inbox.next()).await {
            self.handle(from, message).await?;
        }
        Ok(())
    }

    async fn handle(&mut self, from: NodeId, message: Message) -> Result<(), Fault> {
        match message {
            // This node's own links say that the way to the next stage is lost.
            Message::Failed { fault, .. } if from == self.links.local() => Err(fault),
            _ if !self.turns.admits(from) => {
                tracing::warn!(peer = %from, "a message from another peer than the one before was dropped");
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
        let (output, compute_us) = self.lease.stage().step(job).await.map_err(|error| match returns {
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

/// Tells the coordinator why its session ends.
async fn fail(links: &Links, turns: &Turns, fault: Fault) {
    let Host { node, addresses } = &turns.open().coordinator;
    if let Err(fault) = links.send(*node, addresses, turns.failed(fault)).await {
        tracing::debug!(%fault, "the coordinator could not be told");
    }
}
