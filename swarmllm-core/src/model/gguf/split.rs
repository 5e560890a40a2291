//! Multi-file models: part names, split keys, and the header that all parts have together.
//!
//! The parts represent one file, the concatenation of their bytes. Nothing is merged: [`PartJoiner`] builds the header of
//! that file, and readers map a tensor's offset to a part with [`PartRanges`].

use std::collections::HashMap;

use super::{Gguf, GgufError, limits};
use crate::base::ErrorKind;

/// Most parts of a model. The largest public models have about 100; all parts are open at once.
pub const MAX_PARTS: u32 = 256;
/// Prefix of the keys that describe the split and not the model.
const PREFIX: &str = "split.";
/// Key of a part's number, from 0.
const NUMBER: &str = "split.no";
/// Key of the number of parts.
const COUNT: &str = "split.count";
/// Key of the number of tensors in all parts.
const TENSORS: &str = "split.tensors.count";
/// Digits of the numbers in a part's name.
const DIGITS: usize = 5;

/// Why files are not the parts of one model.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// The file is named as a part but has no split keys.
    #[error("{part} is named as a part but has no key `{key}`: it is not a part of this model")]
    NotAPart { part: String, key: &'static str },
    /// The part belongs to a model with another number of parts.
    #[error("{part} is one of {found} parts, not one of {expected}: it is a part of another model")]
    Count { part: String, found: u32, expected: u32 },
    /// The number of parts is zero or too large.
    #[error("{part} is one of {given} parts; 1 to {max} are accepted")]
    TooMany { part: String, given: u32, max: u32 },
    /// The part occurs twice.
    #[error("{part} is part {number}, which was read already: it is a copy under another name")]
    DuplicatePart { part: String, number: u32 },
    /// The part has the name of another part.
    #[error("{part} is part {found}, part {expected} is expected: its name is wrong")]
    Order { part: String, found: u32, expected: u32 },
    /// The metadata differs from the first part's.
    #[error("{part} has another value of key `{key}` than the first part: it is a part of another model")]
    MetadataMismatch { part: String, key: String },
    /// A tensor is in two parts.
    #[error("tensor `{tensor}` is in {part} and in {other}: the parts overlap")]
    Overlap { tensor: String, part: String, other: String },
    /// The number of tensors differs from the one in the split keys.
    #[error("the {parts} parts have {found} tensors, their keys say {expected}: a part is not of this model")]
    Tensors { parts: u32, found: u64, expected: u64 },
    /// Parts are missing.
    #[error("only {found} of {expected} parts were given")]
    Missing { found: u32, expected: u32 },
    /// The parts have more bytes or tensors together than is accepted.
    #[error("the parts have more {what} than are accepted")]
    TooLarge { what: &'static str },
    /// A split key has the wrong type.
    #[error("{part}: {source}")]
    Key { part: String, source: GgufError },
}

impl SplitError {
    /// The [`ErrorKind`] reported to callers.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::BadGguf
    }
}

/// The name of a part: `<stem>-00002-of-00003.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    stem: String,
    /// From 1.
    number: u32,
    count: u32,
}

impl PartName {
    /// Parses a file name; `None` if it is not the name of one part of several.
    pub fn parse(name: &str) -> Option<PartName> {
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let read = |digits: &str| {
            let plain = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse::<u32>().ok()).flatten()
        };
        let (number, count) = (read(number)?, read(count)?);
        let sound = !stem.is_empty() && count > 1 && (1..=count).contains(&number);
        sound.then(|| PartName { stem: stem.to_owned(), number, count })
    }

    /// The name of part `number`, from 1.
    pub fn with_number(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }

    /// The common prefix of all parts' names.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// Number of parts.
    pub fn count(&self) -> u32 {
        self.count
    }
}

/// Whether the key describes the split and not the model.
pub fn is_split_key(key: &str) -> bool {
    key.starts_with(PREFIX)
}

/// The split keys of a part.
struct Split {
    number: u32,
    count: u32,
    tensors: u32,
}

impl Split {
    fn read(gguf: &Gguf, part: &str) -> Result<Split, SplitError> {
        let get = |key: &'static str| {
            let found = gguf.u32(key).map_err(|source| SplitError::Key { part: part.to_owned(), source })?;
            found.ok_or_else(|| SplitError::NotAPart { part: part.to_owned(), key })
        };
        Ok(Split { number: get(NUMBER)?, count: get(COUNT)?, tensors: get(TENSORS)? })
    }
}

impl Gguf {
    /// Number of parts that the file is one of; 1 for a whole model.
    pub fn parts(&self) -> Result<u32, GgufError> {
        Ok(self.u32(COUNT)?.unwrap_or(1))
    }
}

/// Joins the headers of parts in order. The metadata of later parts is compared and not kept.
#[derive(Debug)]
pub struct PartJoiner {
    gguf: Gguf,
    /// Names of the parts added so far.
    parts: Vec<String>,
    /// Index of the part that has a tensor.
    owners: HashMap<String, usize>,
    count: u32,
    tensors: u32,
}

impl PartJoiner {
    /// Starts with the first part. Errors call it `part`.
    pub fn new(first: Gguf, part: &str) -> Result<PartJoiner, SplitError> {
        let count = Split::read(&first, part)?.count;
        if !(1..=MAX_PARTS).contains(&count) {
            return Err(SplitError::TooMany { part: part.to_owned(), given: count, max: MAX_PARTS });
        }
        let mut gguf = first.clone();
        gguf.facts.retain(|fact| !is_split_key(&fact.key));
        (gguf.tensors, gguf.data_offset, gguf.file_len) = (Vec::new(), 0, 0);
        let tensors = Split::read(&first, part)?.tensors;
        let mut join = PartJoiner { gguf, parts: Vec::new(), owners: HashMap::new(), count, tensors };
        join.add(first, part)?;
        Ok(join)
    }

    /// Number of parts.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Adds the next part.
    pub fn add(&mut self, next: Gguf, part: &str) -> Result<(), SplitError> {
        self.check(&next, part)?;
        let too_large = |what| SplitError::TooLarge { what };
        if (self.gguf.tensors.len() + next.tensors.len()) as u64 > limits::TENSORS {
            return Err(too_large("tensors"));
        }
        let begin = self.gguf.file_len;
        self.gguf.file_len = begin.checked_add(next.file_len).ok_or_else(|| too_large("bytes"))?;
        for mut tensor in next.tensors {
            if let Some(owner) = self.owners.insert(tensor.name.clone(), self.parts.len()) {
                let other = self.parts.get(owner).cloned().unwrap_or_default();
                return Err(SplitError::Overlap { tensor: tensor.name, part: part.to_owned(), other });
            }
            // The header check guarantees that the tensor lies inside the part.
            tensor.offset = begin.saturating_add(next.data_offset).saturating_add(tensor.offset);
            self.gguf.tensors.push(tensor);
        }
        self.parts.push(part.to_owned());
        Ok(())
    }

    fn check(&self, next: &Gguf, part: &str) -> Result<(), SplitError> {
        let part = || part.to_owned();
        let split = Split::read(next, &part())?;
        if split.count != self.count {
            return Err(SplitError::Count { part: part(), found: split.count, expected: self.count });
        }
        let (found, expected) = (split.number, self.parts.len() as u32);
        if found < expected {
            return Err(SplitError::DuplicatePart { part: part(), number: found + 1 });
        }
        if found > expected {
            return Err(SplitError::Order { part: part(), found: found.saturating_add(1), expected: expected + 1 });
        }
        if split.tensors != self.tensors {
            return Err(SplitError::MetadataMismatch { part: part(), key: TENSORS.to_owned() });
        }
        let facts = next.facts.iter().filter(|fact| !is_split_key(&fact.key));
        let mut others = facts.filter(|fact| self.gguf.get(&fact.key) != Some(*fact));
        match others.next() {
            Some(fact) => Err(SplitError::MetadataMismatch { part: part(), key: fact.key.clone() }),
            None => Ok(()),
        }
    }

    /// The header of the concatenated file: `data_offset` is 0, and a tensor's offset is its position in that file. Split
    /// keys are removed, so it equals the header of the unsplit model except for the tensor offsets.
    pub fn finish(self) -> Result<Gguf, SplitError> {
        let (found, expected) = (self.parts.len() as u32, self.count);
        if found != expected {
            return Err(SplitError::Missing { found, expected });
        }
        let (found, expected) = (self.gguf.tensors.len() as u64, self.tensors.into());
        if found != expected {
            return Err(SplitError::Tensors { parts: self.count, found, expected });
        }
        Ok(self.gguf)
    }
}

/// Byte ranges of the parts in the concatenated file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartRanges {
    /// First byte of each part, then the end of the last.
    bounds: Vec<u64>,
}

impl PartRanges {
    /// Ranges of parts with these lengths; `None` if the sum overflows.
    pub fn of(lens: impl Iterator<Item = u64>) -> Option<PartRanges> {
        let mut bounds = vec![0u64];
        for len in lens {
            bounds.push(bounds.last()?.checked_add(len)?);
        }
        Some(PartRanges { bounds })
    }

    /// The index and byte range of the part that contains the byte at `position`.
    pub fn find(&self, position: u64) -> Option<(usize, std::ops::Range<u64>)> {
        let part = self.bounds.partition_point(|bound| *bound <= position).checked_sub(1)?;
        Some((part, *self.bounds.get(part)?..*self.bounds.get(part + 1)?))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::super::GgufTensor;
    use super::super::tests::{TestTensor, file, split, tensor};
    use super::*;
    use crate::model::Fact;
    use crate::model::manifest::Sharding;
    use crate::model::manifest::tests::small_model;

    fn facts() -> Vec<Fact> {
        vec![Fact::string("general.architecture", "llama"), Fact::u32("llama.block_count", 1)]
    }

    fn marked(facts: &[Fact], number: u32, count: u32, tensors: u32) -> Vec<Fact> {
        let split =
            [Fact::u32("split.no", number), Fact::u32("split.count", count), Fact::u32("split.tensors.count", tensors)];
        facts.iter().cloned().chain(split).collect()
    }

    fn part(facts: &[Fact], tensors: &[TestTensor]) -> Gguf {
        Gguf::read(&mut Cursor::new(file(facts, tensors, 32))).unwrap()
    }

    fn floats(name: &str, seed: u64) -> TestTensor {
        tensor(name, &[8], 0, seed)
    }

    fn join(parts: Vec<Gguf>) -> Result<Gguf, SplitError> {
        let mut parts = parts.into_iter().zip(["a", "b", "c"]);
        let (first, name) = parts.next().unwrap();
        let mut join = PartJoiner::new(first, name)?;
        for (next, name) in parts {
            join.add(next, name)?;
        }
        join.finish()
    }

    #[test]
    fn any_parts_name_gives_the_names_of_all() {
        let name = PartName::parse("Model-Q4-00002-of-00012.gguf").unwrap();
        assert_eq!((name.stem(), name.number, name.count()), ("Model-Q4", 2, 12));
        assert_eq!(name.with_number(1), "Model-Q4-00001-of-00012.gguf");
        assert_eq!(name.with_number(12), "Model-Q4-00012-of-00012.gguf");
        for other in [
            "model.gguf",
            "model-00001-of-00001.gguf",
            "model-00000-of-00002.gguf",
            "model-00003-of-00002.gguf",
            "model-1-of-2.gguf",
            "model-00001-of-00002",
            "-00001-of-00002.gguf",
            "model-+0001-of-00002.gguf",
            "model-000001-of-000002.gguf",
            "model-00001-of-.gguf",
        ] {
            assert_eq!(PartName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn parts_join_to_one_header_wherever_the_metadata_lies() {
        for again in [vec![], facts()] {
            let parts = vec![
                part(&marked(&facts(), 0, 3, 3), &[floats("x", 1), floats("y", 2)]),
                part(&marked(&again, 1, 3, 3), &[]),
                part(&marked(&again, 2, 3, 3), &[floats("z", 3)]),
            ];
            let (first, second, third) = (parts[0].clone(), parts[1].file_len, parts[2].clone());
            let joined = join(parts).unwrap();
            assert_eq!(joined.facts, facts());
            let offsets: Vec<u64> = joined.tensors.iter().map(|tensor| tensor.offset).collect();
            let z = first.file_len + second + third.data_offset;
            assert_eq!(offsets, [first.data_offset, first.data_offset + 32, z]);
            assert_eq!((joined.data_offset, joined.file_len), (0, first.file_len + second + third.file_len));
        }
    }

    #[test]
    fn missing_duplicate_misnamed_foreign_and_overlapping_parts_are_refused() {
        let first = || part(&marked(&facts(), 0, 2, 2), &[floats("x", 1)]);
        let with = |second: Gguf| join(vec![first(), second]).unwrap_err();
        assert!(matches!(join(vec![first()]), Err(SplitError::Missing { found: 1, expected: 2 })));
        assert!(matches!(with(first()), SplitError::DuplicatePart { part, number: 1 } if part == "b"));
        let plain = part(&facts(), &[floats("y", 2)]);
        assert!(matches!(with(plain.clone()), SplitError::NotAPart { part, key: "split.no" } if part == "b"));
        assert!(matches!(join(vec![plain]), Err(SplitError::NotAPart { part, .. }) if part == "a"));
        let of_three = part(&marked(&[], 1, 3, 2), &[floats("y", 2)]);
        assert!(matches!(with(of_three), SplitError::Count { found: 3, expected: 2, .. }));
        let late = part(&marked(&[], 7, 2, 2), &[floats("y", 2)]);
        assert!(matches!(with(late.clone()), SplitError::Order { found: 8, expected: 2, .. }));
        assert!(matches!(join(vec![late]), Err(SplitError::Order { found: 8, expected: 1, .. })));
        let other_model = [Fact::string("general.architecture", "llama"), Fact::u32("llama.block_count", 2)];
        let foreign = part(&marked(&other_model, 1, 2, 2), &[floats("y", 2)]);
        assert!(
            matches!(with(foreign), SplitError::MetadataMismatch { part, key } if part == "b" && key == "llama.block_count")
        );
        let other_sum = part(&marked(&[], 1, 2, 3), &[floats("y", 2), floats("z", 3)]);
        assert!(matches!(with(other_sum), SplitError::MetadataMismatch { key, .. } if key == "split.tensors.count"));
        let overlap = part(&marked(&[], 1, 2, 2), &[floats("x", 1)]);
        let error = with(overlap);
        assert!(
            matches!(&error, SplitError::Overlap { tensor, part, other } if (tensor.as_str(), part.as_str(), other.as_str()) == ("x", "b", "a")),
            "{error}"
        );
        let few = part(&marked(&[], 1, 2, 2), &[]);
        assert!(matches!(with(few), SplitError::Tensors { parts: 2, found: 1, expected: 2 }));
    }

    #[test]
    fn hostile_counts_are_refused_and_bounded() {
        for count in [0, MAX_PARTS + 1, u32::MAX] {
            let first = part(&marked(&facts(), 0, count, 1), &[floats("x", 1)]);
            assert!(matches!(join(vec![first]), Err(SplitError::TooMany { .. })), "{count}");
        }
        let text = [Fact::string("split.no", "0"), Fact::u32("split.count", 2), Fact::u32("split.tensors.count", 1)];
        assert!(matches!(join(vec![part(&text, &[])]), Err(SplitError::Key { .. })));
        assert_eq!(PartRanges::of([u64::MAX, 1].into_iter()), None);
        let places = PartRanges::of([10, 0, 5].into_iter()).unwrap();
        assert_eq!(places.find(9), Some((0, 0..10)));
        assert_eq!(places.find(10), Some((2, 10..15)));
        assert_eq!(places.find(15), None);
    }

    proptest! {
        #[test]
        fn a_split_file_shards_like_the_whole(
            marks in prop::collection::vec(0usize..=10, 0..6),
            all in any::<bool>(),
        ) {
            let whole = small_model("small", 3, false, true, 1);
            let mut marks = [marks, vec![0, 10]].concat();
            marks.sort_unstable();
            let runs: Vec<usize> = marks.windows(2).map(|pair| pair[1] - pair[0]).collect();
            let parts = split(&whole, &runs, all);
            let joined = join_all(&parts).unwrap();
            let unsplit = Gguf::read(&mut Cursor::new(&whole)).unwrap();
            let (one, other) = (Sharding::new(&unsplit).unwrap(), Sharding::new(&joined).unwrap());
            prop_assert_eq!(&one.manifest, &other.manifest);
            prop_assert_eq!(&one.metadata, &other.metadata);
            let places = PartRanges::of(parts.iter().map(|part| part.len() as u64)).unwrap();
            for (tensor, from) in joined.tensors.iter().zip(&unsplit.tensors) {
                let (part, place) = places.find(tensor.offset).unwrap();
                let begin = (tensor.offset - place.start) as usize;
                let origin = (unsplit.data_offset + from.offset) as usize;
                let size = tensor.size as usize;
                prop_assert!(parts[part][begin..begin + size] == whole[origin..origin + size]);
            }
        }

        #[test]
        fn mutated_parts_never_panic_and_accepted_tensors_lie_inside(
            changes in prop::collection::vec((0usize..3, any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut parts = split(&small_model("small", 3, false, true, 1), &[4, 0, 6], true);
            for (part, at, value) in changes {
                let at = at.index(parts[part].len());
                parts[part][at] = value;
            }
            let total: u64 = parts.iter().map(|part| part.len() as u64).sum();
            if let Some(joined) = join_all(&parts) {
                let inside = |tensor: &GgufTensor| tensor.offset + tensor.size <= total;
                prop_assert!(joined.tensors.iter().all(inside));
                let _ = Sharding::new(&joined);
            }
        }
    }

    /// The joined header of these parts, if it is valid.
    fn join_all(parts: &[Vec<u8>]) -> Option<Gguf> {
        let mut parts = parts.iter().map(|part| Gguf::read(&mut Cursor::new(part)).ok());
        let mut join = PartJoiner::new(parts.next()??, "first").ok()?;
        for part in parts {
            join.add(part?, "next").ok()?;
        }
        join.finish().ok()
    }
}
