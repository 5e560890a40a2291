//! The weights of a stage, and what they compute for the rows of one session.

use candle_core::{Device, Result as Computed, Tensor};

use super::attention::{Attention, Place, Sight};
use super::error::{bad_model, not_loaded};
use super::kv::Kv;
use super::matrix::Matrix;
use super::parts::{FeedForward, Norm};
use super::rope::Rope;
use super::shape::Shape;
use super::weights::Tensors;
use crate::engine::{EngineError, Terms};
use crate::model::StageSource;

/// Factors that divide the frequencies of rotations.
pub(super) const FACTORS: &str = "rope_freqs.weight";

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
            kind: usize::from(shape.sees(layer).is_some()),
            attention_norm,
            attention,
            attention_post_norm: post_norm("post_attention_norm")?,
            feed_forward_norm,
            feed_forward,
            feed_forward_post_norm: post_norm("post_ffw_norm")?,
        })
    }

    fn forward(&self, x: Tensor, place: &Place<'_>, kv: &mut Kv) -> Computed<Tensor> {
        let after = |x: Tensor, norm: &Option<Norm>| match norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        };
        let attended = self.attention.forward(&self.attention_norm.forward(&x)?, place, kv)?;
        let x = (after(attended, &self.attention_post_norm)? + x)?;
        let fed = self.feed_forward.forward(&self.feed_forward_norm.forward(&x)?, place.free)?;
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

    /// Logits, or the states that they are made of.
    fn forward(&self, x: &Tensor, states: bool) -> Computed<Tensor> {
        let x = self.norm.forward(x)?;
        if states {
            return Ok(x);
        }
        // Of few rows, and large: never made floats of.
        let logits = self.output.forward(&x, false)?;
        match self.softcap {
            Some(cap) => (logits / cap)?.tanh()? * cap,
            None => Ok(logits),
        }
    }
}

/// What blocks of one kind share.
struct Kind {
    rope: Rope,
    /// Positions that they see, where not all.
    window: Option<usize>,
}

/// Loads the kinds of blocks: those that see everything and, where the model has them, those that see a window.
fn load_kinds(tensors: &mut Tensors<'_>, shape: &Shape, context: u32) -> Result<Vec<Kind>, EngineError> {
    let pairs = shape.architecture.pairs;
    let (layers, device) = (tensors.layers(), tensors.device().clone());
    let rope = |base: f32, divisors: &[f32]| {
        Rope::new(shape.head, base, divisors, pairs, context, &device).map_err(|error| not_loaded(layers, error))
    };
    let mut divisors = vec![shape.rope_factor; shape.head as usize / 2];
    if shape.architecture.rope_factors && tensors.has(FACTORS) {
        let factors = tensors.vector(FACTORS, shape.head / 2)?.to_vec1::<f32>();
        for (divisor, factor) in divisors.iter_mut().zip(factors.map_err(|error| not_loaded(layers, error))?) {
            if !factor.is_finite() || factor <= 0.0 {
                return Err(bad_model(FACTORS, "a factor is not positive and finite"));
            }
            *divisor *= factor;
        }
    }
    let mut kinds = vec![Kind { rope: rope(shape.rope_base, &divisors)?, window: None }];
    if let Some(window) = &shape.window {
        kinds.push(Kind { rope: rope(window.base, &[])?, window: Some(window.size as usize) });
    }
    Ok(kinds)
}

/// What a stage with the head is to give.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Of which rows.
    pub rows: &'a [u32],
    /// Whether states or logits, and for how long.
    pub terms: Terms<'a>,
}

/// The weights of a stage.
pub(super) struct Weights {
    pub shape: Shape,
    device: Device,
    kinds: Vec<Kind>,
    blocks: Vec<Block>,
    head: Option<Head>,
    /// Bytes of all tensors.
    pub bytes: u64,
}

impl Weights {
    /// Loads a stage whose sessions have at most `context` positions.
    pub fn load(source: &StageSource, context: u32, device: Device) -> Result<Self, EngineError> {
        let shape = Shape::read(&source.manifest)?;
        let mut tensors = Tensors::new(source, &device)?;
        let kinds = load_kinds(&mut tensors, &shape, context)?;
        let layers = source.layers.start..source.layers.end;
        let blocks = layers.map(|layer| Block::load(&mut tensors, layer, &shape)).collect::<Result<_, _>>()?;
        let head = source.head.then(|| Head::load(&mut tensors, &shape)).transpose()?;
        Ok(Self { shape, device, kinds, blocks, head, bytes: tensors.finish()? })
    }

    /// Blocks of the stage.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Whether logits come out, of rows that are wanted, rather than every row's hidden state.
    pub fn has_head(&self) -> bool {
        self.head.is_some()
    }

    /// Computes rows of one session, `hidden`, which begin at position `pos`: gives every row's hidden state, or with the
    /// head the logits of the rows whose indices are `wanted`, or their states. Nothing where they are wanted no more.
    pub fn forward(&self, hidden: Vec<f32>, wanted: Wanted<'_>, pos: usize, kv: &mut Kv) -> Computed<Option<Vec<f32>>> {
        let width = self.shape.width as usize;
        let rows = hidden.len() / width;
        let sights: Vec<Sight> =
            self.kinds.iter().map(|kind| Sight::new(pos, rows, kind.window, &self.device)).collect::<Computed<_>>()?;
        let mut x = Tensor::from_vec(hidden, (rows, width), &self.device)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            if wanted.terms.is_abandoned() {
                return Ok(None);
            }
            let (rope, sight) = (&self.kinds[block.kind].rope, &sights[block.kind]);
            x = block.forward(x, &Place { layer, pos, rope, sight, free: wanted.terms.free }, kv)?;
        }
        let Some(head) = &self.head else { return x.flatten_all()?.to_vec1().map(Some) };
        if wanted.rows.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let x = x.index_select(&Tensor::new(wanted.rows, &self.device)?, 0)?;
        head.forward(&x, wanted.terms.states)?.flatten_all()?.to_vec1().map(Some)
    }
}
