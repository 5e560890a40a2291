//! Rotary position embeddings (RoPE).

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::rotary_emb::{rope, rope_i};

use super::architecture::RopePairs;

/// Cosines and sines of each position, `[context, head / 2]`.
pub(super) struct Rope {
    cos: Tensor,
    sin: Tensor,
    pairs: RopePairs,
}

impl Rope {
    /// Tables for heads of `head` floats and `context` positions. `divisors` divide the first frequencies; the others stay.
    pub fn new(
        head: u32,
        base: f32,
        divisors: &[f32],
        pairs: RopePairs,
        context: u32,
        device: &Device,
    ) -> Result<Self> {
        let head = head as usize;
        let mut frequencies: Vec<f32> =
            (0..head).step_by(2).map(|axis| 1.0 / base.powf(axis as f32 / head as f32)).collect();
        for (frequency, divisor) in frequencies.iter_mut().zip(divisors) {
            *frequency /= divisor;
        }
        let frequencies = Tensor::from_vec(frequencies, (1, head / 2), device)?;
        let positions = Tensor::arange(0, context, device)?.to_dtype(DType::F32)?;
        let angles = positions.reshape((context as usize, 1))?.matmul(&frequencies)?;
        Ok(Self { cos: angles.cos()?, sin: angles.sin()?, pairs })
    }

    /// Rotates contiguous `[heads, rows, head]` for the positions from `pos` on.
    pub fn apply(&self, x: &Tensor, pos: usize) -> Result<Tensor> {
        let rows = x.dim(1)?;
        let (cos, sin) = (self.cos.narrow(0, pos, rows)?, self.sin.narrow(0, pos, rows)?);
        let rotate = match self.pairs {
            RopePairs::Neighbours => rope_i,
            RopePairs::Halves => rope,
        };
        rotate(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0)
    }
}
