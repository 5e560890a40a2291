//! Work that blocks, off the runtime.

use crate::base::{ErrorKind, Fault};

/// Does it on a thread that may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Fault::new(ErrorKind::Internal, error)))
}
