//! What peers ask of the node: one dispatcher, and bounded pools of what it does at once.

pub(super) mod dispatcher;
pub(super) mod pools;
