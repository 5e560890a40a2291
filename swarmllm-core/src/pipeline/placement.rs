//! Placement: which layers of a model a node should hold, so that the swarm has all of them often enough. Pure.
//!
//! Nobody decides for others. Every node goes through the members in the same order, thinks of each what it would do, and
//! does what it finds for itself: who sees the same does not do the same. A member may never do what is thought of it, since
//! it is slow, or does not place at all; so a node that has waited without seeing a change expects that less of those before
//! it, one more each time, and in the end of nobody.
//!
//! A node holds one range of a model, that is a legal stage and fits. It fetches what the fewest have, and what nobody has
//! first. It gives up what it holds only for something that is short, and only if enough of those who come *before* it in
//! the order have each layer of it. So of all who ever had a layer the first few never give it up, however late whoever
//! hears of whom, and two that count on each other do not both go. What is short therefore only grows by those who leave,
//! and there is an end to moving: who the first few are changes finitely often, and then everybody knows of them. That they
//! are still there is for the caller to ask, of themselves, before anything goes.
//!
//! The price of that: a few nodes may come to lie so that a layer has no holder though there is room for it, because each is
//! needed where it is and none reaches it. Of starts with twice the room one in 8,600 ends so; who joins takes it.

use std::cmp::Reverse;

use crate::base::{LayerRange, ModelId, NodeId, merge_ranges};
use crate::engine::CutRules;

/// Holders that each layer is to have, at least: one may be lost.
pub const HOLDERS: u32 = 2;
/// And at most, however great the demand: what peers say of it is not proven.
const MOST_HOLDERS: u32 = 8;
/// What is given up for layers that somebody has must be for so large a part of what is fetched instead, since a whole range
/// is transferred for it: one of so many layers is short.
const WORTH: u32 = 4;

/// What is known of a node and a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// Layers it holds, merged and sorted.
    pub layers: Vec<LayerRange>,
    /// Whether it holds what the head needs.
    pub head: bool,
    /// Bytes that its stage of the model may take.
    pub room: u64,
    /// Layers that it does not give up whatever others have, and those that it does not take. A node knows that of itself.
    pub keeps: Vec<LayerRange>,
    pub refuses: Vec<LayerRange>,
}

/// What is decided by.
pub struct Placement<'a> {
    /// The model.
    pub model: ModelId,
    /// Its layers.
    pub layers: u32,
    /// Where it may be cut.
    pub cuts: &'a CutRules,
    /// Holders that each layer is to have.
    pub holders: u32,
    /// All who may hold it, the deciding node among them.
    pub members: &'a [Member],
    /// Bytes that a stage takes; more layers take more.
    pub size: &'a dyn Fn(LayerRange, bool) -> u64,
}

/// Holders that each layer of a model is to have of which `layers` layers are computed by those who have these in use: one
/// more than answer at once, so that the next session finds one that is free.
pub fn holders<'a>(layers: u32, in_use: impl Iterator<Item = &'a [LayerRange]>) -> u32 {
    let mut busy = vec![0_u32; layers as usize];
    for ranges in in_use {
        let used = busy.iter_mut().zip(0..).filter(|(_, layer)| within(ranges, *layer));
        used.for_each(|(busy, _)| *busy = busy.saturating_add(1));
    }
    // Each session uses all layers.
    let sessions = busy.into_iter().min().unwrap_or(0);
    sessions.saturating_add(1).clamp(HOLDERS, MOST_HOLDERS)
}

/// What a node should do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// What to hold from now on. Where it ends with the model's last layer the head belongs to it, and where it begins with
    /// the first the metadata and the embedding, which whoever asks needs.
    pub hold: LayerRange,
    /// What to give up for it.
    pub drop: Vec<LayerRange>,
}

/// How many hold each layer.
struct Counts {
    /// Of those who come before the one that decides.
    before: Vec<u32>,
    /// When all have done what is thought of them.
    soon: Vec<u32>,
}

/// The merits of a move, the better the greater: layers it brings that nobody has, that nothing is given up for it, holders
/// that it brings where they are short, how little is fetched, and how early it begins, so that ranges lie close together.
type Merit = (u32, bool, u32, Reverse<u32>, Reverse<u32>);

impl Placement<'_> {
    /// What `local` should do, having waited so many times without seeing a change; nothing where all is well, or others
    /// can do better.
    pub fn decide(&self, local: NodeId, waited: u32) -> Option<Move> {
        let ranked = self.ranked();
        let held: Vec<Vec<bool>> = ranked.iter().map(|member| self.held(member)).collect();
        let now: Vec<u32> =
            (0..self.layers as usize).map(|layer| held.iter().filter(|held| held[layer]).count() as u32).collect();
        if now.iter().all(|count| *count >= self.holders) {
            return None;
        }
        let stages = self.stages();
        let mut counts = Counts { before: vec![0; now.len()], soon: now };
        let mut doubted = waited;
        for (member, held) in ranked.iter().zip(&held) {
            let found = self.best(member, held, &counts, &stages);
            if member.node == local {
                return found;
            }
            counts.before.iter_mut().zip(held).for_each(|(before, held)| *before += u32::from(*held));
            let Some(found) = found else { continue };
            let expected = doubted == 0;
            doubted = doubted.saturating_sub(1);
            for (layer, held) in held.iter().enumerate().filter(|_| expected) {
                let wanted = contains(found.hold, layer as u32);
                counts.soon[layer] = counts.soon[layer] + u32::from(wanted && !held) - u32::from(*held && !wanted);
            }
        }
        None
    }

    /// What `local` may give up: what it need not keep, and enough of those before it have.
    pub fn spare(&self, local: NodeId) -> Vec<LayerRange> {
        let mut before = vec![0; self.layers as usize];
        for member in self.ranked() {
            let held = self.held(member);
            if member.node == local {
                let may = |layer: &u32| held[*layer as usize] && self.may_go(member, &before, *layer as usize);
                return merge_ranges((0..self.layers).filter(may).collect());
            }
            before.iter_mut().zip(held).for_each(|(before, held)| *before += u32::from(held));
        }
        Vec::new()
    }

    /// Those before `local` that hold any of these layers, in their order: whom to ask before something is given up.
    pub fn holders_before(&self, local: NodeId, layers: &[LayerRange]) -> Vec<NodeId> {
        let before = self.ranked().into_iter().take_while(|member| member.node != local);
        let overlaps =
            |range: &LayerRange| layers.iter().any(|other| range.start < other.end && other.start < range.end);
        before.filter(|member| member.layers.iter().any(overlaps)).map(|member| member.node).collect()
    }

    fn may_go(&self, member: &Member, before: &[u32], layer: usize) -> bool {
        before[layer] >= self.holders && !within(&member.keeps, layer as u32)
    }

    /// The members in their order.
    fn ranked(&self) -> Vec<&Member> {
        let mut ranked: Vec<&Member> = self.members.iter().collect();
        ranked.sort_by_cached_key(|member| (self.rank(member.node), member.node));
        ranked
    }

    /// Layers that a member has; the last only with the head.
    fn held(&self, member: &Member) -> Vec<bool> {
        (0..self.layers)
            .map(|layer| within(&member.layers, layer) && (member.head || layer + 1 < self.layers))
            .collect()
    }

    /// The legal stages from each layer on that end where another may begin, the shortest first, and what they take: asked
    /// once, since there may be thousands of members.
    fn stages(&self) -> Vec<Vec<(LayerRange, u64)>> {
        let step = self.cuts.align.max(1);
        let of = |start: u32| {
            let ends = (start + 1..=self.layers).filter(|end| *end == self.layers || end.is_multiple_of(step));
            let legal = ends.map(|end| LayerRange::new(start, end)).filter(|range| self.cuts.refuses(*range).is_none());
            legal.map(|range| (range, (self.size)(range, range.end == self.layers))).collect()
        };
        (0..self.layers).map(of).collect()
    }

    /// The member's best move.
    fn best(&self, member: &Member, held: &[bool], counts: &Counts, stages: &[Vec<(LayerRange, u64)>]) -> Option<Move> {
        let refused = |hold: LayerRange| (hold.start..hold.end).any(|layer| within(&member.refuses, layer));
        let fits = |(hold, size): &&(LayerRange, u64)| *size <= member.room && !refused(*hold);
        let longest = stages.iter().filter_map(|stages| stages.iter().rev().find(fits)).map(|(hold, _)| *hold);
        let found = longest.filter_map(|hold| Some((self.merit(member, held, counts, hold)?, hold)));
        let (_, hold) = found.max_by_key(|(merit, _)| *merit)?;
        let dropped = (0..self.layers).filter(|layer| held[*layer as usize] && !contains(hold, *layer));
        Some(Move { hold, drop: merge_ranges(dropped.collect()) })
    }

    /// What a move is good for; nothing where it is not, or may not be.
    fn merit(&self, member: &Member, held: &[bool], counts: &Counts, hold: LayerRange) -> Option<Merit> {
        let (mut unheld, mut short, mut fetched, mut drops) = (0, 0, 0, false);
        for (layer, held) in held.iter().enumerate() {
            match (*held, contains(hold, layer as u32)) {
                (false, true) => {
                    fetched += 1;
                    unheld += u32::from(counts.soon[layer] == 0);
                    short += u32::from(counts.soon[layer] < self.holders);
                }
                (true, false) if !self.may_go(member, &counts.before, layer) => return None,
                (true, false) => drops = true,
                _ => {}
            }
        }
        if short == 0 || (drops && unheld == 0 && short * WORTH < fetched) {
            return None;
        }
        Some((unheld, !drops, short, Reverse(fetched), Reverse(hold.start)))
    }

    /// A node's place in the order, which is the same everywhere and another for each model.
    fn rank(&self, node: NodeId) -> u64 {
        let words = |bytes: &[u8]| {
            let words = bytes.chunks(8).map(|word| word.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)));
            words.fold(0, |hash, word| scatter(hash ^ word))
        };
        scatter(words(&self.model.0) ^ words(&node.0).rotate_left(1))
    }
}

/// Makes every bit of the input count in every bit of the output.
fn scatter(value: u64) -> u64 {
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
