//! (shape of the public API; bodies are being written)
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::base::{ErrorKind, Fault, LayerRange, ModelId, NodeId, Progress, SessionId};
use crate::engine::sample::SamplingParams;

/// How a node meets others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preset {
    /// No network at all.
    Offline,
    /// LAN discovery, ephemeral ports.
    #[default]
    Lan,
    /// Listens on the configured ports and serves others.
    Public,
}

/// Builds a node. Defaults live here and nowhere else.
#[derive(Debug, Clone)]
pub struct NodeBuilder { /* private */ }

impl NodeBuilder {
    /// Directory for keys, models and the store. Default: the OS's place for application data, or `SWARMLLM_DATA_DIR`.
    pub fn data_dir(self, dir: impl Into<PathBuf>) -> Self { todo!() }
    /// See [`Preset`].
    pub fn preset(self, preset: Preset) -> Self { todo!() }
    /// Swarm name; part of every protocol name, so that swarms cannot mix. Default `main`.
    pub fn network(self, name: impl Into<String>) -> Self { todo!() }
    /// Addresses to listen on, multiaddr text. Default: TCP and QUIC on ephemeral ports of every interface.
    pub fn listen(self, addresses: Vec<String>) -> Self { todo!() }
    /// Peers to dial at start and to redial, multiaddr text with `/p2p/`.
    pub fn bootstrap(self, addresses: Vec<String>) -> Self { todo!() }
    /// Whether to find peers on the LAN by mDNS.
    pub fn mdns(self, on: bool) -> Self { todo!() }
    /// Whether to compute stages for others. Default: true in `Lan` and `Public`.
    pub fn serve(self, on: bool) -> Self { todo!() }
    /// Compute threads. Default: physical cores, at least 1.
    pub fn threads(self, threads: u32) -> Self { todo!() }
    /// Bytes of memory for weights and KV. Default: half of the machine's free memory at start.
    pub fn memory(self, bytes: u64) -> Self { todo!() }
    /// KV cells per stage, in tokens, shared by its sessions. Default 8192.
    pub fn context(self, tokens: u32) -> Self { todo!() }
    /// Engine to use (`llama.cpp`, `candle`); default: the best that serves the model.
    pub fn engine(self, name: impl Into<String>) -> Self { todo!() }
    /// Runs on this runtime instead of one of its own.
    pub fn runtime(self, handle: tokio::runtime::Handle) -> Self { todo!() }
    /// Starts the node.
    pub async fn start(self) -> Result<Node, StartError> { todo!() }
    /// Starts the node from a thread without a runtime.
    pub fn start_blocking(self) -> Result<Node, StartError> { todo!() }
}

/// A running node. Clones are handles of the same node; when the last is dropped the node is shut down without waiting.
#[derive(Clone)]
pub struct Node { /* private */ }

impl Node {
    pub fn builder() -> NodeBuilder { todo!() }
    pub fn id(&self) -> NodeId { todo!() }
    /// Bound addresses with `/p2p/` suffix, to be given to others.
    pub fn addresses(&self) -> Vec<String> { todo!() }
    pub fn status(&self) -> NodeStatus { todo!() }
    pub fn models(&self) -> Vec<ModelInfo> { todo!() }
    pub fn peers(&self) -> Vec<PeerStatus> { todo!() }
    pub fn events(&self) -> Events { todo!() }
    /// The runtime that the node runs on, for bindings.
    pub fn runtime(&self) -> tokio::runtime::Handle { todo!() }
    /// Dials a peer and waits until it has said hello.
    pub async fn connect(&self, address: &str) -> Result<NodeId, ConnectError> { todo!() }
    /// Cuts a local GGUF into shards. `parts` says which to keep here.
    pub async fn import(&self, path: &Path, options: ImportOptions) -> Result<ModelInfo, ModelActError> { todo!() }
    /// Fetches shards of a model from peers, verified while they stream. Cancel-safe: what is verified is kept.
    pub async fn pull(&self, model: &str, parts: Parts, progress: Option<ProgressFn>) -> Result<ModelInfo, ModelActError> { todo!() }
    /// Which stages would answer, without acting.
    pub async fn plan(&self, model: &str) -> Result<Plan, GenerateError> { todo!() }
    pub async fn chat(&self, request: ChatRequest) -> Result<Generation, GenerateError> { todo!() }
    pub async fn generate(&self, request: GenerateRequest) -> Result<Generation, GenerateError> { todo!() }
    /// Stops accepting, drains until `deadline`, flushes and closes. Idempotent.
    pub async fn shutdown(&self, deadline: Duration) { todo!() }
}

pub type ProgressFn = std::sync::Arc<dyn Fn(Progress) + Send + Sync>;

/// Which shards of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts {
    All,
    /// Metadata and embedding: what a coordinator needs.
    Coordinator,
    /// These layers, and the head (with the embedding where tied) if asked.
    Stage { layers: LayerRange, head: bool },
}

#[derive(Clone, Default)]
pub struct ImportOptions {
    /// Alias; default: the GGUF's `general.name`, or the file's stem.
    pub name: Option<String>,
    /// Default: all.
    pub parts: Option<Vec<Parts>>,
    pub progress: Option<ProgressFn>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ModelInfo {
    #[serde(serialize_with = "as_text")]
    pub id: ModelId,
    pub name: String,
    pub architecture: String,
    pub layers: u32,
    pub context: u32,
    /// Bytes of all shards.
    pub size: u64,
    /// Layers held here.
    pub held: Vec<LayerRange>,
    pub has_metadata: bool,
    pub has_embedding: bool,
    pub has_head: bool,
    /// Layers that this node and its connected peers hold together.
    pub covered: Vec<LayerRange>,
    /// Whether an answer is possible now.
    pub ready: bool,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PeerStatus {
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    pub connected: bool,
    pub addresses: Vec<String>,
    /// `tcp` or `quic`.
    pub transport: Option<String>,
    pub rtt_ms: Option<f64>,
    pub agent: Option<String>,
    pub serves: bool,
    pub free_memory: u64,
    /// (model id, name, layers, head)
    pub holdings: Vec<PeerHolding>,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct PeerHolding {
    #[serde(serialize_with = "as_text")]
    pub model: ModelId,
    pub name: String,
    pub layers: Vec<LayerRange>,
    pub head: bool,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct NodeStatus {
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    pub network: String,
    pub data_dir: PathBuf,
    pub addresses: Vec<String>,
    pub engines: Vec<String>,
    pub threads: u32,
    pub memory_budget: u64,
    pub memory_used: u64,
    pub peers_connected: u32,
    pub sessions: u32,
    pub stages: u32,
    pub uptime_ms: u64,
}

pub fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(value)
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    pub content: String,
}

#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Default: as many as the context admits.
    pub max_tokens: Option<u32>,
    pub sampling: SamplingParams,
    /// Texts that end the answer; at most 16.
    pub stop: Vec<String>,
    /// Whole time allowed.
    pub deadline: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct ChatRequest { pub model: String, pub messages: Vec<ChatMessage>, pub options: GenerateOptions }

#[derive(Debug, Clone, PartialEq)]
pub enum Prompt { Text(String), Tokens(Vec<u32>) }

#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest { pub model: String, pub prompt: Prompt, pub options: GenerateOptions }

/// An answer as it comes: a stream of `Delta`. Dropping it cancels at every stage.
pub struct Generation { /* private */ }

impl Generation {
    pub fn session(&self) -> SessionId { todo!() }
    pub fn model(&self) -> ModelId { todo!() }
    pub fn route(&self) -> &Plan { todo!() }
    pub fn cancel(&self) { todo!() }
    /// Next delta, `None` after `Done` or an error. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Delta, GenerateError>> { todo!() }
    /// Waits for the end.
    pub async fn finish(self) -> Result<Completion, GenerateError> { todo!() }
}

impl futures::Stream for Generation {
    type Item = Result<Delta, GenerateError>;
    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> { todo!() }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// More text, always whole characters; never empty.
    Text(String),
    /// The end.
    Done(Box<Completion>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason { Stop, Length, Cancelled }

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Completion {
    pub text: String,
    pub tokens: Vec<u32>,
    pub finish: FinishReason,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub route: Vec<RouteStage>,
    pub timings: Timings,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RouteStage {
    #[serde(serialize_with = "as_text")]
    pub node: NodeId,
    pub layers: LayerRange,
    pub head: bool,
    pub engine: String,
    /// Milliseconds that loading took, 0 where it was loaded.
    pub load_ms: u32,
    /// Compute of the whole prefill, microseconds.
    pub prefill_us: u64,
    /// Median compute of one decode step, microseconds.
    pub decode_us: u64,
}

#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Timings {
    pub open_ms: f64,
    pub first_token_ms: f64,
    pub decode_tokens_per_second: f64,
    pub total_ms: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Plan {
    #[serde(serialize_with = "as_text")]
    pub model: ModelId,
    pub stages: Vec<PlanStage>,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PlanStage {
    #[serde(serialize_with = "as_text")]
    pub node: NodeId,
    pub layers: LayerRange,
    pub head: bool,
}

/// Why an act failed. Each has `kind()`, prints what, where and what to do.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// Nothing was generated.
    #[error("{0}")]
    Refused(Fault),
    /// The answer ended early; what was generated is kept.
    #[error("the answer was interrupted after {} tokens: {cause}", partial.completion_tokens)]
    Interrupted { partial: Box<Completion>, cause: Fault },
}
impl GenerateError { pub fn kind(&self) -> ErrorKind { todo!() } pub fn fault(&self) -> &Fault { todo!() } }

/// A node could not start.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct StartError(pub Fault);
/// A peer could not be connected.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ConnectError(pub Fault);
/// A model could not be imported or fetched.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ModelActError(pub Fault);
impl StartError { pub fn kind(&self) -> ErrorKind { self.0.kind() } }
impl ConnectError { pub fn kind(&self) -> ErrorKind { self.0.kind() } }
impl ModelActError { pub fn kind(&self) -> ErrorKind { self.0.kind() } }

/// The node's news. A reader that lags loses the oldest and is told how many.
pub struct Events { /* private */ }
impl Events {
    pub async fn next(&mut self) -> Option<crate::base::Event> { todo!() }
    /// Events lost so far because the reader lagged.
    pub fn lost(&self) -> u64 { todo!() }
}
