//! A loaded stage: its sessions, and the order in which their rows are computed.

use candle_core::Result as Computed;
use candle_core::utils::with_threadpool;

use super::device;
use super::error::{NAME, failed, not_loaded};
use super::kv::Kv;
use super::model::{Wanted, Weights};
use crate::base::ModelId;
use crate::engine::slots::Slots;
use crate::engine::{EngineError, KvCache, Row, Stage, StageConfig, StageSpec, Terms};
use crate::model::StageSource;

/// What of a step belongs to one session: rows that follow each other.
struct Run<'a> {
    slot: u32,
    /// Position of the first row.
    pos: usize,
    /// Indices into the step's rows.
    rows: Vec<usize>,
    kv: &'a mut Kv,
}

/// A range of layers.
pub(super) struct CandleStage {
    spec: StageSpec,
    model: ModelId,
    weights: Weights,
    slots: Slots,
    kv: Vec<Kv>,
}

impl CandleStage {
    pub fn load(source: &StageSource, config: &StageConfig) -> Result<Self, EngineError> {
        let manifest = &source.manifest;
        if config.kv == KvCache::Q8 {
            return Err(not_loaded(source.layers, "it keeps keys and values in f32 only"));
        }
        let context = config.context.min(manifest.context);
        let (device, gpu_layers) = device::pick(config.gpu_layers, source.layers, source.head);
        let config = StageConfig { context, gpu_layers, ..config.clone() };
        let weights = Weights::load(source, context, device.clone())?;
        let (cells, layers) = (weights.shape.cells(), weights.layers());
        let all = crate::engine::stage::cells(source.layers, context, config.max_sessions);
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
        Ok(Self { slots: Slots::new(&spec.config), model: manifest.id(), spec, weights, kv })
    }

    /// What a snapshot of `len` positions begins with: it fits only the same layers of the same model, computed so.
    fn snapshot_header(&self, len: u32) -> Vec<u8> {
        let (kv_heads, head) = (self.weights.shape.kv_heads, self.weights.shape.head);
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

impl Stage for CandleStage {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn check(&self, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError> {
        self.slots.check(&self.spec, hidden, rows)
    }

    fn compute(&mut self, hidden: &[f32], rows: &[Row], terms: Terms, out: &mut Vec<f32>) -> Result<(), EngineError> {
        self.slots.check(&self.spec, hidden, rows)?;
        out.clear();
        let (weights, runs) = (&self.weights, runs(&mut self.kv, rows));
        let given = with_threadpool(|| compute(weights, hidden, rows, runs, terms, out)).map_err(failed)?;
        // Where it was given up, cells beyond what is committed were written; the next step writes over them.
        given.ok_or(EngineError::Abandoned)?;
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
        let expected = self.weights.shape.cells().floats() * self.weights.layers() * len as usize;
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

/// Computes a checked step session by session, and leaves what comes out in the order of the rows; nothing where nobody
/// wants it any more.
fn compute(
    weights: &Weights,
    hidden: &[f32],
    rows: &[Row],
    runs: Vec<Run<'_>>,
    terms: Terms<'_>,
    out: &mut Vec<f32>,
) -> Computed<Option<()>> {
    let shape = &weights.shape;
    let floats = if weights.has_head() && !terms.states { shape.vocab } else { shape.width } as usize;
    let gives = |row: &Row| !weights.has_head() || row.want;
    out.resize(rows.iter().filter(|row| gives(row)).count() * floats, 0.0);
    let inputs: Vec<&[f32]> = hidden.chunks_exact(shape.width as usize).collect();
    // Where each row's output goes; `None` for a row that gives none.
    let mut places: Vec<Option<&mut [f32]>> = Vec::with_capacity(rows.len());
    let mut free = out.chunks_exact_mut(floats);
    places.extend(rows.iter().map(|row| if gives(row) { free.next() } else { None }));

    for run in runs {
        let hidden = run.rows.iter().flat_map(|&row| inputs[row]).copied().collect();
        let wanted: Vec<u32> = (0..).zip(&run.rows).filter(|&(_, &row)| rows[row].want).map(|(at, _)| at).collect();
        let wanted = Wanted { rows: &wanted, terms };
        let Some(given) = weights.forward(hidden, wanted, run.pos, run.kv)? else { return Ok(None) };
        let places = run.rows.iter().filter_map(|&row| places[row].take());
        for (place, given) in places.zip(given.chunks_exact(floats)) {
            place.copy_from_slice(given);
        }
    }
    Ok(Some(()))
}
