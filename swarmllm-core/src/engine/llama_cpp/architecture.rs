//! How an architecture is described: the facts that it has beside those that all have, the tensors of a layer, and
//! whatever in llama.cpp counts layers.

use crate::base::LayerRange;
use crate::engine::{CutRules, EngineError};

use super::header::Header;
use super::rope::Rotation;
use super::shape::Shape;
use super::tensors::{Layer, Others};
use super::window::WindowRule;

/// What is particular about an architecture. What all of them share is in [`Shape`].
#[derive(Debug)]
pub(super) struct Architecture {
    /// Its name in a GGUF.
    pub name: &'static str,
    /// Facts that it has beside those that all have.
    pub facts: &'static [Known],
    /// Facts that llama.cpp reads for it and that are not certified: they must be absent or zero.
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
    pub layer: fn(&mut Layer),
    /// Tensors that all layers share; each stage has them.
    pub shared: fn(&mut Others),
    /// Tensors of the head, beside the norm and the matrix.
    pub head: fn(&mut Others),
    /// Checks the facts beyond what is checked of each.
    pub check: fn(&Shape) -> Result<(), EngineError>,
    /// Cut rules, beside those that windows make.
    pub cuts: fn(&Shape, &mut CutRules),
    /// Writes the facts of a stage that are not those of the model.
    pub repair: fn(&Shape, LayerRange, &mut Header),
}

impl Architecture {
    /// An architecture whose layers have these tensors, and otherwise nothing particular.
    pub const fn new(name: &'static str, layer: fn(&mut Layer)) -> Self {
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
            repair: |_, _, _| (),
        }
    }

    /// Whether the key is one of its own facts.
    pub fn knows(&self, key: &str) -> bool {
        self.facts.iter().any(|known| known.key == key)
    }
}

/// A fact that an architecture has of its own.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    pub key: &'static str,
    pub kind: Kind,
    pub required: bool,
    /// Whether a stage has it as the model has; otherwise [`Architecture::repair`] may write it.
    pub kept: bool,
}

/// What a fact may be.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// An integer up to this.
    Count(u32),
    /// A finite number.
    Number,
    /// A finite number above zero.
    Positive,
    Flag,
}

impl Known {
    pub const fn new(key: &'static str, kind: Kind) -> Self {
        Self { key, kind, required: false, kept: true }
    }

    pub const fn count(key: &'static str, max: u32) -> Self {
        Self::new(key, Kind::Count(max))
    }

    pub const fn number(key: &'static str) -> Self {
        Self::new(key, Kind::Number)
    }

    pub const fn positive(key: &'static str) -> Self {
        Self::new(key, Kind::Positive)
    }

    pub const fn flag(key: &'static str) -> Self {
        Self::new(key, Kind::Flag)
    }

    /// The model must have it.
    pub const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// A stage does not have it as the model has.
    pub const fn repaired(self) -> Self {
        Self { kept: false, ..self }
    }
}

/// How rows are normalised.
#[derive(Debug, Clone, Copy)]
pub(super) enum Norm {
    RootMeanSquare,
    MeanAndVariance,
}

/// How the sizes of heads hang together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heads {
    /// Keys and values have heads of one size.
    Free,
    /// And all query heads together are as wide as the model.
    Square,
    /// Keys and values have heads of sizes of their own, which the architecture checks itself.
    Latent,
}

/// Whether there are experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    Never,
    Maybe,
    Always,
}

/// How hidden states come into llama.cpp.
#[derive(Debug, Clone, Copy)]
pub(super) enum Input {
    /// As embeddings.
    Hidden,
    /// As embeddings; llama.cpp scales all that comes in, and the states are put over what it made of them, by the name
    /// of that node.
    Over(&'static str),
    /// llama.cpp takes tokens only: it is given some, and the states are put over what it looked up.
    OverTokens(&'static str),
}

impl Input {
    /// The node that the states are put over.
    pub fn node(self) -> Option<&'static str> {
        match self {
            Self::Hidden => None,
            Self::Over(node) | Self::OverTokens(node) => Some(node),
        }
    }
}

/// By what embeddings are multiplied before the first layer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Scale {
    None,
    RootOfWidth,
    /// The fact of this name, where it is there and not zero.
    Fact(&'static str),
}

/// Where llama.cpp looks for the output matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Output {
    /// The model has one, or the embedding serves.
    Any,
    /// The model must have one.
    Own,
    /// The embedding serves.
    Embedding,
}
