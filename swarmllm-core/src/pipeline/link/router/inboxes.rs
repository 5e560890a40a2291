//! A session's side of the router: a reserved stage, and the queues of a stage's and a coordinator's messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::SESSION_QUEUE;
use super::coordinated::CoordinatedSessions;
use super::stages::{QueuedDelivery, SessionStages, StageAgreement, StageEnding, StageState};
use crate::base::{Fault, NodeId, SessionId};
use crate::pipeline::link::locked;
use crate::pipeline::link::message::{Delivery, Message, SessionStage};
use crate::wire::prefix::Prefix;

/// A reserved stage of a session that is being opened. Dropping it ends the reservation.
pub struct StageReservation {
    stages: Arc<SessionStages>,
    key: SessionStage,
    coordinator: NodeId,
    local: NodeId,
    over: CancellationToken,
}

impl StageReservation {
    pub(super) fn new(
        stages: &Arc<SessionStages>,
        key: SessionStage,
        coordinator: NodeId,
        local: NodeId,
    ) -> Result<Self, Fault> {
        let over = stages.reserve(key, coordinator)?;
        Ok(Self { stages: stages.clone(), key, coordinator, local, over })
    }

    /// Cancelled when the session ends before the stage begins.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Takes the stage's messages from now on, until the inbox is dropped. Fails where the session has ended meanwhile.
    pub fn register(self, agreed: StageAgreement) -> Result<StageInbox, Fault> {
        let (queue, receiver) = mpsc::channel(SESSION_QUEUE);
        let (state, over) = self.stages.register(self.key, (self.coordinator, &self.over), agreed, queue)?;
        Ok(StageInbox { stages: self.stages.clone(), key: self.key, local: self.local, receiver, state, over })
    }
}

impl Drop for StageReservation {
    fn drop(&mut self) {
        self.stages.unreserve(self.key, &self.over);
    }
}

/// The messages of one stage of one session.
pub struct StageInbox {
    stages: Arc<SessionStages>,
    key: SessionStage,
    local: NodeId,
    pub(super) receiver: mpsc::Receiver<QueuedDelivery>,
    state: Arc<StageState>,
    over: CancellationToken,
}

impl StageInbox {
    /// Cancelled when the session is over: its uncomputed steps are not needed any more.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// When the coordinator last probed the stage, or began it.
    pub fn last_probed(&self) -> Instant {
        *locked(&self.state.last_probed)
    }

    /// The prefix to keep, empty unless the coordinator released the session with one; and the reason why this node
    /// dropped the session, if it did. Takes both.
    pub fn end(&self) -> (Prefix, Option<Fault>) {
        match std::mem::take(&mut *locked(&self.state.ending)) {
            StageEnding::Unspecified => (Prefix::default(), None),
            StageEnding::Released(keep) => (keep, None),
            StageEnding::Dropped(fault) => (Prefix::default(), Some(fault)),
        }
    }

    /// The next message; `None` once all messages of a session that is over were read. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        let (delivery, _memory) = self.receiver.recv().await?;
        if delivery.0 == self.local && matches!(delivery.1, Message::Failed { .. }) {
            // Cleared before the stage checks its link: a link that breaks from now on is reported anew.
            self.state.loss_queued.swap(false, Ordering::AcqRel);
        }
        Some(delivery)
    }

    /// Takes no more messages and frees those that wait, while the stage stays in the table.
    pub fn close(&mut self) {
        self.receiver.close();
        while self.receiver.try_recv().is_ok() {}
    }
}

impl Drop for StageInbox {
    fn drop(&mut self) {
        self.stages.remove(self.key);
    }
}

/// The answers of one coordinated session.
pub struct CoordinatorInbox {
    coordinated: Arc<CoordinatedSessions>,
    session: SessionId,
    receiver: mpsc::Receiver<QueuedDelivery>,
}

impl CoordinatorInbox {
    pub(super) fn new(
        coordinated: &Arc<CoordinatedSessions>,
        session: SessionId,
        receiver: mpsc::Receiver<QueuedDelivery>,
    ) -> Self {
        Self { coordinated: coordinated.clone(), session, receiver }
    }

    /// The next answer; `None` where the queue overflowed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.receiver.recv().await.map(|(delivery, _memory)| delivery)
    }
}

impl Drop for CoordinatorInbox {
    fn drop(&mut self) {
        self.coordinated.remove(self.session);
    }
}
