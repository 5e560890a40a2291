//! Which stages the planner tries: those that a chain of the fewest stages can have.
//!
//! The number of stages counts before all else, so that most boundaries need no search. A pass over the layers finds the
//! fewest stages before each boundary, where each stage fits into the memory of some host; a pass back keeps the stages that
//! lie on a chain of the fewest. Two stages of one host may not fit into its memory together. That is left out of account, so
//! that the number is a lower bound: where no plan has so few stages, the planner tries [`all`].

use std::collections::HashSet;

use crate::base::LayerRange;
use crate::pipeline::plan::PlanRequest;

/// A stage that is tried, and what every host would need for it: asked once, since there may be thousands of hosts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice {
    pub layers: LayerRange,
    pub head: bool,
    pub memory: u64,
    /// The least memory of this stage and the longer ones from its first layer: a host with less free has none of them.
    pub least: u64,
    pub weight: u64,
}

/// Stages by their first layer, the shortest first.
pub(super) type Choices = Vec<Vec<Choice>>;

/// All stages that the cut rules allow.
pub(super) fn all(request: &PlanRequest) -> Choices {
    let stage = |start, end| {
        let layers = LayerRange::new(start, end);
        request.cuts.refuses(layers).is_none().then(|| (layers, memory(request, layers)))
    };
    let from = |start| (start + 1..=request.layers).filter_map(|end| stage(start, end)).collect();
    (0..request.layers).map(|start| choices(request, from(start))).collect()
}

/// The stages of all chains of the fewest stages; none where there is no chain.
pub(super) fn fewest(request: &PlanRequest) -> Choices {
    let layers = request.layers as usize;
    let mut stages = vec![Vec::new(); layers];
    let mut before = vec![None; layers + 1];
    let mut room = Room::new(request);
    before[0] = Some(0);
    for start in 0..layers {
        room.advance(start);
        let Some(count) = before[start].map(|count: u32| count + 1) else { continue };
        for (end, fewest) in before.iter_mut().enumerate().skip(start + 1) {
            if fewest.is_some_and(|fewest| fewest < count) {
                continue;
            }
            let stage = LayerRange::new(start as u32, end as u32);
            if let Some(memory) = room.fits(request, stage) {
                *fewest = Some(count);
                stages[start].push((stage, memory));
            }
        }
    }
    let mut leads_on = vec![false; layers + 1];
    leads_on[layers] = true;
    for start in (0..layers).rev() {
        let count = before[start].map(|count| count + 1);
        stages[start].retain(|(stage, _)| leads_on[stage.end as usize] && before[stage.end as usize] == count);
        leads_on[start] = !stages[start].is_empty();
    }
    stages.into_iter().map(|stages| choices(request, stages)).collect()
}

fn memory(request: &PlanRequest, layers: LayerRange) -> u64 {
    (request.memory)(layers, layers.end == request.layers)
}

/// Stages from one layer, the shortest first, with what each takes.
fn choices(request: &PlanRequest, stages: Vec<(LayerRange, u64)>) -> Vec<Choice> {
    let choice = |(layers, memory): (LayerRange, u64)| {
        let head = layers.end == request.layers;
        Choice { layers, head, memory, least: memory, weight: (request.weight)(layers, head) }
    };
    let mut choices: Vec<Choice> = stages.into_iter().map(choice).collect();
    let mut least = u64::MAX;
    for choice in choices.iter_mut().rev() {
        least = least.min(choice.memory);
        choice.least = least;
    }
    choices
}

/// The room that hosts have for a single stage, found start by start.
struct Room {
    /// Of each range that some host holds: its end and the host's free memory, by its start. Where the host has no head, the
    /// last boundary is not among its ends.
    ranges: Vec<Vec<(usize, u64)>>,
    /// The most memory that a host has free for a stage from the present start to each end.
    most: Vec<Option<u64>>,
    /// Stages that are loaded somewhere.
    loaded: HashSet<LayerRange>,
}

impl Room {
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

    /// Goes on to the next start, or to the first. What reaches back before it reaches from it, too.
    fn advance(&mut self, start: usize) {
        for (end, free) in &self.ranges[start] {
            self.most[*end] = self.most[*end].max(Some(*free));
        }
        for end in (start + 1..self.most.len() - 1).rev() {
            self.most[end] = self.most[end].max(self.most[end + 1]);
        }
    }

    /// What a legal stage from the present start takes, where some host has room for it.
    fn fits(&self, request: &PlanRequest, stage: LayerRange) -> Option<u64> {
        let most = self.most[stage.end as usize]?;
        if request.cuts.refuses(stage).is_some() {
            return None;
        }
        let memory = memory(request, stage);
        (memory <= most || self.loaded.contains(&stage)).then_some(memory)
    }
}
