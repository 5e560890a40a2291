//! Placement: which layers of a model a node should hold, so that the swarm holds every layer often enough. Pure.
//!
//! Each node decides for itself. It goes through the members in an order that is the same everywhere, computes each
//! member's best move given the moves before it, and makes its own. So nodes with the same view make different moves. A
//! member may never make its expected move, because it is slow or does not place at all. So each time that a node has
//! waited without seeing a change, it expects a move of one member less, and in the end of none.
//!
//! A node holds one range of a model, which is a legal stage and fits. It fetches layers without a holder first, then
//! layers with the fewest holders. It drops layers only for layers that are short, and only if enough members *before*
//! it in the order hold each dropped layer. So of all nodes that ever held a layer the first few never drop it, however
//! late announcements arrive, and two nodes that rely on each other do not both drop. A layer therefore gets short only
//! by nodes that leave, and the moves end: the set of the first few changes finitely often, and then all nodes know it.
//! Before it drops anything, the caller must ask these holders whether they are still there.
//!
//! The cost: a few nodes may end in places where a layer has no holder although there is space for it, because each
//! node is needed where it is and none reaches that layer. Of starts with twice the space one in 8,600 ends so; the
//! next node that joins takes the layer.

use std::cmp::Reverse;

use crate::base::{LayerRange, ModelId, NodeId, merge_ranges};
use crate::engine::CutRules;

/// Least target of holders per layer: one may be lost.
pub const MIN_HOLDERS: u32 = 2;
/// Greatest target of holders, however great the demand, since peers' reports of demand are not proven.
const MAX_HOLDERS: u32 = 8;
/// A move that drops layers, for layers that have a holder, is worth its transfer only where at least one in this many
/// fetched layers is short.
const FETCHED_PER_SHORT: u32 = 4;

/// A node's holding of a model, and its limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlacementNode {
    /// The node.
    pub node: NodeId,
    /// The layers that it holds, merged and sorted.
    pub layers: Vec<LayerRange>,
    /// Whether it holds the head's shards.
    pub head: bool,
    /// Bytes that its stage of the model may take.
    pub capacity: u64,
    /// Layers that it never drops. A node knows this only of itself.
    pub pinned: Vec<LayerRange>,
    /// Layers that it never takes. A node knows this only of itself.
    pub excluded: Vec<LayerRange>,
}

/// The input of a decision.
pub struct Placement<'a> {
    /// The model.
    pub model: ModelId,
    /// How many layers it has.
    pub layers: u32,
    /// The legal stages of its architecture.
    pub cuts: &'a CutRules,
    /// The target of holders per layer.
    pub holders: u32,
    /// All nodes that may hold it, the deciding node included.
    pub members: &'a [PlacementNode],
    /// Bytes of a stage, by its layers and whether it has the head; more layers take more.
    pub size: &'a dyn Fn(LayerRange, bool) -> u64,
}

/// The target of holders per layer for a model of `layers` layers, from the ranges that its holders have in use: one
/// more than the sessions that run, so that the next session finds a free holder.
pub fn target_holders<'a>(layers: u32, in_use: impl Iterator<Item = &'a [LayerRange]>) -> u32 {
    let mut busy = vec![0_u32; layers as usize];
    for ranges in in_use {
        let used = busy.iter_mut().zip(0..).filter(|(_, layer)| within(ranges, *layer));
        used.for_each(|(busy, _)| *busy = busy.saturating_add(1));
    }
    // Each session uses all layers.
    let sessions = busy.into_iter().min().unwrap_or(0);
    sessions.saturating_add(1).clamp(MIN_HOLDERS, MAX_HOLDERS)
}

/// A node's move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reassignment {
    /// The range to hold from now on. A range with the model's last layer includes the head. A range with the first
    /// layer includes the metadata and the embedding, which coordinators need.
    pub hold: LayerRange,
    /// The layers to drop for it.
    pub drop: Vec<LayerRange>,
}

/// The number of holders of each layer.
struct HolderCounts {
    /// Members before the deciding member.
    before: Vec<u32>,
    /// All members, after the expected moves.
    expected: Vec<u32>,
}

/// The rank of a move, greater is better: layers that get their first holder; whether nothing is dropped; short layers
/// that get a holder; how few layers are fetched; and how early the range begins, so that ranges lie close together.
type Merit = (u32, bool, u32, Reverse<u32>, Reverse<u32>);

impl Placement<'_> {
    /// The move of `local`, which has waited `waited` times without seeing a change; nothing where no layer is short,
    /// or others have better moves.
    pub fn decide(&self, local: NodeId, waited: u32) -> Option<Reassignment> {
        let ranked = self.ranked();
        let held: Vec<Vec<bool>> = ranked.iter().map(|member| self.held(member)).collect();
        let now: Vec<u32> =
            (0..self.layers as usize).map(|layer| held.iter().filter(|held| held[layer]).count() as u32).collect();
        if now.iter().all(|count| *count >= self.holders) {
            return None;
        }
        let stages = self.stages();
        let mut counts = HolderCounts { before: vec![0; now.len()], expected: now };
        // Members whose moves are not expected any more.
        let mut ignored = waited;
        for (member, held) in ranked.iter().zip(&held) {
            let found = self.best(member, held, &counts, &stages);
            if member.node == local {
                return found;
            }
            counts.before.iter_mut().zip(held).for_each(|(before, held)| *before += u32::from(*held));
            let Some(found) = found else { continue };
            let expected = ignored == 0;
            ignored = ignored.saturating_sub(1);
            for (layer, held) in held.iter().enumerate().filter(|_| expected) {
                let wanted = contains(found.hold, layer as u32);
                counts.expected[layer] =
                    counts.expected[layer] + u32::from(wanted && !held) - u32::from(*held && !wanted);
            }
        }
        None
    }

    /// The layers that `local` may drop: not pinned, and held by enough members before it.
    pub fn droppable(&self, local: NodeId) -> Vec<LayerRange> {
        let mut before = vec![0; self.layers as usize];
        for member in self.ranked() {
            let held = self.held(member);
            if member.node == local {
                let may = |layer: &u32| held[*layer as usize] && self.may_drop(member, &before, *layer as usize);
                return merge_ranges((0..self.layers).filter(may).collect());
            }
            before.iter_mut().zip(held).for_each(|(before, held)| *before += u32::from(held));
        }
        Vec::new()
    }

    /// The members before `local` that hold any of these layers, in their order: the holders to ask before a drop.
    pub fn holders_before(&self, local: NodeId, layers: &[LayerRange]) -> Vec<NodeId> {
        let before = self.ranked().into_iter().take_while(|member| member.node != local);
        let overlaps =
            |range: &LayerRange| layers.iter().any(|other| range.start < other.end && other.start < range.end);
        before.filter(|member| member.layers.iter().any(overlaps)).map(|member| member.node).collect()
    }

    fn may_drop(&self, member: &PlacementNode, before: &[u32], layer: usize) -> bool {
        before[layer] >= self.holders && !within(&member.pinned, layer as u32)
    }

    /// The members in their order.
    fn ranked(&self) -> Vec<&PlacementNode> {
        let mut ranked: Vec<&PlacementNode> = self.members.iter().collect();
        ranked.sort_by_cached_key(|member| (self.rank(member.node), member.node));
        ranked
    }

    /// The layers that a member holds; the last layer counts only with the head.
    fn held(&self, member: &PlacementNode) -> Vec<bool> {
        (0..self.layers)
            .map(|layer| within(&member.layers, layer) && (member.head || layer + 1 < self.layers))
            .collect()
    }

    /// The legal stages from each layer that end where another stage may begin, the shortest first, with their bytes.
    /// Computed once, since there may be thousands of members.
    fn stages(&self) -> Vec<Vec<(LayerRange, u64)>> {
        let step = self.cuts.align.max(1);
        let of = |start: u32| {
            let ends = (start + 1..=self.layers).filter(|end| *end == self.layers || end.is_multiple_of(step));
            let legal =
                ends.map(|end| LayerRange::new(start, end)).filter(|range| self.cuts.violation(*range).is_none());
            legal.map(|range| (range, (self.size)(range, range.end == self.layers))).collect()
        };
        (0..self.layers).map(of).collect()
    }

    /// The member's best move.
    fn best(
        &self,
        member: &PlacementNode,
        held: &[bool],
        counts: &HolderCounts,
        stages: &[Vec<(LayerRange, u64)>],
    ) -> Option<Reassignment> {
        let excluded = |hold: LayerRange| (hold.start..hold.end).any(|layer| within(&member.excluded, layer));
        let fits = |(hold, size): &&(LayerRange, u64)| *size <= member.capacity && !excluded(*hold);
        let longest = stages.iter().filter_map(|stages| stages.iter().rev().find(fits)).map(|(hold, _)| *hold);
        let found = longest.filter_map(|hold| Some((self.merit(member, held, counts, hold)?, hold)));
        let (_, hold) = found.max_by_key(|(merit, _)| *merit)?;
        let dropped = (0..self.layers).filter(|layer| held[*layer as usize] && !contains(hold, *layer));
        Some(Reassignment { hold, drop: merge_ranges(dropped.collect()) })
    }

    /// The rank of a move; nothing where it is not worth it, or not allowed.
    fn merit(&self, member: &PlacementNode, held: &[bool], counts: &HolderCounts, hold: LayerRange) -> Option<Merit> {
        let (mut unheld, mut short, mut fetched, mut drops) = (0, 0, 0, false);
        for (layer, held) in held.iter().enumerate() {
            match (*held, contains(hold, layer as u32)) {
                (false, true) => {
                    fetched += 1;
                    unheld += u32::from(counts.expected[layer] == 0);
                    short += u32::from(counts.expected[layer] < self.holders);
                }
                (true, false) if !self.may_drop(member, &counts.before, layer) => return None,
                (true, false) => drops = true,
                _ => {}
            }
        }
        if short == 0 || (drops && unheld == 0 && short * FETCHED_PER_SHORT < fetched) {
            return None;
        }
        Some((unheld, !drops, short, Reverse(fetched), Reverse(hold.start)))
    }

    /// A node's place in the order, which is the same everywhere and differs between models.
    fn rank(&self, node: NodeId) -> u64 {
        let words = |bytes: &[u8]| {
            let words = bytes.chunks(8).map(|word| word.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)));
            words.fold(0, |hash, word| mix(hash ^ word))
        };
        mix(words(&self.model.0) ^ words(&node.0).rotate_left(1))
    }
}

/// A mixing function: every bit of the input affects every bit of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

fn within(ranges: &[LayerRange], layer: u32) -> bool {
    ranges.iter().any(|range| contains(*range, layer))
}

fn contains(range: LayerRange, layer: u32) -> bool {
    range.start <= layer && layer < range.end
}

#[cfg(test)]
mod churn;
#[cfg(test)]
mod tests;
