//! Guesses ahead by a second, smaller model, which this node computes itself.
//!
//! The draft model reads what the answer has come to and says what it would go on with; the stages of the answering model
//! then compute all of that in one step. What is kept is decided by the session, so that a draft never changes what is
//! said. (Speculative decoding, Leviathan et al. 2023, with a draft that is taken at its likeliest token.)

use std::sync::Arc;

use crate::engine::sample::LogitRow;
use crate::engine::{Embedder, EngineError, Reduce, Row, StepJob, StepOutput};
use crate::pipeline::draft::{Draft, MAX_GUESSES};
use crate::pipeline::stages::Lease;

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
}

impl Drafter {
    /// A drafter that has read nothing; the lease is of a stage with all layers and the head. Tokens below `common` are
    /// the draft model's and the answering model's alike. It guesses no others, and nothing behind a text that has others.
    pub fn new(lease: Lease, embedder: Arc<dyn Embedder>, common: u32, draft: Draft) -> Self {
        Self { lease, embedder, common, draft, read: Vec::new() }
    }

    /// What its guesses are weighed by.
    pub fn draft(&self) -> Draft {
        self.draft
    }

    /// Reads a text without saying how it goes on, where it has not read so much of it that a guess would take long.
    ///
    /// Cancel-safe only in that the drafter may be dropped then.
    pub async fn catch_up(&mut self, text: &[u32]) -> Result<(), EngineError> {
        match text.len() > self.read.len() + MAX_GUESSES && self.knows(text) {
            true => self.feed(text).await.map(drop),
            false => Ok(()),
        }
    }

    /// How the text goes on: at most `most` tokens, fewer where the draft model becomes unsure.
    ///
    /// Cancel-safe only in that the drafter may be dropped then.
    pub async fn guess(&mut self, text: &[u32], most: usize) -> Result<Vec<u32>, EngineError> {
        let mut text = text.to_vec();
        let begin = text.len();
        while text.len() - begin < most && self.knows(&text) {
            match sure(&self.feed(&text).await?, self.common) {
                Some(token) => text.push(token),
                None => break,
            }
        }
        Ok(text.split_off(begin))
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
    fn a_token_that_the_answering_model_lacks_is_never_guessed() {
        let row = |token, logit| LogitRow::Top { lse: 0.0, ids: vec![token], logits: vec![logit] };
        assert_eq!(sure(&row(7, -0.1), 8), Some(7));
        assert_eq!(sure(&row(8, -0.1), 8), None);
        assert_eq!(sure(&row(7, -1.0), 8), None);
    }
}
