//! Building blocks of layers and head.

use candle_core::{Result as Computed, Tensor};
use candle_nn::ops::{rms_norm, silu};

use super::architecture::Activation;
use super::matrix::Matrix;
use super::shape::Shape;
use super::weights::Tensors;
use crate::engine::EngineError;

/// A root-mean-square norm.
pub(super) struct Norm {
    weight: Tensor,
    epsilon: f32,
}

impl Norm {
    /// Loads the norm with the weights `name` of `length` floats.
    pub fn load(tensors: &mut Tensors<'_>, name: &str, length: u32, shape: &Shape) -> Result<Self, EngineError> {
        Ok(Self { weight: tensors.vector(name, length)?, epsilon: shape.epsilon })
    }

    /// Normalises the last axis of a contiguous `x`.
    pub fn forward(&self, x: &Tensor) -> Computed<Tensor> {
        rms_norm(x, &self.weight, self.epsilon)
    }
}

/// A matrix with an optional bias.
pub(super) struct Projection {
    matrix: Matrix,
    bias: Option<Tensor>,
}

impl Projection {
    /// Loads `<name>.weight` and, if `biased`, `<name>.bias`.
    pub fn load(
        tensors: &mut Tensors<'_>,
        name: &str,
        columns: u32,
        rows: u32,
        biased: bool,
    ) -> Result<Self, EngineError> {
        let matrix = tensors.matrix(&format!("{name}.weight"), columns, rows)?;
        let bias = if biased { Some(tensors.vector(&format!("{name}.bias"), rows)?) } else { None };
        Ok(Self { matrix, bias })
    }

    pub fn forward(&self, x: &Tensor, allow_rounding: bool) -> Computed<Tensor> {
        let x = self.matrix.forward(x, allow_rounding)?;
        match &self.bias {
            Some(bias) => x.broadcast_add(bias),
            None => Ok(x),
        }
    }
}

/// A gated feed-forward network.
pub(super) struct FeedForward {
    gate: Matrix,
    up: Matrix,
    down: Matrix,
    activation: Activation,
}

impl FeedForward {
    /// Loads the network of the block with the tensors `<block>.<tensor>`.
    pub fn load(tensors: &mut Tensors<'_>, block: &str, shape: &Shape) -> Result<Self, EngineError> {
        let Shape { width, inner, .. } = *shape;
        Ok(Self {
            gate: tensors.matrix(&format!("{block}.ffn_gate.weight"), width, inner)?,
            up: tensors.matrix(&format!("{block}.ffn_up.weight"), width, inner)?,
            down: tensors.matrix(&format!("{block}.ffn_down.weight"), inner, width)?,
            activation: shape.architecture.activation,
        })
    }

    pub fn forward(&self, x: &Tensor, allow_rounding: bool) -> Computed<Tensor> {
        let gate = self.gate.forward(x, allow_rounding)?;
        let gate = match self.activation {
            Activation::Silu => silu(&gate)?,
            Activation::Gelu => gate.gelu()?,
        };
        self.down.forward(&(gate * self.up.forward(x, allow_rounding)?)?, allow_rounding)
    }
}
