//! Splits a text at its special tokens.
//!
//! As in llama.cpp the longest special token is searched first in the whole text, then the next longest in the rest.
//! (llama.cpp's order of different tokens with the same length is unspecified; here the smaller id goes first.)

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use super::vocab::{Attr, Vocab};
use super::{MarkedText, TokenizerError};

/// Most candidates for special tokens in one text.
pub const MAX_CANDIDATES: usize = 1 << 22;
/// Most bytes compared in the search for candidates: a hostile vocabulary must not hang an encoder.
const MAX_STEPS: usize = 1 << 28;

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment<'t> {
    /// A special token.
    Token(u32),
    /// Text without special tokens; not empty.
    Text(&'t str),
}

/// Places where control and unknown tokens are read.
#[derive(Debug, Clone, Copy)]
pub enum ParseSpecial<'m> {
    Never,
    Always,
    /// Where the marked text admits them; the split text begins at this byte of it.
    Rendered(&'m MarkedText, usize),
}

impl ParseSpecial<'_> {
    fn admits(self, token: &str, place: Range<usize>) -> bool {
        match self {
            ParseSpecial::Never => false,
            ParseSpecial::Always => true,
            ParseSpecial::Rendered(marked, from) => marked.admits(token, from + place.start..from + place.end),
        }
    }
}

#[derive(Debug)]
struct SpecialToken {
    text: Arc<str>,
    id: u32,
    attr: Attr,
}

/// The special tokens of a vocabulary.
#[derive(Debug)]
pub struct SpecialTokens {
    /// Sorted by text.
    sorted: Vec<SpecialToken>,
    /// The range of `sorted` for each first byte.
    by_first: Vec<Range<usize>>,
}

/// A special token in a text, at `start..end`.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    start: u32,
    end: u32,
    id: u32,
    attr: Attr,
}

impl SpecialTokens {
    pub fn new(vocab: &Vocab) -> SpecialTokens {
        let special = Attr::CONTROL.union(Attr::USER_DEFINED).union(Attr::UNKNOWN);
        let mut sorted: Vec<SpecialToken> = vocab
            .iter()
            .filter(|(_, _, attr)| attr.intersects(special))
            .map(|(id, text, attr)| SpecialToken { text: Arc::clone(text), id, attr })
            .collect();
        sorted.sort_unstable_by(|a, b| a.text.cmp(&b.text));
        let by_first = (0..=u8::MAX).map(|byte| narrow(&sorted, 0..sorted.len(), 0, byte)).collect();
        SpecialTokens { sorted, by_first }
    }

    /// Splits `text`. User-defined tokens are read everywhere, control and unknown tokens only where `parse` admits
    /// them.
    pub fn split<'t>(&self, text: &'t str, parse: ParseSpecial<'_>) -> Result<Vec<Fragment<'t>>, TokenizerError> {
        let mut candidates = self.candidates(text.as_bytes(), parse)?;
        candidates.sort_unstable_by_key(|found| (Reverse(found.end - found.start), found.id, found.start));
        let accepted = accept(text.as_bytes(), &candidates);
        let mut fragments = Vec::with_capacity(2 * accepted.len() + 1);
        let mut next = 0;
        for (taken, id) in accepted {
            fragments.extend(between(text, next..taken.start));
            fragments.push(Fragment::Token(id));
            next = taken.end;
        }
        fragments.extend(between(text, next..text.len()));
        Ok(fragments)
    }

    /// All occurrences of special tokens.
    fn candidates(&self, text: &[u8], parse: ParseSpecial<'_>) -> Result<Vec<Candidate>, TokenizerError> {
        let mut found = Vec::new();
        let mut steps = 0;
        for (start, first) in text.iter().enumerate() {
            let mut range = self.by_first.get(usize::from(*first)).cloned().unwrap_or(0..0);
            let mut end = start + 1;
            while !range.is_empty() {
                // Only the first of the range, its shortest, can end here.
                let special = self.sorted.get(range.start).filter(|special| special.text.len() == end - start);
                let admitted = |special: &&SpecialToken| {
                    !is_restricted(special.attr, parse) || parse.admits(&special.text, start..end)
                };
                if let Some(special) = special.filter(admitted) {
                    found.push(Candidate { start: start as u32, end: end as u32, id: special.id, attr: special.attr });
                }
                let Some(byte) = text.get(end) else { break };
                range = narrow(&self.sorted, range, end - start, *byte);
                end += 1;
                steps += 1;
            }
            if found.len() > MAX_CANDIDATES || steps > MAX_STEPS {
                return Err(TokenizerError::TooManySpecials { max: MAX_CANDIDATES });
            }
        }
        Ok(found)
    }
}

/// The candidates that overlap no earlier one: their ranges with stripped white space, and their ids, in the order of
/// the text. Candidates come in the order of precedence.
fn accept(text: &[u8], candidates: &[Candidate]) -> Vec<(Range<usize>, u32)> {
    let mut taken = vec![false; if candidates.is_empty() { 0 } else { text.len() }];
    let mut accepted = Vec::new();
    for found in candidates {
        let (mut start, mut end) = (found.start as usize, found.end as usize);
        // All accepted candidates are at least as long, so an overlap covers one of the ends.
        if is_taken(&taken, start) || is_taken(&taken, end - 1) {
            continue;
        }
        let strippable = |at: usize| !is_taken(&taken, at) && text.get(at).copied().is_some_and(is_space);
        while found.attr.intersects(Attr::LSTRIP) && start > 0 && strippable(start - 1) {
            start -= 1;
        }
        while found.attr.intersects(Attr::RSTRIP) && strippable(end) {
            end += 1;
        }
        taken.iter_mut().take(end).skip(start).for_each(|byte| *byte = true);
        accepted.push((start..end, found.id));
    }
    accepted.sort_unstable_by_key(|(taken, _)| taken.start);
    accepted
}

/// Whether the token is read only where `parse` admits it.
fn is_restricted(attr: Attr, parse: ParseSpecial<'_>) -> bool {
    is_hidden(attr) || (attr.intersects(Attr::CHANNEL) && matches!(parse, ParseSpecial::Rendered(..)))
}

/// Whether the token is read on request only.
fn is_hidden(attr: Attr) -> bool {
    attr.intersects(Attr::CONTROL.union(Attr::UNKNOWN))
}

/// The part of `range`, whose texts agree in `depth` bytes, with `byte` next.
fn narrow(sorted: &[SpecialToken], range: Range<usize>, depth: usize, byte: u8) -> Range<usize> {
    let slice = sorted.get(range.clone()).unwrap_or_default();
    let next = |special: &SpecialToken| special.text.as_bytes().get(depth).copied();
    let below = slice.partition_point(|special| next(special) < Some(byte));
    let upto = slice.partition_point(|special| next(special) <= Some(byte));
    range.start + below..range.start + upto
}

fn between(text: &str, range: Range<usize>) -> Option<Fragment<'_>> {
    text.get(range).filter(|part| !part.is_empty()).map(Fragment::Text)
}

fn is_taken(taken: &[bool], at: usize) -> bool {
    taken.get(at).copied().unwrap_or(true)
}

/// C's `isspace`, which includes the vertical tab.
pub(super) fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == b'\x0b'
}
