//! Length of a prompt's chunks, chosen so that all stages of a route work at once.
//!
//! While one stage computes a chunk, the stage before can compute the next. Long chunks leave stages idle at the
//! beginning and at the end; short ones pay the fixed cost of each step (the weights are read once per step). Let a
//! step of `c` rows take `f + c r` at the slowest stage, and `k = f / r`. A prompt of `p` rows then takes `(p / c + s -
//! 1) (f + c r)` over `s` stages, which is minimal for `c = sqrt(p k / (s - 1))`.
//!
//! `k` is measured for each model from its answers: the time of a decoded token against that of a prompt row, at the
//! stage with the slowest rows. An exact answer keeps the chunks of a plain run.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::base::ModelId;

/// Models whose `k` is remembered; one more clears all.
const MAX_MODELS: usize = 256;
/// `k` of a model without answers.
const DEFAULT_K: f64 = 16.0;
/// Bounds of a measured `k`, because a single step may take any time.
const MIN_K: f64 = 1.0;
const MAX_K: f64 = 512.0;
/// Weight of a new measurement.
const NEW_WEIGHT: f64 = 0.5;
/// Fewest rows of a chunk. Shorter steps would be batched with tokens of other answers as if they were tokens.
const MIN_CHUNK: u32 = 64;

/// Measured `k` by model. See the module.
#[derive(Debug, Default)]
pub struct ChunkPolicy {
    k: Mutex<HashMap<ModelId, f64>>,
}

impl ChunkPolicy {
    /// Rows of a chunk, for a prompt with `rows` rows to compute over `stages` stages that admit `max_rows`.
    pub fn chunk(&self, model: ModelId, rows: usize, stages: usize, max_rows: u32) -> u32 {
        if stages < 2 {
            return max_rows;
        }
        let k = self.locked().get(&model).copied().unwrap_or(DEFAULT_K);
        let best = (rows as f64 * k / (stages - 1) as f64).sqrt();
        // Chunks of equal length: a short last one hardly pays for its step.
        let chunks = (rows as f64 / best).round().max(1.0);
        let even = (rows as f64 / chunks).ceil() as u32;
        even.max(MIN_CHUNK).min(max_rows)
    }

    /// Records a measurement of a stage: microseconds of `rows` prompt rows together, and of a decoded token.
    pub fn record(&self, model: ModelId, prefill_us: u64, rows: u32, token_us: u32) {
        if prefill_us == 0 || rows < MIN_CHUNK {
            return;
        }
        let row_us = prefill_us as f64 / f64::from(rows);
        let measured = ((f64::from(token_us) - row_us) / row_us).clamp(MIN_K, MAX_K);
        let mut known = self.locked();
        if known.len() >= MAX_MODELS && !known.contains_key(&model) {
            known.clear();
        }
        known.entry(model).and_modify(|k| *k += NEW_WEIGHT * (measured - *k)).or_insert(measured);
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<ModelId, f64>> {
        self.k.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelId = ModelId([7; 32]);

    /// Time of a prompt, in times of a row.
    fn time(rows: u32, stages: u32, fixed: f64, chunk: u32) -> f64 {
        let chunks = f64::from(rows.div_ceil(chunk));
        (chunks + f64::from(stages - 1)) * (fixed + f64::from(chunk))
    }

    #[test]
    fn a_chunk_is_within_a_tenth_of_the_optimum() {
        for (fixed, stages, rows) in [(5, 2, 512), (5, 3, 2048), (50, 2, 512), (50, 4, 4096), (300, 2, 1000)] {
            let policy = ChunkPolicy::default();
            policy.record(MODEL, 1000 * 100, 100, 1000 * (fixed + 1));
            let time = |chunk| time(rows, stages, f64::from(fixed), chunk);
            let chunk = policy.chunk(MODEL, rows as usize, stages as usize, 512);
            let best = (MIN_CHUNK..=512).map(time).fold(f64::INFINITY, f64::min);
            assert!(time(chunk) < 1.1 * best, "{fixed} {stages} {rows}: {chunk}");
        }
    }

    #[test]
    fn one_stage_gets_whole_chunks_and_all_chunks_are_bounded() {
        let policy = ChunkPolicy::default();
        assert_eq!(policy.chunk(MODEL, 2000, 1, 512), 512);
        assert_eq!(policy.chunk(MODEL, 1, 2, 512), MIN_CHUNK);
        assert_eq!(policy.chunk(MODEL, 100_000, 2, 512), 512);
        assert_eq!(policy.chunk(MODEL, 100_000, 2, 8), 8);
        for (prefill, rows, token) in [(0, 100, 5), (1, 0, 5), (1, u32::MAX, u32::MAX), (u64::MAX, 100, 0)] {
            policy.record(MODEL, prefill, rows, token);
            assert!((MIN_CHUNK..=512).contains(&policy.chunk(MODEL, 700, 3, 512)));
        }
    }
}
