//! GGUF files, read and checked before anything else touches them.
//!
//! Owns the one validator of foreign model files. Promises: a [`Gguf`] holds only what was checked (bounds, UTF-8,
//! alignment, types, shapes, offsets inside the file, no duplicate and no overlap); reading never needs more than twice
//! the header's bytes, whatever a count claims; no input panics. Refuses: version 1, big-endian files, nested arrays
//! and unknown types. Of a model in several files [`Join`] makes the header of one; nothing is merged.

mod error;
mod ggml;
mod read;
mod split;
mod value;
mod write;

#[cfg(test)]
pub(crate) mod tests;

pub use error::{GgufError, ShapeFault};
pub use ggml::{GgmlType, elements};
pub use split::{Join, MAX_PARTS, PartName, Places, SplitError, is_split_key};
pub use value::{Array, Facts, Value, ValueType};
pub use write::{HeaderTensor, write_header};

use crate::model::Fact;

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Version that we write.
pub const VERSION: u32 = 3;
/// Alignment of tensor data where the file names none.
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// The key that names another alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";

/// Bounds of what is read. Each is far above the largest public model's need.
pub mod limits {
    /// Key-values.
    pub const FACTS: u64 = 4096;
    /// Bytes of all values together. Gemma's vocabulary takes 6 MB, the largest public ones about 20.
    pub const FACT_BYTES: u64 = 64 * 1024 * 1024;
    /// Bytes of a header of which not all is here: all values, 4,096 keys of 268 bytes with their types and lengths, and
    /// 10,000 tensors of 119 make less.
    pub const HEADER: u64 = 68 * 1024 * 1024;
    /// Bytes of a key.
    pub const KEY: u64 = 256;
    /// Bytes of a string value (chat templates are the longest).
    pub const STRING: u64 = 1024 * 1024;
    /// Elements of an array.
    pub const ARRAY: u64 = 4 * 1024 * 1024;
    /// Tensors.
    pub const TENSORS: u64 = 10_000;
    /// Bytes of a tensor's name: ggml stores 64 with the closing zero.
    pub const TENSOR_NAME: u64 = 63;
    /// Axes of a tensor.
    pub const AXES: u32 = 4;
    /// Smallest alignment.
    pub const ALIGNMENT_MIN: u32 = 8;
    /// Largest alignment.
    pub const ALIGNMENT_MAX: u32 = 4096;
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name, unique in the file.
    pub name: String,
    /// Its ggml type, one of [`GgmlType`].
    pub ty: u32,
    /// Its shape, fastest axis first; 1 to 4 axes, none of them 0.
    pub dims: Vec<u64>,
    /// First byte, counted from [`Gguf::data_offset`].
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// A power of two in 8..=4096; every tensor's offset is a multiple of it.
    pub alignment: u32,
    /// All key-values, in the file's order.
    pub facts: Vec<Fact>,
    /// All tensors, in the file's order.
    pub tensors: Vec<GgufTensor>,
    /// Where tensor data begins in the file.
    pub data_offset: u64,
    /// Bytes of the file.
    pub file_len: u64,
}

impl Gguf {
    /// The key-values, with typed getters.
    pub fn view(&self) -> Facts<'_> {
        Facts(&self.facts)
    }

    /// The key-value of this key.
    pub fn get(&self, key: &str) -> Option<&Fact> {
        self.view().get(key)
    }

    /// A number that fits `u32`; see [`Facts::u32`].
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.view().u32(key)
    }

    /// A float; see [`Facts::f32`].
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.view().f32(key)
    }

    /// A truth value; see [`Facts::bool`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.view().bool(key)
    }

    /// A string; see [`Facts::string`].
    pub fn string(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.view().string(key)
    }

    /// Strings, borrowed; see [`Facts::string_array`].
    pub fn string_array(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = &str>>, GgufError> {
        self.view().string_array(key)
    }

    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// `value` rounded up to a multiple of the power of two `alignment`; `None` where that overflows.
pub fn align_up(value: u64, alignment: u32) -> Option<u64> {
    let mask = u64::from(alignment).checked_sub(1)?;
    Some(value.checked_add(mask)? & !mask)
}

/// Whether tensors may be aligned to it.
pub fn is_alignment(alignment: u32) -> bool {
    alignment.is_power_of_two() && (limits::ALIGNMENT_MIN..=limits::ALIGNMENT_MAX).contains(&alignment)
}
