//! Reads Python dicts into structs, field by field. Errors use the words of the C and HTTP interfaces.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

use pyo3::conversion::FromPyObjectOwned;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use swarmllm_core::base::ErrorKind;
use swarmllm_core::base::json::{JsonError, MAX_QUOTED, expected_in_json};

use crate::errors::Failure;

/// A struct that is read from a dict with all of these keys; `None` means "not given".
macro_rules! fields {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$of:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        pub struct $name { $($(#[$of])* $field: Option<$type>,)* }

        impl<'py> pyo3::FromPyObject<'_, 'py> for $name {
            type Error = pyo3::PyErr;

            fn extract(dict: pyo3::Borrowed<'_, 'py, pyo3::PyAny>) -> pyo3::PyResult<Self> {
                Ok(Self { $($field: $crate::fields::field(&dict, stringify!($field))?,)* })
            }
        }
    };
}
pub(crate) use fields;

/// The type of a field.
pub trait Wanted {
    /// The name of the type in error messages.
    fn wanted() -> Cow<'static, str>;
}

macro_rules! wanted {
    ($($type:ty = $wanted:expr;)*) => {
        $(impl Wanted for $type {
            fn wanted() -> Cow<'static, str> {
                $wanted.into()
            }
        })*
    };
}

wanted! {
    bool = "True or False";
    u32 = expected_in_json("u32");
    u64 = expected_in_json("u64");
    NonZeroU64 = "a whole number from 1 to 18446744073709551615";
    f32 = expected_in_json("f32");
    f64 = expected_in_json("f64");
    String = expected_in_json("a string");
    PathBuf = "a path";
    Vec<String> = "a list of texts";
    BTreeMap<u32, f32> = "numbers by token";
}

/// A whole number of a range.
pub struct Within<const LEAST: u32, const MOST: u32>(pub u32);

impl<'py, const LEAST: u32, const MOST: u32> FromPyObject<'_, 'py> for Within<LEAST, MOST> {
    type Error = PyErr;

    fn extract(value: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        match value.extract()? {
            whole if (LEAST..=MOST).contains(&whole) => Ok(Self(whole)),
            _ => Err(PyValueError::new_err(())),
        }
    }
}

impl<const LEAST: u32, const MOST: u32> Wanted for Within<LEAST, MOST> {
    fn wanted() -> Cow<'static, str> {
        format!("a whole number from {LEAST} to {MOST}").into()
    }
}

/// Reads a field; `None` means "not given".
pub fn field<'py, T: FromPyObjectOwned<'py> + Wanted>(dict: &Bound<'py, PyAny>, name: &str) -> PyResult<Option<T>> {
    let value = dict.get_item(name)?;
    if value.is_none() {
        return Ok(None);
    }
    value.extract().map(Some).map_err(|error: T::Error| unfit(name, &T::wanted(), &value, &error.into()))
}

/// The error of a field's value: `TypeError` for a wrong type, as everywhere in Python, else `InvalidArgumentError`.
pub fn unfit(name: &str, wanted: &str, found: &Bound<'_, PyAny>, cause: &PyErr) -> PyErr {
    let sentence = JsonError::field(name, format!("must be {wanted}, not {}", quoted(found))).sentence("");
    match cause.is_instance_of::<PyTypeError>(found.py()) {
        true => PyTypeError::new_err(sentence),
        false => Failure::new(ErrorKind::InvalidArgument, sentence).into(),
    }
}

/// The beginning of a value's `repr`.
fn quoted(value: &Bound<'_, PyAny>) -> String {
    match value.repr() {
        Ok(text) => text.to_string_lossy().chars().take(MAX_QUOTED).collect(),
        Err(_) => "something else".to_owned(),
    }
}
