//! Validates the tensors of a manifest without reading them. The loader needs the same tensors; the tests compare both,
//! tensor by tensor.

use std::collections::HashMap;

use super::error::bad_model;
use super::model::ROPE_FACTORS;
use super::shape::Shape;
use super::weights::{check_blocks, check_entry};
use crate::engine::EngineError;
use crate::model::manifest::{EMBEDDING_TENSOR, OUTPUT_NORM_TENSOR, OUTPUT_TENSOR};
use crate::model::{Manifest, TensorEntry};

/// The tensors of a manifest that were not validated yet.
struct RemainingTensors<'a>(HashMap<&'a str, &'a TensorEntry>);

impl RemainingTensors<'_> {
    fn vector(&mut self, name: &str, length: u32) -> Result<(), EngineError> {
        let entry = self.0.remove(name).ok_or_else(|| bad_model(name, "the tensor is missing"))?;
        check_entry(entry, &[length.into()]).map(drop)
    }

    fn matrix(&mut self, name: &str, columns: u32, rows: u32) -> Result<(), EngineError> {
        let entry = self.0.remove(name).ok_or_else(|| bad_model(name, "the tensor is missing"))?;
        check_blocks(entry, columns)?;
        check_entry(entry, &[columns.into(), rows.into()]).map(drop)
    }
}

/// Refuses a model with a missing or unknown tensor, or with an unsupported type or shape.
pub(super) fn check_model(shape: &Shape, manifest: &Manifest) -> Result<(), EngineError> {
    let entries = manifest.shards.iter().flat_map(|shard| &shard.tensors);
    let mut remaining = RemainingTensors(entries.map(|entry| (entry.name.as_str(), entry)).collect());
    // A separate embedding is only looked up, never multiplied.
    match remaining.0.get(EMBEDDING_TENSOR) {
        Some(entry) if !manifest.tied => {
            check_entry(entry, &[shape.width.into(), shape.vocab.into()])?;
            remaining.0.remove(EMBEDDING_TENSOR);
        }
        _ => remaining.matrix(EMBEDDING_TENSOR, shape.width, shape.vocab)?,
    }
    remaining.vector(OUTPUT_NORM_TENSOR, shape.width)?;
    if !manifest.tied {
        remaining.matrix(OUTPUT_TENSOR, shape.width, shape.vocab)?;
    }
    if shape.architecture.rope_factors && remaining.0.contains_key(ROPE_FACTORS) {
        remaining.vector(ROPE_FACTORS, shape.head / 2)?;
    }
    for layer in 0..manifest.layers {
        check_block(&mut remaining, layer, shape)?;
    }
    match remaining.0.keys().min() {
        Some(name) => Err(bad_model(*name, "candle's engine does not know this tensor")),
        None => Ok(()),
    }
}

fn check_block(remaining: &mut RemainingTensors<'_>, layer: u32, shape: &Shape) -> Result<(), EngineError> {
    let Shape { architecture, width, heads, kv_heads, head, inner, .. } = *shape;
    // No overflow: `shape` bounds the number of heads by the width, and the size of a head.
    let (all, all_kv) = (heads * head, kv_heads * head);
    let name = |part: &str| format!("blk.{layer}.{part}");
    for (part, rows) in [("attn_q", all), ("attn_k", all_kv), ("attn_v", all_kv)] {
        remaining.matrix(&name(&format!("{part}.weight")), width, rows)?;
        if architecture.biases {
            remaining.vector(&name(&format!("{part}.bias")), rows)?;
        }
    }
    remaining.matrix(&name("attn_output.weight"), all, width)?;
    for (part, columns, rows) in [("ffn_gate", width, inner), ("ffn_up", width, inner), ("ffn_down", inner, width)] {
        remaining.matrix(&name(&format!("{part}.weight")), columns, rows)?;
    }
    let norms = [
        ("attn_norm", width, true),
        ("ffn_norm", width, true),
        ("attn_q_norm", head, architecture.head_norms),
        ("attn_k_norm", head, architecture.head_norms),
        ("post_attention_norm", width, architecture.post_norms),
        ("post_ffw_norm", width, architecture.post_norms),
    ];
    norms
        .iter()
        .filter(|(.., has)| *has)
        .try_for_each(|(part, length, _)| remaining.vector(&name(&format!("{part}.weight")), *length))
}
