//! The models of a node: catalogue, loaded models, examinations. Acquisition is in `fetch` and `placement`, removal in
//! `eviction`.

use std::sync::Arc;

use crate::base::{Event, Fault, ModelId};
use crate::engine::{CutRules, Engine};
use crate::model::Manifest;
use crate::model::catalog::Catalog;
use crate::node::api::findings::ImportReport;
use crate::node::models::examine::{Engines, Examinations};
use crate::node::models::loaded::{LoadedModel, LoadedModels, choose};
use crate::pipeline::host::stages::StageTable;
use crate::rt::EventBus;

/// Handle over the models. Owners: the catalogue writes shards and names, the stage table loads and unloads stages.
pub(crate) struct Models {
    pub catalog: Catalog,
    /// Tokenizers, templates and embeddings in memory.
    pub loaded: LoadedModels,
    pub stages: StageTable,
    examinations: Examinations,
    /// The engine that the host chose.
    engine: Option<String>,
    events: EventBus,
}

impl Models {
    pub fn new(catalog: Catalog, stages: StageTable, engine: Option<String>, events: EventBus) -> Self {
        let (loaded, examinations) = (LoadedModels::default(), Examinations::default());
        Self { catalog, loaded, stages, examinations, engine, events }
    }

    /// Engines that may run a model here.
    pub fn engines(&self) -> Engines {
        Engines { all: self.stages.engines().to_vec(), wanted: self.engine.clone() }
    }

    /// The best engine that runs the model, or the one that the host chose.
    pub fn choose_engine(&self, manifest: &Manifest) -> Result<(Arc<dyn Engine>, CutRules), Fault> {
        choose(self.stages.engines(), self.engine.as_deref(), manifest)
    }

    /// Findings about a known model. Blocks the first time.
    pub fn examine(&self, model: ModelId, manifest: &Manifest) -> Arc<ImportReport> {
        self.examinations.of(&self.catalog, &self.engines(), model, manifest)
    }

    /// Loads a known model for requests, unless it is loaded. Blocks.
    pub fn load(&self, model: ModelId) -> Result<Arc<LoadedModel>, Fault> {
        self.loaded.get(&self.catalog, self.stages.engines(), self.engine.as_deref(), model)
    }

    /// Sends the event of a model that became known here.
    pub fn send_known(&self, model: ModelId) {
        self.events.send(Event::ModelKnown { model, name: self.catalog.display_name(model) });
    }
}
