//! Blocking work, off the runtime.

use crate::base::{ErrorKind, Fault};

/// Runs `work` on a thread that may block. Dropped, the work still runs to its end.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Fault::new(ErrorKind::Internal, error)))
}
