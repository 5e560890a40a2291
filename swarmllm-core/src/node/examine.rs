//! What of a model cannot run on this node and why: asked of its header before a weight is fetched or hashed, and of models
//! that are known here whenever they are listed.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::base::{ErrorKind, Fault, ModelId};
use crate::engine::Engine;
use crate::model::catalog::read_header;
use crate::model::chat::{ChatTemplate, TemplateError};
use crate::model::gguf::Gguf;
use crate::model::manifest::Cut;
use crate::model::tokenizer::{Tokenizer, TokenizerWarning};
use crate::model::{Fact, Manifest, ModelError, ShardKind};
use crate::node::conversation::ANOTHER;
use crate::node::error::ModelActError;
use crate::node::request::ImportOptions;
use crate::node::shared::Shared;
use crate::node::transfer::fault;

/// Part of a model, or of what computes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The engine of this name does not take the model's architecture, facts or tensors.
    Engine(String),
    /// The tokenizer.
    Tokenizer,
    /// How the tokenizer cuts words.
    PreTokenizer,
    /// A special token.
    SpecialToken,
    /// The chat template.
    Template,
    /// The memory within reach, as a node finds it when it lists a model; an import's report says nothing of it.
    Memory,
}

impl Subject {
    /// Its name in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Engine(_) => "engine",
            Self::Tokenizer => "tokenizer",
            Self::PreTokenizer => "pre_tokenizer",
            Self::SpecialToken => "special_token",
            Self::Template => "template",
            Self::Memory => "memory",
        }
    }
}

/// Something of a model that cannot be used here, or not as the model's file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What cannot be used.
    pub subject: Subject,
    /// The kind of error that its use would end in.
    pub kind: ErrorKind,
    /// Why.
    pub reason: String,
    /// Whether the model can never run here because of it. Memory may be free later; a model without a template that can be read completes plain text,
    /// and one that a single engine does not take runs on another.
    pub refuses: bool,
}

/// What of a model cannot run on a node. In JSON it says further whether it `refuses`, and of each finding the `engine`, or
/// null.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportReport {
    /// The model's architecture.
    pub architecture: String,
    /// One for each engine that does not take the model, best first, then those of tokenizer and template.
    pub findings: Vec<Finding>,
}

impl Serialize for Finding {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let engine = if let Subject::Engine(name) = &self.subject { Some(name) } else { None };
        let mut fields = serializer.serialize_struct("Finding", 5)?;
        fields.serialize_field("subject", self.subject.name())?;
        fields.serialize_field("engine", &engine)?;
        fields.serialize_field("kind", self.kind.name())?;
        fields.serialize_field("reason", &self.reason)?;
        fields.serialize_field("refuses", &self.refuses)?;
        fields.end()
    }
}

impl Serialize for ImportReport {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("ImportReport", 3)?;
        fields.serialize_field("architecture", &self.architecture)?;
        fields.serialize_field("refuses", &self.refuses())?;
        fields.serialize_field("findings", &self.findings)?;
        fields.end()
    }
}

/// The examination of one import: refuses a header, or remembers what the host is to be told.
#[derive(Clone)]
pub(crate) struct Examination {
    engines: Engines,
    options: ImportOptions,
    report: Arc<Mutex<ImportReport>>,
}

impl Examination {
    /// By the engines of a node.
    pub fn new(shared: &Shared, options: &ImportOptions) -> Examination {
        Examination::by(Engines::of(shared), options)
    }

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
    pub fn of(&self, shared: &Shared, model: ModelId, manifest: &Manifest) -> Arc<ImportReport> {
        let asks = shared.catalog.holding(model).metadata;
        if let Some((_, report)) = self.known().get(&model).filter(|(asked, _)| *asked == asks) {
            return report.clone();
        }
        // Metadata that cannot be read is not held any longer.
        let facts = asks.then(|| shared.catalog.metadata(model).ok()).flatten();
        let report = Arc::new(ImportReport::of(manifest, facts.as_deref(), &Engines::of(shared), true));
        let mut known = self.known();
        known.retain(|model, _| shared.catalog.manifest(*model).is_some());
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
    fn of(shared: &Shared) -> Engines {
        Engines { all: shared.serving.stages().engines().to_vec(), wanted: shared.config.engine.clone() }
    }

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

    /// Whether the model cannot run on the node.
    pub fn refuses(&self) -> bool {
        self.findings.iter().any(|finding| finding.refuses)
    }

    /// What a host that imports the model all the same is told: all that keeps the model from running, and what it will
    /// miss. That one of several engines does not take the model is no loss.
    pub fn warnings(&self) -> Vec<String> {
        let told = |finding: &&Finding| finding.refuses || !matches!(finding.subject, Subject::Engine(_));
        self.findings.iter().filter(told).map(Finding::to_string).collect()
    }

    /// The refusal of an import.
    pub(crate) fn fault(&self) -> Fault {
        let first = self.findings.iter().find(|finding| finding.refuses);
        let kind = first.map_or(ErrorKind::Unsupported, |finding| finding.kind);
        Fault::new(kind, format_args!("{self}; import it with `anyway` to keep it for others"))
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

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reason = &self.reason;
        match &self.subject {
            Subject::Engine(name) => write!(f, "{name} cannot run it: {reason}"),
            Subject::Tokenizer if self.refuses => f.write_str(reason),
            Subject::Tokenizer => write!(f, "it cannot be asked here, only its layers be computed: {reason}"),
            Subject::PreTokenizer | Subject::SpecialToken | Subject::Memory => f.write_str(reason),
            Subject::Template => write!(f, "it completes plain text and cannot chat: {reason}"),
        }
    }
}

impl fmt::Display for ImportReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the model cannot run here")?;
        for (index, finding) in self.findings.iter().filter(|finding| finding.refuses).enumerate() {
            write!(f, "{} {finding}", if index == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}
