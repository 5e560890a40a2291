//! Description of an architecture: its own facts, the tensors of a layer, and all rules of llama.cpp that count layers.

use crate::base::LayerRange;
use crate::engine::{CutRules, EngineError};

use super::header::Header;
use super::rope::Rotation;
use super::shape::Shape;
use super::tensors::{GlobalTensors, LayerTensors};
use super::window::WindowRule;

/// The particulars of an architecture. [`Shape`] has the facts that all architectures share.
#[derive(Debug)]
pub(super) struct Architecture {
    /// Name in GGUF files.
    pub name: &'static str,
    /// Facts beside the common ones.
    pub facts: &'static [FactRule],
    /// Facts that llama.cpp reads and that are not certified: they must be absent or zero.
    pub uncertified: &'static [&'static str],
    pub norm: Norm,
    pub heads: Heads,
    pub rotation: Rotation,
    /// Kinds of rotary scaling.
    pub scalings: &'static [&'static str],
    pub window: Option<WindowRule>,
    pub experts: Presence,
    pub input: Input,
    pub scale: Scale,
    pub output: Output,
    /// The tensors of a layer.
    pub layer: fn(&mut LayerTensors),
    /// Tensors shared by all layers; each stage has them.
    pub shared: fn(&mut GlobalTensors),
    /// Tensors of the head beside the norm and the matrix.
    pub head: fn(&mut GlobalTensors),
    /// Validates combinations of facts.
    pub check: fn(&Shape) -> Result<(), EngineError>,
    /// Cut rules beside those of windows.
    pub cuts: fn(&Shape, &mut CutRules),
    /// Writes the facts of a stage that differ from the model's.
    pub rewrite: fn(&Shape, LayerRange, &mut Header),
}

impl Architecture {
    /// An architecture whose only particular is the tensors of a layer.
    pub const fn new(name: &'static str, layer: fn(&mut LayerTensors)) -> Self {
        Self {
            name,
            facts: &[],
            uncertified: &[],
            norm: Norm::RootMeanSquare,
            heads: Heads::Free,
            rotation: Rotation::Whole,
            scalings: &["none", "linear", "yarn"],
            window: None,
            experts: Presence::Never,
            input: Input::Hidden,
            scale: Scale::None,
            output: Output::Any,
            layer,
            shared: |_| (),
            head: |_| (),
            check: |_| Ok(()),
            cuts: |_, _| (),
            rewrite: |_, _, _| (),
        }
    }

    /// Whether the key is one of the architecture's own facts.
    pub fn knows(&self, key: &str) -> bool {
        self.facts.iter().any(|rule| rule.key == key)
    }
}

/// Rule of an architecture's own fact.
#[derive(Debug, Clone, Copy)]
pub(super) struct FactRule {
    pub key: &'static str,
    pub kind: FactKind,
    pub required: bool,
    /// Whether a stage has the model's value; otherwise [`Architecture::rewrite`] may write the fact.
    pub copied: bool,
}

/// Type and range of a fact.
#[derive(Debug, Clone, Copy)]
pub(super) enum FactKind {
    /// An integer up to this maximum.
    Count(u32),
    /// A finite number.
    Number,
    /// A finite number above zero.
    Positive,
    Flag,
}

impl FactRule {
    pub const fn new(key: &'static str, kind: FactKind) -> Self {
        Self { key, kind, required: false, copied: true }
    }

    pub const fn count(key: &'static str, max: u32) -> Self {
        Self::new(key, FactKind::Count(max))
    }

    pub const fn number(key: &'static str) -> Self {
        Self::new(key, FactKind::Number)
    }

    pub const fn positive(key: &'static str) -> Self {
        Self::new(key, FactKind::Positive)
    }

    pub const fn flag(key: &'static str) -> Self {
        Self::new(key, FactKind::Flag)
    }

    /// The model must have the fact.
    pub const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// A stage does not copy the model's value.
    pub const fn rewritten(self) -> Self {
        Self { copied: false, ..self }
    }
}

/// Normalisation of rows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Norm {
    RootMeanSquare,
    MeanAndVariance,
}

/// Constraints on the sizes of heads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    /// Heads of keys and values have equal sizes.
    Free,
    /// Heads have equal sizes, and all query heads together have the model's width.
    Square,
    /// Heads of keys and values have separate sizes, which the architecture validates.
    Latent,
}

/// Presence of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Never,
    Maybe,
    Always,
}

/// Input of hidden states into llama.cpp.
#[derive(Debug, Clone, Copy)]
pub(super) enum Input {
    /// As embeddings.
    Hidden,
    /// As embeddings. llama.cpp scales its input, so the states overwrite the scaled node of this name.
    Overwrite(&'static str),
    /// llama.cpp takes tokens only, so the states overwrite the looked-up embeddings in the node of this name.
    OverwriteTokens(&'static str),
}

impl Input {
    /// The node that the states overwrite.
    pub fn node(self) -> Option<&'static str> {
        match self {
            Self::Hidden => None,
            Self::Overwrite(node) | Self::OverwriteTokens(node) => Some(node),
        }
    }
}

/// Factor of embeddings before the first layer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scale {
    None,
    RootOfWidth,
    /// The fact of this name, if present and not zero.
    Fact(&'static str),
}

/// llama.cpp's source of the output matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// A separate matrix or the embedding.
    Any,
    /// Always a separate matrix.
    Own,
    /// Always the embedding.
    Embedding,
}
