//! What a node tells the swarm about itself. Never believed where it can be measured.

use serde::{Deserialize, Serialize};

use crate::base::{LayerRange, ModelId};

/// What a node holds of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The model.
    pub model: ModelId,
    /// Its name, for people.
    pub name: String,
    /// Layers held, merged and sorted.
    pub layers: Vec<LayerRange>,
    /// Whether the metadata shard is held.
    pub metadata: bool,
    /// Whether the embedding shard is held.
    pub embedding: bool,
    /// Whether all that the head needs is held.
    pub head: bool,
}

/// A node's announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Increases with each announcement of a node; older ones are dropped. Milliseconds since 1970 at the first one.
    pub version: u64,
    /// Software, as `swarmllm/0.1.0`.
    pub agent: String,
    /// Whether the node computes stages for others.
    pub serves: bool,
    /// Bytes of memory that it says are free for stages.
    pub free_memory: u64,
    /// Addresses it listens on, as multiaddr text.
    pub addresses: Vec<String>,
    /// What it holds.
    pub holdings: Vec<Holding>,
}

impl Announcement {
    /// Most models that one announcement names.
    pub const MAX_HOLDINGS: usize = 256;
    /// Most layer ranges of one holding.
    pub const MAX_RANGES: usize = 512;
    /// Most addresses.
    pub const MAX_ADDRESSES: usize = 32;
    /// Longest encoded announcement, in bytes.
    pub const MAX_BYTES: usize = 64 * 1024;
}
