//! How this engine's errors are made.

use crate::engine::EngineError;

/// The engine's name, as it stands in errors and specs.
pub(super) const ENGINE: &str = "llama.cpp";

/// A fact that is not what it should be.
pub(super) fn bad(what: impl Into<String>, reason: impl Into<String>) -> EngineError {
    EngineError::BadModel { what: what.into(), reason: reason.into() }
}
