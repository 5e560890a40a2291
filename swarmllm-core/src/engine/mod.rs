//! Engines: what computes a range of layers. They do not know that there is a network.
//!
//! A [`Stage`] takes hidden states and gives hidden states, or logits where it holds the head; the embedding is looked
//! up apart, by an [`Embedder`], so that every stage has one shape. A stage is owned by one OS thread ([`thread`]) and
//! reached through a [`StageHandle`]. Everything foreign is checked here, before an engine sees it, because llama.cpp
//! aborts the process where it is misused.
//!
//! May import: base, rt, model.

mod awake;
#[cfg(feature = "candle")]
pub mod candle;
pub mod constraint;
mod cores;
mod cuts;
pub mod echo;
mod error;
// Only llama.cpp has tables that the end of the process takes away.
#[cfg_attr(not(feature = "llama-cpp"), allow(dead_code))]
mod gate;
#[cfg(feature = "llama-cpp")]
pub mod llama_cpp;
pub mod sample;
mod schedule;
mod slots;
mod stage;
pub mod thread;

use std::sync::Arc;

pub use cuts::CutRules;
pub use error::EngineError;
pub use stage::{Embedder, Engine, KvCache, Row, Stage, StageConfig, StageSpec, Terms, WANTED_ROWS};
pub use thread::{Reduce, StageHandle, StepJob, StepOutput};

/// The engines of this build, best first.
pub fn built_in() -> Vec<Arc<dyn Engine>> {
    vec![
        #[cfg(feature = "llama-cpp")]
        Arc::new(llama_cpp::LlamaCpp::new()),
        #[cfg(feature = "candle")]
        Arc::new(candle::Candle::new()),
    ]
}
