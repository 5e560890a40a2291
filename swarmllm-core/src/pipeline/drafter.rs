//! Guesses ahead by a second, smaller model, which this node computes itself.
//!
//! The draft model reads what the answer has come to and says what it would go on with; the stages of the answering model
//! then compute all of that in one step. What is kept is decided by the session, so that a draft never changes what is
//! said. (Speculative decoding, Leviathan et al. 2023, with a draft that is taken at its likeliest token.)

use std::sync::Arc;

use crate::engine::sample::LogitRow;
use crate::engine::{Embedder, EngineError, Reduce, Row, StepJob, StepOutput};
use crate::pipeline::stages::Lease;

/// A guess that the draft model itself holds for less likely than this is not made, nor any behind it.
const SURE: f32 = 0.4;

/// A draft model, and what it has read.
pub struct Drafter {
    lease: Lease,
    embedder: Arc<dyn Embedder>,
    /// The text whose KV its stage has.
    read: Vec<u32>,
}

impl Drafter {
    /// A drafter that has read nothing; the lease is of a stage with all layers and the head.
    pub fn new(lease: Lease, embedder: Arc<dyn Embedder>) -> Self {
        Self { lease, embedder, read: Vec::new() }
    }

    /// Whether it has read so much of a text that a guess takes no long.
    pub fn is_ready(&self) -> bool {
        !self.read.is_empty()
    }

    /// Reads a text without saying how it goes on.
    ///
    /// Cancel-safe only in that the drafter may be dropped then.
    pub async fn read(&mut self, text: &[u32]) -> Result<(), EngineError> {
        self.feed(text).await.map(drop)
    }

    /// How the text goes on: at most `most` tokens, fewer where the draft model becomes unsure.
    ///
    /// Cancel-safe only in that the drafter may be dropped then.
    pub async fn guess(&mut self, text: &[u32], most: usize) -> Result<Vec<u32>, EngineError> {
        let mut text = text.to_vec();
        let begin = text.len();
        while text.len() - begin < most {
            let LogitRow::Top { lse, ids, logits } = self.feed(&text).await? else { break };
            match (ids.first(), logits.first()) {
                (Some(token), Some(logit)) if (logit - lse).exp() >= SURE => text.push(*token),
                _ => break,
            }
        }
        Ok(text.split_off(begin))
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
