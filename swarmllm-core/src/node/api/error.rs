//! Public errors: one per operation, each with a [`Fault`] that every interface can carry.

use crate::base::{ErrorKind, Fault};
use crate::node::api::findings::ImportReport;
use crate::node::api::report::Completion;

macro_rules! act_error {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, thiserror::Error)]
        #[error("{0}")]
        pub struct $name(pub Fault);

        impl $name {
            /// Kind of the error.
            pub fn kind(&self) -> ErrorKind {
                self.0.kind()
            }

            /// Kind and message.
            pub fn fault(&self) -> &Fault {
                &self.0
            }
        }

        impl From<Fault> for $name {
            fn from(fault: Fault) -> Self {
                Self(fault)
            }
        }
    };
}

act_error!(
    /// A node could not start.
    StartError
);
act_error!(
    /// A peer could not be reached.
    ConnectError
);
/// A model could not be imported, fetched or removed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct ModelActError(pub Fault, Option<Box<ImportReport>>);

impl ModelActError {
    /// Kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind()
    }

    /// Kind and message.
    pub fn fault(&self) -> &Fault {
        &self.0
    }

    /// The report that refused an import; `None` for other errors.
    pub fn report(&self) -> Option<&ImportReport> {
        self.1.as_deref()
    }
}

impl ModelActError {
    /// The report if there is one, else the fault.
    #[cfg(feature = "https")]
    pub(crate) fn into_report(self) -> Result<Box<ImportReport>, Fault> {
        self.1.ok_or(self.0)
    }
}

impl From<Fault> for ModelActError {
    fn from(fault: Fault) -> Self {
        Self(fault, None)
    }
}

impl From<Box<ImportReport>> for ModelActError {
    fn from(report: Box<ImportReport>) -> Self {
        Self(report.fault(), Some(report))
    }
}

act_error!(
    /// Texts could not be embedded.
    EmbedError
);

/// A generation was refused or ended early.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum GenerateError {
    /// Nothing was generated.
    #[error("{0}")]
    Refused(Fault),
    /// The answer ended early; `partial` has the tokens generated so far.
    #[error("the answer was interrupted after {} tokens: {cause}", partial.completion_tokens)]
    Interrupted { partial: Box<Completion>, cause: Fault },
}

impl GenerateError {
    /// Kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.fault().kind()
    }

    /// Kind and message of the cause.
    pub fn fault(&self) -> &Fault {
        match self {
            Self::Refused(fault) | Self::Interrupted { cause: fault, .. } => fault,
        }
    }
}

impl From<Fault> for GenerateError {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault)
    }
}
