//! Counters of the node's modules, gathered for `Node::status`.

use std::time::{Duration, Instant};

use crate::net::{NetHandle, PeerRegistry, Traffic};
use crate::node::answer::queue::Queue;
use crate::pipeline::host::stages::StageTable;

/// Handle over counters. Each is owned and written by its module: the queue, the stage table, the peer table, the network.
pub(crate) struct Metrics {
    pub queue: Queue,
    pub stages: StageTable,
    pub peers: PeerRegistry,
    /// `None` without a network.
    pub net: Option<NetHandle>,
    pub started: Instant,
}

/// The counters at one moment; those of different modules are read one after another.
#[derive(Debug, Clone)]
pub(crate) struct MetricsSnapshot {
    pub peers_connected: u32,
    /// Requests that wait in the queue.
    pub waiting: u32,
    /// Sessions that hold a slot of a stage here.
    pub sessions: u32,
    /// Stages loaded.
    pub stages: u32,
    /// Bytes that stages take.
    pub memory_used: u64,
    /// Bytes over the wire since the start.
    pub traffic: Traffic,
    pub uptime: Duration,
}

impl Metrics {
    pub fn snapshot(&self) -> MetricsSnapshot {
        let (stages, sessions) = self.stages.counts();
        MetricsSnapshot {
            peers_connected: self.peers.snapshot().iter().filter(|peer| peer.connected).count() as u32,
            waiting: self.queue.waiting() as u32,
            sessions,
            stages,
            memory_used: self.stages.memory_used(),
            traffic: self.net.as_ref().map(NetHandle::traffic).unwrap_or_default(),
            uptime: self.started.elapsed(),
        }
    }
}
