//! Generations: an answer as it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::{Delta, Generation, Node};
use tokio::sync::{Mutex, Notify};

use crate::errors::{Failure, json};
use crate::wait::{awaitable, block, drop_detached};

/// An answer that is being generated. Dropping it cancels it at every stage.
#[pyclass(frozen, module = "swarmllm._swarmllm")]
pub struct NativeGeneration {
    // Empty only while it is dropped.
    answer: Option<Arc<Answer>>,
    #[pyo3(get)]
    id: String,
    #[pyo3(get)]
    model: String,
    #[pyo3(get)]
    route: String,
}

/// A generation, with what is needed to cancel it while another thread waits for its next delta.
struct Answer {
    generation: Mutex<Generation>,
    cancelled: AtomicBool,
    wake: Notify,
    /// Keeps the runtime that the generation needs; dropped after it.
    node: Node,
}

/// What came next: text, or the end as JSON.
type Piece = (Option<String>, Option<String>);

impl Answer {
    async fn next(self: Arc<Self>) -> Result<Option<Piece>, Failure> {
        let next = self.next_locked().await;
        // Whoever cancelled while the lock was held could not reach the generation.
        if self.cancelled.load(Ordering::SeqCst) {
            self.reach();
        }
        next
    }

    async fn next_locked(&self) -> Result<Option<Piece>, Failure> {
        let mut generation = self.generation.lock().await;
        let delta = loop {
            tokio::select! {
                biased;
                () = self.wake.notified() => generation.cancel(),
                delta = generation.next() => break delta,
            }
        };
        match delta {
            Some(Ok(Delta::Text(text))) => Ok(Some((Some(text), None))),
            Some(Ok(Delta::Done(completion))) => Ok(Some((None, Some(json(&*completion)?)))),
            Some(Err(error)) => Err(error.into()),
            None => Ok(None),
        }
    }

    fn reach(&self) {
        if let Ok(generation) = self.generation.try_lock() {
            generation.cancel();
        }
    }
}

impl Drop for NativeGeneration {
    fn drop(&mut self) {
        drop_detached(self.answer.take());
    }
}

impl NativeGeneration {
    /// Wraps a generation of this node.
    pub fn new(node: Node, generation: Generation) -> Result<Self, Failure> {
        let (id, model) = (generation.session().to_string(), generation.model().to_string());
        let route = json(generation.route())?;
        let answer =
            Answer { generation: Mutex::new(generation), cancelled: AtomicBool::new(false), wake: Notify::new(), node };
        Ok(Self { answer: Some(Arc::new(answer)), id, model, route })
    }

    fn answer(&self) -> Result<Arc<Answer>, Failure> {
        self.answer.clone().ok_or_else(|| Failure::new(ErrorKind::Closed, "the generation is being dropped"))
    }
}

#[pymethods]
impl NativeGeneration {
    fn next(&self, py: Python<'_>) -> PyResult<Option<Piece>> {
        let answer = self.answer()?;
        block(py, &answer.node.runtime(), answer.clone().next())
    }

    fn next_async<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let answer = self.answer()?;
        awaitable(py, &answer.node.runtime(), answer.clone().next())
    }

    fn cancel(&self) -> PyResult<()> {
        let answer = self.answer()?;
        answer.cancelled.store(true, Ordering::SeqCst);
        answer.wake.notify_one();
        answer.reach();
        Ok(())
    }
}
