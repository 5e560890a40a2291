//! What a certified architecture's model looks like: its facts, checked so that llama.cpp cannot stumble over them, the
//! cuts it admits, and the header that a stage of it needs.
//!
//! A stage's header is written from this struct and never copied from the model: a key that is not understood here does
//! not reach llama.cpp. Keys that would change what llama.cpp computes and are not certified are refused; all others are
//! ones that llama.cpp does not read for these architectures.

use crate::base::LayerRange;
use crate::engine::{CutRules, EngineError};
use crate::model::Manifest;

use super::facts::{Facts, bad};
use super::image::Header;

/// Layers, heads and widths beyond which nothing is accepted; llama.cpp's own limit of layers is 512.
const MAX_LAYERS: u32 = 512;
const MAX_HEADS: u32 = 1024;
const MAX_HEAD_SIZE: u32 = 1024;
const MAX_WIDTH: u32 = 1 << 17;
const MAX_FEED_FORWARD: u32 = 1 << 20;
const MAX_VOCAB: u32 = 1 << 22;
const MAX_CONTEXT: u32 = 1 << 26;

/// Every sixth layer of Gemma 3 attends to everything, unless the model says otherwise.
const GEMMA3_PERIOD: u32 = 6;

/// Gemma 3 of this many layers has another attention scale, which llama.cpp derives from the layer count: a stage of
/// fewer layers would be computed wrongly.
const GEMMA3_27B_LAYERS: u32 = 62;

/// Keys that must be absent or zero: experts, prediction layers and widths that differ between layers are not certified.
const UNCERTIFIED: [&str; 10] = [
    "expert_count",
    "expert_used_count",
    "expert_group_count",
    "expert_group_used_count",
    "nextn_predict_layers",
    "embedding_length_out",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.dimension_count_swa",
    "pooling_type",
];

/// An architecture whose stages were proven equal to the whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Architecture {
    /// Llama and everything that shares its graph (SmolLM2, Mistral 7B, ...).
    Llama,
    /// Gemma 3, text.
    Gemma3,
}

impl Architecture {
    /// The certified list.
    const CERTIFIED: [(&'static str, Architecture); 2] =
        [("llama", Architecture::Llama), ("gemma3", Architecture::Gemma3)];

    fn of(name: &str) -> Result<Self, EngineError> {
        let found = Self::CERTIFIED.iter().find(|(certified, _)| *certified == name);
        found.map(|(_, architecture)| *architecture).ok_or_else(|| EngineError::UnsupportedArchitecture {
            engine: super::ENGINE,
            architecture: name.chars().take(64).collect(),
            certified: Self::CERTIFIED.map(|(certified, _)| certified).join(", "),
        })
    }

    /// Its name in a GGUF.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Gemma3 => "gemma3",
        }
    }
}

/// Rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rope {
    /// Rotated floats of a head.
    pub dims: u32,
    base: Option<f32>,
    scaling: Option<String>,
    factor: Option<f32>,
    attention_factor: Option<f32>,
    original_context: Option<u32>,
}

/// Sliding-window attention.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Window {
    /// Positions that a windowed layer sees, its own included.
    pub size: u32,
    /// Which layers are windowed.
    pub layers: Vec<bool>,
    base: Option<f32>,
}

/// A model's checked facts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Shape {
    pub architecture: Architecture,
    pub layers: u32,
    pub width: u32,
    pub vocab: u32,
    /// Positions that the model was trained for.
    pub context: u32,
    /// Query heads of a layer.
    pub heads: u32,
    /// Key heads of a layer, and equally value heads.
    pub kv_heads: u32,
    /// Width of the feed-forward network.
    pub feed_forward: u32,
    /// Floats of a head.
    pub head_size: u32,
    epsilon: f32,
    pub rope: Rope,
    pub window: Option<Window>,
    softcap: Option<f32>,
}

impl Shape {
    /// Reads and checks the facts of a manifest.
    pub fn read(manifest: &Manifest) -> Result<Self, EngineError> {
        let architecture = Architecture::of(&manifest.architecture)?;
        let facts = Facts::of(manifest);
        refuse_uncertified(&facts)?;
        let layers = facts.count("block_count", MAX_LAYERS)?;
        let width = facts.count("embedding_length", MAX_WIDTH)?;
        let context = facts.count("context_length", MAX_CONTEXT)?;
        for (what, fact, given) in [("layers", layers, manifest.layers), ("width", width, manifest.width)] {
            if fact != given {
                return Err(bad(what, format!("the manifest says {given}, the facts say {fact}")));
            }
        }
        if manifest.vocab == 0 || manifest.vocab > MAX_VOCAB {
            return Err(bad("vocabulary", format!("{} tokens are not in 1..={MAX_VOCAB}", manifest.vocab)));
        }
        let (heads, kv_heads) = read_heads(&facts, layers)?;
        let feed_forward = uniform(&facts, "feed_forward_length", layers, MAX_FEED_FORWARD)?;
        let head_size = read_head_size(&facts, width / heads)?;
        let epsilon = required(&facts, "attention.layer_norm_rms_epsilon")?;
        let rope = read_rope(&facts, architecture, head_size)?;
        let (window, softcap) = match architecture {
            Architecture::Llama => (None, None),
            Architecture::Gemma3 => (Some(read_window(&facts, layers)?), facts.positive("final_logit_softcapping")?),
        };
        let vocab = manifest.vocab;
        Ok(Self {
            architecture,
            layers,
            width,
            vocab,
            context,
            heads,
            kv_heads,
            feed_forward,
            head_size,
            epsilon,
            rope,
            window,
            softcap,
        })
    }

    /// Where the model may be cut.
    pub fn cuts(&self) -> CutRules {
        let Some(window) = &self.window else { return CutRules::free() };
        let whole = self.architecture == Architecture::Gemma3 && self.layers == GEMMA3_27B_LAYERS;
        let windowed = (0..self.layers).zip(&window.layers).filter(|(_, windowed)| **windowed).map(|(layer, _)| layer);
        CutRules { align: 1, min_layers: if whole { self.layers } else { 1 }, must_contain: windowed.collect() }
    }

    /// Whether `layers`, with or without the head, can be a stage.
    pub fn admit(&self, layers: LayerRange, head: bool) -> Result<(), EngineError> {
        let rule = if layers.end > self.layers {
            Some(format!("the model has {} layers", self.layers))
        } else if head && layers.end != self.layers {
            Some("the head follows the last layer".to_owned())
        } else {
            self.cuts().refuses(layers)
        };
        match rule {
            Some(rule) => {
                Err(EngineError::IllegalCut { architecture: self.architecture.name().to_owned(), layers, rule })
            }
            None => Ok(()),
        }
    }

    /// Floats that one position's keys take in a layer, and equally its values.
    pub fn kv_width(&self) -> u64 {
        u64::from(self.kv_heads) * u64::from(self.head_size)
    }

    /// Whether a layer is windowed.
    pub fn windowed(&self, layer: u32) -> bool {
        self.window.as_ref().and_then(|window| window.layers.get(layer as usize)).copied().unwrap_or_default()
    }

    /// The factor that the architecture applies to embeddings, as llama.cpp computes it.
    pub fn embedding_scale(&self) -> Option<f32> {
        match self.architecture {
            Architecture::Llama => None,
            Architecture::Gemma3 => Some((self.width as f32).sqrt()),
        }
    }

    /// The key-values of a stage of these layers whose vocabulary is `vocab` tokens.
    pub fn header(&self, layers: LayerRange, vocab: u32) -> Header {
        let mut header = Header::new(self.architecture.name());
        header.string("tokenizer.ggml.model", "no_vocab");
        header.u32("vocab_size", vocab);
        header.u32("block_count", layers.len());
        header.u32("context_length", self.context);
        header.u32("embedding_length", self.width);
        header.u32("feed_forward_length", self.feed_forward);
        header.u32("attention.head_count", self.heads);
        header.u32("attention.head_count_kv", self.kv_heads);
        header.u32("attention.key_length", self.head_size);
        header.u32("attention.value_length", self.head_size);
        header.f32("attention.layer_norm_rms_epsilon", Some(self.epsilon));
        self.rope.write(&mut header);
        if let Some(window) = &self.window {
            header.u32("attention.sliding_window", window.size);
            let pattern = window.layers.get(layers.start as usize..layers.end as usize);
            header.bools("attention.sliding_window_pattern", pattern.unwrap_or_default());
            header.f32("rope.freq_base_swa", window.base);
        }
        header.f32("final_logit_softcapping", self.softcap);
        header
    }
}

impl Rope {
    fn write(&self, header: &mut Header) {
        header.u32("rope.dimension_count", self.dims);
        header.f32("rope.freq_base", self.base);
        if let Some(scaling) = &self.scaling {
            header.string("rope.scaling.type", scaling);
        }
        header.f32("rope.scaling.factor", self.factor);
        header.f32("rope.scaling.attn_factor", self.attention_factor);
        if let Some(context) = self.original_context {
            header.u32("rope.scaling.original_context_length", context);
        }
    }
}

fn refuse_uncertified(facts: &Facts) -> Result<(), EngineError> {
    for key in UNCERTIFIED {
        if facts.has(key) && facts.u32(key)? != Some(0) {
            return Err(bad(facts.name(key), "it is not certified"));
        }
    }
    if facts.bool("attention.causal")? == Some(false) {
        return Err(bad(facts.name("attention.causal"), "only causal attention is certified"));
    }
    Ok(())
}

fn required(facts: &Facts, key: &str) -> Result<f32, EngineError> {
    facts.positive(key)?.ok_or_else(|| bad(facts.name(key), "it is missing"))
}

fn uniform(facts: &Facts, key: &str, layers: u32, max: u32) -> Result<u32, EngineError> {
    facts.uniform(key, layers, max)?.ok_or_else(|| bad(facts.name(key), "it is missing"))
}

/// Query heads, and the key heads that they share.
fn read_heads(facts: &Facts, layers: u32) -> Result<(u32, u32), EngineError> {
    let heads = uniform(facts, "attention.head_count", layers, MAX_HEADS)?;
    let kv_heads = facts.uniform("attention.head_count_kv", layers, MAX_HEADS)?.unwrap_or(heads);
    match heads % kv_heads {
        0 => Ok((heads, kv_heads)),
        _ => Err(bad("attention heads", format!("{kv_heads} key heads do not divide {heads} heads"))),
    }
}

/// Keys and values have heads of one size; where it is not told it is each head's share of the width.
fn read_head_size(facts: &Facts, share: u32) -> Result<u32, EngineError> {
    let told = |key: &str| if facts.has(key) { facts.count(key, MAX_HEAD_SIZE).map(Some) } else { Ok(None) };
    let keys = told("attention.key_length")?.unwrap_or(share);
    let values = told("attention.value_length")?.unwrap_or(share);
    if keys == 0 || keys > MAX_HEAD_SIZE || keys % 2 != 0 || keys != values {
        return Err(bad("head size", format!("{keys} for keys and {values} for values are not one even number")));
    }
    Ok(keys)
}

fn read_rope(facts: &Facts, architecture: Architecture, head_size: u32) -> Result<Rope, EngineError> {
    let dims = facts.u32("rope.dimension_count")?.unwrap_or(head_size);
    let fits = match architecture {
        Architecture::Llama => dims == head_size,
        Architecture::Gemma3 => dims > 0 && dims % 2 == 0 && dims <= head_size,
    };
    if !fits {
        return Err(bad(facts.name("rope.dimension_count"), format!("{dims} does not suit heads of {head_size}")));
    }
    let scaling = facts.string("rope.scaling.type")?;
    if let Some(other) = scaling.filter(|scaling| !["none", "linear", "yarn"].contains(scaling)) {
        let other: String = other.chars().take(32).collect();
        return Err(bad(facts.name("rope.scaling.type"), format!("`{other}` is not certified")));
    }
    let factor = match facts.positive("rope.scaling.factor")? {
        None => facts.positive("rope.scale_linear")?,
        told => told,
    };
    let original = "rope.scaling.original_context_length";
    let original_context = if facts.has(original) { Some(facts.count(original, MAX_CONTEXT)?) } else { None };
    Ok(Rope {
        dims,
        base: facts.positive("rope.freq_base")?,
        scaling: scaling.map(str::to_owned),
        factor,
        attention_factor: facts.positive("rope.scaling.attn_factor")?,
        original_context,
    })
}

/// The pattern is an array, or a period of which the last layer sees everything (0: none does).
fn read_window(facts: &Facts, layers: u32) -> Result<Window, EngineError> {
    let size = facts.count("attention.sliding_window", MAX_CONTEXT)?;
    let key = "attention.sliding_window_pattern";
    let pattern = match facts.flags(key, layers)? {
        Some(pattern) => pattern,
        None => {
            let period = facts.u32(key)?.unwrap_or(GEMMA3_PERIOD);
            (0..layers).map(|layer| period == 0 || layer % period < period - 1).collect()
        }
    };
    if !pattern.contains(&true) {
        return Err(bad(facts.name(key), "no layer is windowed"));
    }
    Ok(Window { size, layers: pattern, base: facts.positive("rope.freq_base_swa")? })
}
