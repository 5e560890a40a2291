//! The sessions that this node coordinates: the queues of their answers, and the hosts that may answer.

use std::collections::HashMap;
use std::sync::Mutex;

use tokio::sync::mpsc;

use super::stages::{BodyNeed, QueuedDelivery, is_full};
use crate::base::{NodeId, SessionId};
use crate::engine::MAX_OUTPUT_ROWS;
use crate::pipeline::link::bodies::SessionBodies;
use crate::pipeline::link::locked;
use crate::wire::job::LogitsHeader;

/// The hosts of a session's current route, and the bound on answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RouteHosts {
    /// The route's epoch.
    pub epoch: u32,
    /// The hosts of stages and standbys, with the stage's number: each may report one failure.
    pub stages: Vec<(NodeId, u32)>,
    /// The host that answers.
    pub answering: Option<NodeId>,
    /// Bytes of the longest answer.
    pub max_answer_bytes: usize,
}

/// A session that this node coordinates.
struct CoordinatedSession {
    queue: mpsc::Sender<QueuedDelivery>,
    bodies: SessionBodies,
    hosts: RouteHosts,
}

/// All sessions that this node coordinates.
#[derive(Default)]
pub(super) struct CoordinatedSessions {
    sessions: Mutex<HashMap<SessionId, CoordinatedSession>>,
}

impl CoordinatedSessions {
    /// Registers a session: `queue` gets its answers. No host may answer yet.
    pub fn register(&self, session: SessionId, queue: mpsc::Sender<QueuedDelivery>) {
        let coordinated = CoordinatedSession { queue, bodies: SessionBodies::new(), hosts: RouteHosts::default() };
        locked(&self.sessions).insert(session, coordinated);
    }

    /// Sets the hosts of a session's route.
    pub fn set_hosts(&self, session: SessionId, hosts: RouteHosts) {
        if let Some(coordinated) = locked(&self.sessions).get_mut(&session) {
            coordinated.hosts = hosts;
        }
    }

    /// Removes a session.
    pub fn remove(&self, session: SessionId) {
        locked(&self.sessions).remove(&session);
    }

    /// How many sessions are registered.
    pub fn count(&self) -> usize {
        locked(&self.sessions).len()
    }

    /// Queues an answer. False where the session's queue is full.
    pub fn queue(&self, session: SessionId, delivery: QueuedDelivery) -> bool {
        let queue = locked(&self.sessions).get(&session).map(|session| session.queue.clone());
        queue.is_none_or(|queue| !is_full(queue.try_send(delivery)))
    }

    /// Whether a peer may send this answer now; else the reason why the answer ends its session, where it does.
    pub fn admits_answer(&self, from: NodeId, logits: &LogitsHeader, body: usize) -> Result<bool, String> {
        let sessions = locked(&self.sessions);
        let session = sessions.get(&logits.session).filter(|session| session.hosts.answering == Some(from));
        match session.map(|session| session.hosts.max_answer_bytes) {
            None => Ok(false),
            // Rows of a few bytes take many times as much memory.
            Some(_) if logits.rows > MAX_OUTPUT_ROWS => {
                Err(format!("an answer of {} rows, where one has {MAX_OUTPUT_ROWS} at most", logits.rows))
            }
            Some(longest) if body <= longest => Ok(true),
            Some(longest) => Err(format!("an answer of {body} bytes, where one has {longest} at most")),
        }
    }

    /// Whether a peer may report this failure. Each host of the route reports one for each of its stages.
    pub fn admits_failure(&self, from: NodeId, session: SessionId, epoch: u32, stage: u32) -> bool {
        let mut sessions = locked(&self.sessions);
        let session = sessions.get_mut(&session).filter(|session| session.hosts.epoch == epoch);
        let Some(stages) = session.map(|session| &mut session.hosts.stages) else { return false };
        let at = stages.iter().position(|host| *host == (from, stage));
        at.map(|at| stages.swap_remove(at)).is_some()
    }

    /// What the body of a peer's answer needs; nothing where the session is not here.
    pub fn body_need(&self, session: SessionId, from: NodeId, body: usize) -> Option<BodyNeed> {
        let sessions = locked(&self.sessions);
        let session = sessions.get(&session)?;
        Some((from, session.bodies.share(), body, session.hosts.max_answer_bytes))
    }
}
