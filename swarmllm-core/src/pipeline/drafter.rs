//! Guesses ahead by a second, smaller model, which this node computes itself.
//!
//! The draft model reads what the answer has come to and says what it would go on with; the stages of the answering model
//! then compute all of that in one step. What is kept is decided by the session, so that a draft never changes what is
//! said. (Speculative decoding, Leviathan et al. 2023, with a draft that is taken at its likeliest token.)
//!
//! Over far stages a window mostly travels, and this node has nothing to compute: the draft model goes on behind the window's
//! guesses meanwhile, as if all of them were right. Where they are, the next window is there already.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::engine::sample::LogitRow;
use crate::engine::{Embedder, EngineError, Reduce, Row, StepJob, StepOutput};
use crate::pipeline::draft::{Draft, MAX_GUESSES};
use crate::pipeline::stages::Lease;
use crate::rt::TaskSet;

/// A guess that the draft model itself holds for less likely than this is not made, nor any behind it.
const SURE: f32 = 0.4;

/// A draft model, and what it has read.
pub struct Drafter {
    lease: Lease,
    embedder: Arc<dyn Embedder>,
    /// Tokens below this mean the same in both models; the vocabularies may be padded to different lengths.
    common: u32,
    draft: Draft,
    /// The text whose KV its stage has.
    read: Vec<u32>,
    /// A text whose last tokens were guessed before anybody asked for them; mostly nothing.
    foreseen: Vec<u32>,
}

impl Drafter {
    /// A drafter that has read nothing; the lease is of a stage with all layers and the head. Tokens below `common` are
    /// the draft model's and the answering model's alike. It guesses no others, and nothing behind a text that has others.
    pub fn new(lease: Lease, embedder: Arc<dyn Embedder>, common: u32, draft: Draft) -> Self {
        Self { lease, embedder, common, draft, read: Vec::new(), foreseen: Vec::new() }
    }

    /// What its guesses are weighed by.
    pub fn draft(&self) -> Draft {
        self.draft
    }

    /// See [`Drafting::ask`].
    async fn ask(&mut self, text: &[u32], most: usize) -> Result<(Vec<u32>, Duration), EngineError> {
        if let Some((_, before)) = text.split_last() {
            self.catch_up(before).await?;
        }
        let read = Instant::now();
        Ok((self.guess(text, most).await?, read.elapsed()))
    }

    /// Reads a text without saying how it goes on, where it has not read so much of it that a guess would take long.
    ///
    /// Cancel-safe only in that the drafter may be dropped then.
    async fn catch_up(&mut self, text: &[u32]) -> Result<(), EngineError> {
        match text.len() > self.read.len() + MAX_GUESSES && self.knows(text) {
            true => self.feed(text).await.map(drop),
            false => Ok(()),
        }
    }

    /// How the text goes on: at most `most` tokens, fewer where the draft model becomes unsure.
    ///
    /// Cancel-safe only in that the drafter may be dropped then.
    async fn guess(&mut self, text: &[u32], most: usize) -> Result<Vec<u32>, EngineError> {
        let mut guessed = text.to_vec();
        guessed.extend(beyond(&self.foreseen, text).iter().take(most));
        let mut guessed = self.go_on(guessed, text.len() + most, &CancellationToken::new()).await?;
        Ok(guessed.split_off(text.len()))
    }

    /// Guesses on until a text has `length` tokens, the draft model is unsure, or it is to stop.
    async fn go_on(
        &mut self,
        mut text: Vec<u32>,
        length: usize,
        stop: &CancellationToken,
    ) -> Result<Vec<u32>, EngineError> {
        while text.len() < length && !stop.is_cancelled() && self.knows(&text) {
            match sure(&self.feed(&text).await?, self.common) {
                Some(token) => text.push(token),
                None => break,
            }
        }
        Ok(text)
    }

    /// Whether the draft model has all tokens of a text.
    fn knows(&self, text: &[u32]) -> bool {
        text.iter().all(|token| *token < self.common)
    }

    /// Brings the stage to a text, which is not empty; gives the likeliest token behind it.
    async fn feed(&mut self, text: &[u32]) -> Result<LogitRow, EngineError> {
        let common = self.read.iter().zip(text).take_while(|(one, other)| one == other).count();
        // The last token is computed again where all are known: its logits are wanted.
        let mut done = common.min(text.len().saturating_sub(1));
        let mut rewind = done < self.read.len();
        self.read.truncate(done);
        let chunk = self.lease.stage().spec().config.max_rows.max(1) as usize;
        let mut last = None;
        while done < text.len() {
            let end = text.len().min(done + chunk);
            let mut hidden = Vec::new();
            self.embedder.embed(&text[done..end], &mut hidden)?;
            let slot = self.lease.slot();
            let row = |at: usize| Row { slot, pos: at as u32, want: at + 1 == text.len() };
            let rows = (done..end).map(row).collect();
            let job = StepJob { hidden, rows, reduce: Reduce::Top(1), exact: false, rewind };
            let (output, _) = self.lease.stage().step(job).await?;
            self.read.extend_from_slice(&text[done..end]);
            (done, rewind) = (end, false);
            if let StepOutput::Logits(rows) = output {
                last = rows.into_iter().next();
            }
        }
        let nothing = || EngineError::Step { engine: "draft model", reason: "it gave no logits".to_owned() };
        last.ok_or_else(nothing)
    }
}

/// What was foreseen behind a text; nothing where that came to be another.
fn beyond<'a>(foreseen: &'a [u32], text: &[u32]) -> &'a [u32] {
    foreseen.strip_prefix(text).unwrap_or_default()
}

/// A draft model at work for an answer: it waits to be asked, or guesses on by itself meanwhile.
pub struct Drafting {
    /// Nothing where it failed.
    work: Option<Work>,
    tasks: TaskSet,
}

enum Work {
    Waits(Box<Drafter>),
    /// It comes back, behind the token at hand where `_stop` was dropped.
    GoesOn {
        _stop: DropGuard,
        back: oneshot::Receiver<Result<Box<Drafter>, EngineError>>,
    },
}

impl Drafting {
    /// With this draft model, or without any.
    pub fn new(drafter: Option<Drafter>, tasks: TaskSet) -> Self {
        Self { work: drafter.map(|drafter| Work::Waits(Box::new(drafter))), tasks }
    }

    /// How the text goes on, at most `most` tokens, and what guessing them took; nothing where the draft model failed, now or
    /// before. What it reads for the first time says nothing about what a window costs, and is left out of the time.
    ///
    /// Cancel-safe only in that it may be dropped then.
    pub async fn ask(&mut self, text: &[u32], most: usize) -> Option<(Vec<u32>, Duration)> {
        let asked = Instant::now();
        let mut drafter = self.waiting().await?;
        let waited = asked.elapsed();
        match drafter.ask(text, most).await {
            Ok((guesses, took)) => {
                self.work = Some(Work::Waits(drafter));
                Some((guesses, waited + took))
            }
            Err(error) => given_up(&error),
        }
    }

    /// Guesses on behind a text whose last tokens are guesses themselves, at most `most`, until it is asked again or dropped.
    pub fn foresee(&mut self, text: Vec<u32>, most: usize) {
        let Some(Work::Waits(mut drafter)) = self.work.take() else { return };
        let ((done, back), stop) = (oneshot::channel(), CancellationToken::new());
        let stopped = stop.clone();
        self.tasks.spawn("a draft model that guesses on", async move {
            let length = text.len() + most;
            let foreseen = drafter.go_on(text, length, &stopped).await;
            // Who asked may be gone.
            let _ = done.send(foreseen.map(|text| {
                drafter.foreseen = text;
                drafter
            }));
        });
        self.work = Some(Work::GoesOn { _stop: stop.drop_guard(), back });
    }

    /// The draft model, which does no more than is asked of it. Until it is put back there is none.
    async fn waiting(&mut self) -> Option<Box<Drafter>> {
        let back = match self.work.take()? {
            Work::Waits(drafter) => return Some(drafter),
            Work::GoesOn { _stop, back } => back,
        };
        back.await.unwrap_or(Err(EngineError::Gone)).map_or_else(|error| given_up(&error), Some)
    }
}

/// A draft that fails ends the guessing, not the answer.
fn given_up<T>(error: &EngineError) -> Option<T> {
    tracing::warn!(%error, "the draft model is given up");
    None
}

/// The best token of a row, where it is a sure one and one of the `common` tokens.
fn sure(row: &LogitRow, common: u32) -> Option<u32> {
    let LogitRow::Top { lse, ids, logits } = row else { return None };
    let (token, logit) = ids.first().zip(logits.first())?;
    ((logit - lse).exp() >= SURE && *token < common).then_some(*token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_foreseen_is_of_use_where_the_text_came_to_be_that() {
        assert_eq!(beyond(&[1, 2, 3, 4], &[1, 2]), [3, 4]);
        assert!(beyond(&[1, 2, 3, 4], &[1, 3]).is_empty(), "another token was chosen");
        assert!(beyond(&[1, 2], &[1, 2, 3]).is_empty(), "the text went further");
        assert!(beyond(&[], &[1]).is_empty());
    }

    #[test]
    fn a_token_that_the_answering_model_lacks_is_never_guessed() {
        let row = |token, logit| LogitRow::Top { lse: 0.0, ids: vec![token], logits: vec![logit] };
        assert_eq!(sure(&row(7, -0.1), 8), Some(7));
        assert_eq!(sure(&row(8, -0.1), 8), None);
        assert_eq!(sure(&row(7, -1.0), 8), None);
    }
}
