//! The C ABI of swarmllm: a thin mirror of `swarmllm_core::node`. Each export checks, calls and converts.
//!
//! The crate owns the handles that C holds; defaults live in the core's builder. Bad input (NULL, a stale, freed or
//! foreign handle, bad UTF-8, bad JSON) gives an error code, and no panic crosses the ABI. Calls refuse to block a thread
//! of an async runtime. `include/swarmllm.h` is generated from this crate; a test compares it with the committed file.
//!
//! May import: `swarmllm_core`'s public API only.

#![allow(non_camel_case_types)] // The names are those of the C header.

mod config;
mod generation;
mod handle;
mod node;
mod options;
mod status;
mod text;
