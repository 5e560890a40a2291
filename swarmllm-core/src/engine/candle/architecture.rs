//! The certified architectures: one description each, of what tells it from the others. The arithmetic is shared.
//!
//! A new one is a line of [`CERTIFIED`] once `tests/candle_whole.rs` shows that it is what an independent engine computes,
//! and this room's tests that any split of it gives the bits of the whole.

use super::error::NAME;
use crate::engine::EngineError;

/// Keys `<architecture>.*` that are read for every architecture or that change nothing.
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

/// Which two floats of a head a rotation turns together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// One and the next; GGUFs of llamas are permuted for it.
    Neighbours,
    /// One of the first half and its counterpart in the second.
    Halves,
}

/// What the gate of a feed-forward network goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Activation {
    Silu,
    /// By its tanh approximation, which is what models are trained with.
    Gelu,
}

/// What tells an architecture from the others.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// Its name in a GGUF.
    pub name: &'static str,
    /// Keys beside [`COMMON_KEYS`].
    pub keys: &'static [&'static str],
    pub pairs: Pairs,
    /// A tensor of factors may divide the frequencies of rotations (Llama 3.1).
    pub rope_factors: bool,
    /// Queries, keys and values have biases.
    pub biases: bool,
    /// Each head of queries and keys is normed before it is rotated.
    pub head_norms: bool,
    /// What attention and feed-forward network give is normed before it is added.
    pub post_norms: bool,
    pub activation: Activation,
    /// Some layers see a window only, and rotate by a base of their own.
    pub windows: bool,
    /// Embeddings are multiplied by the root of their width.
    pub scaled_embedding: bool,
    /// At this number of layers scores are scaled by a head's share of the width instead of by its length.
    pub scale_by_share: Option<u32>,
}

/// Llama, SmolLM2, Mistral, and what else is converted under that name.
const LLAMA: Architecture = Architecture {
    name: "llama",
    keys: &["expert_count", "expert_used_count", "tensor_data_layout"],
    pairs: Pairs::Neighbours,
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
    Architecture { name: "qwen2", keys: &[], pairs: Pairs::Halves, rope_factors: false, biases: true, ..LLAMA };

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

/// All of them.
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
