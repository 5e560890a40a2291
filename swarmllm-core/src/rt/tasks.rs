//! Tasks that end with their owner.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Time for dropped tasks to end after the deadline. Only a task that blocks its thread takes longer.
const ABORT_GRACE: Duration = Duration::from_secs(1);

/// Tasks of one node on one runtime. Clones share the set.
///
/// Dropping all clones does not end the tasks: the owner of the node calls [`shutdown`](Self::shutdown) or
/// [`abort`](Self::abort).
#[derive(Debug, Clone)]
pub struct TaskSet {
    handle: Handle,
    tracker: TaskTracker,
    stop: CancellationToken,
    kill: CancellationToken,
}

impl TaskSet {
    /// An empty set whose tasks run on `handle`.
    pub fn new(handle: Handle) -> Self {
        let kill = CancellationToken::new();
        Self { handle, tracker: TaskTracker::new(), stop: kill.child_token(), kill }
    }

    /// The runtime.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Runs `task` until it or the set ends. A panic ends this task only and is logged with its `name`.
    ///
    /// New tasks still run after the start of [`shutdown`](Self::shutdown), since ending tasks may need helpers; they are
    /// dropped with the others.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let kill = self.kill.clone();
        let guarded = async move {
            let task = AssertUnwindSafe(task).catch_unwind();
            if let Some(Err(_)) = kill.run_until_cancelled(task).await {
                tracing::error!(task = name, "a task panicked");
            }
        };
        self.tracker.spawn_on(guarded, &self.handle);
    }

    /// A token cancelled at the start of the shutdown; long tasks watch it.
    pub fn stopping(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Number of running tasks.
    pub fn len(&self) -> usize {
        self.tracker.len()
    }

    /// Whether no task runs.
    pub fn is_empty(&self) -> bool {
        self.tracker.is_empty()
    }

    /// Cancels [`stopping`](Self::stopping), waits up to `deadline` for the tasks, then drops the rest. Returns whether all
    /// ended by themselves. Idempotent; needs a tokio context with time. A dropped call leaves the token cancelled and
    /// drops no task.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        let ended = tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok();
        self.kill.cancel();
        if !ended && tokio::time::timeout(ABORT_GRACE, self.tracker.wait()).await.is_err() {
            tracing::error!(tasks = self.len(), "tasks block their threads and cannot be ended");
        }
        ended
    }

    /// Drops all tasks without waiting for them.
    pub fn abort(&self) {
        self.tracker.close();
        self.kill.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn set() -> TaskSet {
        TaskSet::new(Handle::current())
    }

    #[tokio::test]
    async fn tasks_that_watch_the_token_end_by_themselves() {
        let set = set();
        let stopping = set.stopping();
        set.spawn("watching", async move { stopping.cancelled().await });
        assert_eq!(set.len(), 1);
        assert!(set.shutdown(Duration::from_secs(10)).await);
        assert!(set.is_empty());
        assert!(set.shutdown(Duration::ZERO).await, "a second time changes nothing");
    }

    #[tokio::test]
    async fn other_tasks_are_dropped_after_the_deadline() {
        struct Flag(Arc<AtomicBool>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let (set, dropped) = (set(), Arc::new(AtomicBool::new(false)));
        let flag = Flag(dropped.clone());
        set.spawn("not watching", async move {
            let _flag = flag;
            std::future::pending::<()>().await;
        });
        assert!(!set.shutdown(Duration::from_millis(1)).await);
        assert!(dropped.load(Ordering::SeqCst));
        assert!(set.is_empty());
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_task() {
        let set = set();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        set.spawn("panics", async { panic!("on purpose") });
        set.spawn("continues", async move {
            tokio::task::yield_now().await;
            let _ = sender.send(());
        });
        receiver.await.unwrap();
        assert!(set.shutdown(Duration::from_secs(10)).await);
    }

    #[tokio::test]
    async fn abort_drops_running_and_later_tasks() {
        let set = set();
        set.spawn("before", std::future::pending());
        set.abort();
        set.spawn("after", std::future::pending());
        assert!(set.shutdown(Duration::from_secs(10)).await);
    }
}
