//! Reports about the node, its models, peers and answers. Plain data; serialises to JSON.

use std::path::PathBuf;

use serde::Serialize;

use crate::base::{LayerRange, ModelId, NodeId};
use crate::model::tokenizer::Tokenizer;
use crate::net::Traffic;
use crate::node::api::findings::Finding;
use crate::node::swarm::registry::clock_warning;

/// Serialises an identifier as its text.
pub(crate) fn as_text<T: std::fmt::Display, S: serde::Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// As [`as_text`], or null.
fn as_text_or_null<T: std::fmt::Display, S: serde::Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// A model known to this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    /// Id of the model.
    #[serde(serialize_with = "as_text")]
    pub id: ModelId,
    /// The first of its names, or the beginning of its id.
    pub name: String,
    /// Names: the host's aliases, newest first, then names from its file or a peer.
    pub names: Vec<String>,
    /// The names that the host gave and can move or remove.
    pub aliases: Vec<String>,
    /// GGUF architecture; empty if only peers hold the manifest.
    pub architecture: String,
    /// Transformer blocks; 0 if only peers hold the manifest.
    pub layers: u32,
    /// Positions of the trained context.
    pub context: u32,
    /// Positions that this node serves, prompt and answer together; hosts of other layers may serve fewer. 0 if only peers
    /// hold the manifest.
    pub served_context: u32,
    /// Bytes of all shards.
    pub size: u64,
    /// Layers held here.
    pub held: Vec<LayerRange>,
    /// Whether tokenizer and template are held here.
    pub has_metadata: bool,
    /// Whether the embedding is held here.
    pub has_embedding: bool,
    /// Whether the head is held here.
    pub has_head: bool,
    /// Layers that this node and its connected peers hold together.
    pub covered: Vec<LayerRange>,
    /// Whether this node can answer with it now: it can run here, tokenizer and embedding are held here, reachable nodes
    /// hold every layer and the head, and a plan finds the memory.
    pub ready: bool,
    /// Sentences: what keeps the model from running here, and its limits. If nothing else does, a current shortage of
    /// memory.
    pub warnings: Vec<String>,
    /// The warnings as data, and each engine that does not support the model. Tokenizer and template are examined only if
    /// the metadata is held here.
    pub findings: Vec<Finding>,
}

impl ModelInfo {
    /// Why the model cannot run here; `None` if it can, as far as known. A node may hold it for others all the same.
    pub fn refusal(&self) -> Option<String> {
        let reasons: Vec<String> =
            self.findings.iter().filter(|finding| finding.refuses).map(Finding::to_string).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// A model that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RemovedModel {
    /// Id of the model.
    #[serde(serialize_with = "as_text")]
    pub id: ModelId,
    /// Its first name here.
    pub name: String,
    /// Bytes of the deleted shards. Shards that another model needs stay.
    pub freed: u64,
}

/// Embeddings of texts, in the order of the request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Embeddings {
    /// The model.
    #[serde(serialize_with = "as_text")]
    pub model: ModelId,
    /// One vector per text: as many floats as the model's hidden width, normalised to length 1.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub prompt_tokens: u32,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerStatus {
    /// Id of the peer.
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    /// Whether a connection is open.
    pub connected: bool,
    /// Known addresses.
    pub addresses: Vec<String>,
    /// `tcp`, `quic`, or `relay` for a connection through another peer, which cannot read it.
    pub transport: Option<String>,
    /// Measured RTT, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Software, as announced.
    pub agent: Option<String>,
    /// Whether it announces to compute for others.
    pub serves: bool,
    /// Free memory as announced, bytes.
    pub free_memory: u64,
    /// Models that it announces to hold.
    pub holdings: Vec<PeerHolding>,
    /// Seconds by which its clock is ahead of this machine's; `None` without a hello.
    pub clock_ahead_s: Option<i64>,
}

impl PeerStatus {
    /// A warning if its clock differs so much that only nodes connected to it accept its announcements.
    pub fn clock_warning(&self) -> Option<String> {
        clock_warning(self.id, self.clock_ahead_s?)
    }
}

/// What a peer announces to hold of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerHolding {
    /// The model.
    #[serde(serialize_with = "as_text")]
    pub model: ModelId,
    /// Its name there.
    pub name: String,
    /// Layers.
    pub layers: Vec<LayerRange>,
    /// Whether it holds everything that the head needs.
    pub head: bool,
}

/// State and counters of the node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeStatus {
    /// Id of the node.
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    /// Name of its swarm.
    pub network: String,
    /// Whether the swarm is private.
    pub private: bool,
    /// Data directory.
    pub data_dir: PathBuf,
    /// Bound addresses.
    pub addresses: Vec<String>,
    /// Engines of this build, best first.
    pub engines: Vec<String>,
    /// Compute threads.
    pub threads: u32,
    /// Names of the accelerators that this build can use here.
    pub accelerators: Vec<String>,
    /// Memory that stages may take, bytes.
    pub memory_budget: u64,
    /// Memory that stages take, bytes.
    pub memory_used: u64,
    /// Connected peers.
    pub peers_connected: u32,
    /// Requests that wait in the queue or for the tokenizer.
    pub waiting: u32,
    /// Sessions with a slot of a stage here.
    pub sessions: u32,
    /// Stages loaded.
    pub stages: u32,
    /// Network traffic since the start, bytes.
    pub traffic: Traffic,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, a stop text occurred, or the constraint admits no further token.
    Stop,
    /// The token limit was reached.
    Length,
    /// The caller cancelled.
    Cancelled,
}

/// A token with its log-probability.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Likelihood {
    /// The token.
    pub token: u32,
    /// Its text; bytes of incomplete characters are U+FFFD.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the model's probability, before biases, penalties and temperature. Under a constraint, of the
    /// probability among the admitted tokens.
    pub logprob: f32,
}

impl Likelihood {
    /// Represents minus infinity, which JSON lacks; OpenAI's value.
    const LEAST: f32 = -9999.0;

    pub(crate) fn new(tokenizer: &Tokenizer, token: u32, logprob: f32) -> Self {
        let bytes = tokenizer.token_bytes(token, true).into_owned();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Self { token, text, bytes, logprob: logprob.max(Self::LEAST) }
    }
}

/// A chosen token and its likeliest alternatives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token.
    #[serde(flatten)]
    pub chosen: Likelihood,
    /// The likeliest tokens, best first, as many as requested; may include the chosen token. Fewer if a constraint admits
    /// fewer.
    pub alternatives: Vec<Likelihood>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// More text: whole characters, never empty.
    Text(String),
    /// A token with its log-probability, sent before the text that it completes. Only if `logprobs` was set.
    Token(Box<TokenLogprob>),
    /// The completed answer.
    Done(Box<Completion>),
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Completion {
    /// The text, stop text excluded.
    pub text: String,
    /// The tokens as chosen.
    pub tokens: Vec<u32>,
    /// Log-probabilities of the tokens whose text begins within `text`, if `logprobs` was set. Tokens of a stop text and
    /// control tokens, which have no text, are left out.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Prompt tokens whose KV was cached from an earlier answer.
    pub cached_tokens: u32,
    /// Draft tokens.
    pub draft_tokens: u32,
    /// Accepted draft tokens.
    pub accepted_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// The stages with their timings. After a failover, stages of earlier routes come first.
    pub route: Vec<RouteStage>,
    /// Timings of the whole answer.
    pub timings: Timings,
}

/// One stage of an answer's route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteStage {
    /// The host.
    #[serde(serialize_with = "as_text")]
    pub node: NodeId,
    /// Hot standby that replicates the stage and receives the host's inputs.
    #[serde(serialize_with = "as_text_or_null")]
    pub standby: Option<NodeId>,
    /// Epoch of the route; each failover increments it.
    pub epoch: u32,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it computed the head.
    pub head: bool,
    /// Its engine.
    pub engine: String,
    /// Load time, milliseconds; 0 if it was loaded already.
    pub load_ms: u32,
    /// Compute of the whole prefill, microseconds.
    pub prefill_us: u64,
    /// Median compute of one decode step, microseconds; 0 without decode steps.
    pub decode_us: u64,
}

/// Timings of an answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timings {
    /// Until all stages were open, milliseconds.
    pub open_ms: f64,
    /// Until the first token, milliseconds; 0 without tokens.
    pub first_token_ms: f64,
    /// Tokens per second after the first.
    pub decode_tokens_per_second: f64,
    /// Predicted time per token, milliseconds, without speculation and without other sessions; 0 if no stage was opened.
    pub predicted_token_ms: f64,
    /// Until the end, milliseconds.
    pub total_ms: f64,
}
