//! Exceptions: `Error`, and one subclass for each `ErrorKind`.

use std::collections::HashMap;
use std::ffi::CString;

use pyo3::exceptions::{PyException, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use swarmllm_core::base::{ErrorKind, Fault};
use swarmllm_core::node::{
    Completion, ConnectError, EmbedError, GenerateError, ImportReport, ModelActError, StartError,
};

static CLASSES: PyOnceLock<HashMap<u16, Py<PyType>>> = PyOnceLock::new();

/// An error of the core, to be raised in Python.
pub struct Failure {
    fault: Fault,
    partial: Option<Box<Completion>>,
    report: Option<Box<ImportReport>>,
}

impl Failure {
    /// A failure of the given kind.
    pub fn new(kind: ErrorKind, message: impl std::fmt::Display) -> Self {
        Fault::new(kind, message).into()
    }

    fn raise(self, py: Python<'_>) -> PyResult<PyErr> {
        let classes = CLASSES.get(py).ok_or_else(|| PyRuntimeError::new_err("swarmllm is not initialised"))?;
        let class = classes.get(&self.fault.kind().code());
        let class = class.ok_or_else(|| PyRuntimeError::new_err(self.fault.message().to_owned()))?;
        let error = class.bind(py).call1((self.fault.message(),))?;
        if let Some(partial) = self.partial {
            let text = json(&*partial)?;
            error.setattr("partial", py.import("json")?.call_method1("loads", (text,))?)?;
        }
        if let Some(report) = self.report {
            let read = py.import("json")?.call_method1("loads", (json(&*report)?,))?;
            let report = py.import("swarmllm._records")?.getattr("ImportReport")?.call1((read,))?;
            error.setattr("report", report)?;
        }
        Ok(PyErr::from_value(error))
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self { fault, partial: None, report: None }
    }
}

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        let fault = Fault::new(error.kind(), &error);
        match error {
            GenerateError::Interrupted { partial, .. } => Self { fault, partial: Some(partial), report: None },
            GenerateError::Refused(_) => fault.into(),
        }
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        error.0.into()
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        error.0.into()
    }
}

impl From<EmbedError> for Failure {
    fn from(error: EmbedError) -> Self {
        error.0.into()
    }
}

impl From<ModelActError> for Failure {
    fn from(error: ModelActError) -> Self {
        let report = error.report().cloned().map(Box::new);
        Self { fault: error.0, partial: None, report }
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        Python::attach(|py| failure.raise(py).unwrap_or_else(|error| error))
    }
}

/// The JSON text of a value of the core.
pub fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|cause| Failure::new(ErrorKind::Internal, format_args!("no JSON: {cause}")))
}

/// Adds the classes to the module: `Error`, and `<Kind>Error` for each kind.
pub fn add_to(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let base = class(py, "Error", "Any failure of swarmllm.", &py.get_type::<PyException>(), ErrorKind::Internal)?;
    base.setattr("partial", py.None())?;
    base.setattr("report", py.None())?;
    module.add("Error", &base)?;
    let mut classes = HashMap::new();
    for kind in ErrorKind::ALL {
        let name = format!("{}Error", kind.name());
        let class = class(py, &name, &format!("Error {}: {}.", kind.code(), kind.name()), &base, *kind)?;
        module.add(name.as_str(), &class)?;
        classes.insert(kind.code(), class.unbind());
    }
    // A second interpreter of the process shares the classes of the first, like all native state.
    let _ = CLASSES.set(py, classes);
    Ok(())
}

fn class<'py>(
    py: Python<'py>,
    name: &str,
    doc: &str,
    base: &Bound<'py, PyType>,
    kind: ErrorKind,
) -> PyResult<Bound<'py, PyType>> {
    let (name, doc) = (CString::new(format!("swarmllm.{name}"))?, CString::new(doc)?);
    // Members are set afterwards: pyo3 0.30 frees the dictionary of `new_type` before Python reads it.
    let class = PyErr::new_type(py, &name, Some(&doc), Some(base), None)?.into_bound(py);
    class.setattr("code", kind.code())?;
    class.setattr("kind", kind.name())?;
    Ok(class)
}
