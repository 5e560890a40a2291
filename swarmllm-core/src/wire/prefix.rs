//! Hashes of text prefixes. A coordinator sends them so that a host can find cached KV.

use serde::{Deserialize, Serialize};

/// Maximum blocks of a prefix; later tokens are recomputed. 3,840 blocks of 16 tokens are 61,440 tokens, and their hashes
/// take 60 KiB of the 64 KiB of a request.
pub const MAX_BLOCKS: usize = 3_840;

/// The hash of a text up to the end of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockId(pub [u8; 16]);

/// The block hashes of a text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Prefix {
    /// Tokens per block; 0 without blocks.
    pub block: u32,
    /// Hashes of the blocks, from the first token.
    pub ids: Vec<BlockId>,
}

impl Prefix {
    /// Whether the limits hold.
    pub fn is_valid(&self) -> bool {
        self.ids.len() <= MAX_BLOCKS && (self.ids.is_empty() || self.block > 0)
    }

    /// Common prefix of two texts in tokens, in whole blocks.
    pub fn common(&self, other: &Prefix) -> u32 {
        if self.block != other.block {
            return 0;
        }
        let blocks = self.ids.iter().zip(&other.ids).take_while(|(one, another)| one == another).count();
        (blocks as u32).saturating_mul(self.block)
    }

    /// The prefix truncated to `len` tokens.
    pub fn within(mut self, len: u32) -> Prefix {
        self.ids.truncate(len.checked_div(self.block).unwrap_or(0) as usize);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_or_too_many_blocks_are_invalid() {
        assert!(Prefix::default().is_valid());
        assert!(!Prefix { block: 0, ids: vec![BlockId([0; 16])] }.is_valid());
        assert!(!Prefix { block: 1, ids: vec![BlockId([0; 16]); MAX_BLOCKS + 1] }.is_valid());
    }
}
