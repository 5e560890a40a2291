//! Everything peers say to each other: versioned, bounded, parsed once at the wall.
//!
//! A frame is a length-prefixed header (postcard) with a raw body; see [`frame`]. Control messages ([`control`]) go over
//! short streams, one request and one reply each; stage messages ([`job`]) go one way over a persistent stream per hop;
//! shards ([`shard`]) over streams of their own; announcements ([`announce`]) by gossip and in the hello.
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

/// Version of the whole protocol; part of every protocol name together with the network id.
pub const PROTOCOL_VERSION: u32 = 4;
