//! Draft tokens of a second, smaller model, which this node computes itself.
//!
//! The draft model reads the answer so far and proposes its continuation; the stages of the answering model then
//! compute all of that in one step. The session decides which tokens it accepts, so a draft never changes the text.
//! (Speculative decoding, Leviathan et al. 2023, with the draft's most likely token.)
//!
//! Over distant stages a window spends most of its time on the network while this node is idle. Meanwhile the draft
//! model drafts ahead: it continues behind the window as if all its tokens were accepted. If they are, the next window
//! is ready.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::engine::sample::LogitRow;
use crate::engine::{Embedder, EngineError, Reduce, Row, StepJob, StepOutput};
use crate::pipeline::host::stages::SlotLease;
use crate::pipeline::session::speculation::{DraftContinuation, DraftLimits, DraftModel, DraftToken};
use crate::rt::TaskSet;

/// Unread tokens of a text that are read together with the first draft token, and not before.
const READ_WITH_DRAFT: usize = 4;
/// Least probability of use for a token drafted ahead: drafting takes cores even where nothing waits for it.
const MIN_AHEAD_PROBABILITY: f32 = 0.2;

/// A draft model and the text in its KV.
pub struct Drafter {
    lease: SlotLease,
    embedder: Arc<dyn Embedder>,
    /// Tokens below this mean the same in both models; the vocabularies may be padded to different lengths.
    common: u32,
    draft: DraftModel,
    /// The text in the KV of its stage, from position `begin` of the whole text on.
    read: Vec<u32>,
    begin: usize,
    /// Whether the KV is of a text that begins elsewhere.
    moved: bool,
    /// Tokens drafted ahead; mostly none.
    drafted_ahead: DraftedAhead,
}

/// Tokens drafted ahead behind a text.
#[derive(Default)]
struct DraftedAhead {
    behind: Vec<u32>,
    made: Vec<DraftToken>,
}

impl DraftedAhead {
    /// The tokens behind `text`; empty where the text came out different.
    fn behind_text(&self, text: &[u32]) -> &[DraftToken] {
        let Some(came) = text.strip_prefix(self.behind.as_slice()) else { return &[] };
        let right =
            came.len() <= self.made.len() && came.iter().zip(&self.made).all(|(came, made)| *came == made.token);
        if right { &self.made[came.len()..] } else { &[] }
    }
}

impl Drafter {
    /// A drafter that has read nothing. The lease is of a stage with all layers and the head. Tokens below `common` are
    /// the same in both models; the drafter proposes no others, and nothing behind a text with others.
    pub fn new(lease: SlotLease, embedder: Arc<dyn Embedder>, common: u32, draft: DraftModel) -> Self {
        Self {
            lease,
            embedder,
            common,
            draft,
            read: Vec::new(),
            begin: 0,
            moved: false,
            drafted_ahead: DraftedAhead::default(),
        }
    }

    /// The draft model as its policy weighs it.
    pub fn draft(&self) -> DraftModel {
        self.draft
    }

    /// See [`Drafting::ask`].
    async fn ask(&mut self, text: &[u32], limits: DraftLimits) -> Result<(DraftContinuation, Duration), EngineError> {
        let (_, before) = text.split_last().unwrap_or((&0, &[]));
        let read = self.read_text(before, limits.max_read).await?;
        let begun = Instant::now();
        let (known, tokens) = (self.drafted_ahead.behind_text(text).len(), self.continue_text(text, limits).await?);
        let made = tokens.len().saturating_sub(known);
        Ok((DraftContinuation { tokens, made, read }, begun.elapsed()))
    }

    /// Reads a text without continuing it, where more than [`READ_WITH_DRAFT`] tokens are unread; returns how many it
    /// read. Of a text with more than `max` unread tokens, and more unread than read, it reads only the end, as if the
    /// text began there.
    ///
    /// Not cancel-safe: drop the drafter after a cancellation.
    async fn read_text(&mut self, text: &[u32], max: usize) -> Result<usize, EngineError> {
        let has = common(&self.read, text.get(self.begin..).unwrap_or_default());
        let unread = text.len() - self.begin.min(text.len()) - has;
        if unread > max.max(has) {
            self.restart_at(text.len() - max);
        } else if self.begin > 0 && text.len() <= max {
            self.restart_at(0);
        }
        let read =
            text.len() - self.begin.min(text.len()) - common(&self.read, text.get(self.begin..).unwrap_or_default());
        if read <= READ_WITH_DRAFT || !self.knows(text) {
            return Ok(0);
        }
        self.feed(text).await.map(|_| read)
    }

    /// Drops the KV and takes the text to begin at `begin`.
    fn restart_at(&mut self, begin: usize) {
        (self.begin, self.moved) = (begin, true);
        self.read.clear();
    }

    /// Continues the text within the limits; returns each token with its probability.
    ///
    /// Not cancel-safe: drop the drafter after a cancellation.
    async fn continue_text(&mut self, text: &[u32], limits: DraftLimits) -> Result<Vec<DraftToken>, EngineError> {
        let known = self.drafted_ahead.behind_text(text).iter().take(limits.max_tokens).copied().collect();
        self.draft_behind(text.to_vec(), known, limits, &CancellationToken::new()).await
    }

    /// Drafts behind a text and the tokens drafted already, up to the token limit, a joint probability below the limit,
    /// or a stop.
    async fn draft_behind(
        &mut self,
        mut text: Vec<u32>,
        mut made: Vec<DraftToken>,
        limits: DraftLimits,
        stop: &CancellationToken,
    ) -> Result<Vec<DraftToken>, EngineError> {
        text.extend(made.iter().map(|made| made.token));
        let mut probability: f32 = made.iter().map(|made| made.probability).product();
        while made.len() < limits.max_tokens && (made.is_empty() || probability >= limits.min_probability) {
            if stop.is_cancelled() || !self.knows(&text) {
                break;
            }
            let Some(next) = likeliest(&self.feed(&text).await?, self.common) else { break };
            probability *= next.probability;
            text.push(next.token);
            made.push(next);
        }
        Ok(made)
    }

    /// Whether the draft model has all tokens of a text.
    fn knows(&self, text: &[u32]) -> bool {
        text.iter().all(|token| *token < self.common)
    }

    /// Brings the KV of the stage to a text, from `begin` on; returns the most likely token behind it.
    async fn feed(&mut self, text: &[u32]) -> Result<LogitRow, EngineError> {
        let text = text.get(self.begin..).unwrap_or_default();
        // The last token is always computed, for its logits.
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
        let nothing = || EngineError::Step { engine: "draft model", reason: "the step returned no logits".to_owned() };
        last.ok_or_else(nothing)
    }
}

/// Length of the common prefix of two texts.
fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}

/// A draft model in use by an answer: it waits to be asked, or drafts ahead.
pub struct Drafting {
    /// `None` where it failed.
    work: Option<Work>,
    tasks: TaskSet,
}

enum Work {
    Idle(Box<Drafter>),
    /// The drafter comes back when it is done, or behind the current token once `_stop` is dropped.
    DraftingAhead {
        _stop: DropGuard,
        back: oneshot::Receiver<Result<Box<Drafter>, EngineError>>,
    },
}

impl Drafting {
    /// Uses this draft model, or none.
    pub fn new(drafter: Option<Drafter>, tasks: TaskSet) -> Self {
        Self { work: drafter.map(|drafter| Work::Idle(Box::new(drafter))), tasks }
    }

    /// Continues the text; returns the tokens with their probabilities and the time that drafting took, or `None` where
    /// the draft model failed, now or before. The time leaves out the first read of the text, which says nothing about
    /// the cost of a window.
    ///
    /// Not cancel-safe: drop this after a cancellation.
    pub async fn ask(&mut self, text: &[u32], limits: DraftLimits) -> Option<(DraftContinuation, Duration)> {
        let asked = Instant::now();
        let mut drafter = self.take_idle().await?;
        let waited = asked.elapsed();
        match drafter.ask(text, limits).await {
            Ok((draft, drafting)) => {
                self.work = Some(Work::Idle(drafter));
                Some((draft, waited + drafting))
            }
            Err(error) => give_up(&error),
        }
    }

    /// Drafts ahead behind a text that ends with draft tokens, at most `max_tokens`, until the next request or the drop
    /// of this.
    pub fn draft_ahead(&mut self, text: Vec<u32>, max_tokens: usize) {
        let Some(Work::Idle(mut drafter)) = self.work.take() else { return };
        let ((done, back), stop) = (oneshot::channel(), CancellationToken::new());
        let stopped = stop.clone();
        self.tasks.spawn("a draft model that drafts ahead", async move {
            // Nothing waits for these tokens.
            let limits = DraftLimits { max_tokens, max_read: usize::MAX, min_probability: MIN_AHEAD_PROBABILITY };
            let made = drafter.draft_behind(text.clone(), Vec::new(), limits, &stopped).await;
            // The receiver may be gone.
            let _ = done.send(made.map(|made| {
                drafter.drafted_ahead = DraftedAhead { behind: text, made };
                drafter
            }));
        });
        self.work = Some(Work::DraftingAhead { _stop: stop.drop_guard(), back });
    }

    /// Takes the draft model out, after the end of a draft ahead. Until it is put back there is none.
    async fn take_idle(&mut self) -> Option<Box<Drafter>> {
        let back = match self.work.take()? {
            Work::Idle(drafter) => return Some(drafter),
            Work::DraftingAhead { _stop, back } => back,
        };
        back.await.unwrap_or(Err(EngineError::Gone)).map_or_else(|error| give_up(&error), Some)
    }
}

/// A failed draft model ends the speculation, not the answer.
fn give_up<T>(error: &EngineError) -> Option<T> {
    tracing::warn!(%error, "the draft model is given up");
    None
}

/// The most likely token of a row and its probability, if it is one of the `common` tokens.
fn likeliest(row: &LogitRow, common: u32) -> Option<DraftToken> {
    let LogitRow::Top { lse, ids, logits } = row else { return None };
    let (token, logit) = ids.first().zip(logits.first())?;
    (*token < common).then(|| DraftToken { token: *token, probability: (logit - lse).exp() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(token: u32) -> DraftToken {
        DraftToken { token, probability: 1.0 }
    }

    #[test]
    fn a_draft_ahead_is_used_where_its_tokens_were_accepted() {
        let drafted_ahead = DraftedAhead { behind: vec![1, 2], made: vec![made(3), made(4)] };
        assert_eq!(drafted_ahead.behind_text(&[1, 2]), [made(3), made(4)]);
        assert_eq!(drafted_ahead.behind_text(&[1, 2, 3]), [made(4)]);
        assert!(drafted_ahead.behind_text(&[1, 2, 5]).is_empty(), "another token was sampled");
        assert!(drafted_ahead.behind_text(&[1]).is_empty(), "the request is behind a shorter text");
        assert!(drafted_ahead.behind_text(&[1, 2, 3, 4, 5]).is_empty(), "the text is longer");
        assert!(DraftedAhead::default().behind_text(&[1]).is_empty());
    }

    #[test]
    fn a_token_that_the_answering_model_lacks_is_never_proposed() {
        let row = |token, logit| LogitRow::Top { lse: 0.0, ids: vec![token], logits: vec![logit] };
        assert_eq!(likeliest(&row(7, 0.0), 8), Some(made(7)));
        assert_eq!(likeliest(&row(8, 0.0), 8), None);
    }
}
