//! Waiting for the core: on a blocked thread, and in asyncio.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use swarmllm_core::base::{ErrorKind, Progress};
use swarmllm_core::node::{ProgressFn, check_may_block, with_progress};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::errors::Failure;

/// Interval at which a blocked thread checks for signals.
pub const SLICE: Duration = Duration::from_millis(50);

/// Blocks the calling thread without the GIL until `work` ends, and handles signals every [`SLICE`]. A signal handler that
/// raises (Ctrl-C) drops `work`, which cancels it.
pub fn block<T: Send>(
    py: Python<'_>,
    runtime: &Handle,
    work: impl Future<Output = Result<T, Failure>> + Send,
) -> PyResult<T> {
    block_reporting(py, runtime, None, |_| work)
}

/// As [`block`], and calls `progress(done, total)` on the calling thread, between slices: unlike in [`with_progress`], the
/// callback may then itself make blocking calls.
pub fn block_reporting<T: Send, F>(
    py: Python<'_>,
    runtime: &Handle,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(Option<ProgressFn>) -> F,
) -> PyResult<T>
where
    F: Future<Output = Result<T, Failure>> + Send,
{
    check_may_block().map_err(Failure::from)?;
    let (sender, mut reports) = watch::channel(Progress { done: 0, total: 0 });
    let tell: ProgressFn = Arc::new(move |progress| {
        sender.send_replace(progress);
    });
    let mut work = pin!(work(progress.is_some().then_some(tell)));
    loop {
        let ended = py.detach(|| runtime.block_on(async { tokio::time::timeout(SLICE, &mut work).await }));
        py.check_signals()?;
        if let (Some(progress), Some(Progress { done, total })) = (&progress, unreported(&mut reports)) {
            progress.call1(py, (done, total))?;
        }
        if let Ok(result) = ended {
            return Ok(result?);
        }
    }
}

/// An awaitable of the running asyncio loop. Cancelling it drops the work, which cancels it.
pub fn awaitable<'py, T>(
    py: Python<'py>,
    runtime: &Handle,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> PyResult<Bound<'py, PyAny>>
where
    T: for<'a> IntoPyObject<'a> + Send + 'static,
{
    same_process(py)?;
    // The work runs on the runtime of its node; Python's runtime only waits for it.
    let work = AbortOnDrop(runtime.spawn(work));
    pyo3_async_runtimes::tokio::future_into_py(py, async move { Ok(work.end().await?) })
}

/// As [`awaitable`], and calls `progress(done, total)` on a thread of the node.
pub fn awaitable_reporting<'py, T, F>(
    py: Python<'py>,
    runtime: &Handle,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(Option<ProgressFn>) -> F + Send + 'static,
) -> PyResult<Bound<'py, PyAny>>
where
    T: for<'a> IntoPyObject<'a> + Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let Some(progress) = progress else { return awaitable(py, runtime, work(None)) };
    awaitable(py, runtime, async move {
        let mut failed = None;
        let report = |Progress { done, total }| {
            let called = Python::attach(|py| progress.call1(py, (done, total)).map(drop));
            called.map_err(|error| {
                let text = format!("progress failed: {error}");
                failed = Some(Failure::new(ErrorKind::Cancelled, &text));
                Failure::new(ErrorKind::Cancelled, text)
            })
        };
        let result = with_progress(|tell| work(Some(tell)), report).await;
        // An exception of the last call is raised too.
        failed.map_or(result, Err)
    })
}

/// Runs a blocking call on a thread of its own; the awaitable ends with the call.
pub fn awaitable_thread<'py, T>(
    py: Python<'py>,
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> PyResult<Bound<'py, PyAny>>
where
    T: for<'a> IntoPyObject<'a> + Send + 'static,
{
    same_process(py)?;
    let (send, end) = tokio::sync::oneshot::channel();
    let thread = std::thread::Builder::new().name("swarmllm-start".to_owned());
    // A result without a receiver is dropped here, on a thread that may block.
    let spawned = thread.spawn(move || drop(send.send(call())));
    spawned.map_err(|cause| Failure::new(ErrorKind::Io, format_args!("no thread could be started: {cause}")))?;
    pyo3_async_runtimes::tokio::future_into_py(py, async move {
        let lost = || Failure::new(ErrorKind::Internal, "the starting thread panicked");
        Ok(end.await.map_err(|_| lost())??)
    })
}

/// Drops a value without the GIL, while the interpreter exists.
pub fn drop_detached<T: Send>(value: T) {
    let mut value = Some(value);
    Python::try_attach(|py| py.detach(|| drop(value.take())));
}

/// The newest progress, unless it was returned before. Progress from the end of the work, which closes the channel, counts
/// too.
fn unreported(reports: &mut watch::Receiver<Progress>) -> Option<Progress> {
    let newest = reports.borrow_and_update();
    newest.has_changed().then_some(*newest)
}

/// asyncio calls share one runtime per process; a forked child has none of its threads.
fn same_process(py: Python<'_>) -> Result<(), Failure> {
    static FIRST: PyOnceLock<u32> = PyOnceLock::new();
    let pid = std::process::id();
    let first = FIRST.get_or_init(py, || {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(1).thread_name("swarmllm-py").enable_all();
        pyo3_async_runtimes::tokio::init(builder);
        pid
    });
    match *first == pid {
        true => Ok(()),
        false => Err(Failure::new(
            ErrorKind::Forked,
            "asyncio calls do not work in a process that was forked after the first such call: spawn it instead",
        )),
    }
}

struct AbortOnDrop<T>(tokio::task::JoinHandle<Result<T, Failure>>);

impl<T> AbortOnDrop<T> {
    async fn end(mut self) -> Result<T, Failure> {
        (&mut self.0).await.unwrap_or_else(|cause| {
            let kind = if cause.is_cancelled() { ErrorKind::Closed } else { ErrorKind::Internal };
            Err(Failure::new(kind, format_args!("the work did not end: {cause}")))
        })
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
