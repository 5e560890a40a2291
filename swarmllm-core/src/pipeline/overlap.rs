//! How long the chunks of a prompt are, so that all stages of a route work at once.
//!
//! While a chunk is at one stage, the next one can be at the stage before. Long chunks leave stages idle at the beginning
//! and at the end; short ones pay what each step costs however few rows it has (the weights are read once per step). Let
//! a step of `c` rows take `f + c r` at the slowest stage, `k = f / r`. A prompt of `p` rows then takes, over `s` stages,
//! `(p / c + s - 1) (f + c r)`, which is least for `c = sqrt(p k / (s - 1))`.
//!
//! `k` is learnt of each model from its answers: the time of a decoded token against that of a row of a prompt, at the
//! stage whose rows took longest. An answer that must be exact keeps the chunks of a plain run.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::base::ModelId;

/// Models of which `k` is remembered; beyond that all is learnt anew.
const MODELS: usize = 256;
/// `k` of a model that has not answered yet.
const UNKNOWN: f64 = 16.0;
/// Bounds of what is learnt: measurements of single steps may be anything.
const LEAST: f64 = 1.0;
const MOST: f64 = 512.0;
/// Weight of a new measurement.
const FRESH: f64 = 0.5;
/// Fewest rows of a chunk: shorter steps would be computed together with tokens of other answers, as if they were some.
const SHORTEST: u32 = 64;

/// What is known of the speeds of models' routes. See the module.
#[derive(Debug, Default)]
pub struct Overlap {
    fixed: Mutex<HashMap<ModelId, f64>>,
}

impl Overlap {
    /// Rows of the chunks of a prompt of which `rows` are left to compute, over so many stages that admit `max_rows`.
    pub fn chunk(&self, model: ModelId, rows: usize, stages: usize, max_rows: u32) -> u32 {
        if stages < 2 {
            return max_rows;
        }
        let fixed = self.locked().get(&model).copied().unwrap_or(UNKNOWN);
        let best = (rows as f64 * fixed / (stages - 1) as f64).sqrt();
        // Chunks of equal length: a short last one would be a step that hardly pays.
        let chunks = (rows as f64 / best).round().max(1.0);
        let even = (rows as f64 / chunks).ceil() as u32;
        even.max(SHORTEST).min(max_rows)
    }

    /// Takes what a stage took: microseconds of a prompt's rows together, and of a decoded token.
    pub fn learn(&self, model: ModelId, prefill_us: u64, rows: u32, token_us: u32) {
        if prefill_us == 0 || rows < SHORTEST {
            return;
        }
        let row_us = prefill_us as f64 / f64::from(rows);
        let measured = ((f64::from(token_us) - row_us) / row_us).clamp(LEAST, MOST);
        let mut fixed = self.locked();
        if fixed.len() >= MODELS && !fixed.contains_key(&model) {
            fixed.clear();
        }
        fixed.entry(model).and_modify(|known| *known += FRESH * (measured - *known)).or_insert(measured);
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<ModelId, f64>> {
        self.fixed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelId = ModelId([7; 32]);

    /// What a prompt takes, in the time of a row.
    fn time(rows: u32, stages: u32, fixed: f64, chunk: u32) -> f64 {
        let chunks = f64::from(rows.div_ceil(chunk));
        (chunks + f64::from(stages - 1)) * (fixed + f64::from(chunk))
    }

    #[test]
    fn a_chunk_is_nearly_the_best_one_there_is() {
        for (fixed, stages, rows) in [(5, 2, 512), (5, 3, 2048), (50, 2, 512), (50, 4, 4096), (300, 2, 1000)] {
            let overlap = Overlap::default();
            overlap.learn(MODEL, 1000 * 100, 100, 1000 * (fixed + 1));
            let time = |chunk| time(rows, stages, f64::from(fixed), chunk);
            let chunk = overlap.chunk(MODEL, rows as usize, stages as usize, 512);
            let best = (SHORTEST..=512).map(time).fold(f64::INFINITY, f64::min);
            assert!(time(chunk) < 1.1 * best, "{fixed} {stages} {rows}: {chunk}");
        }
    }

    #[test]
    fn one_stage_gets_whole_chunks_and_no_chunk_is_longer_than_a_step_or_shorter_than_the_least() {
        let overlap = Overlap::default();
        assert_eq!(overlap.chunk(MODEL, 2000, 1, 512), 512);
        assert_eq!(overlap.chunk(MODEL, 1, 2, 512), SHORTEST);
        assert_eq!(overlap.chunk(MODEL, 100_000, 2, 512), 512);
        assert_eq!(overlap.chunk(MODEL, 100_000, 2, 8), 8);
        for (prefill, rows, token) in [(0, 100, 5), (1, 0, 5), (1, u32::MAX, u32::MAX), (u64::MAX, 100, 0)] {
            overlap.learn(MODEL, prefill, rows, token);
            assert!((SHORTEST..=512).contains(&overlap.chunk(MODEL, 700, 3, 512)));
        }
    }
}
