//! The session router: hands each stage frame to its session, and sends the frames of sessions over the links to peers.
//!
//! Messages of all sessions to a peer share one link ([`pool`](super::pool)), in order; a message to the node itself
//! never touches a stream. One task reads each inbound stream, admits its frames ([`admission`]) and delivers them
//! here: steps to the stages on this node ([`stages`]), answers to the sessions that it coordinates ([`coordinated`]).
//! A full queue means a peer that ignores the window of its session: that session ends.
//!
//! When a link breaks, the router tells all stages that send there. Until they have read that they send no more: the
//! frames of a session go to a peer by one link only ([`FrameSender`]), or the frames behind a loss would arrive and
//! look out of turn.

mod admission;
mod coordinated;
mod ended;
mod inboxes;
mod sender;
mod stages;

use std::sync::Arc;

use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::CancellationToken;

use crate::base::{Fault, NodeId, SessionId};
use crate::net::NetHandle;
use crate::pipeline::link::bodies::{BodyMemory, BodyPool};
use crate::pipeline::link::message::Message;
use crate::pipeline::link::pool::LinkPool;
use crate::rt::TaskSet;
use crate::wire::prefix::Prefix;

use coordinated::CoordinatedSessions;
use stages::{DropReason, SessionStages};

pub use crate::pipeline::link::message::{Delivery, SessionStage};
pub use crate::pipeline::link::pool::AnnouncedAddresses;
pub use coordinated::RouteHosts;
pub use inboxes::{CoordinatorInbox, StageInbox, StageReservation};
pub use sender::FrameSender;
pub use stages::StageAgreement;

/// Messages that may wait for one session: a window of chunks, its confirmations and a few failures.
pub const SESSION_QUEUE: usize = 32;

/// Routes the stage frames of all sessions of this node. Clones share one state.
#[derive(Clone)]
pub struct SessionRouter {
    inner: Arc<Inner>,
}

struct Inner {
    pool: LinkPool,
    stages: Arc<SessionStages>,
    coordinated: Arc<CoordinatedSessions>,
    /// Memory for the bodies of inbound frames.
    bodies: BodyPool,
}

/// The session of an inbound message, at this node. The epoch and stage of a coordinator's message are the sender's.
#[derive(Debug, Clone, Copy)]
enum FrameTarget {
    Stage(SessionStage),
    Coordinator(SessionStage),
}

impl FrameTarget {
    fn stage(self) -> SessionStage {
        match self {
            FrameTarget::Stage(stage) | FrameTarget::Coordinator(stage) => stage,
        }
    }
}

impl SessionRouter {
    /// The router of this node; without a network it can only send messages to the node itself.
    pub fn new(local: NodeId, net: Option<NetHandle>, tasks: TaskSet) -> Self {
        Self::with_bodies(local, net, tasks, BodyPool::new())
    }

    fn with_bodies(local: NodeId, net: Option<NetHandle>, tasks: TaskSet, bodies: BodyPool) -> Self {
        let (stages, coordinated) = (Arc::default(), Arc::default());
        Self { inner: Arc::new(Inner { pool: LinkPool::new(local, net, tasks), stages, coordinated, bodies }) }
    }

    /// Sets the source of announced addresses. Only the first call has an effect.
    pub fn set_announced(&self, announced: AnnouncedAddresses) {
        self.inner.pool.set_announced(announced);
    }

    /// This node.
    pub fn local(&self) -> NodeId {
        self.inner.pool.local()
    }

    /// Connects to the peer that will send a session's steps, until `over` is cancelled. Each coordinator has a share
    /// of concurrent dials; beyond it the peer must connect by itself.
    pub fn connect_previous(&self, previous: NodeId, coordinator: NodeId, over: &CancellationToken) {
        self.inner.pool.connect_previous(previous, coordinator, over);
    }

    /// The peers to which a link breaks from now on: the last frames sent there may be lost.
    pub fn broken(&self) -> broadcast::Receiver<NodeId> {
        self.inner.pool.broken()
    }

    /// Removes the link to a peer whose last connection is gone, and ends the sessions that it coordinates here.
    pub fn disconnected(&self, peer: NodeId) {
        self.inner.pool.remove(peer);
        self.inner.stages.end_coordinator(peer);
        self.link_broke(peer);
    }

    /// Reports a broken link, and fails the stages whose results go to this peer.
    pub(in crate::pipeline) fn link_broke(&self, peer: NodeId) {
        self.inner.pool.report_broken(peer);
        self.inner.stages.fail_to(peer, self.local());
    }

    /// Reserves a stage of a session that is being opened. Refuses a second stage of that number, and a session that
    /// its coordinator has ended.
    pub fn reserve(&self, key: SessionStage, coordinator: NodeId) -> Result<StageReservation, Fault> {
        StageReservation::new(&self.inner.stages, key, coordinator, self.local())
    }

    /// Whether a stage of this coordinator's session is here. The coordinator asks because an answer is late: frames to
    /// the next host may be late, too, so its link is told.
    pub fn serves(&self, key: SessionStage, coordinator: NodeId) -> bool {
        let next = self.inner.stages.probed(key, coordinator);
        next.inspect(|next| self.inner.pool.answer_is_late(*next)).is_some()
    }

    /// Ends the stages of a session on this node, of this epoch and those before, reserved stages included, whatever
    /// still waits for them; [`StageInbox::end`] then gives `keep`. Only its coordinator ends a session.
    pub fn end_session(&self, session: SessionId, epoch: u32, coordinator: NodeId, keep: &Prefix) {
        self.inner.stages.end_session(session, epoch, coordinator, keep);
    }

    /// Ends one live stage that its coordinator does not know to have begun, and no other stage of that session.
    pub fn end_stage(&self, key: SessionStage, coordinator: NodeId) {
        self.inner.stages.end_stage(key, coordinator);
    }

    /// Takes the answers of a session that this node coordinates until the inbox is dropped.
    pub fn register_coordinator(&self, session: SessionId) -> CoordinatorInbox {
        let (queue, receiver) = mpsc::channel(SESSION_QUEUE);
        self.inner.coordinated.register(session, queue);
        CoordinatorInbox::new(&self.inner.coordinated, session, receiver)
    }

    /// Accepts answers of a coordinated session over the network from these hosts only.
    pub fn set_hosts(&self, session: SessionId, hosts: RouteHosts) {
        self.inner.coordinated.set_hosts(session, hosts);
    }

    /// How many sessions this node coordinates now.
    pub fn coordinated(&self) -> usize {
        self.inner.coordinated.count()
    }

    /// Hands a message to its session. Drops messages of unknown sessions: they are late, or foreign.
    pub fn deliver(&self, from: NodeId, message: Message) {
        let (session, epoch) = (message.session(), message.epoch());
        let target = match &message {
            Message::Step { header, .. } => FrameTarget::Stage(SessionStage { session, epoch, stage: header.stage }),
            Message::Logits { .. } | Message::Failed { .. } => {
                FrameTarget::Coordinator(SessionStage { session, epoch, stage: 0 })
            }
        };
        self.queue(target, (from, message), None);
    }

    fn queue(&self, target: FrameTarget, delivery: Delivery, memory: Option<BodyMemory>) {
        let delivery = (delivery, memory);
        let queued = match target {
            FrameTarget::Stage(stage) => self.inner.stages.queue(stage, delivery),
            FrameTarget::Coordinator(stage) => self.inner.coordinated.queue(stage.session, delivery),
        };
        if !queued {
            self.drop_session(target, DropReason::WindowExceeded);
        }
    }

    /// Ends a session whose frames this node cannot take.
    fn drop_session(&self, target: FrameTarget, reason: DropReason) {
        let session = target.stage().session;
        tracing::debug!(%session, %reason, "a frame was dropped and its session with it");
        match target {
            FrameTarget::Stage(stage) => self.inner.stages.drop_stage(stage, reason),
            FrameTarget::Coordinator(_) => self.inner.coordinated.remove(session),
        }
    }
}

#[cfg(test)]
mod tests;
