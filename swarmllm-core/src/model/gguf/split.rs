//! Models in several files: which part of how many a file is, and the header that all parts have together.
//!
//! The parts stand for one file in which the bytes of each part follow those of the part before. Nothing is merged:
//! [`Join`] gives the header of that file, and whoever reads a tensor finds the part by the position.

use std::collections::HashMap;

use super::{Gguf, GgufError, limits};
use crate::base::ErrorKind;

/// Parts of one model. The largest public models have about 100; the files of all parts are open at once.
pub const MAX_PARTS: u32 = 256;
/// What the keys begin with that tell parts apart and say nothing of the model.
const PREFIX: &str = "split.";
/// The key of a part's number, from 0.
const NUMBER: &str = "split.no";
/// The key of the number of parts.
const COUNT: &str = "split.count";
/// The key of the number of tensors of all parts.
const TENSORS: &str = "split.tensors.count";
/// Digits of a number in a part's name.
const DIGITS: usize = 5;

/// Why files are not the parts of one model.
#[derive(Debug, thiserror::Error)]
pub enum SplitError {
    /// A file is named as a part and does not say that it is a part.
    #[error("{part} is named as a part and has no key `{key}`: it is no part of this model")]
    Unmarked { part: String, key: &'static str },
    /// A part of a model of another number of parts.
    #[error("{part} is a part of {found} and not of {expected}: it is a part of another model")]
    Count { part: String, found: u32, expected: u32 },
    /// More parts than are accepted, or none.
    #[error("{part} is a part of {given}; 1 to {max} parts are accepted")]
    TooMany { part: String, given: u32, max: u32 },
    /// A part that comes twice.
    #[error("{part} is part {number}, which is there already: it is a copy under another name")]
    Doubled { part: String, number: u32 },
    /// A part under the name of another.
    #[error("{part} is part {found}, part {expected} is due: its name is wrong")]
    Order { part: String, found: u32, expected: u32 },
    /// A part whose metadata are not those of the first.
    #[error("{part} has another value of key `{key}` than the first part: it is a part of another model")]
    Foreign { part: String, key: String },
    /// A tensor in two parts.
    #[error("tensor `{tensor}` is in {part} and in {other}: the parts overlap")]
    Overlap { tensor: String, part: String, other: String },
    /// Not as many tensors as the parts speak of.
    #[error("the {parts} parts have {found} tensors and say that they have {expected}: a part is not of this model")]
    Tensors { parts: u32, found: u64, expected: u64 },
    /// Parts that were not given.
    #[error("{found} of {expected} parts are there")]
    Missing { found: u32, expected: u32 },
    /// Longer together than can be counted, or than is accepted.
    #[error("the parts have more {what} than is accepted")]
    TooLarge { what: &'static str },
    /// A key of another type.
    #[error("{part}: {source}")]
    Key { part: String, source: GgufError },
}

impl SplitError {
    /// The kind that crosses borders.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::BadGguf
    }
}

/// The name of one part: `<stem>-00002-of-00003.gguf`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartName {
    stem: String,
    /// From 1.
    number: u32,
    count: u32,
}

impl PartName {
    /// Reads the name of a file; `None` where it is not that of one part of several.
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

    /// The name of the part of this number, from 1.
    pub fn of(&self, number: u32) -> String {
        format!("{}-{number:05}-of-{:05}.gguf", self.stem, self.count)
    }

    /// What the names of all parts begin with.
    pub fn stem(&self) -> &str {
        &self.stem
    }

    /// How many parts there are.
    pub fn count(&self) -> u32 {
        self.count
    }
}

/// Whether a key is about parts only.
pub fn is_split_key(key: &str) -> bool {
    key.starts_with(PREFIX)
}

/// What a part says of itself.
struct Split {
    number: u32,
    count: u32,
    tensors: u32,
}

impl Split {
    fn read(gguf: &Gguf, part: &str) -> Result<Split, SplitError> {
        let get = |key: &'static str| {
            let found = gguf.u32(key).map_err(|source| SplitError::Key { part: part.to_owned(), source })?;
            found.ok_or_else(|| SplitError::Unmarked { part: part.to_owned(), key })
        };
        Ok(Split { number: get(NUMBER)?, count: get(COUNT)?, tensors: get(TENSORS)? })
    }
}

impl Gguf {
    /// Of how many parts the file is one; 1 where it is the whole model.
    pub fn parts(&self) -> Result<u32, GgufError> {
        Ok(self.u32(COUNT)?.unwrap_or(1))
    }
}

/// The parts of a model, taken one after another. The metadata of later parts are compared and not kept.
#[derive(Debug)]
pub struct Join {
    gguf: Gguf,
    /// Names of the parts that were taken.
    parts: Vec<String>,
    /// Which part has a tensor.
    owners: HashMap<String, usize>,
    count: u32,
    tensors: u32,
}

impl Join {
    /// Begins with the first part; errors call it `part`.
    pub fn new(first: Gguf, part: &str) -> Result<Join, SplitError> {
        let count = Split::read(&first, part)?.count;
        if !(1..=MAX_PARTS).contains(&count) {
            return Err(SplitError::TooMany { part: part.to_owned(), given: count, max: MAX_PARTS });
        }
        let mut gguf = first.clone();
        gguf.facts.retain(|fact| !is_split_key(&fact.key));
        (gguf.tensors, gguf.data_offset, gguf.file_len) = (Vec::new(), 0, 0);
        let tensors = Split::read(&first, part)?.tensors;
        let mut join = Join { gguf, parts: Vec::new(), owners: HashMap::new(), count, tensors };
        join.add(first, part)?;
        Ok(join)
    }

    /// How many parts there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Takes the next part.
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
            // Inside the part, as its header's check has made sure, and so inside all of them.
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
            return Err(SplitError::Doubled { part: part(), number: found + 1 });
        }
        if found > expected {
            return Err(SplitError::Order { part: part(), found: found.saturating_add(1), expected: expected + 1 });
        }
        if split.tensors != self.tensors {
            return Err(SplitError::Foreign { part: part(), key: TENSORS.to_owned() });
        }
        let facts = next.facts.iter().filter(|fact| !is_split_key(&fact.key));
        let mut others = facts.filter(|fact| self.gguf.get(&fact.key) != Some(*fact));
        match others.next() {
            Some(fact) => Err(SplitError::Foreign { part: part(), key: fact.key.clone() }),
            None => Ok(()),
        }
    }

    /// The header of the one file that all parts are together: `data_offset` is 0, and a tensor's offset its position in
    /// that file. It has no key about parts, so that it is the header of the unsplit model but for where tensors lie.
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

/// Where each part begins among the bytes of all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// First byte of each part, and behind the last one the end of all.
    bounds: Vec<u64>,
}

impl Places {
    /// Parts of these lengths; `None` where they are longer together than can be counted.
    pub fn of(lens: impl Iterator<Item = u64>) -> Option<Places> {
        let mut bounds = vec![0u64];
        for len in lens {
            bounds.push(bounds.last()?.checked_add(len)?);
        }
        Some(Places { bounds })
    }

    /// The part that has the byte at `position`, and where the part begins and ends.
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
    use crate::model::manifest::Cut;
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
        let mut join = Join::new(first, name)?;
        for (next, name) in parts {
            join.add(next, name)?;
        }
        join.finish()
    }

    #[test]
    fn the_name_of_any_part_gives_those_of_all() {
        let name = PartName::parse("Model-Q4-00002-of-00012.gguf").unwrap();
        assert_eq!((name.stem(), name.number, name.count()), ("Model-Q4", 2, 12));
        assert_eq!(name.of(1), "Model-Q4-00001-of-00012.gguf");
        assert_eq!(name.of(12), "Model-Q4-00012-of-00012.gguf");
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
    fn parts_give_the_header_of_one_file_whether_metadata_are_in_the_first_or_in_all() {
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
    fn parts_that_are_missing_doubled_misnamed_foreign_or_overlap_are_refused_by_name() {
        let first = || part(&marked(&facts(), 0, 2, 2), &[floats("x", 1)]);
        let with = |second: Gguf| join(vec![first(), second]).unwrap_err();
        assert!(matches!(join(vec![first()]), Err(SplitError::Missing { found: 1, expected: 2 })));
        assert!(matches!(with(first()), SplitError::Doubled { part, number: 1 } if part == "b"));
        let plain = part(&facts(), &[floats("y", 2)]);
        assert!(matches!(with(plain.clone()), SplitError::Unmarked { part, key: "split.no" } if part == "b"));
        assert!(matches!(join(vec![plain]), Err(SplitError::Unmarked { part, .. }) if part == "a"));
        let of_three = part(&marked(&[], 1, 3, 2), &[floats("y", 2)]);
        assert!(matches!(with(of_three), SplitError::Count { found: 3, expected: 2, .. }));
        let late = part(&marked(&[], 7, 2, 2), &[floats("y", 2)]);
        assert!(matches!(with(late.clone()), SplitError::Order { found: 8, expected: 2, .. }));
        assert!(matches!(join(vec![late]), Err(SplitError::Order { found: 8, expected: 1, .. })));
        let other_model = [Fact::string("general.architecture", "llama"), Fact::u32("llama.block_count", 2)];
        let foreign = part(&marked(&other_model, 1, 2, 2), &[floats("y", 2)]);
        assert!(
            matches!(with(foreign), SplitError::Foreign { part, key } if part == "b" && key == "llama.block_count")
        );
        let other_sum = part(&marked(&[], 1, 2, 3), &[floats("y", 2), floats("z", 3)]);
        assert!(matches!(with(other_sum), SplitError::Foreign { key, .. } if key == "split.tensors.count"));
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
        assert_eq!(Places::of([u64::MAX, 1].into_iter()), None);
        let places = Places::of([10, 0, 5].into_iter()).unwrap();
        assert_eq!(places.find(9), Some((0, 0..10)));
        assert_eq!(places.find(10), Some((2, 10..15)));
        assert_eq!(places.find(15), None);
    }

    proptest! {
        #[test]
        fn however_a_file_is_split_the_parts_are_cut_as_the_whole(
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
            let (one, other) = (Cut::new(&unsplit).unwrap(), Cut::new(&joined).unwrap());
            prop_assert_eq!(&one.manifest, &other.manifest);
            prop_assert_eq!(&one.metadata, &other.metadata);
            let places = Places::of(parts.iter().map(|part| part.len() as u64)).unwrap();
            for (tensor, from) in joined.tensors.iter().zip(&unsplit.tensors) {
                let (part, place) = places.find(tensor.offset).unwrap();
                let begin = (tensor.offset - place.start) as usize;
                let origin = (unsplit.data_offset + from.offset) as usize;
                let size = tensor.size as usize;
                prop_assert!(parts[part][begin..begin + size] == whole[origin..origin + size]);
            }
        }

        #[test]
        fn parts_with_changed_bytes_never_panic_and_lie_inside_where_they_are_taken(
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
                let _ = Cut::new(&joined);
            }
        }
    }

    /// The header of these parts, where it is sound.
    fn join_all(parts: &[Vec<u8>]) -> Option<Gguf> {
        let mut parts = parts.iter().map(|part| Gguf::read(&mut Cursor::new(part)).ok());
        let mut join = Join::new(parts.next()??, "first").ok()?;
        for part in parts {
            join.add(part?, "next").ok()?;
        }
        join.finish().ok()
    }
}
