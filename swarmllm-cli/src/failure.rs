//! How a command fails: a numbered kind and a sentence.

use std::process::ExitCode;

use serde::Serialize;
use swarmllm_core::base::{ErrorKind, Fault};
use swarmllm_core::node::{ConnectError, GenerateError, ModelActError, StartError};
use swarmllm_core::server::ServeError;

use crate::print;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    pub kind: ErrorKind,
    pub message: String,
}

#[derive(Serialize)]
struct Shown<'a> {
    code: u16,
    kind: &'static str,
    message: &'a str,
}

impl Failure {
    pub fn new(kind: ErrorKind, message: impl std::fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// Reading or writing that failed, and where.
    pub fn io(place: impl std::fmt::Display, cause: &std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("{place}: {cause}"))
    }

    /// Tells stderr, as JSON where asked, and gives the exit code.
    pub fn report(&self, json: bool) -> ExitCode {
        let shown = Shown { code: self.kind.code(), kind: self.kind.name(), message: &self.message };
        match serde_json::to_string(&shown) {
            Ok(text) if json => print::note(&text),
            _ => print::note(&format!("error: {}{}", print::clean(&self.message), self.hint())),
        }
        ExitCode::FAILURE
    }

    /// What only the command line can add.
    fn hint(&self) -> &'static str {
        match self.kind {
            ErrorKind::DataDirBusy => {
                "\nA node runs on this data directory: stop it, name another with --data-dir, or ask it over HTTP."
            }
            ErrorKind::ModelNotFound => {
                "\n`swarmllm models` lists what is held here, `swarmllm peers` what others hold."
            }
            _ => "",
        }
    }
}

macro_rules! from {
    ($($error:ty),*) => { $(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error.kind(), error)
            }
        }
    )* };
}

from!(Fault, StartError, ConnectError, ModelActError, GenerateError, ServeError);
