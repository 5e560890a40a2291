//! The C ABI of swarmllm: a mirror of `swarmllm_core::node` without opinions. Check, call, convert.
//!
//! Owns the handles that C holds, and nothing else; defaults live in the core's builder. Promises: whatever C gives
//! (NULL, a stale, freed or foreign handle, bad UTF-8, bad JSON) is answered with an error code, and no panic crosses
//! the border. Refuses to block on a thread of an async runtime. `include/swarmllm.h` is generated from this crate; a
//! test compares it with the committed file.
//!
//! May import: `swarmllm_core`'s public API only.

#![allow(non_camel_case_types)] // Names are those that C sees.

mod config;
mod generation;
mod handle;
mod node;
mod options;
mod status;
mod text;
