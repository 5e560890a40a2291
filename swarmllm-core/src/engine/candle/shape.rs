//! The shape of a model: its validated key-values.

use super::architecture::{Architecture, COMMON_KEYS};
use super::error::bad_model;
use super::facts::Facts;
use super::kv::Cells;
use crate::engine::EngineError;
use crate::model::Manifest;

/// Largest head size; real models have 256 at most.
const MAX_HEAD: u32 = 1024;
/// Largest width; the largest of Llama 3.1 is 16,384.
const MAX_WIDTH: u32 = 65_536;
/// Default RoPE base.
const ROPE_BASE: f32 = 10_000.0;
/// Default of Gemma 3: every sixth layer has full attention.
const WINDOW_PERIOD: u32 = 6;

/// Sliding windows of a model.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    /// Positions of a window, including the current one.
    pub size: u32,
    /// RoPE base of windowed layers.
    pub base: f32,
    /// For each layer of the model whether it is windowed.
    layers: Vec<bool>,
}

/// A model's validated key-values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub architecture: &'static Architecture,
    pub width: u32,
    pub vocab: u32,
    /// Query heads; at most `width`.
    pub heads: u32,
    /// Key heads, equal to the value heads; a divisor of `heads`.
    pub kv_heads: u32,
    /// Floats of a head; even.
    pub head: u32,
    /// Width of the feed-forward network.
    pub inner: u32,
    /// Added to the mean square in norms.
    pub epsilon: f32,
    /// RoPE base of layers without a window.
    pub rope_base: f32,
    /// Divisor of positions in layers without a window.
    pub rope_factor: f32,
    /// Divisor of attention scores.
    pub score_scale: f64,
    pub window: Option<Window>,
    /// Bound of the logits' soft capping.
    pub softcap: Option<f32>,
}

impl Shape {
    /// Reads and validates the key-values; refuses uncertified architectures and unsupported features.
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

    /// Bytes of a block's largest matrix in f32.
    pub fn matrix_bytes(&self) -> u64 {
        let rows = self.inner.max(self.heads.saturating_mul(self.head));
        u64::from(self.width) * u64::from(rows) * size_of::<f32>() as u64
    }

    /// Size of the KV cells.
    pub fn cells(&self) -> Cells {
        Cells { heads: self.kv_heads as usize, head: self.head as usize }
    }

    /// Window of a layer in positions, including the current one; `None` for full attention.
    pub fn window_of(&self, layer: u32) -> Option<usize> {
        let window = self.window.as_ref()?;
        let windowed = window.layers.get(layer as usize).copied().unwrap_or_default();
        windowed.then_some(window.size as usize)
    }

    /// Factor of the embeddings.
    pub fn embedding_scale(&self) -> Option<f32> {
        self.architecture.scaled_embedding.then(|| (self.width as f32).sqrt())
    }
}

fn read_heads(facts: &Facts<'_>, width: u32) -> Result<(u32, u32), EngineError> {
    let heads = facts.require_u32("attention.head_count")?;
    let kv_heads = facts.u32("attention.head_count_kv")?.unwrap_or(heads);
    if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || heads > width {
        let reason = "the number of query heads is not a multiple of the KV heads";
        return Err(facts.refuse("attention.head_count", reason));
    }
    Ok((heads, kv_heads))
}

/// Head size; by default a head's share of the width.
fn read_head(facts: &Facts<'_>, share: u32) -> Result<u32, EngineError> {
    let head = facts.u32("attention.key_length")?.unwrap_or(share);
    let value = facts.u32("attention.value_length")?.unwrap_or(head);
    let rotated = facts.u32("rope.dimension_count")?.unwrap_or(head);
    if head == 0 || head % 2 != 0 || head > MAX_HEAD || value != head || rotated != head {
        let reason = "keys, values and their rotated part do not have one even size";
        return Err(facts.refuse("attention.key_length", reason));
    }
    Ok(head)
}

/// Factor of linear position scaling; other scalings are refused. A factor without a type is linear, as in llama.cpp.
fn read_factor(facts: &Facts<'_>) -> Result<f32, EngineError> {
    let factor = facts.positive("rope.scaling.factor")?.unwrap_or(1.0);
    match facts.string("rope.scaling.type")? {
        Some("none") => Ok(1.0),
        None | Some("linear") => Ok(factor),
        Some(_) => Err(facts.refuse("rope.scaling.type", "candle's engine supports only linear scaling of positions")),
    }
}

/// The pattern is a flag for each layer, or a period whose last layer has full attention (0: all layers are windowed).
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
