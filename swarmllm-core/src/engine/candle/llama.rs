//! The `llama` architecture: Llama, SmolLM2, and what else was converted under that name.
//!
//! Its arithmetic is that of candle's own whole model, operation by operation, so that a split gives its very bits; what
//! differs is what is around: a range of layers, sessions side by side, rollback, and a KV cache that is not copied.

use candle_core::quantized::QMatMul;
use candle_core::utils::with_threadpool;
use candle_core::{DType, Device, Module, Result as Computed, Tensor};
use candle_nn::ops::{rms_norm, silu, softmax_last_dim};
use candle_nn::rotary_emb::rope_i;

use super::facts::Facts;
use super::kv::{Cells, Kv};
use super::weights::Tensors;
use super::{NAME, bad_model, failed, not_loaded};
use crate::base::ModelId;
use crate::engine::slots::Slots;
use crate::engine::{EngineError, Row, Stage, StageConfig, StageSpec};
use crate::model::{Manifest, StageSource};

/// Its name in a GGUF.
pub(super) const ARCHITECTURE: &str = "llama";

/// Keys `llama.*` that are read below or that change nothing.
const KEYS: [&str; 19] = [
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "expert_count",
    "expert_used_count",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "tensor_data_layout",
    "vocab_size",
];

/// What the key-values say about the shape of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shape {
    width: u32,
    heads: u32,
    kv_heads: u32,
    head: u32,
    inner: u32,
    epsilon: f32,
    rope_base: f32,
}

impl Shape {
    /// Longest head that is admitted; real ones have 256 at most.
    const MAX_HEAD: u32 = 1024;
    /// Widest hidden state that is admitted; the largest of Llama 3.1 is 16,384.
    const MAX_WIDTH: u32 = 65_536;
    const DEFAULT_ROPE_BASE: f32 = 10_000.0;

    /// Reads and checks the key-values; refuses what this file does not compute.
    pub fn read(manifest: &Manifest) -> Result<Self, EngineError> {
        let facts = Facts::new(manifest);
        facts.only(&KEYS)?;
        let refuse = |key: &str, reason: &str| Err(bad_model(format!("{ARCHITECTURE}.{key}"), reason));
        if facts.u32("expert_count")?.unwrap_or(0) > 0 {
            return refuse("expert_count", "candle's engine does not run mixtures of experts");
        }
        let scaled = facts.string("rope.scaling.type")? != Some("none");
        let factor = facts.f32("rope.scaling.factor")?.unwrap_or(1.0);
        if scaled && (factor != 1.0 || !matches!(facts.string("rope.scaling.type")?, None | Some("linear"))) {
            return refuse("rope.scaling.type", "candle's engine does not scale positions");
        }
        let width = manifest.width;
        if width == 0 || width > Self::MAX_WIDTH {
            return refuse("embedding_length", "candle's engine does not take hidden states of this width");
        }
        if manifest.vocab == 0 {
            return refuse("vocab_size", "there are no tokens");
        }
        let heads = facts.require_u32("attention.head_count")?;
        let kv_heads = facts.u32("attention.head_count_kv")?.unwrap_or(heads);
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 || heads > width {
            return refuse("attention.head_count", "the heads do not divide into those of keys and values");
        }
        let head = facts.u32("attention.key_length")?.unwrap_or(width / heads);
        let value = facts.u32("attention.value_length")?.unwrap_or(head);
        let rotated = facts.u32("rope.dimension_count")?.unwrap_or(head);
        if head == 0 || head % 2 != 0 || head > Self::MAX_HEAD || value != head || rotated != head {
            return refuse("attention.key_length", "keys, values and their rotation are not of one even length");
        }
        let epsilon = facts.f32("attention.layer_norm_rms_epsilon")?.filter(|epsilon| *epsilon > 0.0);
        let Some(epsilon) = epsilon else {
            return refuse("attention.layer_norm_rms_epsilon", "it is missing or not positive");
        };
        let rope_base = facts.f32("rope.freq_base")?.unwrap_or(Self::DEFAULT_ROPE_BASE);
        if rope_base <= 0.0 {
            return refuse("rope.freq_base", "it is not positive");
        }
        let inner = facts.require_u32("feed_forward_length")?;
        Ok(Self { width, heads, kv_heads, head, inner, epsilon, rope_base })
    }

    fn cells(&self) -> Cells {
        Cells { heads: self.kv_heads as usize, head: self.head as usize }
    }
}

/// Cosines and sines of each position, `[context, head / 2]`.
struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// `factors` divide the frequencies, where the model has them (Llama 3.1).
    fn new(shape: &Shape, context: u32, factors: Option<Vec<f32>>) -> Computed<Self> {
        let head = shape.head as usize;
        let mut frequencies: Vec<f32> =
            (0..head).step_by(2).map(|axis| 1.0 / shape.rope_base.powf(axis as f32 / head as f32)).collect();
        for (frequency, factor) in frequencies.iter_mut().zip(factors.into_iter().flatten()) {
            *frequency /= factor;
        }
        let frequencies = Tensor::from_vec(frequencies, (1, head / 2), &Device::Cpu)?;
        let positions = Tensor::arange(0, context, &Device::Cpu)?.to_dtype(DType::F32)?;
        let angles = positions.reshape((context as usize, 1))?.matmul(&frequencies)?;
        Ok(Self { cos: angles.cos()?, sin: angles.sin()? })
    }

    /// Turns `[rows, heads * head]` into `[heads, rows, head]`, rotated for the positions from `pos` on.
    fn apply(&self, x: &Tensor, head: usize, pos: usize) -> Computed<Tensor> {
        let x = by_head(x, head)?;
        let rows = x.dim(1)?;
        let (cos, sin) = (self.cos.narrow(0, pos, rows)?, self.sin.narrow(0, pos, rows)?);
        rope_i(&x.unsqueeze(0)?, &cos, &sin)?.squeeze(0)
    }
}

/// Turns `[rows, heads * head]` into `[heads, rows, head]`, contiguous.
fn by_head(x: &Tensor, head: usize) -> Computed<Tensor> {
    let (rows, all) = x.dims2()?;
    x.reshape((rows, all / head, head))?.transpose(0, 1)?.contiguous()
}

/// One transformer block.
struct Block {
    attn_norm: Tensor,
    q: QMatMul,
    k: QMatMul,
    v: QMatMul,
    o: QMatMul,
    ffn_norm: Tensor,
    gate: QMatMul,
    up: QMatMul,
    down: QMatMul,
}

impl Block {
    fn load(tensors: &mut Tensors<'_>, layer: u32, shape: &Shape) -> Result<Self, EngineError> {
        let Shape { width, inner, head, .. } = *shape;
        // Neither overflows: there are no more heads than `MAX_WIDTH`, none longer than `MAX_HEAD`.
        let (all, all_kv) = (shape.heads * head, shape.kv_heads * head);
        let name = |tensor: &str| format!("blk.{layer}.{tensor}.weight");
        Ok(Self {
            attn_norm: tensors.vector(&name("attn_norm"), width)?,
            q: tensors.matrix(&name("attn_q"), width, all)?,
            k: tensors.matrix(&name("attn_k"), width, all_kv)?,
            v: tensors.matrix(&name("attn_v"), width, all_kv)?,
            o: tensors.matrix(&name("attn_output"), all, width)?,
            ffn_norm: tensors.vector(&name("ffn_norm"), width)?,
            gate: tensors.matrix(&name("ffn_gate"), width, inner)?,
            up: tensors.matrix(&name("ffn_up"), width, inner)?,
            down: tensors.matrix(&name("ffn_down"), inner, width)?,
        })
    }
}

/// Output norm and output matrix.
struct Head {
    norm: Tensor,
    output: QMatMul,
}

impl Head {
    fn load(tensors: &mut Tensors<'_>, manifest: &Manifest) -> Result<Self, EngineError> {
        let norm = tensors.vector("output_norm.weight", manifest.width)?;
        let name = if tensors.has("output.weight") { "output.weight" } else { "token_embd.weight" };
        Ok(Self { norm, output: tensors.matrix(name, manifest.width, manifest.vocab)? })
    }
}

/// What of a step belongs to one session: rows that follow each other.
struct Run<'a> {
    slot: u32,
    /// Position of the first row.
    pos: usize,
    /// Indices into the step's rows.
    rows: Vec<usize>,
    kv: &'a mut Kv,
}

/// The weights of a stage.
struct Weights {
    shape: Shape,
    rope: Rope,
    blocks: Vec<Block>,
    head: Option<Head>,
}

impl Weights {
    /// Loads the stage; gives with it the bytes of its weights.
    fn load(source: &StageSource, context: u32) -> Result<(Self, u64), EngineError> {
        const FACTORS: &str = "rope_freqs.weight";
        let shape = Shape::read(&source.manifest)?;
        let fault = |error| not_loaded(source.layers, error);
        let mut tensors = Tensors::new(source)?;
        let factors = match tensors.has(FACTORS) {
            true => Some(tensors.vector(FACTORS, shape.head / 2)?.to_vec1::<f32>().map_err(fault)?),
            false => None,
        };
        if factors.iter().flatten().any(|factor| !factor.is_finite() || *factor <= 0.0) {
            return Err(bad_model(FACTORS, "a factor is not positive and finite"));
        }
        let rope = Rope::new(&shape, context, factors).map_err(fault)?;
        let layers = source.layers.start..source.layers.end;
        let blocks = layers.map(|layer| Block::load(&mut tensors, layer, &shape)).collect::<Result<_, _>>()?;
        let head = source.head.then(|| Head::load(&mut tensors, &source.manifest)).transpose()?;
        Ok((Self { shape, rope, blocks, head }, tensors.finish()?))
    }

    /// Computes the rows of one session: gives every row's hidden state, or with the head the logits of each wanted one.
    fn forward(&self, hidden: Vec<f32>, wanted: &[u32], run: &mut Run<'_>) -> Computed<Vec<f32>> {
        let rows = run.rows.len();
        let mask = if rows > 1 { Some(causal_mask(rows, run.pos)?) } else { None };
        let mut x = Tensor::from_vec(hidden, (rows, self.shape.width as usize), &Device::Cpu)?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = self.block(block, layer, x, mask.as_ref(), run)?;
        }
        let Some(head) = &self.head else { return x.flatten_all()?.to_vec1() };
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let x = x.index_select(&Tensor::new(wanted, &Device::Cpu)?, 0)?;
        let x = rms_norm(&x, &head.norm, self.shape.epsilon)?;
        head.output.forward(&x)?.flatten_all()?.to_vec1()
    }

    fn block(
        &self,
        block: &Block,
        layer: usize,
        x: Tensor,
        mask: Option<&Tensor>,
        run: &mut Run<'_>,
    ) -> Computed<Tensor> {
        let normed = rms_norm(&x, &block.attn_norm, self.shape.epsilon)?;
        let x = (self.attend(block, layer, &normed, mask, run)? + x)?;
        let normed = rms_norm(&x, &block.ffn_norm, self.shape.epsilon)?;
        let gate = block.gate.forward(&normed)?;
        let up = block.up.forward(&normed)?;
        block.down.forward(&(silu(&gate)? * up)?)? + x
    }

    fn attend(
        &self,
        block: &Block,
        layer: usize,
        x: &Tensor,
        mask: Option<&Tensor>,
        run: &mut Run<'_>,
    ) -> Computed<Tensor> {
        let head = self.shape.head as usize;
        let q = self.rope.apply(&block.q.forward(x)?, head, run.pos)?;
        let k = self.rope.apply(&block.k.forward(x)?, head, run.pos)?;
        let v = by_head(&block.v.forward(x)?, head)?;
        let (keys, values) = run.kv.put(layer, run.pos, &k, &v)?;

        // Head by head in two dimensions: the products are then those of candle's own model, row by row and bit by bit,
        // yet keys and values are read where they lie instead of being copied once for each head that shares them.
        let sharing = (self.shape.heads / self.shape.kv_heads) as usize;
        let scale = (head as f64).sqrt();
        let hidden = Tensor::new(f32::NEG_INFINITY, &Device::Cpu)?;
        let mut attended = Vec::with_capacity(self.shape.heads as usize);
        for index in 0..self.shape.heads as usize {
            let (keys, values) = (keys.get(index / sharing)?, values.get(index / sharing)?);
            let scores = (q.get(index)?.matmul(&keys.t()?)? / scale)?;
            let scores = match mask {
                Some(mask) => mask.where_cond(&hidden.broadcast_as(scores.shape())?, &scores)?,
                None => scores,
            };
            attended.push(softmax_last_dim(&scores)?.matmul(&values)?);
        }
        block.o.forward(&Tensor::cat(&attended, 1)?)
    }
}

/// `[rows, pos + rows]`: 1 where a key lies after the row.
fn causal_mask(rows: usize, pos: usize) -> Computed<Tensor> {
    let mask: Vec<u8> = (0..rows).flat_map(|row| (0..pos + rows).map(move |key| u8::from(key > pos + row))).collect();
    Tensor::from_vec(mask, (rows, pos + rows), &Device::Cpu)
}

/// A range of layers of a llama.
pub(super) struct LlamaStage {
    spec: StageSpec,
    model: ModelId,
    weights: Weights,
    slots: Slots,
    kv: Vec<Kv>,
}

impl LlamaStage {
    pub fn load(source: &StageSource, config: &StageConfig) -> Result<Self, EngineError> {
        let manifest = &source.manifest;
        let context = config.context.min(manifest.context);
        let config = StageConfig { context, ..config.clone() };
        let (weights, weight_bytes) = Weights::load(source, context)?;
        let cells = weights.shape.cells();
        let layers = weights.blocks.len();
        let kv_bytes = (cells.floats() * layers * size_of::<f32>()) as u64 * u64::from(context);
        let spec = StageSpec {
            engine: NAME,
            layers: source.layers,
            width: manifest.width,
            vocab: source.head.then_some(manifest.vocab),
            memory: weight_bytes.saturating_add(kv_bytes),
            config,
        };
        let kv = (0..spec.config.max_sessions).map(|_| Kv::new(cells, layers)).collect();
        Ok(Self { slots: Slots::new(&spec.config), model: manifest.id(), spec, weights, kv })
    }

    /// What a snapshot of `len` positions begins with: it fits only the same layers of the same model, computed so.
    fn snapshot_header(&self, len: u32) -> Vec<u8> {
        let Shape { kv_heads, head, .. } = self.weights.shape;
        let mut header = Self::SNAPSHOT.to_vec();
        header.extend_from_slice(self.model.as_bytes());
        for word in [self.spec.layers.start, self.spec.layers.end, kv_heads, head, len] {
            header.extend_from_slice(&word.to_le_bytes());
        }
        header
    }

    /// Version of the snapshots' layout and of the arithmetic behind their numbers.
    const SNAPSHOT: [u8; 8] = *b"candle01";
}

impl Stage for LlamaStage {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn check(&self, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError> {
        self.slots.check(&self.spec, hidden, rows)
    }

    fn step(&mut self, hidden: &[f32], rows: &[Row], out: &mut Vec<f32>) -> Result<(), EngineError> {
        self.slots.check(&self.spec, hidden, rows)?;
        out.clear();
        let (weights, runs) = (&self.weights, runs(&mut self.kv, rows));
        let floats = self.spec.vocab.unwrap_or(self.spec.width) as usize;
        with_threadpool(|| compute(weights, hidden, rows, runs, floats, out)).map_err(failed)?;
        self.slots.commit(rows);
        Ok(())
    }

    fn truncate(&mut self, slot: u32, len: u32) -> Result<(), EngineError> {
        self.slots.truncate(slot, len).map(drop)
    }

    fn release(&mut self, slot: u32) {
        self.slots.release(slot);
        if let Some(kv) = self.kv.get_mut(slot as usize) {
            kv.clear();
        }
    }

    fn snapshot(&mut self, slot: u32) -> Result<Vec<u8>, EngineError> {
        let len = self.slots.held(slot)?;
        let mut state = self.snapshot_header(len);
        if let Some(kv) = self.kv.get(slot as usize) {
            kv.save(len as usize, &mut state).map_err(failed)?;
        }
        Ok(state)
    }

    fn restore(&mut self, slot: u32, len: u32, state: &[u8]) -> Result<(), EngineError> {
        let refuse = |reason: &str| EngineError::Snapshot { reason: reason.to_owned() };
        self.slots.admits(slot, len)?;
        let header = self.snapshot_header(len);
        let body = state.strip_prefix(header.as_slice());
        let body = body.ok_or_else(|| refuse("it is of another model, of other layers or of another length"))?;
        let (words, rest) = body.as_chunks::<{ size_of::<f32>() }>();
        let expected = self.weights.shape.cells().floats() * self.weights.blocks.len() * len as usize;
        if !rest.is_empty() || words.len() != expected {
            return Err(refuse("it holds another number of values"));
        }
        let floats: Vec<f32> = words.iter().map(|word| f32::from_le_bytes(*word)).collect();
        if !floats.iter().all(|value| value.is_finite()) {
            return Err(refuse("it holds a value that is not finite"));
        }
        self.release(slot);
        if let Some(kv) = self.kv.get_mut(slot as usize) {
            kv.load(len as usize, &floats).map_err(failed)?;
        }
        self.slots.put(slot, len);
        Ok(())
    }
}

/// Sorts the rows of a checked step by session, in the order in which the sessions first occur.
fn runs<'a>(kv: &'a mut [Kv], rows: &[Row]) -> Vec<Run<'a>> {
    let mut kvs: Vec<Option<&mut Kv>> = kv.iter_mut().map(Some).collect();
    let mut runs: Vec<Run<'_>> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if let Some(run) = runs.iter_mut().find(|run| run.slot == row.slot) {
            run.rows.push(index);
        } else if let Some(kv) = kvs.get_mut(row.slot as usize).and_then(Option::take) {
            runs.push(Run { slot: row.slot, pos: row.pos as usize, rows: vec![index], kv });
        }
    }
    runs
}

/// Computes a checked step session by session, and leaves what comes out, `floats` a row, in the order of the rows.
fn compute(
    weights: &Weights,
    hidden: &[f32],
    rows: &[Row],
    runs: Vec<Run<'_>>,
    floats: usize,
    out: &mut Vec<f32>,
) -> Computed<()> {
    let gives = |row: &Row| weights.head.is_none() || row.want;
    out.resize(rows.iter().filter(|row| gives(row)).count() * floats, 0.0);
    let states: Vec<&[f32]> = hidden.chunks_exact(weights.shape.width as usize).collect();
    // Where each row's output goes; `None` for a row that gives none.
    let mut places: Vec<Option<&mut [f32]>> = Vec::with_capacity(rows.len());
    let mut free = out.chunks_exact_mut(floats);
    places.extend(rows.iter().map(|row| if gives(row) { free.next() } else { None }));

    for mut run in runs {
        let hidden = run.rows.iter().flat_map(|&row| states[row]).copied().collect();
        let wanted: Vec<u32> = (0..).zip(&run.rows).filter(|&(_, &row)| rows[row].want).map(|(at, _)| at).collect();
        let given = weights.forward(hidden, &wanted, &mut run)?;
        let places = run.rows.iter().filter_map(|&row| places[row].take());
        for (place, given) in places.zip(given.chunks_exact(floats)) {
            place.copy_from_slice(given);
        }
    }
    Ok(())
}
