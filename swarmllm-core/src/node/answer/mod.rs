//! Answers: a request is queued, planned, admitted at its hosts, run, and read as text.

pub(super) mod admission;
pub(super) mod constraint;
pub(super) mod conversation;
pub(super) mod delta_channel;
pub(super) mod drafting;
pub(super) mod embedding;
pub(super) mod generation;
pub(super) mod plan_pool;
pub(super) mod planning;
pub(super) mod prompt_reader;
pub(super) mod queue;
pub(super) mod readiness;
pub(super) mod sink;
pub(super) mod state;
pub(super) mod text;
