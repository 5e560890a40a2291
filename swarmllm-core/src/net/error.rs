//! Why the network refused or failed.

use crate::base::{ErrorKind, NodeId};
use crate::net::Channel;

/// What went wrong, with the facts to act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The network name cannot be part of a protocol name.
    #[error("`{name}` is not a network name: use 1 to 64 of a-z, 0-9, `.`, `_` and `-`")]
    BadNetwork { name: String },
    /// More was given than is accepted.
    #[error("{given} {what} were given, at most {max} are accepted")]
    TooMany { what: &'static str, given: usize, max: usize },
    /// The text is not an address that can be used.
    #[error("`{address}` is not a usable address: {reason}; write for example /ip4/10.0.0.7/tcp/8810/p2p/<peer id>")]
    BadAddress { address: String, reason: String },
    /// The port belongs to another program, or to another node.
    #[error("the port of {address} is in use; choose another, or 0 for any free one")]
    PortInUse { address: String },
    /// A private swarm is to be listened for on QUIC alone.
    #[error("a private swarm speaks TCP only, and no TCP address to listen on is given")]
    PrivateNeedsTcp,
    /// It cannot be listened on this address.
    #[error("{address} cannot be listened on: {reason}")]
    Listen { address: String, reason: String },
    /// The transports cannot be set up.
    #[error("the network cannot be set up: {reason}")]
    Setup { reason: String },
    /// Nobody answers at the address, or the connection was refused or lost before the peer was known.
    #[error("{address} cannot be reached: {reason}")]
    Unreachable { address: String, reason: String },
    /// The peer speaks our protocol in another network.
    #[error("{address} is of another network (it says `{theirs}`)")]
    WrongNetwork { address: String, theirs: String },
    /// The peer speaks another protocol.
    #[error("{address} is not a swarmllm node (it says `{theirs}`)")]
    NotSwarmllm { address: String, theirs: String },
    /// Another peer than the expected one answers at the address.
    #[error("at {address} another peer answers ({found})")]
    WrongPeer { address: String, found: String },
    /// The address is this node's own.
    #[error("{address} is this node itself")]
    ThatIsMe { address: String },
    /// The node is not connected.
    #[error("node {node} is not connected")]
    NotConnected { node: NodeId },
    /// The connection ended before the act did.
    #[error("the connection to node {node} was lost")]
    PeerLost { node: NodeId },
    /// As many streams to the peer are open as may be.
    #[error("{max} streams to node {node} are open, no more are allowed")]
    TooManyStreams { node: NodeId, max: usize },
    /// The peer does not take streams of this channel.
    #[error("node {node} does not take {channel} streams")]
    NoChannel { node: NodeId, channel: Channel },
    /// A deadline passed.
    #[error("{what} took longer than {millis} ms")]
    Timeout { what: &'static str, millis: u64 },
    /// More acts are under way than are allowed.
    #[error("{max} network acts are under way, no more are allowed")]
    Busy { max: usize },
    /// The message is longer than gossip carries.
    #[error("a message of {given} bytes cannot be published, at most {max} are accepted")]
    TooLong { given: usize, max: usize },
    /// The swarm's store takes no more.
    #[error("the key cannot be announced: {reason}")]
    NotAnnounced { reason: String },
    /// The network has been shut down.
    #[error("the network has been shut down")]
    Closed,
}

impl NetError {
    /// The kind that hosts see.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::BadNetwork { .. } | Self::TooMany { .. } | Self::PrivateNeedsTcp => ErrorKind::InvalidConfig,
            Self::BadAddress { .. } | Self::ThatIsMe { .. } | Self::TooLong { .. } => ErrorKind::InvalidArgument,
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
