//! Typed reading of a manifest's key-values, as far as an architecture needs them.

use super::bad_model;
use crate::engine::EngineError;
use crate::model::{Fact, Manifest};

/// GGUF value types.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const STRING: u32 = 8;

/// The key-values `<architecture>.*` of a manifest.
pub(super) struct Facts<'a> {
    manifest: &'a Manifest,
}

impl<'a> Facts<'a> {
    pub fn new(manifest: &'a Manifest) -> Self {
        Self { manifest }
    }

    /// Refuses a model with an architecture key that is not in `known`: it may change what has to be computed.
    pub fn only(&self, known: &[&str]) -> Result<(), EngineError> {
        let prefix = format!("{}.", self.manifest.architecture);
        let mut keys = self.manifest.facts.iter().filter_map(|fact| fact.key.strip_prefix(&prefix));
        match keys.find(|key| !known.contains(key)) {
            Some(key) => Err(bad_model(format!("{prefix}{key}"), "candle's engine does not know this key")),
            None => Ok(()),
        }
    }

    pub fn u32(&self, key: &str) -> Result<Option<u32>, EngineError> {
        self.read(key, "a 32-bit integer", |fact| match fact.ty {
            U32 => Some(u32::from_le_bytes(fact.raw.as_slice().try_into().ok()?)),
            I32 => u32::try_from(i32::from_le_bytes(fact.raw.as_slice().try_into().ok()?)).ok(),
            _ => None,
        })
    }

    pub fn f32(&self, key: &str) -> Result<Option<f32>, EngineError> {
        self.read(key, "a finite 32-bit float", |fact| {
            let raw = fact.raw.as_slice().try_into().ok().filter(|_| fact.ty == F32)?;
            Some(f32::from_le_bytes(raw)).filter(|value| value.is_finite())
        })
    }

    pub fn string(&self, key: &str) -> Result<Option<&'a str>, EngineError> {
        self.read(key, "a string", |fact| {
            let (length, text) = fact.raw.split_first_chunk::<8>().filter(|_| fact.ty == STRING)?;
            let text = std::str::from_utf8(text).ok()?;
            (u64::from_le_bytes(*length) == text.len() as u64).then_some(text)
        })
    }

    /// As [`u32`](Facts::u32), and refuses the model where the key is missing.
    pub fn require_u32(&self, key: &str) -> Result<u32, EngineError> {
        self.u32(key)?.ok_or_else(|| bad_model(self.key(key), "it is missing"))
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.manifest.architecture)
    }

    fn read<T>(
        &self,
        key: &str,
        kind: &str,
        parse: impl FnOnce(&'a Fact) -> Option<T>,
    ) -> Result<Option<T>, EngineError> {
        let key = self.key(key);
        let Some(fact) = self.manifest.facts.iter().find(|fact| fact.key == key) else { return Ok(None) };
        parse(fact).map(Some).ok_or_else(|| bad_model(key, format!("it is not {kind}")))
    }
}
