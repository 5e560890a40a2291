//! swarmllm: an LLM swarm that you can link.
//!
//! A host program starts a [`Node`], and a model that none of the machines could hold alone answers, exactly as the
//! whole model would:
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
//! The rooms, from the ground up; each imports only rooms below it: [`base`] (words), [`identity`], [`wire`] and [`rt`],
//! [`store`], [`model`], [`engine`] and [`net`] (which do not know each other), [`pipeline`] (where they meet), [`node`],
//! and with the feature `server` the HTTP surface.
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
    PeerHolding, PeerStatus, Plan, PlanStage, Preset, ProgressFn, Prompt, Removed, RouteStage, SamplingParams,
    StartError, TemplateInputs, Timings,
};
