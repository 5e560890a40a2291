//! Names of the beginnings of texts, so that a stage can say how much of a prompt it still has in its KV. Pure.
//!
//! A text is named block by block, each name covering all before it. Names are keyed by a secret of the coordinator: a
//! host learns when two prompts of one coordinator begin alike, nothing of what they say, and coordinators never share.
//!
//! In the exact mode only whole prefill chunks of the plain run's size are named, since only their KV is, bit by bit, what
//! the plain run would have.

use crate::base::ModelId;
use crate::engine::StageConfig;
use crate::wire::codec::Codec;
use crate::wire::prefix::{BlockId, MAX_BLOCKS, Prefix};

/// Tokens of a block: a reuse ends at one, so that on average half a block is computed again.
pub const BLOCK: u32 = 16;
/// Tokens of a block in the exact mode.
pub const EXACT_BLOCK: u32 = StageConfig::DEFAULT_MAX_ROWS;
/// What names texts for one coordinator.
#[derive(Clone)]
pub struct Namer {
    key: [u8; 32],
}

impl Namer {
    /// Names under this secret.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// The namer of texts whose states travel so: KV of rounded states is of no use where they are not to be rounded.
    pub fn of(&self, codec: Codec) -> Self {
        match codec {
            Codec::F32 => self.clone(),
            Codec::Bf16 | Codec::Int8 => {
                Self { key: *blake3::keyed_hash(&self.key, codec.name().as_bytes()).as_bytes() }
            }
        }
    }

    /// The whole blocks of `tokens`.
    pub fn name(&self, model: ModelId, exact: bool, tokens: &[u32]) -> Prefix {
        let block = if exact { EXACT_BLOCK } else { BLOCK };
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        hasher.update(model.as_bytes());
        let mut ids = Vec::new();
        for tokens in tokens.chunks_exact(block as usize).take(MAX_BLOCKS) {
            for token in tokens {
                hasher.update(&token.to_le_bytes());
            }
            let mut id = [0; 16];
            id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
            ids.push(BlockId(id));
        }
        Prefix { block, ids }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelId = ModelId([3; 32]);

    #[test]
    fn texts_have_in_common_the_blocks_before_the_first_difference() {
        let namer = Namer::new([1; 32]);
        let text: Vec<u32> = (0..100).collect();
        let mut other = text.clone();
        other[40] = 7;
        let (one, two) = (namer.name(MODEL, false, &text), namer.name(MODEL, false, &other));
        assert_eq!(one.ids.len(), 6);
        assert_eq!(one.common(&two), 32);
        assert_eq!(one.common(&one.clone().within(50)), 48);
        assert_eq!(one.common(&namer.name(MODEL, true, &text)), 0);
        assert_eq!(one.common(&namer.name(ModelId([4; 32]), false, &text)), 0);
        assert_eq!(one.common(&Namer::new([2; 32]).name(MODEL, false, &text)), 0);
        assert_eq!(one.common(&namer.of(Codec::Int8).name(MODEL, false, &text)), 0);
        assert_eq!(one.common(&namer.of(Codec::F32).name(MODEL, false, &text)), 96);
        assert_eq!(one.common(&Prefix::default()), 0);
    }
}
