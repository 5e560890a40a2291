//! Number format of llama.cpp's KV cache: f16, or blocks of 8 bits.

use llama_cpp_sys_2 as ll;

use crate::engine::KvType;

use super::shape::Shape;
use super::tensors::row_size;

/// Floats of a `q8_0` block. A head's keys and values must be whole blocks.
const BLOCK: u32 = 32;

/// A number format of the KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KvFormat {
    pub ty: ll::ggml_type,
}

impl KvFormat {
    pub fn of(kv: KvType) -> Self {
        let ty = match kv {
            KvType::Full => ll::GGML_TYPE_F16,
            KvType::Q8 => ll::GGML_TYPE_Q8_0,
        };
        Self { ty }
    }

    fn is_quantised(self) -> bool {
        self.ty != ll::GGML_TYPE_F16
    }

    /// Bytes of `floats` values in whole blocks.
    pub fn bytes(self, floats: u64) -> u64 {
        row_size(self.ty, floats).unwrap_or(u64::MAX)
    }

    /// Refuses models whose keys and values do not fit the format.
    pub fn check(self, shape: &Shape) -> Result<(), String> {
        let whole = shape.key_size.is_multiple_of(BLOCK) && shape.value_size.is_multiple_of(BLOCK);
        match self.is_quantised() && (!whole || shape.cached_values() == 0) {
            false => Ok(()),
            true => Err(format!(
                "keys of {} and values of {} floats, or compressed ones, do not fit blocks of {BLOCK}; use the KV type `full`",
                shape.key_size, shape.value_size
            )),
        }
    }
}
