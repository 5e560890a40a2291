//! Reads and checks a header, in one pass over a buffered reader.

use std::collections::HashSet;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use bytes::Bytes;

use super::value::{Value, ValueType};
use super::{
    ALIGNMENT_KEY, DEFAULT_ALIGNMENT, Facts, GgmlType, Gguf, GgufError, GgufTensor, MAGIC, ShapeFault, align_up,
    is_alignment, limits,
};
use crate::model::Fact;

/// Bytes per read.
const BUFFER: usize = 64 * 1024;

impl Gguf {
    /// Reads a header from the start of the reader and checks it completely, including the tensor ranges against the
    /// reader's length.
    ///
    /// Memory grows as bytes arrive, to at most twice the header. Tensor data is not read.
    pub fn read(reader: &mut (impl Read + Seek)) -> Result<Gguf, GgufError> {
        let mut cursor = Cursor::new(reader)?;
        let magic = cursor.array::<4>("the magic")?;
        if magic != MAGIC {
            return Err(GgufError::Magic { found: magic });
        }
        let version = read_version(&mut cursor)?;
        let tensor_count = cursor.count("the number of tensors", limits::TENSORS)?;
        let fact_count = cursor.count("the number of keys", limits::FACTS)?;
        let facts = read_facts(&mut cursor, fact_count)?;
        let alignment = read_alignment(Facts(&facts))?;
        let tensors = read_tensors(&mut cursor, tensor_count)?;
        let data_offset = align_up(cursor.pos, alignment).ok_or(GgufError::Alignment { found: alignment.into() })?;
        let gguf = Gguf { version, alignment, facts, tensors, data_offset, file_len: cursor.len };
        check_ranges(&gguf)?;
        Ok(gguf)
    }

    /// Reads and checks a header from the first bytes of a file of `file_len` bytes; `None` if more bytes are needed.
    /// Never needs more than [`limits::HEADER`] bytes.
    pub fn read_prefix(prefix: &[u8], file_len: u64) -> Result<Option<Gguf>, GgufError> {
        let have = prefix.len() as u64;
        match Gguf::read(&mut Prefix { bytes: io::Cursor::new(prefix), file_len }) {
            Err(GgufError::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof && have < file_len => {
                match have < limits::HEADER {
                    true => Ok(None),
                    false => Err(GgufError::Limit {
                        what: "the length of the header",
                        offset: 0,
                        given: have + 1,
                        max: limits::HEADER,
                    }),
                }
            }
            read => read.map(Some),
        }
    }

    /// The bytes of `prefix` after the header, and their file offset. `prefix` must contain the header.
    pub fn after_header(&self, prefix: &[u8]) -> (u64, Bytes) {
        let begin = self.data_offset.min(prefix.len() as u64);
        // At most the length of the prefix.
        (begin, Bytes::copy_from_slice(prefix.get(begin as usize..).unwrap_or_default()))
    }
}

/// The first bytes of a longer file.
struct Prefix<'a> {
    bytes: io::Cursor<&'a [u8]>,
    file_len: u64,
}

impl Read for Prefix<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.bytes.read(out)
    }
}

impl Seek for Prefix<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            // `Cursor::new` asks for the file's length this way and then rewinds.
            SeekFrom::End(0) => Ok(self.file_len),
            to => self.bytes.seek(to),
        }
    }
}

fn read_version(cursor: &mut Cursor<impl Read>) -> Result<u32, GgufError> {
    match cursor.u32("the version")? {
        version @ (2 | 3) => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => Err(GgufError::BigEndian),
        found => Err(GgufError::Version { found }),
    }
}

fn read_alignment(facts: Facts<'_>) -> Result<u32, GgufError> {
    let alignment = facts.u32(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !is_alignment(alignment) {
        return Err(GgufError::Alignment { found: alignment.into() });
    }
    Ok(alignment)
}

fn read_facts(cursor: &mut Cursor<impl Read>, count: u64) -> Result<Vec<Fact>, GgufError> {
    let mut facts = Vec::new();
    let mut keys = HashSet::new();
    let mut budget = limits::FACT_BYTES;
    for _ in 0..count {
        let key = cursor.name("a key", limits::KEY, |c| !c.is_control())?;
        if !keys.insert(key.clone()) {
            return Err(GgufError::DuplicateKey { key });
        }
        let ty = cursor.u32("a value's type")?;
        let mut fact = Fact { key, ty, raw: Vec::new() };
        read_raw(cursor, &mut fact, &mut budget)?;
        fact.raw.shrink_to_fit();
        Value::parse(&fact)?;
        facts.push(fact);
    }
    Ok(facts)
}

/// Reads the bytes of a value as its lengths say; [`Value::parse`] checks their meaning.
fn read_raw(cursor: &mut Cursor<impl Read>, fact: &mut Fact, budget: &mut u64) -> Result<(), GgufError> {
    let ty = value_type(&fact.key, fact.ty)?;
    let Fact { key, raw, .. } = fact;
    match (ty, ty.width()) {
        (_, Some(width)) => cursor.extend(raw, width, "a value", budget),
        (ValueType::String, None) => read_string(cursor, raw, budget),
        (_, None) => {
            let element = cursor.u32("an array's type")?;
            let count = cursor.count("the number of elements", limits::ARRAY)?;
            raw.extend(element.to_le_bytes());
            raw.extend(count.to_le_bytes());
            match (value_type(key, element)?, value_type(key, element)?.width()) {
                // `count` is at most `limits::ARRAY` and a width at most 8.
                (_, Some(width)) => cursor.extend(raw, count * width, "an array", budget),
                (ValueType::String, None) => (0..count).try_for_each(|_| read_string(cursor, raw, budget)),
                (_, None) => Err(GgufError::NestedArray { key: key.clone() }),
            }
        }
    }
}

fn value_type(key: &str, ty: u32) -> Result<ValueType, GgufError> {
    ValueType::from_id(ty).ok_or_else(|| GgufError::ValueType { key: key.to_owned(), ty })
}

fn read_string(cursor: &mut Cursor<impl Read>, raw: &mut Vec<u8>, budget: &mut u64) -> Result<(), GgufError> {
    let len = cursor.count("the length of a string", limits::STRING)?;
    cursor.spend(budget, size_of::<u64>() as u64)?;
    raw.extend(len.to_le_bytes());
    cursor.extend(raw, len, "a string", budget)
}

fn read_tensors(cursor: &mut Cursor<impl Read>, count: u64) -> Result<Vec<GgufTensor>, GgufError> {
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let tensor = read_tensor(cursor)?;
        if !names.insert(tensor.name.clone()) {
            return Err(GgufError::DuplicateTensor { tensor: tensor.name });
        }
        tensors.push(tensor);
    }
    Ok(tensors)
}

fn read_tensor(cursor: &mut Cursor<impl Read>) -> Result<GgufTensor, GgufError> {
    let name = cursor.name("a tensor's name", limits::TENSOR_NAME, |c| c.is_ascii_graphic())?;
    let axes = cursor.u32("a tensor's axes")?;
    if !(1..=limits::AXES).contains(&axes) {
        return Err(GgufError::Shape { tensor: name, fault: ShapeFault::Axes(axes.into()) });
    }
    let dims = (0..axes).map(|_| cursor.u64("a tensor's shape")).collect::<Result<Vec<u64>, _>>()?;
    let ty = cursor.u32("a tensor's type")?;
    let offset = cursor.u64("a tensor's offset")?;
    let Some(known) = GgmlType::from_id(ty) else { return Err(GgufError::TensorType { tensor: name, ty }) };
    match known.tensor_size(&dims) {
        Ok(size) => Ok(GgufTensor { name, ty, dims, offset, size }),
        Err(fault) => Err(GgufError::Shape { tensor: name, fault }),
    }
}

/// Checks that every tensor is aligned, inside the file and disjoint from the others.
fn check_ranges(gguf: &Gguf) -> Result<(), GgufError> {
    let data_len = gguf.file_len.saturating_sub(gguf.data_offset);
    let mut sorted: Vec<&GgufTensor> = gguf.tensors.iter().collect();
    sorted.sort_by_key(|tensor| tensor.offset);
    let mut before: Option<(&GgufTensor, u64)> = None;
    for tensor in sorted {
        let GgufTensor { offset, size, .. } = *tensor;
        let tensor_name = || tensor.name.clone();
        if offset % u64::from(gguf.alignment) != 0 {
            return Err(GgufError::Unaligned { tensor: tensor_name(), offset, alignment: gguf.alignment });
        }
        let end = offset.checked_add(size).filter(|end| *end <= data_len);
        let Some(end) = end else {
            return Err(GgufError::Outside { tensor: tensor_name(), offset, size, data_len });
        };
        if let Some((first, _)) = before.filter(|(_, end)| offset < *end) {
            return Err(GgufError::Overlap { first: first.name.clone(), second: tensor_name() });
        }
        before = Some((tensor, end));
    }
    Ok(())
}

/// A reader with its position and the file's length, so that no length field is trusted beyond the end of the file.
struct Cursor<R> {
    reader: BufReader<R>,
    pos: u64,
    len: u64,
}

impl<R: Read + Seek> Cursor<R> {
    fn new(mut reader: R) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { offset: 0, source };
        let len = reader.seek(SeekFrom::End(0)).map_err(io)?;
        reader.rewind().map_err(io)?;
        Ok(Self { reader: BufReader::with_capacity(BUFFER, reader), pos: 0, len })
    }
}

impl<R: Read> Cursor<R> {
    fn fill(&mut self, bytes: &mut [u8], what: &'static str) -> Result<(), GgufError> {
        let need = bytes.len() as u64;
        self.check_left(need, what)?;
        self.reader.read_exact(bytes).map_err(|source| GgufError::Io { offset: self.pos, source })?;
        self.pos += need;
        Ok(())
    }

    fn check_left(&self, need: u64, what: &'static str) -> Result<(), GgufError> {
        let have = self.len.saturating_sub(self.pos);
        if need > have {
            return Err(GgufError::Truncated { what, offset: self.pos, need, have });
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes, what)?;
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count or length of at most `max`.
    fn count(&mut self, what: &'static str, max: u64) -> Result<u64, GgufError> {
        let offset = self.pos;
        let given = self.u64(what)?;
        if given > max {
            return Err(GgufError::Limit { what, offset, given, max });
        }
        Ok(given)
    }

    fn spend(&self, budget: &mut u64, bytes: u64) -> Result<(), GgufError> {
        let max = limits::FACT_BYTES;
        let given = (max - *budget).saturating_add(bytes);
        if given > max {
            return Err(GgufError::Limit { what: "the size of all values", offset: self.pos, given, max });
        }
        *budget -= bytes;
        Ok(())
    }

    /// Appends `need` bytes to `raw`, within the file's length and `budget`.
    fn extend(&mut self, raw: &mut Vec<u8>, need: u64, what: &'static str, budget: &mut u64) -> Result<(), GgufError> {
        self.check_left(need, what)?;
        self.spend(budget, need)?;
        let start = raw.len();
        // At most `limits::FACT_BYTES`, so it fits any usize.
        raw.resize(start + need as usize, 0);
        raw.get_mut(start..).map_or(Ok(()), |tail| self.fill(tail, what))
    }

    /// A name: not empty, at most `max` bytes, all characters allowed.
    fn name(&mut self, what: &'static str, max: u64, allowed: fn(char) -> bool) -> Result<String, GgufError> {
        let offset = self.pos;
        let len = self.count(what, max)?;
        self.check_left(len, what)?;
        // At most `max`, a few hundred bytes.
        let mut bytes = vec![0; len as usize];
        self.fill(&mut bytes, what)?;
        String::from_utf8(bytes)
            .ok()
            .filter(|name| !name.is_empty() && name.chars().all(allowed))
            .ok_or(GgufError::Name { what, offset })
    }
}
