//! Types shared by all modules: identifiers, layer ranges, units, names, error kinds, events, and errors about JSON.
//!
//! Pure: no IO, no clock, no randomness, no state. Imports no other module.

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
