//! How a command fails: a numbered kind and a sentence.

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
    /// What of the model cannot run here, where an import was refused because of it.
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

    /// Reading or writing that failed, and where.
    pub fn io(place: impl std::fmt::Display, cause: &std::io::Error) -> Self {
        Self::new(ErrorKind::Io, format!("{place}: {cause}"))
    }

    /// Tells stderr, as JSON where asked, and gives the exit code.
    pub fn report(&self, json: bool) -> ExitCode {
        let (code, kind, report) = (self.kind.code(), self.kind.name(), self.report.as_deref());
        let shown = Shown { code, kind, message: &self.message, report };
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
            ErrorKind::AliasTaken => {
                "\n`swarmllm alias --move MODEL ALIAS` takes it from the model that has it; a model that is yet to come is imported without --name first."
            }
            ErrorKind::ModelNotFound => {
                "\n`swarmllm models` lists what is held here, `swarmllm peers` what others hold."
            }
            ErrorKind::DiskBudget => {
                "\n`swarmllm remove MODEL` frees what a model takes; --max-disk sets the bound, as does max_disk in config.toml."
            }
            ErrorKind::DiskFull => "\n`swarmllm remove MODEL` frees what a model takes.",
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
    fn a_refused_import_names_the_flag_that_keeps_the_model() {
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
