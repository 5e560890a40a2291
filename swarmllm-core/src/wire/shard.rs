//! Shard transfer, over a stream of its own: the tree's leaves first, then the bytes, verified group by group.
//!
//! ```text
//! -> ShardRequest                      which shard
//! <- ShardReply::Found, body: leaves   32 bytes per group; their tree hashes to the shard's id
//! -> ShardStart                        from which group on (those before it are held already)
//! <- the bytes from that group to the end, raw
//! ```

use serde::{Deserialize, Serialize};

use crate::base::{Fault, ShardId};
use crate::wire::frame::FrameLimits;

/// Asks for a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRequest {
    /// The shard.
    pub shard: ShardId,
}

/// What precedes the bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShardReply {
    /// It is here; the body holds its leaves.
    Found { size: u64 },
    /// Not held, or not given.
    Refused(Fault),
    /// Others are given shards now: the asker may come back in so many milliseconds.
    Busy { millis: u32 },
}

/// Starts the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStart {
    /// First group wanted; equal to the number of groups where none is.
    pub from_group: u64,
}

/// Longest request or start.
pub const REQUEST_LIMITS: FrameLimits = FrameLimits { header: 256, body: 0 };
/// Longest reply: 65,536 leaves of 32 bytes, for shards of up to 64 GiB.
pub const REPLY_LIMITS: FrameLimits = FrameLimits { header: 4 * 1024, body: 2 * 1024 * 1024 };
