//! Generations: an answer as it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::{Delta, Generation, Node, TokenLogprob};
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
    generation: Mutex<Pulled>,
    cancelled: AtomicBool,
    wake: Notify,
    /// Keeps the runtime that the generation needs; dropped after it.
    node: Node,
}

/// A generation, and the tokens whose text has not been given out.
struct Pulled {
    generation: Generation,
    tokens: Vec<TokenLogprob>,
}

/// What came next: text or the end as JSON, and before them the tokens that it took as JSON, where they are told.
type Piece = (Option<String>, Option<String>, Option<String>);

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
        let mut pulled = self.generation.lock().await;
        loop {
            let delta = tokio::select! {
                biased;
                () = self.wake.notified() => {
                    pulled.generation.cancel();
                    continue;
                }
                delta = pulled.generation.next() => delta,
            };
            match delta {
                Some(Ok(Delta::Token(token))) => pulled.tokens.push(*token),
                Some(Ok(Delta::Text(text))) => return Ok(Some((Some(text), None, pulled.told()?))),
                Some(Ok(Delta::Done(done))) => return Ok(Some((None, Some(json(&*done)?), pulled.told()?))),
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(None),
            }
        }
    }

    fn reach(&self) {
        if let Ok(pulled) = self.generation.try_lock() {
            pulled.generation.cancel();
        }
    }
}

impl Pulled {
    fn told(&mut self) -> Result<Option<String>, Failure> {
        let tokens = std::mem::take(&mut self.tokens);
        if tokens.is_empty() { Ok(None) } else { json(&tokens).map(Some) }
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
        let generation = Mutex::new(Pulled { generation, tokens: Vec::new() });
        let answer = Answer { generation, cancelled: AtomicBool::new(false), wake: Notify::new(), node };
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
