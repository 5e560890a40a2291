//! The node: what a host program starts, asks and stops.
//!
//! [`Node::builder`] gives a [`NodeBuilder`], which holds every default; [`Node`] is a handle whose clones are one node.
//! The node owns its data directory (locked), its key, its catalogue and its tasks. Rooms below get the handles they
//! need. Promises: several nodes in one process share nothing; `shutdown` is idempotent; dropping the last handle ends
//! the node without waiting; nothing global is touched (no logger, no signal handler, no environment).
//!
//! May import: everything below (base to pipeline). Its public items are all that server, C, Python and CLI use.

mod admission;
mod announcer;
mod builder;
mod control;
mod conversation;
mod drafting;
mod embedding;
mod error;
mod examine;
mod exchange;
mod fetch;
mod generation;
mod greeting;
mod guide;
mod handle;
mod inbound;
mod invite;
mod keeping;
mod loaded;
mod membership;
mod models;
mod peer_cache;
mod placer;
mod planners;
mod planning;
mod queue;
mod reading;
mod registry;
mod report;
mod request;
mod runtime;
mod seek;
mod shared;
mod sink;
mod speed_cache;
mod text;
mod transfer;
mod unread;
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
pub use builder::{MAX_SESSIONS, NodeBuilder, Preset};
pub use error::{ConnectError, EmbedError, GenerateError, ModelActError, StartError};
pub use examine::{Finding, ImportReport, Subject};
pub use generation::{Delta, Generation};
pub use handle::{Events, Node};
pub use invite::Invite;
pub use report::{
    Completion, Embeddings, FinishReason, Likelihood, ModelInfo, NodeStatus, PeerHolding, PeerStatus, Removed,
    RouteStage, Timings, TokenLogprob,
};
pub use request::{
    ChatRequest, DEFAULT_MAX_TOKENS, EmbedRequest, GenerateOptions, GenerateRequest, ImportOptions, MAX_CALLER_BYTES,
    MAX_INPUTS, MAX_STOP_BYTES, MAX_STOPS, Parts, ProgressFn, Prompt,
};
#[cfg(feature = "https")]
pub use web::{HUB, WebSource};
