//! What of a model cannot run on this node and why: asked of its header before a weight is fetched or hashed, and of models
//! that are known here whenever they are listed.

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
use crate::model::manifest::Cut;
use crate::model::tokenizer::{Tokenizer, TokenizerWarning};
use crate::model::{Fact, Manifest, ModelError, ShardKind};
use crate::node::api::error::ModelActError;
use crate::node::api::findings::{Finding, ImportReport, Subject};
use crate::node::api::request::ImportOptions;
use crate::node::models::transfer::fault;

/// What helps where a model's template does not serve.
pub(crate) const ANOTHER: &str = "another may be given (`chat_template`, `--chat-template`)";

/// The examination of one import: refuses a header, or remembers what the host is to be told.
#[derive(Clone)]
pub(crate) struct Examination {
    engines: Engines,
    options: ImportOptions,
    report: Arc<Mutex<ImportReport>>,
}

impl Examination {
    /// By these engines.
    pub fn by(engines: Engines, options: &ImportOptions) -> Examination {
        Examination { engines, options: options.clone(), report: Arc::default() }
    }

    /// One that lets everything pass.
    #[cfg(all(test, feature = "https"))]
    pub fn none() -> Examination {
        let engines = Engines { all: Vec::new(), wanted: None };
        Examination::by(engines, &ImportOptions { anyway: true, ..ImportOptions::default() })
    }

    /// Refuses parts that the model does not have, and a model that cannot run here, unless it is wanted anyway. A header of
    /// which no model can be made passes: the import itself says why. Blocks for as long as building a tokenizer takes.
    pub fn check(&self, header: &Gguf) -> Result<(), ModelActError> {
        let Ok(cut) = Cut::new(header) else { return Ok(()) };
        let report = self.of(&cut.manifest, header)?;
        if report.refuses() && !self.options.anyway {
            return Err(Box::new(report).into());
        }
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
        Ok(())
    }

    /// What is found of a header.
    pub fn look(&self, header: &Gguf, path: &Path) -> Result<ImportReport, Fault> {
        let cut = Cut::new(header).map_err(|source| fault(ModelError::Cut { path: path.to_owned(), source }))?;
        self.of(&cut.manifest, header)
    }

    /// What is found of a file that lies here. Blocks.
    pub fn look_at_file(&self, path: &Path) -> Result<ImportReport, Fault> {
        self.look(&read_header(path).map_err(fault)?, path)
    }

    fn of(&self, manifest: &Manifest, header: &Gguf) -> Result<ImportReport, Fault> {
        self.options.check(manifest.layers)?;
        // Who keeps no metadata does not ask the model, and only computes layers of it.
        let asks = self.options.keeps(ShardKind::Metadata);
        Ok(ImportReport::of(manifest, Some(&header.facts), &self.engines, asks))
    }

    /// What the host is to be told.
    pub fn report(&self) -> ImportReport {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What was found of the models that are known here, and whether their metadata was here then. Engines do not change while a
/// node runs, so that each model is examined once. As many as there are models.
#[derive(Default)]
pub(crate) struct Reports {
    known: Mutex<HashMap<ModelId, (bool, Arc<ImportReport>)>>,
}

impl Reports {
    /// What of a known model cannot run here. Blocks the first time for as long as reading its metadata and building a
    /// tokenizer take.
    pub fn of(&self, catalog: &Catalog, engines: &Engines, model: ModelId, manifest: &Manifest) -> Arc<ImportReport> {
        let asks = catalog.holding(model).metadata;
        if let Some((_, report)) = self.known().get(&model).filter(|(asked, _)| *asked == asks) {
            return report.clone();
        }
        // Metadata that cannot be read is not held any longer.
        let facts = asks.then(|| catalog.metadata(model).ok()).flatten();
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

/// Engines that could run a model.
#[derive(Clone)]
pub(crate) struct Engines {
    pub all: Vec<Arc<dyn Engine>>,
    /// The one that the host wants, where it wants one.
    pub wanted: Option<String>,
}

impl Engines {
    /// Those that the host admits, best first.
    fn admitted(&self) -> impl Iterator<Item = &Arc<dyn Engine>> {
        let wanted = self.wanted.as_deref();
        self.all.iter().filter(move |engine| wanted.is_none_or(|name| name == engine.name()))
    }
}

impl ImportReport {
    /// Asks engines, and where there are the facts of its header tokenizer and template, what they say of a model. With `asks`
    /// the node is to ask the model, and not only to compute layers of it. Blocks for as long as building a tokenizer takes.
    pub(crate) fn of(manifest: &Manifest, facts: Option<&[Fact]>, engines: &Engines, asks: bool) -> ImportReport {
        let mut findings = engine_findings(manifest, engines);
        if let Some(facts) = facts {
            findings.extend(tokenizer_findings(facts, asks));
            if let Err(error) = ChatTemplate::from_facts(facts) {
                findings.push(Finding {
                    subject: Subject::Template,
                    kind: error.kind(),
                    reason: match error {
                        // That it completes plain text is said of every such model.
                        TemplateError::Missing => format!("the model has no chat template; {ANOTHER}"),
                        error => error.to_string(),
                    },
                    refuses: false,
                });
            }
        }
        ImportReport { architecture: manifest.architecture.clone(), findings }
    }
}

/// One for each engine that does not take a model.
fn engine_findings(manifest: &Manifest, engines: &Engines) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut runs = false;
    for engine in engines.admitted() {
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

/// Why there is no tokenizer, or what it works without.
fn tokenizer_findings(facts: &[Fact], asks: bool) -> Vec<Finding> {
    match Tokenizer::from_facts(facts) {
        Err(error) => {
            let (subject, kind) = (Subject::Tokenizer, error.kind());
            vec![Finding { subject, kind, reason: error.to_string(), refuses: asks }]
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
