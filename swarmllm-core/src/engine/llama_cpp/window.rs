//! Sliding-window attention: the windowed layers, and the positions that they attend to.

use crate::engine::EngineError;

use super::error::bad;
use super::facts::Facts;
use super::header::Header;
use super::limits::MAX_CONTEXT;

const SIZE: &str = "attention.sliding_window";
const PATTERN: &str = "attention.sliding_window_pattern";

/// An architecture's rules of windows.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowRule {
    pub size: WindowSize,
    /// Without a pattern in the facts every `period`-th layer has no window.
    pub period: u32,
    pub kind: WindowKind,
}

/// Source of the window's size.
#[derive(Debug, Clone, Copy)]
pub(super) enum WindowSize {
    /// A required fact.
    Required,
    /// An optional fact; if absent or zero, no layer is windowed.
    Optional,
    /// An optional fact with this default.
    Default(u32),
    /// llama.cpp uses this size regardless of the fact. Zero would turn windows off, which is not certified.
    Fixed(u32),
}

/// Positions that a windowed layer attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowKind {
    /// The last positions, up to the window's size.
    Sliding,
    /// The positions of the same chunk; a chunk has the window's size.
    Chunked,
}

/// The windows of a model.
#[derive(Debug, Clone)]
pub(super) struct Window {
    /// Positions of a window, including the current one.
    size: u32,
    kind: WindowKind,
    /// For each layer whether it is windowed; at least one is.
    pub layers: Vec<bool>,
    /// Frequency base of windowed layers.
    base: Option<f32>,
}

impl Window {
    /// Reads the windows of a model of `layers` layers; `None` without windows.
    pub fn read(facts: &Facts, rule: &WindowRule, layers: u32) -> Result<Option<Self>, EngineError> {
        let size = match rule.size {
            WindowSize::Optional if facts.is_unset(SIZE) => return Ok(None),
            WindowSize::Default(size) | WindowSize::Fixed(size) if !facts.has(SIZE) => size,
            WindowSize::Fixed(size) => facts.count(SIZE, MAX_CONTEXT).map(|_| size)?,
            _ => facts.count(SIZE, MAX_CONTEXT)?,
        };
        let layers = read_pattern(facts, rule.period, layers)?;
        Ok(Some(Self { size, kind: rule.kind, layers, base: facts.positive("rope.freq_base_swa")? }))
    }

    /// Whether a layer is windowed.
    pub fn covers(&self, layer: u32) -> bool {
        self.layers.get(layer as usize).copied().unwrap_or_default()
    }

    /// Number of positions that the last of `len` positions attends to in a windowed layer.
    pub fn visible(&self, len: u32) -> u32 {
        match self.kind {
            WindowKind::Sliding => len.min(self.size),
            WindowKind::Chunked if len == 0 => 0,
            WindowKind::Chunked => (len - 1) % self.size + 1,
        }
    }

    /// The first position that position `pos` attends to in a windowed layer.
    pub fn first_seen(&self, pos: u32) -> u32 {
        pos.saturating_add(1).saturating_sub(self.visible(pos.saturating_add(1)))
    }

    /// Writes the windows of the layers `from..to` as a separate pattern.
    pub fn write(&self, from: u32, to: u32, header: &mut Header) {
        header.u32(SIZE, self.size);
        header.bools(PATTERN, self.layers.get(from as usize..to as usize).unwrap_or_default());
        header.f32("rope.freq_base_swa", self.base);
    }
}

/// The pattern is an array, or a period whose last layer has no window (0: all layers have one).
fn read_pattern(facts: &Facts, period: u32, layers: u32) -> Result<Vec<bool>, EngineError> {
    let pattern = match facts.flags(PATTERN, layers)? {
        Some(pattern) => pattern,
        None => {
            let period = facts.u32(PATTERN)?.unwrap_or(period);
            (0..layers).map(|layer| period == 0 || layer % period < period - 1).collect()
        }
    };
    match pattern.contains(&true) {
        true => Ok(pattern),
        false => Err(bad(facts.name(PATTERN), "no layer is windowed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(kind: WindowKind) -> Window {
        Window { size: 8, kind, layers: vec![true], base: None }
    }

    #[test]
    fn a_sliding_window_keeps_its_size_and_a_chunk_restarts() {
        let (sliding, chunked) = (window(WindowKind::Sliding), window(WindowKind::Chunked));
        for (len, slides, chunks) in [(0, 0, 0), (1, 1, 1), (8, 8, 8), (9, 8, 1), (16, 8, 8), (20, 8, 4)] {
            assert_eq!((sliding.visible(len), chunked.visible(len)), (slides, chunks), "{len}");
        }
        assert_eq!([0, 7, 8, 19].map(|pos| sliding.first_seen(pos)), [0, 0, 1, 12]);
        assert_eq!([0, 7, 8, 19].map(|pos| chunked.first_seen(pos)), [0, 0, 8, 16]);
    }
}
