//! A candle stage: its sessions, and the computation of their rows.

use candle_core::Result as Computed;
use candle_core::utils::with_threadpool;

use super::device;
use super::error::{NAME, failed, not_loaded};
use super::kv::Kv;
use super::model::{OutputRows, Weights};
use crate::engine::slots::Slots;
use crate::engine::{EngineError, KvType, Row, Stage, StageConfig, StageSpec, StepOptions};
use crate::model::StageSource;

/// The rows of a step that belong to one session, at consecutive positions.
struct SessionRows<'a> {
    slot: u32,
    /// Position of the first row.
    pos: usize,
    /// Indices into the step's rows.
    rows: Vec<usize>,
    kv: &'a mut Kv,
}

/// A range of layers on candle.
pub(super) struct CandleStage {
    spec: StageSpec,
    weights: Weights,
    slots: Slots,
    kv: Vec<Kv>,
}

impl CandleStage {
    pub fn load(source: &StageSource, config: &StageConfig) -> Result<Self, EngineError> {
        let manifest = &source.manifest;
        if config.kv == KvType::Q8 {
            return Err(not_loaded(source.layers, "it supports a KV cache in f32 only"));
        }
        let context = config.context.min(manifest.context);
        let (device, gpu_layers) = device::select(config.gpu_layers, source.layers, source.head);
        let config = StageConfig { context, gpu_layers, ..config.clone() };
        let weights = Weights::load(source, context, device.clone())?;
        let (cells, layers) = (weights.shape.cells(), weights.layers());
        let all = crate::engine::stage::kv_cells(source.layers, context, config.max_sessions);
        let kv_bytes = all.saturating_mul((cells.floats() * size_of::<f32>()) as u64);
        let spec = StageSpec {
            engine: NAME,
            layers: source.layers,
            width: manifest.width,
            vocab: source.head.then_some(manifest.vocab),
            memory: weights.bytes.saturating_add(kv_bytes),
            config,
        };
        let kv = (0..spec.config.max_sessions).map(|_| Kv::new(cells, layers, &device)).collect();
        Ok(Self { slots: Slots::new(&spec.config), spec, weights, kv })
    }
}

impl Stage for CandleStage {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn check(&self, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError> {
        self.slots.check(&self.spec, hidden, rows)
    }

    fn compute(
        &mut self,
        hidden: &[f32],
        rows: &[Row],
        options: StepOptions,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.slots.check(&self.spec, hidden, rows)?;
        out.clear();
        let (weights, runs) = (&self.weights, by_session(&mut self.kv, rows));
        let given = with_threadpool(|| compute(weights, hidden, rows, runs, options, out)).map_err(failed)?;
        // A cancelled step has written cells beyond the session's length; the next step overwrites them.
        given.ok_or(EngineError::Cancelled)?;
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
}

/// Groups the rows of a validated step by session, in order of first occurrence.
fn by_session<'a>(kv: &'a mut [Kv], rows: &[Row]) -> Vec<SessionRows<'a>> {
    let mut kvs: Vec<Option<&mut Kv>> = kv.iter_mut().map(Some).collect();
    let mut runs: Vec<SessionRows<'_>> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if let Some(run) = runs.iter_mut().find(|run| run.slot == row.slot) {
            run.rows.push(index);
        } else if let Some(kv) = kvs.get_mut(row.slot as usize).and_then(Option::take) {
            runs.push(SessionRows { slot: row.slot, pos: row.pos as usize, rows: vec![index], kv });
        }
    }
    runs
}

/// Computes a validated step session by session, and writes the output in row order; `None` if the step is cancelled.
fn compute(
    weights: &Weights,
    hidden: &[f32],
    rows: &[Row],
    runs: Vec<SessionRows<'_>>,
    options: StepOptions<'_>,
    out: &mut Vec<f32>,
) -> Computed<Option<()>> {
    let shape = &weights.shape;
    let floats = if weights.has_head() && !options.states { shape.vocab } else { shape.width } as usize;
    let has_output = |row: &Row| !weights.has_head() || row.want;
    out.resize(rows.iter().filter(|row| has_output(row)).count() * floats, 0.0);
    let inputs: Vec<&[f32]> = hidden.chunks_exact(shape.width as usize).collect();
    // Destination of each row's output; `None` for a row without output.
    let mut places: Vec<Option<&mut [f32]>> = Vec::with_capacity(rows.len());
    let mut free = out.chunks_exact_mut(floats);
    places.extend(rows.iter().map(|row| if has_output(row) { free.next() } else { None }));

    for run in runs {
        let hidden = run.rows.iter().flat_map(|&row| inputs[row]).copied().collect();
        let wanted: Vec<u32> = (0..).zip(&run.rows).filter(|&(_, &row)| rows[row].want).map(|(at, _)| at).collect();
        let wanted = OutputRows { rows: &wanted, options };
        let Some(given) = weights.forward(hidden, wanted, run.pos, run.kv)? else { return Ok(None) };
        let places = run.rows.iter().filter_map(|&row| places[row].take());
        for (place, given) in places.zip(given.chunks_exact(floats)) {
            place.copy_from_slice(given);
        }
    }
    Ok(Some(()))
}
