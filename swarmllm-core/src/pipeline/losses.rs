//! What a session hears of lost peers and links, whatever else it waits for.

use tokio::sync::broadcast;

use crate::base::NodeId;
use crate::net::NetHandle;
use crate::pipeline::job::Coordinator;

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
