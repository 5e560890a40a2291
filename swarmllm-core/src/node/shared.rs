//! The context of a node's acts: a handle of everything that they share. What is shared never sees the context: it takes the
//! handles that it needs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Event, Fault, ModelId, NodeId};
use crate::engine::KvCache;
use crate::identity::{Keypair, SwarmKey};
use crate::model::Manifest;
use crate::model::catalog::Catalog;
use crate::net::NetHandle;
use crate::node::answer::constraint::Guides;
use crate::node::answer::planners::Planners;
use crate::node::answer::queue::Queue;
use crate::node::answer::readiness::Judged;
use crate::node::answer::reading::Readers;
use crate::node::api::findings::ImportReport;
use crate::node::models::examine::{Engines, Reports};
use crate::node::models::loaded::LoadedModels;
use crate::node::swarm::announce::Announcer;
use crate::node::swarm::directory::Registry;
use crate::node::swarm::peer_exchange::Exchange;
#[cfg(feature = "https")]
use crate::node::web::Throttle;
use crate::pipeline::job::Coordinator;
use crate::pipeline::serve::Serving;
use crate::pipeline::settle::Settler;
use crate::rt::{DirLock, EventBus, TaskSet};

/// Configuration as it is in force.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub data_dir: PathBuf,
    pub network: String,
    pub serve: bool,
    pub threads: u32,
    pub gpu_layers: u32,
    pub keep_awake: bool,
    pub memory: u64,
    /// Nothing where it is the model's own, as far as the memory allows.
    pub context: Option<u32>,
    pub sessions: u32,
    pub kv: KvCache,
    pub engine: Option<String>,
    /// A chat template in the place of those that models have.
    pub chat_template: Option<Arc<str>>,
    /// Bytes of disk within which it fetches what the swarm is short of; nothing where it does not.
    pub place: Option<u64>,
}

/// See the module.
pub(crate) struct Shared {
    pub id: NodeId,
    pub keypair: Arc<Keypair>,
    /// What the nodes of a private swarm share.
    pub swarm_key: Option<SwarmKey>,
    pub config: Config,
    pub catalog: Catalog,
    pub registry: Arc<Registry>,
    pub serving: Serving,
    pub coordinator: Coordinator,
    /// Pays peers and is paid; nothing without a network.
    pub settler: Option<Settler>,
    pub net: Option<NetHandle>,
    pub models: LoadedModels,
    /// What of the known models cannot run here.
    pub reports: Reports,
    pub judged: Judged,
    /// The turns to make plans for requests.
    pub planners: Planners,
    pub guides: Guides,
    pub readers: Readers,
    /// Requests that this node answers as coordinator.
    pub queue: Queue,
    pub announcer: Arc<Announcer>,
    pub exchange: Exchange,
    /// The turns to greet candidates.
    pub greetings: Arc<Semaphore>,
    /// What downloads from the web keep to.
    #[cfg(feature = "https")]
    pub throttle: Arc<Throttle>,
    pub events: EventBus,
    pub tasks: TaskSet,
    pub handle: tokio::runtime::Handle,
    pub closed: CancellationToken,
    pub started: Instant,
    /// The process that started the node: a forked child has its memory, but not its threads.
    pub process: u32,
    /// Held until the node has ended.
    pub lock: Mutex<Option<DirLock>>,
}

impl Shared {
    /// Whether this is a child that was forked after the node had started.
    pub fn is_forked(&self) -> bool {
        std::process::id() != self.process
    }

    /// The engines that could run a model here.
    pub fn engines(&self) -> Engines {
        Engines { all: self.serving.stages().engines().to_vec(), wanted: self.config.engine.clone() }
    }

    /// What of a known model cannot run here. Blocks the first time.
    pub fn report_of(&self, model: ModelId, manifest: &Manifest) -> Arc<ImportReport> {
        self.reports.of(&self.catalog, &self.engines(), model, manifest)
    }

    /// Tells the host of a model that became known here.
    pub fn tell_known(&self, model: ModelId) {
        self.events.send(Event::ModelKnown { model, name: self.catalog.title(model) });
    }

    /// Refuses acts on a node that has been shut down, or in a forked child.
    pub fn check_open(&self) -> Result<(), Fault> {
        if self.is_forked() {
            let text = "the process was forked after the node had started; start a node of its own in the child";
            return Err(Fault::new(ErrorKind::Forked, text));
        }
        match self.closed.is_cancelled() {
            true => Err(Fault::new(ErrorKind::Closed, "the node has been shut down; start another")),
            false => Ok(()),
        }
    }
}
