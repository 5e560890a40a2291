//! Events that a node reports to its host program.

use crate::base::{Fault, ModelId, NodeId, SessionId, ShardId};

/// Progress of a long operation, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Total bytes.
    pub total: u64,
}

/// An event in a node. A slow reader loses the oldest events, so they must not be the only source of a state.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The node listens on a new address.
    Listening { address: String },
    /// A peer is connected and supports the protocol.
    PeerConnected { node: NodeId },
    /// The last connection to a peer has closed.
    PeerDisconnected { node: NodeId },
    /// A model's manifest became known here.
    ModelKnown { model: ModelId, name: String },
    /// A shard is durable on this node's disk.
    ShardStored { model: ModelId, shard: ShardId },
    /// Progress of a transfer or an import of a model.
    Transfer { model: ModelId, progress: Progress },
    /// A stage was loaded into an engine.
    StageLoaded { model: ModelId, layers: crate::base::LayerRange, engine: &'static str },
    /// A generation began.
    GenerationStarted { session: SessionId, model: ModelId },
    /// A generation continues on another route after a failure. `epoch` counts its routes from 0; the first `kept` tokens
    /// of its text are not recomputed.
    GenerationRerouted { session: SessionId, epoch: u32, kept: u32, cause: Fault },
    /// A generation ended, with or without a fault.
    GenerationEnded { session: SessionId, tokens: u32, fault: Option<Fault> },
}
