//! What handles ask of the swarm task.

use libp2p::{Multiaddr, PeerId};
use tokio::sync::oneshot;

use super::streams::OpenReply;
use super::{Channel, NetError};
use crate::base::{Hash, NodeId};

/// Where the outcome of an act goes. Dropped unanswered: the swarm task has ended.
pub(super) type Reply<T> = oneshot::Sender<Result<T, NetError>>;

/// How a peer is dialled that ought to be connected.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dial {
    /// Who told the addresses, where another peer did.
    pub told_by: Option<PeerId>,
    /// Whether the dial ends where nobody waits for it any more.
    pub brief: bool,
}

/// One request. Each is answered within a deadline of its own.
pub(super) enum Command {
    /// Connect to whoever is at the address, and wait until it is identified; `anew` where a connection stands, too.
    Dial { address: Multiaddr, anew: bool, reply: Reply<NodeId> },
    /// Be connected to a peer that may be at these addresses.
    Ensure { node: NodeId, peer: PeerId, addresses: Vec<Multiaddr>, dial: Dial, reply: Reply<NodeId> },
    /// Open a stream to a connected peer.
    Open { node: NodeId, peer: PeerId, channel: Channel, reply: OpenReply },
    /// Gossip.
    Publish { message: Vec<u8>, reply: Reply<()> },
    /// Announce that this node has what the key stands for.
    Provide { key: Hash, reply: Reply<()> },
    /// Take the announcement back.
    Withdraw { key: Hash },
    /// Find who announced the key.
    FindProviders { key: Hash, reply: Reply<Vec<NodeId>> },
    /// Dial whoever ought to be connected, and who left last; tells how many of them are being dialled.
    Reconnect { reply: Reply<usize> },
    /// A peer does not answer on its connection.
    Doubt { peer: PeerId },
    /// Close the connection to a peer.
    Disconnect { peer: PeerId },
    /// Say goodbye and end.
    Shutdown,
}
