//! The network: connected peers, streams to them, gossip, and the swarm's provider table (DHT).
//!
//! Owns the libp2p swarm, which runs in one task; handles send it commands. Independent of models: streams and gossip are
//! bytes. Transports: TCP (Noise, Yamux) and QUIC. Protocols: identify, ping, mDNS, Kademlia and GossipSub, under names that
//! contain the network's name, so that swarms cannot mix.
//!
//! Guarantees: a peer is an Ed25519 key, proven by the transport; every operation has a deadline; every queue, table and
//! buffer that a peer can fill is bounded (`config`); networks in one process share nothing; sockets and tasks end with
//! [`NetHandle::shutdown`] or the last handle.
//! A killed peer is detected at once over TCP (the system resets its connections) and within 5 s over QUIC, a frozen peer
//! within 16 s over both.
//!
//! A node without inbound reachability keeps a reservation with a relay among its bootstrap peers. Relayed connections are
//! encrypted end to end, and are replaced by direct ones where both routers allow it (AutoNAT, circuit relay, DCUtR).
//!
//! Refuses: peers with other key types, peers of other networks, and everything beyond the limits.
//!
//! May import: base, identity, wire, rt.

mod address;
mod behaviour;
mod channel;
mod command;
mod config;
mod dial_errors;
mod dial_transport;
mod discovery;
mod driver;
mod error;
mod handle;
mod listen;
mod meter;
mod muxer;
mod peers;
mod pending;
mod per_address;
mod protocols;
mod reachability;
mod streams;
#[cfg(test)]
mod tests;
mod transport;

pub use address::TransportKind;
pub use channel::Channel;
pub use config::{
    MAX_AGENT_BYTES, MAX_BOOTSTRAP, MAX_GOSSIP_BYTES, MAX_LISTEN, MAX_NETWORK_BYTES, MAX_STREAMS_PER_PEER, NetConfig,
};
pub use error::NetError;
pub use handle::{DropCounts, Gossip, Incoming, NetHandle, start};
pub use meter::{Flow, Traffic};
pub use peers::{PeerInfo, PeerRegistry};
pub use streams::Stream;
