//! Examination: whether a model can run on this node, and why not. An import examines the header before a weight is fetched
//! or hashed; listing examines known models.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::{ErrorKind, Fault, ModelId};
use crate::engine::Engine;
use crate::model::catalog::{Catalog, read_header};
use crate::model::chat::{ChatTemplate, TemplateError};
use crate::model::gguf::Gguf;
use crate::model::manifest::Sharding;
use crate::model::tokenizer::{Tokenizer, TokenizerWarning};
use crate::model::{Fact, Manifest, ModelError, ShardKind};
use crate::node::api::error::ModelActError;
use crate::node::api::findings::{Finding, ImportReport, Subject};
use crate::node::api::request::ImportOptions;
use crate::node::models::transfer::fault;

/// Hint for models without a usable template.
pub(crate) const TEMPLATE_HINT: &str = "set one with `chat_template` (`--chat-template`)";

/// The examination of one import: it refuses a header or stores the report for the host. Clones share the report.
#[derive(Clone)]
pub(crate) struct Examination {
    engines: Engines,
    options: ImportOptions,
    report: Arc<Mutex<ImportReport>>,
}

impl Examination {
    pub fn new(engines: Engines, options: &ImportOptions) -> Examination {
        Examination { engines, options: options.clone(), report: Arc::default() }
    }

    /// Accepts every header.
    #[cfg(all(test, feature = "https"))]
    pub fn none() -> Examination {
        let engines = Engines { all: Vec::new(), wanted: None };
        Examination::new(engines, &ImportOptions { anyway: true, ..ImportOptions::default() })
    }

    /// Refuses parts that the model does not have, and a model that cannot run here, unless `anyway` is set. A header from
    /// which no model can be cut passes: the import itself reports the error. Blocks while it builds a tokenizer.
    pub fn check(&self, header: &Gguf) -> Result<(), ModelActError> {
        let Ok(sharding) = Sharding::new(header) else { return Ok(()) };
        let report = self.of(&sharding.manifest, header)?;
        if report.refuses() && !self.options.anyway {
            return Err(Box::new(report).into());
        }
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
        Ok(())
    }

    /// Examines a header. Blocks while it builds a tokenizer.
    pub fn examine_header(&self, header: &Gguf, path: &Path) -> Result<ImportReport, Fault> {
        let sharding =
            Sharding::new(header).map_err(|source| fault(ModelError::Sharding { path: path.to_owned(), source }))?;
        self.of(&sharding.manifest, header)
    }

    /// Examines a local file. Blocks.
    pub fn examine_file(&self, path: &Path) -> Result<ImportReport, Fault> {
        self.examine_header(&read_header(path).map_err(fault)?, path)
    }

    fn of(&self, manifest: &Manifest, header: &Gguf) -> Result<ImportReport, Fault> {
        self.options.check(manifest.layers)?;
        // A node without metadata sends no requests to the model; it only computes layers.
        let coordinates = self.options.keeps(ShardKind::Metadata);
        Ok(ImportReport::of(manifest, Some(&header.facts), &self.engines, coordinates))
    }

    /// The report of the last accepted header.
    pub fn report(&self) -> ImportReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reports about known models, each with whether the metadata was here. Engines do not change while a node runs, so each
/// model is examined once. Bounded by the number of models.
#[derive(Default)]
pub(crate) struct Examinations {
    known: Mutex<HashMap<ModelId, (bool, Arc<ImportReport>)>>,
}

impl Examinations {
    /// The report about a known model. Blocks the first time, while it reads the metadata and builds a tokenizer.
    pub fn of(&self, catalog: &Catalog, engines: &Engines, model: ModelId, manifest: &Manifest) -> Arc<ImportReport> {
        let has_metadata = catalog.holding(model).metadata;
        if let Some((_, report)) = self.known().get(&model).filter(|(had_metadata, _)| *had_metadata == has_metadata) {
            return report.clone();
        }
        // The catalogue drops unreadable metadata.
        let facts = has_metadata.then(|| catalog.metadata(model).ok()).flatten();
        let report = Arc::new(ImportReport::of(manifest, facts.as_deref(), engines, true));
        let mut known = self.known();
        known.retain(|model, _| catalog.manifest(*model).is_some());
        known.insert(model, (facts.is_some(), report.clone()));
        report
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ModelId, (bool, Arc<ImportReport>)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Engines of a node.
#[derive(Clone)]
pub(crate) struct Engines {
    pub all: Vec<Arc<dyn Engine>>,
    /// Name of the engine that the host chose.
    pub wanted: Option<String>,
}

impl Engines {
    /// Engines that the host allows, best first.
    fn allowed(&self) -> impl Iterator<Item = &Arc<dyn Engine>> {
        let wanted = self.wanted.as_deref();
        self.all.iter().filter(move |engine| wanted.is_none_or(|name| name == engine.name()))
    }
}

impl ImportReport {
    /// Examines a model: engines by the manifest, tokenizer and template by the facts of the header. `coordinates`: the node
    /// sends requests to the model and so needs its tokenizer. Blocks while it builds a tokenizer.
    pub(crate) fn of(
        manifest: &Manifest,
        facts: Option<&[Fact]>,
        engines: &Engines,
        coordinates: bool,
    ) -> ImportReport {
        let mut findings = engine_findings(manifest, engines);
        if let Some(facts) = facts {
            findings.extend(tokenizer_findings(facts, coordinates));
            if let Err(error) = ChatTemplate::from_facts(facts) {
                findings.push(Finding {
                    subject: Subject::Template,
                    kind: error.kind(),
                    reason: match error {
                        // The finding's text adds that the model completes plain text.
                        TemplateError::Missing => format!("the model has no chat template; {TEMPLATE_HINT}"),
                        error => error.to_string(),
                    },
                    refuses: false,
                });
            }
        }
        ImportReport { architecture: manifest.architecture.clone(), findings }
    }
}

/// One finding per engine that cannot run the model.
fn engine_findings(manifest: &Manifest, engines: &Engines) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut runs = false;
    for engine in engines.allowed() {
        match engine.cuts(manifest) {
            Ok(_) => runs = true,
            Err(error) => findings.push(Finding {
                subject: Subject::Engine(engine.name().to_owned()),
                kind: error.kind(),
                reason: error.to_string(),
                refuses: true,
            }),
        }
    }
    if runs {
        findings.iter_mut().for_each(|finding| finding.refuses = false);
    } else if findings.is_empty() {
        let name = engines.wanted.clone().unwrap_or_default();
        let reason = "it is not built into this node".to_owned();
        findings.push(Finding { subject: Subject::Engine(name), kind: ErrorKind::Unsupported, reason, refuses: true });
    }
    findings
}

/// The tokenizer's error, or its warnings.
fn tokenizer_findings(facts: &[Fact], coordinates: bool) -> Vec<Finding> {
    match Tokenizer::from_facts(facts) {
        Err(error) => {
            let (subject, kind) = (Subject::Tokenizer, error.kind());
            vec![Finding { subject, kind, reason: error.to_string(), refuses: coordinates }]
        }
        Ok(tokenizer) => {
            let finding = |warning: &TokenizerWarning| Finding {
                subject: match warning {
                    TokenizerWarning::NoPreTokenizer => Subject::PreTokenizer,
                    TokenizerWarning::SpecialToken { .. } => Subject::SpecialToken,
                },
                kind: ErrorKind::BadTokenizer,
                reason: warning.to_string(),
                refuses: false,
            };
            tokenizer.warnings().iter().map(finding).collect()
        }
    }
}
