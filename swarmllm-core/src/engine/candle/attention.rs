//! Attention of one session's rows over its KV.

use candle_core::{Device, Result as Computed, Tensor};
use candle_nn::ops::softmax_last_dim;

use super::kv::Kv;
use super::matrix::Matrix;
use super::parts::{Norm, Projection};
use super::rope::Rope;
use super::shape::Shape;
use super::weights::Tensors;
use crate::engine::EngineError;

/// Which keys the rows of a step see.
pub(super) struct Sight {
    /// Position of the first key that any row sees.
    first: usize,
    /// `[rows, keys]`: 1 where a row does not see a key. A single row sees all.
    mask: Option<Tensor>,
}

impl Sight {
    /// Of `rows` rows from position `pos` on, which see `window` positions with their own, or all up to their own.
    pub fn new(pos: usize, rows: usize, window: Option<usize>, device: &Device) -> Computed<Self> {
        let first = window.map_or(0, |window| (pos + 1).saturating_sub(window));
        if rows == 1 {
            return Ok(Self { first, mask: None });
        }
        let end = pos + rows;
        let unseen = |row: usize, key: usize| key > row || window.is_some_and(|window| row - key >= window);
        let mask: Vec<u8> =
            (pos..end).flat_map(|row| (first..end).map(move |key| u8::from(unseen(row, key)))).collect();
        Ok(Self { first, mask: Some(Tensor::from_vec(mask, (rows, end - first), device)?) })
    }
}

/// Where a block's attention stands in a step.
pub(super) struct Place<'a> {
    /// The layer, counted from the stage's first.
    pub layer: usize,
    /// Position of the first row.
    pub pos: usize,
    pub rope: &'a Rope,
    pub sight: &'a Sight,
    /// Whether the numbers may be others than those of candle's own models.
    pub free: bool,
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
    /// Query heads that share one of keys and values.
    sharing: usize,
    head: usize,
    score_scale: f64,
}

impl Attention {
    /// The attention of the block whose tensors are called `<block>.<tensor>`.
    pub fn load(tensors: &mut Tensors<'_>, block: &str, shape: &Shape) -> Result<Self, EngineError> {
        let Shape { architecture, width, heads, kv_heads, head, .. } = *shape;
        // Neither overflows: there are no more heads than `shape` admits width, none longer than it admits.
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
        let (heads, sharing) = (heads as usize, (heads / kv_heads) as usize);
        Ok(Self { q, k, v, q_norm, k_norm, o, heads, sharing, head, score_scale })
    }

    /// Attends with `x`, `[rows, width]`, and leaves its keys and values in `kv`.
    pub fn forward(&self, x: &Tensor, place: &Place<'_>, kv: &mut Kv) -> Computed<Tensor> {
        let rotated = |x: Tensor, norm: &Option<Norm>| place.rope.apply(&self.by_head(x, norm.as_ref())?, place.pos);
        let q = rotated(self.q.forward(x, place.free)?, &self.q_norm)?;
        let k = rotated(self.k.forward(x, place.free)?, &self.k_norm)?;
        let v = self.by_head(self.v.forward(x, place.free)?, None)?;
        let (keys, values) = kv.put(place.layer, place.pos, &k, &v)?;
        let first = place.sight.first;
        let seen = keys.dim(1)? - first;
        let (keys, values) = (keys.narrow(1, first, seen)?, values.narrow(1, first, seen)?);

        // Head by head in two dimensions: the products are then those of candle's own model, row by row and bit by bit,
        // yet keys and values are read where they lie instead of being copied once for each head that shares them.
        let hidden = Tensor::new(f32::NEG_INFINITY, x.device())?;
        let mut attended = Vec::with_capacity(self.heads);
        for index in 0..self.heads {
            let (keys, values) = (keys.get(index / self.sharing)?, values.get(index / self.sharing)?);
            let scores = (q.get(index)?.matmul(&keys.t()?)? / self.score_scale)?;
            let scores = match &place.sight.mask {
                Some(mask) => mask.where_cond(&hidden.broadcast_as(scores.shape())?, &scores)?,
                None => scores,
            };
            attended.push(softmax_last_dim(&scores)?.matmul(&values)?);
        }
        self.o.forward(&Tensor::cat(&attended, 1)?, place.free)
    }

    /// Turns `[rows, heads * head]` into `[heads, rows, head]`, contiguous, each head normed.
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
