//! A deterministic engine without weights, for tests and the swarm simulator. Its output is meaningless by design.
//!
//! Its values depend on everything that a split can get wrong: the model, the layer, the position, the hidden state and the
//! slot's history at that layer. A skipped or repeated layer, positions out of order, and a lost or foreign KV each change
//! all later values. Split and whole models give equal values, bit by bit.

use std::sync::Arc;
use std::time::Duration;

use super::slots::Slots;
use super::stage::{kv_cells, tensors_and_scratch};
use super::{CutRules, Embedder, Engine, EngineError, Row, Stage, StageConfig, StageSpec, StepOptions};
use crate::base::LayerRange;
use crate::model::{EmbeddingSource, Manifest, StageSource};

/// The only architecture of [`Echo`], and the engine's name.
pub const ECHO: &str = "echo";

/// Faults of a stage, for tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EchoFaults {
    /// Duration of each step.
    pub delay: Duration,
    /// Duration of loading a stage.
    pub load_delay: Duration,
    /// Index of the step that fails, from 0.
    pub fail_at: Option<u64>,
    /// Index of the step that panics, from 0.
    pub panic_at: Option<u64>,
}

/// The echo engine.
#[derive(Debug, Clone, Default)]
pub struct Echo {
    faults: EchoFaults,
}

impl Echo {
    /// An engine without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// An engine whose stages have these faults.
    pub fn with_faults(faults: EchoFaults) -> Self {
        Self { faults }
    }
}

impl Engine for Echo {
    fn name(&self) -> &'static str {
        ECHO
    }

    fn cuts(&self, manifest: &Manifest) -> Result<CutRules, EngineError> {
        if manifest.architecture != ECHO {
            return Err(EngineError::UnsupportedArchitecture {
                engine: ECHO,
                architecture: manifest.architecture.clone(),
                certified: ECHO.to_owned(),
            });
        }
        Ok(CutRules::any())
    }

    fn memory(&self, manifest: &Manifest, layers: LayerRange, head: bool, config: &StageConfig) -> u64 {
        let states = kv_cells(layers, config.context, config.max_sessions).saturating_mul(size_of::<u64>() as u64);
        tensors_and_scratch(manifest, layers, head, config).saturating_add(states)
    }

    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        let manifest = &source.manifest;
        self.cuts(manifest)?.check(manifest, source.layers)?;
        std::thread::sleep(self.faults.load_delay);
        let vocab = source.head.then_some(manifest.vocab);
        let stage = EchoStage::new(seed_of(manifest), source.layers, manifest.width, vocab, config.clone());
        Ok(Box::new(stage.with_faults(self.faults)))
    }

    fn load_embedder(&self, source: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
        let manifest = &source.manifest;
        self.cuts(manifest)?;
        Ok(Arc::new(EchoEmbedder::new(seed_of(manifest), manifest.width, manifest.vocab)))
    }
}

/// Seed in place of a model's weights, so that two models give different values.
fn seed_of(manifest: &Manifest) -> u64 {
    manifest.id().as_bytes().iter().fold(0, |seed, &byte| mix(seed ^ u64::from(byte)))
}

/// The finaliser of splitmix64: every input bit changes half of the output.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A float in `-0.5..0.5` with 24 significant bits, which every f32 path preserves.
fn float(bits: u64) -> f32 {
    (mix(bits) >> 40) as f32 / (1u32 << 24) as f32 - 0.5
}

fn digest(seed: u64, values: &[f32]) -> u64 {
    values.iter().fold(seed, |digest, value| mix(digest ^ u64::from(value.to_bits())))
}

/// A stage of [`Echo`]. Tests without a manifest create it directly.
pub struct EchoStage {
    spec: StageSpec,
    seed: u64,
    slots: Slots,
    // Per slot the state of every layer after each position: `length * layers` words.
    states: Vec<Vec<u64>>,
    faults: EchoFaults,
    steps: u64,
}

impl EchoStage {
    /// Layers `layers` of the model of `seed`; with the head if there is a `vocab`.
    pub fn new(seed: u64, layers: LayerRange, width: u32, vocab: Option<u32>, config: StageConfig) -> Self {
        let slots = Slots::new(&config);
        let states = vec![Vec::new(); config.max_sessions as usize];
        let spec = StageSpec { engine: ECHO, layers, width, vocab, config, memory: 0 };
        Self { spec, seed, slots, states, faults: EchoFaults::default(), steps: 0 }
    }

    /// The same stage with these faults.
    pub fn with_faults(self, faults: EchoFaults) -> Self {
        Self { faults, ..self }
    }

    fn layers(&self) -> usize {
        self.spec.layers.len() as usize
    }

    fn apply_faults(&mut self) -> Result<(), EngineError> {
        let step = self.steps;
        self.steps += 1;
        if !self.faults.delay.is_zero() {
            std::thread::sleep(self.faults.delay);
        }
        // For tests that check that a panic stays within the stage's thread.
        assert!(self.faults.panic_at != Some(step), "injected panic at step {step}");
        if self.faults.fail_at == Some(step) {
            let reason = format!("injected failure at step {step}");
            return Err(EngineError::Step { engine: ECHO, reason });
        }
        Ok(())
    }

    /// Passes one hidden state through all layers and stores their states.
    fn row(&mut self, row: Row, hidden: &mut [f32]) {
        let layers = self.layers();
        let Some(states) = self.states.get_mut(row.slot as usize) else { return };
        let before = states.len().checked_sub(layers);
        for index in 0..layers {
            let layer = u64::from(self.spec.layers.start) + index as u64;
            let past = before.and_then(|before| states.get(before + index)).copied().unwrap_or(0);
            let state = mix(past ^ digest(mix(self.seed ^ layer) ^ u64::from(row.pos), hidden));
            states.push(state);
            for (axis, value) in hidden.iter_mut().enumerate() {
                *value = float(state ^ mix(axis as u64) ^ u64::from(value.to_bits()));
            }
        }
    }
}

impl Stage for EchoStage {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn check(&self, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError> {
        self.slots.check(&self.spec, hidden, rows)
    }

    fn compute(
        &mut self,
        hidden: &[f32],
        rows: &[Row],
        options: StepOptions,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.slots.check(&self.spec, hidden, rows)?;
        self.apply_faults()?;
        if options.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        out.clear();
        let mut state = vec![0.0; self.spec.width as usize];
        for (row, values) in rows.iter().zip(hidden.chunks_exact(state.len().max(1))) {
            state.copy_from_slice(values);
            self.row(*row, &mut state);
            match self.spec.vocab {
                None => out.extend_from_slice(&state),
                Some(_) if row.want && options.states => out.extend_from_slice(&state),
                Some(vocab) if row.want => {
                    let digest = digest(self.seed, &state);
                    out.extend((0..vocab).map(|token| 16.0 * float(digest ^ mix(u64::from(token)))));
                }
                Some(_) => {}
            }
        }
        self.slots.commit(rows);
        Ok(())
    }

    fn truncate(&mut self, slot: u32, len: u32) -> Result<(), EngineError> {
        let kept = self.slots.truncate(slot, len)? as usize;
        let layers = self.layers();
        if let Some(states) = self.states.get_mut(slot as usize) {
            states.truncate(kept * layers);
        }
        Ok(())
    }

    fn release(&mut self, slot: u32) {
        self.slots.release(slot);
        if let Some(states) = self.states.get_mut(slot as usize) {
            states.clear();
        }
    }
}

/// The embedder of [`Echo`].
pub struct EchoEmbedder {
    seed: u64,
    width: u32,
    vocab: u32,
}

impl EchoEmbedder {
    /// The embedder of the model of `seed`.
    pub fn new(seed: u64, width: u32, vocab: u32) -> Self {
        Self { seed, width, vocab }
    }
}

impl Embedder for EchoEmbedder {
    fn width(&self) -> u32 {
        self.width
    }

    fn embed(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<(), EngineError> {
        let vocab = self.vocab;
        if let Some(&token) = tokens.iter().find(|&&token| token >= vocab) {
            return Err(EngineError::Token { token, vocab });
        }
        out.clear();
        for &token in tokens {
            let row = mix(self.seed ^ mix(u64::from(token)));
            out.extend((0..self.width).map(|axis| float(row ^ mix(u64::from(axis)))));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::KvType;

    const SEED: u64 = 7;
    const WIDTH: u32 = 5;
    const VOCAB: u32 = 11;

    fn stage(start: u32, end: u32, head: bool) -> EchoStage {
        let config = StageConfig {
            context: 64,
            max_sessions: 2,
            max_rows: 8,
            threads: 1,
            kv: KvType::Full,
            ..StageConfig::default()
        };
        EchoStage::new(SEED, LayerRange::new(start, end), WIDTH, head.then_some(VOCAB), config)
    }

    /// Feeds tokens one by one through a chain of stages; returns the logits after each.
    fn feed(chain: &mut [EchoStage], slot: u32, first: u32, tokens: &[u32]) -> Result<Vec<Vec<f32>>, EngineError> {
        let embedder = EchoEmbedder::new(SEED, WIDTH, VOCAB);
        let mut logits = Vec::new();
        for (pos, token) in (first..).zip(tokens) {
            let (mut hidden, mut out) = (Vec::new(), Vec::new());
            embedder.embed(&[*token], &mut hidden)?;
            for stage in chain.iter_mut() {
                stage.step(&hidden, &[Row { slot, pos, want: true }], &mut out)?;
                std::mem::swap(&mut hidden, &mut out);
            }
            logits.push(hidden);
        }
        Ok(logits)
    }

    #[test]
    fn any_split_equals_the_whole_model() {
        let whole = feed(&mut [stage(0, 6, true)], 0, 0, &[1, 2, 3]);
        assert_eq!(feed(&mut [stage(0, 2, false), stage(2, 6, true)], 1, 0, &[1, 2, 3]), whole);
        assert_eq!(feed(&mut [stage(0, 1, false), stage(1, 3, false), stage(3, 6, true)], 0, 0, &[1, 2, 3]), whole);
    }

    #[test]
    fn wrong_layers_and_another_history_change_the_values() {
        let whole = feed(&mut [stage(0, 6, true)], 0, 0, &[1, 2, 3]).unwrap();
        let swapped = feed(&mut [stage(2, 4, false), stage(0, 2, false), stage(4, 6, true)], 0, 0, &[1, 2, 3]).unwrap();
        let missing = feed(&mut [stage(0, 5, true)], 0, 0, &[1, 2, 3]).unwrap();
        let other_past = feed(&mut [stage(0, 6, true)], 0, 0, &[2, 1, 3]).unwrap();
        for wrong in [swapped, missing, other_past] {
            assert_ne!(wrong[2], whole[2]);
        }
    }

    #[test]
    fn a_truncated_session_continues_as_if_it_had_been_shorter() {
        let whole = feed(&mut [stage(0, 3, true)], 0, 0, &[1, 2, 3]).unwrap();
        let mut chain = [stage(0, 3, true)];
        feed(&mut chain, 0, 0, &[1, 9, 9, 9]).unwrap();
        chain[0].truncate(0, 1).unwrap();
        assert_eq!(feed(&mut chain, 0, 1, &[2, 3]).unwrap(), whole[1..]);
    }
}
