//! What of a model cannot run on a node, as hosts are told.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::base::{ErrorKind, Fault};

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

impl ImportReport {
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
