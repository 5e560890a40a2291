//! Errors of the network.

use crate::base::{ErrorKind, NodeId};
use crate::net::Channel;

/// An error of the network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The network name cannot be part of a protocol name.
    #[error("`{name}` is not a network name: use 1 to 64 of a-z, 0-9, `.`, `_` and `-`")]
    BadNetwork { name: String },
    /// A list or text exceeds its limit.
    #[error("{given} {what} given, at most {max} are accepted")]
    TooMany { what: &'static str, given: usize, max: usize },
    /// The text is not a usable address.
    #[error("`{address}` is not a usable address: {reason}; write for example /ip4/10.0.0.7/tcp/8810/p2p/<peer id>")]
    BadAddress { address: String, reason: String },
    /// The port is used by another program or node.
    #[error("the port of {address} is in use; choose another, or 0 for any free one")]
    PortInUse { address: String },
    /// A private swarm has QUIC listen addresses only.
    #[error("a private swarm uses TCP only; add a TCP listen address")]
    PrivateNeedsTcp,
    /// Listening on the address failed.
    #[error("cannot listen on {address}: {reason}")]
    Listen { address: String, reason: String },
    /// The setup of a transport or protocol failed.
    #[error("network setup failed: {reason}")]
    Setup { reason: String },
    /// No answer at the address, or the connection was refused or lost before the peer identified.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable { address: String, reason: String },
    /// The peer belongs to another swarmllm network.
    #[error("{address} belongs to another network (`{theirs}`)")]
    WrongNetwork { address: String, theirs: String },
    /// The peer uses another protocol.
    #[error("{address} is not a swarmllm node (its protocol is `{theirs}`)")]
    NotSwarmllm { address: String, theirs: String },
    /// A peer with another id answers at the address.
    #[error("another peer answers at {address} ({found})")]
    WrongPeer { address: String, found: String },
    /// The address is this node's own.
    #[error("{address} is this node itself")]
    SelfDial { address: String },
    /// The node is not connected.
    #[error("node {node} is not connected")]
    NotConnected { node: NodeId },
    /// The connection closed before the operation completed.
    #[error("the connection to node {node} was lost")]
    PeerLost { node: NodeId },
    /// The maximum number of streams to the peer is open.
    #[error("{max} streams to node {node} are open, the maximum")]
    TooManyStreams { node: NodeId, max: usize },
    /// The peer does not accept streams of this channel.
    #[error("node {node} does not accept {channel} streams")]
    NoChannel { node: NodeId, channel: Channel },
    /// A deadline passed.
    #[error("{what} took longer than {millis} ms")]
    Timeout { what: &'static str, millis: u64 },
    /// The maximum number of operations is pending.
    #[error("{max} network operations are pending, the maximum")]
    Busy { max: usize },
    /// The gossip message is too long.
    #[error("a message of {given} bytes cannot be published, at most {max} are accepted")]
    TooLong { given: usize, max: usize },
    /// The provider store is full.
    #[error("the key cannot be announced: {reason}")]
    NotAnnounced { reason: String },
    /// The network has been shut down.
    #[error("the network has been shut down")]
    Closed,
}

impl NetError {
    /// The error kind for the API boundaries.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadNetwork { .. } | Self::TooMany { .. } | Self::PrivateNeedsTcp => ErrorKind::InvalidConfig,
            Self::BadAddress { .. } | Self::SelfDial { .. } | Self::TooLong { .. } => ErrorKind::InvalidArgument,
            Self::PortInUse { .. } | Self::Listen { .. } => ErrorKind::PortInUse,
            Self::Setup { .. } => ErrorKind::Io,
            Self::Unreachable { .. } | Self::WrongNetwork { .. } | Self::NotSwarmllm { .. } => {
                ErrorKind::PeerUnreachable
            }
            Self::WrongPeer { .. } => ErrorKind::PeerNotFound,
            Self::NotConnected { .. } => ErrorKind::PeerUnreachable,
            Self::PeerLost { .. } => ErrorKind::PeerLost,
            Self::NoChannel { .. } => ErrorKind::Unsupported,
            Self::TooManyStreams { .. } | Self::Busy { .. } | Self::NotAnnounced { .. } => ErrorKind::Overloaded,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Closed => ErrorKind::Closed,
        }
    }
}
