//! The stages that the planner tries: the stages of all chains with the fewest stages, or all legal stages.
//!
//! Plans with fewer stages come first, so that most boundaries need no search. A forward pass over the layers finds the
//! fewest stages up to each boundary, where each stage fits into the memory of some host. A backward pass keeps the
//! stages of chains with the fewest stages. Two stages of one host may not fit into its memory together. The passes
//! ignore that, so that their count is a lower bound: where no plan has so few stages, the planner tries [`all`]
//! stages.

use std::collections::HashSet;

use crate::base::LayerRange;
use crate::pipeline::plan::request::PlanRequest;

/// A stage that is tried, with the needs that are the same for every host: computed once, since there may be thousands
/// of hosts.
#[derive(Debug, Clone, Copy)]
pub(super) struct StageOption {
    pub layers: LayerRange,
    pub head: bool,
    pub memory: u64,
    /// The least memory of this stage and the longer stages from its first layer: a host with less free can have none
    /// of them.
    pub least: u64,
    pub weight: u64,
}

/// The stages from each layer, the shortest first.
pub(super) type StageOptions = Vec<Vec<StageOption>>;

/// All stages that the cut rules allow.
pub(super) fn all(request: &PlanRequest) -> StageOptions {
    let stage = |start, end| {
        let layers = LayerRange::new(start, end);
        request.cuts.violation(layers).is_none().then(|| (layers, memory(request, layers)))
    };
    let from = |start| (start + 1..=request.layers).filter_map(|end| stage(start, end)).collect();
    (0..request.layers).map(|start| options(request, from(start))).collect()
}

/// The stages of all chains with the fewest stages; none where there is no chain.
pub(super) fn fewest(request: &PlanRequest) -> StageOptions {
    let layers = request.layers as usize;
    let mut stages = vec![Vec::new(); layers];
    // The fewest stages up to each boundary.
    let mut counts = vec![None; layers + 1];
    let mut capacity = HostCapacity::new(request);
    counts[0] = Some(0);
    for start in 0..layers {
        capacity.advance(start);
        let Some(count) = counts[start].map(|count: u32| count + 1) else { continue };
        for (end, fewest) in counts.iter_mut().enumerate().skip(start + 1) {
            if fewest.is_some_and(|fewest| fewest < count) {
                continue;
            }
            let stage = LayerRange::new(start as u32, end as u32);
            if let Some(memory) = capacity.fits(request, stage) {
                *fewest = Some(count);
                stages[start].push((stage, memory));
            }
        }
    }
    // Whether a chain of the fewest stages leads from a boundary to the end.
    let mut completes = vec![false; layers + 1];
    completes[layers] = true;
    for start in (0..layers).rev() {
        let count = counts[start].map(|count| count + 1);
        stages[start].retain(|(stage, _)| completes[stage.end as usize] && counts[stage.end as usize] == count);
        completes[start] = !stages[start].is_empty();
    }
    stages.into_iter().map(|stages| options(request, stages)).collect()
}

fn memory(request: &PlanRequest, layers: LayerRange) -> u64 {
    (request.memory)(layers, layers.end == request.layers)
}

/// The options for the stages from one layer, the shortest first.
fn options(request: &PlanRequest, stages: Vec<(LayerRange, u64)>) -> Vec<StageOption> {
    let option = |(layers, memory): (LayerRange, u64)| {
        let head = layers.end == request.layers;
        StageOption { layers, head, memory, least: memory, weight: (request.weight)(layers, head) }
    };
    let mut options: Vec<StageOption> = stages.into_iter().map(option).collect();
    let mut least = u64::MAX;
    for option in options.iter_mut().rev() {
        least = least.min(option.memory);
        option.least = least;
    }
    options
}

/// The most free memory of any host for a single stage, computed start by start.
struct HostCapacity {
    /// The ranges that hosts hold, by their start: their end, and the host's free memory. A range of a host without the
    /// head ends before the last boundary.
    ranges: Vec<Vec<(usize, u64)>>,
    /// The most memory that a host has free for a stage from the current start to each end.
    most: Vec<Option<u64>>,
    /// Stages that are loaded somewhere.
    loaded: HashSet<LayerRange>,
}

impl HostCapacity {
    fn new(request: &PlanRequest) -> Self {
        let (last, layers) = (request.layers, request.layers as usize);
        let (mut ranges, mut loaded) = (vec![Vec::new(); layers], HashSet::new());
        for candidate in request.candidates {
            for range in &candidate.layers {
                let end = range.end.min(if candidate.head { last } else { last.saturating_sub(1) });
                if range.start < end {
                    ranges[range.start as usize].push((end as usize, candidate.free_memory));
                }
            }
            let usable =
                |(stage, head): &&(LayerRange, bool)| *head == (stage.end == last) && candidate.holds(*stage, *head);
            loaded.extend(candidate.loaded.iter().filter(usable).map(|(stage, _)| *stage));
        }
        Self { ranges, most: vec![None; layers + 1], loaded }
    }

    /// Advances to the next start; the first call is for start 0. Ranges from earlier starts count for later starts,
    /// too.
    fn advance(&mut self, start: usize) {
        for (end, free) in &self.ranges[start] {
            self.most[*end] = self.most[*end].max(Some(*free));
        }
        for end in (start + 1..self.most.len() - 1).rev() {
            self.most[end] = self.most[end].max(self.most[end + 1]);
        }
    }

    /// Bytes of a stage from the current start, if it is legal and fits on some host.
    fn fits(&self, request: &PlanRequest, stage: LayerRange) -> Option<u64> {
        let most = self.most[stage.end as usize]?;
        if request.cuts.violation(stage).is_some() {
            return None;
        }
        let memory = memory(request, stage);
        (memory <= most || self.loaded.contains(&stage)).then_some(memory)
    }
}
