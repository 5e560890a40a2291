//! What the key-values of a model say, checked: everything that its arithmetic needs to know beside its tensors.

use super::architecture::{Architecture, COMMON_KEYS};
use super::error::bad_model;
use super::facts::Facts;
use super::kv::Cells;
use crate::engine::EngineError;
use crate::model::Manifest;

/// Longest head that is admitted; real ones have 256 at most.
const MAX_HEAD: u32 = 1024;
/// Widest hidden state that is admitted; the largest of Llama 3.1 is 16,384.
const MAX_WIDTH: u32 = 65_536;
/// Base of rotations where the model names none.
const ROPE_BASE: f32 = 10_000.0;
/// Every sixth layer of Gemma 3 sees everything, unless the model says otherwise.
const WINDOW_PERIOD: u32 = 6;

/// Layers that see a window.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    /// Positions that they see, their own included.
    pub size: u32,
    /// Base of their rotations.
    pub base: f32,
    /// Which layers of the model they are.
    layers: Vec<bool>,
}

/// What the key-values say.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub architecture: &'static Architecture,
    pub width: u32,
    pub vocab: u32,
    /// Query heads; no more than `width`.
    pub heads: u32,
    /// Key heads, and equally value heads; they divide `heads`.
    pub kv_heads: u32,
    /// Floats of a head, even.
    pub head: u32,
    /// Width of the feed-forward network.
    pub inner: u32,
    /// Added to the mean square in norms.
    pub epsilon: f32,
    /// Base of rotations where a layer has no window.
    pub rope_base: f32,
    /// Positions are divided by it where a layer has no window.
    pub rope_factor: f32,
    /// Scores are divided by it.
    pub score_scale: f64,
    pub window: Option<Window>,
    /// Logits approach it and no more.
    pub softcap: Option<f32>,
}

impl Shape {
    /// Reads and checks the key-values; refuses an architecture that is not certified and what is not computed of it.
    pub fn read(manifest: &Manifest) -> Result<Self, EngineError> {
        let architecture = Architecture::of(&manifest.architecture)?;
        let facts = Facts::new(manifest);
        facts.only([&COMMON_KEYS, architecture.keys])?;
        if facts.u32("expert_count")?.unwrap_or(0) > 0 {
            return Err(facts.refuse("expert_count", "candle's engine does not run mixtures of experts"));
        }
        let (width, vocab) = (manifest.width, manifest.vocab);
        if width == 0 || width > MAX_WIDTH {
            return Err(bad_model("width", format!("{width} is not in 1..={MAX_WIDTH}")));
        }
        if vocab == 0 {
            return Err(bad_model("vocabulary", "there are no tokens"));
        }
        let (heads, kv_heads) = read_heads(&facts, width)?;
        let head = read_head(&facts, width / heads)?;
        let epsilon = "attention.layer_norm_rms_epsilon";
        let epsilon = facts.positive(epsilon)?.ok_or_else(|| facts.refuse(epsilon, "it is missing"))?;
        let by_share = architecture.scale_by_share == Some(manifest.layers);
        Ok(Self {
            architecture,
            width,
            vocab,
            heads,
            kv_heads,
            head,
            inner: facts.require_u32("feed_forward_length")?,
            epsilon,
            rope_base: facts.positive("rope.freq_base")?.unwrap_or(ROPE_BASE),
            rope_factor: read_factor(&facts)?,
            score_scale: f64::from(if by_share { width / heads } else { head }).sqrt(),
            window: if architecture.windows { Some(read_window(&facts, manifest.layers)?) } else { None },
            softcap: facts.positive("final_logit_softcapping")?,
        })
    }

    /// Bytes of a block's largest matrix in floats.
    pub fn matrix_bytes(&self) -> u64 {
        let rows = self.inner.max(self.heads.saturating_mul(self.head));
        u64::from(self.width) * u64::from(rows) * size_of::<f32>() as u64
    }

    /// Cells of the KV.
    pub fn cells(&self) -> Cells {
        Cells { heads: self.kv_heads as usize, head: self.head as usize }
    }

    /// Positions that a layer sees, its own included, where it does not see all.
    pub fn sees(&self, layer: u32) -> Option<usize> {
        let window = self.window.as_ref()?;
        let windowed = window.layers.get(layer as usize).copied().unwrap_or_default();
        windowed.then_some(window.size as usize)
    }

    /// What embeddings are multiplied by.
    pub fn embedding_scale(&self) -> Option<f32> {
        self.architecture.scaled_embedding.then(|| (self.width as f32).sqrt())
    }
}

fn read_heads(facts: &Facts<'_>, width: u32) -> Result<(u32, u32), EngineError> {
    let heads = facts.require_u32("attention.head_count")?;
    let kv_heads = facts.u32("attention.head_count_kv")?.unwrap_or(heads);
    if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || heads > width {
        let reason = "the heads do not divide into those of keys and values";
        return Err(facts.refuse("attention.head_count", reason));
    }
    Ok((heads, kv_heads))
}

/// Where a head's length is not told it is its share of the width.
fn read_head(facts: &Facts<'_>, share: u32) -> Result<u32, EngineError> {
    let head = facts.u32("attention.key_length")?.unwrap_or(share);
    let value = facts.u32("attention.value_length")?.unwrap_or(head);
    let rotated = facts.u32("rope.dimension_count")?.unwrap_or(head);
    if head == 0 || head % 2 != 0 || head > MAX_HEAD || value != head || rotated != head {
        let reason = "keys, values and their rotation are not of one even length";
        return Err(facts.refuse("attention.key_length", reason));
    }
    Ok(head)
}

/// Positions are scaled linearly or not at all. A factor without a type is a linear one, as in llama.cpp.
fn read_factor(facts: &Facts<'_>) -> Result<f32, EngineError> {
    let factor = facts.positive("rope.scaling.factor")?.unwrap_or(1.0);
    match facts.string("rope.scaling.type")? {
        Some("none") => Ok(1.0),
        None | Some("linear") => Ok(factor),
        Some(_) => Err(facts.refuse("rope.scaling.type", "candle's engine scales positions only linearly")),
    }
}

/// The pattern is a flag per layer, or a period of which the last layer sees everything (0: none does).
fn read_window(facts: &Facts<'_>, layers: u32) -> Result<Window, EngineError> {
    let (key, pattern) = ("attention.sliding_window", "attention.sliding_window_pattern");
    let size = facts.require_u32(key)?;
    if size == 0 {
        return Err(facts.refuse(key, "a window holds at least one position"));
    }
    let layers = match facts.flags(pattern)? {
        Some(flags) => flags,
        None => {
            let period = facts.u32(pattern)?.unwrap_or(WINDOW_PERIOD);
            (0..layers).map(|layer| period == 0 || layer % period < period - 1).collect()
        }
    };
    Ok(Window { size, base: facts.positive("rope.freq_base_swa")?.unwrap_or(ROPE_BASE), layers })
}
