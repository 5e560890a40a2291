//! The handle of a running node.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{ErrorKind, Event, Fault, ModelId, NodeId};
use crate::ledger::Balance;
use crate::model::{Catalog, ModelError};
use crate::node::answer::generation::{self, Generation};
use crate::node::answer::{embedding, planning};
use crate::node::api::error::{ConnectError, EmbedError, GenerateError, ModelActError};
use crate::node::api::findings::{Finding, ImportReport, Subject};
use crate::node::api::report::{Embeddings, ModelInfo, NodeStatus, PeerHolding, PeerStatus, RemovedModel};
use crate::node::api::request::{ChatRequest, EmbedRequest, GenerateRequest, ImportOptions, Parts, ProgressFn};
use crate::node::blocking::blocking;
use crate::node::builder::NodeBuilder;
use crate::node::listing;
use crate::node::models::examine::Examination;
use crate::node::models::fetch::Requester;
use crate::node::models::handle::Models;
use crate::node::models::{fetch, transfer};
use crate::node::node_runtime::NodeRuntime;
use crate::node::shared::SharedState;
use crate::node::swarm::invite::Invite;
#[cfg(feature = "https")]
use crate::node::web::{self, WebSource};
use crate::pipeline::link::request::is_loss;
use crate::pipeline::plan::Plan;
use crate::rt::EventReader;

/// A running node. Clones are handles of the same node; when the last is dropped the node ends without waiting.
///
/// Async methods may be called from any runtime; the others need none.
#[derive(Clone)]
pub struct Node {
    shared: Arc<SharedState>,
    last_handle: Arc<LastHandle>,
}

/// Ends the node with its last handle.
struct LastHandle {
    shared: Arc<SharedState>,
    // Dropped last: this ends the runtime.
    _runtime: NodeRuntime,
}

impl Drop for LastHandle {
    fn drop(&mut self) {
        self.shared.lifecycle.closed.cancel();
        self.shared.tasks.abort();
        self.shared.lifecycle.release_lock();
    }
}

impl Node {
    /// State, for tests.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<SharedState> {
        &self.shared
    }

    pub(crate) fn new(shared: Arc<SharedState>, runtime: NodeRuntime) -> Self {
        let last_handle = Arc::new(LastHandle { shared: shared.clone(), _runtime: runtime });
        Self { shared, last_handle }
    }

    /// A builder with every default.
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    /// The node's identity: its Ed25519 public key.
    pub fn id(&self) -> NodeId {
        self.shared.id
    }

    /// Bound addresses with their `/p2p/` suffix, for other nodes to dial. Empty offline.
    pub fn addresses(&self) -> Vec<String> {
        self.shared.net.as_ref().map(crate::net::NetHandle::addresses).unwrap_or_default()
    }

    /// The runtime that the node runs on, for bindings.
    pub fn runtime(&self) -> tokio::runtime::Handle {
        self.shared.lifecycle.runtime.clone()
    }

    /// Events from now on.
    pub fn events(&self) -> Events {
        Events { reader: self.shared.events.subscribe() }
    }

    /// State and counters of the node.
    pub fn status(&self) -> NodeStatus {
        let shared = &self.shared;
        let engines = shared.models.stages.engines();
        let metrics = shared.metrics.snapshot();
        NodeStatus {
            id: shared.id,
            network: shared.config.network.clone(),
            private: shared.swarm_key.is_some(),
            data_dir: shared.config.data_dir.clone(),
            addresses: self.addresses(),
            engines: engines.iter().map(|engine| engine.name().to_owned()).collect(),
            threads: shared.config.threads,
            accelerators: engines.iter().flat_map(|engine| engine.accelerators()).collect(),
            memory_budget: shared.config.memory,
            memory_used: metrics.memory_used,
            peers_connected: metrics.peers_connected,
            waiting: metrics.waiting,
            sessions: metrics.sessions,
            stages: metrics.stages,
            traffic: metrics.traffic,
            uptime_ms: metrics.uptime.as_millis().try_into().unwrap_or(u64::MAX),
        }
    }

    /// Models held here, wholly or in part, and models of peers. Blocks: the first call examines each held model, which
    /// builds its tokenizer, and every call plans for each. From async code, call it on a blocking thread.
    pub fn models(&self) -> Vec<ModelInfo> {
        listing::all(&self.shared)
    }

    /// Resolves a text to a model, here or at connected peers: an id, at least eight digits of an id, a name in any case, or
    /// the unique beginning of a name. The host's aliases precede names from files and peers. Of several matches it takes
    /// the only one that can run here; requests and plans resolve models in the same way. Methods that change a model (pins,
    /// aliases, [`Node::discard`]) need an unambiguous name. Blocks while it examines ambiguous models the first time.
    pub fn resolve(&self, model: &str) -> Result<ModelId, ModelActError> {
        Ok(fetch::resolve(&self.shared.models, &self.shared.registry, model)?)
    }

    /// Names of known models that a text resembles, nearest first. Empty if the text resolves to a model.
    pub fn nearest_names(&self, model: &str) -> Vec<String> {
        fetch::nearest_names(&self.shared.models, &self.shared.registry, model)
    }

    /// Known peers, connected or not.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let known = self.shared.registry.snapshot();
        let status = |peer: crate::net::PeerInfo| {
            let announcement = known.get(&peer.node);
            let holdings = announcement.map(|known| known.holdings.as_slice()).unwrap_or_default();
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
                agent: announcement.map(|known| known.agent.clone()).or(peer.agent),
                serves: announcement.is_some_and(|known| known.serves),
                free_memory: announcement.map_or(0, |known| known.free_memory),
                holdings: holdings.iter().map(holding).collect(),
                clock_ahead_s: announcement.and_then(|known| known.clock_ahead_s()),
                addresses: peer.addresses,
            }
        };
        self.shared.peers.snapshot().into_iter().map(status).collect()
    }

    /// Credit balance with each peer that computed for this node or was served by it, connected or not.
    pub fn balances(&self) -> Vec<Balance> {
        self.shared.credits.balances()
    }

    /// Dials a peer and waits for its hello. Cancel-safe.
    pub async fn connect(&self, address: &str) -> Result<NodeId, ConnectError> {
        let (shared, address) = (self.shared.clone(), address.to_owned());
        let connected = self.run(async move {
            let offline = || Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network");
            let net = shared.net.as_ref().ok_or_else(offline)?;
            let peer = net.dial(&address).await.map_err(|error| Fault::new(error.kind(), error))?;
            match shared.announcer.hello(peer).await {
                // A connection that was open already may lead to a dead process.
                Err(fault) if is_loss(fault.kind()) || fault.kind() == ErrorKind::Timeout => {
                    net.redial(&address).await.map_err(|error| Fault::new(error.kind(), error))?;
                    shared.announcer.hello(peer).await?;
                }
                greeted => greeted?,
            }
            Ok::<NodeId, Fault>(peer)
        });
        Ok(connected.await?)
    }

    /// An invite to this node's swarm, as one line of text: this node's addresses and, for a private swarm, its secret. The
    /// invite expires after `good_for`, by the clock of the joining machine; its holder may pass it on.
    pub fn invite(&self, good_for: Duration) -> Result<String, Fault> {
        let shared = &self.shared;
        shared.lifecycle.check_open()?;
        let addresses = shared.net.as_ref().map(|net| net.addresses()).unwrap_or_default();
        if addresses.is_empty() {
            let text = "this node has no address to dial; start it with an address to listen on";
            return Err(Fault::new(ErrorKind::PeerUnreachable, text));
        }
        Invite::write(&shared.keypair, &shared.config.network, shared.swarm_key.as_ref(), addresses, good_for)
    }

    /// Cuts a local GGUF into shards and stores those that `options.parts` names. The file is only read. For a model in
    /// several files (`NAME-00001-of-00003.gguf`), `path` is any of them; the others are found beside it. A model that
    /// cannot run here is refused with a report before its weights are read, unless `options.anyway` is set.
    pub async fn import(&self, path: &Path, options: ImportOptions) -> Result<ModelInfo, ModelActError> {
        let (models, path) = (self.shared.models.clone(), path.to_owned());
        let imported = self.run(async move {
            let done = tokio::task::spawn_blocking(move || import(&models, &path, &options)).await;
            done.map_err(|error| ModelActError::from(Fault::new(ErrorKind::Internal, error)))?
        });
        self.imported(imported.await?).await
    }

    /// Imports a GGUF from the web, with the result of [`Node::import`]. Only the ranges needed are fetched. Cancel-safe:
    /// bytes received are kept, and the next import of the file resumes from them.
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

    /// Checks whether a model can run here, from its file's header, as an import does. Stores nothing. Of `options` only
    /// `parts` counts: a node that stores no metadata needs no tokenizer. [`NodeBuilder::examine`] needs no node.
    pub async fn examine(&self, path: &Path, options: ImportOptions) -> Result<ImportReport, ModelActError> {
        let (examination, path) = (Examination::new(self.shared.models.engines(), &options), path.to_owned());
        Ok(self.run(blocking(move || examination.examine_file(&path))).await?)
    }

    /// [`Node::examine`] for a GGUF on the web; only its header is fetched.
    #[cfg(feature = "https")]
    pub async fn examine_url(
        &self,
        source: impl Into<WebSource>,
        options: ImportOptions,
    ) -> Result<ImportReport, ModelActError> {
        let examination = Examination::new(self.shared.models.engines(), &options);
        self.run(web::examine_url(self.shared.throttle.clone(), source.into(), examination)).await
    }

    /// Fetches shards of a model from peers, verified while they stream. Cancel-safe: verified bytes are kept.
    pub async fn pull(
        &self,
        model: &str,
        parts: Parts,
        progress: Option<ProgressFn>,
    ) -> Result<ModelInfo, ModelActError> {
        let (shared, model) = (self.shared.clone(), model.to_owned());
        let pulled =
            self.run(async move { fetch::pull(&shared, &model, &parts, Requester::Host, None, progress).await });
        let id = pulled.await?;
        self.known(id).await
    }

    /// [`Node::pull`] with one more source: a GGUF of the same model on the web, read by ranges. The model must be known
    /// here or to peers. Cancel-safe: complete shards are kept.
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
            let source = web::source(shared.throttle.clone(), source).await?;
            fetch::pull(&shared, &model, &parts, Requester::Host, Some(source), progress).await
        });
        let id = pulled.await?;
        self.known(id).await
    }

    /// Pins or unpins a model. [`Node::make_room`] spares pinned models. Survives a restart.
    pub async fn pin(&self, model: &str, on: bool) -> Result<(), ModelActError> {
        let (catalog, model) = (self.shared.models.catalog.clone(), model.to_owned());
        let pin = move || catalog.pin(catalog.resolve(&model)?, on);
        Ok(self.run(blocking(move || pin().map_err(transfer::fault))).await?)
    }

    /// Adds an alias to a model known here. Refused with [`ErrorKind::AliasTaken`] if another model has it, in any case, or
    /// has it as a name from its file or a peer and this model does not; [`Node::move_alias`] takes it over. Also refused if
    /// it looks like the beginning of an id or contains an invisible character.
    pub async fn add_alias(&self, model: &str, alias: &str) -> Result<ModelInfo, ModelActError> {
        let alias = alias.to_owned();
        self.rename(model, move |catalog, model| catalog.add_alias(model, &alias)).await
    }

    /// Adds an alias to a model known here and takes it from the model that had it.
    pub async fn move_alias(&self, model: &str, alias: &str) -> Result<ModelInfo, ModelActError> {
        let alias = alias.to_owned();
        self.rename(model, move |catalog, model| catalog.move_alias(model, &alias)).await
    }

    async fn rename(
        &self,
        model: &str,
        change: impl FnOnce(&Catalog, ModelId) -> Result<(), ModelError> + Send + 'static,
    ) -> Result<ModelInfo, ModelActError> {
        let (catalog, model) = (self.shared.models.catalog.clone(), model.to_owned());
        let rename = move || catalog.resolve(&model).and_then(|id| change(&catalog, id).map(|()| id));
        let id = self.run(blocking(move || rename().map_err(transfer::fault))).await?;
        self.known(id).await
    }

    /// Removes an alias. Names from files and peers stay.
    pub async fn remove_alias(&self, alias: &str) -> Result<(), ModelActError> {
        let (catalog, alias) = (self.shared.models.catalog.clone(), alias.to_owned());
        let remove = move || catalog.remove_alias(&alias).map_err(transfer::fault);
        Ok(self.run(blocking(remove)).await?)
    }

    /// Removes the least recently used models until `bytes` more fit within `max_disk_bytes`; returns the removed models.
    /// Pinned and loaded models stay. If the rest would not free enough, nothing is removed. Only the host calls this.
    pub async fn make_room(&self, bytes: u64) -> Result<Vec<ModelId>, ModelActError> {
        let models = self.shared.models.clone();
        Ok(self.run(blocking(move || models.make_room(bytes))).await?)
    }

    /// Removes a model: its shards except those that another model needs, its aliases, and its entry in the catalogue. The
    /// imported file and copies at peers stay. Refused if the model is pinned, in use or being fetched, or if the text is
    /// neither a whole name nor an id or at least 8 digits of one.
    pub async fn remove(&self, model: &str) -> Result<RemovedModel, ModelActError> {
        let (models, model) = (self.shared.models.clone(), model.to_owned());
        Ok(self.run(blocking(move || models.remove(&model))).await?)
    }

    /// Deletes shards of a model; the model stays known. Placement (see [`NodeBuilder::place`]) does not fetch them again
    /// until the host pulls or imports them. Shards that another model needs stay. Refused if the model is pinned or one of
    /// the shards is loaded.
    pub async fn discard(&self, model: &str, parts: Parts) -> Result<ModelInfo, ModelActError> {
        let (models, model) = (self.shared.models.clone(), model.to_owned());
        let id = self.run(blocking(move || models.discard(&model, &parts))).await?;
        self.known(id).await
    }

    async fn known(&self, id: ModelId) -> Result<ModelInfo, ModelActError> {
        let shared = self.shared.clone();
        Ok(self.run(blocking(move || listing::known(&shared, id))).await?)
    }

    /// The imported model, with the findings about its header and the memory.
    async fn imported(&self, (id, report): (ModelId, ImportReport)) -> Result<ModelInfo, ModelActError> {
        let known = self.known(id).await?;
        let memory = known.findings.iter().filter(|finding| finding.subject == Subject::Memory);
        let warnings = report.warnings().into_iter().chain(memory.clone().map(Finding::to_string)).collect();
        let findings = report.findings.into_iter().chain(memory.cloned()).collect();
        Ok(ModelInfo { warnings, findings, ..known })
    }

    /// The plan that a request would get now. Opens nothing.
    pub async fn plan(&self, model: &str) -> Result<Plan, GenerateError> {
        let (shared, model) = (self.shared.clone(), model.to_owned());
        self.run(async move { planning::plan_for(&shared, &model).await }).await
    }

    /// The plan if this peer held the whole model, to tell whether a copy there would help. Transfers nothing. Refuses a
    /// peer that is not known to compute for others.
    pub async fn plan_if_held(&self, model: &str, peer: NodeId) -> Result<Plan, GenerateError> {
        let (shared, model) = (self.shared.clone(), model.to_owned());
        self.run(async move { Ok(planning::plan_if_held(&shared, &model, peer).await?) }).await
    }

    /// Continues a conversation with the model's chat template. If all slots are in use, it queues within its deadline,
    /// fairly between [callers](crate::node::GenerateOptions::caller). Refused with [`ErrorKind::Overloaded`] only if the
    /// queue is full. Cancel-safe: dropping it cancels the request.
    pub async fn chat(&self, request: ChatRequest) -> Result<Generation, GenerateError> {
        self.run(generation::chat(self.shared.clone(), request)).await
    }

    /// Continues a text. Queues as [`chat`](Self::chat) does. Cancel-safe: dropping it cancels the request.
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, GenerateError> {
        self.run(generation::generate(self.shared.clone(), request)).await
    }

    /// Embeds texts. Queues as [`chat`](Self::chat) does. Cancel-safe: dropping it cancels the request.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embeddings, EmbedError> {
        Ok(self.run(embedding::embed(self.shared.clone(), request)).await?)
    }

    /// Stops accepting requests, waits up to `deadline` for running answers, then ends every task. Idempotent. Remaining
    /// handles refuse with [`ErrorKind::Closed`].
    pub async fn shutdown(&self, deadline: Duration) {
        if self.shared.lifecycle.is_forked() {
            return;
        }
        let (shared, last_handle) = (self.shared.clone(), self.last_handle.clone());
        // On the node's runtime, which `last_handle` keeps: the caller's runtime may have no timers.
        let done = shared.lifecycle.runtime.clone().spawn(async move {
            drain(&shared, deadline).await;
            shared.lifecycle.closed.cancel();
            shared.credits.pay_all(END_GRACE).await;
            if let Some(net) = &shared.net {
                net.shutdown().await;
            }
            shared.tasks.shutdown(END_GRACE).await;
            shared.credits.close().await;
            shared.models.stages.unload_idle();
            if tokio::time::timeout(END_GRACE, shared.models.stages.unloaded()).await.is_err() {
                tracing::warn!("a stage was still being unloaded at the end of the shutdown");
            }
            shared.lifecycle.release_lock();
            drop(last_handle);
        });
        if let Err(error) = done.await {
            tracing::debug!(%error, "the shutdown was cut short");
        }
    }

    /// Runs work on the node's runtime. Dropping the call aborts the work.
    async fn run<T: Send + 'static, E: From<Fault> + Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, E>> + Send + 'static,
    ) -> Result<T, E> {
        // Checked before spawning: a forked child has the runtime's memory and none of its threads.
        self.shared.lifecycle.check_open()?;
        match AbortOnDrop(self.shared.lifecycle.runtime.spawn(work)).await {
            Ok(done) => done,
            Err(_) => Err(Fault::new(ErrorKind::Closed, "the node has been shut down; start another").into()),
        }
    }
}

/// Time for tasks to end once nothing is served.
const END_GRACE: Duration = Duration::from_secs(2);
/// Interval at which a shutdown checks for open sessions.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Waits until no session is open, up to the deadline.
async fn drain(shared: &SharedState, deadline: Duration) {
    let drained = async {
        let busy = || {
            let (_, sessions) = shared.models.stages.counts();
            sessions > 0 || shared.coordinator.router.coordinated() > 0 || shared.answers.queue.waiting() > 0
        };
        while busy() {
            tokio::time::sleep(DRAIN_POLL).await;
        }
    };
    if tokio::time::timeout(deadline, drained).await.is_err() {
        tracing::warn!("sessions were cut off by the shutdown's deadline");
    }
}

/// A task that is aborted when the future that awaits it is dropped.
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

fn import(models: &Models, path: &Path, options: &ImportOptions) -> Result<(ModelId, ImportReport), ModelActError> {
    let found = models.catalog.open_gguf(path).map_err(transfer::fault)?;
    let examination = Examination::new(models.engines(), options);
    examination.check(found.header())?;
    let (keep, mut report) = (|kind| options.keeps(kind), |progress| options.report_progress(progress));
    let id = found.import(options.name.as_deref(), &keep, &mut report).map_err(transfer::fault)?;
    models.send_known(id);
    Ok((id, examination.report()))
}

/// Events of a node. A reader that lags loses the oldest; [`lost`](Self::lost) counts them.
pub struct Events {
    reader: EventReader,
}

impl Events {
    /// The next event; `None` after the node's end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.reader.next().await
    }

    /// Events lost because the reader lagged.
    pub fn lost(&self) -> u64 {
        self.reader.lost()
    }
}
