//! Routes of a session: who computes its stages, what every host is asked, and how routes are found.
//! [`RouteManager`](crate::pipeline::driver::RouteManager) decides which of them a session tries.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::base::{Fault, LayerRange, ModelId, NodeId, SessionId};
use crate::pipeline::plan::{Plan, PlanStage};
use crate::wire::control::{Host, Opened};

/// Loading a stage of many GiB from a cold disk takes a while; more than this is a hang.
pub const OPEN_DEADLINE: Duration = Duration::from_secs(180);
/// Telling a stage to free a session, and how often that is tried at a host that does not answer or is out of reach: for
/// longer than a silent peer stays connected, since one that is frozen may come to itself, and one that is cut off may not
/// have noticed; they would keep the KV.
pub const RELEASE_DEADLINE: Duration = Duration::from_secs(5);
pub const RELEASES: u32 = 9;
/// How much longer than for the stages it is waited for their stand-bys.
pub const STAND_BY_WAIT: Duration = Duration::from_secs(2);

/// One stage of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteStage {
    /// The host that computes it.
    pub host: Host,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it computes the head.
    pub head: bool,
    /// What the ledger prices it by.
    pub weight: u64,
    /// The host that follows it, where one is to.
    pub stand_by: Option<Host>,
}

impl RouteStage {
    /// The stage of a plan, at a host that may be dialled at these addresses.
    pub fn new(planned: PlanStage, addresses: Vec<String>, weight: u64, stand_by: Option<Host>) -> Self {
        let PlanStage { node, layers, head } = planned;
        Self { host: Host { node, addresses }, layers, head, weight, stand_by }
    }

    /// The stage as a plan has it.
    pub fn planned(&self) -> PlanStage {
        PlanStage { node: self.host.node, layers: self.layers, head: self.head }
    }
}

/// Who computes a session's stages, and how to reach and pay them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The model.
    pub model: ModelId,
    /// The stages, in order.
    pub stages: Vec<RouteStage>,
    /// Microseconds that a token is predicted to take.
    pub token_us: u64,
}

impl Route {
    /// The plan that it carries out.
    pub fn plan(&self) -> Plan {
        let stages = self.stages.iter().map(RouteStage::planned).collect();
        Plan { model: self.model, stages, token_us: self.token_us }
    }

    /// All who have to do with it, each once.
    pub fn nodes(&self) -> Vec<NodeId> {
        let hosts = self.stages.iter().flat_map(|stage| [Some(&stage.host), stage.stand_by.as_ref()]);
        let mut nodes: Vec<NodeId> = hosts.flatten().map(|host| host.node).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    }
}

/// Finds routes from what is known of the swarm now.
pub trait Routes: Send + Sync {
    /// The best route that does without these nodes.
    fn find(&self, without: Vec<NodeId>) -> BoxFuture<'_, Result<Route, Fault>>;
    /// A host seems silent: where it is the line, the other ways are of no use either until their connections are replaced.
    /// Asks all hosts of routes whether they are there, beside what goes on.
    fn rouse(&self);
}

/// A route whose stages are all open.
#[derive(Debug, Clone)]
pub struct OpenRoute {
    /// Which of the session's routes.
    pub epoch: u32,
    /// The stages.
    pub route: Route,
    /// What each host said, in the stages' order.
    pub opened: Vec<Opened>,
    /// What each stand-by said that is there.
    pub following: Vec<Option<Opened>>,
    /// All who were asked.
    pub nodes: Vec<NodeId>,
    /// Peers that were lost since it was begun to be opened.
    pub lost: BTreeSet<NodeId>,
}

/// What a session asks of every host.
#[derive(Debug, Clone)]
pub struct OpenParams {
    pub session: SessionId,
    pub model: ModelId,
    pub engine: String,
    pub exact: bool,
    /// Positions at most.
    pub context: u32,
    /// Positions at least.
    pub least: u32,
    /// Floats of a state.
    pub width: u32,
    /// Logits of a row.
    pub vocab: u32,
}
