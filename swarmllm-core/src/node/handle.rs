//! The handle of a running node.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{ErrorKind, Event, Fault, ModelId, NodeId};
use crate::ledger::Balance;
use crate::model::{Catalog, ModelError};
use crate::net::NetHandle;
use crate::node::answer::generation::{self, Generation};
use crate::node::answer::{embedding, planning};
use crate::node::api::error::{ConnectError, EmbedError, GenerateError, ModelActError};
use crate::node::api::findings::{Finding, ImportReport, Subject};
use crate::node::api::report::{Embeddings, ModelInfo, NodeStatus, PeerHolding, PeerStatus, Removed};
use crate::node::api::request::{ChatRequest, EmbedRequest, GenerateRequest, ImportOptions, Parts, ProgressFn};
use crate::node::blocking::blocking;
use crate::node::builder::NodeBuilder;
use crate::node::listing;
use crate::node::models::examine::Examination;
use crate::node::models::fetch::Asker;
use crate::node::models::{eviction, fetch, transfer};
use crate::node::runtime::Ground;
use crate::node::shared::Shared;
use crate::node::swarm::invite::Invite;
#[cfg(feature = "https")]
use crate::node::web::{self, WebSource};
use crate::pipeline::plan::Plan;
use crate::pipeline::search::is_loss;
use crate::rt::EventReader;

/// A running node. Clones are handles of the same node; when the last is dropped the node ends without waiting.
///
/// All acts may be called from any runtime, or none for those that are not async.
#[derive(Clone)]
pub struct Node {
    shared: Arc<Shared>,
    ending: Arc<Ending>,
}

/// Ends the node with its last handle.
struct Ending {
    shared: Arc<Shared>,
    // Dropped last: it ends the runtime.
    _ground: Ground,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.shared.closed.cancel();
        self.shared.tasks.abort();
        release_lock(&self.shared);
    }
}

fn release_lock(shared: &Shared) {
    shared.lock.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
}

impl Node {
    /// What a test looks into.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn new(shared: Arc<Shared>, ground: Ground) -> Self {
        let ending = Arc::new(Ending { shared: shared.clone(), _ground: ground });
        Self { shared, ending }
    }

    /// Builds a node; every default is in the builder.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// Its identity: its Ed25519 public key.
    pub fn id(&self) -> NodeId {
        self.shared.id
    }

    /// Bound addresses with their `/p2p/` suffix, to be given to others. Empty offline.
    pub fn addresses(&self) -> Vec<String> {
        self.shared.net.as_ref().map(crate::net::NetHandle::addresses).unwrap_or_default()
    }

    /// The runtime that the node runs on, for bindings.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.shared.handle.clone()
    }

    /// What happens from now on.
    pub fn events(&self) -> Events {
        Events { reader: self.shared.events.subscribe() }
    }

    /// The node at a glance.
    pub fn status(&self) -> NodeStatus {
        let shared = &self.shared;
        let table = shared.serving.stages();
        let (stages, sessions) = table.counts();
        let peers = shared.net.as_ref().map(|net| net.peers().snapshot()).unwrap_or_default();
        NodeStatus {
            id: shared.id,
            network: shared.config.network.clone(),
            private: shared.swarm_key.is_some(),
            data_dir: shared.config.data_dir.clone(),
            addresses: self.addresses(),
            engines: table.engines().iter().map(|engine| engine.name().to_owned()).collect(),
            threads: shared.config.threads,
            accelerators: table.engines().iter().flat_map(|engine| engine.accelerators()).collect(),
            memory_budget: shared.config.memory,
            memory_used: table.memory_used(),
            peers_connected: peers.iter().filter(|peer| peer.connected).count() as u32,
            waiting: shared.queue.waiting() as u32,
            sessions,
            stages,
            traffic: shared.net.as_ref().map(NetHandle::traffic).unwrap_or_default(),
            uptime_ms: shared.started.elapsed().as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    /// Models held here, wholly or in part, and models that connected peers hold. Each model that is held is examined the first
    /// time, for which its tokenizer is built, and planned for each time: from async code, call this on a blocking thread.
    pub fn models(&self) -> Vec<ModelInfo> {
        listing::all(&self.shared)
    }

    /// The model that a text means, here or at connected peers: its id or at least eight digits of it, a name without case,
    /// or the unique beginning of a name. The host's own aliases go before names that files and peers suggest. Of several
    /// models that it could mean, the only one that can run here: so are models meant that are asked or planned for, while
    /// what changes a model (pins, aliases, [`Node::discard`]) wants a name of it alone. Examines such models the first time, which
    /// blocks.
    pub fn resolve(&self, model: &str) -> Result<ModelId, ModelActError> {
        Ok(fetch::resolve(&self.shared, model)?)
    }

    /// Names of models known here or at connected peers that a text resembles, nearest first; none where it means a model.
    pub fn nearest_names(&self, model: &str) -> Vec<String> {
        fetch::nearest_names(&self.shared, model)
    }

    /// Peers that are known, connected or not.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let Some(net) = &self.shared.net else { return Vec::new() };
        let known = self.shared.registry.snapshot();
        let status = |peer: crate::net::PeerInfo| {
            let announcement = known.get(&peer.node);
            let holdings = announcement.map(|told| told.holdings.as_slice()).unwrap_or_default();
            let holding = |held: &crate::wire::announce::Holding| PeerHolding {
                model: held.model,
                name: held.names.first().cloned().unwrap_or_else(|| held.model.short()),
                layers: held.layers.clone(),
                head: held.head,
            };
            PeerStatus {
                id: peer.node,
                connected: peer.connected,
                transport: peer.transport.map(|transport| transport.name().to_owned()),
                rtt_ms: peer.rtt.map(|rtt| rtt.as_secs_f64() * 1e3),
                agent: announcement.map(|told| told.agent.clone()).or(peer.agent),
                serves: announcement.is_some_and(|told| told.serves),
                free_memory: announcement.map_or(0, |told| told.free_memory),
                holdings: holdings.iter().map(holding).collect(),
                clock_ahead_s: announcement.and_then(|told| told.clock_ahead_s()),
                addresses: peer.addresses,
            }
        };
        net.peers().snapshot().into_iter().map(status).collect()
    }

    /// How this node stands with each peer that it has computed for, or that has computed for it, connected or not.
    pub fn balances(&self) -> Vec<Balance> {
        self.shared.coordinator.tabs.balances()
    }

    /// Dials a peer and waits until it has said hello. Cancel-safe.
    pub async fn connect(&self, address: &str) -> Result<NodeId, ConnectError> {
        let (shared, address) = (self.shared.clone(), address.to_owned());
        let connected = self.run(async move {
            let offline = || Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network");
            let net = shared.net.as_ref().ok_or_else(offline)?;
            let peer = net.dial(&address).await.map_err(|error| Fault::new(error.kind(), error))?;
            match shared.announcer.hello(peer).await {
                // A connection that stood already may be to a process that is no more.
                Err(fault) if is_loss(fault.kind()) || fault.kind() == ErrorKind::Timeout => {
                    net.dial_anew(&address).await.map_err(|error| Fault::new(error.kind(), error))?;
                    shared.announcer.hello(peer).await?;
                }
                greeted => greeted?,
            }
            Ok::<NodeId, Fault>(peer)
        });
        Ok(connected.await?)
    }

    /// An invite to this node's swarm, as one line of text: where this node may be dialled, and of a private swarm its
    /// secret. It is good for the given time, by the clock of who comes; whoever has it may pass it on.
    pub fn invite(&self, good_for: Duration) -> Result<String, Fault> {
        let shared = &self.shared;
        shared.check_open()?;
        let addresses = shared.net.as_ref().map(|net| net.addresses()).unwrap_or_default();
        if addresses.is_empty() {
            let text =
                "this node listens nowhere, so that nobody could reach it; start it with an address to listen on";
            return Err(Fault::new(ErrorKind::PeerUnreachable, text));
        }
        Invite::write(&shared.keypair, &shared.config.network, shared.swarm_key.as_ref(), addresses, good_for)
    }

    /// Cuts a local GGUF into shards and keeps those that `options.parts` names. The file is only read. Of a model in several
    /// files (`NAME-00001-of-00003.gguf`) any part is given; the others lie beside it and are found. A model that cannot
    /// run here is refused before its weights are read, with a report, unless `options.anyway` is set.
    pub async fn import(&self, path: &Path, options: ImportOptions) -> Result<ModelInfo, ModelActError> {
        let (shared, path) = (self.shared.clone(), path.to_owned());
        let imported = self.run(async move {
            let work = shared.clone();
            let done = tokio::task::spawn_blocking(move || import(&work, &path, &options)).await;
            done.map_err(|error| ModelActError::from(Fault::new(ErrorKind::Internal, error)))?
        });
        self.imported(imported.await?).await
    }

    /// Imports a GGUF from the web as [`Node::import`] does one that lies here, with the same result. What it needs of the
    /// file is fetched by ranges. Cancel-safe: what came is kept, and the next import of the file goes on from there.
    #[cfg(feature = "https")]
    pub async fn import_url(
        &self,
        source: impl Into<WebSource>,
        options: ImportOptions,
    ) -> Result<ModelInfo, ModelActError> {
        let (shared, source) = (self.shared.clone(), source.into());
        let imported = self.run(async move { web::import_url(&shared, source, &options).await });
        self.imported(imported.await?).await
    }

    /// What of a model cannot run here, asked of its file's header as an import does; nothing is kept. Of `options` only
    /// `parts` counts: a node that keeps no metadata needs no tokenizer. [`NodeBuilder::examine`] needs no node.
    pub async fn examine(&self, path: &Path, options: ImportOptions) -> Result<ImportReport, ModelActError> {
        let (examination, path) = (Examination::by(self.shared.engines(), &options), path.to_owned());
        Ok(self.run(blocking(move || examination.look_at_file(&path))).await?)
    }

    /// The same of a GGUF on the web, of which only the header is fetched.
    #[cfg(feature = "https")]
    pub async fn examine_url(
        &self,
        source: impl Into<WebSource>,
        options: ImportOptions,
    ) -> Result<ImportReport, ModelActError> {
        let examination = Examination::by(self.shared.engines(), &options);
        self.run(web::examine_url(self.shared.throttle.clone(), source.into(), examination)).await
    }

    /// Fetches shards of a model from peers, verified while they stream. Cancel-safe: what is verified is kept.
    pub async fn pull(
        &self,
        model: &str,
        parts: Parts,
        progress: Option<ProgressFn>,
    ) -> Result<ModelInfo, ModelActError> {
        let (shared, model) = (self.shared.clone(), model.to_owned());
        let pulled = self.run(async move { fetch::pull(&shared, &model, &parts, Asker::Host, None, progress).await });
        let id = pulled.await?;
        self.known(id).await
    }

    /// The same with one source more: a GGUF of this very model on the web, of which the ranges of those shards are fetched
    /// that it gives. The model itself is known here or from peers. Cancel-safe: shards that are complete are kept.
    #[cfg(feature = "https")]
    pub async fn pull_url(
        &self,
        model: &str,
        parts: Parts,
        source: impl Into<WebSource>,
        progress: Option<ProgressFn>,
    ) -> Result<ModelInfo, ModelActError> {
        let (shared, model, source) = (self.shared.clone(), model.to_owned(), source.into());
        let pulled = self.run(async move {
            let source = web::source(&shared, source).await?;
            fetch::pull(&shared, &model, &parts, Asker::Host, Some(source), progress).await
        });
        let id = pulled.await?;
        self.known(id).await
    }

    /// Whether [`Node::make_room`] leaves a model alone from now on, after a restart too.
    pub async fn pin(&self, model: &str, on: bool) -> Result<(), ModelActError> {
        let (catalog, model) = (self.shared.catalog.clone(), model.to_owned());
        let pin = move || catalog.pin(catalog.resolve(&model)?, on);
        Ok(self.run(blocking(move || pin().map_err(transfer::fault))).await?)
    }

    /// Gives a model that is known here an alias, beside those that it has. Refused with [`ErrorKind::AliasTaken`] where
    /// another model has it, in whatever case, or is called so by its file or a peer, which this one is not;
    /// [`Node::move_alias`] takes it from that one. Refused too where it looks like the beginning of an id, or has a character
    /// that nobody sees.
    pub async fn add_alias(&self, model: &str, alias: &str) -> Result<ModelInfo, ModelActError> {
        let alias = alias.to_owned();
        self.rename(model, move |catalog, model| catalog.add_alias(model, &alias)).await
    }

    /// Gives a model that is known here an alias, and takes it from the model that had it, or was called so.
    pub async fn move_alias(&self, model: &str, alias: &str) -> Result<ModelInfo, ModelActError> {
        let alias = alias.to_owned();
        self.rename(model, move |catalog, model| catalog.move_alias(model, &alias)).await
    }

    async fn rename(
        &self,
        model: &str,
        change: impl FnOnce(&Catalog, ModelId) -> Result<(), ModelError> + Send + 'static,
    ) -> Result<ModelInfo, ModelActError> {
        let (catalog, model) = (self.shared.catalog.clone(), model.to_owned());
        let rename = move || catalog.resolve(&model).and_then(|id| change(&catalog, id).map(|()| id));
        let id = self.run(blocking(move || rename().map_err(transfer::fault))).await?;
        self.known(id).await
    }

    /// Takes an alias from the model that has it. What files and peers call the model stays.
    pub async fn remove_alias(&self, alias: &str) -> Result<(), ModelActError> {
        let (catalog, alias) = (self.shared.catalog.clone(), alias.to_owned());
        let remove = move || catalog.remove_alias(&alias).map_err(transfer::fault);
        Ok(self.run(blocking(remove)).await?)
    }

    /// Removes the models that were used longest ago until `bytes` more have room within `max_disk_bytes`; gives those that
    /// went. Pinned ones stay, and those that are loaded here. Where the others would not make enough room, none goes.
    /// Nothing calls this but the host.
    pub async fn make_room(&self, bytes: u64) -> Result<Vec<ModelId>, ModelActError> {
        let shared = self.shared.clone();
        Ok(self.run(blocking(move || eviction::make_room(&shared, bytes))).await?)
    }

    /// Removes a model from here: its shards but for those that another model needs, its aliases, and what is known of it.
    /// The file that it was imported from stays, and peers that hold it keep it. Refused where it is pinned, something of it
    /// is computed or fetched now, or the text is not a whole name, nor an id or its beginning of 8 digits.
    pub async fn remove(&self, model: &str) -> Result<Removed, ModelActError> {
        let (shared, model) = (self.shared.clone(), model.to_owned());
        Ok(self.run(blocking(move || eviction::remove(&shared, &model))).await?)
    }

    /// Deletes shards of a model here, which stays known. Nobody takes them again (see [`NodeBuilder::place`]) before they
    /// are pulled or imported. Those that another model needs stay for it. Refused where the model is pinned, or one of
    /// them is loaded.
    pub async fn discard(&self, model: &str, parts: Parts) -> Result<ModelInfo, ModelActError> {
        let (shared, model) = (self.shared.clone(), model.to_owned());
        let id = self.run(blocking(move || eviction::discard(&shared, &model, &parts))).await?;
        self.known(id).await
    }

    async fn known(&self, id: ModelId) -> Result<ModelInfo, ModelActError> {
        let shared = self.shared.clone();
        Ok(self.run(blocking(move || listing::known(&shared, id))).await?)
    }

    /// The model that was imported, with what was found of its header, and whether memory is short for it.
    async fn imported(&self, (id, report): (ModelId, ImportReport)) -> Result<ModelInfo, ModelActError> {
        let known = self.known(id).await?;
        let memory = known.findings.iter().filter(|finding| finding.subject == Subject::Memory);
        let warnings = report.warnings().into_iter().chain(memory.clone().map(Finding::to_string)).collect();
        let findings = report.findings.into_iter().chain(memory.cloned()).collect();
        Ok(ModelInfo { warnings, findings, ..known })
    }

    /// Which stages would answer now, without acting.
    pub async fn plan(&self, model: &str) -> Result<Plan, GenerateError> {
        let (shared, model) = (self.shared.clone(), model.to_owned());
        self.act(async move { planning::plan_for(&shared, &model).await }).await
    }

    /// The plan if this peer held the whole model: whether it would help, without acting. Refuses a peer that is not known
    /// to compute for others.
    pub async fn plan_if_held(&self, model: &str, peer: NodeId) -> Result<Plan, GenerateError> {
        let (shared, model) = (self.shared.clone(), model.to_owned());
        self.act(async move { Ok(planning::plan_if_held(&shared, &model, peer).await?) }).await
    }

    /// Continues a conversation, by the model's own template. Where all places are in use it waits for one, for as long as
    /// this call is awaited and the deadline allows, fairly between [callers](crate::node::GenerateOptions::caller); it is refused with
    /// [`ErrorKind::Overloaded`] only where too many wait already. Cancel-safe: dropped, nothing goes on.
    pub async fn chat(&self, request: ChatRequest) -> Result<Generation, GenerateError> {
        self.act(generation::chat(self.shared.clone(), request)).await
    }

    /// Continues a text. Waits for a place as [`chat`](Self::chat) does. Cancel-safe: dropped, nothing goes on.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        self.act(generation::generate(self.shared.clone(), request)).await
    }

    /// Makes vectors of texts. Waits for a place as [`chat`](Self::chat) does. Cancel-safe: dropped, nothing goes on.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, EmbedError> {
        Ok(self.run(embedding::embed(self.shared.clone(), request)).await?)
    }

    /// Stops accepting, waits for answers under way until `deadline` has passed, then ends everything. Idempotent.
    /// Handles that are left refuse with [`ErrorKind::Closed`].
    pub async fn shutdown(&self, deadline: Duration) {
        if self.shared.is_forked() {
            return;
        }
        let (shared, ending) = (self.shared.clone(), self.ending.clone());
        // On the node's own runtime, which `ending` keeps: the caller may use another, or none with timers.
        let done = shared.handle.clone().spawn(async move {
            drain(&shared, deadline).await;
            shared.closed.cancel();
            if let Some(settler) = &shared.settler {
                let _ = tokio::time::timeout(END_GRACE, settler.pay_all()).await;
            }
            if let Some(net) = &shared.net {
                net.shutdown().await;
            }
            shared.tasks.shutdown(END_GRACE).await;
            if let Some(settler) = &shared.settler {
                settler.close().await;
            }
            shared.serving.stages().unload_idle();
            if tokio::time::timeout(END_GRACE, shared.serving.stages().unloaded()).await.is_err() {
                tracing::warn!("a stage was still being unloaded at the end of the shutdown");
            }
            release_lock(&shared);
            drop(ending);
        });
        if let Err(error) = done.await {
            tracing::debug!(%error, "the shutdown was cut short");
        }
    }

    /// Runs work on the node's runtime; dropping the call drops the work.
    async fn run<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E> {
        // Before anything is spawned: a forked child has the runtime's memory, but none of its threads.
        self.shared.check_open()?;
        match AbortOnDrop(self.shared.handle.spawn(work)).await {
            Ok(done) => done,
            Err(_) => Err(Fault::new(ErrorKind::Closed, "the node has been shut down; start another").into()),
        }
    }

    async fn act<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, GenerateError>> + Send + 'static,
    ) -> Result<T, GenerateError> {
        self.shared.check_open()?;
        match AbortOnDrop(self.shared.handle.spawn(work)).await {
            Ok(done) => done,
            Err(_) => Err(Fault::new(ErrorKind::Closed, "the node has been shut down; start another").into()),
        }
    }
}

/// Time that tasks get to leave once nothing is served any more.
const END_GRACE: Duration = Duration::from_secs(2);
/// How often a shutdown looks whether sessions are left.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Waits until no session is left, or the deadline has passed.
async fn drain(shared: &Shared, deadline: Duration) {
    let drained = async {
        let busy = || {
            let (_, sessions) = shared.serving.stages().counts();
            sessions > 0 || shared.coordinator.links.coordinated() > 0 || shared.queue.waiting() > 0
        };
        while busy() {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    };
    if tokio::time::timeout(deadline, drained).await.is_err() {
        tracing::warn!("sessions were cut off by the shutdown's deadline");
    }
}

/// A task that is aborted when its waiter is dropped.
pub(crate) struct AbortOnDrop<T>(pub tokio::task::JoinHandle<T>);

impl<T> Future for AbortOnDrop<T> {
    type Output = Result<T, tokio::task::JoinError>;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        std::pin::Pin::new(&mut self.0).poll(context)
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn import(shared: &Shared, path: &Path, options: &ImportOptions) -> Result<(ModelId, ImportReport), ModelActError> {
    let found = shared.catalog.open_gguf(path).map_err(transfer::fault)?;
    let examination = Examination::by(shared.engines(), options);
    examination.check(found.header())?;
    let (keep, mut tell) = (|kind| options.keeps(kind), |progress| options.tell(progress));
    let id = found.import(options.name.as_deref(), &keep, &mut tell).map_err(transfer::fault)?;
    shared.tell_known(id);
    Ok((id, examination.report()))
}

/// The node's news. A reader that lags loses the oldest and is told how many.
pub struct Events {
    reader: EventReader,
}

impl Events {
    /// The next event; `None` when the node is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.reader.next().await
    }

    /// Events lost so far because the reader lagged.
    pub fn lost(&self) -> u64 {
        self.reader.lost()
    }
}
