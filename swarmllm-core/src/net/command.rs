//! Commands from handles to the swarm task.

use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

use super::streams::OpenReply;
use super::{Channel, NetError};
use crate::base::{Hash, NodeId};

/// Receives the result of a command. Dropped without a result when the swarm task ends.
pub(super) type Reply<T> = oneshot::Sender<Result<T, NetError>>;

/// Options of [`Command::Ensure`].
#[derive(Debug, Clone, Copy)]
pub(super) struct EnsureOptions {
    /// The peer that reported the addresses, if any.
    pub reported_by: Option<PeerId>,
    /// Whether the dial is cancelled once no caller waits for it.
    pub cancellable: bool,
}

/// A command. Each has a deadline of its own.
pub(super) enum Command {
    /// Connect to the peer at the address and wait until it has identified; `anew` dials even if connected.
    Dial { address: Multiaddr, force: bool, reply: Reply<NodeId> },
    /// Ensure a connection to a peer, dialling it at these addresses if needed.
    Ensure { node: NodeId, peer: PeerId, addresses: Vec<Multiaddr>, options: EnsureOptions, reply: Reply<NodeId> },
    /// Open a stream to a connected peer.
    Open { node: NodeId, peer: PeerId, channel: Channel, reply: OpenReply },
    /// Publish a gossip message.
    Publish { message: Vec<u8>, reply: Reply<()> },
    /// Announce this node as a provider of the key.
    Provide { key: Hash, reply: Reply<()> },
    /// Withdraw the announcement.
    Withdraw { key: Hash },
    /// Find the providers of the key.
    FindProviders { key: Hash, reply: Reply<Vec<NodeId>> },
    /// Dial all disconnected targets and recently disconnected peers at once; returns the number of dials under way.
    Reconnect { reply: Reply<usize> },
    /// Suspect the connection to a peer that does not answer.
    Suspect { peer: PeerId },
    /// Close the connection to a peer.
    Disconnect { peer: PeerId },
    /// Close all connections and end.
    Shutdown,
}
