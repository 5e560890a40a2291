//! Why a file is not a GGUF that we accept.

use std::io;

use crate::base::ErrorKind;

/// What is wrong with a file: what, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// Reading failed.
    #[error("the file could not be read at byte {offset}: {source}")]
    Io { offset: u64, source: io::Error },
    /// Not the magic.
    #[error("the file begins with {found:02x?}, not with `GGUF`; give a .gguf file")]
    Magic { found: [u8; 4] },
    /// A version that we do not read.
    #[error("the file is GGUF version {found}; versions 2 and 3 are read, convert it with current tools")]
    Version { found: u32 },
    /// The other byte order.
    #[error("the file is big-endian; convert it to little-endian")]
    BigEndian,
    /// One file of several that is not named as one.
    #[error(
        "the file is one of the model's {parts} parts and not named as one; name the parts \
         NAME-00001-of-{parts:05}.gguf and so on, in one place"
    )]
    Split { parts: u32 },
    /// The file ends too early.
    #[error("the file ends inside {what} at byte {offset}: {need} bytes are needed, {have} are left; fetch it again")]
    Truncated { what: &'static str, offset: u64, need: u64, have: u64 },
    /// A count or length beyond its bound.
    #[error("{what} at byte {offset} is {given}, at most {max} is accepted")]
    Limit { what: &'static str, offset: u64, given: u64, max: u64 },
    /// A name that is empty, not printable, or not UTF-8.
    #[error("{what} at byte {offset} is not printable text")]
    Name { what: &'static str, offset: u64 },
    /// A value type that the format does not have.
    #[error("key `{key}` has the unknown value type {ty}")]
    ValueType { key: String, ty: u32 },
    /// An array of arrays.
    #[error("key `{key}` is an array of arrays, which no known model needs")]
    NestedArray { key: String },
    /// A value whose bytes are not what its type says.
    #[error("the value of key `{key}` is malformed: {reason}")]
    Value { key: String, reason: &'static str },
    /// A key that comes twice.
    #[error("key `{key}` comes twice")]
    DuplicateKey { key: String },
    /// A key that is needed.
    #[error("key `{key}` is missing")]
    MissingKey { key: String },
    /// A key of another type than needed, or out of range.
    #[error("key `{key}` is {found}, {expected} is needed")]
    WrongType { key: String, found: String, expected: &'static str },
    /// An alignment that is not a power of two in 8..=4096.
    #[error("the alignment is {found}; a power of two from 8 to 4096 is needed")]
    Alignment { found: u64 },
    /// A tensor name that comes twice.
    #[error("tensor `{tensor}` comes twice")]
    DuplicateTensor { tensor: String },
    /// A ggml type that we do not know.
    #[error("tensor `{tensor}` has the unknown type {ty}")]
    TensorType { tensor: String, ty: u32 },
    /// A shape that cannot be.
    #[error("tensor `{tensor}` has an impossible shape: {fault}")]
    Shape { tensor: String, fault: ShapeFault },
    /// An offset that is not aligned.
    #[error("tensor `{tensor}` begins at {offset}, not on a multiple of {alignment}")]
    Unaligned { tensor: String, offset: u64, alignment: u32 },
    /// Data past the end of the file.
    #[error("tensor `{tensor}` has {size} bytes at {offset} of the data, which has {data_len}; fetch the file again")]
    Outside { tensor: String, offset: u64, size: u64, data_len: u64 },
    /// Two tensors over the same bytes.
    #[error("tensors `{first}` and `{second}` overlap")]
    Overlap { first: String, second: String },
}

/// What is impossible about a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShapeFault {
    /// Not 1 to 4 axes.
    #[error("{0} axes, 1 to 4 are possible")]
    Axes(u64),
    /// An axis of no elements.
    #[error("an axis of length 0")]
    Empty,
    /// Rows that are not whole blocks.
    #[error("rows of {row} elements, not a multiple of the type's {block}")]
    Row { row: u64, block: u64 },
    /// More elements than can be counted.
    #[error("more elements than can be counted")]
    Overflow,
}

impl GgufError {
    /// The kind that crosses borders.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { .. } => ErrorKind::Io,
            Self::Split { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::BadGguf,
        }
    }
}
