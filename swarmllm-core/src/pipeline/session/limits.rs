//! The deadline and the cancellation of a session.

use std::future::Future;
use std::time::Instant;

use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault};
use crate::pipeline::session::SessionEnd;

/// What ends a session whatever it waits for.
#[derive(Clone)]
pub struct Limits {
    pub deadline: Option<Instant>,
    pub cancel: CancellationToken,
}

impl Limits {
    /// Waits for the work, or for the deadline or the cancellation.
    pub async fn bound<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Result<SessionEnd, Fault>> {
        tokio::select! {
            done = work => done.map_err(Err),
            () = self.cancel.cancelled() => Err(Ok(SessionEnd::Cancelled)),
            () = self.overdue() => Err(Err(deadline_fault())),
        }
    }

    /// Waits for the deadline.
    pub async fn overdue(&self) {
        match self.deadline {
            Some(deadline) => sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    }
}

/// The fault of a request whose deadline has passed.
pub fn deadline_fault() -> Fault {
    Fault::new(ErrorKind::Timeout, "the deadline of the request passed; allow more time or ask for fewer tokens")
}
