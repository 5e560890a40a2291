//! What a coordinator keeps ready of each model: tokenizer, template, embedding, and the engine that serves it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::base::{ErrorKind, Fault, ModelId};
use crate::engine::constraint::{ConstraintError, Lexicon};
use crate::engine::{CutRules, Embedder, Engine};
use crate::model::Manifest;
use crate::model::catalog::Catalog;
use crate::model::chat::{ChatTemplate, TemplateError};
use crate::model::tokenizer::Tokenizer;

/// Models that are kept ready at once. A tokenizer of 262,144 tokens takes tens of MiB.
const MAX_LOADED: usize = 4;

/// A model that can be asked.
pub(crate) struct LoadedModel {
    pub id: ModelId,
    /// What it is called here.
    pub name: String,
    pub manifest: Arc<Manifest>,
    pub tokenizer: Arc<Tokenizer>,
    /// The error says why the model cannot chat.
    pub template: Result<ChatTemplate, TemplateError>,
    pub embedder: Arc<dyn Embedder>,
    pub engine: Arc<dyn Engine>,
    pub cuts: CutRules,
    /// Made when the first constraint comes.
    lexicon: OnceLock<Result<Arc<Lexicon>, ConstraintError>>,
}

impl LoadedModel {
    /// What plans are made of.
    pub fn planned(&self) -> Planned<'_> {
        let LoadedModel { id, manifest, engine, cuts, .. } = self;
        Planned { id: *id, manifest, engine: engine.as_ref(), cuts }
    }

    /// The vocabulary as constraints need it. Blocks the first time.
    pub fn lexicon(&self) -> Result<Arc<Lexicon>, ConstraintError> {
        self.lexicon.get_or_init(|| Lexicon::new(&self.tokenizer).map(Arc::new)).clone()
    }
}

/// What of a model plans are made of.
#[derive(Clone, Copy)]
pub(crate) struct Planned<'a> {
    pub id: ModelId,
    pub manifest: &'a Manifest,
    pub engine: &'a dyn Engine,
    pub cuts: &'a CutRules,
}

/// The models kept ready, longest unused first.
#[derive(Default)]
pub(crate) struct LoadedModels {
    kept: Mutex<VecDeque<Arc<LoadedModel>>>,
}

impl LoadedModels {
    /// Takes the model, loading it if need be. Blocks.
    pub fn get(
        &self,
        catalog: &Catalog,
        engines: &[Arc<dyn Engine>],
        wanted: Option<&str>,
        id: ModelId,
    ) -> Result<Arc<LoadedModel>, Fault> {
        if let Some(model) = self.take_kept(id) {
            return Ok(model);
        }
        let model = Arc::new(load(catalog, engines, wanted, id)?);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(model.clone());
        if kept.len() > MAX_LOADED {
            kept.pop_front();
        }
        Ok(model)
    }

    /// The models that are kept.
    pub fn ids(&self) -> Vec<ModelId> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|model| model.id).collect()
    }

    /// Keeps a model no longer. Answers under way go on with it.
    pub fn forget(&self, id: ModelId) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).retain(|model| model.id != id);
    }

    /// The model, if it is kept; it counts as used.
    pub fn take_kept(&self, id: ModelId) -> Option<Arc<LoadedModel>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().position(|model| model.id == id)?;
        let model = kept.remove(at)?;
        kept.push_back(model.clone());
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
        tracing::warn!(model = %id.short(), %warning, "a tokenizer is not all that its model says");
    }
    let template = ChatTemplate::from_facts(&facts);
    let source = catalog.embedding_source(id).map_err(missing)?;
    let embedder = engine.load_embedder(source).map_err(|error| Fault::new(error.kind(), error))?;
    let (tokenizer, lexicon) = (Arc::new(tokenizer), OnceLock::new());
    Ok(LoadedModel { id, name: catalog.title(id), manifest, tokenizer, template, embedder, engine, cuts, lexicon })
}

/// The best engine that serves the model, or the one that the host wants.
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
        // The best engine's kind, and what each of them says.
        _ => Err(match refusals.first() {
            None => Fault::new(ErrorKind::Unsupported, "this build has no engine"),
            Some((kind, _)) => {
                let reasons: Vec<String> = refusals.iter().map(|(_, reason)| reason.clone()).collect();
                Fault::new(*kind, reasons.join("; "))
            }
        }),
    }
}
