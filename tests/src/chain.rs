//! A model on disk as a chain of candle's stages, without a network: what a contract about an engine's numbers needs.

use std::path::Path;
use std::sync::Arc;

use swarmllm_core::base::{LayerRange, ModelId};
use swarmllm_core::engine::candle::Candle;
use swarmllm_core::engine::{CutRules, Embedder, Engine, EngineError, Row, Stage, StageConfig};
use swarmllm_core::model::tokenizer::Tokenizer;
use swarmllm_core::model::{Catalog, Manifest};

/// A GGUF, imported into a catalogue of its own that lives as long as this.
pub struct Imported {
    catalog: Catalog,
    id: ModelId,
    /// What it is made of.
    pub manifest: Arc<Manifest>,
    _directory: tempfile::TempDir,
}

impl Imported {
    /// Cuts the file into shards, as a node does.
    pub fn open(path: &Path) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let catalog = Catalog::open(directory.path()).expect("a catalogue");
        let id = catalog.import(path, None, &mut |_| ()).expect("a sound model");
        let manifest = catalog.manifest(id).expect("the imported model");
        Self { catalog, id, manifest, _directory: directory }
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> Tokenizer {
        Tokenizer::from_facts(&self.catalog.metadata(self.id).expect("metadata")).expect("a known tokenizer")
    }

    /// Where candle's engine may cut it.
    pub fn cuts(&self) -> Result<CutRules, EngineError> {
        Candle::new().cuts(&self.manifest)
    }

    /// Its embedding in candle's engine.
    pub fn embedder(&self) -> Arc<dyn Embedder> {
        self.embedder_of(&Candle::new())
    }

    /// Its embedding in any engine.
    pub fn embedder_of(&self, engine: &dyn Engine) -> Arc<dyn Embedder> {
        engine.load_embedder(self.catalog.embedding_source(self.id).expect("an embedding")).expect("an embedder")
    }

    /// Stages that are cut before each layer of `cuts`, the last with the head.
    pub fn chain(&self, cuts: &[u32]) -> Chain {
        let layers = self.manifest.layers;
        let bounds: Vec<u32> = [0].into_iter().chain(cuts.iter().copied()).chain([layers]).collect();
        let stage = |pair: &[u32]| {
            let range = LayerRange::new(pair[0], pair[1]);
            let source = self.catalog.stage_source(self.id, range, range.end == layers).expect("a stage");
            let config = StageConfig { context: 1024, ..StageConfig::default() };
            Candle::new().load_stage(source, &config).expect("a legal stage")
        };
        Chain { embedder: self.embedder(), stages: bounds.windows(2).map(stage).collect(), position: 0 }
    }
}

/// Stages in a row with the embedding before them, and one session.
pub struct Chain {
    embedder: Arc<dyn Embedder>,
    stages: Vec<Box<dyn Stage>>,
    position: u32,
}

impl Chain {
    /// Computes `tokens` in one step and gives the logits of the last.
    pub fn feed(&mut self, tokens: &[u32]) -> Vec<f32> {
        let (from, end) = (self.position, self.position + tokens.len() as u32);
        let rows: Vec<Row> = (from..end).map(|pos| Row { slot: 0, pos, want: pos + 1 == end }).collect();
        let (mut hidden, mut out) = (Vec::new(), Vec::new());
        self.embedder.embed(tokens, &mut hidden).expect("tokens of the vocabulary");
        for stage in &mut self.stages {
            stage.step(&hidden, &rows, &mut out).expect("a legal step");
            std::mem::swap(&mut hidden, &mut out);
        }
        self.position = end;
        hidden
    }

    /// Forgets the session.
    pub fn clear(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.release(0));
        self.position = 0;
    }
}
