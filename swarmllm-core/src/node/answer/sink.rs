//! Tokens as they are chosen, turned into what the reader of an answer gets.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::base::Fault;
use crate::engine::sample::Sampled;
use crate::model::tokenizer::{Detokenizer, Tokenizer};
use crate::node::answer::text::StopMatcher;
use crate::node::answer::unread::Deltas;
use crate::node::api::report::{Delta, Likelihood, TokenLogprob};
use crate::pipeline::job::TokenSink;

/// Turns tokens into text and hands it to the reader.
pub(crate) struct Sink {
    tokenizer: Arc<Tokenizer>,
    /// Taken at the end.
    detokenizer: Option<Detokenizer>,
    stops: StopMatcher,
    deltas: Deltas,
    stopped: bool,
    /// Whether it is told how likely tokens are.
    logprobs: bool,
    /// Bytes of text that the tokens have completed, shown or not.
    completed: usize,
    /// Tokens whose text has not been shown, each with where that text begins.
    untold: VecDeque<(usize, TokenLogprob)>,
    /// The text that was shown. How likely its tokens are is kept by who reads the answer, not beside it.
    said: String,
}

impl Sink {
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>, logprobs: bool, deltas: Deltas) -> Self {
        Self {
            detokenizer: Some(Detokenizer::new(tokenizer.clone())),
            tokenizer,
            stops: StopMatcher::new(stops),
            deltas,
            stopped: false,
            logprobs,
            completed: 0,
            untold: VecDeque::new(),
            said: String::new(),
        }
    }

    /// The answer has ended: half characters and held-back text are shown after all. Gives what was said, and where the
    /// last delta goes.
    pub fn end(mut self) -> (String, Deltas) {
        if !self.stopped {
            let rest = self.detokenizer.take().and_then(Detokenizer::finish).unwrap_or_default();
            if self.take(&rest).is_continue() {
                let held = self.stops.finish();
                // Whether the reader is still there no longer matters.
                let _ = self.show(held);
            }
        }
        (self.said, self.deltas)
    }

    fn send(&mut self, delta: Delta) -> ControlFlow<()> {
        match self.deltas.send(Ok(delta)) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }

    fn show(&mut self, text: String) -> ControlFlow<()> {
        if text.is_empty() {
            return ControlFlow::Continue(());
        }
        self.said.push_str(&text);
        self.tell()?;
        self.send(Delta::Text(text))
    }

    fn take(&mut self, text: &str) -> ControlFlow<()> {
        self.completed += text.len();
        let shown = self.stops.push(text);
        self.stopped |= shown.stopped;
        let flow = self.show(shown.text);
        if shown.stopped { ControlFlow::Break(()) } else { flow }
    }

    /// Tells how likely the tokens were whose text is shown.
    fn tell(&mut self) -> ControlFlow<()> {
        let shown = self.said.len();
        while self.untold.front().is_some_and(|(begin, _)| *begin < shown)
            && let Some((_, token)) = self.untold.pop_front()
        {
            self.send(Delta::Token(Box::new(token)))?;
        }
        ControlFlow::Continue(())
    }

    /// Keeps how likely the token was until its text is shown, where that was asked for. A token without text is not told.
    fn note(&mut self, sampled: Sampled) {
        if !self.logprobs || self.tokenizer.token_bytes(sampled.token, false).is_empty() {
            return;
        }
        let likelihood = |(token, logprob)| Likelihood::new(&self.tokenizer, token, logprob);
        let chosen = likelihood((sampled.token, sampled.logprob));
        let alternatives = sampled.alternatives.into_iter().map(likelihood).collect();
        self.untold.push_back((self.completed, TokenLogprob { chosen, alternatives }));
    }
}

impl TokenSink for Sink {
    async fn token(&mut self, sampled: Sampled) -> ControlFlow<()> {
        let token = sampled.token;
        self.note(sampled);
        match self.detokenizer.as_mut().and_then(|detokenizer| detokenizer.push(token)) {
            Some(text) => self.take(&text),
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
    use crate::node::answer::unread;

    /// The deltas and the answer of these tokens.
    async fn run(tokens: &[u32], stops: &[&str]) -> (Vec<Delta>, String) {
        let (sender, mut deltas) = unread::channel();
        let stops = stops.iter().map(|stop| stop.to_string()).collect();
        let mut sink = Sink::new(Arc::new(byte_tokenizer()), stops, true, sender);
        for token in tokens {
            let sampled = Sampled { token: *token, logprob: -1.0, alternatives: vec![(*token, -1.0)] };
            if sink.token(sampled).await.is_break() {
                break;
            }
        }
        let (said, _) = sink.end();
        let mut all = Vec::new();
        while let Some(delta) = deltas.next().await {
            all.push(delta.expect("no error is sent"));
        }
        (all, said)
    }

    fn told(deltas: &[Delta]) -> Vec<u32> {
        let token = |delta: &Delta| if let Delta::Token(token) = delta { Some(token.chosen.token) } else { None };
        deltas.iter().filter_map(token).collect()
    }

    /// As `t` a token, as `w` a text of these bytes.
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
    async fn a_token_is_told_only_where_its_text_is_in_the_answer() {
        let (deltas, said) = run(&bytes("one END two"), &["END"]).await;
        assert_eq!((said.as_str(), told(&deltas)), ("one ", bytes("one ")));
        assert_eq!(shape(&deltas), "t w1 t w1 t w1 t w1 ");
        // A beginning of a stop text that does not come is text, and its tokens are told with it.
        let (deltas, said) = run(&bytes("aENb"), &["END"]).await;
        assert_eq!((said.as_str(), told(&deltas)), ("aENb", bytes("aENb")));
        assert_eq!(shape(&deltas), "t w1 t t t w3 ");
        let (deltas, said) = run(&bytes("aEN"), &["END"]).await;
        assert_eq!((said.as_str(), told(&deltas)), ("aEN", bytes("aEN")));
        // What is held is told once it is shown, and not what is held behind it.
        let (deltas, said) = run(&bytes("aEEND"), &["END"]).await;
        assert_eq!((said.as_str(), told(&deltas)), ("aE", bytes("aE")));
        // Of a token that a stop text cuts the answer has the beginning.
        let (deltas, said) = run(&[259, u32::from(b'!')], &["llo"]).await;
        assert_eq!((said.as_str(), told(&deltas)), ("he", vec![259]));
        let (deltas, said) = run(&[u32::from(b'h'), 257], &["hl", "hll"]).await;
        assert_eq!((said.as_str(), told(&deltas)), ("", vec![]));
    }

    #[tokio::test]
    async fn tokens_of_a_character_are_told_with_it_and_tokens_without_text_never() {
        let (deltas, _) = run(&bytes("é"), &["x"]).await;
        assert_eq!((told(&deltas), shape(&deltas).as_str()), (bytes("é"), "t t w2 "));
        let (deltas, said) = run(&[261, u32::from(b'a'), 262], &[]).await;
        assert_eq!((said.as_str(), told(&deltas)), ("a", bytes("a")));
        // Half a character is shown as U+FFFD.
        let (deltas, said) = run(&[u32::from(b'a'), 0xc3], &[]).await;
        assert_eq!((said.as_str(), told(&deltas)), ("a\u{fffd}", vec![u32::from(b'a'), 0xc3]));
    }
}
