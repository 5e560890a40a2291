//! The choices of a request, computed one after another.
//!
//! In sequence, `n` choices need one slot of each stage instead of `n`, so that no request fails halfway for lack of slots.
//! From the second on, the KV cache of the prompt is reused. A running session cannot share its KV cache: concurrent choices
//! would each compute the prompt.

use crate::node::{ChatRequest, GenerateError, GenerateOptions, GenerateRequest, Generation, Node};
use crate::server::reject::Reject;

/// A request to the node.
#[derive(Debug, Clone)]
pub(crate) enum NodeRequest {
    /// An answer to a conversation.
    Chat(ChatRequest),
    /// The continuation of a text.
    Text(GenerateRequest),
}

impl NodeRequest {
    /// The model, as the client wrote it.
    pub(crate) fn model(&self) -> &str {
        match self {
            NodeRequest::Chat(request) => &request.model,
            NodeRequest::Text(request) => &request.model,
        }
    }

    pub(crate) fn options_mut(&mut self) -> &mut GenerateOptions {
        match self {
            NodeRequest::Chat(request) => &mut request.options,
            NodeRequest::Text(request) => &mut request.options,
        }
    }

    async fn begin(self, node: &Node) -> Result<Generation, GenerateError> {
        match self {
            NodeRequest::Chat(request) => node.chat(request).await,
            NodeRequest::Text(request) => node.generate(request).await,
        }
    }
}

/// Starts the choices of a request in sequence.
pub(super) struct Choices {
    node: Node,
    request: NodeRequest,
    n: u32,
    begun: u32,
}

impl Choices {
    /// `n` choices of a request.
    pub(super) fn new(node: Node, request: NodeRequest, n: u32) -> Self {
        Self { node, request, n, begun: 0 }
    }

    /// Starts the next choice; `None` after the last. Each choice has its own seed.
    pub(super) async fn next(&mut self) -> Result<Option<Generation>, Reject> {
        if self.begun == self.n {
            return Ok(None);
        }
        let mut request = self.request.clone();
        let seed = &mut request.options_mut().sampling.seed;
        *seed = seed.map(|seed| seed.wrapping_add(self.begun.into()));
        self.begun += 1;
        Ok(Some(request.begin(&self.node).await?))
    }

    /// The index of the choice that was started last.
    pub(super) fn index(&self) -> u32 {
        self.begun.saturating_sub(1)
    }
}
