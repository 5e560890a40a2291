//! Writes headers: for metadata shards, for the stage images that engines load, and for tests.

use super::value::push_string;
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, VERSION};
use crate::model::Fact;

/// A tensor entry of a header.
#[derive(Debug, Clone, Copy)]
pub struct HeaderTensor<'a> {
    /// Name.
    pub name: &'a str,
    /// Shape, fastest axis first.
    pub dims: &'a [u64],
    /// ggml type id.
    pub ty: u32,
    /// Offset of the first byte from the end of the header.
    pub offset: u64,
}

/// Writes a header, padded so that tensor data can follow directly. Equal arguments give equal bytes.
///
/// `alignment` must be a power of two. It is written as `general.alignment` unless it is the default or `facts` contains
/// the key. Nothing is checked here; reading the result does that.
pub fn write_header(facts: &[Fact], tensors: &[HeaderTensor<'_>], alignment: u32) -> Vec<u8> {
    let named = alignment == DEFAULT_ALIGNMENT || facts.iter().any(|fact| fact.key == ALIGNMENT_KEY);
    let extra = (!named).then(|| Fact::u32(ALIGNMENT_KEY, alignment));
    let mut out = Vec::with_capacity(header_len(facts, tensors) + alignment as usize);
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((facts.len() as u64 + u64::from(extra.is_some())).to_le_bytes());
    for fact in facts.iter().chain(&extra) {
        push_string(&mut out, &fact.key);
        out.extend(fact.ty.to_le_bytes());
        out.extend(&fact.raw);
    }
    for tensor in tensors {
        push_string(&mut out, tensor.name);
        // Anything that was read has 1 to 4 axes.
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
        out.extend(tensor.ty.to_le_bytes());
        out.extend(tensor.offset.to_le_bytes());
    }
    out.resize(out.len().next_multiple_of(alignment.max(1) as usize), 0);
    out
}

/// An upper bound of the header's length without padding. Reserved up front, since values may be large and growth copies.
fn header_len(facts: &[Fact], tensors: &[HeaderTensor<'_>]) -> usize {
    /// Counts, lengths, types and offsets around an entry's name, shape or value; the fixed head of the file is smaller.
    const AROUND: usize = 64;
    let facts: usize = facts.iter().map(|fact| AROUND + fact.key.len() + fact.raw.len()).sum();
    let tensors: usize = tensors.iter().map(|tensor| AROUND + tensor.name.len() + 8 * tensor.dims.len()).sum();
    2 * AROUND + facts + tensors
}
