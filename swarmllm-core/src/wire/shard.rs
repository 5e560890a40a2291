//! Shard transfer over a stream of its own: the hash tree's leaves first, then the bytes, verified group by group.
//!
//! ```text
//! -> ShardRequest                      the shard
//! <- ShardReply::Found, body: leaves   32 bytes per group; the root of their tree is the shard's id
//! -> ShardStart                        the first group to send (earlier groups are already stored)
//! <- the raw bytes from that group to the end
//! ```

use serde::{Deserialize, Serialize};

use crate::base::{Fault, ShardId};
use crate::wire::frame::FrameLimits;

/// Requests a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRequest {
    /// The shard.
    pub shard: ShardId,
}

/// The reply before the bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShardReply {
    /// The shard is available; the body contains its leaves.
    Found { size: u64 },
    /// The shard is not stored or not served.
    Refused(Fault),
    /// At capacity: the sender may retry after `millis` milliseconds.
    Busy { millis: u32 },
}

/// Starts the transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStart {
    /// First group to send; equal to the number of groups for none.
    pub from_group: u64,
}

/// Limits of a request or start.
pub const REQUEST_LIMITS: FrameLimits = FrameLimits { header: 256, body: 0 };
/// Limits of a reply: 65,536 leaves of 32 bytes, for shards of up to 64 GiB.
pub const REPLY_LIMITS: FrameLimits = FrameLimits { header: 4 * 1024, body: 2 * 1024 * 1024 };
