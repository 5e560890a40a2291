//! Waiting for the core, from Python's two worlds: a blocked thread, and asyncio.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use swarmllm_core::base::{ErrorKind, Progress};
use swarmllm_core::node::ProgressFn;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::errors::Failure;

/// How long a blocked thread goes without looking for signals.
pub const SLICE: Duration = Duration::from_millis(50);

/// Waits on the calling thread, without the GIL, in slices of [`SLICE`] between which signals are handled. A signal
/// handler that raises (Ctrl-C) drops the work, which cancels it.
pub fn block<T: Send>(
    py: Python<'_>,
    runtime: &Handle,
    work: impl Future<Output = Result<T, Failure>> + Send,
) -> PyResult<T> {
    block_reporting(py, runtime, None, |_| work)
}

/// As [`block`], and calls `progress(done, total)` on the calling thread.
pub fn block_reporting<T: Send, F>(
    py: Python<'_>,
    runtime: &Handle,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(Option<ProgressFn>) -> F,
) -> PyResult<T>
where
    F: Future<Output = Result<T, Failure>> + Send,
{
    may_block()?;
    let (tell, mut come) = news();
    let mut work = pin!(work(progress.is_some().then_some(tell)));
    loop {
        let ended = py.detach(|| runtime.block_on(async { tokio::time::timeout(SLICE, &mut work).await }));
        py.check_signals()?;
        if let (Some(progress), Some(Progress { done, total })) = (&progress, untold(&mut come)) {
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
    // The work runs where its node lives; Python's side only waits for it.
    let work = AbortOnDrop(runtime.spawn(work));
    pyo3_async_runtimes::tokio::future_into_py(py, async move { Ok(work.end().await?) })
}

/// As [`awaitable`], and calls `progress(done, total)` on a thread of the node.
pub fn awaitable_reporting<'py, T, F>(
    py: Python<'py>,
    runtime: &Handle,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(Option<ProgressFn>) -> F,
) -> PyResult<Bound<'py, PyAny>>
where
    T: for<'a> IntoPyObject<'a> + Send + 'static,
    F: Future<Output = Result<T, Failure>> + Send + 'static,
{
    let Some(progress) = progress else { return awaitable(py, runtime, work(None)) };
    let (tell, mut come) = news();
    let work = work(Some(tell));
    awaitable(py, runtime, async move {
        let mut work = pin!(work);
        let tell = |Progress { done, total }| {
            let told = Python::attach(|py| progress.call1(py, (done, total)).map(drop));
            told.map_err(|error| Failure::new(ErrorKind::Cancelled, format_args!("progress failed: {error}")))
        };
        loop {
            tokio::select! {
                biased;
                Ok(()) = come.changed() => {
                    let newest = *come.borrow_and_update();
                    tell(newest)?;
                }
                result = &mut work => {
                    untold(&mut come).map_or(Ok(()), tell)?;
                    return result;
                }
            }
        }
    })
}

/// Runs a blocking call on a thread of its own and gives an awaitable of its end.
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
    // What nobody waits for any more is dropped here, on a thread where dropping may block.
    let spawned = thread.spawn(move || drop(send.send(call())));
    spawned.map_err(|cause| Failure::new(ErrorKind::Io, format_args!("no thread could be started: {cause}")))?;
    pyo3_async_runtimes::tokio::future_into_py(py, async move {
        let lost = || Failure::new(ErrorKind::Internal, "the starting thread died");
        Ok(end.await.map_err(|_| lost())??)
    })
}

/// Drops a value without the GIL, where there still is an interpreter.
pub fn drop_detached<T: Send>(value: T) {
    let mut value = Some(value);
    Python::try_attach(|py| py.detach(|| drop(value.take())));
}

fn news() -> (ProgressFn, watch::Receiver<Progress>) {
    let (send, come) = watch::channel(Progress { done: 0, total: 0 });
    let tell: ProgressFn = Arc::new(move |progress| {
        send.send_replace(progress);
    });
    (tell, come)
}

/// The newest report, unless it was told already. What came as the work ended, which closes the channel, counts too.
fn untold(come: &mut watch::Receiver<Progress>) -> Option<Progress> {
    let newest = come.borrow_and_update();
    newest.has_changed().then_some(*newest)
}

fn may_block() -> Result<(), Failure> {
    match Handle::try_current() {
        Err(_) => Ok(()),
        Ok(_) => Err(Failure::new(
            ErrorKind::Unsupported,
            "this call blocks and was made on a thread of swarmllm: make it on a thread of your own, or await its twin",
        )),
    }
}

/// asyncio calls share one runtime per process, whose threads a forked child does not have.
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
            "asyncio calls do not work in a process that was forked after the first of them: spawn it instead",
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
