//! What can be asked of a node. Plain data with defaults.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{ErrorKind, Fault, LayerRange, Progress};
use crate::engine::constraint::Constraint;
use crate::engine::sample::{MAX_ALTERNATIVES, SampleError, SamplingParams};
use crate::model::ShardKind;
use crate::model::chat::{ChatMessage, TemplateInputs};
use crate::pipeline::pool::Pooling;
use crate::wire::codec::Codec;

/// Stop texts of one request at most.
pub const MAX_STOPS: usize = 16;
/// Bytes of one stop text at most.
pub const MAX_STOP_BYTES: usize = 256;
/// Texts of one request for embeddings at most.
pub const MAX_INPUTS: usize = 1024;
/// Tokens of an answer where the request does not say: enough for a page, and it leaves context to other sessions.
pub const DEFAULT_MAX_TOKENS: u32 = 1024;

/// Bytes of a caller's name at most.
pub const MAX_CALLER_BYTES: usize = 256;

/// Told how far a long work has come.
pub type ProgressFn = Arc<dyn Fn(Progress) + Send + Sync>;

/// Which shards of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parts {
    /// Every shard.
    All,
    /// Metadata and embedding: what a coordinator needs.
    Coordinator,
    /// These layers; with `head` also output norm and output (the embedding where tied).
    Stage {
        /// The layers.
        layers: LayerRange,
        /// Whether to hold the head too.
        head: bool,
    },
}

impl Parts {
    /// Refuses layers that a model of so many does not have, and none.
    pub(crate) fn check(&self, count: u32) -> Result<(), Fault> {
        let all = LayerRange::new(0, count);
        match self {
            Parts::Stage { layers, .. } if layers.is_empty() || !all.covers(*layers) => {
                let what = if layers.is_empty() { "are none" } else { "are not all there" };
                let text = format!("layers {layers} {what}: the model has {count} layers ({all}, the end excluded)");
                Err(Fault::new(ErrorKind::InvalidArgument, text))
            }
            _ => Ok(()),
        }
    }
}

/// How to import.
#[derive(Clone, Default)]
pub struct ImportOptions {
    /// An alias of the model here, beside those it has; refused where it is another model's
    /// ([`Node::move_alias`](crate::node::Node::move_alias)). The model is the same whatever it is called; without an alias it is
    /// called by the GGUF's `general.name`, or the file's stem.
    pub name: Option<String>,
    /// What to keep here, at least one part; default: all. Layers that the model does not have are refused.
    pub parts: Option<Vec<Parts>>,
    /// Whether a model that cannot run here is imported all the same, to be kept for others. Default: false, so that it is
    /// refused before a weight is fetched or hashed; see [`ImportReport`](crate::node::ImportReport).
    pub anyway: bool,
    /// Told about progress, from another thread.
    pub progress: Option<ProgressFn>,
}

impl ImportOptions {
    /// Refuses parts of which a model with so many layers has nothing.
    pub(crate) fn check(&self, layers: u32) -> Result<(), Fault> {
        match self.parts.as_deref() {
            Some([]) => {
                let text = "`parts` names nothing to keep; leave it out to keep all of the model";
                Err(Fault::new(ErrorKind::InvalidArgument, text))
            }
            parts => parts.unwrap_or_default().iter().try_for_each(|parts| parts.check(layers)),
        }
    }

    /// Whether a shard is to be kept. A head asks for the embedding too: only the manifest knows whether it is tied, and
    /// an import keeps what the answer may need.
    pub(crate) fn keeps(&self, kind: ShardKind) -> bool {
        let wants = |parts: &Parts| match (parts, kind) {
            (Parts::All, _) => true,
            (Parts::Coordinator, kind) => matches!(kind, ShardKind::Metadata | ShardKind::Embedding),
            (Parts::Stage { .. }, ShardKind::Metadata) => false,
            (Parts::Stage { .. }, ShardKind::Common) => true,
            (Parts::Stage { layers, .. }, ShardKind::Layer(layer)) => layers.start <= layer && layer < layers.end,
            (Parts::Stage { head, .. }, ShardKind::Head | ShardKind::Embedding) => *head,
        };
        self.parts.as_deref().is_none_or(|parts| parts.iter().any(wants))
    }

    /// Tells how far the work has come.
    pub(crate) fn tell(&self, progress: Progress) {
        self.progress.iter().for_each(|told| told(progress));
    }
}

/// How to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Tokens of the answer at most; what is left of the context where that is less. Default: [`DEFAULT_MAX_TOKENS`].
    pub max_tokens: Option<u32>,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Texts that end the answer, at most [`MAX_STOPS`] of [`MAX_STOP_BYTES`]; they are not part of it.
    pub stop: Vec<String>,
    /// Whole time allowed.
    pub deadline: Option<Duration>,
    /// Whether each step keeps the shape that it has in a plain run of the whole model, so that the answer is that run's,
    /// token for token, whoever else is answered meanwhile. Otherwise steps are computed together with those of other
    /// sessions, guesses are tried ahead, and prompts are computed in pieces: faster, and the same up to the rounding of
    /// sums, by which a token changes where two are about equally likely. Default: false.
    pub exact: bool,
    /// Whether to try guesses ahead where that pays; never where `exact` is asked for. Default: true.
    pub guess: bool,
    /// A model that guesses ahead in the place of what repeats itself: a smaller one with the same tokens (vocabularies may be
    /// padded to different lengths), of which this node holds all. Not with `exact` or a constraint, which are never guessed. Default: none.
    pub draft: Option<String>,
    /// Whether other hosts follow the stages of the answer, where some have the layers and the memory, so that one goes on
    /// where a stage's host is lost and little is computed again. They see, compute and are paid for what the stages are,
    /// and are not named in the answer's route before they take over. Default: false.
    pub stand_by: bool,
    /// How hidden states travel between hosts: rounded they take a half or some 0.3 of the bytes, which counts for long
    /// prompts over slow lines, and change answers by less than llama.cpp's own settings do. Not with `exact`; for
    /// architectures for which it was measured. Default: `F32`.
    pub wire: Codec,
    /// Where given, each token whose text is in the answer is told with its log-probability, and with those of so many of
    /// the likeliest tokens there, at most [`MAX_ALTERNATIVES`]. They are the model's own; under a constraint, those of the
    /// tokens that it admits, which the token was drawn from. Default: none.
    pub logprobs: Option<u32>,
    /// The form that the answer must have. Nothing is guessed ahead then. Default: none.
    pub constraint: Option<Constraint>,
    /// On whose behalf the host program asks, at most [`MAX_CALLER_BYTES`]: callers that wait for places take turns. Default:
    /// all are one.
    pub caller: String,
}

impl Default for GenerateOptions {
    fn default() -> Self {
        let (max_tokens, sampling, stop, deadline) = (None, SamplingParams::default(), Vec::new(), None);
        let (draft, stand_by, wire, logprobs, constraint) = (None, false, Codec::F32, None, None);
        Self {
            max_tokens,
            sampling,
            stop,
            deadline,
            exact: false,
            guess: true,
            draft,
            stand_by,
            wire,
            logprobs,
            constraint,
            caller: String::new(),
        }
    }
}

impl GenerateOptions {
    /// Refuses what cannot be done, naming the field.
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
        if self.draft.is_some() && (self.exact || !self.guess || self.constraint.is_some()) {
            return refuse("draft", "a draft model guesses ahead, which exact and constrained answers never do");
        }
        if self.exact && self.wire != Codec::F32 {
            return refuse("wire", format_args!("{} rounds states, and no answer is `exact` then", self.wire.name()));
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

/// What sampling refuses or fails at.
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

/// A conversation to be continued.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatRequest {
    /// Name, id, or the unique beginning of either.
    pub model: String,
    /// The conversation so far.
    pub messages: Vec<ChatMessage>,
    /// How.
    pub options: GenerateOptions,
    /// What the chat template is given beside the messages: tools, documents, and variables of its own such as
    /// `enable_thinking`. Their bytes count to the conversation's. What the model writes to call a tool is text of the
    /// answer. Default: nothing.
    pub inputs: TemplateInputs,
    /// A chat template (Jinja) in the place of the model's own, and of the node's
    /// ([`NodeBuilder::chat_template`](crate::node::NodeBuilder::chat_template)). Default: none.
    pub chat_template: Option<String>,
}

/// A prompt without a template.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text; special tokens in it are text, and the model's begin token is put before it.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<u32>),
}

/// A text to be continued.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Name, id, or the unique beginning of either.
    pub model: String,
    /// The text.
    pub prompt: Prompt,
    /// How.
    pub options: GenerateOptions,
}

/// Texts to be made vectors of.
#[derive(Debug, Clone, PartialEq)]
pub struct EmbedRequest {
    /// Name, id, or the unique beginning of either.
    pub model: String,
    /// The texts, 1 to [`MAX_INPUTS`]; each must fit into the context.
    pub inputs: Vec<Prompt>,
    /// What is taken of the states of a text's tokens.
    pub pooling: Pooling,
    /// Whole time allowed.
    pub deadline: Option<Duration>,
    /// See [`GenerateOptions::caller`].
    pub caller: String,
}

impl EmbedRequest {
    /// Refuses what cannot be done, naming the field.
    pub fn check(&self) -> Result<(), Fault> {
        check_caller(&self.caller)?;
        match self.inputs.len() {
            1..=MAX_INPUTS => Ok(()),
            given => refuse("inputs", format_args!("has {given} texts, 1 to {MAX_INPUTS} are accepted")),
        }
    }
}
