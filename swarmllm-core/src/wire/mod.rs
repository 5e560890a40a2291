//! The messages between peers: versioned, bounded, parsed once at the trust boundary.
//!
//! A frame is a length-prefixed header (postcard) with a raw body, see [`frame`]. Control messages ([`control`]) use short
//! streams with one request and one reply. Stage messages ([`job`]) flow in one direction over a persistent stream per hop.
//! Shards ([`shard`]) use streams of their own. Announcements ([`announce`]) travel by gossip and in the hello.
//!
//! May import: base, identity.

pub mod announce;
pub mod codec;
pub mod control;
pub mod frame;
pub mod job;
pub mod prefix;
pub mod shard;
pub mod tensor;

pub use frame::{Frame, WireError};

/// Version of the protocol; part of every protocol name, with the network name.
pub const PROTOCOL_VERSION: u32 = 4;
