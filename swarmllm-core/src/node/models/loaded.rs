//! Loaded models of a coordinator: tokenizer, template, embedding and engine of each.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::base::{ErrorKind, Fault, ModelId};
use crate::engine::constraint::{ConstraintCompiler, ConstraintError};
use crate::engine::{CutRules, Embedder, Engine};
use crate::model::Manifest;
use crate::model::catalog::Catalog;
use crate::model::chat::{ChatTemplate, TemplateError};
use crate::model::tokenizer::Tokenizer;

/// Most loaded models. A tokenizer of 262,144 tokens takes tens of MiB.
const MAX_LOADED: usize = 4;

/// A model ready for requests.
pub(crate) struct LoadedModel {
    pub id: ModelId,
    /// Its first name here.
    pub name: String,
    pub manifest: Arc<Manifest>,
    pub tokenizer: Arc<Tokenizer>,
    /// An error says why the model cannot chat.
    pub template: Result<ChatTemplate, TemplateError>,
    pub embedder: Arc<dyn Embedder>,
    pub engine: Arc<dyn Engine>,
    pub cuts: CutRules,
    /// Built for the first constraint.
    compiler: OnceLock<Result<Arc<ConstraintCompiler>, ConstraintError>>,
}

impl LoadedModel {
    /// Input of the planner.
    pub fn planned(&self) -> PlannedModel<'_> {
        let LoadedModel { id, manifest, engine, cuts, .. } = self;
        PlannedModel { id: *id, manifest, engine: engine.as_ref(), cuts }
    }

    /// The compiler of constraints for the model's vocabulary. Built at the first call, which blocks.
    pub fn compiler(&self) -> Result<Arc<ConstraintCompiler>, ConstraintError> {
        self.compiler.get_or_init(|| ConstraintCompiler::new(&self.tokenizer).map(Arc::new)).clone()
    }
}

/// The facts of a model that a plan needs.
#[derive(Clone, Copy)]
pub(crate) struct PlannedModel<'a> {
    pub id: ModelId,
    pub manifest: &'a Manifest,
    pub engine: &'a dyn Engine,
    pub cuts: &'a CutRules,
}

/// Loaded models, least recently used first.
#[derive(Default)]
pub(crate) struct LoadedModels {
    models: Mutex<VecDeque<Arc<LoadedModel>>>,
}

impl LoadedModels {
    /// The model, loaded if necessary. Blocks.
    pub fn get(
        &self,
        catalog: &Catalog,
        engines: &[Arc<dyn Engine>],
        wanted: Option<&str>,
        id: ModelId,
    ) -> Result<Arc<LoadedModel>, Fault> {
        if let Some(model) = self.get_loaded(id) {
            return Ok(model);
        }
        let model = Arc::new(load(catalog, engines, wanted, id)?);
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        models.push_back(model.clone());
        if models.len() > MAX_LOADED {
            models.pop_front();
        }
        Ok(model)
    }

    /// Ids of loaded models.
    pub fn ids(&self) -> Vec<ModelId> {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|model| model.id).collect()
    }

    /// Drops a model. Running answers keep their reference.
    pub fn forget(&self, id: ModelId) {
        self.models.lock().unwrap_or_else(PoisonError::into_inner).retain(|model| model.id != id);
    }

    /// The model if it is loaded; marks it as used.
    pub fn get_loaded(&self, id: ModelId) -> Option<Arc<LoadedModel>> {
        let mut models = self.models.lock().unwrap_or_else(PoisonError::into_inner);
        let at = models.iter().position(|model| model.id == id)?;
        let model = models.remove(at)?;
        models.push_back(model.clone());
        Some(model)
    }
}

fn load(
    catalog: &Catalog,
    engines: &[Arc<dyn Engine>],
    wanted: Option<&str>,
    id: ModelId,
) -> Result<LoadedModel, Fault> {
    let unknown = || Fault::new(ErrorKind::ModelNotFound, format!("model {} is not known here", id.short()));
    let manifest = catalog.manifest(id).ok_or_else(unknown)?;
    let (engine, cuts) = choose(engines, wanted, &manifest)?;
    let missing = |error: crate::model::ModelError| {
        let text = format!("{error}; a coordinator needs metadata and embedding: pull them");
        Fault::new(error.kind(), text)
    };
    let facts = catalog.metadata(id).map_err(missing)?;
    let tokenizer = Tokenizer::from_facts(&facts).map_err(|error| Fault::new(error.kind(), error))?;
    for warning in tokenizer.warnings() {
        tracing::warn!(model = %id.short(), %warning, "a tokenizer does not follow its model file fully");
    }
    let template = ChatTemplate::from_facts(&facts);
    let source = catalog.embedding_source(id).map_err(missing)?;
    let embedder = engine.load_embedder(source).map_err(|error| Fault::new(error.kind(), error))?;
    let (tokenizer, compiler) = (Arc::new(tokenizer), OnceLock::new());
    Ok(LoadedModel {
        id,
        name: catalog.display_name(id),
        manifest,
        tokenizer,
        template,
        embedder,
        engine,
        cuts,
        compiler,
    })
}

/// The best engine that runs the model, or the engine that the host chose.
pub(crate) fn choose(
    engines: &[Arc<dyn Engine>],
    wanted: Option<&str>,
    manifest: &Manifest,
) -> Result<(Arc<dyn Engine>, CutRules), Fault> {
    let mut refusals: Vec<(ErrorKind, String)> = Vec::new();
    for engine in engines.iter().filter(|engine| wanted.is_none_or(|name| name == engine.name())) {
        match engine.cuts(manifest) {
            Ok(cuts) => return Ok((engine.clone(), cuts)),
            Err(error) => refusals.push((error.kind(), format!("{}: {error}", engine.name()))),
        }
    }
    match wanted {
        Some(name) if engines.iter().all(|engine| engine.name() != name) => {
            Err(Fault::new(ErrorKind::Unsupported, format!("engine `{name}` is not built into this node")))
        }
        // The kind of the best engine's refusal, and the reasons of all.
        _ => Err(match refusals.first() {
            None => Fault::new(ErrorKind::Unsupported, "this build has no engine"),
            Some((kind, _)) => {
                let reasons: Vec<String> = refusals.iter().map(|(_, reason)| reason.clone()).collect();
                Fault::new(*kind, reasons.join("; "))
            }
        }),
    }
}
