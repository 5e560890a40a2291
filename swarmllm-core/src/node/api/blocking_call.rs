//! What a binding needs around a call of the node: the check before it blocks a thread, and progress by a callback.

use std::pin::pin;
use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::base::{ErrorKind, Fault, Progress};
use crate::node::api::request::ProgressFn;

/// Refuses with [`ErrorKind::Unsupported`] on a thread of an async runtime, where blocking would stall or panic.
pub fn check_may_block() -> Result<(), Fault> {
    match Handle::try_current() {
        Err(_) => Ok(()),
        Ok(_) => Err(Fault::new(
            ErrorKind::Unsupported,
            "this call blocks and was made on a thread of an async runtime: make it on a thread of your own, or use its asynchronous form",
        )),
    }
}

/// Runs `work` and calls `report` with its newest progress, between polls of `work` and on the same task. An error of
/// `report` drops the work, which cancels it. Progress from the end of the work is reported too; an error then has no
/// effect, since there is nothing left to cancel. Cancel-safe where `work` is.
pub async fn with_progress<T, E, F: Future<Output = Result<T, E>>>(
    work: impl FnOnce(ProgressFn) -> F,
    mut report: impl FnMut(Progress) -> Result<(), E>,
) -> Result<T, E> {
    let (sender, mut progress) = watch::channel(Progress { done: 0, total: 0 });
    let tell: ProgressFn = Arc::new(move |progress| {
        sender.send_replace(progress);
    });
    let mut work = pin!(work(tell));
    loop {
        tokio::select! {
            biased;
            Ok(()) = progress.changed() => {
                let newest = *progress.borrow_and_update();
                report(newest)?;
            }
            result = &mut work => {
                // The end of the work closes the channel, after which `changed` no longer tells of a last report.
                let last = {
                    let newest = progress.borrow_and_update();
                    newest.has_changed().then_some(*newest)
                };
                let _ = last.map(report);
                return result;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_progress_is_reported_after_the_work_has_ended() {
        let mut seen = Vec::new();
        let work = |tell: ProgressFn| async move {
            tell(Progress { done: 3, total: 3 });
            Ok::<_, Fault>(7)
        };
        let result = with_progress(work, |progress| {
            seen.push(progress.done);
            Ok(())
        });
        assert_eq!(result.await, Ok(7));
        assert_eq!(seen, [3]);
    }

    #[tokio::test]
    async fn an_error_of_the_report_ends_the_work() {
        let work = |tell: ProgressFn| async move {
            tell(Progress { done: 1, total: 2 });
            tokio::task::yield_now().await;
            std::future::pending::<Result<(), Fault>>().await
        };
        let result = with_progress(work, |_| Err(Fault::new(ErrorKind::Cancelled, "enough")));
        assert_eq!(result.await.map_err(|fault| fault.kind()), Err(ErrorKind::Cancelled));
    }

    #[tokio::test]
    async fn a_thread_of_a_runtime_may_not_block() {
        assert_eq!(check_may_block().map_err(|fault| fault.kind()), Err(ErrorKind::Unsupported));
        assert!(
            tokio::task::spawn_blocking(|| std::thread::spawn(check_may_block).join()).await.unwrap().unwrap().is_ok()
        );
    }
}
