//! The host's side of sessions: the stages that this node computes.
//!
//! [`serve`] admits a session and runs its stage; [`stage_session`] decides what a stage accepts. [`stages`] loads
//! stages, and grants their [`slots`] and memory; [`context`] sizes a stage's KV, and [`eviction`] decides whose idle
//! stages are unloaded. [`standby_feed`] copies steps to a hot standby.

pub mod context;
mod eviction;
pub mod serve;
pub mod slots;
pub mod stage_session;
pub mod stages;
pub mod standby_feed;
