//! Ranges of transformer layers.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Layers `start..end`, counted from 0, `end` excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LayerRange {
    /// First layer.
    pub start: u32,
    /// One past the last layer.
    pub end: u32,
}

impl LayerRange {
    /// Layers `start..end`.
    pub fn new(start: u32, end: u32) -> Self {
        Self { start, end }
    }

    /// Number of layers; 0 if `end <= start`.
    pub fn len(&self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the range has no layers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `other` lies within this range.
    pub fn covers(&self, other: LayerRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }
}

impl fmt::Display for LayerRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Merges layers, in any order, into the fewest ranges, sorted.
pub fn merge_ranges(mut layers: Vec<u32>) -> Vec<LayerRange> {
    layers.sort_unstable();
    layers.dedup();
    let mut ranges: Vec<LayerRange> = Vec::new();
    for layer in layers {
        match ranges.last_mut() {
            Some(range) if range.end == layer => range.end = layer + 1,
            _ => ranges.push(LayerRange::new(layer, layer.saturating_add(1))),
        }
    }
    ranges
}

/// The parts of `0..layers` that no range in `held` covers.
pub fn missing_ranges(held: &[LayerRange], layers: u32) -> Vec<LayerRange> {
    let mut held: Vec<LayerRange> = held.iter().copied().filter(|range| !range.is_empty()).collect();
    held.sort_unstable();
    let mut missing = Vec::new();
    let mut next = 0;
    for range in held {
        if range.start > next {
            missing.push(LayerRange::new(next, range.start.min(layers)));
        }
        next = next.max(range.end);
        if next >= layers {
            return missing;
        }
    }
    missing.push(LayerRange::new(next, layers));
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adjacent_layers_are_merged() {
        let ranges = merge_ranges(vec![4, 0, 1, 2, 6, 5, 2]);
        assert_eq!(ranges, [LayerRange::new(0, 3), LayerRange::new(4, 7)]);
    }

    #[test]
    fn uncovered_layers_are_returned() {
        let held = [LayerRange::new(2, 4), LayerRange::new(6, 9)];
        let want = [LayerRange::new(0, 2), LayerRange::new(4, 6), LayerRange::new(9, 12)];
        assert_eq!(missing_ranges(&held, 12), want);
        assert!(missing_ranges(&[LayerRange::new(0, 12)], 12).is_empty());
    }
}
