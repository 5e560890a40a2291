//! The deterministic test engine (to be written).
