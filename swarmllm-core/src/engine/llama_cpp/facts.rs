//! Typed getters of a manifest's facts, as strict as llama.cpp's: each key has one type, and any other is refused.

use crate::engine::EngineError;
use crate::model::gguf::{Array, Value, ValueType};
use crate::model::{Fact, Manifest};

use super::error::bad;

/// Type words of GGUF values.
pub(super) mod ty {
    pub const U32: u32 = 4;
    pub const F32: u32 = 6;
    pub const BOOL: u32 = 7;
    pub const STRING: u32 = 8;
    pub const ARRAY: u32 = 9;
}

/// Bytes of an array's header: element type and count.
const ARRAY_HEAD: usize = 12;

/// The facts of one architecture, `<prefix>.<key>`.
pub(super) struct Facts<'a> {
    facts: &'a [Fact],
    prefix: &'a str,
}

impl<'a> Facts<'a> {
    /// The facts of the manifest's architecture.
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

    /// Whether the key is present.
    pub fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// Whether the key is absent or all zero.
    pub fn is_unset(&self, key: &str) -> bool {
        self.find(key).is_none_or(|fact| {
            let head = if fact.ty == ty::ARRAY { ARRAY_HEAD } else { 0 };
            fact.raw.get(head..).is_some_and(|value| value.iter().all(|byte| *byte == 0))
        })
    }

    fn value(&self, key: &str) -> Result<Option<Value<'a>>, EngineError> {
        let parsed = self.find(key).map(Value::parse).transpose();
        parsed.map_err(|error| bad(self.name(key), error.to_string()))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        as_type: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, EngineError> {
        let Some(value) = self.value(key)? else { return Ok(None) };
        as_type(value).map(Some).ok_or_else(|| bad(self.name(key), format!("it is not {expected}")))
    }

    /// An unsigned integer.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, EngineError> {
        self.typed(key, "a u32", |value| if let Value::U32(number) = value { Some(number) } else { None })
    }

    /// A required unsigned integer in `1..=max`.
    pub fn count(&self, key: &str, max: u32) -> Result<u32, EngineError> {
        let value = self.u32(key)?.ok_or_else(|| bad(self.name(key), "it is missing"))?;
        if value == 0 || value > max {
            return Err(bad(self.name(key), format!("{value} is not in 1..={max}")));
        }
        Ok(value)
    }

    /// A finite number.
    pub fn number(&self, key: &str) -> Result<Option<f32>, EngineError> {
        let as_f32 = |value| if let Value::F32(number) = value { Some(number) } else { None };
        match self.typed(key, "an f32", as_f32)? {
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

    /// A boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, EngineError> {
        self.typed(key, "a boolean", |value| value.as_bool())
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, EngineError> {
        self.typed(key, "a string", |value| value.as_str())
    }

    /// One number in `1..=max` for all layers, or an array of equal numbers, one for each layer: llama.cpp's graphs of the
    /// certified architectures have equal layers.
    pub fn uniform(&self, key: &str, layers: u32, max: u32) -> Result<Option<u32>, EngineError> {
        let array = match self.value(key)? {
            Some(Value::Array(array)) => array,
            Some(_) => return self.count(key, max).map(Some),
            None => return Ok(None),
        };
        let values = self.integers(key, array, layers)?;
        match values.first() {
            Some(first) if *first > 0 && *first <= max && values.iter().all(|value| value == first) => Ok(Some(*first)),
            _ => Err(bad(self.name(key), format!("it is not one number in 1..={max} for all layers"))),
        }
    }

    /// A boolean for each layer, from an array of booleans or integers. `None` if the value is not an array.
    pub fn flags(&self, key: &str, layers: u32) -> Result<Option<Vec<bool>>, EngineError> {
        let Some(Value::Array(array)) = self.value(key)? else { return Ok(None) };
        if array.element() != ValueType::Bool {
            return Ok(Some(self.integers(key, array, layers)?.into_iter().map(|value| value != 0).collect()));
        }
        self.check_len(key, array, layers)?;
        Ok(Some(array.iter().filter_map(|value| value.as_bool()).collect()))
    }

    /// An array of `layers` integers of four bytes.
    fn integers(&self, key: &str, array: Array<'_>, layers: u32) -> Result<Vec<u32>, EngineError> {
        self.check_len(key, array, layers)?;
        let integer = |value| match value {
            Value::U32(value) => Some(value),
            Value::I32(value) => Some(value.cast_unsigned()),
            _ => None,
        };
        let integers: Option<Vec<u32>> = array.iter().map(integer).collect();
        integers.ok_or_else(|| bad(self.name(key), "it is not an array of integers"))
    }

    fn check_len(&self, key: &str, array: Array<'_>, layers: u32) -> Result<(), EngineError> {
        match array.len() == layers as usize {
            true => Ok(()),
            false => Err(bad(self.name(key), format!("it is not an array of {layers} elements"))),
        }
    }
}
