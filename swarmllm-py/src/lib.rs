//! The native half of the Python package `swarmllm`: a mirror of `swarmllm_core::node` without opinions.
//!
//! Owns nothing but references to nodes and generations. Promises: the GIL is released while a call waits and while a
//! node or generation is dropped; a waiting call looks for signals every [`wait::SLICE`], so that Ctrl-C ends it; every
//! error is one of the classes made from `ErrorKind`. What Python users see is written in `python/swarmllm`.
//!
//! May import: `swarmllm_core`'s public API only.

mod errors;
mod fields;
mod generation;
mod node;
mod options;
mod wait;

use pyo3::prelude::*;

/// Native half of swarmllm.
#[pymodule]
fn _swarmllm(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<node::NativeNode>()?;
    module.add_class::<generation::NativeGeneration>()?;
    errors::add_to(module)
}
