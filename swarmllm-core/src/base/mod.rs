//! The words every other room speaks: identifiers, layer ranges, units, names, error kinds, events, and what is said of JSON
//! that does not fit.
//!
//! Owns nothing and promises purity: no IO, no clock, no randomness. May import nothing.

mod error;
mod event;
mod id;
pub mod json;
mod layers;
pub mod names;
mod units;

pub use error::{ErrorKind, Fault};
pub use event::{Event, Progress};
pub use id::{Hash, ModelId, NodeId, ParseIdError, SessionId, ShardId};
pub use layers::{LayerRange, merge_ranges, missing_ranges};
pub use units::Bytes;
