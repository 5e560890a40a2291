//! The failure of a command: an error kind and a message.

use std::process::ExitCode;

use serde::Serialize;
use swarmllm_core::base::{ErrorKind, Fault};
use swarmllm_core::node::{ConnectError, GenerateError, ImportReport, ModelActError, StartError};
use swarmllm_core::server::ServeError;

use crate::{options, print};

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    pub kind: ErrorKind,
    pub message: String,
    /// Why an import was refused: what of the model cannot run here.
    pub report: Option<Box<ImportReport>>,
}

#[derive(Serialize)]
struct Shown<'a> {
    code: u16,
    kind: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    report: Option<&'a ImportReport>,
}

impl Failure {
    pub fn new(kind: ErrorKind, message: impl std::fmt::Display) -> Self {
        Self { kind, message: message.to_string(), report: None }
    }

    /// A failed read or write of `place`.
    pub fn io(place: impl std::fmt::Display, cause: &std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("{place}: {cause}"))
    }

    /// Writes the failure to stderr, as JSON if `json`, and returns the exit code.
    pub fn report(&self, json: bool) -> ExitCode {
        let (code, kind, report) = (self.kind.code(), self.kind.name(), self.report.as_deref());
        let shown = Shown { code, kind, message: &self.message, report };
        match serde_json::to_string(&shown) {
            Ok(text) if json => print::note(&text),
            _ => print::note(&format!("error: {}{}", print::clean(&self.message), self.hint())),
        }
        ExitCode::FAILURE
    }

    /// Advice that only the command line can give.
    fn hint(&self) -> &'static str {
        match self.kind {
            ErrorKind::DataDirBusy => {
                "\nA running node uses this data directory: stop it, choose another with --data-dir, or ask it over HTTP."
            }
            ErrorKind::AliasTaken => {
                "\n`swarmllm alias --move MODEL ALIAS` takes it from the other model; import a new model without --name first."
            }
            ErrorKind::ModelNotFound => "\n`swarmllm models` lists the models here, `swarmllm peers` those of peers.",
            ErrorKind::DiskBudget => {
                "\n`swarmllm remove MODEL` frees the space of a model; --max-disk or max_disk in config.toml sets the budget."
            }
            ErrorKind::DiskFull => "\n`swarmllm remove MODEL` frees the space of a model.",
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

from!(StartError, ConnectError, ServeError);

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::new(fault.kind(), options::named(&fault, fault.to_string()))
    }
}

impl From<GenerateError> for Failure {
    fn from(error: GenerateError) -> Self {
        Self::new(error.kind(), options::named(error.fault(), error.to_string()))
    }
}

impl From<ModelActError> for Failure {
    fn from(error: ModelActError) -> Self {
        match error.report() {
            None => Self::new(error.kind(), error),
            Some(report) => Self {
                report: Some(Box::new(report.clone())),
                ..Self::new(error.kind(), format_args!("{report}; `--anyway` imports it to keep it for others"))
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_import_names_the_flag_anyway() {
        let failure = Failure::from(ModelActError::from(Box::new(ImportReport::default())));
        assert!(failure.message.contains("`--anyway`") && !failure.message.contains("`anyway`"), "{}", failure.message);
        assert!(failure.report.is_some());
    }

    #[test]
    fn a_refused_request_names_options() {
        let fault = Fault::new(ErrorKind::InvalidArgument, "must be at least 1").about("max_tokens");
        for failure in [Failure::from(fault.clone()), Failure::from(GenerateError::from(fault))] {
            assert_eq!(failure.message, "`--max-tokens`: must be at least 1");
        }
    }
}
