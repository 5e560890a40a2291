//! Typed getters of a manifest's key-values `<architecture>.*`; invalid values are errors of the model.

use super::error::bad_model;
use crate::engine::EngineError;
use crate::model::Manifest;
use crate::model::gguf::{self, GgufError};

/// The key-values `<architecture>.*` of a manifest.
pub(super) struct Facts<'a> {
    manifest: &'a Manifest,
}

impl<'a> Facts<'a> {
    pub fn new(manifest: &'a Manifest) -> Self {
        Self { manifest }
    }

    /// Refuses a model with a key outside the lists `known`, because the key may change the computation.
    pub fn only(&self, known: [&[&str]; 2]) -> Result<(), EngineError> {
        let prefix = self.key("");
        let mut keys = self.manifest.facts.iter().filter_map(|fact| fact.key.strip_prefix(&prefix));
        match keys.find(|key| !known.iter().any(|list| list.contains(key))) {
            Some(key) => Err(bad_model(self.key(key), "candle's engine does not know this key")),
            None => Ok(()),
        }
    }

    /// An integer.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, EngineError> {
        self.read(key, |facts, key| facts.u32(key))
    }

    /// A required integer.
    pub fn require_u32(&self, key: &str) -> Result<u32, EngineError> {
        self.u32(key)?.ok_or_else(|| self.refuse(key, "it is missing"))
    }

    /// A finite float above zero.
    pub fn positive(&self, key: &str) -> Result<Option<f32>, EngineError> {
        match self.read(key, |facts, key| facts.f32(key))? {
            Some(value) if value.is_finite() && value > 0.0 => Ok(Some(value)),
            Some(value) => Err(self.refuse(key, format!("{value} is not a finite number above zero"))),
            None => Ok(None),
        }
    }

    /// A string.
    pub fn string(&self, key: &str) -> Result<Option<&'a str>, EngineError> {
        self.read(key, |facts, key| facts.string(key))
    }

    /// A boolean for each layer, from booleans or numbers; `None` if the value is not an array.
    pub fn flags(&self, key: &str) -> Result<Option<Vec<bool>>, EngineError> {
        let Some(array) = self.read(key, |facts, key| facts.value(key))?.and_then(|value| value.as_array()) else {
            return Ok(None);
        };
        if array.len() != self.manifest.layers as usize {
            let reason = format!("it has {} entries for {} layers", array.len(), self.manifest.layers);
            return Err(self.refuse(key, reason));
        }
        let flag = |value: gguf::Value<'_>| value.as_bool().or_else(|| value.as_u64().map(|number| number != 0));
        let flags: Option<Vec<bool>> = array.iter().map(flag).collect();
        flags.map(Some).ok_or_else(|| self.refuse(key, "its entries are not booleans"))
    }

    /// Error of an unsupported value of `key`.
    pub fn refuse(&self, key: &str, reason: impl Into<String>) -> EngineError {
        bad_model(self.key(key), reason)
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.manifest.architecture)
    }

    fn read<T>(
        &self,
        key: &str,
        get: impl FnOnce(gguf::Facts<'a>, &str) -> Result<Option<T>, GgufError>,
    ) -> Result<Option<T>, EngineError> {
        get(gguf::Facts(&self.manifest.facts), &self.key(key)).map_err(|error| self.refuse(key, error.to_string()))
    }
}
