//! Routes of a session: which hosts compute its stages, what every host is asked, and how routes are found.
//! [`RouteManager`](crate::pipeline::route::manager::RouteManager) decides which route a session tries.

pub mod active;
pub mod failures;
pub mod losses;
pub mod manager;
#[cfg(test)]
pub mod mutant;
pub mod opening;
pub mod search;
pub mod watch;

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::base::{Fault, LayerRange, ModelId, NodeId, SessionId};
use crate::pipeline::plan::{Plan, PlanStage};
use crate::wire::control::{Host, Opened};

/// Time to open a stage. Loading many GiB from a cold disk takes a while; more than this is a hang.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(180);
/// Time for one request to release a stage, and how often it is sent to a host that does not answer or is out of reach.
/// Together they outlast the connection of a silent peer: a frozen host may recover, and a partitioned one may not have
/// noticed the loss, and both would keep the KV.
pub const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
pub const RELEASES: u32 = 9;
/// Time to wait for the standbys once all stages are open.
pub const STANDBY_WAIT: Duration = Duration::from_secs(2);

/// One stage of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteStage {
    /// The host that computes it.
    pub host: Host,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it computes the head.
    pub head: bool,
    /// Weight by which the ledger prices it.
    pub weight: u64,
    /// Its hot standby, if it has one.
    pub standby: Option<Host>,
}

impl RouteStage {
    /// A stage of a plan, at a host with these addresses.
    pub fn new(planned: PlanStage, addresses: Vec<String>, weight: u64, standby: Option<Host>) -> Self {
        let PlanStage { node, layers, head } = planned;
        Self { host: Host { node, addresses }, layers, head, weight, standby }
    }

    /// The stage as part of a plan.
    pub fn planned(&self) -> PlanStage {
        PlanStage { node: self.host.node, layers: self.layers, head: self.head }
    }
}

/// The hosts of a session's stages, with their addresses and prices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The model.
    pub model: ModelId,
    /// The stages, in order.
    pub stages: Vec<RouteStage>,
    /// Predicted microseconds of a token.
    pub token_us: u64,
}

impl Route {
    /// The plan behind the route.
    pub fn plan(&self) -> Plan {
        let stages = self.stages.iter().map(RouteStage::planned).collect();
        Plan { model: self.model, stages, token_us: self.token_us }
    }

    /// All its hosts and standbys, each once.
    pub fn nodes(&self) -> Vec<NodeId> {
        let hosts = self.stages.iter().flat_map(|stage| [Some(&stage.host), stage.standby.as_ref()]);
        let mut nodes: Vec<NodeId> = hosts.flatten().map(|host| host.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

/// Finds routes in the swarm as it is known now.
pub trait Routes: Send + Sync {
    /// The best route without these nodes.
    fn find(&self, without: Vec<NodeId>) -> BoxFuture<'_, Result<Route, Fault>>;
    /// Probes the hosts of all routes in the background. Called when one host seems silent: if the cause is this node's
    /// own network, other routes do not work either until their connections are replaced.
    fn probe_all(&self);
}

/// A route with all stages open.
#[derive(Debug, Clone)]
pub struct OpenRoute {
    /// Number of the route within the session.
    pub epoch: u32,
    /// The route.
    pub route: Route,
    /// Replies of the hosts, in order of the stages.
    pub opened: Vec<Opened>,
    /// Replies of the standbys, in order of the stages.
    pub standby_replies: Vec<Option<Opened>>,
    /// All nodes that were asked.
    pub nodes: Vec<NodeId>,
    /// Peers lost since the attempt began.
    pub lost: BTreeSet<NodeId>,
}

/// Parameters that a session sends to every host.
#[derive(Debug, Clone)]
pub struct OpenParams {
    pub session: SessionId,
    pub model: ModelId,
    pub engine: String,
    pub exact: bool,
    /// Most positions.
    pub context: u32,
    /// Fewest positions.
    pub least: u32,
    /// Floats of a state.
    pub width: u32,
    /// Logits of a row.
    pub vocab: u32,
}

/// Report of one stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StageReport {
    /// Which stage.
    pub stage: PlanStage,
    /// Its standby as planned. The host before the stage may send copies there from the beginning, whatever the standby
    /// replied.
    pub standby: Option<NodeId>,
    /// Number of its route within the session; the highest is the last route.
    pub epoch: u32,
    /// Milliseconds of loading, 0 where it was loaded.
    pub load_ms: u32,
    /// Microseconds of compute of each prefill step.
    pub prefill_us: u64,
    /// Microseconds of compute of each decode step.
    pub decode_us: Vec<u32>,
}
