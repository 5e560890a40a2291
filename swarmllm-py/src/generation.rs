//! Generations: the caller pulls an answer piece by piece.

use std::sync::Arc;

use pyo3::prelude::*;
use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::{Canceller, Delta, Generation, Node, TokenLogprob};
use tokio::sync::Mutex;

use crate::errors::{Failure, json};
use crate::wait::{awaitable, block, drop_detached};

/// A running answer. Dropping it cancels the answer at every stage.
#[pyclass(frozen, module = "swarmllm._swarmllm")]
pub struct NativeGeneration {
    // `None` only during the drop.
    answer: Option<Arc<Answer>>,
    #[pyo3(get)]
    id: String,
    #[pyo3(get)]
    model: String,
    #[pyo3(get)]
    route: String,
}

/// The generation of a [`NativeGeneration`].
struct Answer {
    canceller: Canceller,
    deltas: Mutex<Deltas>,
    /// Keeps the runtime that the generation needs; dropped after it.
    node: Node,
}

/// A generation and its tokens whose text has not been returned.
struct Deltas {
    generation: Generation,
    tokens: Vec<TokenLogprob>,
}

/// Text, or the completion as JSON, and the log-probabilities of the tokens in it as JSON, if they were requested.
type Piece = (Option<String>, Option<String>, Option<String>);

impl Answer {
    async fn next(self: Arc<Self>) -> Result<Option<Piece>, Failure> {
        let mut deltas = self.deltas.lock().await;
        loop {
            match deltas.generation.next().await {
                Some(Ok(Delta::Token(token))) => deltas.tokens.push(*token),
                Some(Ok(Delta::Text(text))) => return Ok(Some((Some(text), None, deltas.take_tokens()?))),
                Some(Ok(Delta::Done(done))) => return Ok(Some((None, Some(json(&*done)?), deltas.take_tokens()?))),
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(None),
            }
        }
    }
}

impl Deltas {
    fn take_tokens(&mut self) -> Result<Option<String>, Failure> {
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
        let canceller = generation.canceller();
        let answer = Answer { canceller, deltas: Mutex::new(Deltas { generation, tokens: Vec::new() }), node };
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
        self.answer()?.canceller.cancel();
        Ok(())
    }
}
