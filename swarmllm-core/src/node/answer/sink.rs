//! Turns chosen tokens into the deltas of an answer.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::base::Fault;
use crate::engine::sample::SampledToken;
use crate::model::tokenizer::{Detokenizer, Tokenizer};
use crate::node::answer::delta_channel::DeltaSender;
use crate::node::answer::text::StopMatcher;
use crate::node::api::report::{Delta, Likelihood, TokenLogprob};
use crate::pipeline::runner::job::TokenSink;

/// Turns tokens into text and hands it to the reader.
pub(crate) struct AnswerSink {
    tokenizer: Arc<Tokenizer>,
    /// `None` after the end.
    detokenizer: Option<Detokenizer>,
    stops: StopMatcher,
    deltas: DeltaSender,
    stopped: bool,
    /// Whether log-probabilities were requested.
    logprobs: bool,
    /// Bytes of text decoded so far, sent or not.
    decoded: usize,
    /// Tokens with unsent text, each with the offset of its text.
    unsent: VecDeque<(usize, TokenLogprob)>,
    /// Text sent so far. The reader collects log-probabilities.
    text: String,
}

impl AnswerSink {
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>, logprobs: bool, deltas: DeltaSender) -> Self {
        Self {
            detokenizer: Some(Detokenizer::new(tokenizer.clone())),
            tokenizer,
            stops: StopMatcher::new(stops),
            deltas,
            stopped: false,
            logprobs,
            decoded: 0,
            unsent: VecDeque::new(),
            text: String::new(),
        }
    }

    /// Ends the answer: sends incomplete characters and held-back text. Returns the text, and the sender for the last delta.
    pub fn finish(mut self) -> (String, DeltaSender) {
        if !self.stopped {
            let rest = self.detokenizer.take().and_then(Detokenizer::finish).unwrap_or_default();
            if self.push_text(&rest).is_continue() {
                let held = self.stops.finish();
                // A missing reader no longer matters.
                let _ = self.send_text(held);
            }
        }
        (self.text, self.deltas)
    }

    fn send(&mut self, delta: Delta) -> ControlFlow<()> {
        match self.deltas.send(Ok(delta)) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }

    fn send_text(&mut self, text: String) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.text.push_str(&text);
        self.send_logprobs()?;
        self.send(Delta::Text(text))
    }

    fn push_text(&mut self, text: &str) -> ControlFlow<()> {
        self.decoded += text.len();
        let safe = self.stops.push(text);
        self.stopped |= safe.stopped;
        let flow = self.send_text(safe.text);
        if safe.stopped { ControlFlow::Break(()) } else { flow }
    }

    /// Sends the log-probabilities of tokens whose text is sent.
    fn send_logprobs(&mut self) -> ControlFlow<()> {
        let sent = self.text.len();
        while self.unsent.front().is_some_and(|(begin, _)| *begin < sent)
            && let Some((_, token)) = self.unsent.pop_front()
        {
            self.send(Delta::Token(Box::new(token)))?;
        }
        ControlFlow::Continue(())
    }

    /// Holds a token's log-probability until its text is sent, if requested. Tokens without text are not reported.
    fn hold_logprob(&mut self, sampled: SampledToken) {
        if !self.logprobs || self.tokenizer.token_bytes(sampled.token, false).is_empty() {
            return;
        }
        let likelihood = |(token, logprob)| Likelihood::new(&self.tokenizer, token, logprob);
        let chosen = likelihood((sampled.token, sampled.logprob));
        let alternatives = sampled.alternatives.into_iter().map(likelihood).collect();
        self.unsent.push_back((self.decoded, TokenLogprob { chosen, alternatives }));
    }
}

impl TokenSink for AnswerSink {
    async fn token(&mut self, sampled: SampledToken) -> ControlFlow<()> {
        let token = sampled.token;
        self.hold_logprob(sampled);
        match self.detokenizer.as_mut().and_then(|detokenizer| detokenizer.push(token)) {
            Some(text) => self.push_text(&text),
            None => ControlFlow::Continue(()),
        }
    }

    fn has_room(&self) -> bool {
        self.deltas.has_room()
    }

    async fn room(&self) -> Result<(), Fault> {
        self.deltas.room().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::byte_tokenizer;
    use crate::node::answer::delta_channel;

    /// Deltas and text of these tokens.
    async fn run(tokens: &[u32], stops: &[&str]) -> (Vec<Delta>, String) {
        let (sender, mut deltas) = delta_channel::channel();
        let stops = stops.iter().map(|stop| stop.to_string()).collect();
        let mut sink = AnswerSink::new(Arc::new(byte_tokenizer()), stops, true, sender);
        for token in tokens {
            let sampled = SampledToken { token: *token, logprob: -1.0, alternatives: vec![(*token, -1.0)] };
            if sink.token(sampled).await.is_break() {
                break;
            }
        }
        let (text, _) = sink.finish();
        let mut all = Vec::new();
        while let Some(delta) = deltas.next().await {
            all.push(delta.expect("no error is sent"));
        }
        (all, text)
    }

    fn reported(deltas: &[Delta]) -> Vec<u32> {
        let token = |delta: &Delta| if let Delta::Token(token) = delta { Some(token.chosen.token) } else { None };
        deltas.iter().filter_map(token).collect()
    }

    /// `t` for a token, `w` and its bytes for a text.
    fn shape(deltas: &[Delta]) -> String {
        let shape = |delta: &Delta| match delta {
            Delta::Text(text) => format!("w{} ", text.len()),
            Delta::Token(_) => "t ".to_owned(),
            Delta::Done(_) => "d".to_owned(),
        };
        deltas.iter().map(shape).collect()
    }

    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    #[tokio::test]
    async fn a_token_is_reported_only_if_its_text_is_in_the_answer() {
        let (deltas, text) = run(&bytes("one END two"), &["END"]).await;
        assert_eq!((text.as_str(), reported(&deltas)), ("one ", bytes("one ")));
        assert_eq!(shape(&deltas), "t w1 t w1 t w1 t w1 ");
        // An incomplete stop text is text; its tokens are reported with it.
        let (deltas, text) = run(&bytes("aENb"), &["END"]).await;
        assert_eq!((text.as_str(), reported(&deltas)), ("aENb", bytes("aENb")));
        assert_eq!(shape(&deltas), "t w1 t t t w3 ");
        let (deltas, text) = run(&bytes("aEN"), &["END"]).await;
        assert_eq!((text.as_str(), reported(&deltas)), ("aEN", bytes("aEN")));
        // Held tokens are reported once their text is sent; later held tokens stay.
        let (deltas, text) = run(&bytes("aEEND"), &["END"]).await;
        assert_eq!((text.as_str(), reported(&deltas)), ("aE", bytes("aE")));
        // A stop text inside a token leaves the token's beginning in the answer.
        let (deltas, text) = run(&[259, u32::from(b'!')], &["llo"]).await;
        assert_eq!((text.as_str(), reported(&deltas)), ("he", vec![259]));
        let (deltas, text) = run(&[u32::from(b'h'), 257], &["hl", "hll"]).await;
        assert_eq!((text.as_str(), reported(&deltas)), ("", vec![]));
    }

    #[tokio::test]
    async fn tokens_are_reported_with_their_character_and_never_without_text() {
        let (deltas, _) = run(&bytes("é"), &["x"]).await;
        assert_eq!((reported(&deltas), shape(&deltas).as_str()), (bytes("é"), "t t w2 "));
        let (deltas, text) = run(&[261, u32::from(b'a'), 262], &[]).await;
        assert_eq!((text.as_str(), reported(&deltas)), ("a", bytes("a")));
        // An incomplete character is sent as U+FFFD.
        let (deltas, text) = run(&[u32::from(b'a'), 0xc3], &[]).await;
        assert_eq!((text.as_str(), reported(&deltas)), ("a\u{fffd}", vec![u32::from(b'a'), 0xc3]));
    }
}
