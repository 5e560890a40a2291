//! What a node tells its host while it runs.

use crate::base::{Fault, ModelId, NodeId, SessionId, ShardId};

/// How far a long work has come, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Something that happened in a node. Events are news, never the source of truth: a slow reader loses the oldest.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The node listens on a new address.
    Listening { address: String },
    /// A peer is connected and speaks our protocol.
    PeerConnected { node: NodeId },
    /// The last connection to a peer is gone.
    PeerDisconnected { node: NodeId },
    /// A model's manifest became known here.
    ModelKnown { model: ModelId, name: String },
    /// A shard is durable on this node's disk.
    ShardStored { model: ModelId, shard: ShardId },
    /// Work on a model's bytes goes on.
    Transfer { model: ModelId, progress: Progress },
    /// A stage was loaded into an engine.
    StageLoaded { model: ModelId, layers: crate::base::LayerRange, engine: &'static str },
    /// A generation began.
    GenerationStarted { session: SessionId, model: ModelId },
    /// A generation goes on over another route, since the one before has failed. `epoch` counts its routes from 0; the
    /// first `kept` tokens of its text are not computed again.
    GenerationRerouted { session: SessionId, epoch: u32, kept: u32, cause: Fault },
    /// A generation ended, well or not.
    GenerationEnded { session: SessionId, tokens: u32, fault: Option<Fault> },
}
