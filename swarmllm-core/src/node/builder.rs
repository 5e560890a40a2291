//! Builds and starts a node. All defaults live here.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, NodeId};
use crate::engine::{self, Engine, KvCache, StageConfig};
use crate::identity::{Keypair, keyfile};
use crate::ledger::Ledger;
use crate::model::catalog::Catalog;
use crate::model::chat::ChatTemplate;
use crate::net::{self, Incoming, NetConfig, NetHandle};
use crate::node::answer::constraint::Guides;
use crate::node::answer::planners::Planners;
use crate::node::answer::queue::Queue;
use crate::node::answer::readiness::Judged;
use crate::node::answer::reading::Readers;
use crate::node::api::error::{ModelActError, StartError};
use crate::node::api::findings::ImportReport;
use crate::node::api::request::ImportOptions;
use crate::node::handle::Node;
use crate::node::inbound::dispatcher;
use crate::node::models::examine::{Engines, Examination, Reports};
use crate::node::models::loaded::LoadedModels;
use crate::node::models::placement;
use crate::node::runtime::Ground;
use crate::node::shared::{Config, Shared};
use crate::node::swarm::announce::Announcer;
use crate::node::swarm::directory::Registry;
use crate::node::swarm::greeting;
use crate::node::swarm::membership::{self, Membership, Wish};
use crate::node::swarm::peer_exchange::Exchange;
use crate::node::swarm::{peer_cache, speed_cache};
#[cfg(feature = "https")]
use crate::node::web::{self, Throttle, WebSource};
use crate::pipeline::job::Coordinator;
use crate::pipeline::links::Links;
use crate::pipeline::prefix::Namer;
use crate::pipeline::serve::Serving;
use crate::pipeline::settle::Settler;
use crate::pipeline::speeds::Speeds;
use crate::pipeline::stages::{StageLimits, StageTable};
use crate::rt::{DirLock, EventBus, TaskSet};
use crate::store::Store;

/// Overrides where a node keeps its files, where the host does not say.
pub const DATA_DIR_VARIABLE: &str = "SWARMLLM_DATA_DIR";
/// The swarm that a node belongs to where the host does not say.
const DEFAULT_NETWORK: &str = "main";
/// TCP and QUIC on ephemeral ports of every interface.
const DEFAULT_LISTEN: [&str; 2] = ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"];
/// Positions of a session where none are set, the model has as many, and memory neither allows more nor asks for fewer.
/// SmolLM2-135M takes 22.5 KiB of KV a token, so `4 * 4096` of them take 360 MiB.
const USUAL_CONTEXT: u32 = 4096;
/// Sessions of a stage at once.
const DEFAULT_SESSIONS: u32 = 4;
/// Most sessions of a stage: they are computed together, and llama.cpp gives logits of 64 rows at once.
pub const MAX_SESSIONS: u32 = 64;
/// Threads that a node does not go beyond by itself.
const MAX_DEFAULT_THREADS: u32 = 64;

/// How a node meets others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// No network at all.
    Offline,
    /// LAN discovery, ephemeral ports, serves peers.
    #[default]
    Lan,
    /// As `Lan` without LAN discovery: for a node that others reach by its addresses.
    Public,
}

/// Builds a node. What is not set has the default that its method names.
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
    kv: KvCache,
    credit_limit: Option<u64>,
    place: Option<u64>,
    engine: Option<String>,
    chat_template: Option<String>,
    engines: Option<Vec<Arc<dyn Engine>>>,
    runtime: Option<Handle>,
}

impl NodeBuilder {
    /// Directory for key, models and store. Default: `SWARMLLM_DATA_DIR`, else the OS's place for application data.
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.data_dir = Some(dir.into());
        self
    }

    /// See [`Preset`]. Default `Lan`.
    pub fn preset(mut self, preset: Preset) -> Self {
        self.preset = preset;
        self
    }

    /// Name of the swarm: 1 to 64 of `a-z 0-9 - _ .`; part of every protocol name, so that swarms cannot mix. Default
    /// `main`.
    pub fn network(mut self, name: impl Into<String>) -> Self {
        self.network = Some(name.into());
        self
    }

    /// Whether the swarm is to be private: its nodes share a secret, and who has not got it completes no handshake. The
    /// first node founds the swarm and keeps its secret in the data directory, others come in by an
    /// [invite](crate::node::Node::invite). A private swarm speaks TCP only. Without a name it gets one. Default: false;
    /// a data directory that belongs to a private swarm stays in it.
    pub fn private(mut self, on: bool) -> Self {
        self.private = on;
        self
    }

    /// Enters the swarm of an invite, and stays in it: the data directory remembers. Default: none.
    pub fn join(mut self, invite: impl Into<String>) -> Self {
        self.invite = Some(invite.into());
        self
    }

    /// Addresses to listen on, as multiaddr text. Default: TCP and QUIC on ephemeral ports of every interface.
    pub fn listen(mut self, addresses: Vec<String>) -> Self {
        self.listen = Some(addresses);
        self
    }

    /// Peers to dial at the start and again when lost, as multiaddr text with `/p2p/`. Default: none.
    pub fn bootstrap(mut self, addresses: Vec<String>) -> Self {
        self.bootstrap = addresses;
        self
    }

    /// Whether to find peers on the LAN by mDNS. Default: true in `Lan`.
    pub fn mdns(mut self, on: bool) -> Self {
        self.mdns = Some(on);
        self
    }

    /// Whether to carry circuits for peers that nobody can connect to, and to try for peers whether they can be reached.
    /// Those make use of it that have this node as a bootstrap peer; it cannot read what it carries. It should be one that
    /// everybody can connect to. Default: false.
    pub fn relay(mut self, on: bool) -> Self {
        self.relay = on;
        self
    }

    /// Addresses under which others reach this node although it does not listen there, as multiaddr text: a forwarded port,
    /// a name. Default: none; what routers and peers tell is found out.
    pub fn external(mut self, addresses: Vec<String>) -> Self {
        self.external = addresses;
        self
    }

    /// Whether to ask the router to forward this node's ports, by UPnP. Default: false.
    pub fn upnp(mut self, on: bool) -> Self {
        self.upnp = on;
        self
    }

    /// Most bytes a second that may go over the wire, both ways together, in all that this node does: answers, shards,
    /// and what it carries for others. Default: no ceiling.
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

    /// Layers that accelerators compute, of all stages here together; a head counts as one. Default: all. Without effect
    /// where the build has no feature for the machine's accelerator (`cuda`, `metal`, `vulkan`).
    pub fn gpu_layers(mut self, layers: u32) -> Self {
        self.gpu_layers = Some(layers);
        self
    }

    /// Whether to keep this machine's cores awake while steps come to it from afar: a core that sleeps between two tokens
    /// wakes late at each of the dozen times that a token waits for somebody. What a way of 5 to 20 ms costs a token beyond
    /// itself is then a fraction; the price is power, as if the machine computed all the time. The loops that do it give way
    /// to all else on the machine, but where a container's share of it is limited they use that up: not there. On Linux only;
    /// without effect elsewhere. Default: false.
    pub fn keep_awake(mut self, on: bool) -> Self {
        self.keep_awake = on;
        self
    }

    /// Bytes of memory for weights and KV of all stages. Default: half of what is free at the start.
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// Most bytes that shards may take on the disk, those under way included. An import, a download or a pull that would
    /// go beyond is refused before it begins. Default: no bound.
    pub fn max_disk_bytes(mut self, bytes: u64) -> Self {
        self.max_disk_bytes = Some(bytes);
        self
    }

    /// Bytes a second at which all downloads from the web together come at most; `None` is as fast as they come. Peers
    /// are not bound by it. Default `None`.
    #[cfg(feature = "https")]
    pub fn download_rate(mut self, bytes_a_second: Option<NonZeroU64>) -> Self {
        self.download_rate = bytes_a_second;
        self
    }

    /// Positions that a session may have, prompt and answer together; a model never has more than its own. Default: the
    /// model's own as far as the memory allows: keys and values of all sessions of a stage take at most half of what its
    /// weights leave free when it is loaded, but no less than 4,096 positions each take; where those do not fit, as many as
    /// do, and 512 at least.
    pub fn context(mut self, tokens: u32) -> Self {
        self.context = Some(tokens);
        self
    }

    /// Sessions that a stage here has room for at once, 1 to 64. Each takes KV for the whole context. Default 4.
    pub fn sessions(mut self, sessions: u32) -> Self {
        self.sessions = Some(sessions);
        self
    }

    /// How stages here keep keys and values. Default: [`KvCache::Full`]; [`KvCache::Q8`] takes about half of the memory, and
    /// refuses answers that are to be exact.
    pub fn kv(mut self, kv: KvCache) -> Self {
        self.kv = kv;
        self
    }

    /// Credits that a peer may owe this node before it is not computed for any more; one is a million parameters applied to
    /// one token. Default: accounts are kept and nobody is refused, as among machines of one owner.
    pub fn credit_limit(mut self, credits: u64) -> Self {
        self.credit_limit = Some(credits);
        self
    }

    /// Lets the node fetch by itself what its swarm is short of: layers that too few compute, of models whose manifest is
    /// here, for as long as all models here take at most so many bytes of disk, and as far as a stage of them fits into the
    /// memory. For nodes that serve. Default: nothing is fetched unasked.
    pub fn place(mut self, disk: u64) -> Self {
        self.place = Some(disk);
        self
    }

    /// Engine to use: `llama.cpp` or `candle`. Default: the best that serves the model.
    pub fn engine(mut self, name: impl Into<String>) -> Self {
        self.engine = Some(name.into());
        self
    }

    /// A chat template (Jinja) in the place of those that models have, unless a request brings one of its own. At most
    /// [`MAX_TEMPLATE`](super::MAX_TEMPLATE) bytes; one that cannot be compiled is refused at the start. Default: each
    /// model's own.
    pub fn chat_template(mut self, source: impl Into<String>) -> Self {
        self.chat_template = Some(source.into());
        self
    }

    /// Engines to use instead of the built-in ones, best first: for hosts with an engine of their own, and for tests.
    pub fn engines(mut self, engines: Vec<Arc<dyn Engine>>) -> Self {
        self.engines = Some(engines);
        self
    }

    /// Runs on this runtime. Default: one of its own, with two threads.
    pub fn runtime(mut self, handle: Handle) -> Self {
        self.runtime = Some(handle);
        self
    }

    /// Starts the node: locks the data directory, loads or makes the key, opens catalogue and store, and listens.
    /// Cancel-safe: dropped, nothing stays.
    pub async fn start(self) -> Result<Node, StartError> {
        let ground = self.ground()?;
        let (handle, started) = (ground.handle().clone(), self.start_on(ground.handle().clone()));
        let joined = handle.spawn(started).await;
        let shared = joined.map_err(|error| Fault::new(ErrorKind::Internal, error))??;
        Ok(Node::new(shared, ground))
    }

    /// Starts the node from a thread that is not in a runtime.
    pub fn start_blocking(self) -> Result<Node, StartError> {
        if Handle::try_current().is_ok() {
            let text = "start_blocking was called inside a Tokio runtime; await start instead";
            return Err(Fault::new(ErrorKind::InvalidArgument, text).into());
        }
        let ground = self.ground()?;
        let shared = ground.handle().block_on(self.start_on(ground.handle().clone()))?;
        Ok(Node::new(shared, ground))
    }

    /// What of a model cannot run on such a node, as [`Node::examine`] finds it, with no node and no data directory.
    pub async fn examine(self, path: &Path, options: ImportOptions) -> Result<ImportReport, ModelActError> {
        let (ground, examination, path) = (self.ground()?, self.examination(&options), path.to_owned());
        let looked = ground.handle().spawn_blocking(move || examination.look_at_file(&path)).await;
        Ok(looked.map_err(|error| Fault::new(ErrorKind::Internal, error))??)
    }

    /// The same of a GGUF on the web, of which only the header is fetched. Cancel-safe.
    #[cfg(feature = "https")]
    pub async fn examine_url(
        self,
        source: impl Into<WebSource>,
        options: ImportOptions,
    ) -> Result<ImportReport, ModelActError> {
        let (ground, examination) = (self.ground()?, self.examination(&options));
        let throttle = Arc::new(Throttle::new(self.download_rate));
        let work = ground.handle().spawn(web::examine_url(throttle, source.into(), examination));
        crate::node::handle::AbortOnDrop(work).await.map_err(|error| Fault::new(ErrorKind::Internal, error))?
    }

    fn examination(&self, options: &ImportOptions) -> Examination {
        let all = self.engines.clone().unwrap_or_else(engine::built_in);
        Examination::by(Engines { all, wanted: self.engine.clone() }, options)
    }

    fn ground(&self) -> Result<Ground, Fault> {
        Ground::new(self.runtime.clone())
            .map_err(|error| Fault::new(ErrorKind::Io, format!("no runtime could be started: {error}")))
    }

    async fn start_on(self, handle: Handle) -> Result<Arc<Shared>, Fault> {
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
        opened: Opened,
        tasks: TaskSet,
        events: EventBus,
        net: Option<NetHandle>,
    ) -> Arc<Shared> {
        let Opened { config, membership, keypair, catalog, lock, namer, ledger, speeds, .. } = opened;
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
        let links = Links::new(id, net.clone(), tasks.clone());
        let registry = Arc::new(Registry::new());
        links.set_announced(Box::new({
            let registry = registry.clone();
            move |node| registry.snapshot().get(&node).map(|at| (at.addresses.clone(), at.via())).unwrap_or_default()
        }));
        let tabs = ledger.tabs().clone();
        let serving = Serving::new(stages.clone(), links.clone(), tabs.clone(), tasks.clone());
        let settler = net.clone().map(|net| Settler::new(ledger, net));
        let coordinator = Coordinator {
            links,
            serving: serving.clone(),
            net: net.clone(),
            tasks: tasks.clone(),
            namer,
            overlap: Arc::default(),
            lessons: Arc::default(),
            speeds,
            failures: Arc::default(),
            tabs,
            events: events.clone(),
        };
        let announcer = Announcer::new(config.serve, catalog.clone(), stages, registry.clone(), net.clone());
        Arc::new(Shared {
            id,
            keypair,
            swarm_key: membership.key,
            config,
            catalog,
            registry,
            serving,
            coordinator,
            settler,
            net,
            models: LoadedModels::default(),
            reports: Reports::default(),
            judged: Judged::default(),
            planners: Planners::default(),
            guides: Guides::default(),
            readers: Readers::default(),
            queue: Queue::default(),
            announcer: Arc::new(announcer),
            exchange: Exchange::new(),
            greetings: Arc::new(Semaphore::new(greeting::TURNS)),
            #[cfg(feature = "https")]
            throttle: Arc::new(Throttle::new(self.download_rate)),
            events,
            tasks,
            handle,
            closed: CancellationToken::new(),
            started: Instant::now(),
            process: std::process::id(),
            lock: Mutex::new(Some(lock)),
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

    /// Everything that touches the disk.
    fn open(&self) -> Result<Opened, Fault> {
        let mut config = self.config()?;
        let dir = &config.data_dir;
        make_dir(dir)?;
        let lock = DirLock::acquire(dir).map_err(|error| Fault::new(error.kind(), error))?;
        let wish = Wish { network: self.network.as_deref(), private: self.private, invite: self.invite.as_deref() };
        let membership = membership::settle(dir, &wish, DEFAULT_NETWORK)?;
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
        let namer = Namer::new(secret);
        Ok(Opened { config, membership, keypair, catalog, store, known, ledger, speeds, lock, namer })
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

/// What was opened on disk.
struct Opened {
    config: Config,
    membership: Membership,
    keypair: Arc<Keypair>,
    catalog: Catalog,
    store: Store,
    /// Where peers were that the store knows.
    known: Vec<String>,
    ledger: Ledger,
    /// How fast hosts were, which the store knows.
    speeds: Arc<Speeds>,
    lock: DirLock,
    namer: Namer,
}

fn spawn(shared: &Arc<Shared>, incoming: Option<Incoming>, store: Store) {
    shared.tasks.spawn("speed-cache", speed_cache::run(shared.clone(), store.clone()));
    let (Some(net), Some(incoming)) = (shared.net.clone(), incoming) else { return };
    // Subscribed before the first task runs, so that no peer is missed.
    let (connects, disconnects, announced) = (net.connects(), net.disconnects(), net.connects());
    let cache = peer_cache::run(shared.clone(), store, net.clone(), net.connects());
    shared.tasks.spawn("peer-cache", cache);
    let (settling, stopping) = (shared.clone(), shared.tasks.stopping());
    shared.tasks.spawn("settler", async move {
        if let Some(settler) = &settling.settler {
            settler.run(stopping).await;
        }
    });
    shared.tasks.spawn("inbound", dispatcher::run(shared.clone(), incoming));
    shared.tasks.spawn("peers", dispatcher::watch_peers(shared.clone(), net, connects, disconnects));
    spawn_announcer(shared, announced);
    if let Some(disk) = shared.config.place.filter(|_| shared.config.serve) {
        shared.tasks.spawn("placer", placement::run(shared.clone(), disk));
    }
}

fn spawn_announcer(shared: &Shared, announced: broadcast::Receiver<NodeId>) {
    let (announcer, stopping) = (shared.announcer.clone(), shared.tasks.stopping());
    shared.tasks.spawn("announcer", async move { announcer.run(stopping, announced).await });
    let (announcer, stopping) = (shared.announcer.clone(), shared.tasks.stopping());
    shared.tasks.spawn("forgetting", async move { announcer.forget_ended(stopping).await });
    let (announcer, stopping) = (shared.announcer.clone(), shared.tasks.stopping());
    shared.tasks.spawn("provider", async move { announcer.keep_provided(stopping).await });
}

fn make_dir(dir: &Path) -> Result<(), Fault> {
    crate::rt::create_dir_all(dir).map_err(|error| {
        let kind = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
            _ => ErrorKind::Io,
        };
        Fault::new(kind, format!("the data directory {} cannot be made: {error}", dir.display()))
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

/// Hyper-threads share a core's arithmetic: more threads than cores only wait for each other.
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
