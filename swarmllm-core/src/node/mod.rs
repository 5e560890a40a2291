//! The node: what a host program starts, asks and stops.
//!
//! [`Node::builder`] gives a [`NodeBuilder`], which holds every default; [`Node`] is a handle whose clones are one node.
//! The node owns its data directory (locked), its key, its catalogue and its tasks. Rooms below get the handles they
//! need. Promises: several nodes in one process share nothing; `shutdown` is idempotent; dropping the last handle ends
//! the node without waiting; nothing global is touched (no logger, no signal handler, no environment).
//!
//! Its folders stack: `api` is plain data, `swarm` the peers, `models` what is held here, `web` models from the web,
//! `answer` the answers and `inbound` what peers ask. The files beside them tie the folders together; `shared` is the
//! context of all acts.
//!
//! May import: everything below (base to pipeline). Its public items are all that server, C, Python and CLI use.

mod answer;
mod api;
mod blocking;
mod builder;
mod handle;
mod inbound;
mod listing;
mod models;
mod runtime;
mod shared;
mod swarm;
#[cfg(feature = "https")]
mod web;

pub use crate::engine::KvCache;
pub use crate::engine::constraint::Constraint;
pub use crate::engine::sample::{MAX_ALTERNATIVES, SamplingParams};
pub use crate::model::chat::{ChatMessage, MAX_TEMPLATE, TemplateInputs};
pub use crate::net::{Flow, Traffic};
pub use crate::pipeline::plan::{Plan, PlanStage};
pub use crate::pipeline::pool::Pooling;
pub use crate::wire::codec::Codec;
pub use answer::generation::Generation;
pub use api::error::{ConnectError, EmbedError, GenerateError, ModelActError, StartError};
pub use api::findings::{Finding, ImportReport, Subject};
pub use api::report::{
    Completion, Delta, Embeddings, FinishReason, Likelihood, ModelInfo, NodeStatus, PeerHolding, PeerStatus, Removed,
    RouteStage, Timings, TokenLogprob,
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
