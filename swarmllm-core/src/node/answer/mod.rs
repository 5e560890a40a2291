//! Answers: a request gets its turn, its plan and its place, is run, and is read as text.

pub(super) mod admission;
pub(super) mod constraint;
pub(super) mod conversation;
pub(super) mod drafting;
pub(super) mod embedding;
pub(super) mod generation;
pub(super) mod planners;
pub(super) mod planning;
pub(super) mod queue;
pub(super) mod readiness;
pub(super) mod reading;
pub(super) mod sink;
pub(super) mod text;
pub(super) mod unread;
