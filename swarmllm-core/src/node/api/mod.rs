//! What hosts ask of the node and are told: plain data, which the acts of the node read and make.

pub(super) mod error;
pub(super) mod findings;
pub(super) mod report;
pub(super) mod request;
