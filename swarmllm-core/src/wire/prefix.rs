//! Names of the beginnings of texts, by which a coordinator tells a host which KV it may still have.

use serde::{Deserialize, Serialize};

/// Most blocks of a text; what lies behind is computed again. 3,840 blocks of 16 tokens are 61,440 tokens, and their names 60 KiB
/// of the 64 KiB that a request may have.
pub const MAX_BLOCKS: usize = 3_840;

/// The name of a text up to the end of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BlockId(pub [u8; 16]);

/// The blocks of a text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Prefix {
    /// Tokens of a block; 0 where there are none.
    pub block: u32,
    /// Their names, from the first token on.
    pub ids: Vec<BlockId>,
}

impl Prefix {
    /// Whether it is one that a host keeps.
    pub fn is_sound(&self) -> bool {
        self.ids.len() <= MAX_BLOCKS && (self.ids.is_empty() || self.block > 0)
    }

    /// Tokens that two texts have in common, as far as blocks tell.
    pub fn common(&self, other: &Prefix) -> u32 {
        if self.block != other.block {
            return 0;
        }
        let blocks = self.ids.iter().zip(&other.ids).take_while(|(one, another)| one == another).count();
        (blocks as u32).saturating_mul(self.block)
    }

    /// The same text up to `len` tokens.
    pub fn within(mut self, len: u32) -> Prefix {
        self.ids.truncate(len.checked_div(self.block).unwrap_or(0) as usize);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_claims_blocks_of_nothing_is_not_sound() {
        assert!(Prefix::default().is_sound());
        assert!(!Prefix { block: 0, ids: vec![BlockId([0; 16])] }.is_sound());
        assert!(!Prefix { block: 1, ids: vec![BlockId([0; 16]); MAX_BLOCKS + 1] }.is_sound());
    }
}
