//! Shard transfer: a request, then the tree's leaves, then the bytes, verified group by group.

use serde::{Deserialize, Serialize};

use crate::base::{Fault, ShardId};

/// Asks for a shard from a group on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRequest {
    /// The shard.
    pub shard: ShardId,
    /// First group wanted; groups before it are already held and verified.
    pub from_group: u32,
}

/// What precedes the bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ShardReply {
    /// Follows: `groups` chaining values of 32 bytes each (whose tree hashes to the shard id), then the bytes from
    /// `from_group` on.
    Found { size: u64, groups: u32 },
    /// Not held, or not given.
    Refused(Fault),
}

/// Longest request or reply header, in bytes.
pub const MAX_SHARD_HEADER_BYTES: usize = 4 * 1024;
