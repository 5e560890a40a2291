//! The native module of the Python package `swarmllm`: a thin mirror of `swarmllm_core::node`.
//!
//! The crate owns references to nodes and generations only. The GIL is released while a call waits and while a node or
//! generation is dropped. A waiting call checks for signals every [`wait::SLICE`], so that Ctrl-C ends it. Every error is an
//! instance of a class made from `ErrorKind`. The public Python API is in `python/swarmllm`.
//!
//! May import: `swarmllm_core`'s public API only.

mod errors;
mod fields;
mod generation;
mod node;
mod options;
mod wait;

use pyo3::prelude::*;

/// Native module of swarmllm.
#[pymodule]
fn _swarmllm(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<node::NativeNode>()?;
    module.add_class::<generation::NativeGeneration>()?;
    errors::add_to(module)
}
