//! A chain of candle stages without a network, for contracts about an engine's numbers.

use std::path::Path;
use std::sync::Arc;

use swarmllm_core::base::{LayerRange, ModelId};
use swarmllm_core::engine::candle::Candle;
use swarmllm_core::engine::{CutRules, Embedder, Engine, EngineError, Row, Stage, StageConfig};
use swarmllm_core::model::tokenizer::Tokenizer;
use swarmllm_core::model::{Catalog, Manifest};

/// A GGUF imported into a catalogue of its own, which is removed on drop.
pub struct Imported {
    catalog: Catalog,
    id: ModelId,
    /// The manifest.
    pub manifest: Arc<Manifest>,
    _directory: tempfile::TempDir,
}

impl Imported {
    /// Imports the file into shards, as a node does.
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

    /// The allowed stage boundaries of the candle engine.
    pub fn cuts(&self) -> Result<CutRules, EngineError> {
        Candle::new().cuts(&self.manifest)
    }

    /// The embedding in the candle engine.
    pub fn embedder(&self) -> Arc<dyn Embedder> {
        self.embedder_of(&Candle::new())
    }

    /// The embedding in this engine.
    pub fn embedder_of(&self, engine: &dyn Engine) -> Arc<dyn Embedder> {
        engine.load_embedder(self.catalog.embedding_source(self.id).expect("an embedding")).expect("an embedder")
    }

    /// Stages that start at layer 0 and at each layer of `cuts`; the last includes the head.
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

/// The embedding and all stages, with one session.
pub struct Chain {
    embedder: Arc<dyn Embedder>,
    stages: Vec<Box<dyn Stage>>,
    position: u32,
}

impl Chain {
    /// Computes `tokens` in one step and returns the logits of the last.
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

    /// Clears the session.
    pub fn clear(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.release(0));
        self.position = 0;
    }
}
