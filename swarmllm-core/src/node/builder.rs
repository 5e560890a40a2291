//! Builds and starts a node. Holds every default.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast};

use crate::base::{ErrorKind, Fault, NodeId};
use crate::engine::{self, Engine, KvType, StageConfig};
use crate::identity::{Keypair, keyfile};
use crate::ledger::Ledger;
use crate::model::catalog::Catalog;
use crate::model::chat::ChatTemplate;
use crate::net::{self, Incoming, NetConfig, NetHandle};
use crate::node::answer::state::AnswerState;
use crate::node::api::error::{ModelActError, StartError};
use crate::node::api::findings::ImportReport;
use crate::node::api::request::ImportOptions;
use crate::node::config::Config;
use crate::node::credits::Credits;
use crate::node::handle::Node;
use crate::node::inbound::dispatcher;
use crate::node::lifecycle::Lifecycle;
use crate::node::metrics::Metrics;
use crate::node::models::examine::{Engines, Examination};
use crate::node::models::handle::Models;
use crate::node::models::placement;
use crate::node::node_runtime::NodeRuntime;
use crate::node::shared::SharedState;
use crate::node::swarm::announcer::Announcer;
use crate::node::swarm::greeting;
use crate::node::swarm::membership::{self, Membership, MembershipRequest};
use crate::node::swarm::peer_exchange::PeerExchange;
use crate::node::swarm::registry::ModelRegistry;
use crate::node::swarm::{peer_cache, speed_cache};
#[cfg(feature = "https")]
use crate::node::web::{self, Throttle, WebSource};
use crate::pipeline::host::serve::StageServer;
use crate::pipeline::host::stages::{StageLimits, StageTable};
use crate::pipeline::link::router::SessionRouter;
use crate::pipeline::plan::speeds::Speeds;
use crate::pipeline::runner::job::Coordinator;
use crate::pipeline::session::prefix::PrefixHasher;
use crate::rt::{DirLock, EventBus, TaskSet};
use crate::store::Store;

/// Environment variable with the data directory, for hosts that set none.
pub const DATA_DIR_VARIABLE: &str = "SWARMLLM_DATA_DIR";
/// Swarm of a node whose host names none.
const DEFAULT_NETWORK: &str = "main";
/// TCP and QUIC on ephemeral ports of every interface.
const DEFAULT_LISTEN: [&str; 2] = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];
/// Positions of a session if the host sets none, within the model's context and the memory. SmolLM2-135M takes 22.5 KiB of
/// KV a token, so `4 * 4096` positions take 360 MiB.
const USUAL_CONTEXT: u32 = 4096;
/// Concurrent sessions of a stage.
const DEFAULT_SESSIONS: u32 = 4;
/// Most concurrent sessions of a stage. They are computed together, and llama.cpp returns logits of at most 64 rows at once.
pub const MAX_SESSIONS: u32 = 64;
/// Most compute threads by default.
const MAX_DEFAULT_THREADS: u32 = 64;

/// How a node finds peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// No network.
    Offline,
    /// LAN discovery, ephemeral ports, serves peers.
    #[default]
    Lan,
    /// `Lan` without LAN discovery, for a node that peers reach by its addresses.
    Public,
}

/// Builds a node. Each method names its default.
#[derive(Clone, Default)]
pub struct NodeBuilder {
    data_dir: Option<PathBuf>,
    preset: Preset,
    network: Option<String>,
    private: bool,
    invite: Option<String>,
    listen: Option<Vec<String>>,
    bootstrap: Vec<String>,
    mdns: Option<bool>,
    relay: bool,
    external: Vec<String>,
    upnp: bool,
    max_traffic: Option<NonZeroU64>,
    serve: Option<bool>,
    threads: Option<u32>,
    gpu_layers: Option<u32>,
    keep_awake: bool,
    memory: Option<u64>,
    max_disk_bytes: Option<u64>,
    #[cfg(feature = "https")]
    download_rate: Option<NonZeroU64>,
    context: Option<u32>,
    sessions: Option<u32>,
    kv: KvType,
    credit_limit: Option<u64>,
    place: Option<u64>,
    engine: Option<String>,
    chat_template: Option<String>,
    engines: Option<Vec<Arc<dyn Engine>>>,
    runtime: Option<Handle>,
}

impl NodeBuilder {
    /// Directory for key, models and store. Default: `SWARMLLM_DATA_DIR`, else the OS's directory for application data.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// See [`Preset`]. Default `Lan`.
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self
    }

    /// Name of the swarm: 1 to 64 of `a-z 0-9 - _ .`. It is part of every protocol name, so swarms never mix. Default
    /// `main`.
    pub fn network(mut self, name: impl Into<String>) -> Self {
        self.network = Some(name.into());
        self
    }

    /// Whether the swarm is private: nodes share a secret, and nodes without it cannot complete a handshake. The first node
    /// founds the swarm and stores the secret in its data directory; others join by an [invite](crate::node::Node::invite).
    /// A private swarm uses TCP only. Without a name it gets a generated one. Default: false; a data directory that belongs
    /// to a private swarm stays in it.
    pub fn private(mut self, on: bool) -> Self {
        self.private = on;
        self
    }

    /// Joins the swarm of an invite. The data directory remembers it. Default: none.
    pub fn join(mut self, invite: impl Into<String>) -> Self {
        self.invite = Some(invite.into());
        self
    }

    /// Addresses to listen on, as multiaddr text. Default: TCP and QUIC on ephemeral ports of every interface.
    pub fn listen(mut self, addresses: Vec<String>) -> Self {
        self.listen = Some(addresses);
        self
    }

    /// Peers to dial at start and to redial when lost, as multiaddr text with `/p2p/`. Default: none.
    pub fn bootstrap(mut self, addresses: Vec<String>) -> Self {
        self.bootstrap = addresses;
        self
    }

    /// Whether to find peers on the LAN by mDNS. Default: true in `Lan`.
    pub fn mdns(mut self, on: bool) -> Self {
        self.mdns = Some(on);
        self
    }

    /// Whether to relay connections of unreachable peers and to probe peers' reachability for them. Peers that bootstrap
    /// from this node use it; relayed traffic is encrypted end to end. The node itself should be publicly reachable.
    /// Default: false.
    pub fn relay(mut self, on: bool) -> Self {
        self.relay = on;
        self
    }

    /// Addresses that reach this node although it does not listen on them, as multiaddr text: a forwarded port, a name.
    /// Default: none; addresses reported by routers and peers are discovered.
    pub fn external(mut self, addresses: Vec<String>) -> Self {
        self.external = addresses;
        self
    }

    /// Whether to ask the router to forward this node's ports, by UPnP. Default: false.
    pub fn upnp(mut self, on: bool) -> Self {
        self.upnp = on;
        self
    }

    /// Limit of network traffic in bytes per second, both directions together: answers, shards and relayed connections.
    /// Default: no limit.
    pub fn max_traffic(mut self, bytes_a_second: NonZeroU64) -> Self {
        self.max_traffic = Some(bytes_a_second);
        self
    }

    /// Whether to compute stages for peers. Default: true in `Lan` and `Public`.
    pub fn serve(mut self, on: bool) -> Self {
        self.serve = Some(on);
        self
    }

    /// Compute threads. Default: the physical cores.
    pub fn threads(mut self, threads: u32) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Layers that accelerators compute, over all stages here; a head counts as one. Default: all. No effect if the build
    /// lacks the feature of the machine's accelerator (`cuda`, `metal`, `vulkan`).
    pub fn gpu_layers(mut self, layers: u32) -> Self {
        self.gpu_layers = Some(layers);
        self
    }

    /// Whether to keep cores awake while remote steps arrive, at the cost of power; Linux only. A core that sleeps between
    /// two tokens wakes late at each of a token's dozen waits; awake cores cut most of what a link of 5 to 20 ms costs
    /// beyond its own latency. The machine draws power as if it computed all the time. The loops yield to every other
    /// process, but they use up the CPU quota of a container: leave it off there. Default: false.
    pub fn keep_awake(mut self, on: bool) -> Self {
        self.keep_awake = on;
        self
    }

    /// Bytes of memory for weights and KV of all stages. Default: half of the memory free at start.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Disk budget of all shards in bytes, including transfers in progress. An import, download or pull that exceeds it is
    /// refused before it begins. Default: no limit.
    pub fn max_disk_bytes(mut self, bytes: u64) -> Self {
        self.max_disk_bytes = Some(bytes);
        self
    }

    /// Rate limit of all downloads from the web together, in bytes per second; `None` sets no limit. Transfers from peers
    /// are exempt. Default `None`.
    #[cfg(feature = "https")]
    pub fn download_rate(mut self, bytes_a_second: Option<NonZeroU64>) -> Self {
        self.download_rate = bytes_a_second;
        self
    }

    /// Positions of a session, prompt and answer together, up to the model's own context. Default: the model's context
    /// within the memory. When a stage is loaded, KV of all its sessions takes at most half of the memory that its weights
    /// leave, but at least 4,096 positions each; if those do not fit, as many as fit, and at least 512.
    pub fn context(mut self, tokens: u32) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Concurrent sessions of a stage, 1 to 64. Each takes KV for the whole context. Default 4.
    pub fn sessions(mut self, sessions: u32) -> Self {
        self.sessions = Some(sessions);
        self
    }

    /// Format of the KV cache. Default: [`KvType::Full`]. [`KvType::Q8`] takes about half of the memory and refuses exact
    /// answers.
    pub fn kv(mut self, kv: KvType) -> Self {
        self.kv = kv;
        self
    }

    /// Credits that a peer may owe before this node refuses to compute for it. One credit is a million parameters applied to
    /// one token. Default: no limit; accounts are kept and nobody is refused, as among machines of one owner.
    pub fn credit_limit(mut self, credits: u64) -> Self {
        self.credit_limit = Some(credits);
        self
    }

    /// Enables placement: the node fetches layers that too few peers hold, of models whose manifest it has. All models
    /// together stay within `disk` bytes, and a stage of the layers must fit into the memory. For nodes that serve. Default:
    /// off.
    pub fn place(mut self, disk: u64) -> Self {
        self.place = Some(disk);
        self
    }

    /// Engine: `llama.cpp` or `candle`. Default: the best engine that runs the model.
    pub fn engine(mut self, name: impl Into<String>) -> Self {
        self.engine = Some(name.into());
        self
    }

    /// Chat template (Jinja) that replaces the models' own; a request's template precedes it. At most
    /// [`MAX_TEMPLATE`](super::MAX_TEMPLATE) bytes. A template that does not compile is refused at start. Default: each
    /// model's own.
    pub fn chat_template(mut self, source: impl Into<String>) -> Self {
        self.chat_template = Some(source.into());
        self
    }

    /// Engines that replace the built-in ones, best first, for hosts with their own engine and for tests.
    pub fn engines(mut self, engines: Vec<Arc<dyn Engine>>) -> Self {
        self.engines = Some(engines);
        self
    }

    /// Tokio runtime to run on. Default: a new one with two threads.
    pub fn runtime(mut self, handle: Handle) -> Self {
        self.runtime = Some(handle);
        self
    }

    /// Starts the node: locks the data directory, loads or creates the key, opens catalogue and store, and listens.
    /// Cancel-safe: dropping it leaves nothing running.
    pub async fn start(self) -> Result<Node, StartError> {
        let runtime = self.new_runtime()?;
        let (handle, started) = (runtime.handle().clone(), self.start_on(runtime.handle().clone()));
        let joined = handle.spawn(started).await;
        let shared = joined.map_err(|error| Fault::new(ErrorKind::Internal, error))??;
        Ok(Node::new(shared, runtime))
    }

    /// Starts the node from a thread outside any runtime.
    pub fn start_blocking(self) -> Result<Node, StartError> {
        if Handle::try_current().is_ok() {
            let text = "start_blocking was called inside a Tokio runtime; await start instead";
            return Err(Fault::new(ErrorKind::InvalidArgument, text).into());
        }
        let runtime = self.new_runtime()?;
        let shared = runtime.handle().block_on(self.start_on(runtime.handle().clone()))?;
        Ok(Node::new(shared, runtime))
    }

    /// Checks whether a model could run on such a node, as [`Node::examine`] does, without a node or data directory.
    pub async fn examine(self, path: &Path, options: ImportOptions) -> Result<ImportReport, ModelActError> {
        let (runtime, examination, path) = (self.new_runtime()?, self.examination(&options), path.to_owned());
        let looked = runtime.handle().spawn_blocking(move || examination.examine_file(&path)).await;
        Ok(looked.map_err(|error| Fault::new(ErrorKind::Internal, error))??)
    }

    /// [`examine`](Self::examine) for a GGUF on the web; only its header is fetched. Cancel-safe.
    #[cfg(feature = "https")]
    pub async fn examine_url(
        self,
        source: impl Into<WebSource>,
        options: ImportOptions,
    ) -> Result<ImportReport, ModelActError> {
        let (runtime, examination) = (self.new_runtime()?, self.examination(&options));
        let throttle = Arc::new(Throttle::new(self.download_rate));
        let work = runtime.handle().spawn(web::examine_url(throttle, source.into(), examination));
        crate::node::handle::AbortOnDrop(work).await.map_err(|error| Fault::new(ErrorKind::Internal, error))?
    }

    fn examination(&self, options: &ImportOptions) -> Examination {
        let all = self.engines.clone().unwrap_or_else(engine::built_in);
        Examination::new(Engines { all, wanted: self.engine.clone() }, options)
    }

    fn new_runtime(&self) -> Result<NodeRuntime, Fault> {
        NodeRuntime::new(self.runtime.clone())
            .map_err(|error| Fault::new(ErrorKind::Io, format!("no runtime could be started: {error}")))
    }

    async fn start_on(self, handle: Handle) -> Result<Arc<SharedState>, Fault> {
        let opened = {
            let builder = self.clone();
            tokio::task::spawn_blocking(move || builder.open())
        };
        let mut opened = opened.await.map_err(|error| Fault::new(ErrorKind::Internal, error))??;
        let known = std::mem::take(&mut opened.known);
        let store = opened.store.clone();
        let tasks = TaskSet::new(handle.clone());
        let events = EventBus::new();
        let (net, incoming) = match self.preset {
            Preset::Offline => (None, None),
            Preset::Lan | Preset::Public => {
                let started = net::start(
                    self.net_config(&opened.membership, known),
                    &opened.keypair,
                    events.clone(),
                    tasks.clone(),
                )
                .await;
                let (net, incoming) = started.map_err(|error| {
                    tasks.abort();
                    Fault::new(error.kind(), error)
                })?;
                (Some(net), Some(incoming))
            }
        };
        let shared = self.assemble(handle, opened, tasks, events, net);
        spawn(&shared, incoming, store);
        Ok(shared)
    }

    fn assemble(
        self,
        handle: Handle,
        opened: DiskState,
        tasks: TaskSet,
        events: EventBus,
        net: Option<NetHandle>,
    ) -> Arc<SharedState> {
        let DiskState { config, membership, keypair, catalog, lock, prefix_hasher, ledger, speeds, .. } = opened;
        let id = keypair.node_id();
        let stage = StageConfig {
            context: config.context.unwrap_or(USUAL_CONTEXT),
            max_sessions: config.sessions,
            max_rows: StageConfig::DEFAULT_MAX_ROWS,
            threads: config.threads,
            kv: config.kv,
            gpu_layers: config.gpu_layers,
            keep_awake: config.keep_awake,
        };
        let limits = StageLimits { stage, grows: config.context.is_none(), memory: config.memory };
        let engines = self.engines.unwrap_or_else(engine::built_in);
        let stages = StageTable::new(engines, catalog.clone(), limits, events.clone(), tasks.clone());
        let router = SessionRouter::new(id, net.clone(), tasks.clone());
        let registry = Arc::new(ModelRegistry::new());
        router.set_announced(Box::new({
            let registry = registry.clone();
            move |node| registry.snapshot().get(&node).map(|at| (at.addresses.clone(), at.via())).unwrap_or_default()
        }));
        let balances = ledger.balances().clone();
        let credits = Credits::new(ledger, net.clone());
        let stage_server = StageServer::new(stages.clone(), router.clone(), balances.clone(), tasks.clone());
        let coordinator = Coordinator {
            router,
            stage_server: stage_server.clone(),
            net: net.clone(),
            tasks: tasks.clone(),
            prefix_hasher,
            chunk_policy: Arc::default(),
            speculation: Arc::default(),
            speeds,
            failures: Arc::default(),
            balances,
            events: events.clone(),
        };
        let announcer = Announcer::new(config.serve, catalog.clone(), stages.clone(), registry.clone(), net.clone());
        let peers = net.as_ref().map(NetHandle::peers).unwrap_or_default();
        let answers = AnswerState::default();
        let metrics = Metrics {
            queue: answers.queue.clone(),
            stages: stages.clone(),
            peers: peers.clone(),
            net: net.clone(),
            started: Instant::now(),
        };
        let models = Models::new(catalog, stages, config.engine.clone(), events.clone());
        Arc::new(SharedState {
            id,
            keypair,
            swarm_key: membership.key,
            config,
            peers,
            registry,
            models: Arc::new(models),
            credits: Arc::new(credits),
            events,
            metrics,
            net,
            stage_server,
            coordinator,
            answers,
            announcer: Arc::new(announcer),
            peer_exchange: PeerExchange::new(),
            greetings: Arc::new(Semaphore::new(greeting::MAX_GREETINGS)),
            #[cfg(feature = "https")]
            throttle: Arc::new(Throttle::new(self.download_rate)),
            tasks,
            lifecycle: Lifecycle::new(handle, lock),
        })
    }

    fn net_config(&self, membership: &Membership, known: Vec<String>) -> NetConfig {
        let listen = || DEFAULT_LISTEN.map(str::to_owned).to_vec();
        NetConfig {
            network: membership.network.clone(),
            key: membership.key.clone(),
            listen: self.listen.clone().unwrap_or_else(listen),
            bootstrap: [self.bootstrap.as_slice(), &membership.bootstrap].concat(),
            known,
            mdns: self.mdns.unwrap_or(self.preset == Preset::Lan),
            relay: self.relay,
            external: self.external.clone(),
            upnp: self.upnp,
            ceiling: self.max_traffic,
            ..NetConfig::default()
        }
    }

    /// Opens everything on disk. Blocks.
    fn open(&self) -> Result<DiskState, Fault> {
        let mut config = self.config()?;
        let dir = &config.data_dir;
        make_dir(dir)?;
        let lock = DirLock::acquire(dir).map_err(|error| Fault::new(error.kind(), error))?;
        let request = MembershipRequest {
            network: self.network.as_deref(),
            private: self.private,
            invite: self.invite.as_deref(),
        };
        let membership = membership::resolve(dir, &request, DEFAULT_NETWORK)?;
        config.network.clone_from(&membership.network);
        let keypair =
            keyfile::load_or_create(&dir.join("node.key")).map_err(|error| Fault::new(error.kind(), error))?;
        let catalog =
            Catalog::open_within(dir, self.max_disk_bytes).map_err(|error| Fault::new(error.kind(), error))?;
        let (store, known) = peer_cache::open(dir, &config.network)?;
        let (keypair, speeds) = (Arc::new(keypair), speed_cache::load(&store));
        let ledger = Ledger::open(store.clone(), keypair.clone(), &config.network, self.credit_limit);
        let ledger = ledger.map_err(|error| Fault::new(error.kind(), error))?;
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|error| Fault::new(ErrorKind::Internal, error))?;
        let prefix_hasher = PrefixHasher::new(secret);
        Ok(DiskState { config, membership, keypair, catalog, store, known, ledger, speeds, lock, prefix_hasher })
    }

    fn config(&self) -> Result<Config, Fault> {
        let bounds = [
            ("threads", self.threads, u32::MAX),
            ("context", self.context, u32::MAX),
            ("sessions", self.sessions, MAX_SESSIONS),
        ];
        for (field, given, most) in bounds {
            if let Some(given) = given.filter(|given| !(1..=most).contains(given)) {
                let why = format!("must be a whole number from 1 to {most}, not {given}");
                return Err(Fault::new(ErrorKind::InvalidConfig, why).about(field));
            }
        }
        if let Some(source) = &self.chat_template {
            let refused = |error| Fault::new(ErrorKind::InvalidConfig, format!("`chat_template`: {error}"));
            ChatTemplate::from_source(source, "", "").map_err(refused)?;
        }
        let data_dir = match &self.data_dir {
            Some(dir) => dir.clone(),
            None => default_data_dir()?,
        };
        Ok(Config {
            data_dir,
            network: self.network.clone().unwrap_or_else(|| DEFAULT_NETWORK.to_owned()),
            serve: self.serve.unwrap_or(self.preset != Preset::Offline),
            threads: self.threads.unwrap_or_else(physical_cores),
            gpu_layers: self.gpu_layers.unwrap_or(u32::MAX),
            keep_awake: self.keep_awake,
            memory: self.memory.unwrap_or_else(half_of_free_memory),
            context: self.context,
            sessions: self.sessions.unwrap_or(DEFAULT_SESSIONS),
            kv: self.kv,
            engine: self.engine.clone(),
            chat_template: self.chat_template.as_deref().map(Arc::from),
            place: self.place,
        })
    }
}

/// State opened on disk.
struct DiskState {
    config: Config,
    membership: Membership,
    keypair: Arc<Keypair>,
    catalog: Catalog,
    store: Store,
    /// Stored addresses of peers.
    known: Vec<String>,
    ledger: Ledger,
    /// Stored speeds of hosts.
    speeds: Arc<Speeds>,
    lock: DirLock,
    prefix_hasher: PrefixHasher,
}

fn spawn(shared: &Arc<SharedState>, incoming: Option<Incoming>, store: Store) {
    let speeds = shared.coordinator.speeds.clone();
    shared.tasks.spawn("speed-cache", speed_cache::run(speeds, store.clone(), shared.tasks.stopping()));
    let (Some(net), Some(incoming)) = (shared.net.clone(), incoming) else { return };
    // Subscribed before the first task runs, so no peer is missed.
    let (connects, disconnects, announced) = (net.connects(), net.disconnects(), net.connects());
    let (network, peers, stopping) = (shared.config.network.clone(), shared.peers.clone(), shared.tasks.stopping());
    shared.tasks.spawn("peer-cache", peer_cache::run(store, network, peers, net.connects(), stopping));
    let (credits, stopping) = (shared.credits.clone(), shared.tasks.stopping());
    shared.tasks.spawn("payments", async move { credits.run(stopping).await });
    shared.tasks.spawn("inbound", dispatcher::run(shared.clone(), incoming));
    shared.tasks.spawn("peers", dispatcher::watch_peers(shared.clone(), connects, disconnects));
    spawn_announcer(shared, announced);
    if let Some(disk) = shared.config.place.filter(|_| shared.config.serve) {
        shared.tasks.spawn("placement", placement::run(shared.clone(), disk));
    }
}

fn spawn_announcer(shared: &SharedState, announced: broadcast::Receiver<NodeId>) {
    let (announcer, stopping) = (shared.announcer.clone(), shared.tasks.stopping());
    shared.tasks.spawn("announcer", async move { announcer.run(stopping, announced).await });
    let (announcer, stopping) = (shared.announcer.clone(), shared.tasks.stopping());
    shared.tasks.spawn("registry-sweep", async move { announcer.sweep_registry(stopping).await });
    let (announcer, stopping) = (shared.announcer.clone(), shared.tasks.stopping());
    shared.tasks.spawn("dht-provider", async move { announcer.run_provider(stopping).await });
}

fn make_dir(dir: &Path) -> Result<(), Fault> {
    crate::rt::create_dir_all(dir).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
            _ => ErrorKind::Io,
        };
        Fault::new(kind, format!("the data directory {} cannot be created: {error}", dir.display()))
    })
}

fn default_data_dir() -> Result<PathBuf, Fault> {
    if let Some(dir) = std::env::var_os(DATA_DIR_VARIABLE).filter(|dir| !dir.is_empty()) {
        return Ok(dir.into());
    }
    let dirs = directories::ProjectDirs::from("", "", "swarmllm");
    let unknown = || Fault::new(ErrorKind::InvalidConfig, "no home directory is known; name a data directory");
    Ok(dirs.ok_or_else(unknown)?.data_local_dir().to_owned())
}

/// Hyper-threads share a core's arithmetic units: threads beyond the cores wait for each other.
fn physical_cores() -> u32 {
    let logical = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cores = sysinfo::System::physical_core_count().unwrap_or(logical).min(logical).max(1);
    (cores as u32).min(MAX_DEFAULT_THREADS)
}

fn half_of_free_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    system.available_memory() / 2
}
