//! A stage on llama.cpp: checks each step, runs it, and takes out hidden states or logits.

use llama_cpp_sys_2 as ll;

use crate::base::LayerRange;
use crate::engine::slots::Slots;
use crate::engine::stage::cells;
use crate::engine::{EngineError, Row, Stage, StageConfig, StageSpec, Terms, WANTED_ROWS};
use crate::model::StageSource;

use super::architecture::Input;
use super::capture::Capture;
use super::error::ENGINE;
use super::gpu;
use super::image::Image;
use super::kv::Kept;
use super::model::{Context, ContextParams, Model};
use super::plain::{Part, Plain, buffer_bytes};
use super::pool::{Pool, Pools};
use super::shape::Shape;
use super::snapshot::Layout;
use super::threads::Threads;
use super::window::Window;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// llama.cpp rounds KV cells up to this.
const CELL_ROUNDING: u32 = 256;

/// Beyond what all stages need, for each row whose logits are wanted and that are computed at once: its logits twice, in
/// llama.cpp's graph and for the caller.
const LOGITS: u64 = 2 * size_of::<f32>() as u64;

/// Bytes of a stage's KV and of its logits.
pub(super) fn memory(shape: &Shape, layers: LayerRange, head: bool, config: &StageConfig) -> u64 {
    let context = config.context.min(shape.context).next_multiple_of(CELL_ROUNDING);
    let cells = cells(layers, context, config.max_sessions);
    let logits = if head { u64::from(head_rows(config)) * u64::from(shape.vocab) * LOGITS } else { 0 };
    let cell = Kept::of(config.kv).bytes(shape.cached_keys() + shape.cached_values());
    cell.saturating_mul(cells).saturating_add(logits)
}

/// Rows of one step whose output may be wanted.
fn head_rows(config: &StageConfig) -> u32 {
    config.max_rows.max(config.max_sessions).min(WANTED_ROWS.max(config.max_sessions))
}

/// A range of layers, loaded into llama.cpp.
pub(super) struct LlamaStage {
    context: Context,
    batch: Batch,
    slots: Slots,
    layout: Layout,
    window: Option<Window>,
    /// Rows of a step that may be wanted, where there is a head; each takes `4 * vocabulary` bytes.
    head_rows: u32,
    spec: StageSpec,
    threads: Threads,
    /// Of a stage on the processor alone. Outlives the context, whose tensors point there.
    plain: Option<Plain>,
    /// Held for as long as the context, which computes with it.
    pool: Arc<Pool>,
}

/// The arrays that a `llama_batch` points into, kept between steps.
#[derive(Default)]
struct Batch {
    positions: Vec<i32>,
    session_counts: Vec<i32>,
    sessions: Vec<i32>,
    session_pointers: Vec<*mut i32>,
    outputs: Vec<i8>,
    /// Stand in for hidden states where the architecture takes tokens only.
    tokens: Vec<i32>,
    takes_tokens: bool,
}

// SAFETY: llama.cpp binds neither model nor context to a thread; the pointers of the batch point into the stage's own
// vectors, and are made anew at each step.
unsafe impl Send for LlamaStage {}

impl LlamaStage {
    /// Loads a checked stage.
    pub fn load(
        shape: &Shape,
        source: &StageSource,
        image: &Image,
        config: &StageConfig,
        pools: &Pools,
    ) -> Result<Self, EngineError> {
        let layers = source.layers;
        let refuse = |reason: String| EngineError::Load { engine: ENGINE, layers, reason };
        let StageConfig { gpu_layers, .. } = *config;
        let config = settle(config, shape).map_err(refuse)?;
        let config = StageConfig { gpu_layers: gpu::layers(gpu_layers, layers, source.head), ..config };
        let pool = pools.get(config.threads)?;
        let model = Model::load(image, gpu::told(config.gpu_layers, source.head)).map_err(refuse)?;
        let kept = Kept::of(config.kv);
        kept.check(shape).map_err(refuse)?;
        let rows = config.max_rows.max(config.max_sessions);
        let head_rows = head_rows(&config);
        let params = ContextParams {
            // Each session has cells of its own: beside others in one pool its results would depend on theirs.
            cells: config.context.saturating_mul(config.max_sessions),
            rows,
            outputs: if source.head { head_rows } else { 0 },
            sessions: config.max_sessions,
            threads: config.threads,
            kv: kept.ty,
            offload: config.gpu_layers > 0,
        };
        let input = shape.architecture.input;
        let capture = Capture::new(input.node(), layers.len(), source.head, shape.width);
        let context = Context::new(model, &params, capture, &pool).map_err(refuse)?;
        // Beside an accelerator llama.cpp would carry plain weights there and back.
        let with_plain = config.gpu_layers == 0;
        let buffer = if with_plain { buffer_bytes(source.tensors.iter().map(|tensor| &tensor.entry)) } else { 0 };
        let memory = image.len() + memory(shape, layers, source.head, &config) + buffer;
        Ok(Self {
            context,
            batch: Batch { takes_tokens: matches!(input, Input::OverTokens(_)), ..Batch::default() },
            slots: Slots::new(&config),
            layout: Layout::of(shape, layers, config.max_sessions, kept),
            threads: Threads::new(config.threads),
            plain: with_plain.then(|| Plain::of(image, config.threads)),
            window: shape.window.clone(),
            head_rows,
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

    /// Refuses more logits than there is room for.
    fn check_wanted(&self, rows: &[Row]) -> Result<(), EngineError> {
        let wanted = rows.iter().filter(|row| row.want).count();
        if self.spec.vocab.is_some() && wanted > self.head_rows as usize {
            return Err(EngineError::Rows { rows: wanted, max: self.head_rows });
        }
        Ok(())
    }

    /// What of a step's rows llama.cpp computes in one call.
    fn part(&mut self, rows: &[Row], call: Range<usize>, terms: Terms) -> Part {
        // A call's rows come by slot.
        let several = rows[call.start].slot != rows[call.end - 1].slot;
        match self.plain.as_mut().filter(|plain| terms.free && !plain.is_nothing()) {
            Some(plain) => plain.choice.next(call, several),
            None => Part::usual(call),
        }
    }

    /// Computes the rows of one call; `shared` where the step has those of other sessions too.
    fn run(
        &mut self,
        hidden: &[f32],
        rows: &[Row],
        part: &Part,
        terms: Terms,
        shared: bool,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        let from = out.len();
        // Logits, unless the rows of the stage's own output are taken.
        let logits = self.spec.vocab.filter(|_| !terms.states);
        let outputs = match (self.spec.vocab, logits) {
            (_, Some(_)) => 0,
            (Some(_), None) => rows.iter().filter(|row| row.want).count(),
            (None, None) => rows.len(),
        };
        self.context.capture.prepare(hidden, outputs);
        self.decode(hidden, rows, part, terms)?;
        if !self.context.capture.is_complete() {
            return Err(step_error("the first layer's input or the last one's output was not met once".to_owned()));
        }
        match logits {
            Some(vocab) => self.take_logits(rows, vocab, out)?,
            None => self.take_hidden(out),
        }
        // Of several sessions the caller finds out which one it is: the others go on.
        match first_not_finite(&out[from..], logits.unwrap_or(self.spec.width)) {
            Some(row) if !shared => Err(step_error(format!("output row {row} is not finite"))),
            _ => Ok(()),
        }
    }

    /// Runs the batch.
    fn decode(&mut self, hidden: &[f32], rows: &[Row], part: &Part, terms: Terms) -> Result<(), EngineError> {
        let begun = Instant::now();
        if let Some(plain) = &mut self.plain {
            self.context.capture.stream = if part.plain { plain.begin() } else { None };
            self.context.capture.factors = plain.is_unmet().then(Vec::new);
        }
        let reading = begun.elapsed();
        let batch = self.batch.fill(hidden, rows, self.spec.vocab.is_none());
        let context = self.context.raw();
        // Beyond 512 cells the sums of a row depend on the number of threads.
        let threads = if terms.free { self.threads.pick(rows.len()) } else { self.spec.config.threads };
        let count = i32::try_from(threads).unwrap_or(i32::MAX);
        // SAFETY: the batch's arrays have a place for each row and live until the call returns; rows, positions and
        // sessions were checked; no other thread uses the context, and none the pool, which has at least as many threads.
        let compute = || unsafe {
            let begun = Instant::now();
            ll::llama_set_n_threads(context, count, count);
            (ll::llama_decode(context, batch), (reading + begun.elapsed()).as_micros())
        };
        let (code, micros) = self.pool.compute(|| self.context.stop.watched(terms, compute));
        #[cfg(test)]
        let code = faults::strike().unwrap_or(code);
        let micros = micros.try_into().unwrap_or(u32::MAX);
        if terms.free && code == 0 {
            self.threads.took(rows.len(), micros);
        }
        if let (Some(plain), Some(stream)) = (&mut self.plain, self.context.capture.stream.take()) {
            plain.end(stream);
        }
        if let (Some(plain), 0) = (&mut self.plain, code) {
            if let Some(factors) = self.context.capture.factors.take() {
                // SAFETY: what a graph multiplies with and is repacked is a weight of the context's model.
                unsafe { plain.meet(&factors) };
            } else if part.measured {
                plain.choice.took(micros);
            }
        }
        match code {
            0 => Ok(()),
            // It has taken the rows out of the KV again.
            2 => Err(EngineError::Abandoned),
            1 => Err(EngineError::ContextFull { context: self.spec.config.context }),
            code => Err(step_error(format!("llama_decode returned {code}"))),
        }
    }

    /// Appends the captured hidden states to `out`.
    fn take_hidden(&mut self, out: &mut Vec<f32>) {
        let rows = &mut self.context.capture.rows;
        match out.is_empty() {
            true => std::mem::swap(out, rows),
            false => out.extend_from_slice(rows),
        }
    }

    /// Appends the logits of the wanted rows to `out`.
    fn take_logits(&mut self, rows: &[Row], vocab: u32, out: &mut Vec<f32>) -> Result<(), EngineError> {
        let context = self.context.raw();
        for (index, _) in (0_i32..).zip(rows).filter(|(_, row)| row.want) {
            // SAFETY: the context has computed, and the row was flagged as an output.
            let logits = unsafe { ll::llama_get_logits_ith(context, index) };
            if logits.is_null() {
                return Err(step_error(format!("there are no logits of row {index}")));
            }
            // SAFETY: a row of logits is as long as the vocabulary that the image's header tells, and lives until the
            // next step.
            let logits = unsafe { std::slice::from_raw_parts(logits, vocab as usize) };
            out.extend_from_slice(logits);
        }
        Ok(())
    }

    fn forget(&mut self, slot: u32) {
        if let (Ok(_), Ok(session)) = (self.slots.held(slot), i32::try_from(slot)) {
            let memory = self.context.memory();
            // SAFETY: the memory is the context's, and the slot is one of its sequences.
            unsafe { ll::llama_memory_seq_rm(memory, session, -1, -1) };
            self.slots.release(slot);
        }
    }

    /// Takes rows that were computed, but not committed, out of the KV again. A session that then lacks a part of its
    /// window is forgotten, and no other.
    fn undo(&mut self, rows: &[Row]) {
        for run in rows.chunk_by(|one, next| one.slot == next.slot) {
            let Row { slot, pos, .. } = run[0];
            // Slots and positions were checked, and fit.
            let (session, from) = (slot as i32, pos as i32);
            let memory = self.context.memory();
            // SAFETY: as in `forget`.
            let removed = unsafe { ll::llama_memory_seq_rm(memory, session, from, -1) };
            if !removed || (pos > 0 && !self.holds_window(session, pos)) {
                self.forget(slot);
            }
        }
    }

    /// Whether a windowed layer still holds all that a session of `len` positions would look back at. Cells that fell
    /// out of the window may have been given to other sessions.
    fn holds_window(&mut self, session: i32, len: u32) -> bool {
        let Some(window) = &self.window else { return true };
        let needed = window.first_seen(len);
        let memory = self.context.memory();
        // SAFETY: as in `forget`.
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
        self.check_wanted(rows)
    }

    fn compute(&mut self, hidden: &[f32], rows: &[Row], terms: Terms, out: &mut Vec<f32>) -> Result<(), EngineError> {
        out.clear();
        self.check(hidden, rows)?;
        let width = self.spec.width as usize;
        let mut done = 0;
        let shared = rows.iter().any(|row| row.slot != rows[0].slot);
        for len in calls(rows) {
            let end = done + len;
            while done < end {
                let part = self.part(rows, done..end, terms);
                let Range { start, end } = part.rows.clone();
                let hidden = &hidden[start * width..end * width];
                if let Err(error) = self.run(hidden, &rows[start..end], &part, terms, shared, out) {
                    out.clear();
                    self.undo(&rows[..end]);
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
            self.forget(slot);
            return Ok(());
        }
        // Slots and lengths are below llama.cpp's limits, which fit.
        let (session, from) = (slot as i32, len as i32);
        if len < held && !self.holds_window(session, len) {
            return Err(step_error(format!("positions before {len} have left the window: release and replay")));
        }
        let memory = self.context.memory();
        // SAFETY: as in `forget`.
        if !unsafe { ll::llama_memory_seq_rm(memory, session, from, -1) } {
            self.forget(slot);
            return Err(step_error("the session could not be cut back".to_owned()));
        }
        self.slots.truncate(slot, len)?;
        Ok(())
    }

    fn release(&mut self, slot: u32) {
        self.forget(slot);
    }

    fn snapshot(&mut self, slot: u32) -> Result<Vec<u8>, EngineError> {
        let len = self.slots.held(slot)?;
        if len == 0 {
            return Ok(Vec::new());
        }
        let size = self.layout.size(len);
        let mut state = vec![0_u8; size];
        // SAFETY: the buffer has `size` bytes, which llama.cpp does not exceed; the slot is one of the context's.
        let written =
            unsafe { ll::llama_state_seq_get_data(self.context.raw(), state.as_mut_ptr(), size, slot as i32) };
        if written != size {
            return Err(EngineError::Snapshot { reason: format!("it has {written} bytes, {size} were expected") });
        }
        Ok(state)
    }

    fn restore(&mut self, slot: u32, len: u32, state: &[u8]) -> Result<(), EngineError> {
        self.slots.admits(slot, len)?;
        self.layout.check(state, len)?;
        self.forget(slot);
        if len == 0 {
            return Ok(());
        }
        let session = slot as i32;
        let memory = self.context.memory();
        // SAFETY: the state was checked to be one of this stage's layout and of `len` positions, which fit.
        let (read, last) = unsafe {
            let read = ll::llama_state_seq_set_data(self.context.raw(), state.as_ptr(), state.len(), session);
            (read, ll::llama_memory_seq_pos_max(memory, session))
        };
        if read != state.len() || u32::try_from(last) != Ok(len - 1) {
            self.forget(slot);
            return Err(EngineError::Snapshot { reason: "llama.cpp refused it".to_owned() });
        }
        self.slots.put(slot, len);
        Ok(())
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
        // SAFETY: offsets of places of the array just filled.
        let pointers = (0..rows.len()).map(|index| unsafe { first.add(index) });
        ll::llama_batch {
            n_tokens: rows.len() as i32,
            token: match self.takes_tokens {
                // Every vocabulary has the first token.
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

/// Rows of the calls that a step takes. One call computes neighbouring slots with equally many rows each, which is what
/// llama.cpp keeps together and in order where each session has cells of its own; it would split and reorder any other
/// mixture.
fn calls(rows: &[Row]) -> Vec<usize> {
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

/// The first row with a value that is not finite. Rows are looked at without a way out in the middle, which is fast.
fn first_not_finite(values: &[f32], width: u32) -> Option<usize> {
    let finite = |row: &[f32]| row.iter().fold(true, |finite, value| finite & value.is_finite());
    values.chunks(width.max(1) as usize).position(|row| !finite(row))
}

/// The configuration that the stage will have: no more context than the model was trained for, no more rows than
/// context, no more threads than the machine has. Zeros and more sessions than llama.cpp knows are refused.
fn settle(config: &StageConfig, shape: &Shape) -> Result<StageConfig, String> {
    // SAFETY: returns a constant.
    let sessions = unsafe { ll::llama_max_parallel_sequences() } as u64;
    let StageConfig { context, max_sessions, max_rows, threads, .. } = *config;
    if context == 0 || max_sessions == 0 || max_rows == 0 || threads == 0 {
        return Err("a context, sessions, rows and threads of at least 1 are needed".to_owned());
    }
    if u64::from(max_sessions) > sessions {
        return Err(format!("{max_sessions} sessions were asked for, llama.cpp has at most {sessions}"));
    }
    let context = context.min(shape.context);
    let cores = std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
    Ok(StageConfig { context, max_rows: max_rows.min(context), threads: threads.min(cores), ..config.clone() })
}

/// A llama.cpp that fails behind a computation, for tests on one thread.
#[cfg(test)]
pub(super) mod faults {
    use std::cell::Cell;

    thread_local! {
        static CALLS: Cell<Option<u32>> = const { Cell::new(None) };
    }

    /// The call behind so many fails, and none after it.
    pub fn fail_after(calls: u32) {
        CALLS.set(Some(calls));
    }

    /// The code of a call that fails.
    pub fn strike() -> Option<i32> {
        let left = CALLS.get()?.checked_sub(1);
        CALLS.set(left);
        left.is_none().then_some(-3)
    }
}
