//! How much memory a stage takes, from the manifest alone.

use crate::base::LayerRange;
use crate::engine::StageConfig;
use crate::model::Manifest;
use crate::model::gguf::Facts;

/// Bytes of one KV value: both engines keep f16 or f32; the larger is assumed where the facts do not say.
const KV_VALUE_BYTES: u64 = 2;
/// Activations and graph of a step, beside weights and KV: about this many hidden states per row.
const SCRATCH_STATES: u64 = 16;

/// Bytes that a stage takes: its tensors, its KV cells and scratch for one step.
pub fn stage_memory(manifest: &Manifest, layers: LayerRange, head: bool, config: &StageConfig) -> u64 {
    let weights: u64 = manifest.stage_shards(layers, head).map(|shard| shard.size).sum();
    let kv =
        kv_bytes_per_token(manifest).saturating_mul(u64::from(layers.len())).saturating_mul(u64::from(config.context));
    let width = u64::from(manifest.width);
    let scratch = u64::from(config.max_rows).saturating_mul(width).saturating_mul(4 * SCRATCH_STATES);
    weights.saturating_add(kv).saturating_add(scratch)
}

/// Bytes of KV that one token takes in one layer: `kv heads * (key length + value length) * 2 bytes`; compressed values
/// are a part of the keys.
fn kv_bytes_per_token(manifest: &Manifest) -> u64 {
    let width = u64::from(manifest.width);
    let heads = fact(manifest, "attention.head_count").unwrap_or(1).max(1);
    let kv_heads = fact(manifest, "attention.head_count_kv").unwrap_or(heads);
    let keys = fact(manifest, "attention.key_length").unwrap_or(width / heads);
    let values = match fact(manifest, "attention.key_length_mla") {
        Some(1..) => 0,
        _ => fact(manifest, "attention.value_length").unwrap_or(width / heads),
    };
    kv_heads.saturating_mul(keys.saturating_add(values)).saturating_mul(KV_VALUE_BYTES)
}

/// An integer fact of the architecture; `None` where it is absent or another type.
fn fact(manifest: &Manifest, name: &str) -> Option<u64> {
    let key = format!("{}.{name}", manifest.architecture);
    Facts(&manifest.facts).u32(&key).ok().flatten().map(u64::from)
}
