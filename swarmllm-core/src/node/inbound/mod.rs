//! Requests of peers: one dispatcher, with bounded pools of concurrent work.

pub(super) mod dispatcher;
pub(super) mod pools;
