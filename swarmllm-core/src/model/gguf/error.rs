//! Why a file is not an accepted GGUF.

use std::io;

use crate::base::ErrorKind;

/// Why a file is refused: what is wrong, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// Reading failed.
    #[error("the file could not be read at byte {offset}: {source}")]
    Io { offset: u64, source: io::Error },
    /// The magic is wrong.
    #[error("the file begins with {found:02x?}, not with `GGUF`; give a .gguf file")]
    Magic { found: [u8; 4] },
    /// The version is not supported.
    #[error("the file is GGUF version {found}; versions 2 and 3 are supported, convert it with current tools")]
    Version { found: u32 },
    /// The byte order is wrong.
    #[error("the file is big-endian; convert it to little-endian")]
    BigEndian,
    /// The file is one part of several, but not named as a part.
    #[error(
        "the file is one of the model's {parts} parts but not named as one; name the parts \
         NAME-00001-of-{parts:05}.gguf and so on, in one place"
    )]
    Split { parts: u32 },
    /// The file is truncated.
    #[error("the file ends inside {what} at byte {offset}: {need} bytes are needed, {have} are left; fetch it again")]
    Truncated { what: &'static str, offset: u64, need: u64, have: u64 },
    /// A count or length exceeds its bound.
    #[error("{what} at byte {offset} is {given}, at most {max} is accepted")]
    Limit { what: &'static str, offset: u64, given: u64, max: u64 },
    /// A name is empty, not printable, or not UTF-8.
    #[error("{what} at byte {offset} is not printable text")]
    Name { what: &'static str, offset: u64 },
    /// The value type is unknown.
    #[error("key `{key}` has the unknown value type {ty}")]
    ValueType { key: String, ty: u32 },
    /// The value is an array of arrays.
    #[error("key `{key}` is an array of arrays, which no known model needs")]
    NestedArray { key: String },
    /// The bytes of the value do not match its type.
    #[error("the value of key `{key}` is malformed: {reason}")]
    Value { key: String, reason: &'static str },
    /// The key occurs twice.
    #[error("key `{key}` occurs twice")]
    DuplicateKey { key: String },
    /// A required key is missing.
    #[error("key `{key}` is missing")]
    MissingKey { key: String },
    /// The value has the wrong type, or is out of range.
    #[error("key `{key}` is {found}, {expected} is needed")]
    WrongType { key: String, found: String, expected: &'static str },
    /// The alignment is not a power of two in 8..=4096.
    #[error("the alignment is {found}; a power of two from 8 to 4096 is needed")]
    Alignment { found: u64 },
    /// The tensor's name occurs twice.
    #[error("tensor `{tensor}` occurs twice")]
    DuplicateTensor { tensor: String },
    /// The ggml type is unknown.
    #[error("tensor `{tensor}` has the unknown type {ty}")]
    TensorType { tensor: String, ty: u32 },
    /// The shape is invalid.
    #[error("tensor `{tensor}` has an impossible shape: {fault}")]
    Shape { tensor: String, fault: ShapeFault },
    /// The offset is not aligned.
    #[error("tensor `{tensor}` begins at {offset}, not on a multiple of {alignment}")]
    Unaligned { tensor: String, offset: u64, alignment: u32 },
    /// The data extends past the end of the file.
    #[error("tensor `{tensor}` has {size} bytes at {offset} of the data, which has {data_len}; fetch the file again")]
    Outside { tensor: String, offset: u64, size: u64, data_len: u64 },
    /// Two tensors overlap.
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap { first: String, second: String },
}

/// What is wrong with a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShapeFault {
    /// The number of axes is not 1 to 4.
    #[error("{0} axes, 1 to 4 are possible")]
    Axes(u64),
    /// An axis has length 0.
    #[error("an axis of length 0")]
    Empty,
    /// Rows are not whole blocks.
    #[error("rows of {row} elements, not a multiple of the type's {block}")]
    Row { row: u64, block: u64 },
    /// The number of elements overflows.
    #[error("more elements than can be counted")]
    Overflow,
}

impl GgufError {
    /// The [`ErrorKind`] reported to callers.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::Split { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::BadGguf,
        }
    }
}
