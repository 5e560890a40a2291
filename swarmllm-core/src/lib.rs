//! swarmllm: an LLM swarm as a library.
//!
//! A host program starts a [`Node`]. A swarm of nodes then runs a model that no single machine could hold, with exactly the
//! output of the whole model:
//!
//! ```no_run
//! use swarmllm_core::{ChatMessage, ChatRequest, Delta, Node};
//!
//! # async fn story() -> Result<(), Box<dyn std::error::Error>> {
//! let node = Node::builder().data_dir("/var/lib/my-app/swarmllm").start().await?;
//! node.connect("/ip4/192.168.1.20/tcp/8810/p2p/12D3KooW...").await?;
//! let request = ChatRequest {
//!     model: "SmolLM2-135M-Instruct".to_owned(),
//!     messages: vec![ChatMessage { role: "user".to_owned(), content: "Why is the sky blue?".to_owned() }],
//!     ..ChatRequest::default()
//! };
//! let mut answer = node.chat(request).await?;
//! while let Some(delta) = answer.next().await {
//!     if let Delta::Text(text) = delta? {
//!         print!("{text}");
//!     }
//! }
//! node.shutdown(std::time::Duration::from_secs(10)).await;
//! # Ok(())
//! # }
//! ```
//!
//! The modules, from the bottom; each imports only modules below it: [`base`] (shared types), [`identity`], [`wire`] and
//! [`rt`], [`store`], [`model`], [`engine`] and [`net`] (independent of each other), [`pipeline`] (which combines them),
//! [`node`], and with the feature `server` the HTTP server.
//!
//! Features: `candle` (default; pure Rust), `llama-cpp` (faster; needs cmake, a C++ compiler and libclang), `server`,
//! `https` (models from the web).

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

pub use base::{ErrorKind, Event, Fault, LayerRange, ModelId, NodeId, Progress, SessionId};
pub use ledger::Balance;
#[cfg(feature = "https")]
pub use node::WebSource;
pub use node::{
    ChatMessage, ChatRequest, Completion, ConnectError, Delta, Events, FinishReason, GenerateError, GenerateOptions,
    GenerateRequest, Generation, ImportOptions, ModelActError, ModelInfo, Node, NodeBuilder, NodeStatus, Parts,
    PeerHolding, PeerStatus, Plan, PlanStage, Preset, ProgressFn, Prompt, RemovedModel, RouteStage, SamplingParams,
    StartError, TemplateInputs, Timings,
};
