//! The planner: which nodes compute which layers. Pure.
//!
//! A plan has one stage where a single machine can hold the model, else the fewest stages. Among plans with equally
//! many stages it minimises the time per token: the hosts' compute time, by the speed that each has shown, and the
//! round trips between them. A stage never breaks the architecture's cut rules, and the stages of a host fit into its
//! free memory together.
//!
//! [`round_trips`] defines how the way from host to host counts, and [`speeds`] measures hosts. [`standby`] chooses the
//! hosts of hot standbys.

mod request;
pub mod round_trips;
mod search;
pub mod speeds;
mod stage_options;
pub mod standby;

use crate::base::{Bytes, LayerRange, missing_ranges};
use crate::engine::CutRules;

pub use request::{Candidate, Plan, PlanRequest, PlanStage, ReportedRoundTrips};

/// Why no plan is possible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPlan {
    /// No node within reach holds some of the layers.
    #[error("layers {} are held by no node within reach; let one import or pull them", list(.layers))]
    NoHolder { layers: Vec<LayerRange> },
    /// No node within reach holds the head together with the last layer.
    #[error("no node within reach holds the head together with layer {last_layer}; let one pull it")]
    NoHead { last_layer: u32 },
    /// All shards are held, but the cut rules forbid every chain of stages.
    #[error("every chain of stages breaks a cut rule ({rules}); hold longer ranges")]
    NoChain { rules: String },
    /// There are legal chains, but none fits into the memory of its hosts.
    #[error(
        "no chain of stages fits into the memory of the nodes within reach: the whole model takes {whole}, and none of them \
         has more than {free} free"
    )]
    NoMemory { whole: Bytes, free: Bytes },
}

fn list(ranges: &[LayerRange]) -> String {
    ranges.iter().map(LayerRange::to_string).collect::<Vec<_>>().join(", ")
}

/// Finds the plan, by dynamic programming over layer boundaries.
///
/// The stages of a host must fit into its memory together. So the cheapest partial plan up to a boundary may have no
/// continuation where a costlier one has. The planner first searches behind the cheapest partial plans alone, then
/// behind more of them, and last with all legal stages instead of the stages of the shortest chains. The search is
/// incomplete, because a complete one would take too long: it may miss a chain over many half-full hosts, and a chain
/// over hosts beyond its steps where there are thousands.
pub fn plan(request: &PlanRequest) -> Result<Plan, NoPlan> {
    let fewest = stage_options::fewest(request);
    // There is no chain, even if a host's stages took no memory from each other.
    if fewest.first().is_none_or(Vec::is_empty) {
        return Err(no_plan(request));
    }
    let found = search::search_fewest(request, &fewest).or_else(|| search::search_all(request));
    found.ok_or_else(|| no_plan(request))
}

/// The reason why there is no plan.
fn no_plan(request: &PlanRequest) -> NoPlan {
    let held = request.candidates.iter().flat_map(|candidate| &candidate.layers);
    let missing = missing_ranges(&held.copied().collect::<Vec<_>>(), request.layers);
    if !missing.is_empty() {
        return NoPlan::NoHolder { layers: missing };
    }
    let last_layer = request.layers.saturating_sub(1);
    let last = LayerRange::new(last_layer, request.layers);
    if !request.candidates.iter().any(|candidate| candidate.holds(last, true)) {
        return NoPlan::NoHead { last_layer };
    }
    // If there is a chain without memory bounds, memory is short.
    if stage_options::fewest(&PlanRequest { memory: &|_, _| 0, ..*request }).first().is_none_or(Vec::is_empty) {
        return NoPlan::NoChain { rules: describe(request.cuts) };
    }
    let free = request.candidates.iter().map(|candidate| candidate.free_memory).max().unwrap_or(0);
    let whole = (request.memory)(LayerRange::new(0, request.layers), true);
    NoPlan::NoMemory { whole: Bytes(whole), free: Bytes(free) }
}

fn describe(cuts: &CutRules) -> String {
    let kinds = if cuts.must_contain.is_empty() { "" } else { ", each with a sliding-window layer" };
    let lengths: Vec<String> = cuts.forbidden.iter().map(u32::to_string).collect();
    let lengths = if lengths.is_empty() { String::new() } else { format!(", never of {}", lengths.join(" or ")) };
    format!("stages of at least {} layers starting on multiples of {}{kinds}{lengths}", cuts.min_layers, cuts.align)
}

#[cfg(test)]
mod tests;
