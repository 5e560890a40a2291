//! Losses of peers and links, which a session receives whatever else it waits for.

use tokio::sync::broadcast;

use crate::base::NodeId;
use crate::net::NetHandle;
use crate::pipeline::link::router::SessionRouter;

/// A loss that may take a host from a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostLoss {
    /// A peer lost its last connection.
    Peer(NodeId),
    /// This node's link to a peer broke.
    PeerLink(NodeId),
}

/// Receives the losses of a node.
pub struct LossWatcher {
    peers: Option<broadcast::Receiver<NodeId>>,
    links: broadcast::Receiver<NodeId>,
}

impl LossWatcher {
    /// Receives all losses from now on.
    pub fn new(net: Option<&NetHandle>, router: &SessionRouter) -> Self {
        Self { peers: net.map(NetHandle::disconnects), links: router.broken() }
    }

    /// The next loss. Cancel-safe.
    pub async fn next(&mut self) -> HostLoss {
        tokio::select! {
            biased;
            peer = next_of(self.peers.as_mut()) => HostLoss::Peer(peer),
            peer = next_of(Some(&mut self.links)) => HostLoss::PeerLink(peer),
        }
    }
}

/// The next loss. A lagging receiver skips; the stall deadline covers what it missed.
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
