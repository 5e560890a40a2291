//! Constructors of this engine's errors.

use crate::engine::EngineError;

/// The engine's name in errors and specs.
pub(super) const ENGINE: &str = "llama.cpp";

/// Error of an invalid model.
pub(super) fn bad(what: impl Into<String>, reason: impl Into<String>) -> EngineError {
    EngineError::BadModel { what: what.into(), reason: reason.into() }
}
