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
use crate::pipeline::draft::{Draft, DraftToken, Drafted, Horizon};
use crate::pipeline::stages::Lease;
use crate::rt::TaskSet;

/// Tokens of a text that are read with the first guess behind it.
const AT_ONCE: usize = 4;
/// What nobody waits for is made as long as it is used with at least this chance: it takes cores all the same.
const FORESEEN: f32 = 0.2;

/// A draft model, and what it has read.
pub struct Drafter {
    lease: Lease,
    embedder: Arc<dyn Embedder>,
    /// Tokens below this mean the same in both models; the vocabularies may be padded to different lengths.
    common: u32,
    draft: Draft,
    /// The text whose KV its stage has, from a position of the whole text on.
    read: Vec<u32>,
    begin: usize,
    /// Whether it has a KV of a text that begins elsewhere.
    moved: bool,
    /// What was made before anybody asked for it; mostly nothing.
    foreseen: Foreseen,
}

/// Tokens with their chances, behind a text.
#[derive(Default)]
struct Foreseen {
    behind: Vec<u32>,
    made: Vec<DraftToken>,
}

impl Foreseen {
    /// What was made behind a text; nothing where that came to be another.
    fn beyond(&self, text: &[u32]) -> &[DraftToken] {
        let Some(came) = text.strip_prefix(self.behind.as_slice()) else { return &[] };
        let right =
            came.len() <= self.made.len() && came.iter().zip(&self.made).all(|(came, made)| *came == made.token);
        if right { &self.made[came.len()..] } else { &[] }
    }
}

impl Drafter {
    /// A drafter that has read nothing; the lease is of a stage with all layers and the head. Tokens below `common` are
    /// the draft model's and the answering model's alike. It guesses no others, and nothing behind a text that has others.
    pub fn new(lease: Lease, embedder: Arc<dyn Embedder>, common: u32, draft: Draft) -> Self {
        Self { lease, embedder, common, draft, read: Vec::new(), begin: 0, moved: false, foreseen: Foreseen::default() }
    }

    /// What its guesses are weighed by.
    pub fn draft(&self) -> Draft {
        self.draft
    }

    /// See [`Drafting::ask`].
    async fn ask(&mut self, text: &[u32], horizon: Horizon) -> Result<(Drafted, Duration), EngineError> {
        let (_, before) = text.split_last().unwrap_or((&0, &[]));
        let read = self.catch_up(before, horizon.read).await?;
        let begun = Instant::now();
        let (known, tokens) = (self.foreseen.beyond(text).len(), self.guess(text, horizon).await?);
        let made = tokens.len().saturating_sub(known);
        Ok((Drafted { tokens, made, read }, begun.elapsed()))
    }

    /// Reads a text without saying how it goes on, where it has not read so much of it that a guess would take long; says how
    /// much that was. What is more than `most` tokens, and more than it has read, it does not read but for its end, as if the
    /// text began there.
    ///
    /// Cancel-safe only in that the drafter may be dropped then.
    async fn catch_up(&mut self, text: &[u32], most: usize) -> Result<usize, EngineError> {
        let has = common(&self.read, text.get(self.begin..).unwrap_or_default());
        let unread = text.len() - self.begin.min(text.len()) - has;
        if unread > most.max(has) {
            self.begin_at(text.len() - most);
        } else if self.begin > 0 && text.len() <= most {
            self.begin_at(0);
        }
        let read =
            text.len() - self.begin.min(text.len()) - common(&self.read, text.get(self.begin..).unwrap_or_default());
        if read <= AT_ONCE || !self.knows(text) {
            return Ok(0);
        }
        self.feed(text).await.map(|_| read)
    }

    /// Forgets what it has read, and takes the text to begin there.
    fn begin_at(&mut self, begin: usize) {
        (self.begin, self.moved) = (begin, true);
        self.read.clear();
    }

    /// How the text goes on, as far as the horizon, with the chance of each token behind those before.
    ///
    /// Cancel-safe only in that the drafter may be dropped then.
    async fn guess(&mut self, text: &[u32], horizon: Horizon) -> Result<Vec<DraftToken>, EngineError> {
        let known = self.foreseen.beyond(text).iter().take(horizon.most).copied().collect();
        self.go_on(text.to_vec(), known, horizon, &CancellationToken::new()).await
    }

    /// Makes tokens behind a text and those that are there, until there are as many as the horizon says, their chance
    /// together is below what it says, or it is to stop.
    async fn go_on(
        &mut self,
        mut text: Vec<u32>,
        mut made: Vec<DraftToken>,
        horizon: Horizon,
        stop: &CancellationToken,
    ) -> Result<Vec<DraftToken>, EngineError> {
        text.extend(made.iter().map(|made| made.token));
        let mut chance: f32 = made.iter().map(|made| made.chance).product();
        while made.len() < horizon.most && (made.is_empty() || chance >= horizon.least) {
            if stop.is_cancelled() || !self.knows(&text) {
                break;
            }
            let Some(next) = likeliest(&self.feed(&text).await?, self.common) else { break };
            chance *= next.chance;
            text.push(next.token);
            made.push(next);
        }
        Ok(made)
    }

    /// Whether the draft model has all tokens of a text.
    fn knows(&self, text: &[u32]) -> bool {
        text.iter().all(|token| *token < self.common)
    }

    /// Brings the stage to a text, from where it begins to read it; gives the likeliest token behind it.
    async fn feed(&mut self, text: &[u32]) -> Result<LogitRow, EngineError> {
        let text = text.get(self.begin..).unwrap_or_default();
        // The last token is computed again where all are known: its logits are wanted.
        let mut done = common(&self.read, text).min(text.len().saturating_sub(1));
        let mut rewind = done < self.read.len() || std::mem::take(&mut self.moved);
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

/// Tokens that two texts begin with alike.
fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
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

    /// How the text goes on, with the chance of each token, and what making them took; nothing where the draft model failed, now
    /// or before. What it reads for the first time says nothing about what a window costs, and is left out of the time.
    ///
    /// Cancel-safe only in that it may be dropped then.
    pub async fn ask(&mut self, text: &[u32], horizon: Horizon) -> Option<(Drafted, Duration)> {
        let asked = Instant::now();
        let mut drafter = self.waiting().await?;
        let waited = asked.elapsed();
        match drafter.ask(text, horizon).await {
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
            // Nothing waits for it.
            let horizon = Horizon { most, read: usize::MAX, least: FORESEEN };
            let made = drafter.go_on(text.clone(), Vec::new(), horizon, &stopped).await;
            // Who asked may be gone.
            let _ = done.send(made.map(|made| {
                drafter.foreseen = Foreseen { behind: text, made };
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

/// The best token of a row and its chance, where it is one of the `common` tokens.
fn likeliest(row: &LogitRow, common: u32) -> Option<DraftToken> {
    let LogitRow::Top { lse, ids, logits } = row else { return None };
    let (token, logit) = ids.first().zip(logits.first())?;
    (*token < common).then(|| DraftToken { token: *token, chance: (logit - lse).exp() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(token: u32) -> DraftToken {
        DraftToken { token, chance: 1.0 }
    }

    #[test]
    fn what_was_foreseen_is_of_use_where_the_text_came_to_be_that() {
        let foreseen = Foreseen { behind: vec![1, 2], made: vec![made(3), made(4)] };
        assert_eq!(foreseen.beyond(&[1, 2]), [made(3), made(4)]);
        assert_eq!(foreseen.beyond(&[1, 2, 3]), [made(4)]);
        assert!(foreseen.beyond(&[1, 2, 5]).is_empty(), "another token was chosen");
        assert!(foreseen.beyond(&[1]).is_empty(), "it was asked behind more");
        assert!(foreseen.beyond(&[1, 2, 3, 4, 5]).is_empty(), "the text went further");
        assert!(Foreseen::default().beyond(&[1]).is_empty());
    }

    #[test]
    fn a_token_that_the_answering_model_lacks_is_never_guessed() {
        let row = |token, logit| LogitRow::Top { lse: 0.0, ids: vec![token], logits: vec![logit] };
        assert_eq!(likeliest(&row(7, 0.0), 8), Some(made(7)));
        assert_eq!(likeliest(&row(8, 0.0), 8), None);
    }
}
