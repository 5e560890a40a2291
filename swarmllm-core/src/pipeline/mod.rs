//! The pipeline: plans which nodes compute which layers of a model, and runs sessions over these stages.
//!
//! The only module where the engine meets the network. Its folders are layers; each imports only those above it in this list:
//! - [`plan`]: which nodes compute which layers, in what order, and how fast that is. Pure.
//! - [`placement`]: which layers a node should hold. Pure.
//! - [`link`]: stage streams between nodes, their messages, and the queues of sessions.
//! - [`host`]: the stages that this node computes for sessions, their slots and their memory.
//! - [`session`]: the text of a session, its steps, its draft tokens. Pure, but for the draft model that it runs.
//! - [`route`]: the stages of a session while it runs: opening, failure, replacement. Pure, but for probes of hosts.
//! - [`driver`]: all decisions of a session, as events in and actions out. Pure.
//! - [`runner`]: performs the driver's actions with network, engine and timers; payments.
//!
//! Promises: a cancelled, failed or forgotten session frees its KV at every stage; a bad frame ends its session and
//! nothing else; every queue is bounded.
//!
//! May import: base, identity, wire, rt, store, ledger, model, engine, net.

pub mod driver;
pub mod host;
pub mod link;
pub mod placement;
pub mod plan;
pub mod route;
pub mod runner;
pub mod session;
#[cfg(test)]
mod sim;

pub use plan::{Candidate, NoPlan, Plan, PlanRequest, PlanStage};
