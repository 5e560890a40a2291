//! Typed reading of a manifest's facts, as strict as llama.cpp's own: a key has one type, and any other is refused.

use crate::engine::EngineError;
use crate::model::{Fact, Manifest};

use super::error::bad;

/// Type words of GGUF values.
pub(super) mod ty {
    pub const U32: u32 = 4;
    pub const I32: u32 = 5;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
}

/// Bytes of an array's head: the element type and the count.
const ARRAY_HEAD: usize = 12;

/// The facts of one architecture, `<prefix>.<key>`.
pub(super) struct Facts<'a> {
    facts: &'a [Fact],
    prefix: &'a str,
}

impl<'a> Facts<'a> {
    /// The facts under the manifest's architecture.
    pub fn of(manifest: &'a Manifest) -> Self {
        Self { facts: &manifest.facts, prefix: &manifest.architecture }
    }

    /// The full name of a key.
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    fn find(&self, key: &str) -> Option<&'a Fact> {
        let suffix =
            |fact: &&Fact| fact.key.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.')) == Some(key);
        self.facts.iter().find(suffix)
    }

    /// Whether the key is there at all.
    pub fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Whether the key is absent, or all that it holds is zero.
    pub fn is_unset(&self, key: &str) -> bool {
        self.find(key).is_none_or(|fact| {
            let head = if fact.ty == ty::ARRAY { ARRAY_HEAD } else { 0 };
            fact.raw.get(head..).is_some_and(|value| value.iter().all(|byte| *byte == 0))
        })
    }

    /// The four bytes of a scalar of type `want`.
    fn word(&self, key: &str, want: u32) -> Result<Option<[u8; 4]>, EngineError> {
        let Some(fact) = self.find(key) else { return Ok(None) };
        if fact.ty != want {
            return Err(bad(self.name(key), format!("it is of type {}, {want} is needed", fact.ty)));
        }
        let bytes = fact.raw.as_slice().try_into().map_err(|_| bad(self.name(key), "it is not four bytes"))?;
        Ok(Some(bytes))
    }

    /// An unsigned integer.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, EngineError> {
        Ok(self.word(key, ty::U32)?.map(u32::from_le_bytes))
    }

    /// An unsigned integer that must be there and lie in `1..=max`.
    pub fn count(&self, key: &str, max: u32) -> Result<u32, EngineError> {
        let value = self.u32(key)?.ok_or_else(|| bad(self.name(key), "it is missing"))?;
        if value == 0 || value > max {
            return Err(bad(self.name(key), format!("{value} is not in 1..={max}")));
        }
        Ok(value)
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f32>, EngineError> {
        match self.word(key, ty::F32)?.map(f32::from_le_bytes) {
            Some(value) if !value.is_finite() => Err(bad(self.name(key), format!("{value} is not a finite number"))),
            value => Ok(value),
        }
    }

    /// A finite number above zero.
    pub fn positive(&self, key: &str) -> Result<Option<f32>, EngineError> {
        match self.number(key)? {
            Some(value) if value <= 0.0 => Err(bad(self.name(key), format!("{value} is not above zero"))),
            value => Ok(value),
        }
    }

    /// A truth value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, EngineError> {
        let Some(fact) = self.find(key) else { return Ok(None) };
        match (fact.ty, fact.raw.as_slice()) {
            (ty::BOOL, [value]) => Ok(Some(*value != 0)),
            _ => Err(bad(self.name(key), "it is not a truth value")),
        }
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, EngineError> {
        let Some(fact) = self.find(key) else { return Ok(None) };
        let text = fact.raw.split_at_checked(8).and_then(|(length, text)| {
            let length = u64::from_le_bytes(length.try_into().ok()?);
            (length == text.len() as u64).then(|| std::str::from_utf8(text).ok()).flatten()
        });
        match text {
            Some(text) if fact.ty == ty::STRING => Ok(Some(text)),
            _ => Err(bad(self.name(key), "it is not a string")),
        }
    }

    /// One number for all layers, or an array of one per layer that are all the same, in `1..=max`: llama.cpp's graphs
    /// of the certified architectures know no layers that differ.
    pub fn uniform(&self, key: &str, layers: u32, max: u32) -> Result<Option<u32>, EngineError> {
        let Some(fact) = self.find(key) else { return Ok(None) };
        if fact.ty != ty::ARRAY {
            return self.count(key, max).map(Some);
        }
        let values = self.words(key, fact, layers)?;
        match values.first() {
            Some(first) if *first > 0 && *first <= max && values.iter().all(|value| value == first) => Ok(Some(*first)),
            _ => Err(bad(self.name(key), format!("it is not one number in 1..={max} for all layers"))),
        }
    }

    /// A truth value per layer: an array of them or of integers. `None` where the key holds no array.
    pub fn flags(&self, key: &str, layers: u32) -> Result<Option<Vec<bool>>, EngineError> {
        let Some(fact) = self.find(key).filter(|fact| fact.ty == ty::ARRAY) else { return Ok(None) };
        if self.element(key, fact, layers)? != ty::BOOL {
            return Ok(Some(self.words(key, fact, layers)?.into_iter().map(|value| value != 0).collect()));
        }
        let values = fact.raw.get(ARRAY_HEAD..).unwrap_or_default();
        if values.len() != layers as usize {
            return Err(bad(self.name(key), "its length is not its count"));
        }
        Ok(Some(values.iter().map(|value| *value != 0).collect()))
    }

    /// The element type of an array that has `layers` elements.
    fn element(&self, key: &str, fact: &Fact, layers: u32) -> Result<u32, EngineError> {
        let word = |at: usize| fact.raw.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_le_bytes);
        match (word(0), word(4), word(8)) {
            (Some(element), Some(count), Some(0)) if count == layers => Ok(element),
            _ => Err(bad(self.name(key), format!("it is not an array of {layers} elements"))),
        }
    }

    /// An array of `layers` integers of four bytes.
    fn words(&self, key: &str, fact: &Fact, layers: u32) -> Result<Vec<u32>, EngineError> {
        let element = self.element(key, fact, layers)?;
        let (words, rest) = fact.raw.get(ARRAY_HEAD..).unwrap_or_default().as_chunks::<4>();
        if !matches!(element, ty::U32 | ty::I32) || words.len() != layers as usize || !rest.is_empty() {
            return Err(bad(self.name(key), "it is not an array of integers"));
        }
        Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
    }
}
