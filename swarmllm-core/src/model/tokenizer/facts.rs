//! Typed, bounded views of raw GGUF values. Nothing is allocated before its length is checked against the bytes there.

use super::TokenizerError;
use crate::model::Fact;

const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A model's facts, looked up by key. Where a key occurs twice the first counts.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a>(pub &'a [Fact]);

type Found<T> = Result<Option<T>, TokenizerError>;

impl<'a> Facts<'a> {
    /// The raw value of `key`, if it is there and of this type.
    fn raw(&self, key: &'static str, ty: u32) -> Found<&'a [u8]> {
        let Some(fact) = self.0.iter().find(|fact| fact.key == key) else { return Ok(None) };
        if fact.ty != ty {
            return Err(TokenizerError::Malformed { key, reason: "it has another type" });
        }
        Ok(Some(&fact.raw))
    }

    pub fn u32(&self, key: &'static str) -> Found<u32> {
        let Some(raw) = self.raw(key, U32)? else { return Ok(None) };
        let bytes = raw.try_into().map_err(|_| cut(key))?;
        Ok(Some(u32::from_le_bytes(bytes)))
    }

    pub fn bool(&self, key: &'static str) -> Found<bool> {
        match self.raw(key, BOOL)? {
            None => Ok(None),
            Some([0]) => Ok(Some(false)),
            Some([1]) => Ok(Some(true)),
            Some(_) => Err(TokenizerError::Malformed { key, reason: "it is neither true nor false" }),
        }
    }

    pub fn string(&self, key: &'static str) -> Found<&'a str> {
        let Some(mut raw) = self.raw(key, STRING)? else { return Ok(None) };
        let text = take_string(&mut raw, key)?;
        if !raw.is_empty() {
            return Err(cut(key));
        }
        Ok(Some(text))
    }

    /// At most `max` strings.
    pub fn strings(&self, key: &'static str, max: u64) -> Found<Vec<&'a str>> {
        let Some((ty, count, mut raw)) = self.array(key, max)? else { return Ok(None) };
        if ty != STRING {
            return Err(TokenizerError::Malformed { key, reason: "its entries are not strings" });
        }
        // Every string has a length word, so that the bytes there bound the allocation.
        if count > raw.len() / size_of::<u64>() {
            return Err(cut(key));
        }
        let mut strings = Vec::with_capacity(count);
        for _ in 0..count {
            strings.push(take_string(&mut raw, key)?);
        }
        Ok(Some(strings))
    }

    pub fn i32s(&self, key: &'static str, max: u64) -> Found<Vec<i32>> {
        match self.words(key, max)? {
            Some((I32, words)) => Ok(Some(words.map(i32::from_le_bytes).collect())),
            Some(_) => Err(TokenizerError::Malformed { key, reason: "its entries are not 32-bit integers" }),
            None => Ok(None),
        }
    }

    /// Floats; an array of integers is accepted too and converted.
    pub fn f32s(&self, key: &'static str, max: u64) -> Found<Vec<f32>> {
        match self.words(key, max)? {
            Some((F32, words)) => Ok(Some(words.map(f32::from_le_bytes).collect())),
            Some((I32, words)) => Ok(Some(words.map(|word| i32::from_le_bytes(word) as f32).collect())),
            Some(_) => Err(TokenizerError::Malformed { key, reason: "its entries are not numbers of 32 bits" }),
            None => Ok(None),
        }
    }

    /// An array of four-byte entries, with their type.
    fn words(&self, key: &'static str, max: u64) -> Found<(u32, impl Iterator<Item = [u8; 4]> + use<'a>)> {
        let Some((ty, count, raw)) = self.array(key, max)? else { return Ok(None) };
        if raw.len() != count.saturating_mul(size_of::<u32>()) {
            return Err(cut(key));
        }
        let words = raw.as_chunks::<4>().0.iter().copied();
        Ok(Some((ty, words)))
    }

    /// Element type, count and the bytes of the elements.
    fn array(&self, key: &'static str, max: u64) -> Found<(u32, usize, &'a [u8])> {
        let Some(mut raw) = self.raw(key, ARRAY)? else { return Ok(None) };
        let ty = u32::from_le_bytes(take(&mut raw, key)?);
        let count = u64::from_le_bytes(take(&mut raw, key)?);
        if count > max {
            return Err(TokenizerError::TooMany { key, given: count, max });
        }
        let count = usize::try_from(count).map_err(|_| cut(key))?;
        Ok(Some((ty, count, raw)))
    }
}

fn cut(key: &'static str) -> TokenizerError {
    TokenizerError::Malformed { key, reason: "its length is not what its bytes hold" }
}

fn take<const N: usize>(raw: &mut &[u8], key: &'static str) -> Result<[u8; N], TokenizerError> {
    let (head, tail) = raw.split_first_chunk::<N>().ok_or_else(|| cut(key))?;
    *raw = tail;
    Ok(*head)
}

fn take_string<'a>(raw: &mut &'a [u8], key: &'static str) -> Result<&'a str, TokenizerError> {
    let len = u64::from_le_bytes(take(raw, key)?);
    let len = usize::try_from(len).map_err(|_| cut(key))?;
    let (head, tail) = raw.split_at_checked(len).ok_or_else(|| cut(key))?;
    *raw = tail;
    str::from_utf8(head).map_err(|_| TokenizerError::Malformed { key, reason: "it is not UTF-8" })
}

/// Builders of facts, for tests.
#[cfg(test)]
pub(crate) mod make {
    use super::*;

    pub fn fact(key: &str, ty: u32, raw: Vec<u8>) -> Fact {
        Fact { key: key.into(), ty, raw }
    }

    fn string_bytes(text: &[u8]) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text].concat()
    }

    pub fn string(key: &str, text: &str) -> Fact {
        fact(key, STRING, string_bytes(text.as_bytes()))
    }

    pub fn u32(key: &str, value: u32) -> Fact {
        fact(key, U32, value.to_le_bytes().to_vec())
    }

    pub fn bool(key: &str, value: bool) -> Fact {
        fact(key, BOOL, vec![value.into()])
    }

    fn array(key: &str, ty: u32, count: usize, elements: Vec<u8>) -> Fact {
        fact(key, ARRAY, [&ty.to_le_bytes()[..], &(count as u64).to_le_bytes(), &elements].concat())
    }

    pub fn byte_strings(key: &str, values: &[&[u8]]) -> Fact {
        array(key, STRING, values.len(), values.iter().flat_map(|value| string_bytes(value)).collect())
    }

    pub fn strings(key: &str, values: &[&str]) -> Fact {
        let bytes: Vec<&[u8]> = values.iter().map(|value| value.as_bytes()).collect();
        byte_strings(key, &bytes)
    }

    pub fn i32s(key: &str, values: &[i32]) -> Fact {
        array(key, I32, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    pub fn f32s(key: &str, values: &[f32]) -> Fact {
        array(key, F32, values.len(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cut_at_any_byte_is_refused() {
        let whole = make::strings("k", &["ab", "", "cde"]);
        assert_eq!(Facts(std::slice::from_ref(&whole)).strings("k", 9), Ok(Some(vec!["ab", "", "cde"])));
        for end in 0..whole.raw.len() {
            let fact = make::fact("k", ARRAY, whole.raw[..end].to_vec());
            assert!(Facts(&[fact]).strings("k", 9).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_or_the_limit_allocates_nothing() {
        let mut raw = STRING.to_le_bytes().to_vec();
        raw.extend(u64::MAX.to_le_bytes());
        let fact = make::fact("k", ARRAY, raw);
        assert!(matches!(Facts(std::slice::from_ref(&fact)).strings("k", 9), Err(TokenizerError::TooMany { .. })));
        assert!(matches!(Facts(&[fact]).strings("k", u64::MAX), Err(TokenizerError::Malformed { .. })));
    }

    #[test]
    fn another_type_and_bad_utf8_are_refused() {
        assert!(Facts(&[make::u32("k", 1)]).string("k").is_err());
        assert!(Facts(&[make::byte_strings("k", &[b"\xff"])]).strings("k", 9).is_err());
        assert!(Facts(&[make::strings("k", &["a"])]).i32s("k", 9).is_err());
        assert_eq!(Facts(&[]).u32("k"), Ok(None));
    }
}
