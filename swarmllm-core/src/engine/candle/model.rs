//! The weights of a stage, and the forward pass of one session's rows.

use candle_core::{Device, Result as Computed, Tensor};

use super::attention::{Attention, BlockContext, VisibleKeys};
use super::error::{bad_model, not_loaded};
use super::kv::Kv;
use super::matrix::Matrix;
use super::parts::{FeedForward, Norm};
use super::rope::Rope;
use super::shape::Shape;
use super::weights::Tensors;
use crate::engine::{EngineError, StepOptions};
use crate::model::StageSource;

/// RoPE frequency factors (divisors).
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// One transformer block.
struct Block {
    /// Index into [`Weights::kinds`].
    kind: usize,
    attention_norm: Norm,
    attention: Attention,
    attention_post_norm: Option<Norm>,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
    feed_forward_post_norm: Option<Norm>,
}

impl Block {
    fn load(tensors: &mut Tensors<'_>, layer: u32, shape: &Shape) -> Result<Self, EngineError> {
        let block = format!("blk.{layer}");
        let (attention, feed_forward) =
            (Attention::load(tensors, &block, shape)?, FeedForward::load(tensors, &block, shape)?);
        let mut norm = |part: &str| Norm::load(tensors, &format!("{block}.{part}.weight"), shape.width, shape);
        let (attention_norm, feed_forward_norm) = (norm("attn_norm")?, norm("ffn_norm")?);
        let mut post_norm = |part: &str| shape.architecture.post_norms.then(|| norm(part)).transpose();
        Ok(Self {
            kind: usize::from(shape.window_of(layer).is_some()),
            attention_norm,
            attention,
            attention_post_norm: post_norm("post_attention_norm")?,
            feed_forward_norm,
            feed_forward,
            feed_forward_post_norm: post_norm("post_ffw_norm")?,
        })
    }

    fn forward(&self, x: Tensor, context: &BlockContext<'_>, kv: &mut Kv) -> Computed<Tensor> {
        let after = |x: Tensor, norm: &Option<Norm>| match norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        };
        let attended = self.attention.forward(&self.attention_norm.forward(&x)?, context, kv)?;
        let x = (after(attended, &self.attention_post_norm)? + x)?;
        let fed = self.feed_forward.forward(&self.feed_forward_norm.forward(&x)?, context.allow_rounding)?;
        after(fed, &self.feed_forward_post_norm)? + x
    }
}

/// Output norm and output matrix.
struct Head {
    norm: Norm,
    output: Matrix,
    softcap: Option<f64>,
}

impl Head {
    fn load(tensors: &mut Tensors<'_>, shape: &Shape) -> Result<Self, EngineError> {
        let norm = Norm::load(tensors, "output_norm.weight", shape.width, shape)?;
        let name = if tensors.has("output.weight") { "output.weight" } else { "token_embd.weight" };
        let output = tensors.matrix(name, shape.width, shape.vocab)?;
        Ok(Self { norm, output, softcap: shape.softcap.map(f64::from) })
    }

    /// Logits, or the states behind the output norm.
    fn forward(&self, x: &Tensor, states: bool) -> Computed<Tensor> {
        let x = self.norm.forward(x)?;
        if states {
            return Ok(x);
        }
        // Few rows and a large matrix, so it is never dequantised.
        let logits = self.output.forward(&x, false)?;
        match self.softcap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }
}

/// Shared data of the blocks of one kind.
struct BlockKind {
    rope: Rope,
    /// Window in positions; `None` for full attention.
    window: Option<usize>,
}

/// Loads the kinds of blocks: with full attention and, if the model has windows, with a window.
fn load_kinds(tensors: &mut Tensors<'_>, shape: &Shape, context: u32) -> Result<Vec<BlockKind>, EngineError> {
    let pairs = shape.architecture.pairs;
    let (layers, device) = (tensors.layers(), tensors.device().clone());
    let rope = |base: f32, divisors: &[f32]| {
        Rope::new(shape.head, base, divisors, pairs, context, &device).map_err(|error| not_loaded(layers, error))
    };
    let mut divisors = vec![shape.rope_factor; shape.head as usize / 2];
    if shape.architecture.rope_factors && tensors.has(ROPE_FACTORS) {
        let factors = tensors.vector(ROPE_FACTORS, shape.head / 2)?.to_vec1::<f32>();
        for (divisor, factor) in divisors.iter_mut().zip(factors.map_err(|error| not_loaded(layers, error))?) {
            if !factor.is_finite() || factor <= 0.0 {
                return Err(bad_model(ROPE_FACTORS, "a factor is not positive and finite"));
            }
            *divisor *= factor;
        }
    }
    let mut kinds = vec![BlockKind { rope: rope(shape.rope_base, &divisors)?, window: None }];
    if let Some(window) = &shape.window {
        kinds.push(BlockKind { rope: rope(window.base, &[])?, window: Some(window.size as usize) });
    }
    Ok(kinds)
}

/// Requested output of a stage with the head.
#[derive(Clone, Copy)]
pub(super) struct OutputRows<'a> {
    /// Indices of the rows.
    pub rows: &'a [u32],
    /// Options of the step.
    pub options: StepOptions<'a>,
}

/// The weights of a stage.
pub(super) struct Weights {
    pub shape: Shape,
    device: Device,
    kinds: Vec<BlockKind>,
    blocks: Vec<Block>,
    head: Option<Head>,
    /// Bytes of all tensors.
    pub bytes: u64,
}

impl Weights {
    /// Loads a stage for sessions of at most `context` positions.
    pub fn load(source: &StageSource, context: u32, device: Device) -> Result<Self, EngineError> {
        let shape = Shape::read(&source.manifest)?;
        let mut tensors = Tensors::new(source, &device)?;
        let kinds = load_kinds(&mut tensors, &shape, context)?;
        let layers = source.layers.start..source.layers.end;
        let blocks = layers.map(|layer| Block::load(&mut tensors, layer, &shape)).collect::<Result<_, _>>()?;
        let head = source.head.then(|| Head::load(&mut tensors, &shape)).transpose()?;
        Ok(Self { shape, device, kinds, blocks, head, bytes: tensors.finish()? })
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Whether the output is the requested rows' logits rather than all rows' hidden states.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Computes one session's rows `hidden` from position `pos` on. Returns every row's hidden state, or with the head the
    /// logits or states of the requested rows; `None` if the step is cancelled.
    pub fn forward(
        &self,
        hidden: Vec<f32>,
        output: OutputRows<'_>,
        pos: usize,
        kv: &mut Kv,
    ) -> Computed<Option<Vec<f32>>> {
        let width = self.shape.width as usize;
        let rows = hidden.len() / width;
        let visible: Vec<VisibleKeys> = self
            .kinds
            .iter()
            .map(|kind| VisibleKeys::new(pos, rows, kind.window, &self.device))
            .collect::<Computed<_>>()?;
        let mut x = Tensor::from_vec(hidden, (rows, width), &self.device)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            if output.options.is_cancelled() {
                return Ok(None);
            }
            let (rope, visible) = (&self.kinds[block.kind].rope, &visible[block.kind]);
            x = block.forward(
                x,
                &BlockContext { layer, pos, rope, visible, allow_rounding: output.options.allow_rounding },
                kv,
            )?;
        }
        let Some(head) = &self.head else { return x.flatten_all()?.to_vec1().map(Some) };
        if output.rows.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let x = x.index_select(&Tensor::new(output.rows, &self.device)?, 0)?;
        head.forward(&x, output.options.states)?.flatten_all()?.to_vec1().map(Some)
    }
}
