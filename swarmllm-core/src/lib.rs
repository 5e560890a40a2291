//! swarmllm: an LLM swarm that you can link.

pub mod base;
pub mod engine;
pub mod identity;
pub mod ledger;
pub mod model;
pub mod net;
pub mod node;
pub mod pipeline;
pub mod rt;
#[cfg(feature = "server")]
pub mod server;
pub mod store;
pub mod wire;
