//! The certified architectures: one description of the particulars each. The arithmetic is shared.
//!
//! An architecture is added to [`CERTIFIED`] once `tests/candle_whole.rs` shows that it equals an independent engine, and
//! this module's tests show that any split equals the whole bit by bit.

use super::error::NAME;
use crate::engine::EngineError;

/// Keys `<architecture>.*` that all architectures read or that change nothing.
pub(super) const COMMON_KEYS: [&str; 16] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
];

/// Floats of a head that RoPE rotates in pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RopePairs {
    /// Adjacent floats; Llama GGUFs are permuted for it.
    Neighbours,
    /// A float of the first half and its counterpart in the second.
    Halves,
}

/// Activation of the feed-forward network's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Silu,
    /// The tanh approximation, with which models are trained.
    Gelu,
}

/// The particulars of an architecture.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// Name in GGUF files.
    pub name: &'static str,
    /// Keys beside [`COMMON_KEYS`].
    pub keys: &'static [&'static str],
    pub pairs: RopePairs,
    /// A tensor of factors may divide the RoPE frequencies (Llama 3.1).
    pub rope_factors: bool,
    /// Queries, keys and values have biases.
    pub biases: bool,
    /// Each head of queries and keys is normalised before RoPE.
    pub head_norms: bool,
    /// The outputs of attention and feed-forward network are normalised before they are added.
    pub post_norms: bool,
    pub activation: Activation,
    /// Some layers have a window and a separate RoPE base.
    pub windows: bool,
    /// Embeddings are multiplied by the square root of the width.
    pub scaled_embedding: bool,
    /// With this number of layers scores are scaled by a head's share of the width instead of the head size.
    pub scale_by_share: Option<u32>,
}

/// Llama, SmolLM2, Mistral, and other models with that name in GGUF files.
const LLAMA: Architecture = Architecture {
    name: "llama",
    keys: &["expert_count", "expert_used_count", "tensor_data_layout"],
    pairs: RopePairs::Neighbours,
    rope_factors: true,
    biases: false,
    head_norms: false,
    post_norms: false,
    activation: Activation::Silu,
    windows: false,
    scaled_embedding: false,
    scale_by_share: None,
};

/// Qwen 2 and 2.5.
const QWEN2: Architecture =
    Architecture { name: "qwen2", keys: &[], pairs: RopePairs::Halves, rope_factors: false, biases: true, ..LLAMA };

/// Qwen 3, without experts.
const QWEN3: Architecture = Architecture { name: "qwen3", biases: false, head_norms: true, ..QWEN2 };

/// Gemma 3, text.
const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    keys: &[
        "attention.sliding_window",
        "attention.sliding_window_pattern",
        "final_logit_softcapping",
        "rope.freq_base_swa",
    ],
    post_norms: true,
    activation: Activation::Gelu,
    windows: true,
    scaled_embedding: true,
    scale_by_share: Some(62),
    ..QWEN3
};

/// All certified architectures.
static CERTIFIED: [Architecture; 4] = [LLAMA, QWEN2, QWEN3, GEMMA3];

impl Architecture {
    /// The certified architecture of this name.
    pub fn of(name: &str) -> Result<&'static Self, EngineError> {
        CERTIFIED.iter().find(|certified| certified.name == name).ok_or_else(|| EngineError::UnsupportedArchitecture {
            engine: NAME,
            architecture: name.to_owned(),
            certified: CERTIFIED.each_ref().map(|certified| certified.name).join(", "),
        })
    }
}
