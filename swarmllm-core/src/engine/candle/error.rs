//! Constructors of this engine's errors.

use crate::base::LayerRange;
use crate::engine::EngineError;

/// The engine's name.
pub(super) const NAME: &str = "candle";

pub(super) fn not_loaded(layers: LayerRange, reason: impl ToString) -> EngineError {
    EngineError::Load { engine: NAME, layers, reason: reason.to_string() }
}

pub(super) fn failed(reason: impl ToString) -> EngineError {
    EngineError::Step { engine: NAME, reason: reason.to_string() }
}

pub(super) fn bad_model(what: impl Into<String>, reason: impl Into<String>) -> EngineError {
    EngineError::BadModel { what: what.into(), reason: reason.into() }
}
