//! The planner's input and result.

use std::collections::HashMap;

use crate::base::{LayerRange, ModelId, NodeId};
use crate::engine::CutRules;

/// Round trips that nodes report: to other nodes, in microseconds.
pub type ReportedRoundTrips<'a> = HashMap<NodeId, &'a [(NodeId, u32)]>;

/// A node that may compute stages of the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The node.
    pub node: NodeId,
    /// The layers that it holds, merged and sorted.
    pub layers: Vec<LayerRange>,
    /// Whether it holds the head's shards.
    pub head: bool,
    /// Round-trip time from the coordinator, microseconds; 0 for the coordinator itself.
    pub rtt_us: u32,
    /// Nanoseconds that it takes for a token and a unit of weight.
    pub ns_per_unit: u64,
    /// Bytes that it has free for new stages.
    pub free_memory: u64,
    /// Stages that it reports as in use, which take no more memory: layers, and whether they compute the head.
    pub loaded: Vec<(LayerRange, bool)>,
}

impl Candidate {
    /// Whether it holds the shards of a stage of these layers.
    pub fn holds(&self, layers: LayerRange, head: bool) -> bool {
        (self.head || !head) && self.layers.iter().any(|held| held.covers(layers))
    }
}

/// One stage of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct PlanStage {
    /// Its host.
    #[serde(serialize_with = "as_text")]
    pub node: NodeId,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it computes the head.
    pub head: bool,
}

/// A plan: which nodes compute which layers, in order.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    /// The model.
    #[serde(serialize_with = "as_text")]
    pub model: ModelId,
    /// At least one stage; the last computes the head.
    pub stages: Vec<PlanStage>,
    /// Predicted microseconds per token, with one answer at a time. For hosts that have not computed for this node yet
    /// the speed is an estimate.
    pub token_us: u64,
}

fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// The planner's input.
pub struct PlanRequest<'a> {
    /// The model.
    pub model: ModelId,
    /// How many layers it has.
    pub layers: u32,
    /// The legal stages of its architecture.
    pub cuts: &'a CutRules,
    /// The nodes that may compute stages.
    pub candidates: &'a [Candidate],
    /// Bytes of a stage, by its layers and whether it computes the head.
    pub memory: &'a dyn Fn(LayerRange, bool) -> u64,
    /// Units of weight of a stage, which the ledger prices and which its time is proportional to.
    pub weight: &'a dyn Fn(LayerRange, bool) -> u64,
    /// The round trips to each other that candidates report.
    pub round_trips: &'a ReportedRoundTrips<'a>,
}
