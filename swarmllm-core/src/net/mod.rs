//! The network: who is there, streams to them, gossip, and the swarm's table of who has what.
//!
//! Owns the libp2p swarm, which runs in one task; handles talk to it by commands. Knows nothing of models: streams and
//! gossip are bytes. TCP (Noise, Yamux) and QUIC; identify, ping, mDNS, Kademlia and GossipSub under names that contain
//! the network's, so that swarms cannot mix.
//!
//! Promises: a peer is an Ed25519 key, proven by the transport; every act has a deadline; every queue, table and buffer
//! that a peer can fill is bounded (`config`); several networks live in one process and share nothing; after
//! [`NetHandle::shutdown`], or when the last handle is dropped, sockets and tasks are gone.
//! A killed peer is noticed at once over TCP (the system resets its connections), within 5 s over QUIC, and a frozen
//! one within 16 s over both.
//!
//! A node that nobody can connect to keeps a reservation with a relay among its bootstrap peers: a circuit there carries what the
//! relay cannot read, and where both ends' routers allow it they then connect directly (AutoNAT, circuit relay, DCUtR).
//!
//! Refuses: peers with other keys, peers of other networks, and more than the bounds.
//!
//! May import: base, identity, wire, rt.

mod address;
mod behaviour;
mod channel;
mod command;
mod config;
mod discovery;
mod driver;
mod error;
mod handle;
mod listen;
mod meter;
mod muxer;
mod outward;
mod peers;
mod pending;
mod per_address;
mod protocols;
mod reach;
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
pub use handle::{Dropped, Gossip, Incoming, NetHandle, start};
pub use meter::{Flow, Traffic};
pub use peers::{PeerInfo, PeerRegistry};
pub use streams::Stream;
