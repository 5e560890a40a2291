//! What a session's task has of the links: the stage that is being opened, and the queues of messages.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Agreed, Delivery, Links, Queued, SESSION_QUEUE, SessionStage, StageEntry, ended, locked};
use crate::base::{Fault, NodeId, SessionId};
use crate::pipeline::bodies::Bodies;
use crate::pipeline::message::Message;
use crate::wire::prefix::Prefix;

/// A stage of a session that is being opened, until it is dropped.
pub struct Opening {
    pub(super) links: Links,
    pub(super) key: SessionStage,
    pub(super) coordinator: NodeId,
    pub(super) over: CancellationToken,
}

impl Opening {
    /// Is cancelled when the session is over before it began.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Takes the stage's messages from now on, until the inbox is dropped. Fails where the session has ended meanwhile.
    pub fn register(self, agreed: Agreed) -> Result<StageInbox, Fault> {
        let (queue, receiver) = mpsc::channel(SESSION_QUEUE);
        let mut stages = locked(&self.links.inner.stages);
        if self.over.is_cancelled() {
            return Err(ended(self.key.session));
        }
        let (ending, over) = (Arc::<Mutex<Ending>>::default(), CancellationToken::new());
        let (coordinator, guard) = (self.coordinator, over.clone().drop_guard());
        let asked = Arc::new(Mutex::new(Instant::now()));
        let (bodies, end, told) = (Bodies::new(), ending.clone(), Arc::<AtomicBool>::default());
        let entry = StageEntry {
            coordinator,
            agreed,
            asked: asked.clone(),
            queue,
            bodies,
            ending: end,
            told: told.clone(),
            _over: guard,
        };
        stages.live.insert(self.key, entry);
        Ok(StageInbox { links: self.links.clone(), key: self.key, receiver, asked, ending, told, over })
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut stages = locked(&self.links.inner.stages);
        // Once it is over it is no longer in the table, where another of that number may be.
        if !self.over.is_cancelled() {
            stages.opening.remove(&self.key);
        }
    }
}

/// Who has ended a stage's session.
#[derive(Debug, Default)]
pub(super) enum Ending {
    /// Nobody, or the loss of its coordinator.
    #[default]
    Unsaid,
    /// Its coordinator, which named what may be kept.
    Released(Prefix),
    /// This node, for this reason.
    Dropped(Fault),
}

/// The messages of one stage of one session.
pub struct StageInbox {
    pub(super) links: Links,
    pub(super) key: SessionStage,
    pub(super) receiver: mpsc::Receiver<Queued>,
    asked: Arc<Mutex<Instant>>,
    ending: Arc<Mutex<Ending>>,
    told: Arc<AtomicBool>,
    over: CancellationToken,
}

impl StageInbox {
    /// Is cancelled when the session is over: what has not been computed then is wanted no more.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// When its coordinator last asked for the stage, or began it.
    pub fn asked(&self) -> Instant {
        *locked(&self.asked)
    }

    /// What the coordinator named when it ended the session, nothing where it did not; and why this node ended it, where it did.
    pub fn end(&self) -> (Prefix, Option<Fault>) {
        match std::mem::take(&mut *locked(&self.ending)) {
            Ending::Unsaid => (Prefix::default(), None),
            Ending::Released(keep) => (keep, None),
            Ending::Dropped(fault) => (Prefix::default(), Some(fault)),
        }
    }

    /// The next message; `None` once all were read of a session that is over. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        let (delivery, _held) = self.receiver.recv().await?;
        if delivery.0 == self.links.local() && matches!(delivery.1, Message::Failed { .. }) {
            // Before the stage looks whether its link stands: one that ends from now on is told anew.
            self.told.swap(false, Ordering::AcqRel);
        }
        Some(delivery)
    }

    /// Takes no more, and gives back what waits, though the stage is still here.
    pub fn close(&mut self) {
        self.receiver.close();
        while self.receiver.try_recv().is_ok() {}
    }
}

impl Drop for StageInbox {
    fn drop(&mut self) {
        locked(&self.links.inner.stages).live.remove(&self.key);
    }
}

/// The answers of one coordinated session.
pub struct CoordinatorInbox {
    pub(super) links: Links,
    pub(super) session: SessionId,
    pub(super) receiver: mpsc::Receiver<Queued>,
}

impl CoordinatorInbox {
    /// The next answer; `None` where the queue overflowed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.receiver.recv().await.map(|(delivery, _held)| delivery)
    }
}

impl Drop for CoordinatorInbox {
    fn drop(&mut self) {
        locked(&self.links.inner.coordinators).remove(&self.session);
    }
}
