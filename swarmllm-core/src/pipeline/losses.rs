//! What a session hears of lost peers and links, whatever else it waits for.

use std::pin::pin;

use tokio::sync::broadcast;

use crate::base::NodeId;
use crate::net::NetHandle;
use crate::pipeline::job::Coordinator;
use crate::pipeline::search::Blame;
use crate::pipeline::way::Way;

/// What may take a host from a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// A peer lost its last connection.
    Peer(NodeId),
    /// This node's link to a peer broke.
    Link(NodeId),
}

/// The losses of a node from some time on.
pub struct Losses {
    peers: Option<broadcast::Receiver<NodeId>>,
    links: broadcast::Receiver<NodeId>,
}

impl Losses {
    /// All from now on.
    pub fn new(coordinator: &Coordinator) -> Self {
        let peers = coordinator.net.as_ref().map(NetHandle::disconnects);
        Self { peers, links: coordinator.links.broken() }
    }

    /// The next loss. Cancel-safe.
    pub async fn next(&mut self) -> Loss {
        tokio::select! {
            biased;
            peer = next_of(self.peers.as_mut()) => Loss::Peer(peer),
            peer = next_of(Some(&mut self.links)) => Loss::Link(peer),
        }
    }

    /// Waits for the sending of a step, or until the route has lost a host that it needs. Who sends hears of its link itself.
    pub async fn bound<T>(&mut self, way: &mut Way, work: impl Future<Output = T>) -> Result<T, Blame> {
        let mut work = pin!(work);
        loop {
            let loss = tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                loss = self.next() => loss,
            };
            if let Some(blame) = way.lose(loss, false) {
                return Err(blame);
            }
        }
    }
}

/// The next loss. A lagging receiver skips: the stall deadline covers what it missed.
async fn next_of(losses: Option<&mut broadcast::Receiver<NodeId>>) -> NodeId {
    let Some(receiver) = losses else { return std::future::pending().await };
    loop {
        match receiver.recv().await {
            Ok(peer) => return peer,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}
