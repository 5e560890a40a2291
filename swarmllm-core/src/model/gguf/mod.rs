//! GGUF files: reading and validation.
//!
//! The only validator of foreign model files. Guarantees: everything in a [`Gguf`] was checked (bounds, UTF-8,
//! alignment, types, shapes, offsets inside the file, no duplicates, no overlaps); reading needs at most twice the
//! header's bytes, whatever a count claims; no input panics. Refused: version 1, big-endian files, nested arrays and
//! unknown types. [`PartJoiner`] builds one header from a multi-file model; the files are not merged.

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
pub use split::{MAX_PARTS, PartJoiner, PartName, PartRanges, SplitError, is_split_key};
pub use value::{Array, Facts, Value, ValueType};
pub use write::{HeaderTensor, write_header};

use crate::model::Fact;

/// The first four bytes.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// The version that is written.
pub const VERSION: u32 = 3;
/// Alignment of tensor data in a file without [`ALIGNMENT_KEY`].
pub const DEFAULT_ALIGNMENT: u32 = 32;
/// The key of another alignment.
pub const ALIGNMENT_KEY: &str = "general.alignment";

/// Bounds of the input. Each is far above the needs of the largest public model.
pub mod limits {
    /// Key-values.
    pub const FACTS: u64 = 4096;
    /// Bytes of all values together. Gemma's vocabulary takes 6 MB, the largest public ones about 20 MB.
    pub const FACT_BYTES: u64 = 64 * 1024 * 1024;
    /// Bytes of a header that is read incrementally. The other bounds make less: all values, 4,096 keys of 268 bytes
    /// with type and length, and 10,000 tensors of 119 bytes.
    pub const HEADER: u64 = 68 * 1024 * 1024;
    /// Bytes of a key.
    pub const KEY: u64 = 256;
    /// Bytes of a string value. Chat templates are the longest.
    pub const STRING: u64 = 1024 * 1024;
    /// Elements of an array.
    pub const ARRAY: u64 = 4 * 1024 * 1024;
    /// Tensors.
    pub const TENSORS: u64 = 10_000;
    /// Bytes of a tensor's name. ggml stores 64 bytes with the terminating zero.
    pub const TENSOR_NAME: u64 = 63;
    /// Axes of a tensor.
    pub const AXES: u32 = 4;
    /// Smallest alignment.
    pub const ALIGNMENT_MIN: u32 = 8;
    /// Largest alignment.
    pub const ALIGNMENT_MAX: u32 = 4096;
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Name, unique in the file.
    pub name: String,
    /// ggml type id, one of [`GgmlType`].
    pub ty: u32,
    /// Shape, fastest axis first; 1 to 4 axes, none of them 0.
    pub dims: Vec<u64>,
    /// Offset of the first byte from [`Gguf::data_offset`].
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// A checked header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gguf {
    /// GGUF version, 2 or 3.
    pub version: u32,
    /// A power of two in 8..=4096; every tensor's offset is a multiple of it.
    pub alignment: u32,
    /// All key-values, in file order.
    pub facts: Vec<Fact>,
    /// All tensors, in file order.
    pub tensors: Vec<GgufTensor>,
    /// File offset of the tensor data.
    pub data_offset: u64,
    /// Length of the file in bytes.
    pub file_len: u64,
}

impl Gguf {
    /// Typed getters over the key-values.
    pub fn view(&self) -> Facts<'_> {
        Facts(&self.facts)
    }

    /// The key-value with this key.
    pub fn get(&self, key: &str) -> Option<&Fact> {
        self.view().get(key)
    }

    /// An integer within `u32`; see [`Facts::u32`].
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.view().u32(key)
    }

    /// A float; see [`Facts::f32`].
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.view().f32(key)
    }

    /// A boolean; see [`Facts::bool`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.view().bool(key)
    }

    /// A string; see [`Facts::string`].
    pub fn string(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.view().string(key)
    }

    /// An array of strings, borrowed; see [`Facts::string_array`].
    pub fn string_array(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = &str>>, GgufError> {
        self.view().string_array(key)
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// `value` rounded up to a multiple of `alignment`, a power of two; `None` on overflow.
pub fn align_up(value: u64, alignment: u32) -> Option<u64> {
    let mask = u64::from(alignment).checked_sub(1)?;
    Some(value.checked_add(mask)? & !mask)
}

/// Whether this is a valid tensor alignment.
pub fn is_alignment(alignment: u32) -> bool {
    alignment.is_power_of_two() && (limits::ALIGNMENT_MIN..=limits::ALIGNMENT_MAX).contains(&alignment)
}
