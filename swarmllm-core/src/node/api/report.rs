//! What the node tells about itself, its models, its peers and its answers. Plain data; serialises to JSON.

use std::path::PathBuf;

use serde::Serialize;

use crate::base::{LayerRange, ModelId, NodeId};
use crate::model::tokenizer::Tokenizer;
use crate::net::Traffic;
use crate::node::api::findings::Finding;
use crate::node::swarm::directory::clock_warning;

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

/// A model as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelInfo {
    /// Its identity.
    #[serde(serialize_with = "as_text")]
    pub id: ModelId,
    /// The first of its names, or the beginning of its id where it has none.
    pub name: String,
    /// What it is called here: the host's aliases, the newest first, then what its file or a peer suggests.
    pub names: Vec<String>,
    /// Those of them that the host has given, which it may move and remove.
    pub aliases: Vec<String>,
    /// GGUF architecture; empty where only peers hold the manifest.
    pub architecture: String,
    /// Transformer blocks; 0 where only peers hold the manifest.
    pub layers: u32,
    /// Positions that it was trained for.
    pub context: u32,
    /// Positions that an answer of this node may have with it, prompt and answer together; hosts of other layers may have
    /// less. 0 where only peers hold the manifest.
    pub served_context: u32,
    /// Bytes of all its shards.
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
    /// Whether this node can answer with it now: it can run here, tokenizer and embedding are here, every layer and the head
    /// within reach, and the memory there, as a plan would count it.
    pub ready: bool,
    /// What of the model cannot be used here, as sentences: all that keeps it from running, and what it lacks. Where nothing
    /// else does, that the memory within reach is too short for it now.
    pub warnings: Vec<String>,
    /// The same as facts, and each engine that does not take the model. Of tokenizer and template only where the metadata is
    /// held here.
    pub findings: Vec<Finding>,
}

impl ModelInfo {
    /// Why the model cannot run here, though it may be kept for others; `None` where it can, as far as is known.
    pub fn refusal(&self) -> Option<String> {
        let reasons: Vec<String> =
            self.findings.iter().filter(|finding| finding.refuses).map(Finding::to_string).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// A model that was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Its identity.
    #[serde(serialize_with = "as_text")]
    pub id: ModelId,
    /// What it was called here first.
    pub name: String,
    /// Bytes of the shards that went with it. Those that another model needs stay.
    pub freed: u64,
}

/// Vectors of texts, in the order of the request.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Embeddings {
    /// The model that read them.
    #[serde(serialize_with = "as_text")]
    pub model: ModelId,
    /// One for each text: as many floats as the model's states have, of length 1.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of all texts.
    pub prompt_tokens: u32,
}

/// A peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerStatus {
    /// Its identity.
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    /// Whether a connection stands.
    pub connected: bool,
    /// Where it may be dialled.
    pub addresses: Vec<String>,
    /// `tcp`, `quic`, or `relay` where another peer carries what it cannot read.
    pub transport: Option<String>,
    /// Measured round-trip time, milliseconds.
    pub rtt_ms: Option<f64>,
    /// Software, as it says.
    pub agent: Option<String>,
    /// Whether it says that it computes for others.
    pub serves: bool,
    /// Bytes of memory that it says are free.
    pub free_memory: u64,
    /// What it says that it holds.
    pub holdings: Vec<PeerHolding>,
    /// Seconds by which its clock is ahead of this machine's, as far as its hello tells.
    pub clock_ahead_s: Option<i64>,
}

impl PeerStatus {
    /// A sentence about its clock, where that differs so much that only nodes that are connected to the peer hear of it.
    pub fn clock_warning(&self) -> Option<String> {
        clock_warning(self.id, self.clock_ahead_s?)
    }
}

/// What a peer says that it holds of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerHolding {
    /// The model.
    #[serde(serialize_with = "as_text")]
    pub model: ModelId,
    /// What it is called there.
    pub name: String,
    /// Layers.
    pub layers: Vec<LayerRange>,
    /// Whether all that the head needs is there.
    pub head: bool,
}

/// The node at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeStatus {
    /// Its identity.
    #[serde(serialize_with = "as_text")]
    pub id: NodeId,
    /// The swarm it belongs to.
    pub network: String,
    /// Whether only nodes that were invited can enter it.
    pub private: bool,
    /// Where it keeps its files.
    pub data_dir: PathBuf,
    /// Where it may be dialled.
    pub addresses: Vec<String>,
    /// Engines of this build, best first.
    pub engines: Vec<String>,
    /// Compute threads.
    pub threads: u32,
    /// What this build can compute with beside the processor here, by name.
    pub accelerators: Vec<String>,
    /// Bytes that stages may take.
    pub memory_budget: u64,
    /// Bytes that they take.
    pub memory_used: u64,
    /// Peers with a connection.
    pub peers_connected: u32,
    /// Requests to this node that wait for a place, or to be read before.
    pub waiting: u32,
    /// Sessions that have a slot in a stage here.
    pub sessions: u32,
    /// Stages loaded.
    pub stages: u32,
    /// What went over the wire since the start, in bytes.
    pub traffic: Traffic,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// The model ended it, a stop text was met, or the constraint admits nothing more.
    Stop,
    /// The token limit was reached.
    Length,
    /// The caller cancelled.
    Cancelled,
}

/// How likely a token was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Likelihood {
    /// The token.
    pub token: u32,
    /// Its text; bytes that are no whole character are U+FFFD.
    pub text: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Natural logarithm of the probability that the model gave it, before biases, penalties and temperature. Under a
    /// constraint it is the probability among the tokens that the constraint admitted there.
    pub logprob: f32,
}

impl Likelihood {
    /// Stands for minus infinity, which JSON does not have; the number is OpenAI's.
    const LEAST: f32 = -9999.0;

    pub(crate) fn new(tokenizer: &Tokenizer, token: u32, logprob: f32) -> Self {
        let bytes = tokenizer.token_bytes(token, true).into_owned();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        Self { token, text, bytes, logprob: logprob.max(Self::LEAST) }
    }
}

/// A chosen token, and what else was likely there.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token.
    #[serde(flatten)]
    pub chosen: Likelihood,
    /// The likeliest tokens there, best first, as many as were asked for; the chosen one may be among them. Under a
    /// constraint fewer where it admitted fewer.
    pub alternatives: Vec<Likelihood>,
}

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Delta {
    /// More text: whole characters, never empty.
    Text(String),
    /// A token with its log-probability, before the text that it completes; only where `logprobs` were asked for.
    Token(Box<TokenLogprob>),
    /// The end.
    Done(Box<Completion>),
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Completion {
    /// The text, stop text excluded.
    pub text: String,
    /// The tokens as chosen.
    pub tokens: Vec<u32>,
    /// How likely the tokens were of which `text` has at least the beginning, where that was asked for. Tokens of a stop
    /// text, and control tokens, which have no text, are left out.
    pub logprobs: Option<Vec<TokenLogprob>>,
    /// Why it ended.
    pub finish: FinishReason,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Of those, tokens whose KV the stages still had from an earlier answer.
    pub cached_tokens: u32,
    /// Tokens that were guessed ahead.
    pub guessed_tokens: u32,
    /// Of those, the ones that were right.
    pub right_guesses: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Who computed what, and how long it took there. Where hosts were lost, the stages of the earlier routes come first.
    pub route: Vec<RouteStage>,
    /// How long it took as a whole.
    pub timings: Timings,
}

/// One stage of an answer's route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RouteStage {
    /// Its host.
    #[serde(serialize_with = "as_text")]
    pub node: NodeId,
    /// Who was asked to follow it, and was sent what its host was sent.
    #[serde(serialize_with = "as_text_or_null")]
    pub stand_by: Option<NodeId>,
    /// Which of the answer's routes it was part of: it grows each time hosts are lost.
    pub epoch: u32,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it computed the head.
    pub head: bool,
    /// Its engine.
    pub engine: String,
    /// Milliseconds that loading took, 0 where it was loaded.
    pub load_ms: u32,
    /// Compute of the whole prefill, microseconds.
    pub prefill_us: u64,
    /// Median compute of one decode step, microseconds; 0 where there was none.
    pub decode_us: u64,
}

/// How long an answer took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timings {
    /// Until all stages were open, milliseconds.
    pub open_ms: f64,
    /// Until the first token, milliseconds; 0 where there was none.
    pub first_token_ms: f64,
    /// Tokens per second after the first.
    pub decode_tokens_per_second: f64,
    /// Milliseconds of a token that the plan predicted for an answer without guesses and without neighbours; 0 where no
    /// stage was opened.
    pub predicted_token_ms: f64,
    /// Until the end, milliseconds.
    pub total_ms: f64,
}
