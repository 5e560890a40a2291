//! Requests, reports and errors of the public interface: plain data.

pub(super) mod blocking_call;
pub(super) mod error;
pub(super) mod findings;
pub(super) mod partial_options;
pub(super) mod report;
pub(super) mod request;
