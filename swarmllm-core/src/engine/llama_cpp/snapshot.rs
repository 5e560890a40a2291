//! The bytes of llama.cpp's KV state of one session, checked before llama.cpp reads them: they may come from a peer.
//!
//! The layout is not part of llama.cpp's interface; it is pinned with its version, and a snapshot that does not have the
//! size that this layout tells is an error, so that a change is noticed. Only the numbers of the state are checked; its
//! keys and values are floats, whatever they are.

use crate::base::LayerRange;
use crate::engine::EngineError;

use super::kv::Kept;
use super::shape::Shape;
use super::window::Window;

/// First word of a state.
const MAGIC: u32 = 0xaf14_3cd8;
/// Bytes before the caches: magic and session.
const HEAD: u64 = 8;
/// Bytes of a count: of streams, or of a stream's cells.
const COUNT: u64 = 4;
/// Bytes of a cell: position, sessions, session.
const CELL: u64 = 12;
/// Bytes after the cells: transposed, layers, two rotations.
const DATA_HEAD: u64 = 16;
/// Bytes before a layer's keys or values: type, bytes of a row.
const ROWS_HEAD: u64 = 12;

/// One of llama.cpp's KV caches.
#[derive(Debug)]
struct Cache {
    /// What it keeps of a session, where that is not all.
    window: Option<Window>,
    layers: u32,
}

impl Cache {
    /// Cells of a session of `len` positions: its last ones.
    fn cells(&self, len: u32) -> u32 {
        self.window.as_ref().map_or(len, |window| window.kept(len))
    }
}

/// What the state of a session of this stage looks like.
#[derive(Debug)]
pub(super) struct Layout {
    caches: Vec<Cache>,
    /// Streams of a cache: one for each session of the stage, all but one empty in a session's state.
    streams: u32,
    /// Bytes of a position's keys in a layer.
    keys: u64,
    /// The same of its values; none where they are a part of the keys.
    values: Option<u64>,
    kept: Kept,
    rotations: [u32; 2],
}

/// A cursor over a state.
struct Cursor<'a>(&'a [u8]);

impl Layout {
    /// The layout of a stage: windowed layers have a cache of their own, after that of the others.
    pub fn of(shape: &Shape, layers: LayerRange, streams: u32, kept: Kept) -> Self {
        let count = |windowed: bool| {
            let of_kind = (layers.start..layers.end).filter(|layer| shape.windowed(*layer) == windowed);
            of_kind.count() as u32
        };
        let mut caches = vec![Cache { window: None, layers: count(false) }];
        let windows = shape.window.clone();
        caches.extend(windows.map(|window| Cache { window: Some(window), layers: count(true) }));
        let bytes = |floats| kept.bytes(floats);
        let values = Some(shape.cached_values()).filter(|floats| *floats > 0).map(bytes);
        let (keys, rotations) = (bytes(shape.cached_keys()), kept.rotations(shape));
        Self { caches, streams, keys, values, kept, rotations }
    }

    /// Bytes of a position's rows in a layer, as they follow one another.
    fn rows(&self) -> impl Iterator<Item = u64> {
        [self.keys].into_iter().chain(self.values)
    }

    /// Bytes of the state of a session of `len` positions.
    pub fn size(&self, len: u32) -> usize {
        let cache = |cache: &Cache| {
            let cells = u64::from(cache.cells(len));
            let rows = u64::from(cache.layers) * self.rows().map(|row| ROWS_HEAD + cells * row).sum::<u64>();
            COUNT * (1 + u64::from(self.streams)) + cells * CELL + DATA_HEAD + rows
        };
        let size = if len == 0 { 0 } else { HEAD + self.caches.iter().map(cache).sum::<u64>() };
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    /// Says whether `state` is one of this layout and of `len` positions.
    pub fn check(&self, state: &[u8], len: u32) -> Result<(), EngineError> {
        let size = self.size(len);
        if state.len() != size {
            let reason = format!("it has {} bytes, {len} positions need {size}", state.len());
            return Err(EngineError::Snapshot { reason });
        }
        match len == 0 || self.walk(Cursor(state), len).is_some() {
            true => Ok(()),
            false => Err(EngineError::Snapshot { reason: "it is not of this stage's layout".to_owned() }),
        }
    }

    fn walk(&self, mut state: Cursor, len: u32) -> Option<()> {
        state.exactly(MAGIC)?;
        state.word()?;
        for cache in &self.caches {
            state.exactly(self.streams)?;
            let mut found = 0;
            for _ in 0..self.streams {
                found += match state.word()? {
                    0 => 0,
                    cells if cells == cache.cells(len) => self.walk_stream(&mut state, cache, len).map(|()| 1)?,
                    _ => return None,
                };
            }
            (found == 1).then_some(())?;
        }
        state.0.is_empty().then_some(())
    }

    fn walk_stream(&self, state: &mut Cursor, cache: &Cache, len: u32) -> Option<()> {
        let cells = cache.cells(len);
        state.positions(len - cells, cells)?;
        state.exactly(0)?;
        state.exactly(cache.layers)?;
        for rotation in self.rotations {
            state.exactly(if cache.layers > 0 { rotation } else { 0 })?;
        }
        // Keys of all layers, then values of all layers.
        for row in self.rows().flat_map(|row| (0..cache.layers).map(move |_| row)) {
            state.exactly(self.kept.ty)?;
            let told = u64::from(state.word()?) | u64::from(state.word()?) << 32;
            (told == row).then_some(())?;
            state.skip(usize::try_from(u64::from(cells).checked_mul(row)?).ok()?)?;
        }
        Some(())
    }
}

impl Cursor<'_> {
    fn word(&mut self) -> Option<u32> {
        let (word, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*word))
    }

    fn exactly(&mut self, wanted: u32) -> Option<()> {
        (self.word()? == wanted).then_some(())
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.0 = self.0.get(bytes..)?;
        Some(())
    }

    /// Cells of one session that are the positions `first..first + count`, in any order.
    fn positions(&mut self, first: u32, count: u32) -> Option<()> {
        let mut seen = vec![false; count as usize];
        for _ in 0..count {
            let at = usize::try_from(self.word()?.checked_sub(first)?).ok()?;
            if std::mem::replace(seen.get_mut(at)?, true) {
                return None;
            }
            self.exactly(1)?;
            self.word()?;
        }
        Some(())
    }
}
