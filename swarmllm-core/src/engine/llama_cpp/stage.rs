//! A llama.cpp stage: validates each step, runs it, and returns hidden states or logits.

use llama_cpp_sys_2 as ll;

use crate::base::LayerRange;
use crate::engine::slots::Slots;
use crate::engine::stage::kv_cells;
use crate::engine::{EngineError, MAX_OUTPUT_ROWS, Row, Stage, StageConfig, StageSpec, StepOptions};
use crate::model::StageSource;

use super::architecture::Input;
use super::capture::Capture;
use super::error::ENGINE;
use super::gpu;
use super::image::Image;
use super::kv::KvFormat;
use super::model::{Context, ContextParams, Model};
use super::pool::{Pool, Pools};
use super::shape::Shape;
use super::threads::Threads;
use super::unpacked_weights::{StepPart, UnpackedWeights, buffer_bytes};
use super::window::Window;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// llama.cpp rounds KV cells up to this.
const CELL_ROUNDING: u32 = 256;

/// Bytes of one logit of an output row: llama.cpp's graph and the caller each hold one copy.
const LOGIT_BYTES: u64 = 2 * size_of::<f32>() as u64;

/// Bytes of a stage's KV and logits.
pub(super) fn memory(shape: &Shape, layers: LayerRange, head: bool, config: &StageConfig) -> u64 {
    let context = config.context.min(shape.context).next_multiple_of(CELL_ROUNDING);
    let cells = kv_cells(layers, context, config.max_sessions);
    let logits = if head { u64::from(max_output_rows(config)) * u64::from(shape.vocab) * LOGIT_BYTES } else { 0 };
    let cell = KvFormat::of(config.kv).bytes(shape.cached_keys() + shape.cached_values());
    cell.saturating_mul(cells).saturating_add(logits)
}

/// Most output rows of one step.
fn max_output_rows(config: &StageConfig) -> u32 {
    config.max_rows.max(config.max_sessions).min(MAX_OUTPUT_ROWS.max(config.max_sessions))
}

/// A range of layers on llama.cpp.
pub(super) struct LlamaStage {
    context: Context,
    batch: Batch,
    slots: Slots,
    window: Option<Window>,
    /// Most output rows of a step with the head; each takes `4 * vocabulary` bytes.
    max_output_rows: u32,
    spec: StageSpec,
    threads: Threads,
    /// Only without an accelerator. Dropped after the context, whose tensors point there.
    unpacked: Option<UnpackedWeights>,
    /// Dropped after the context, which computes with it.
    pool: Arc<Pool>,
}

/// The arrays of a `llama_batch`, reused between steps.
#[derive(Default)]
struct Batch {
    positions: Vec<i32>,
    session_counts: Vec<i32>,
    sessions: Vec<i32>,
    session_pointers: Vec<*mut i32>,
    outputs: Vec<i8>,
    /// Placeholders for hidden states if the architecture takes tokens only.
    tokens: Vec<i32>,
    takes_tokens: bool,
}

// SAFETY: llama.cpp binds neither model nor context to a thread; the pointers of the batch point into the stage's own
// vectors, and are set at each step.
unsafe impl Send for LlamaStage {}

impl LlamaStage {
    /// Loads a validated stage.
    pub fn load(
        shape: &Shape,
        source: &StageSource,
        image: &Image,
        config: &StageConfig,
        pools: &Pools,
    ) -> Result<Self, EngineError> {
        let layers = source.layers;
        let load_error = |reason: String| EngineError::Load { engine: ENGINE, layers, reason };
        let StageConfig { gpu_layers, .. } = *config;
        let config = effective_config(config, shape).map_err(load_error)?;
        let config = StageConfig { gpu_layers: gpu::layers(gpu_layers, layers, source.head), ..config };
        let pool = pools.get(config.threads)?;
        let model = Model::load(image, gpu::n_gpu_layers(config.gpu_layers, source.head)).map_err(load_error)?;
        let kv_format = KvFormat::of(config.kv);
        kv_format.check(shape).map_err(load_error)?;
        let rows = config.max_rows.max(config.max_sessions);
        let max_output_rows = max_output_rows(&config);
        let params = ContextParams {
            // Each session has its own cells: in a shared pool its results would depend on other sessions.
            cells: config.context.saturating_mul(config.max_sessions),
            rows,
            outputs: if source.head { max_output_rows } else { 0 },
            sessions: config.max_sessions,
            threads: config.threads,
            kv: kv_format.ty,
            offload: config.gpu_layers > 0,
        };
        let input = shape.architecture.input;
        let capture = Capture::new(input.node(), layers.len(), source.head, shape.width);
        let context = Context::new(model, &params, capture, &pool).map_err(load_error)?;
        // With an accelerator llama.cpp would copy unpacked weights there and back.
        let with_unpacked = config.gpu_layers == 0;
        let buffer = if with_unpacked { buffer_bytes(source.tensors.iter().map(|tensor| &tensor.entry)) } else { 0 };
        let memory = image.len() + memory(shape, layers, source.head, &config) + buffer;
        Ok(Self {
            context,
            batch: Batch { takes_tokens: matches!(input, Input::OverwriteTokens(_)), ..Batch::default() },
            slots: Slots::new(&config),
            threads: Threads::new(config.threads),
            unpacked: with_unpacked.then(|| UnpackedWeights::of(image, config.threads)),
            window: shape.window.clone(),
            max_output_rows,
            spec: StageSpec {
                engine: ENGINE,
                layers,
                width: shape.width,
                vocab: source.head.then_some(shape.vocab),
                config,
                memory,
            },
            pool,
        })
    }

    /// Refuses steps with too many output rows.
    fn check_output_rows(&self, rows: &[Row]) -> Result<(), EngineError> {
        let wanted = rows.iter().filter(|row| row.want).count();
        if self.spec.vocab.is_some() && wanted > self.max_output_rows as usize {
            return Err(EngineError::Rows { rows: wanted, max: self.max_output_rows });
        }
        Ok(())
    }

    /// The next part of a call's rows.
    fn next_part(&mut self, rows: &[Row], call: Range<usize>, options: StepOptions) -> StepPart {
        // Rows are in slot order.
        let several = rows[call.start].slot != rows[call.end - 1].slot;
        match self.unpacked.as_mut().filter(|unpacked| options.allow_rounding && !unpacked.is_empty()) {
            Some(unpacked) => unpacked.chooser.next(call, several),
            None => StepPart::repacked(call),
        }
    }

    /// Computes one part; `shared` if the step has rows of several sessions.
    fn compute_part(
        &mut self,
        hidden: &[f32],
        rows: &[Row],
        part: &StepPart,
        options: StepOptions,
        shared: bool,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let from = out.len();
        // Logits, unless the stage gives states.
        let logits = self.spec.vocab.filter(|_| !options.states);
        let outputs = match (self.spec.vocab, logits) {
            (_, Some(_)) => 0,
            (Some(_), None) => rows.iter().filter(|row| row.want).count(),
            (None, None) => rows.len(),
        };
        self.context.capture.prepare(hidden, outputs);
        self.decode(hidden, rows, part, options)?;
        if !self.context.capture.is_complete() {
            return Err(step_error("the graph had no unique node of the first layer's input or the output".to_owned()));
        }
        match logits {
            Some(vocab) => self.append_logits(rows, vocab, out)?,
            None => self.append_hidden(out),
        }
        // In a step of several sessions the caller checks each session, so that the others continue.
        match first_non_finite(&out[from..], logits.unwrap_or(self.spec.width)) {
            Some(row) if !shared => Err(step_error(format!("output row {row} is not finite"))),
            _ => Ok(()),
        }
    }

    /// Runs the batch.
    fn decode(
        &mut self,
        hidden: &[f32],
        rows: &[Row],
        part: &StepPart,
        options: StepOptions,
    ) -> Result<(), EngineError> {
        let begun = Instant::now();
        if let Some(unpacked) = &mut self.unpacked {
            self.context.capture.stream = if part.unpacked { unpacked.begin() } else { None };
            self.context.capture.factors = unpacked.is_unresolved().then(Vec::new);
        }
        let reading = begun.elapsed();
        let batch = self.batch.fill(hidden, rows, self.spec.vocab.is_none());
        let context = self.context.raw();
        // Beyond 512 cells a row's sums depend on the number of threads.
        let threads = if options.allow_rounding { self.threads.choose(rows.len()) } else { self.spec.config.threads };
        let count = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: the batch's arrays have a place for each row and live until the call returns; rows, positions and
        // sessions were checked; no other thread uses the context, and none the pool, which has at least as many threads.
        let compute = || unsafe {
            let begun = Instant::now();
            ll::llama_set_n_threads(context, count, count);
            (ll::llama_decode(context, batch), (reading + begun.elapsed()).as_micros())
        };
        let (code, micros) = self.pool.compute(|| self.context.cancellation.run(options, compute));
        #[cfg(test)]
        let code = faults::next_code().unwrap_or(code);
        let micros = micros.try_into().unwrap_or(u32::MAX);
        if options.allow_rounding && code == 0 {
            self.threads.record(rows.len(), micros);
        }
        if let (Some(unpacked), Some(stream)) = (&mut self.unpacked, self.context.capture.stream.take()) {
            unpacked.end(stream);
        }
        if let (Some(unpacked), 0) = (&mut self.unpacked, code) {
            if let Some(factors) = self.context.capture.factors.take() {
                // SAFETY: a repacked factor of a product is a weight of the context's model.
                unsafe { unpacked.resolve(&factors) };
            } else if part.measured {
                unpacked.chooser.record(micros);
            }
        }
        match code {
            0 => Ok(()),
            // llama.cpp has removed the rows from the KV.
            2 => Err(EngineError::Cancelled),
            1 => Err(EngineError::ContextFull { context: self.spec.config.context }),
            code => Err(step_error(format!("llama_decode returned {code}"))),
        }
    }

    /// Appends the captured hidden states to `out`.
    fn append_hidden(&mut self, out: &mut Vec<f32>) {
        let rows = &mut self.context.capture.rows;
        match out.is_empty() {
            true => std::mem::swap(out, rows),
            false => out.extend_from_slice(rows),
        }
    }

    /// Appends the logits of the wanted rows to `out`.
    fn append_logits(&mut self, rows: &[Row], vocab: u32, out: &mut Vec<f32>) -> Result<(), EngineError> {
        let context = self.context.raw();
        for (index, _) in (0_i32..).zip(rows).filter(|(_, row)| row.want) {
            // SAFETY: the context has computed, and the row was flagged as an output.
            let logits = unsafe { ll::llama_get_logits_ith(context, index) };
            if logits.is_null() {
                return Err(step_error(format!("there are no logits of row {index}")));
            }
            // SAFETY: a row of logits has the vocabulary size of the image's header, and lives until the next step.
            let logits = unsafe { std::slice::from_raw_parts(logits, vocab as usize) };
            out.extend_from_slice(logits);
        }
        Ok(())
    }

    fn clear(&mut self, slot: u32) {
        if let (Ok(_), Ok(session)) = (self.slots.held(slot), i32::try_from(slot)) {
            let memory = self.context.memory();
            // SAFETY: the memory is the context's, and the slot is one of its sequences.
            unsafe { ll::llama_memory_seq_rm(memory, session, -1, -1) };
            self.slots.release(slot);
        }
    }

    /// Removes computed, uncommitted rows from the KV. A session that lost a part of its window is cleared.
    fn roll_back(&mut self, rows: &[Row]) {
        for run in rows.chunk_by(|one, next| one.slot == next.slot) {
            let Row { slot, pos, .. } = run[0];
            // Slots and positions were checked, and fit.
            let (session, from) = (slot as i32, pos as i32);
            let memory = self.context.memory();
            // SAFETY: as in `clear`.
            let removed = unsafe { ll::llama_memory_seq_rm(memory, session, from, -1) };
            if !removed || (pos > 0 && !self.holds_window(session, pos)) {
                self.clear(slot);
            }
        }
    }

    /// Whether windowed layers still hold all positions that a session of `len` positions attends to. Cells that left the
    /// window may have been reused.
    fn holds_window(&mut self, session: i32, len: u32) -> bool {
        let Some(window) = &self.window else { return true };
        let needed = window.first_seen(len);
        let memory = self.context.memory();
        // SAFETY: as in `clear`.
        let first = unsafe { ll::llama_memory_seq_pos_min(memory, session) };
        u32::try_from(first).is_ok_and(|first| first <= needed)
    }
}

impl Stage for LlamaStage {
    fn spec(&self) -> &StageSpec {
        &self.spec
    }

    fn check(&self, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError> {
        self.slots.check(&self.spec, hidden, rows)?;
        self.check_output_rows(rows)
    }

    fn compute(
        &mut self,
        hidden: &[f32],
        rows: &[Row],
        options: StepOptions,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        out.clear();
        self.check(hidden, rows)?;
        let width = self.spec.width as usize;
        let mut done = 0;
        let shared = rows.iter().any(|row| row.slot != rows[0].slot);
        for len in call_lengths(rows) {
            let end = done + len;
            while done < end {
                let part = self.next_part(rows, done..end, options);
                let Range { start, end } = part.rows.clone();
                let hidden = &hidden[start * width..end * width];
                if let Err(error) = self.compute_part(hidden, &rows[start..end], &part, options, shared, out) {
                    out.clear();
                    self.roll_back(&rows[..end]);
                    return Err(error);
                }
                done = end;
            }
        }
        self.slots.commit(rows);
        Ok(())
    }

    fn truncate(&mut self, slot: u32, len: u32) -> Result<(), EngineError> {
        let held = self.slots.held(slot)?;
        if len > held {
            return Err(EngineError::Position { given: len, expected: held });
        }
        if len == 0 {
            self.clear(slot);
            return Ok(());
        }
        // Slots and lengths are below llama.cpp's limits, which fit.
        let (session, from) = (slot as i32, len as i32);
        if len < held && !self.holds_window(session, len) {
            return Err(step_error(format!("the cache no longer holds the window before {len}: release and replay")));
        }
        let memory = self.context.memory();
        // SAFETY: as in `clear`.
        if !unsafe { ll::llama_memory_seq_rm(memory, session, from, -1) } {
            self.clear(slot);
            return Err(step_error("the session could not be truncated".to_owned()));
        }
        self.slots.truncate(slot, len)?;
        Ok(())
    }

    fn release(&mut self, slot: u32) {
        self.clear(slot);
    }
}

impl Batch {
    /// The batch of a step; valid until the next call.
    fn fill(&mut self, hidden: &[f32], rows: &[Row], all_outputs: bool) -> ll::llama_batch {
        fn refill<T>(array: &mut Vec<T>, values: impl Iterator<Item = T>) -> *mut T {
            array.clear();
            array.extend(values);
            array.as_mut_ptr()
        }
        let first = refill(&mut self.sessions, rows.iter().map(|row| row.slot as i32));
        // SAFETY: offsets within the array just filled.
        let pointers = (0..rows.len()).map(|index| unsafe { first.add(index) });
        ll::llama_batch {
            n_tokens: rows.len() as i32,
            token: match self.takes_tokens {
                // Token 0 is in every vocabulary.
                true => refill(&mut self.tokens, rows.iter().map(|_| 0)),
                false => std::ptr::null_mut(),
            },
            // llama.cpp copies the rows and never writes to them.
            embd: if self.takes_tokens { std::ptr::null_mut() } else { hidden.as_ptr().cast_mut() },
            pos: refill(&mut self.positions, rows.iter().map(|row| row.pos as i32)),
            n_seq_id: refill(&mut self.session_counts, rows.iter().map(|_| 1)),
            seq_id: refill(&mut self.session_pointers, pointers),
            logits: refill(&mut self.outputs, rows.iter().map(|row| i8::from(all_outputs || row.want))),
        }
    }
}

/// Row counts of a step's calls of llama.cpp. One call computes neighbouring slots with equally many rows each; with
/// separate cells for each session llama.cpp would split and reorder any other mixture.
fn call_lengths(rows: &[Row]) -> Vec<usize> {
    let mut calls: Vec<usize> = Vec::new();
    let mut last: Option<(u32, usize)> = None;
    for run in rows.chunk_by(|one, next| one.slot == next.slot) {
        let (slot, len) = (run[0].slot, run.len());
        match (last, calls.last_mut()) {
            (Some((before, rows)), Some(call)) if before + 1 == slot && rows == len => *call += len,
            _ => calls.push(len),
        }
        last = Some((slot, len));
    }
    calls
}

fn step_error(reason: String) -> EngineError {
    EngineError::Step { engine: ENGINE, reason }
}

/// The first row with a non-finite value. The check of a row has no early exit, so that it is vectorised.
fn first_non_finite(values: &[f32], width: u32) -> Option<usize> {
    let finite = |row: &[f32]| row.iter().fold(true, |finite, value| finite & value.is_finite());
    values.chunks(width.max(1) as usize).position(|row| !finite(row))
}

/// The effective configuration: the context is capped at the model's, the rows at the context, and the threads at the
/// machine's. Zeros and more sessions than llama.cpp supports are refused.
fn effective_config(config: &StageConfig, shape: &Shape) -> Result<StageConfig, String> {
    // SAFETY: returns a constant.
    let sessions = unsafe { ll::llama_max_parallel_sequences() } as u64;
    let StageConfig { context, max_sessions, max_rows, threads, .. } = *config;
    if context == 0 || max_sessions == 0 || max_rows == 0 || threads == 0 {
        return Err("context, sessions, rows and threads must be at least 1".to_owned());
    }
    if u64::from(max_sessions) > sessions {
        return Err(format!("{max_sessions} sessions were requested, llama.cpp supports at most {sessions}"));
    }
    let context = context.min(shape.context);
    let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
    Ok(StageConfig { context, max_rows: max_rows.min(context), threads: threads.min(cores), ..config.clone() })
}

/// Injected failures of llama.cpp after a computation, for tests on one thread.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::Cell;

    thread_local! {
        static CALLS: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// Lets the call after `calls` successful ones fail, and no later one.
    pub fn fail_after(calls: u32) {
        CALLS.set(Some(calls));
    }

    /// The code of an injected failure.
    pub fn next_code() -> Option<i32> {
        let left = CALLS.get()?.checked_sub(1);
        CALLS.set(left);
        left.is_none().then_some(-3)
    }
}
