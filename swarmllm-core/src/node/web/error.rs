//! Errors of downloads from the web.

use std::time::Duration;

use crate::base::{ErrorKind, Fault, ModelId};
use crate::node::api::error::ModelActError;
use crate::node::api::findings::ImportReport;

/// An error of a download. Addresses appear without their query, which may contain a secret.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebError {
    /// Unacceptable address.
    #[error("`{given}` is not the address of a model: {reason}")]
    Address { given: String, reason: &'static str },
    /// No connection, or a lost one.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable { host: String, reason: String },
    /// Fewer bytes than promised.
    #[error("{host} ended its response {missing} bytes early")]
    Short { host: String, missing: u64 },
    /// Not the expected bytes within the deadline.
    #[error("{host} did not deliver in time ({deadline:?})")]
    Stalled { host: String, deadline: Duration },
    /// Error status.
    #[error("{host} answered {status}{hint}", hint = hint(*status))]
    Status { host: String, status: u16 },
    /// Too many redirects.
    #[error("{host} redirects more than {max} times")]
    Redirects { host: String, max: usize },
    /// Unacceptable redirect.
    #[error("{host} redirects {reason}")]
    BadRedirect { host: String, reason: &'static str },
    /// Response that does not match the request.
    #[error("{host} sent {what} that was not requested: {given}")]
    Malformed { host: String, what: &'static str, given: String },
    /// Another version of the file.
    #[error("the file at {host} changed during the download; start again")]
    Changed { host: String },
    /// The server supports no ranges, which are needed here.
    #[error("{host} does not support ranges of versioned files; import the whole model instead")]
    WholeOnly { host: String },
    /// Error of one part of a model in several files.
    #[error("{part}: {error}")]
    Part { part: String, error: Box<WebError> },
    /// File of another model.
    #[error("the file at {host} is not a file of model {model}", model = model.short())]
    OtherModel { host: String, model: ModelId },
    /// The model cannot run here.
    #[error("{0}")]
    Report(Box<ImportReport>),
    /// Fault of the disk, the model, or this node.
    #[error(transparent)]
    Fault(#[from] Fault),
}

impl WebError {
    /// Whether a retry may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Short { .. } | Self::Stalled { .. } => true,
            // Request timeout, rate limit, or server error.
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500..),
            _ => false,
        }
    }

    /// Kind of the error for other interfaces.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Address { .. } => ErrorKind::InvalidArgument,
            Self::Unreachable { .. } | Self::Status { .. } => ErrorKind::SourceUnreachable,
            Self::Stalled { .. } => ErrorKind::Timeout,
            Self::Short { .. }
            | Self::Redirects { .. }
            | Self::BadRedirect { .. }
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
        401 | 403 => "; the file needs a token, or a different one",
        404 => "; check the address",
        _ => "",
    }
}
