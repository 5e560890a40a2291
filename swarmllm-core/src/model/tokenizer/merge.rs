//! The symbol queue that both kinds of tokenizer share: neighbours are joined, best pair first, until none joins.
//!
//! Ties go to the leftmost pair. Work is `n log n` in the symbols, memory a constant per symbol.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// No neighbour, no token.
pub const NONE: u32 = u32::MAX;

/// Pairs after which [`Chain::run`] asks whether to go on: a few hundred microseconds.
const CHECK_EVERY: u32 = 4096;

/// A piece of the text in the chain of symbols.
#[derive(Debug, Clone, Copy)]
pub struct Symbol {
    /// First byte in the text.
    pub start: u32,
    /// Bytes; 0 once the symbol was joined to its left neighbour.
    pub len: u32,
    /// Its token, or [`NONE`].
    pub token: u32,
    prev: u32,
    next: u32,
}

impl Symbol {
    /// One past its last byte.
    pub fn end(&self) -> usize {
        (self.start + self.len) as usize
    }
}

/// What two neighbours may become: the smaller the rank the sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Join {
    pub rank: u32,
    pub token: u32,
}

/// A pair in the queue, in the order in which pairs are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Pair {
    rank: u32,
    left: u32,
    right: u32,
    len: u32,
    token: u32,
}

/// The chain and its queue; reused from word to word.
#[derive(Debug, Default)]
pub struct Chain {
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Reverse<Pair>>,
}

impl Chain {
    /// Forgets the last text.
    pub fn clear(&mut self) {
        self.symbols.clear();
        self.queue.clear();
    }

    /// Appends a symbol of `len` bytes.
    pub fn push(&mut self, len: usize, token: Option<u32>) {
        // Texts are bounded far below 4 GiB by `MAX_TEXT`, so that these numbers fit.
        let at = self.symbols.len() as u32;
        let start = self.symbols.last_mut().map_or(0, |last| {
            last.next = at;
            last.start + last.len
        });
        let prev = at.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol { start, len: len as u32, token: token.unwrap_or(NONE), prev, next: NONE });
    }

    /// Joins until nothing joins. `join` says what two neighbours become, if anything; `check` is asked now and then
    /// whether to go on.
    pub fn run<E>(
        &mut self,
        join: impl Fn(&Symbol, &Symbol) -> Option<Join>,
        check: impl Fn() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut steps = 0u32;
        for right in 1..self.symbols.len() as u32 {
            self.offer(right - 1, right, &join);
        }
        while let Some(Reverse(pair)) = self.queue.pop() {
            steps = steps.wrapping_add(1);
            if steps.is_multiple_of(CHECK_EVERY) {
                check()?;
            }
            let (Some(&left), Some(&right)) = (self.at(pair.left), self.at(pair.right)) else { continue };
            // Symbols only grow or vanish: the pair is what it was exactly if both live and the length is the same.
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
            self.offer(left.prev, pair.left, &join);
            self.offer(pair.left, right.next, &join);
        }
        Ok(())
    }

    /// The symbols that are left, in the order of the text.
    pub fn finished(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn at(&self, index: u32) -> Option<&Symbol> {
        self.symbols.get(index as usize)
    }

    fn offer(&mut self, left: u32, right: u32, join: &impl Fn(&Symbol, &Symbol) -> Option<Join>) {
        // `NONE` is no index of any chain.
        let (Some(a), Some(b)) = (self.at(left), self.at(right)) else { return };
        if let Some(Join { rank, token }) = join(a, b) {
            let len = a.len + b.len;
            self.queue.push(Reverse(Pair { rank, left, right, len, token }));
        }
    }
}
