//! Findings of an examination: what keeps a model from running on a node.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::base::{ErrorKind, Fault};

/// Subject of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The engine of this name does not support the model's architecture, facts or tensors.
    Engine(String),
    /// The tokenizer.
    Tokenizer,
    /// The tokenizer's pre-tokenization.
    PreTokenizer,
    /// A special token.
    SpecialToken,
    /// The chat template.
    Template,
    /// The memory of reachable nodes. Found when a node lists a model, never in an import's report.
    Memory,
}

impl Subject {
    /// Name in JSON.
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

/// A defect: something of a model that cannot be used here, or not as the model file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The defective part.
    pub subject: Subject,
    /// Kind of the error that its use would cause.
    pub kind: ErrorKind,
    /// Reason, as a sentence.
    pub reason: String,
    /// Whether the model can never run here because of it. Otherwise the model is limited: memory may become free, a model
    /// without a template completes plain text, another engine runs the model.
    pub refuses: bool,
}

/// The findings about a model. JSON adds `refuses`, and for each finding `engine`, its name or null.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportReport {
    /// The model's architecture.
    pub architecture: String,
    /// One per engine that does not support the model, best first, then those of tokenizer and template.
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

impl ImportReport {
    /// Whether the model cannot run on the node.
    pub fn refuses(&self) -> bool {
        self.findings.iter().any(|finding| finding.refuses)
    }

    /// Warnings for a host that imports the model anyway: findings that keep it from running, and limits. An engine
    /// that does not support the model is no limit if another runs it.
    pub fn warnings(&self) -> Vec<String> {
        let is_warning = |finding: &&Finding| finding.refuses || !matches!(finding.subject, Subject::Engine(_));
        self.findings.iter().filter(is_warning).map(Finding::to_string).collect()
    }

    /// The refusal of an import.
    pub(crate) fn fault(&self) -> Fault {
        let first = self.findings.iter().find(|finding| finding.refuses);
        let kind = first.map_or(ErrorKind::Unsupported, |finding| finding.kind);
        Fault::new(kind, format_args!("{self}; import it with `anyway` to keep it for others"))
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
