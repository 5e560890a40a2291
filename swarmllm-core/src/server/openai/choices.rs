//! The answers of one request, one after another.
//!
//! `n` answers come in turn rather than at once: they need one slot of each stage instead of `n`, so that a request is
//! never refused halfway for want of room, and from the second on the prompt's KV is found where the first has left it.
//! A session under way cannot lend its KV, so that answers at once would each compute the prompt.

use crate::node::{ChatRequest, GenerateError, GenerateOptions, GenerateRequest, Generation, Node};
use crate::server::reject::Reject;

/// What is asked of the node.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    /// An answer to a conversation.
    Chat(ChatRequest),
    /// The continuation of a text.
    Text(GenerateRequest),
}

impl Asked {
    /// The model, as the client wrote it.
    pub(crate) fn model(&self) -> &str {
        match self {
            Asked::Chat(request) => &request.model,
            Asked::Text(request) => &request.model,
        }
    }

    pub(crate) fn options_mut(&mut self) -> &mut GenerateOptions {
        match self {
            Asked::Chat(request) => &mut request.options,
            Asked::Text(request) => &mut request.options,
        }
    }

    async fn begin(self, node: &Node) -> Result<Generation, GenerateError> {
        match self {
            Asked::Chat(request) => node.chat(request).await,
            Asked::Text(request) => node.generate(request).await,
        }
    }
}

/// Starts one answer after the other.
pub(super) struct Choices {
    node: Node,
    request: Asked,
    n: u32,
    begun: u32,
}

impl Choices {
    /// `n` answers to a request.
    pub(super) fn new(node: Node, request: Asked, n: u32) -> Self {
        Self { node, request, n, begun: 0 }
    }

    /// Begins the next answer; `None` where all have been. Each has a seed of its own.
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

    /// The index of the answer that was begun last.
    pub(super) fn index(&self) -> u32 {
        self.begun.saturating_sub(1)
    }
}
