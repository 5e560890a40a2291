//! Attention of a session's rows over its KV.

use candle_core::{Device, Result as Computed, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::kv::Kv;
use super::matrix::Matrix;
use super::parts::{Norm, Projection};
use super::rope::Rope;
use super::shape::Shape;
use super::weights::Tensors;
use crate::engine::EngineError;

/// Visible keys of a step's rows.
pub(super) struct VisibleKeys {
    /// Position of the first key that is visible to any row.
    first: usize,
    /// `[rows, keys]`: 1 for a masked key. A single row has no mask.
    mask: Option<Tensor>,
}

impl VisibleKeys {
    /// The mask of `rows` rows from position `pos` on: causal, and with a `window` of positions that includes the row's
    /// own.
    pub fn new(pos: usize, rows: usize, window: Option<usize>, device: &Device) -> Computed<Self> {
        let first = window.map_or(0, |window| (pos + 1).saturating_sub(window));
        if rows == 1 {
            return Ok(Self { first, mask: None });
        }
        let end = pos + rows;
        let masked = |row: usize, key: usize| key > row || window.is_some_and(|window| row - key >= window);
        let mask: Vec<u8> =
            (pos..end).flat_map(|row| (first..end).map(move |key| u8::from(masked(row, key)))).collect();
        Ok(Self { first, mask: Some(Tensor::from_vec(mask, (rows, end - first), device)?) })
    }
}

/// Context of a block within a step.
pub(super) struct BlockContext<'a> {
    /// Index of the layer in the stage.
    pub layer: usize,
    /// Position of the first row.
    pub pos: usize,
    pub rope: &'a Rope,
    pub visible: &'a VisibleKeys,
    /// Whether results may differ from those of candle's models.
    pub allow_rounding: bool,
}

/// The attention of one block.
pub(super) struct Attention {
    q: Projection,
    k: Projection,
    v: Projection,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    o: Matrix,
    heads: usize,
    /// Query heads for each KV head.
    queries_per_kv: usize,
    head: usize,
    score_scale: f64,
}

impl Attention {
    /// Loads the attention of the block with the tensors `<block>.<tensor>`.
    pub fn load(tensors: &mut Tensors<'_>, block: &str, shape: &Shape) -> Result<Self, EngineError> {
        let Shape { architecture, width, heads, kv_heads, head, .. } = *shape;
        // No overflow: `shape` bounds the number of heads by the width, and the size of a head.
        let (all, all_kv) = (heads * head, kv_heads * head);
        let mut projection = |part: &str, rows: u32| {
            Projection::load(tensors, &format!("{block}.attn_{part}"), width, rows, architecture.biases)
        };
        let (q, k, v) = (projection("q", all)?, projection("k", all_kv)?, projection("v", all_kv)?);
        let mut norm = |part: &str| {
            let name = format!("{block}.attn_{part}_norm.weight");
            architecture.head_norms.then(|| Norm::load(tensors, &name, head, shape)).transpose()
        };
        let (q_norm, k_norm) = (norm("q")?, norm("k")?);
        let o = tensors.matrix(&format!("{block}.attn_output.weight"), all, width)?;
        let (head, score_scale) = (head as usize, shape.score_scale);
        let (heads, queries_per_kv) = (heads as usize, (heads / kv_heads) as usize);
        Ok(Self { q, k, v, q_norm, k_norm, o, heads, queries_per_kv, head, score_scale })
    }

    /// Computes the attention of `x`, `[rows, width]`, and stores its keys and values in `kv`.
    pub fn forward(&self, x: &Tensor, context: &BlockContext<'_>, kv: &mut Kv) -> Computed<Tensor> {
        let rotated =
            |x: Tensor, norm: &Option<Norm>| context.rope.apply(&self.by_head(x, norm.as_ref())?, context.pos);
        let q = rotated(self.q.forward(x, context.allow_rounding)?, &self.q_norm)?;
        let k = rotated(self.k.forward(x, context.allow_rounding)?, &self.k_norm)?;
        let v = self.by_head(self.v.forward(x, context.allow_rounding)?, None)?;
        let (keys, values) = kv.put(context.layer, context.pos, &k, &v)?;
        let first = context.visible.first;
        let seen = keys.dim(1)? - first;
        let (keys, values) = (keys.narrow(1, first, seen)?, values.narrow(1, first, seen)?);

        // Head by head in two dimensions: the products equal those of candle's models bit by bit, and keys and values are
        // read in place instead of being copied for each query head.
        let hidden = Tensor::new(f32::NEG_INFINITY, x.device())?;
        let mut attended = Vec::with_capacity(self.heads);
        for index in 0..self.heads {
            let (keys, values) = (keys.get(index / self.queries_per_kv)?, values.get(index / self.queries_per_kv)?);
            let scores = (q.get(index)?.matmul(&keys.t()?)? / self.score_scale)?;
            let scores = match &context.visible.mask {
                Some(mask) => mask.where_cond(&hidden.broadcast_as(scores.shape())?, &scores)?,
                None => scores,
            };
            attended.push(softmax_last_dim(&scores)?.matmul(&values)?);
        }
        self.o.forward(&Tensor::cat(&attended, 1)?, context.allow_rounding)
    }

    /// Splits `[rows, heads * head]` into contiguous `[heads, rows, head]`, with each head normalised.
    fn by_head(&self, x: Tensor, norm: Option<&Norm>) -> Computed<Tensor> {
        let (rows, all) = x.dims2()?;
        let x = x.reshape((rows, all / self.head, self.head))?;
        let x = match norm {
            Some(norm) => norm.forward(&x)?,
            None => x,
        };
        x.transpose(0, 1)?.contiguous()
    }
}
