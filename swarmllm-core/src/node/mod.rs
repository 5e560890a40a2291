//! The node: what a host program starts, asks and stops.
//!
//! May import: everything below (base to pipeline). Its public items are all that server, C, Python and CLI use.

mod api;

pub use api::*;
