//! The pipeline: plans which nodes compute which layers, and runs sessions over them.
//!
//! The only room where the engine meets the network. [`plan`] and [`session`] are pure, as is what decides when a route
//! breaks ([`way`], [`search`]), what a stage admits ([`turns`]) and whose slots and memory go to others ([`slots`], `room`) and all that
//! a coordinator decides of a session ([`driver`]); [`runner`] performs that with network, engine and timers, [`serve`] computes its stages on their hosts, [`links`] carries
//! messages between them. [`stand_by`] lets other hosts follow a stage, and [`placement`] says which layers a node should hold at all.
//! Promises: a cancelled, failed or forgotten session frees its KV at every stage; a bad frame ends its session and
//! nothing else; nothing queues without a bound.
//!
//! May import: base, identity, wire, rt, store, ledger, model, engine, net.

mod bodies;
pub mod context;
pub mod control;
pub mod draft;
pub mod drafter;
pub mod driver;
pub mod failures;
mod fewest;
pub mod hops;
pub mod job;
mod link;
pub mod links;
mod losses;
pub mod message;
mod outgoing;
pub mod overlap;
pub mod placement;
pub mod plan;
pub mod pool;
pub mod prefix;
mod room;
pub mod route;
pub mod runner;
pub mod search;
pub mod serve;
pub mod session;
pub mod settle;
#[cfg(test)]
mod sim;
pub mod slots;
pub mod speeds;
pub mod stages;
pub mod stand_by;
pub mod turns;
pub mod watch;
pub mod way;

pub use plan::{Candidate, NoPlan, Plan, PlanRequest, PlanStage};
