//! Cuts a text at the special tokens in it.
//!
//! As in llama.cpp the longest special token is looked for first, in the whole text, then the next in what is left.
//! (Between different tokens of one length llama.cpp's order is unspecified; here the smaller id goes first.)

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use super::vocab::{Attr, Vocab};
use super::{MarkedText, TokenizerError};

/// Places in one text where a special token might be.
pub const MAX_CANDIDATES: usize = 1 << 22;
/// Bytes compared while looking for them; a vocabulary made to be slow must not hang an encoder.
const MAX_STEPS: usize = 1 << 28;

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fragment<'t> {
    /// A special token.
    Token(u32),
    /// Text without special tokens; not empty.
    Text(&'t str),
}

/// Where control and unknown tokens are read.
#[derive(Debug, Clone, Copy)]
pub enum Read<'m> {
    Nowhere,
    Everywhere,
    /// Where this text admits it, of which the text that is cut begins at a byte.
    Rendered(&'m MarkedText, usize),
}

impl Read<'_> {
    fn admits(self, token: &str, place: Range<usize>) -> bool {
        match self {
            Read::Nowhere => false,
            Read::Everywhere => true,
            Read::Rendered(marked, from) => marked.admits(token, from + place.start..from + place.end),
        }
    }
}

#[derive(Debug)]
struct Special {
    text: Arc<str>,
    id: u32,
    attr: Attr,
}

/// The special tokens of a vocabulary.
#[derive(Debug)]
pub struct Specials {
    /// In the order of their texts.
    sorted: Vec<Special>,
    /// Which of `sorted` begin with a byte.
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

impl Specials {
    pub fn new(vocab: &Vocab) -> Specials {
        let special = Attr::CONTROL.and(Attr::USER_DEFINED).and(Attr::UNKNOWN);
        let mut sorted: Vec<Special> = vocab
            .iter()
            .filter(|(_, _, attr)| attr.any(special))
            .map(|(id, text, attr)| Special { text: Arc::clone(text), id, attr })
            .collect();
        sorted.sort_unstable_by(|a, b| a.text.cmp(&b.text));
        let by_first = (0..=u8::MAX).map(|byte| narrow(&sorted, 0..sorted.len(), 0, byte)).collect();
        Specials { sorted, by_first }
    }

    /// Cuts `text`. Control and unknown tokens count only where `read` admits them, those defined by users always.
    pub fn split<'t>(&self, text: &'t str, read: Read<'_>) -> Result<Vec<Fragment<'t>>, TokenizerError> {
        let mut candidates = self.candidates(text.as_bytes(), read)?;
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

    /// Every special token at every place.
    fn candidates(&self, text: &[u8], read: Read<'_>) -> Result<Vec<Candidate>, TokenizerError> {
        let mut found = Vec::new();
        let mut steps = 0;
        for (start, first) in text.iter().enumerate() {
            let mut range = self.by_first.get(usize::from(*first)).cloned().unwrap_or(0..0);
            let mut end = start + 1;
            while !range.is_empty() {
                // The shortest of the range comes first: it alone can end here.
                let special = self.sorted.get(range.start).filter(|special| special.text.len() == end - start);
                let admitted =
                    |special: &&Special| !guarded(special.attr, read) || read.admits(&special.text, start..end);
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

/// Of candidates in the order of their right, those that overlap none before them: what they take and their id, in the
/// order of the text.
fn accept(text: &[u8], candidates: &[Candidate]) -> Vec<(Range<usize>, u32)> {
    let mut taken = vec![false; if candidates.is_empty() { 0 } else { text.len() }];
    let mut accepted = Vec::new();
    for found in candidates {
        let (mut start, mut end) = (found.start as usize, found.end as usize);
        // Everything taken so far is at least as long, so that an overlap covers one of the ends.
        if is_taken(&taken, start) || is_taken(&taken, end - 1) {
            continue;
        }
        let strippable = |at: usize| !is_taken(&taken, at) && text.get(at).copied().is_some_and(is_space);
        while found.attr.any(Attr::LSTRIP) && start > 0 && strippable(start - 1) {
            start -= 1;
        }
        while found.attr.any(Attr::RSTRIP) && strippable(end) {
            end += 1;
        }
        taken.iter_mut().take(end).skip(start).for_each(|byte| *byte = true);
        accepted.push((start..end, found.id));
    }
    accepted.sort_unstable_by_key(|(taken, _)| taken.start);
    accepted
}

/// Whether the token counts only where `read` admits it.
fn guarded(attr: Attr, read: Read<'_>) -> bool {
    hidden(attr) || (attr.any(Attr::FRAMES) && matches!(read, Read::Rendered(..)))
}

/// Whether the token is only recognised on request.
fn hidden(attr: Attr) -> bool {
    attr.any(Attr::CONTROL.and(Attr::UNKNOWN))
}

/// Of `range`, whose texts agree in their first `depth` bytes, those with `byte` next.
fn narrow(sorted: &[Special], range: Range<usize>, depth: usize, byte: u8) -> Range<usize> {
    let slice = sorted.get(range.clone()).unwrap_or_default();
    let next = |special: &Special| special.text.as_bytes().get(depth).copied();
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

/// C's `isspace`: it has the vertical tab too.
pub(super) fn is_space(byte: u8) -> bool {
    byte.is_ascii_whitespace() || byte == b'\x0b'
}
