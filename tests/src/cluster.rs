//! Swarms of nodes in this process.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use swarmllm_core::base::{LayerRange, ModelId};
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{
    Completion, GenerateError, GenerateOptions, GenerateRequest, Generation, ImportOptions, Node, NodeBuilder, Parts,
    Prompt,
};
use tempfile::TempDir;

use crate::models::TestModel;

/// Compute threads of every node and of the reference in tests.
pub const THREADS: u32 = 1;
/// Context length of sessions in tests; the longest prompt and its answer fit.
pub const CONTEXT: u32 = 2048;
/// Time for a node to shut down.
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// Transport between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP with Noise and Yamux.
    Tcp,
    /// QUIC.
    Quic,
}

impl Transport {
    /// All transports.
    pub const ALL: [Transport; 2] = [Transport::Tcp, Transport::Quic];

    /// The name in `PeerStatus::transport`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
        }
    }

    /// A listen address on loopback with a free port.
    pub fn listen(self) -> &'static str {
        match self {
            Self::Tcp => "/ip4/127.0.0.1/tcp/0",
            Self::Quic => "/ip4/127.0.0.1/udp/0/quic-v1",
        }
    }
}

/// A unique swarm name, so that concurrent tests do not connect.
pub fn unique_network() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A node on loopback without discovery.
pub fn builder(data_dir: &Path, network: &str, transport: Transport) -> NodeBuilder {
    Node::builder()
        .data_dir(data_dir)
        .network(network)
        .mdns(false)
        .listen(vec![transport.listen().to_owned()])
        .threads(THREADS)
        .context(CONTEXT)
        .engine("llama.cpp")
}

/// A node and its data directory, which is removed on drop.
pub struct Member {
    /// The node.
    pub node: Node,
    /// Its data directory.
    pub dir: TempDir,
}

impl Member {
    /// Starts a node with a new directory.
    pub async fn start(network: &str, transport: Transport) -> Member {
        Self::start_on(TempDir::new().expect("a temporary directory"), network, transport).await
    }

    /// Starts a node with this directory.
    pub async fn start_on(dir: TempDir, network: &str, transport: Transport) -> Member {
        let node = builder(dir.path(), network, transport).start().await.expect("a node starts");
        Member { node, dir }
    }

    /// Imports parts of a GGUF.
    pub async fn import(&self, gguf: &Path, name: &str, parts: Parts) -> ModelId {
        let options =
            ImportOptions { name: Some(name.to_owned()), parts: Some(vec![parts]), ..ImportOptions::default() };
        self.node.import(gguf, options).await.expect("a sound GGUF is imported").id
    }

    /// Starts a host of the whole model.
    pub async fn host(network: &str, model: TestModel) -> (Member, ModelId) {
        let host = Self::start(network, Transport::Tcp).await;
        let id = host.import(&model.path(), model.name(), Parts::All).await;
        (host, id)
    }

    /// Starts a host of these layers, with the head if they include the last one, and connects `asker` to it.
    pub async fn stage_host(network: &str, model: TestModel, layers: LayerRange, asker: &Member) -> Member {
        let host = Self::start(network, Transport::Tcp).await;
        let head = layers.end == model.layers();
        host.import(&model.path(), model.name(), Parts::Stage { layers, head }).await;
        join(&asker.node, &host.node.addresses(), Transport::Tcp).await;
        host
    }

    /// Starts a coordinator without layers, connects it to `host`, which has the whole model, and waits for a plan.
    pub async fn coordinator(network: &str, model: TestModel, host: &Member) -> Member {
        let asker = Self::start(network, Transport::Tcp).await;
        let id = asker.import(&model.path(), model.name(), Parts::Coordinator).await;
        join(&asker.node, &host.node.addresses(), Transport::Tcp).await;
        await_plan(&asker.node, id).await;
        asker
    }

    /// Stops the node and keeps its directory.
    pub async fn stop(self) -> TempDir {
        self.node.shutdown(SHUTDOWN_DEADLINE).await;
        self.dir
    }
}

/// A host of the whole model, and a coordinator without layers.
pub async fn host_and_coordinator(network: &str, model: TestModel) -> (Member, Member, ModelId) {
    let (host, id) = Member::host(network, model).await;
    let asker = Member::coordinator(network, model, &host).await;
    (host, asker, id)
}

/// Stops these nodes one by one.
pub async fn stop_all(members: impl IntoIterator<Item = Member>) {
    for member in members {
        member.stop().await;
    }
}

/// Parts of a model for stage `index` of `cut`; the last stage has the head.
pub fn stage_parts(cut: &[LayerRange], index: usize) -> Parts {
    Parts::Stage { layers: cut[index], head: index + 1 == cut.len() }
}

/// A coordinator without layers, and one host per stage.
pub struct Cluster {
    /// Stores metadata and embedding.
    pub coordinator: Member,
    /// Each stores the layers of its stage; the last also the head.
    pub hosts: Vec<Member>,
    /// The model.
    pub model: ModelId,
    /// The layers of each host.
    pub cut: Vec<LayerRange>,
}

impl Cluster {
    /// Starts a swarm with exactly one possible route.
    pub async fn start(model: TestModel, transport: Transport, stages: u32) -> Cluster {
        Self::start_from(&model.path(), model.name(), model.cut(stages), transport).await
    }

    /// Like [`start`](Self::start), with this GGUF.
    pub async fn start_from(gguf: &Path, name: &str, cut: Vec<LayerRange>, transport: Transport) -> Cluster {
        let network = unique_network();
        let coordinator = Member::start(&network, transport).await;
        let model = coordinator.import(gguf, name, Parts::Coordinator).await;
        let mut hosts = Vec::new();
        for index in 0..cut.len() {
            let host = Member::start(&network, transport).await;
            assert_eq!(host.import(gguf, name, stage_parts(&cut, index)).await, model, "one file has one id");
            join(&coordinator.node, &host.node.addresses(), transport).await;
            hosts.push(host);
        }
        let cluster = Cluster { coordinator, hosts, model, cut };
        await_plan(&cluster.coordinator.node, model).await;
        cluster
    }

    /// The coordinator's node.
    pub fn node(&self) -> &Node {
        &self.coordinator.node
    }

    /// Every member.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.coordinator).chain(&self.hosts)
    }

    /// Stops all members.
    pub async fn stop(self) {
        stop_all(self.hosts.into_iter().chain([self.coordinator])).await;
    }
}

/// Connects a node to a peer and waits for a connection over this transport.
pub async fn join(node: &Node, addresses: &[String], transport: Transport) {
    let address = addresses.first().expect("a node listens");
    let peer = crate::in_time("connecting", node.connect(address)).await.expect("a peer on loopback is reached");
    let carried = || {
        let status = node.peers().into_iter().find(|status| status.id == peer);
        status.is_some_and(|status| status.connected && status.transport.as_deref() == Some(transport.name()))
    };
    crate::eventually("the peer is connected", carried).await;
}

/// Waits until the node can plan a route.
pub async fn await_plan(node: &Node, model: ModelId) {
    let ready = || node.models().iter().any(|info| info.id == model && info.ready);
    crate::eventually("every layer of the model has a holder", ready).await;
}

/// Options of an exact greedy answer.
pub fn greedy(tokens: u32) -> GenerateOptions {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    GenerateOptions { max_tokens: Some(tokens), sampling, exact: true, ..GenerateOptions::default() }
}

/// Starts a greedy continuation of a text.
pub async fn ask(node: &Node, model: ModelId, text: &str, tokens: u32) -> Result<Generation, GenerateError> {
    let prompt = Prompt::Text(text.to_owned());
    node.generate(GenerateRequest { model: model.to_string(), prompt, options: greedy(tokens) }).await
}

/// Generates a greedy continuation to its end.
pub async fn answer(node: &Node, model: ModelId, text: &str, tokens: u32) -> Result<Completion, GenerateError> {
    crate::in_time("an answer", async { ask(node, model, text, tokens).await?.finish().await }).await
}
