//! Swarms of nodes inside this process.

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
/// Positions of a session in tests: the longest prompt and its answer fit.
pub const CONTEXT: u32 = 2048;
/// Time that a node has to close.
pub const CLOSING: Duration = Duration::from_secs(10);

/// What carries frames between nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// TCP with Noise and Yamux.
    Tcp,
    /// QUIC.
    Quic,
}

impl Carrier {
    /// Both.
    pub const ALL: [Carrier; 2] = [Carrier::Tcp, Carrier::Quic];

    /// As in `PeerStatus::transport`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
        }
    }

    /// An ephemeral port of the loopback interface.
    pub fn listen(self) -> &'static str {
        match self {
            Self::Tcp => "/ip4/127.0.0.1/tcp/0",
            Self::Quic => "/ip4/127.0.0.1/udp/0/quic-v1",
        }
    }
}

/// A swarm name that nobody else uses, so that tests that run side by side cannot meet.
pub fn lonely_network() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A node on loopback that finds nobody by itself.
pub fn builder(data_dir: &Path, network: &str, carrier: Carrier) -> NodeBuilder {
    Node::builder()
        .data_dir(data_dir)
        .network(network)
        .mdns(false)
        .listen(vec![carrier.listen().to_owned()])
        .threads(THREADS)
        .context(CONTEXT)
        .engine("llama.cpp")
}

/// A node and its data directory, which goes when the member is dropped.
pub struct Member {
    /// The node.
    pub node: Node,
    /// Its data directory.
    pub dir: TempDir,
}

impl Member {
    /// Starts a node on a fresh directory.
    pub async fn start(network: &str, carrier: Carrier) -> Member {
        Self::start_on(TempDir::new().expect("a temporary directory"), network, carrier).await
    }

    /// Starts a node on this directory.
    pub async fn start_on(dir: TempDir, network: &str, carrier: Carrier) -> Member {
        let node = builder(dir.path(), network, carrier).start().await.expect("a node starts");
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
        let host = Self::start(network, Carrier::Tcp).await;
        let id = host.import(&model.path(), model.name(), Parts::All).await;
        (host, id)
    }

    /// Starts a host of these layers, the head with the last of them, that `asker` is connected to.
    pub async fn stage_host(network: &str, model: TestModel, layers: LayerRange, asker: &Member) -> Member {
        let host = Self::start(network, Carrier::Tcp).await;
        let head = layers.end == model.layers();
        host.import(&model.path(), model.name(), Parts::Stage { layers, head }).await;
        join(&asker.node, &host.node.addresses(), Carrier::Tcp).await;
        host
    }

    /// Starts a node that can only ask `host`, which holds the whole model, and waits until it knows that.
    pub async fn asker(network: &str, model: TestModel, host: &Member) -> Member {
        let asker = Self::start(network, Carrier::Tcp).await;
        let id = asker.import(&model.path(), model.name(), Parts::Coordinator).await;
        join(&asker.node, &host.node.addresses(), Carrier::Tcp).await;
        await_plan(&asker.node, id).await;
        asker
    }

    /// Stops the node and keeps its directory.
    pub async fn stop(self) -> TempDir {
        self.node.shutdown(CLOSING).await;
        self.dir
    }
}

/// A host of the whole model, and a node that can only ask it.
pub async fn host_and_asker(network: &str, model: TestModel) -> (Member, Member, ModelId) {
    let (host, id) = Member::host(network, model).await;
    let asker = Member::asker(network, model, &host).await;
    (host, asker, id)
}

/// Stops these nodes, one after the other.
pub async fn stop_all(members: impl IntoIterator<Item = Member>) {
    for member in members {
        member.stop().await;
    }
}

/// Parts of a model for the stage `index` of `cut`: the last has the head.
pub fn stage_parts(cut: &[LayerRange], index: usize) -> Parts {
    Parts::Stage { layers: cut[index], head: index + 1 == cut.len() }
}

/// A coordinator without layers, and one host per stage.
pub struct Cluster {
    /// Holds metadata and embedding.
    pub coordinator: Member,
    /// Hold their layers; the last one the head too.
    pub hosts: Vec<Member>,
    /// The model.
    pub model: ModelId,
    /// The layers of each host.
    pub cut: Vec<LayerRange>,
}

impl Cluster {
    /// Builds a swarm in which the route is the only one possible.
    pub async fn start(model: TestModel, carrier: Carrier, stages: u32) -> Cluster {
        Self::start_from(&model.path(), model.name(), model.cut(stages), carrier).await
    }

    /// The same from a file of one's own.
    pub async fn start_from(gguf: &Path, name: &str, cut: Vec<LayerRange>, carrier: Carrier) -> Cluster {
        let network = lonely_network();
        let coordinator = Member::start(&network, carrier).await;
        let model = coordinator.import(gguf, name, Parts::Coordinator).await;
        let mut hosts = Vec::new();
        for index in 0..cut.len() {
            let host = Member::start(&network, carrier).await;
            assert_eq!(host.import(gguf, name, stage_parts(&cut, index)).await, model, "one file has one id");
            join(&coordinator.node, &host.node.addresses(), carrier).await;
            hosts.push(host);
        }
        let cluster = Cluster { coordinator, hosts, model, cut };
        await_plan(&cluster.coordinator.node, model).await;
        cluster
    }

    /// The node that is asked.
    pub fn node(&self) -> &Node {
        &self.coordinator.node
    }

    /// Every member.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        std::iter::once(&self.coordinator).chain(&self.hosts)
    }

    /// Stops everyone.
    pub async fn stop(self) {
        stop_all(self.hosts.into_iter().chain([self.coordinator])).await;
    }
}

/// Connects a node to a peer and checks that the connection is carried as it should be.
pub async fn join(node: &Node, addresses: &[String], carrier: Carrier) {
    let address = addresses.first().expect("a node listens");
    let peer = crate::in_time("connecting", node.connect(address)).await.expect("a peer on loopback is reached");
    let carried = || {
        let status = node.peers().into_iter().find(|status| status.id == peer);
        status.is_some_and(|status| status.connected && status.transport.as_deref() == Some(carrier.name()))
    };
    crate::eventually("the peer is connected", carried).await;
}

/// Waits until the node knows who could answer.
pub async fn await_plan(node: &Node, model: ModelId) {
    let ready = || node.models().iter().any(|info| info.id == model && info.ready);
    crate::eventually("every layer of the model has a holder", ready).await;
}

/// The likeliest token at every step, as a plain run takes it.
pub fn greedy(tokens: u32) -> GenerateOptions {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    GenerateOptions { max_tokens: Some(tokens), sampling, exact: true, ..GenerateOptions::default() }
}

/// Asks for a greedy continuation of a text.
pub async fn ask(node: &Node, model: ModelId, text: &str, tokens: u32) -> Result<Generation, GenerateError> {
    let prompt = Prompt::Text(text.to_owned());
    node.generate(GenerateRequest { model: model.to_string(), prompt, options: greedy(tokens) }).await
}

/// Asks and waits for the end.
pub async fn answer(node: &Node, model: ModelId, text: &str, tokens: u32) -> Result<Completion, GenerateError> {
    crate::in_time("an answer", async { ask(node, model, text, tokens).await?.finish().await }).await
}
