//! The stages of sessions on this node: reserved, live and ended. Owns the queues of live stages.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::ended::EndedSessions;
use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::pipeline::link::bodies::{BodyMemory, BodyShare, SessionBodies};
use crate::pipeline::link::locked;
use crate::pipeline::link::message::{Delivery, Message, SessionStage};
use crate::pipeline::link::pool::lost;
use crate::wire::job::StepHeader;
use crate::wire::prefix::Prefix;

/// A delivery with the memory of its body.
pub(super) type QueuedDelivery = (Delivery, Option<BodyMemory>);

/// The agreement of a stage and its coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageAgreement {
    /// The sender of the steps.
    pub previous: NodeId,
    /// The receiver of the results.
    pub next: NodeId,
    /// Floats of a row.
    pub width: u32,
    /// Most rows of a step.
    pub max_rows: u32,
    /// Whether the stage is a hot standby, which sends no results.
    pub is_standby: bool,
}

impl StageAgreement {
    /// The reason why a step with a body of `body` bytes breaks the agreement, if it does.
    pub(super) fn refuses(&self, step: &StepHeader, body: usize) -> Option<String> {
        let row = step.codec.row_bytes(self.width as usize);
        let fits = step.width == self.width && (1..=self.max_rows).contains(&step.rows);
        let refused = || {
            let StepHeader { rows, width, .. } = step;
            let StageAgreement { max_rows, width: agreed, .. } = self;
            format!("{body} bytes for {rows} rows of {width} numbers, where steps have up to {max_rows} of {agreed}")
        };
        // At most 512 rows of a width that one of this node's models has.
        (!fits || row.saturating_mul(step.rows as usize) != body).then(refused)
    }

    /// Bytes of the longest decoded body.
    fn longest(&self) -> usize {
        floats(self.max_rows, self.width)
    }
}

/// Bytes of decoded rows.
fn floats(rows: u32, width: u32) -> usize {
    (rows as usize).saturating_mul(width as usize).saturating_mul(size_of::<f32>())
}

/// The reason why this node drops a session.
#[derive(Debug, Clone, Copy, thiserror::Error)]
pub(super) enum DropReason {
    #[error("more than a window of its frames is unread")]
    WindowExceeded,
    #[error("its coordinator's frames held all memory for long")]
    MemoryTimeout,
}

impl DropReason {
    /// The fault that the stage's coordinator receives. No sender waits for a standby, so that a slow standby is
    /// overrun; the sender that overruns a stage has ignored the window.
    fn fault(self, agreed: &StageAgreement) -> Fault {
        match self {
            DropReason::WindowExceeded if !agreed.is_standby => {
                Fault::new(ErrorKind::BadFrame, format!("peer {} keeps to no window: {self}", agreed.previous.short()))
            }
            _ => Fault::new(ErrorKind::Overloaded, format!("no more room: {self}")),
        }
    }
}

/// How a stage's session ended.
#[derive(Debug, Default)]
pub(super) enum StageEnding {
    /// It has not ended, or its coordinator was lost.
    #[default]
    Unspecified,
    /// Its coordinator released it, and named the prefix to keep.
    Released(Prefix),
    /// This node dropped it.
    Dropped(Fault),
}

/// State that the table shares with a live stage's inbox.
pub(super) struct StageState {
    /// When the coordinator last probed the stage, or began it.
    pub last_probed: Mutex<Instant>,
    pub ending: Mutex<StageEnding>,
    /// Whether the loss of the next host's link is queued and unread: a link may break any number of times.
    pub loss_queued: AtomicBool,
}

/// A live stage.
struct LiveStage {
    coordinator: NodeId,
    agreed: StageAgreement,
    queue: mpsc::Sender<QueuedDelivery>,
    bodies: SessionBodies,
    state: Arc<StageState>,
    /// Its drop tells the stage that the session is over.
    _over: DropGuard,
}

/// A stage that is being opened.
struct Reserved {
    coordinator: NodeId,
    /// Cancelled when the session ends first.
    over: CancellationToken,
}

/// The stages of sessions on this node.
#[derive(Default)]
pub(super) struct SessionStages {
    tables: Mutex<Tables>,
}

#[derive(Default)]
struct Tables {
    live: HashMap<SessionStage, LiveStage>,
    reserved: HashMap<SessionStage, Reserved>,
    ended: EndedSessions,
}

/// What a step's body needs: its coordinator, the session's share, its decoded bytes, and bytes of the longest body.
pub(super) type BodyNeed = (NodeId, BodyShare, usize, usize);

impl SessionStages {
    /// Reserves a stage until [`SessionStages::unreserve`]. Refuses a second stage of that number, and a session that
    /// its coordinator has ended. The token is cancelled when the session ends before the stage is live.
    pub fn reserve(&self, key: SessionStage, coordinator: NodeId) -> Result<CancellationToken, Fault> {
        let mut tables = locked(&self.tables);
        if tables.ended.contains(key.session, key.epoch, coordinator) {
            return Err(ended(key.session));
        }
        if tables.live.contains_key(&key) || tables.reserved.contains_key(&key) {
            let text = format!("session {} has a stage {} here already", key.session, key.stage);
            return Err(Fault::new(ErrorKind::InvalidArgument, text));
        }
        let over = CancellationToken::new();
        tables.reserved.insert(key, Reserved { coordinator, over: over.clone() });
        Ok(over)
    }

    /// Removes a reservation.
    pub fn unreserve(&self, key: SessionStage, over: &CancellationToken) {
        let mut tables = locked(&self.tables);
        // A cancelled reservation has left the table, where another of that number may be.
        if !over.is_cancelled() {
            tables.reserved.remove(&key);
        }
    }

    /// Makes a reserved stage live: `queue` gets its deliveries. `over` is the reservation's token. Fails where the
    /// session has ended meanwhile. The returned token is cancelled when the session is over.
    pub fn register(
        &self,
        key: SessionStage,
        (coordinator, over): (NodeId, &CancellationToken),
        agreed: StageAgreement,
        queue: mpsc::Sender<QueuedDelivery>,
    ) -> Result<(Arc<StageState>, CancellationToken), Fault> {
        let mut tables = locked(&self.tables);
        if over.is_cancelled() {
            return Err(ended(key.session));
        }
        let over = CancellationToken::new();
        let state = Arc::new(StageState {
            last_probed: Mutex::new(Instant::now()),
            ending: Mutex::default(),
            loss_queued: AtomicBool::default(),
        });
        let (bodies, _over) = (SessionBodies::new(), over.clone().drop_guard());
        tables.live.insert(key, LiveStage { coordinator, agreed, queue, bodies, state: state.clone(), _over });
        Ok((state, over))
    }

    /// Removes a live stage.
    pub fn remove(&self, key: SessionStage) {
        locked(&self.tables).live.remove(&key);
    }

    /// Notes that the coordinator probed a stage. Returns the receiver of the stage's results; nothing where the stage
    /// is not here, or another coordinator's.
    pub fn probed(&self, key: SessionStage, coordinator: NodeId) -> Option<NodeId> {
        let tables = locked(&self.tables);
        let stage = tables.live.get(&key).filter(|stage| stage.coordinator == coordinator)?;
        *locked(&stage.state.last_probed) = Instant::now();
        Some(stage.agreed.next)
    }

    /// Ends the live and reserved stages of a session, of this epoch and those before. Only its coordinator ends a
    /// session.
    pub fn end_session(&self, session: SessionId, epoch: u32, coordinator: NodeId, keep: &Prefix) {
        let mut tables = locked(&self.tables);
        let ends = |key: &SessionStage, owner| key.session == session && key.epoch <= epoch && owner == coordinator;
        tables.live.retain(|key, stage| {
            let ended = ends(key, stage.coordinator);
            if ended {
                *locked(&stage.state.ending) = StageEnding::Released(keep.clone());
            }
            !ended
        });
        tables.reserved.retain(|key, stage| !ends(key, stage.coordinator) || stage.cancel());
        tables.ended.insert(session, epoch, coordinator);
    }

    /// Ends one live stage of this coordinator.
    pub fn end_stage(&self, key: SessionStage, coordinator: NodeId) {
        let mut tables = locked(&self.tables);
        if tables.live.get(&key).is_some_and(|stage| stage.coordinator == coordinator) {
            tables.live.remove(&key);
        }
    }

    /// Ends all live and reserved stages of a coordinator that is gone.
    pub fn end_coordinator(&self, coordinator: NodeId) {
        let mut tables = locked(&self.tables);
        tables.live.retain(|_, stage| stage.coordinator != coordinator);
        tables.reserved.retain(|_, stage| stage.coordinator != coordinator || stage.cancel());
    }

    /// Ends a live stage whose frames this node cannot take. Its task reads the fault and tells the coordinator: no
    /// other node would report it for a standby.
    pub fn drop_stage(&self, key: SessionStage, reason: DropReason) {
        let dropped = locked(&self.tables).live.remove(&key);
        if let Some(stage) = dropped {
            *locked(&stage.state.ending) = StageEnding::Dropped(reason.fault(&stage.agreed));
        }
    }

    /// Queues a failure, from `local`, for the stages whose results go to this peer: results under way are lost, and
    /// only this node may have noticed.
    pub fn fail_to(&self, peer: NodeId, local: NodeId) {
        let tables = locked(&self.tables);
        let concerned =
            |stage: &LiveStage| stage.agreed.next == peer && !stage.state.loss_queued.swap(true, Ordering::AcqRel);
        for (key, stage) in tables.live.iter().filter(|(_, stage)| concerned(stage)) {
            let SessionStage { session, epoch, stage: number } = *key;
            // A full queue means a broken window, for which the session ends.
            let failed = Message::Failed { session, epoch, stage: number, fault: lost(peer) };
            let _ = stage.queue.try_send(((local, failed), None));
        }
    }

    /// Queues a delivery for a live stage. False where the stage's queue is full.
    pub fn queue(&self, key: SessionStage, delivery: QueuedDelivery) -> bool {
        let queue = locked(&self.tables).live.get(&key).map(|stage| stage.queue.clone());
        queue.is_none_or(|queue| !is_full(queue.try_send(delivery)))
    }

    /// Whether a peer may send this step now; else the reason why the step ends its session, where it does.
    pub fn admits(&self, key: SessionStage, from: NodeId, step: &StepHeader, body: usize) -> Result<bool, String> {
        let tables = locked(&self.tables);
        let Some(stage) = tables.live.get(&key).filter(|stage| stage.agreed.previous == from) else {
            return Ok(false);
        };
        stage.agreed.refuses(step, body).map_or(Ok(true), Err)
    }

    /// What the body of a step needs; nothing where the stage is not live.
    pub fn body_need(&self, key: SessionStage, step: &StepHeader) -> Option<BodyNeed> {
        let tables = locked(&self.tables);
        let stage = tables.live.get(&key)?;
        Some((stage.coordinator, stage.bodies.share(), floats(step.rows, step.width), stage.agreed.longest()))
    }
}

impl Reserved {
    /// Cancels the reservation; false, so that `retain` removes it.
    fn cancel(&self) -> bool {
        self.over.cancel();
        false
    }
}

/// Whether a queue was full. A closed queue belongs to a session that has ended, or whose next route has another queue.
pub(super) fn is_full<T>(sent: Result<(), mpsc::error::TrySendError<T>>) -> bool {
    matches!(sent, Err(mpsc::error::TrySendError::Full(_)))
}

fn ended(session: SessionId) -> Fault {
    Fault::new(ErrorKind::Cancelled, format!("session {session} has ended before it began"))
}
