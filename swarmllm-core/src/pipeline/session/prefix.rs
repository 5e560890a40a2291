//! Keyed hashes of text prefixes, by which a stage says how much of a prompt its KV still holds. Pure.
//!
//! A text is hashed block by block, each hash covering all text before it. The key is a secret of the coordinator: a
//! host learns when two prompts of one coordinator share a beginning, and nothing of their content; coordinators share
//! nothing.
//!
//! In exact mode the blocks are whole prefill chunks of the plain run's size, because only their KV is bit by bit that
//! of the plain run.

use crate::base::ModelId;
use crate::engine::StageConfig;
use crate::wire::codec::Codec;
use crate::wire::prefix::{BlockId, MAX_BLOCKS, Prefix};

/// Tokens of a block. A reuse ends at a block boundary, so that on average half a block is computed again.
pub const BLOCK: u32 = 16;
/// Tokens of a block in exact mode.
pub const EXACT_BLOCK: u32 = StageConfig::DEFAULT_MAX_ROWS;
/// Hashes the prefixes of texts for one coordinator.
#[derive(Clone)]
pub struct PrefixHasher {
    key: [u8; 32],
}

impl PrefixHasher {
    /// Hashes under this secret.
    pub fn new(key: [u8; 32]) -> Self {
        Self { key }
    }

    /// The hasher of texts whose states travel in this codec: KV of rounded states must not serve a session of
    /// unrounded ones.
    pub fn of(&self, codec: Codec) -> Self {
        match codec {
            Codec::F32 => self.clone(),
            Codec::Bf16 | Codec::Int8 => {
                Self { key: *blake3::keyed_hash(&self.key, codec.name().as_bytes()).as_bytes() }
            }
        }
    }

    /// The hashes of the whole blocks of `tokens`, at most [`MAX_BLOCKS`].
    pub fn hashes(&self, model: ModelId, exact: bool, tokens: &[u32]) -> Prefix {
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
    fn texts_share_the_blocks_before_their_first_difference() {
        let prefix_hasher = PrefixHasher::new([1; 32]);
        let text: Vec<u32> = (0..100).collect();
        let mut other = text.clone();
        other[40] = 7;
        let (one, two) = (prefix_hasher.hashes(MODEL, false, &text), prefix_hasher.hashes(MODEL, false, &other));
        assert_eq!(one.ids.len(), 6);
        assert_eq!(one.common(&two), 32);
        assert_eq!(one.common(&one.clone().within(50)), 48);
        assert_eq!(one.common(&prefix_hasher.hashes(MODEL, true, &text)), 0);
        assert_eq!(one.common(&prefix_hasher.hashes(ModelId([4; 32]), false, &text)), 0);
        assert_eq!(one.common(&PrefixHasher::new([2; 32]).hashes(MODEL, false, &text)), 0);
        assert_eq!(one.common(&prefix_hasher.of(Codec::Int8).hashes(MODEL, false, &text)), 0);
        assert_eq!(one.common(&prefix_hasher.of(Codec::F32).hashes(MODEL, false, &text)), 96);
        assert_eq!(one.common(&Prefix::default()), 0);
    }
}
