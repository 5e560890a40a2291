//! How llama.cpp keeps keys and values: in f16, or in blocks of 8 bits.

use llama_cpp_sys_2 as ll;

use crate::engine::KvCache;

use super::shape::Shape;
use super::tensors::row_size;

/// Floats of a block of 8 bits. Keys and values of a head are whole blocks.
const BLOCK: u32 = 32;
/// Where they are quantised, llama.cpp rotates a head's floats in groups of at least so many, which spreads outliers.
const ROTATED: u32 = 64;

/// A type of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    pub ty: ll::ggml_type,
}

impl Kept {
    pub fn of(kv: KvCache) -> Self {
        let ty = match kv {
            KvCache::Full => ll::GGML_TYPE_F16,
            KvCache::Q8 => ll::GGML_TYPE_Q8_0,
        };
        Self { ty }
    }

    fn is_quantised(self) -> bool {
        self.ty != ll::GGML_TYPE_F16
    }

    /// Bytes of so many floats, whole blocks of them.
    pub fn bytes(self, floats: u64) -> u64 {
        row_size(self.ty, floats).unwrap_or(u64::MAX)
    }

    /// Says why a model's keys and values cannot be kept so.
    pub fn check(self, shape: &Shape) -> Result<(), String> {
        let whole = shape.key_size.is_multiple_of(BLOCK) && shape.value_size.is_multiple_of(BLOCK);
        match self.is_quantised() && (!whole || shape.cached_values() == 0) {
            false => Ok(()),
            true => Err(format!(
                "keys of {} and values of {} floats, or compressed ones, cannot be kept in blocks of {BLOCK}; keep them in f16",
                shape.key_size, shape.value_size
            )),
        }
    }

    /// Floats that llama.cpp rotates together, of keys and of values; 0 where it does not.
    pub fn rotations(self, shape: &Shape) -> [u32; 2] {
        let rotates = |size: u32| self.is_quantised() && size > 0 && size.is_multiple_of(ROTATED);
        let mut keys = if rotates(shape.key_size) { ROTATED } else { 0 };
        while keys > 0 && shape.key_size.is_multiple_of(2 * keys) {
            keys *= 2;
        }
        [keys, if rotates(shape.value_size) { ROTATED } else { 0 }]
    }
}
