//! Routes of a session: who computes its stages, what every host is asked, and how routes are found.
//! [`RouteManager`](crate::pipeline::driver::RouteManager) decides which of them a session tries.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::BoxFuture;

use crate::base::{Fault, ModelId, NodeId, SessionId};
use crate::pipeline::plan::Plan;
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

/// Who computes a session's stages, and how to reach and pay them.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// The stages.
    pub plan: Plan,
    /// Addresses of each stage's host, in the plan's order.
    pub addresses: Vec<Vec<String>>,
    /// What the ledger prices each stage by.
    pub weights: Vec<u64>,
    /// Who follows each stage, where somebody is to.
    pub stand_bys: Vec<Option<Host>>,
}

impl Route {
    /// A stage's host.
    pub fn host(&self, stage: usize) -> Option<Host> {
        let node = self.plan.stages.get(stage)?.node;
        Some(Host { node, addresses: self.addresses.get(stage).cloned().unwrap_or_default() })
    }

    /// Who follows a stage.
    pub fn stand_by(&self, stage: usize) -> Option<&Host> {
        self.stand_bys.get(stage)?.as_ref()
    }

    /// All who have to do with it, each once.
    pub fn nodes(&self) -> Vec<NodeId> {
        let stages = self.plan.stages.iter().map(|stage| stage.node);
        let mut nodes: Vec<NodeId> = stages.chain(self.stand_bys.iter().flatten().map(|host| host.node)).collect();
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
    /// What each host said, in the plan's order.
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
