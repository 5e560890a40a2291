//! Why a file on the web could not be had.

use std::time::Duration;

use crate::base::{ErrorKind, Fault, ModelId};
use crate::node::api::error::ModelActError;
use crate::node::api::findings::ImportReport;

/// What went wrong between us and a server. No address is told with its query, which may hold a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebError {
    /// An address that is not accepted.
    #[error("`{given}` is no address of a model: {reason}")]
    Address { given: String, reason: &'static str },
    /// No connection, or it was lost.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable { host: String, reason: String },
    /// Fewer bytes than promised.
    #[error("{host} ended its answer {missing} bytes early")]
    Short { host: String, missing: u64 },
    /// Nothing came for too long.
    #[error("{host} did not go on within {deadline:?}")]
    Stalled { host: String, deadline: Duration },
    /// A refusal.
    #[error("{host} answered {status}{hint}", hint = hint(*status))]
    Status { host: String, status: u16 },
    /// A way that leads on and on.
    #[error("{host} redirects more than {max} times")]
    Redirects { host: String, max: usize },
    /// A way that leads where we do not go.
    #[error("{host} redirects to {reason}")]
    Astray { host: String, reason: &'static str },
    /// An answer that is not what was asked for.
    #[error("{host} gave {what} that was not asked for: {given}")]
    Malformed { host: String, what: &'static str, given: String },
    /// Another version of the file.
    #[error("the file at {host} has changed since it was begun; begin again")]
    Changed { host: String },
    /// A server that gives whole files only, where parts are needed.
    #[error("{host} does not give parts of files that it names the version of; import the whole model instead")]
    WholeOnly { host: String },
    /// A part of a model in several files that could not be had.
    #[error("{part}: {error}")]
    Part { part: String, error: Box<WebError> },
    /// Another model than the one that shards are wanted of.
    #[error("the file at {host} is not that of model {model}", model = model.short())]
    OtherModel { host: String, model: ModelId },
    /// A model that cannot run here.
    #[error("{0}")]
    Report(Box<ImportReport>),
    /// The disk, the model, or ourselves.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl WebError {
    /// Whether the same question may be answered better the next time.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Short { .. } | Self::Stalled { .. } => true,
            // The client was slow, too often there, or the server is unwell.
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    /// The kind that crosses borders.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Address { .. } => ErrorKind::InvalidArgument,
            Self::Unreachable { .. } | Self::Status { .. } => ErrorKind::SourceUnreachable,
            Self::Stalled { .. } => ErrorKind::Timeout,
            Self::Short { .. }
            | Self::Redirects { .. }
            | Self::Astray { .. }
            | Self::Malformed { .. }
            | Self::OtherModel { .. } => ErrorKind::BadSource,
            Self::Changed { .. } => ErrorKind::SourceChanged,
            Self::WholeOnly { .. } => ErrorKind::Unsupported,
            Self::Part { error, .. } => error.kind(),
            Self::Report(report) => report.fault().kind(),
            Self::Fault(fault) => fault.kind(),
        }
    }
}

impl From<WebError> for Fault {
    fn from(error: WebError) -> Self {
        match error {
            WebError::Fault(fault) => fault,
            error => Fault::new(error.kind(), error),
        }
    }
}

impl From<ModelActError> for WebError {
    fn from(error: ModelActError) -> Self {
        error.into_report().map_or_else(WebError::Fault, WebError::Report)
    }
}

impl From<WebError> for ModelActError {
    fn from(error: WebError) -> Self {
        match error {
            WebError::Report(report) => report.into(),
            error => Fault::from(error).into(),
        }
    }
}

fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => "; the file asks for a token, or for another one",
        404 => "; look whether the address is right",
        _ => "",
    }
}
