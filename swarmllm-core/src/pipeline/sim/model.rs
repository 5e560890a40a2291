//! The simulated model. Its layers are [`EchoStage`]'s: each number depends on the whole earlier KV of the session, so
//! that rows that are wrong, stale, missing or another session's change the answer. In exact mode the numbers also
//! depend on the shapes of the steps, as real ones do by the rounding of sums. The head prefers a pattern, so that
//! draft tokens may be accepted.

use super::rng::scatter;
use crate::base::{LayerRange, ModelId};
use crate::engine::echo::{EchoEmbedder, EchoStage};
use crate::engine::sample::{LogitRow, log_sum_exp, top};
use crate::engine::{Embedder, EngineError, KvType, Reduce, Stage, StageConfig, StepJob, StepOptions, StepOutput};

pub const MODEL: ModelId = ModelId([5; 32]);
pub const VOCAB: u32 = 12;
pub const WIDTH: u32 = 2;
/// Ends an answer; rarely sampled.
pub const END: u32 = VOCAB - 1;
/// Most positions of a session.
const CONTEXT: u32 = 512;
const SEED: u64 = 77;

/// A stage with the KV of one session.
pub struct Layers {
    echo: EchoStage,
    first: bool,
}

impl Layers {
    pub fn new(layers: LayerRange, head: bool, max_rows: u32) -> Self {
        let config = StageConfig {
            context: CONTEXT,
            max_sessions: 1,
            max_rows,
            threads: 1,
            kv: KvType::Full,
            ..StageConfig::default()
        };
        Self { echo: EchoStage::new(SEED, layers, WIDTH, head.then_some(VOCAB), config), first: layers.start == 0 }
    }

    /// Keeps the first positions.
    pub fn truncate(&mut self, len: u32) -> Result<(), EngineError> {
        self.echo.truncate(0, len)
    }

    pub fn compute(&mut self, mut job: StepJob) -> Result<StepOutput, EngineError> {
        let first = job.rows.first().map_or(0, |row| row.pos);
        if job.rewind {
            self.truncate(first)?;
        }
        if self.first && job.exact {
            let rows = job.rows.len() as f32;
            job.hidden.iter_mut().for_each(|value| *value += rows);
        }
        let mut out = Vec::new();
        self.echo.compute(&job.hidden, &job.rows, StepOptions { states: true, ..StepOptions::default() }, &mut out)?;
        if job.reduce == Reduce::Hidden {
            return Ok(StepOutput::Hidden(out));
        }
        let wanted = job.rows.iter().filter(|row| row.want);
        let rows =
            wanted.zip(out.chunks(WIDTH as usize)).map(|(row, state)| reduce(&logits(row.pos, state), job.reduce));
        Ok(StepOutput::Logits(rows.collect()))
    }
}

/// The token that the head prefers behind this position.
pub fn liked(pos: u32) -> u32 {
    (pos / 3) % 5
}

fn logits(pos: u32, state: &[f32]) -> Vec<f32> {
    let digest = state.iter().fold(0, |digest, value| scatter(digest ^ u64::from(value.to_bits())));
    let noise = |token: u32| (scatter(digest ^ u64::from(token + 1)) >> 40) as f32 / (1u32 << 24) as f32;
    (0..VOCAB).map(|token| 10.0 * noise(token) + if token == liked(pos) { 7.0 } else { 0.0 }).collect()
}

fn reduce(logits: &[f32], reduce: Reduce) -> LogitRow {
    let Reduce::Top(k) = reduce else { return LogitRow::Full(logits.to_vec()) };
    let mut best = Vec::new();
    top(logits, k as usize, &mut best);
    let ids = best.iter().map(|candidate| candidate.token).collect();
    LogitRow::Top { lse: log_sum_exp(logits), ids, logits: best.iter().map(|candidate| candidate.logit).collect() }
}

/// The states of tokens.
pub fn embed(tokens: &[u32]) -> Vec<f32> {
    let mut hidden = Vec::new();
    EchoEmbedder::new(SEED, WIDTH, VOCAB).embed(tokens, &mut hidden).unwrap();
    hidden
}
