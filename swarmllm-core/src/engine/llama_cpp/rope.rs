//! Parameters of rotary position embeddings (RoPE).

use crate::engine::EngineError;

use super::error::bad;
use super::facts::Facts;
use super::header::Header;
use super::limits::MAX_CONTEXT;

/// Scaling with separate frequencies for short and for long contexts.
const LONG_ROPE: &str = "longrope";

/// llama.cpp rounds a session's cells up to this before it compares them with the original context.
const CELL_ROUNDING: u32 = 256;

/// Rotated share of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rotation {
    /// The whole head, as llama.cpp asserts.
    Whole,
    /// All or a part of the head.
    Part,
}

/// RoPE parameters of a model.
#[derive(Debug, Clone)]
pub(super) struct Rope {
    /// Rotated floats of a head.
    pub dims: u32,
    base: Option<f32>,
    scaling: Option<String>,
    factor: Option<f32>,
    attention_factor: Option<f32>,
    /// Context before scaling.
    original: Option<u32>,
}

impl Rope {
    /// Reads the parameters of a model with heads of `head_size` floats; scalings outside `certified` are refused.
    pub fn read(facts: &Facts, rotation: Rotation, certified: &[&str], head_size: u32) -> Result<Self, EngineError> {
        let dims = facts.u32("rope.dimension_count")?.unwrap_or(head_size);
        let fits = match rotation {
            Rotation::Whole => dims == head_size,
            Rotation::Part => dims > 0 && dims % 2 == 0 && dims <= head_size,
        };
        if !fits {
            return Err(bad(facts.name("rope.dimension_count"), format!("{dims} does not suit heads of {head_size}")));
        }
        let scaling = facts.string("rope.scaling.type")?;
        if let Some(other) = scaling.filter(|scaling| !certified.contains(scaling)) {
            let other: String = other.chars().take(32).collect();
            return Err(bad(facts.name("rope.scaling.type"), format!("`{other}` is not certified")));
        }
        let factor = match facts.positive("rope.scaling.factor")? {
            None => facts.positive("rope.scale_linear")?,
            given => given,
        };
        let original = "rope.scaling.original_context_length";
        Ok(Self {
            dims,
            base: facts.positive("rope.freq_base")?,
            scaling: scaling.map(str::to_owned),
            factor,
            attention_factor: facts.positive("rope.scaling.attn_factor")?,
            original: if facts.has(original) { Some(facts.count(original, MAX_CONTEXT)?) } else { None },
        })
    }

    /// The longest context of a stage, for a model trained for `trained` positions.
    ///
    /// With two sets of frequencies llama.cpp uses the short one for contexts up to the original and the long one beyond,
    /// so that stages of unequal contexts would compute different models. All stages keep to the original context.
    pub fn max_context(&self, trained: u32) -> u32 {
        match self.original {
            Some(original) if self.scaling.as_deref() == Some(LONG_ROPE) && original >= CELL_ROUNDING => {
                trained.min(original - original % CELL_ROUNDING)
            }
            _ => trained,
        }
    }

    /// Writes the parameters to a stage's header.
    pub fn write(&self, header: &mut Header) {
        header.u32("rope.dimension_count", self.dims);
        header.f32("rope.freq_base", self.base);
        if let Some(scaling) = &self.scaling {
            header.string("rope.scaling.type", scaling);
        }
        header.f32("rope.scaling.factor", self.factor);
        header.f32("rope.scaling.attn_factor", self.attention_factor);
        if let Some(context) = self.original {
            header.u32("rope.scaling.original_context_length", context);
        }
    }
}
