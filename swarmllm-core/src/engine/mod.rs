//! Inference engines: each computes a range of layers and knows nothing of the network.
//!
//! A [`Stage`] maps hidden states to hidden states, or to logits where it holds the head. An [`Embedder`] looks up the
//! embedding, so that every stage has the same interface. One OS thread ([`thread`]) owns a stage; callers reach it through
//! a [`StageHandle`]. All untrusted input is checked here, before an engine sees it, because llama.cpp aborts the process
//! when it is misused.
//!
//! May import: base, rt, model.

#[cfg(feature = "candle")]
pub mod candle;
pub mod constraint;
mod cores;
mod cuts;
pub mod echo;
mod error;
mod keep_awake;
// Only llama.cpp has process-wide tables that exit handlers destroy.
#[cfg_attr(not(feature = "llama-cpp"), allow(dead_code))]
mod exit_gate;
#[cfg(feature = "llama-cpp")]
pub mod llama_cpp;
pub mod sample;
mod scheduler;
mod slots;
mod stage;
pub mod thread;

use std::sync::Arc;

pub use cuts::CutRules;
pub use error::EngineError;
pub use stage::{Embedder, Engine, KvType, MAX_OUTPUT_ROWS, Row, Stage, StageConfig, StageSpec, StepOptions};
pub use thread::{Reduce, StageHandle, StepJob, StepOutput};

/// The engines of this build, in order of preference.
pub fn built_in() -> Vec<Arc<dyn Engine>> {
    vec![
        #[cfg(feature = "llama-cpp")]
        Arc::new(llama_cpp::LlamaCpp::new()),
        #[cfg(feature = "candle")]
        Arc::new(candle::Candle::new()),
    ]
}
