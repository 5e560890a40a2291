//! Tokens as they are chosen, turned into what the reader of an answer gets.

use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::engine::sample::Sampled;
use crate::model::tokenizer::{Detokenizer, Tokenizer};
use crate::node::error::GenerateError;
use crate::node::generation::Delta;
use crate::node::report::{Likelihood, TokenLogprob};
use crate::node::text::StopMatcher;
use crate::pipeline::job::TokenSink;

/// What the reader of an answer is sent.
pub(crate) type Deltas = mpsc::Sender<Result<Delta, GenerateError>>;

/// Turns tokens into text and hands it to the reader.
pub(crate) struct Sink {
    tokenizer: Arc<Tokenizer>,
    /// Taken at the end.
    detokenizer: Option<Detokenizer>,
    stops: StopMatcher,
    deltas: Deltas,
    stopped: bool,
    said: Said,
}

/// What has been said so far.
#[derive(Default)]
pub(crate) struct Said {
    pub text: String,
    /// One for each token, where they were asked for.
    pub logprobs: Option<Vec<TokenLogprob>>,
}

impl Sink {
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>, logprobs: bool, deltas: Deltas) -> Self {
        Self {
            detokenizer: Some(Detokenizer::new(tokenizer.clone())),
            tokenizer,
            stops: StopMatcher::new(stops),
            deltas,
            stopped: false,
            said: Said { text: String::new(), logprobs: logprobs.then(Vec::new) },
        }
    }

    /// The answer has ended: half characters and held-back text are shown after all. Gives what was said, and where the
    /// last delta goes.
    pub async fn end(mut self) -> (Said, Deltas) {
        if !self.stopped {
            let rest = self.detokenizer.take().and_then(Detokenizer::finish).unwrap_or_default();
            if self.take(&rest).await.is_continue() {
                let held = self.stops.finish();
                // Whether the reader is still there no longer matters.
                let _ = self.show(held).await;
            }
        }
        (self.said, self.deltas)
    }

    async fn send(&mut self, delta: Delta) -> ControlFlow<()> {
        match self.deltas.send(Ok(delta)).await {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }

    async fn show(&mut self, text: String) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.said.text.push_str(&text);
        self.send(Delta::Text(text)).await
    }

    async fn take(&mut self, text: &str) -> ControlFlow<()> {
        let shown = self.stops.push(text);
        self.stopped |= shown.stopped;
        let flow = self.show(shown.text).await;
        if shown.stopped { ControlFlow::Break(()) } else { flow }
    }

    /// Tells how likely the token was, where that was asked for.
    async fn tell(&mut self, sampled: Sampled) -> ControlFlow<()> {
        let Some(told) = &mut self.said.logprobs else { return ControlFlow::Continue(()) };
        let likelihood = |(token, logprob)| Likelihood::new(&self.tokenizer, token, logprob);
        let chosen = likelihood((sampled.token, sampled.logprob));
        let alternatives = sampled.alternatives.into_iter().map(likelihood).collect();
        let token = TokenLogprob { chosen, alternatives };
        told.push(token.clone());
        self.send(Delta::Token(Box::new(token))).await
    }
}

impl TokenSink for Sink {
    async fn token(&mut self, sampled: Sampled) -> ControlFlow<()> {
        let token = sampled.token;
        self.tell(sampled).await?;
        match self.detokenizer.as_mut().and_then(|detokenizer| detokenizer.push(token)) {
            Some(text) => self.take(&text).await,
            None => ControlFlow::Continue(()),
        }
    }
}
