//! Proof that stages equal the whole model. The whole model is llama.cpp on the original file ([`whole_model`]); the stages
//! are extents of the same file ([`test_model`]).

mod bench;
mod exact;
#[cfg(target_os = "linux")]
mod huge_pages;
mod misuse;
mod random;
mod recipe;
mod test_model;
mod tiny;
mod whole_model;

use std::sync::Arc;

use test_model::TestModel;

use crate::base::LayerRange;
use crate::engine::llama_cpp::LlamaCpp;
use crate::engine::{Embedder, Engine, EngineError, KvType, Row, Stage, StageConfig, StepOptions};

/// The test model that the environment variable names; reports a skip without one.
fn model(variable: &str) -> Option<TestModel> {
    match std::env::var_os(variable) {
        Some(path) => Some(TestModel::open(path.as_ref())),
        None => {
            eprintln!("SKIPPED: {variable} names no model");
            None
        }
    }
}

fn smollm2() -> Option<TestModel> {
    model("SWARMLLM_TEST_SMOLLM2")
}

fn gemma3() -> Option<TestModel> {
    model("SWARMLLM_TEST_GEMMA3")
}

fn config() -> StageConfig {
    StageConfig {
        context: 1024,
        max_sessions: 4,
        max_rows: 128,
        threads: 1,
        kv: KvType::Full,
        ..StageConfig::default()
    }
}

/// Pseudo-random tokens, equal in each run.
fn tokens(seed: u32, count: usize, vocab: u32) -> Vec<u32> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32 % vocab
    };
    (0..count).map(|_| next()).collect()
}

/// The index of the greatest logit.
fn greedy(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b));
    best.map_or(0, |(token, _)| token as u32)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// One row of a step, by token.
#[derive(Clone, Copy)]
struct TokenRow {
    slot: u32,
    pos: u32,
    token: u32,
    want: bool,
}

/// Consecutive tokens of one session, all with output.
fn run(slot: u32, from: u32, tokens: &[u32]) -> Vec<TokenRow> {
    (from..).zip(tokens).map(|(pos, token)| TokenRow { slot, pos, token: *token, want: true }).collect()
}

/// An embedder and a chain of stages.
struct Chain {
    embedder: Arc<dyn Embedder>,
    stages: Vec<Box<dyn Stage>>,
}

impl Chain {
    /// A chain with a cut before each layer of `cuts`.
    fn load(engine: &LlamaCpp, cut: &TestModel, cuts: &[u32], config: &StageConfig) -> Self {
        Self::load_on(std::slice::from_ref(engine), cut, cuts, config)
    }

    /// A chain whose stages are loaded into `engines` in turn.
    fn load_on(engines: &[LlamaCpp], cut: &TestModel, cuts: &[u32], config: &StageConfig) -> Self {
        let starts = [0].iter().chain(cuts);
        let ends = cuts.iter().copied().chain([cut.manifest.layers]);
        let stage = |((start, end), engine): ((&u32, u32), &LlamaCpp)| {
            let source = cut.stage(LayerRange::new(*start, end), end == cut.manifest.layers);
            engine.load_stage(source, config).expect("a legal stage")
        };
        let embedder = engines[0].load_embedder(cut.embedding()).expect("an embedding");
        Self { embedder, stages: starts.zip(ends).zip(engines.iter().cycle()).map(stage).collect() }
    }

    /// The logits of the wanted rows.
    fn step(&mut self, fed: &[TokenRow]) -> Vec<f32> {
        self.compute(fed, StepOptions::default())
    }

    /// The states of the wanted rows.
    fn states(&mut self, fed: &[TokenRow]) -> Vec<f32> {
        self.compute(fed, StepOptions { states: true, ..StepOptions::default() })
    }

    /// Like [`step`](Self::step), for steps that may fail.
    fn try_step(&mut self, fed: &[TokenRow]) -> Result<Vec<f32>, EngineError> {
        self.try_compute(fed, StepOptions::default())
    }

    fn compute(&mut self, fed: &[TokenRow], options: StepOptions) -> Vec<f32> {
        self.try_compute(fed, options).expect("a legal step")
    }

    fn try_compute(&mut self, fed: &[TokenRow], options: StepOptions) -> Result<Vec<f32>, EngineError> {
        let tokens: Vec<u32> = fed.iter().map(|row| row.token).collect();
        let rows: Vec<Row> = fed.iter().map(|row| Row { slot: row.slot, pos: row.pos, want: row.want }).collect();
        let (mut hidden, mut next) = (Vec::new(), Vec::new());
        self.embedder.embed(&tokens, &mut hidden).expect("tokens of the vocabulary");
        for stage in &mut self.stages {
            stage.compute(&hidden, &rows, options, &mut next)?;
            std::mem::swap(&mut hidden, &mut next);
        }
        Ok(hidden)
    }

    fn truncate(&mut self, slot: u32, len: u32) {
        self.stages.iter_mut().for_each(|stage| stage.truncate(slot, len).expect("a legal truncation"));
    }

    fn release(&mut self, slot: u32) {
        self.stages.iter_mut().for_each(|stage| stage.release(slot));
    }
}
