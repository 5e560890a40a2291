//! The node: the entry point of host programs.
//!
//! [`Node::builder`] returns a [`NodeBuilder`], which holds every default. [`Node`] is a handle; its clones refer to one
//! node. The node owns its data directory (locked), its key, its catalogue and its tasks. Promises: several nodes in one
//! process share nothing; `shutdown` is idempotent; dropping the last handle ends the node without waiting; no global
//! state is touched (logger, signal handlers, environment).
//!
//! Folders, lowest first: `api` plain data, `swarm` peers, `models` models held here, `web` models from the web, `answer`
//! answers, `inbound` requests of peers. The files beside them connect the folders; `shared` is the context of all
//! operations.
//!
//! May import every module below (base to pipeline). Server, C, Python and CLI use its public items alone.

mod answer;
mod api;
mod blocking;
mod builder;
mod config;
mod credits;
mod handle;
mod inbound;
mod lifecycle;
mod listing;
mod metrics;
mod models;
mod node_runtime;
mod shared;
mod swarm;
#[cfg(feature = "https")]
mod web;

pub use crate::engine::KvType;
pub use crate::engine::constraint::Constraint;
pub use crate::engine::sample::{MAX_ALTERNATIVES, SamplingParams};
pub use crate::model::chat::{ChatMessage, MAX_TEMPLATE, TemplateInputs};
pub use crate::net::{Flow, Traffic};
pub use crate::pipeline::plan::{Plan, PlanStage};
pub use crate::pipeline::session::pooling::Pooling;
pub use crate::wire::codec::Codec;
pub use answer::generation::{Canceller, Generation};
pub use api::blocking_call::{check_may_block, with_progress};
pub use api::error::{ConnectError, EmbedError, GenerateError, ModelActError, StartError};
pub use api::findings::{Finding, ImportReport, Subject};
pub use api::partial_options::PartialOptions;
pub use api::report::{
    Completion, Delta, Embeddings, FinishReason, Likelihood, ModelInfo, NodeStatus, PeerHolding, PeerStatus,
    RemovedModel, RouteStage, Timings, TokenLogprob,
};
pub use api::request::{
    ChatRequest, DEFAULT_MAX_TOKENS, EmbedRequest, GenerateOptions, GenerateRequest, ImportOptions, MAX_CALLER_BYTES,
    MAX_INPUTS, MAX_STOP_BYTES, MAX_STOPS, Parts, ProgressFn, Prompt,
};
pub use builder::{MAX_SESSIONS, NodeBuilder, Preset};
pub use handle::{Events, Node};
pub use swarm::invite::Invite;
#[cfg(feature = "https")]
pub use web::{HUB, WebSource};
