//! The metadata of tokenizers, read through the GGUF module's typed views and bounded in number.

use super::TokenizerError;
use crate::model::Fact;
use crate::model::gguf::{self, GgufError, Value};

/// A model's metadata by key. The first of several equal keys wins.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a>(pub &'a [Fact]);

type Found<T> = Result<Option<T>, TokenizerError>;

impl<'a> Facts<'a> {
    pub fn u32(&self, key: &'static str) -> Found<u32> {
        self.typed(key, |value| if let Value::U32(number) = value { Some(number) } else { None })
    }

    pub fn bool(&self, key: &'static str) -> Found<bool> {
        self.typed(key, |value| value.as_bool())
    }

    pub fn string(&self, key: &'static str) -> Found<&'a str> {
        self.typed(key, |value| value.as_str())
    }

    /// At most `max` strings.
    pub fn strings(&self, key: &'static str, max: u64) -> Found<Vec<&'a str>> {
        self.array(key, max, |value| value.as_str())
    }

    pub fn i32s(&self, key: &'static str, max: u64) -> Found<Vec<i32>> {
        self.array(key, max, |value| if let Value::I32(number) = value { Some(number) } else { None })
    }

    /// Floats. An array of integers is converted.
    pub fn f32s(&self, key: &'static str, max: u64) -> Found<Vec<f32>> {
        self.array(key, max, |value| match value {
            Value::F32(number) => Some(number),
            Value::I32(number) => Some(number as f32),
            _ => None,
        })
    }

    /// At most `max` entries. The view has checked that their bytes exist, which bounds the allocation.
    fn array<T>(&self, key: &'static str, max: u64, entry: impl Fn(Value<'a>) -> Option<T>) -> Found<Vec<T>> {
        let Some(array) = self.typed(key, |value| value.as_array())? else { return Ok(None) };
        let given = array.len() as u64;
        if given > max {
            return Err(TokenizerError::TooMany { key, given, max });
        }
        let entries: Option<Vec<T>> = array.iter().map(entry).collect();
        entries.map(Some).ok_or(TokenizerError::Malformed { key, reason: "its entries have another type" })
    }

    fn typed<T>(&self, key: &'static str, as_type: impl FnOnce(Value<'a>) -> Option<T>) -> Found<T> {
        let malformed = |reason| TokenizerError::Malformed { key, reason };
        let value = gguf::Facts(self.0).value(key).map_err(|error| match error {
            GgufError::Value { reason, .. } => malformed(reason),
            _ => malformed("its type is unknown or nested"),
        })?;
        value.map(|value| as_type(value).ok_or(malformed("it has another type"))).transpose()
    }
}

/// A list of one string that is not UTF-8.
#[cfg(test)]
pub(crate) fn not_utf8(key: &str) -> Fact {
    let mut fact = Fact::strings(key, &["x"]);
    fact.raw.pop();
    fact.raw.push(0xff);
    fact
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_truncated_at_any_byte_is_refused() {
        let whole = Fact::strings("k", &["ab", "", "cde"]);
        assert_eq!(Facts(std::slice::from_ref(&whole)).strings("k", 9), Ok(Some(vec!["ab", "", "cde"])));
        for end in 0..whole.raw.len() {
            let cut = Fact { raw: whole.raw[..end].to_vec(), ..whole.clone() };
            assert!(Facts(&[cut]).strings("k", 9).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_or_the_limit_is_refused() {
        let mut claims = Fact::strings("k", &[]);
        claims.raw[4..].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(Facts(&[claims]).strings("k", u64::MAX), Err(TokenizerError::Malformed { .. })));
        let two = Fact::strings("k", &["a", "b"]);
        assert_eq!(Facts(&[two]).strings("k", 1), Err(TokenizerError::TooMany { key: "k", given: 2, max: 1 }));
    }

    #[test]
    fn another_type_and_bad_utf8_are_refused() {
        assert!(Facts(&[Fact::u32("k", 1)]).string("k").is_err());
        assert!(Facts(&[not_utf8("k")]).strings("k", 9).is_err());
        assert!(Facts(&[Fact::strings("k", &["a"])]).i32s("k", 9).is_err());
        assert_eq!(Facts(&[]).u32("k"), Ok(None));
    }
}
