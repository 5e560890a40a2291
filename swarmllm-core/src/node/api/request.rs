//! Requests to a node. Plain data with defaults.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{ErrorKind, Fault, LayerRange, Progress};
use crate::engine::constraint::Constraint;
use crate::engine::sample::{MAX_ALTERNATIVES, SampleError, SamplingParams};
use crate::model::chat::{ChatMessage, TemplateInputs};
use crate::model::{Manifest, ShardEntry, ShardKind};
use crate::pipeline::session::pooling::Pooling;
use crate::wire::codec::Codec;

/// Most stop texts of one request.
pub const MAX_STOPS: usize = 16;
/// Most bytes of one stop text.
pub const MAX_STOP_BYTES: usize = 256;
/// Most texts of one embedding request.
pub const MAX_INPUTS: usize = 1024;
/// Default limit of an answer's tokens: about a page, which leaves context to other sessions.
pub const DEFAULT_MAX_TOKENS: u32 = 1024;
/// Most bytes of a caller's name.
pub const MAX_CALLER_BYTES: usize = 256;

/// Callback for the progress of a long operation. Called from a thread of the node.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// Selection of a model's shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts {
    /// Every shard.
    All,
    /// Metadata and embedding, as a coordinator needs them.
    Coordinator,
    /// These layers; with `head` also output norm and output matrix (the embedding if tied).
    Stage {
        /// The layers.
        layers: LayerRange,
        /// Whether to include the head.
        head: bool,
    },
}

impl Parts {
    /// Shards of a model that these parts name.
    pub(crate) fn shards<'a>(&self, manifest: &'a Manifest) -> Result<Vec<&'a ShardEntry>, Fault> {
        self.check(manifest.layers)?;
        Ok(match self {
            Parts::All => manifest.shards.iter().collect(),
            Parts::Coordinator => manifest.coordinator_shards().collect(),
            Parts::Stage { layers, head } => manifest.stage_shards(*layers, *head).collect(),
        })
    }

    /// Refuses an empty range and layers beyond the model's `count` layers.
    pub(crate) fn check(&self, count: u32) -> Result<(), Fault> {
        let all = LayerRange::new(0, count);
        match self {
            Parts::Stage { layers, .. } if layers.is_empty() || !all.covers(*layers) => {
                let what = if layers.is_empty() { "are empty" } else { "do not all exist" };
                let text = format!("layers {layers} {what}: the model has {count} layers ({all}, the end excluded)");
                Err(Fault::new(ErrorKind::InvalidArgument, text))
            }
            _ => Ok(()),
        }
    }
}

/// Options of an import.
#[derive(Clone, Default)]
pub struct ImportOptions {
    /// A further alias of the model; refused if another model has it ([`Node::move_alias`](crate::node::Node::move_alias)).
    /// Names do not change a model's id. Without an alias the model gets the GGUF's `general.name` or the file's stem as its
    /// name.
    pub name: Option<String>,
    /// Parts to store, at least one; default: all. Nonexistent layers are refused.
    pub parts: Option<Vec<Parts>>,
    /// Whether to import a model that cannot run here, to hold it for others. Default: false; the import is then refused
    /// before a weight is fetched or hashed, with an [`ImportReport`](crate::node::ImportReport).
    pub anyway: bool,
    /// Progress callback, called from another thread.
    pub progress: Option<ProgressFn>,
}

impl ImportOptions {
    /// Refuses an empty selection and parts beyond the model's `layers`.
    pub(crate) fn check(&self, layers: u32) -> Result<(), Fault> {
        match self.parts.as_deref() {
            Some([]) => {
                let text = "`parts` is empty; omit it to import the whole model";
                Err(Fault::new(ErrorKind::InvalidArgument, text))
            }
            parts => parts.unwrap_or_default().iter().try_for_each(|parts| parts.check(layers)),
        }
    }

    /// Whether to store a shard. A head includes the embedding: only the manifest tells whether they are tied.
    pub(crate) fn keeps(&self, kind: ShardKind) -> bool {
        let includes = |parts: &Parts| match (parts, kind) {
            (Parts::All, _) => true,
            (Parts::Coordinator, kind) => matches!(kind, ShardKind::Metadata | ShardKind::Embedding),
            (Parts::Stage { .. }, ShardKind::Metadata) => false,
            (Parts::Stage { .. }, ShardKind::Common) => true,
            (Parts::Stage { layers, .. }, ShardKind::Layer(layer)) => layers.start <= layer && layer < layers.end,
            (Parts::Stage { head, .. }, ShardKind::Head | ShardKind::Embedding) => *head,
        };
        self.parts.as_deref().is_none_or(|parts| parts.iter().any(includes))
    }

    /// Calls the progress callback.
    pub(crate) fn report_progress(&self, progress: Progress) {
        self.progress.iter().for_each(|callback| callback(progress));
    }
}

/// Options of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Limit of the answer's tokens, within the remaining context. Default: [`DEFAULT_MAX_TOKENS`].
    pub max_tokens: Option<u32>,
    /// Sampling parameters.
    pub sampling: SamplingParams,
    /// Stop texts, at most [`MAX_STOPS`] of [`MAX_STOP_BYTES`] bytes; excluded from the answer.
    pub stop: Vec<String>,
    /// Time limit of the whole request, queueing included. Default: none.
    pub deadline: Option<Duration>,
    /// Whether each step has the batch shape of a plain run of the whole model, so the answer equals that run token for
    /// token, whatever other sessions compute. Otherwise steps are batched with other sessions, draft tokens are verified,
    /// and prompts are chunked: faster, and equal up to the rounding of sums, which can change a token if two are about
    /// equally likely. Default: false.
    pub exact: bool,
    /// Whether to speculate where it pays; never with `exact`. Default: true.
    pub speculate: bool,
    /// A draft model that replaces n-gram speculation: a smaller model with the same tokens (vocabularies may be padded to
    /// different lengths), held completely by this node. Not with `exact` or a constraint, which exclude speculation.
    /// Default: none.
    pub draft: Option<String>,
    /// Whether hot standbys replicate the answer's stages, if other hosts have the layers and the memory. When a stage's
    /// host is lost, its standby continues and little is recomputed. Standbys see, compute and are paid for the same inputs
    /// as the stages, and appear in the answer's route as stages only after they take over. Default: false.
    pub standby: bool,
    /// Codec of hidden states between hosts. Rounded states take a half or about 0.3 of the bytes, which matters for long
    /// prompts over slow links, and change answers by less than llama.cpp's own settings do. Not with `exact`; only for
    /// architectures for which the effect was measured. Default: `F32`.
    pub wire: Codec,
    /// If set, each token of the answer's text is reported with its log-probability and this many likeliest tokens, at most
    /// [`MAX_ALTERNATIVES`]. Probabilities are the model's own; under a constraint, among the admitted tokens. Default:
    /// none.
    pub logprobs: Option<u32>,
    /// Grammar or schema of the answer. Excludes speculation. Default: none.
    pub constraint: Option<Constraint>,
    /// Name of the caller that the host program acts for, at most [`MAX_CALLER_BYTES`]: the queue is fair between callers.
    /// Default: one common caller.
    pub caller: String,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        let (max_tokens, sampling, stop, deadline) = (None, SamplingParams::default(), Vec::new(), None);
        let (draft, standby, wire, logprobs, constraint) = (None, false, Codec::F32, None, None);
        Self {
            max_tokens,
            sampling,
            stop,
            deadline,
            exact: false,
            speculate: true,
            draft,
            standby,
            wire,
            logprobs,
            constraint,
            caller: String::new(),
        }
    }
}

impl GenerateOptions {
    /// Refuses invalid options and names the field.
    pub fn check(&self) -> Result<(), Fault> {
        self.sampling.check().map_err(of_sampling)?;
        if self.max_tokens == Some(0) {
            return refuse("max_tokens", "must be at least 1");
        }
        if self.stop.len() > MAX_STOPS {
            let given = self.stop.len();
            return refuse("stop", format_args!("has {given} texts, at most {MAX_STOPS} are accepted"));
        }
        if self.stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
            return refuse("stop", format_args!("each text must have 1 to {MAX_STOP_BYTES} bytes"));
        }
        if self.draft.is_some() && (self.exact || !self.speculate || self.constraint.is_some()) {
            return refuse("draft", "a draft model speculates: not with `exact`, a constraint, or `speculate` off");
        }
        if self.exact && self.wire != Codec::F32 {
            return refuse("wire", format_args!("{} rounds states, so the answer cannot be `exact`", self.wire.name()));
        }
        if let Some(asked) = self.logprobs.filter(|asked| *asked > MAX_ALTERNATIVES) {
            return refuse("logprobs", format_args!("is {asked}; it must be between 0 and {MAX_ALTERNATIVES}"));
        }
        check_caller(&self.caller)?;
        let constraint = self.constraint.as_ref().map_or(Ok(()), Constraint::check);
        constraint.map_err(|error| Fault::new(error.kind(), error).about("constraint"))
    }
}

/// Refuses a field of a request.
fn refuse(field: &str, why: impl Display) -> Result<(), Fault> {
    Err(Fault::new(ErrorKind::InvalidArgument, why).about(field))
}

/// The fault of a sampling error, with its field.
pub(crate) fn of_sampling(error: SampleError) -> Fault {
    let fault = Fault::new(error.kind(), &error);
    error.field().into_iter().fold(fault, Fault::about)
}

fn check_caller(name: &str) -> Result<(), Fault> {
    match name.len() {
        0..=MAX_CALLER_BYTES => Ok(()),
        given => refuse("caller", format_args!("has {given} bytes, at most {MAX_CALLER_BYTES} are accepted")),
    }
}

/// A conversation to continue.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatRequest {
    /// Name or id of the model, or a unique beginning of either.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// Options.
    pub options: GenerateOptions,
    /// Further inputs of the chat template: tools, documents, and its own variables such as `enable_thinking`. Their bytes
    /// count to the conversation's. A tool call of the model is text of the answer. Default: none.
    pub inputs: TemplateInputs,
    /// Chat template (Jinja) that replaces the model's own and the node's
    /// ([`NodeBuilder::chat_template`](crate::node::NodeBuilder::chat_template)). Default: none.
    pub chat_template: Option<String>,
}

/// A prompt without a template.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text. Special tokens in it are plain text; the model's BOS token is prepended.
    Text(String),
    /// Token ids, used unchanged.
    Tokens(Vec<u32>),
}

/// A text to continue.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Name or id of the model, or a unique beginning of either.
    pub model: String,
    /// The text.
    pub prompt: Prompt,
    /// Options.
    pub options: GenerateOptions,
}

/// Texts to embed.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedRequest {
    /// Name or id of the model, or a unique beginning of either.
    pub model: String,
    /// The texts, 1 to [`MAX_INPUTS`]; each must fit into the context.
    pub inputs: Vec<Prompt>,
    /// Pooling of a text's token states.
    pub pooling: Pooling,
    /// Time limit of the whole request, queueing included. Default: none.
    pub deadline: Option<Duration>,
    /// See [`GenerateOptions::caller`].
    pub caller: String,
}

impl EmbedRequest {
    /// Refuses an invalid request and names the field.
    pub fn check(&self) -> Result<(), Fault> {
        check_caller(&self.caller)?;
        match self.inputs.len() {
            1..=MAX_INPUTS => Ok(()),
            given => refuse("inputs", format_args!("has {given} texts, 1 to {MAX_INPUTS} are accepted")),
        }
    }
}
