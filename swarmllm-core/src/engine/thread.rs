//! The stage thread: one OS thread owns a stage and runs its jobs in the order of the [scheduler](super::scheduler).
//!
//! A [`Stage`] is loaded, used and dropped on its own named thread, so engines need not be `Sync`, and a long computation
//! never blocks the async runtime. [`StageHandle`] sends jobs through a bounded queue and receives each result through a
//! oneshot channel. Logits are reduced on the thread: a row of a large vocabulary becomes some hundred bytes.
//!
//! Guarantees: jobs of one session run in the order in which they were sent. A refused or failed step does not affect other
//! sessions, even in a shared batch. An engine's panic becomes an error and ends the stage, never the process. A step
//! whose caller is gone is cancelled, also during its computation. Dropping the last handle ends the thread; the drop does
//! not wait.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::cores::{CoreGuard, CoreUser};
use super::exit_gate::EXIT_GATE;
use super::keep_awake::KeepAwake;
use super::sample::{self, Candidate, LogitRow};
use super::scheduler::{Decision, JobKind, MAX_DECODE_ROWS, Scheduler, WaitingJob};
use super::{EngineError, Row, Stage, StageConfig, StageSpec, StepOptions};
use crate::base::LayerRange;

pub use super::sample::Reduce;

/// Capacity of a stage's job queue; senders wait when it is full. Each session has one step or a few in flight, so the
/// sessions of a stage do not fill it.
pub const QUEUE_CAPACITY: usize = 64;

/// Interval at which the thread polls the queue while the scheduler waits for a session's next token.
const POLL_INTERVAL: Duration = Duration::from_micros(100);

/// Name of the thread; Linux shows 15 bytes.
const THREAD_NAME: &str = "swarmllm-stage";

/// One step of a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StepJob {
    /// `rows.len() * width` floats.
    pub hidden: Vec<f32>,
    /// The rows. `want` applies only to a stage with the head.
    pub rows: Vec<Row>,
    /// Reduction of the logits. A stage without the head ignores it.
    pub reduce: Reduce,
    /// Computes the step alone and whole. Otherwise the step may be batched with steps of other sessions or split into
    /// chunks, which changes results by rounding, because sums are added in another order.
    pub exact: bool,
    /// Truncates the session to the first row's position before the step.
    pub rewind: bool,
}

/// Result of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum StepOutput {
    /// Without the head: `rows * width` floats.
    Hidden(Vec<f32>),
    /// With the head: one row for each wanted row, in their order; empty for [`Reduce::Hidden`].
    Logits(Vec<LogitRow>),
}

type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

enum Job {
    Step(Task),
    Truncate { slot: u32, len: u32, reply: Reply<()> },
    MarkIdle { slot: u32 },
    Release { slot: u32 },
}

/// A step and its progress.
struct Task {
    job: StepJob,
    /// Rows computed so far.
    done: usize,
    hidden: Vec<f32>,
    logits: Vec<LogitRow>,
    micros: u32,
    reply: Reply<(StepOutput, u32)>,
}

impl Task {
    /// Whether the step is prefill rather than a token or a window of draft tokens.
    fn is_prefill(&self) -> bool {
        self.job.rows.len() > MAX_DECODE_ROWS
    }

    /// Slot of the first row.
    fn slot(&self) -> Option<u32> {
        self.job.rows.first().map(|row| row.slot)
    }
}

impl Job {
    /// The scheduler's view of the job.
    fn waiting(&self) -> WaitingJob {
        match self {
            Self::Step(task) => {
                let slot = task.slot().filter(|slot| task.job.rows.iter().all(|row| row.slot == *slot));
                // One batch gives either states or logits.
                let batchable = slot.is_some() && !task.job.exact && task.job.reduce != Reduce::State;
                let (rows, prefill) = (task.job.rows.len() - task.done, task.is_prefill());
                let kind = if batchable { JobKind::Batchable { rows, prefill } } else { JobKind::Exclusive };
                WaitingJob { slot, kind }
            }
            Self::Truncate { slot, .. } | Self::MarkIdle { slot } | Self::Release { slot } => {
                WaitingJob { slot: Some(*slot), kind: JobKind::Control }
            }
        }
    }

    fn is_step(&self) -> bool {
        matches!(self, Self::Step(_))
    }

    /// Whether the job is a step whose caller is gone.
    fn is_cancelled(&self) -> bool {
        matches!(self, Self::Step(task) if task.reply.is_closed())
    }
}

/// Handle of a loaded stage. Clones share the stage; when the last clone is dropped, the thread unloads it and ends.
#[derive(Debug, Clone)]
pub struct StageHandle {
    jobs: mpsc::Sender<Job>,
    spec: Arc<StageSpec>,
}

impl StageHandle {
    /// Starts a thread and loads a stage on it with `load`, which may block.
    ///
    /// Cancel-safe: if the future is dropped, the thread unloads the stage as soon as it is loaded.
    pub async fn spawn(
        load: impl FnOnce() -> Result<Box<dyn Stage>, EngineError> + Send + 'static,
    ) -> Result<Self, EngineError> {
        Self::spawn_counted(load, Arc::default()).await
    }

    /// Like [`spawn`](Self::spawn); the thread holds `alive` until it has unloaded the stage.
    pub(crate) async fn spawn_counted(
        load: impl FnOnce() -> Result<Box<dyn Stage>, EngineError> + Send + 'static,
        alive: Arc<()>,
    ) -> Result<Self, EngineError> {
        let (jobs, queue) = mpsc::channel(QUEUE_CAPACITY);
        let (reply, loaded) = oneshot::channel();
        let run = move || {
            match catch_unwind(AssertUnwindSafe(|| load_gated(load))) {
                Ok(Ok(stage)) => match reply.send(Ok(Arc::new(stage.spec().clone()))) {
                    Ok(()) => Worker::new(stage).run(queue),
                    Err(_) => unload(stage),
                },
                Ok(Err(error)) => drop(reply.send(Err(error))),
                Err(panic) => drop(reply.send(Err(not_loaded(panic_message(panic.as_ref()))))),
            }
            drop(alive);
        };
        std::thread::Builder::new()
            .name(THREAD_NAME.to_owned())
            .spawn(run)
            .map_err(|error| not_loaded(format!("the thread could not be started: {error}")))?;
        let spec = loaded.await.map_err(|_| EngineError::Gone)??;
        Ok(Self { jobs, spec })
    }

    /// Description of the stage.
    pub fn spec(&self) -> &StageSpec {
        &self.spec
    }

    /// Computes one step; returns the result and the microseconds of [`Stage::compute`]. A batch counts in full for each of
    /// its steps.
    ///
    /// Waits while the queue is full. Cancel-safe: if the future is dropped, a queued step is skipped, and a running step
    /// is cancelled or completes. The session's length is then unknown, so the caller must truncate or release the session.
    pub async fn step(&self, job: StepJob) -> Result<(StepOutput, u32), EngineError> {
        let (hidden, logits) = (Vec::new(), Vec::new());
        let task = |reply| Task { job, done: 0, hidden, logits, micros: 0, reply };
        self.ask(|reply| Job::Step(task(reply))).await
    }

    /// Keeps the first `len` positions of a session. A job in the queue runs even if the future is dropped.
    pub async fn truncate(&self, slot: u32, len: u32) -> Result<(), EngineError> {
        self.ask(|reply| Job::Truncate { slot, len, reply }).await
    }

    /// Marks a session as idle after all jobs sent before: the scheduler no longer waits for its next token. Its KV stays.
    pub async fn mark_idle(&self, slot: u32) -> Result<(), EngineError> {
        self.jobs.send(Job::MarkIdle { slot }).await.map_err(|_| EngineError::Gone)
    }

    /// Drops a session after all jobs sent before. Returns as soon as the job is in the queue.
    pub async fn release(&self, slot: u32) -> Result<(), EngineError> {
        self.jobs.send(Job::Release { slot }).await.map_err(|_| EngineError::Gone)
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| EngineError::Gone)?;
        answer.await.map_err(|_| EngineError::Gone)?
    }
}

fn load_gated(load: impl FnOnce() -> Result<Box<dyn Stage>, EngineError>) -> Result<Box<dyn Stage>, EngineError> {
    let _permit = EXIT_GATE.enter().ok_or(EngineError::Gone)?;
    load()
}

fn unload(stage: Box<dyn Stage>) {
    let Some(_permit) = EXIT_GATE.enter() else {
        // The process is ending; the system frees the memory.
        return std::mem::forget(stage);
    };
    // After a panic the engine's state is undefined, so its drop may panic too.
    if catch_unwind(AssertUnwindSafe(|| drop(stage))).is_err() {
        tracing::error!("the stage panicked while it was unloaded");
    }
}

fn not_loaded(reason: String) -> EngineError {
    EngineError::Load { engine: "stage thread", layers: LayerRange::new(0, 0), reason }
}

/// Message of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("no message"))
}

/// Options of one computation.
#[derive(Clone, Copy)]
struct ComputeOptions<'a> {
    reduce: Reduce,
    prefill: bool,
    exact: bool,
    cancelled: &'a (dyn Fn() -> bool + Sync),
}

/// State of the stage thread.
struct Worker {
    stage: Box<dyn Stage>,
    waiting: Vec<Job>,
    scheduler: Scheduler,
    /// Input buffer of a batch.
    batch_input: Vec<f32>,
    /// Output buffer of a computation.
    out: Vec<f32>,
    best: Vec<Candidate>,
    /// The computation whose results are being sent.
    last_computation: Option<Computation>,
    /// Keeps the cores awake between steps.
    keep_awake: KeepAwake,
    /// The engine has panicked.
    broken: bool,
}

/// Time of one computation.
struct Computation {
    slots: Vec<u32>,
    /// Slots whose prompt rows were piggybacked, so that they get no token.
    piggybacked: Vec<u32>,
    rows: usize,
    prefill: bool,
    micros: u32,
}

impl Worker {
    fn new(stage: Box<dyn Stage>) -> Self {
        let (waiting, batch_input, out, best) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let StageConfig { threads, keep_awake, .. } = stage.spec().config;
        let (keep_awake, scheduler) = (KeepAwake::new(if keep_awake { threads } else { 0 }), Scheduler::default());
        Self { stage, waiting, scheduler, batch_input, out, best, last_computation: None, keep_awake, broken: false }
    }

    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let user = CoreUser::new(self.stage.spec().config.threads);
        while self.await_job(&mut queue, &user) {
            // Acquired before the decision: jobs that arrive meanwhile can join the batch.
            let cores = self.waiting.iter().any(Job::is_step).then(|| user.acquire());
            self.receive(&mut queue);
            if !self.run_next(cores.as_ref().and_then(|cores| cores.contended_until)) {
                // Sleeps without cores, so that the threads that transport the token have one.
                cores.into_iter().for_each(CoreGuard::release_unused);
                std::thread::sleep(POLL_INTERVAL);
            }
            if self.broken {
                // Dropping the queue drops its jobs; their senders get `Gone`.
                break;
            }
        }
        unload(self.stage);
    }

    /// Waits for a job; false once all handles are dropped.
    fn await_job(&mut self, queue: &mut mpsc::Receiver<Job>, user: &CoreUser<'_>) -> bool {
        self.receive(queue);
        if self.waiting.is_empty() {
            let Some(job) = queue.blocking_recv() else { return false };
            if job.is_step() {
                self.keep_awake.step_arrived(user.idle());
            }
            self.waiting.push(job);
        }
        true
    }

    /// Moves jobs from the channel to the waiting list.
    fn receive(&mut self, queue: &mut mpsc::Receiver<Job>) {
        while self.waiting.len() < QUEUE_CAPACITY {
            match queue.try_recv() {
                Ok(job) => self.waiting.push(job),
                Err(_) => break,
            }
        }
        self.waiting.retain(|job| !job.is_cancelled());
    }

    /// Runs the scheduler's next decision; false if it is to wait. `contended_until` is when another stage last computed on
    /// the same cores.
    fn run_next(&mut self, contended_until: Option<Instant>) -> bool {
        let waiting: Vec<WaitingJob> = self.waiting.iter().map(Job::waiting).collect();
        let max_rows = self.stage.spec().config.max_rows as usize;
        match self.scheduler.decide(&waiting, max_rows, contended_until, Instant::now()) {
            None => {}
            Some(Decision::Run(index)) => self.run_job(index),
            Some(Decision::Batch(indices)) => self.run_batch(&indices, &[]),
            Some(Decision::Piggyback(indices, piggybacked)) => self.run_batch(&indices, &piggybacked),
            Some(Decision::Chunk(index, rows)) => self.run_chunk(index, rows),
            Some(Decision::Wait) => return false,
        }
        // Recorded after all results are sent, because sending takes time: only then can the sessions send their next
        // steps.
        match self.last_computation.take() {
            Some(Computation { slots, piggybacked, .. }) if !piggybacked.is_empty() => {
                let given = slots.into_iter().filter(|slot| !piggybacked.contains(slot));
                self.scheduler.record_piggyback(given, Instant::now());
            }
            Some(Computation { slots, rows, prefill, micros, .. }) => {
                self.scheduler.record(slots.into_iter(), rows, prefill, micros, Instant::now());
            }
            None => {}
        }
        true
    }

    fn run_job(&mut self, index: usize) {
        // Replies to callers that are gone are dropped.
        match self.waiting.remove(index) {
            Job::Step(task) => {
                let rows = task.job.rows.len();
                self.compute_rows(task, rows);
            }
            Job::Truncate { slot, len, reply } => {
                let _ = reply.send(self.with_stage(|stage| stage.truncate(slot, len)));
            }
            Job::MarkIdle { slot } => self.scheduler.mark_idle(slot),
            Job::Release { slot } => {
                self.scheduler.mark_idle(slot);
                let _ = self.with_stage(|stage| {
                    stage.release(slot);
                    Ok(())
                });
            }
        }
    }

    fn run_chunk(&mut self, index: usize, rows: usize) {
        if let Job::Step(task) = self.waiting.remove(index)
            && let Some(rest) = self.compute_rows(task, rows)
        {
            // At its old index, so that later jobs of its session stay behind it.
            self.waiting.insert(index, Job::Step(rest));
        }
    }

    /// Computes the next rows of a step. Replies if the step is complete or has failed, else returns it.
    fn compute_rows(&mut self, mut task: Task, rows: usize) -> Option<Task> {
        let width = self.stage.spec().width as usize;
        let (done, end) = (task.done, (task.done + rows.max(1)).min(task.job.rows.len()));
        let whole = done == 0 && end == task.job.rows.len();
        let ready = match (whole, done) {
            (true, _) => self.rewind(&task.job),
            // The whole step is checked before its first chunk, so that a refused step changes nothing.
            (false, 0) => self.validate(&task.job),
            _ => Ok(()),
        };
        let hidden = match whole {
            true => std::mem::take(&mut task.job.hidden),
            false => task.job.hidden.get(done * width..end * width).unwrap_or_default().to_vec(),
        };
        let cancelled = || task.reply.is_closed();
        let StepJob { reduce, exact, .. } = task.job;
        let options = ComputeOptions { reduce, prefill: task.is_prefill(), exact, cancelled: &cancelled };
        let computed = ready.and_then(|()| self.compute(&hidden, &task.job.rows[done..end], options));
        self.finish_rows(task, end, 0, computed)
    }

    /// Stores the output of a task's rows up to `end`, which begins at float `from` of `out`. Replies if the step is
    /// complete or has failed, else returns it.
    fn finish_rows(
        &mut self,
        mut task: Task,
        end: usize,
        from: usize,
        computed: Result<u32, EngineError>,
    ) -> Option<Task> {
        let taken = computed.and_then(|micros| {
            self.store_output(&mut task, end, from)?;
            task.micros = task.micros.saturating_add(micros);
            Ok(())
        });
        task.done = end;
        match taken {
            Ok(()) if end < task.job.rows.len() => return Some(task),
            Ok(()) => finish(task, self.stage.spec().vocab.is_some()),
            Err(error) => drop(task.reply.send(Err(error))),
        }
        None
    }

    /// Computes steps of different sessions and the next row of each piggybacked prompt in one batch.
    fn run_batch(&mut self, indices: &[usize], piggybacked: &[usize]) {
        let mut tasks = self.take_batch(indices, piggybacked);
        if tasks.len() < 2 {
            if let Some((task, end)) = tasks.pop() {
                let rows = end - task.done;
                let rest = self.compute_rows(task, rows);
                self.requeue(rest);
            }
            return;
        }
        let width = self.stage.spec().width as usize;
        let mut hidden = std::mem::take(&mut self.batch_input);
        hidden.clear();
        let mut rows = Vec::new();
        for (task, end) in &tasks {
            hidden.extend_from_slice(task.job.hidden.get(task.done * width..end * width).unwrap_or_default());
            let wanted = task.job.reduce != Reduce::Hidden;
            rows.extend(task.job.rows[task.done..*end].iter().map(|row| Row { want: row.want && wanted, ..*row }));
        }
        let cancelled = || tasks.iter().all(|(task, _)| task.reply.is_closed());
        let options = ComputeOptions { reduce: Reduce::Full, prefill: false, exact: false, cancelled: &cancelled };
        let computed = self.compute(&hidden, &rows, options);
        self.batch_input = hidden;
        if let Err(error @ EngineError::Step { .. }) = &computed
            && !self.broken
        {
            return self.retry_separately(tasks, error);
        }
        if let Some(computation) = &mut self.last_computation {
            computation.piggybacked =
                tasks.iter().filter(|(task, _)| task.is_prefill()).filter_map(|(task, _)| task.slot()).collect();
        }
        let mut from = 0;
        for (task, end) in tasks {
            let floats = self.output_floats(&task.job.rows[task.done..end], task.job.reduce);
            let rest = self.finish_rows(task, end, from, computed.clone());
            self.requeue(rest);
            from += floats;
        }
    }

    /// Computes the steps of a failed batch one by one, so that only the faulty ones fail. A session that the engine cannot
    /// roll back fails with the batch's error.
    fn retry_separately(&mut self, tasks: Vec<(Task, usize)>, error: &EngineError) {
        tracing::warn!(%error, sessions = tasks.len(), "a batch failed; its steps are computed one by one");
        for (task, end) in tasks {
            let Row { slot, pos, .. } = task.job.rows[task.done];
            let rows = end - task.done;
            let rest = match self.with_stage(|stage| stage.truncate(slot, pos)) {
                Ok(()) => self.compute_rows(task, rows),
                Err(_) => self.finish_rows(task, end, 0, Err(error.clone())),
            };
            self.requeue(rest);
        }
    }

    /// Removes steps from the waiting list; returns them by slot, each with the end of the rows to compute now. Replies to
    /// steps that the stage refuses.
    fn take_batch(&mut self, indices: &[usize], piggybacked: &[usize]) -> Vec<(Task, usize)> {
        let mut all: Vec<usize> = indices.iter().chain(piggybacked).copied().collect();
        all.sort_unstable();
        let mut tasks = Vec::with_capacity(all.len());
        for index in all.into_iter().rev() {
            let Job::Step(task) = self.waiting.remove(index) else { continue };
            let end = if task.is_prefill() { task.done + 1 } else { task.job.rows.len() };
            // The whole step is checked before its first row, so that a refused step changes nothing.
            let ready = if task.done == 0 { self.validate(&task.job) } else { Ok(()) };
            match ready {
                Ok(()) => tasks.push((task, end)),
                Err(error) => drop(task.reply.send(Err(error))),
            }
        }
        tasks.sort_unstable_by_key(|(task, _)| task.slot());
        tasks
    }

    /// Puts an incomplete step back in front of all later jobs.
    fn requeue(&mut self, rest: Option<Task>) {
        if let Some(rest) = rest {
            self.waiting.insert(0, Job::Step(rest));
        }
    }

    /// Truncates the session to a rewinding step's first position.
    fn rewind(&mut self, job: &StepJob) -> Result<(), EngineError> {
        match job.rows.first().copied().filter(|_| job.rewind) {
            Some(Row { slot, pos, .. }) => self.with_stage(|stage| stage.truncate(slot, pos)),
            None => Ok(()),
        }
    }

    /// Validates a whole step before any of it is computed.
    fn validate(&mut self, job: &StepJob) -> Result<(), EngineError> {
        self.rewind(job)?;
        self.with_stage(|stage| stage.check(&job.hidden, &job.rows))
    }

    /// Output floats of rows.
    fn output_floats(&self, rows: &[Row], reduce: Reduce) -> usize {
        let spec = self.stage.spec();
        match spec.vocab {
            None => rows.len() * spec.width as usize,
            Some(_) if reduce == Reduce::Hidden => 0,
            Some(vocab) => rows.iter().filter(|row| row.want).count() * self.row_floats(vocab, reduce),
        }
    }

    /// Output floats of one wanted row.
    fn row_floats(&self, vocab: u32, reduce: Reduce) -> usize {
        if reduce == Reduce::State { self.stage.spec().width as usize } else { vocab as usize }
    }

    /// Computes rows into `out`; returns the microseconds.
    fn compute(&mut self, hidden: &[f32], rows: &[Row], options: ComputeOptions<'_>) -> Result<u32, EngineError> {
        let unwanted: Vec<Row>;
        let ComputeOptions { reduce, prefill, exact, cancelled } = options;
        let rows = match reduce {
            Reduce::Hidden => {
                unwanted = rows.iter().map(|row| Row { want: false, ..*row }).collect();
                &unwanted
            }
            _ => rows,
        };
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let begun = Instant::now();
        let step_options =
            StepOptions { states: reduce == Reduce::State, allow_rounding: !exact, cancelled: Some(cancelled) };
        let computed = self.with_stage(|stage| stage.compute(hidden, rows, step_options, &mut out));
        let now = Instant::now();
        self.out = out;
        computed?;
        let micros = u32::try_from((now - begun).as_micros()).unwrap_or(u32::MAX);
        let slots = rows.chunk_by(|one, next| one.slot == next.slot).map(|run| run[0].slot).collect();
        self.last_computation = Some(Computation { slots, piggybacked: Vec::new(), rows: rows.len(), prefill, micros });
        let (given, expected) = (self.out.len(), self.output_floats(rows, reduce));
        if given != expected {
            let reason = format!("it returned {given} floats where {expected} were expected");
            return Err(EngineError::Step { engine: self.stage.spec().engine, reason });
        }
        Ok(micros)
    }

    /// Stores the output of a task's rows `done..end`, which begins at float `from` of `out`.
    fn store_output(&mut self, task: &mut Task, end: usize, from: usize) -> Result<(), EngineError> {
        let rows = &task.job.rows[task.done..end];
        let floats = self.output_floats(rows, task.job.reduce);
        let spec = self.stage.spec();
        let Some(vocab) = spec.vocab else {
            // Only this task's values are checked: another session's overflow must not end this session.
            if !self.out[from..from + floats].iter().fold(true, |finite, value| finite & value.is_finite()) {
                let reason = "a hidden state is not finite".to_owned();
                return Err(EngineError::Step { engine: spec.engine, reason });
            }
            match task.hidden.is_empty() && from == 0 && self.out.len() == floats {
                true => std::mem::swap(&mut task.hidden, &mut self.out),
                false => task.hidden.extend_from_slice(&self.out[from..from + floats]),
            }
            return Ok(());
        };
        let output = self.row_floats(vocab, task.job.reduce);
        let wanted = rows.iter().enumerate().filter(|(_, row)| row.want).map(|(index, _)| index);
        for (row, values) in wanted.zip(self.out[from..from + floats].chunks_exact(output)) {
            let reduced = reduce_row(values, task.job.reduce, &mut self.best).ok_or_else(|| {
                // Not `NotFinite`, which means that nothing changed: the rows are in the KV already.
                EngineError::Step { engine: spec.engine, reason: format!("logits of row {row} are not finite") }
            })?;
            task.logits.push(reduced);
        }
        Ok(())
    }

    /// Runs `work` on the stage. A panic becomes an error, after which the stage is not used any more.
    fn with_stage<T>(&mut self, work: impl FnOnce(&mut dyn Stage) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let permit = EXIT_GATE.enter().filter(|_| !self.broken);
        let Some(_permit) = permit else { return Err(EngineError::Gone) };
        let engine = self.stage.spec().engine;
        let result = catch_unwind(AssertUnwindSafe(|| work(self.stage.as_mut())));
        result.unwrap_or_else(|panic| {
            self.broken = true;
            let reason = panic_message(panic.as_ref());
            tracing::error!(engine, %reason, "the stage panicked and is closed");
            Err(EngineError::Step { engine, reason })
        })
    }
}

/// Replies to a complete step.
fn finish(task: Task, head: bool) {
    let output = if head { StepOutput::Logits(task.logits) } else { StepOutput::Hidden(task.hidden) };
    let _ = task.reply.send(Ok((output, task.micros)));
}

/// Reduces one row of logits, or copies a state; `None` if it holds NaN or infinity.
fn reduce_row(logits: &[f32], reduce: Reduce, best: &mut Vec<Candidate>) -> Option<LogitRow> {
    if reduce == Reduce::State {
        return logits.iter().all(|value| value.is_finite()).then(|| LogitRow::Full(logits.to_vec()));
    }
    let lse = sample::log_sum_exp(logits);
    if !lse.is_finite() {
        return None;
    }
    let Reduce::Top(k) = reduce else { return Some(LogitRow::Full(logits.to_vec())) };
    sample::top(logits, k as usize, best);
    let ids = best.iter().map(|candidate| candidate.token).collect();
    Some(LogitRow::Top { lse, ids, logits: best.iter().map(|candidate| candidate.logit).collect() })
}

#[cfg(test)]
mod tests;
