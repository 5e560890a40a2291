//! What the GGUF reader refuses, and a small valid file for tests of other modules.

use std::io::Cursor;

use proptest::prelude::*;

use super::*;
use crate::base::ErrorKind;

const F32: u32 = 0;
const Q4_0: u32 = 2;

/// A tensor of a test file, with its bytes.
pub(crate) struct TestTensor {
    pub name: String,
    pub dims: Vec<u64>,
    pub ty: u32,
    pub bytes: Vec<u8>,
}

/// A tensor filled with bytes that depend on `seed` alone.
pub(crate) fn tensor(name: &str, dims: &[u64], ty: u32, seed: u64) -> TestTensor {
    let size = GgmlType::from_id(ty).unwrap().tensor_size(dims).unwrap();
    let mut bytes = vec![0; size as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    TestTensor { name: name.to_owned(), dims: dims.to_vec(), ty, bytes }
}

/// A complete file: header, then the tensors packed at `alignment`.
pub(crate) fn file(facts: &[Fact], tensors: &[TestTensor], alignment: u32) -> Vec<u8> {
    let mut data = Vec::new();
    let mut entries = Vec::new();
    for tensor in tensors {
        data.resize(data.len().next_multiple_of(alignment as usize), 0);
        let TestTensor { name, dims, ty, bytes } = tensor;
        entries.push(HeaderTensor { name, dims, ty: *ty, offset: data.len() as u64 });
        data.extend(bytes);
    }
    let mut out = write_header(facts, &entries, alignment);
    out.extend(data);
    out
}

/// Splits a file into parts of `runs` tensors each, as llama.cpp's tool does. The key-values are in the first part, or
/// with `all` in every part.
pub(crate) fn split(whole: &[u8], runs: &[usize], all: bool) -> Vec<Vec<u8>> {
    let gguf = read(whole).unwrap();
    let mut tensors = gguf.tensors.iter();
    let part = |(number, run): (usize, &usize)| {
        let mut facts = if number == 0 || all { gguf.facts.clone() } else { Vec::new() };
        // 16-bit numbers and a signed 32-bit one, as llama.cpp's tool writes them.
        let count = (runs.len() as u16).to_le_bytes().to_vec();
        facts.push(Fact { key: "split.no".into(), ty: 2, raw: (number as u16).to_le_bytes().to_vec() });
        facts.push(Fact { key: "split.count".into(), ty: 2, raw: count });
        let total = (gguf.tensors.len() as i32).to_le_bytes().to_vec();
        facts.push(Fact { key: "split.tensors.count".into(), ty: 5, raw: total });
        let own = tensors.by_ref().take(*run).map(|tensor| {
            let begin = (gguf.data_offset + tensor.offset) as usize;
            let bytes = whole[begin..begin + tensor.size as usize].to_vec();
            TestTensor { name: tensor.name.clone(), dims: tensor.dims.clone(), ty: tensor.ty, bytes }
        });
        file(&facts, &own.collect::<Vec<_>>(), gguf.alignment)
    };
    runs.iter().enumerate().map(part).collect()
}

fn read(bytes: impl AsRef<[u8]>) -> Result<Gguf, GgufError> {
    Gguf::read(&mut Cursor::new(bytes.as_ref()))
}

fn facts() -> Vec<Fact> {
    vec![
        Fact::string("general.architecture", "llama"),
        Fact::u32("llama.block_count", 2),
        Fact::f32("llama.rope.freq_base", 10_000.0),
        Fact::bool("tokenizer.ggml.add_bos_token", true),
        Fact::strings("tokenizer.ggml.tokens", &["a", "", "é"]),
        Fact::bools("llama.pattern", &[true, false]),
        Fact::i32s("tokenizer.ggml.token_type", &[1, -1]),
    ]
}

fn good() -> Vec<u8> {
    file(&facts(), &[tensor("a.weight", &[32, 3], Q4_0, 1), tensor("b.weight", &[5], F32, 2)], 32)
}

/// The fixed head of a file: magic, version, counts.
fn head(version: u32, tensors: u64, facts: u64) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(version.to_le_bytes());
    out.extend(tensors.to_le_bytes());
    out.extend(facts.to_le_bytes());
    out
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A file with one key-value of this type and these bytes.
fn with_value(ty: u32, raw: &[u8]) -> Vec<u8> {
    let mut out = head(3, 0, 1);
    text(&mut out, "key");
    out.extend(ty.to_le_bytes());
    out.extend(raw);
    out
}

fn array_head(element: u32, len: u64) -> Vec<u8> {
    [&element.to_le_bytes()[..], &len.to_le_bytes()[..]].concat()
}

/// A file with these tensors and 1 KiB of data.
fn with_tensors(tensors: &[(&str, &[u64], u32, u64)]) -> Vec<u8> {
    let entries: Vec<HeaderTensor<'_>> =
        tensors.iter().map(|&(name, dims, ty, offset)| HeaderTensor { name, dims, ty, offset }).collect();
    let mut out = write_header(&[], &entries, 32);
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn a_valid_file_is_read_as_written() {
    let gguf = read(good()).unwrap();
    assert_eq!((gguf.version, gguf.alignment, gguf.file_len), (3, 32, good().len() as u64));
    assert_eq!(gguf.facts, facts());
    let a = gguf.tensor("a.weight").unwrap();
    assert_eq!((a.dims.as_slice(), a.ty, a.offset, a.size), (&[32, 3][..], Q4_0, 0, 54));
    assert_eq!(gguf.tensor("b.weight").unwrap().offset, 64);
    assert_eq!(gguf.u32("llama.block_count").unwrap(), Some(2));
    assert_eq!(gguf.f32("llama.rope.freq_base").unwrap(), Some(10_000.0));
    assert_eq!(gguf.bool("tokenizer.ggml.add_bos_token").unwrap(), Some(true));
    assert_eq!(gguf.string("general.architecture").unwrap(), Some("llama"));
    let tokens: Vec<&str> = gguf.string_array("tokenizer.ggml.tokens").unwrap().unwrap().collect();
    assert_eq!(tokens, ["a", "", "é"]);
    let types = gguf.view().array("tokenizer.ggml.token_type").unwrap().unwrap();
    assert_eq!(types.iter().collect::<Vec<_>>(), [Value::I32(1), Value::I32(-1)]);
    assert_eq!(gguf.u32("absent").unwrap(), None);
    assert!(matches!(gguf.u32("general.architecture"), Err(GgufError::WrongType { .. })));
    assert!(matches!(gguf.view().require_u32("absent"), Err(GgufError::MissingKey { .. })));
}

#[test]
fn alignments_round_trip_and_version_2_is_read() {
    for shift in 3..=12 {
        let alignment = 1 << shift;
        let bytes = file(&[], &[tensor("a", &[3], F32, 1), tensor("b", &[3], F32, 2)], alignment);
        let gguf = read(&bytes).unwrap();
        assert_eq!((gguf.alignment, gguf.tensors[1].offset), (alignment, u64::from(alignment.max(16))));
        let b = gguf.data_offset + gguf.tensors[1].offset;
        assert_eq!(&bytes[b as usize..][..12], tensor("b", &[3], F32, 2).bytes);
    }
    assert_eq!(read(head(2, 0, 0)).unwrap().version, 2);
}

#[test]
fn a_file_truncated_at_any_byte_is_refused() {
    let bytes = good();
    for len in 0..bytes.len() {
        let error = read(&bytes[..len]).unwrap_err();
        assert!(matches!(error, GgufError::Truncated { .. } | GgufError::Outside { .. }), "{len}: {error}");
        assert_eq!(error.kind(), ErrorKind::BadGguf);
    }
}

#[test]
fn another_magic_version_or_byte_order_is_refused() {
    assert!(matches!(read(b"GGML\x03\0\0\0"), Err(GgufError::Magic { found }) if &found == b"GGML"));
    assert!(matches!(read(head(1, 0, 0)), Err(GgufError::Version { found: 1 })));
    assert!(matches!(read(head(4, 0, 0)), Err(GgufError::Version { found: 4 })));
    assert!(matches!(read(head(3u32.swap_bytes(), 0, 0)), Err(GgufError::BigEndian)));
}

#[test]
fn an_invalid_alignment_is_refused() {
    for bad in [0, 1, 4, 7, 24, 33, 8192, u32::MAX] {
        let bytes = file(&[Fact::u32(ALIGNMENT_KEY, bad)], &[], 32);
        assert!(matches!(read(bytes), Err(GgufError::Alignment { found }) if found == u64::from(bad)), "{bad}");
    }
    assert!(matches!(read(file(&[Fact::string(ALIGNMENT_KEY, "32")], &[], 32)), Err(GgufError::WrongType { .. })));
}

#[test]
fn counts_beyond_their_bounds_are_refused_before_allocation() {
    let cases = [
        (head(3, limits::TENSORS + 1, 0), "the number of tensors"),
        (head(3, u64::MAX, 0), "the number of tensors"),
        (head(3, 0, limits::FACTS + 1), "the number of keys"),
        (head(3, 0, u64::MAX), "the number of keys"),
        (with_value(9, &array_head(4, 1 << 30)), "the number of elements"),
        (with_value(9, &array_head(8, 1 << 30)), "the number of elements"),
        (with_value(9, &array_head(4, u64::MAX)), "the number of elements"),
        (with_value(8, &u64::MAX.to_le_bytes()), "the length of a string"),
        ([head(3, 0, 1), u64::MAX.to_le_bytes().to_vec()].concat(), "a key"),
        ([head(3, 1, 0), 64u64.to_le_bytes().to_vec()].concat(), "a tensor's name"),
    ];
    for (bytes, part) in cases {
        match read(bytes) {
            Err(GgufError::Limit { what, .. }) => assert_eq!(what, part),
            other => panic!("{part}: {other:?}"),
        }
    }
}

#[test]
fn counts_beyond_the_files_length_are_refused() {
    let cases = [
        head(3, limits::TENSORS, 0),
        head(3, 0, limits::FACTS),
        with_value(9, &array_head(10, limits::ARRAY)),
        with_value(9, &array_head(8, limits::ARRAY)),
        with_value(8, &limits::STRING.to_le_bytes()),
    ];
    for bytes in cases {
        assert!(matches!(read(&bytes), Err(GgufError::Truncated { .. })), "{bytes:x?}");
    }
}

#[test]
fn values_beyond_their_total_bound_are_refused() {
    let long = "x".repeat(limits::STRING as usize);
    let count = limits::FACT_BYTES / limits::STRING;
    let facts: Vec<Fact> = (0..count).map(|number| Fact::string(&number.to_string(), &long)).collect();
    let error = read(write_header(&facts, &[], 32)).unwrap_err();
    assert!(matches!(error, GgufError::Limit { what: "the size of all values", .. }), "{error}");
    assert!(read(write_header(&facts[1..], &[], 32)).is_ok());
}

#[test]
fn malformed_values_are_refused() {
    let string = |bytes: &[u8]| [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
    let cases = [
        (7, vec![2]),
        (8, string(b"\xff")),
        (9, [array_head(7, 2), vec![1, 2]].concat()),
        (9, [array_head(8, 1), string(b"\xc3")].concat()),
    ];
    for (ty, raw) in cases {
        assert!(matches!(read(with_value(ty, &raw)), Err(GgufError::Value { .. })), "{ty} {raw:?}");
    }
    assert!(matches!(read(with_value(9, &array_head(9, 1))), Err(GgufError::NestedArray { .. })));
    assert!(matches!(read(with_value(9, &array_head(9, 0))), Err(GgufError::NestedArray { .. })));
    assert!(matches!(read(with_value(13, &[0; 8])), Err(GgufError::ValueType { ty: 13, .. })));
    assert!(matches!(read(with_value(9, &array_head(99, 0))), Err(GgufError::ValueType { ty: 99, .. })));
}

#[test]
fn a_fact_whose_bytes_do_not_match_its_type_is_refused() {
    let fact = |ty, raw: &[u8]| Fact { key: "key".to_owned(), ty, raw: raw.to_vec() };
    assert!(matches!(Value::parse(&fact(4, &[0; 5])), Err(GgufError::Value { .. })));
    assert!(matches!(Value::parse(&fact(4, &[0; 3])), Err(GgufError::Value { .. })));
    assert!(matches!(Value::parse(&fact(9, &array_head(4, u64::MAX))), Err(GgufError::Value { .. })));
    assert!(matches!(Value::parse(&fact(9, &array_head(4, 1))), Err(GgufError::Value { .. })));
    assert!(matches!(Value::parse(&fact(9, &array_head(9, 1))), Err(GgufError::NestedArray { .. })));
    assert!(matches!(Value::parse(&fact(8, &u64::MAX.to_le_bytes())), Err(GgufError::Value { .. })));
    assert!(matches!(Value::parse(&fact(77, &[])), Err(GgufError::ValueType { .. })));
}

#[test]
fn duplicate_or_unprintable_keys_and_names_are_refused() {
    let twice = [Fact::u32("key", 1), Fact::u32("key", 2)];
    assert!(matches!(read(write_header(&twice, &[], 32)), Err(GgufError::DuplicateKey { .. })));
    for key in ["", "a\nb", "a\0"] {
        let bytes = write_header(&[Fact::u32(key, 1)], &[], 32);
        assert!(matches!(read(bytes), Err(GgufError::Name { what: "a key", .. })), "{key:?}");
    }
    let twice = with_tensors(&[("a", &[1], F32, 0), ("a", &[1], F32, 32)]);
    assert!(matches!(read(twice), Err(GgufError::DuplicateTensor { tensor }) if tensor == "a"));
    for name in ["", "a b", "é", "a\0"] {
        let bytes = with_tensors(&[(name, &[1], F32, 0)]);
        assert!(matches!(read(bytes), Err(GgufError::Name { what: "a tensor's name", .. })), "{name:?}");
    }
    let longest = "x".repeat(limits::TENSOR_NAME as usize);
    assert!(read(with_tensors(&[(&longest, &[1], F32, 0)])).is_ok());
}

#[test]
fn invalid_shapes_and_types_are_refused() {
    let shape = |dims: &[u64], ty| match read(with_tensors(&[("a", dims, ty, 0)])) {
        Err(GgufError::Shape { fault, .. }) => fault,
        other => panic!("{dims:?}: {other:?}"),
    };
    assert_eq!(shape(&[], F32), ShapeFault::Axes(0));
    assert_eq!(shape(&[1; 5], F32), ShapeFault::Axes(5));
    assert_eq!(shape(&[4, 0], F32), ShapeFault::Empty);
    assert_eq!(shape(&[33], Q4_0), ShapeFault::Row { row: 33, block: 32 });
    assert_eq!(shape(&[1 << 40, 1 << 40], F32), ShapeFault::Overflow);
    assert_eq!(shape(&[u64::MAX, 1], F32), ShapeFault::Overflow);
    assert!(matches!(read(with_tensors(&[("a", &[1], 4, 0)])), Err(GgufError::TensorType { ty: 4, .. })));
    assert!(matches!(read(with_tensors(&[("a", &[1], u32::MAX, 0)])), Err(GgufError::TensorType { .. })));
}

#[test]
fn misplaced_tensors_are_refused() {
    let outside = |dims: &[u64], offset| {
        let error = read(with_tensors(&[("a", dims, F32, offset)])).unwrap_err();
        assert!(matches!(error, GgufError::Outside { .. }), "{dims:?} at {offset}: {error}");
    };
    outside(&[1 << 40], 0);
    outside(&[1], 1024);
    outside(&[257], 0);
    outside(&[9], 992);
    outside(&[8], u64::MAX - 31);
    assert!(read(with_tensors(&[("a", &[8], F32, 992)])).is_ok());
    assert!(matches!(read(with_tensors(&[("a", &[1], F32, 33)])), Err(GgufError::Unaligned { offset: 33, .. })));
    for second in [("b", &[1u64][..], F32, 32u64), ("b", &[1], F32, 0)] {
        let bytes = with_tensors(&[second, ("a", &[9], F32, 0)]);
        assert!(matches!(read(bytes), Err(GgufError::Overlap { .. })), "{second:?}");
    }
}

#[test]
fn error_texts_are_bounded() {
    let long = "x".repeat(limits::KEY as usize);
    let bytes = write_header(&[Fact::u32(&long, 1), Fact::u32(&long, 1)], &[], 32);
    assert!(read(bytes).unwrap_err().to_string().len() < 512);
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = read(&bytes);
        let _ = read([head(3, 2, 2), bytes].concat());
    }

    #[test]
    fn a_mutated_file_never_panics_and_accepted_tensors_lie_inside(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = good();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(gguf) = read(&bytes) {
            for tensor in &gguf.tensors {
                prop_assert!(gguf.data_offset + tensor.offset + tensor.size <= bytes.len() as u64);
            }
            for fact in &gguf.facts {
                prop_assert!(Value::parse(fact).is_ok());
            }
        }
    }

    #[test]
    fn values_of_random_bytes_never_panic(ty in 0u32..16, raw in prop::collection::vec(any::<u8>(), 0..128)) {
        let fact = Fact { key: "key".to_owned(), ty, raw };
        if let Ok(Value::Array(array)) = Value::parse(&fact) {
            prop_assert_eq!(array.iter().count(), array.len());
        }
    }
}
