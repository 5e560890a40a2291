//! The context of a node's operations. The modules that it refers to take single handles and never import the context.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::base::NodeId;
use crate::identity::{Keypair, SwarmKey};
use crate::net::{NetHandle, PeerRegistry};
use crate::node::answer::state::AnswerState;
use crate::node::config::Config;
use crate::node::credits::Credits;
use crate::node::lifecycle::Lifecycle;
use crate::node::metrics::Metrics;
use crate::node::models::handle::Models;
use crate::node::swarm::announcer::Announcer;
use crate::node::swarm::peer_exchange::PeerExchange;
use crate::node::swarm::registry::ModelRegistry;
#[cfg(feature = "https")]
use crate::node::web::Throttle;
use crate::pipeline::host::serve::StageServer;
use crate::pipeline::runner::job::Coordinator;
use crate::rt::{EventBus, TaskSet};

/// Identity, configuration, six handles over the node's state, and the services that run on them. An operation that needs
/// one handle takes that handle.
pub(crate) struct SharedState {
    pub id: NodeId,
    pub keypair: Arc<Keypair>,
    /// Secret of a private swarm.
    pub swarm_key: Option<SwarmKey>,
    pub config: Config,

    /// Peer table: addresses, connection and RTT of each peer. Owner: the network task. Empty without a network.
    pub peers: PeerRegistry,
    /// Models, shards and their holders, as peers announce them. Owner: announcements, by hello and gossip.
    pub registry: Arc<ModelRegistry>,
    /// Models held here: acquisition, examination, eviction.
    pub models: Arc<Models>,
    /// Balances with peers, limits, settlement.
    pub credits: Arc<Credits>,
    /// Activity, sent by every module, read by hosts.
    pub events: EventBus,
    /// Counters of all modules.
    pub metrics: Metrics,

    /// `None` without a network.
    pub net: Option<NetHandle>,
    /// Stages computed here, for this node and for peers.
    pub stage_server: StageServer,
    /// Sessions that this node coordinates.
    pub coordinator: Coordinator,
    pub answers: AnswerState,
    pub announcer: Arc<Announcer>,
    pub peer_exchange: PeerExchange,
    /// Permits to greet candidates.
    pub greetings: Arc<Semaphore>,
    /// Rate limit of downloads from the web.
    #[cfg(feature = "https")]
    pub throttle: Arc<Throttle>,
    pub tasks: TaskSet,
    pub lifecycle: Lifecycle,
}
