//! The merge loop of both kinds of tokenizer: neighbours are merged, lowest rank first, until no pair merges.
//!
//! Ties go to the leftmost pair. Work is `n log n` in the symbols, memory a constant per symbol.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Stands for no neighbour and for no token.
pub const NONE: u32 = u32::MAX;

/// Pairs between two calls of `check` in [`Chain::run`]: a few hundred microseconds.
const CHECK_EVERY: u32 = 4096;

/// A piece of the text in the chain of symbols.
#[derive(Debug, Clone, Copy)]
pub struct Symbol {
    /// First byte in the text.
    pub start: u32,
    /// Length in bytes; 0 after the symbol was merged into its left neighbour.
    pub len: u32,
    /// The token, or [`NONE`].
    pub token: u32,
    prev: u32,
    next: u32,
}

impl Symbol {
    /// One past the last byte.
    pub fn end(&self) -> usize {
        (self.start + self.len) as usize
    }
}

/// The merge of two neighbours. Lower ranks are merged first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Merge {
    pub rank: u32,
    pub token: u32,
}

/// A pair in the queue. The order of its fields is the order of merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    rank: u32,
    left: u32,
    right: u32,
    len: u32,
    token: u32,
}

/// The chain of symbols and the queue of pairs, reused for each word.
#[derive(Debug, Default)]
pub struct Chain {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Pair>>,
}

impl Chain {
    /// Removes all symbols.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends a symbol of `len` bytes.
    pub fn push(&mut self, len: usize, token: Option<u32>) {
        // `MAX_TEXT` is far below 4 GiB, so these numbers fit.
        let at = self.symbols.len() as u32;
        let start = self.symbols.last_mut().map_or(0, |last| {
            last.next = at;
            last.start + last.len
        });
        let prev = at.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol { start, len: len as u32, token: token.unwrap_or(NONE), prev, next: NONE });
    }

    /// Merges until no pair merges. `merge` gives the merge of two neighbours, if any. An error of `check`, which is
    /// called every [`CHECK_EVERY`] pairs, ends the run.
    pub fn run<E>(
        &mut self,
        merge: impl Fn(&Symbol, &Symbol) -> Option<Merge>,
        check: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut steps = 0u32;
        for right in 1..self.symbols.len() as u32 {
            self.enqueue(right - 1, right, &merge);
        }
        while let Some(Reverse(pair)) = self.queue.pop() {
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(CHECK_EVERY) {
                check()?;
            }
            let (Some(&left), Some(&right)) = (self.at(pair.left), self.at(pair.right)) else { continue };
            // Symbols only grow or vanish: a pair is stale unless both exist and their length is unchanged.
            if left.len == 0 || right.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            if let Some(symbol) = self.symbols.get_mut(pair.left as usize) {
                *symbol = Symbol { len: pair.len, token: pair.token, next: right.next, ..left };
            }
            if let Some(symbol) = self.symbols.get_mut(pair.right as usize) {
                symbol.len = 0;
            }
            if let Some(symbol) = self.symbols.get_mut(right.next as usize) {
                symbol.prev = pair.left;
            }
            self.enqueue(left.prev, pair.left, &merge);
            self.enqueue(pair.left, right.next, &merge);
        }
        Ok(())
    }

    /// The remaining symbols, in the order of the text.
    pub fn finished(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn at(&self, index: u32) -> Option<&Symbol> {
        self.symbols.get(index as usize)
    }

    fn enqueue(&mut self, left: u32, right: u32, merge: &impl Fn(&Symbol, &Symbol) -> Option<Merge>) {
        // `NONE` is never an index.
        let (Some(a), Some(b)) = (self.at(left), self.at(right)) else { return };
        if let Some(Merge { rank, token }) = merge(a, b) {
            let len = a.len + b.len;
            self.queue.push(Reverse(Pair { rank, left, right, len, token }));
        }
    }
}
