//! The stage thread: one OS thread owns a stage and does its jobs, in the order that the [`schedule`](super::schedule)
//! says.
//!
//! A [`Stage`] is loaded, used and dropped on its own named thread, so that engines need not be `Sync`, and a long
//! computation never sits on the runtime. [`StageHandle`] sends jobs through a bounded queue and gets each answer through
//! a oneshot. Logits are reduced here, before they travel: a row of a large vocabulary becomes some hundred bytes.
//!
//! Promises: jobs of one session are done in the order in which they were sent; a step that is refused or fails takes
//! nothing from other sessions, also where it was computed with theirs; a panic of an engine becomes an error and ends the
//! stage, never the process; a step whose caller has gone is given up, also in the middle of its computation; dropping the
//! last handle ends the thread, and nobody waits for that.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::awake::Awake;
use super::cores::{Taken, User};
use super::gate::GATE;
use super::sample::{self, Candidate, LogitRow};
use super::schedule::{JOINT_ROWS, Kind, Pick, Schedule, Waiting};
use super::{EngineError, Row, Stage, StageConfig, StageSpec, Terms};
use crate::base::LayerRange;

pub use super::sample::Reduce;

/// Jobs that may wait at one stage. Senders await room beyond that; sessions have one step each under way, or a few, so
/// that the queue is longer than what a stage's sessions send.
pub const QUEUE: usize = 64;

/// Between two looks into the queue while a token is awaited.
const LOOK: Duration = Duration::from_micros(100);

/// Name of the thread, at most the 15 bytes that Linux shows.
const THREAD_NAME: &str = "swarmllm-stage";

/// One step for a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct StepJob {
    /// `rows.len() * width` floats.
    pub hidden: Vec<f32>,
    /// The rows. `want` matters only to a stage with the head.
    pub rows: Vec<Row>,
    /// What becomes of the logits. A stage without the head ignores it.
    pub reduce: Reduce,
    /// Whether the step keeps its shape: computed by itself and whole. Otherwise it may share a computation with steps of
    /// other sessions, or be cut into slices, which changes results by the rounding of another order of sums.
    pub exact: bool,
    /// Whether it begins before positions that the session holds: those are forgotten first.
    pub rewind: bool,
}

/// What a step gives.
#[derive(Debug, Clone, PartialEq)]
pub enum StepOutput {
    /// Of a stage without the head: `rows * width` floats.
    Hidden(Vec<f32>),
    /// Of a stage with the head: one row for each wanted one, in their order; none with [`Reduce::Hidden`].
    Logits(Vec<LogitRow>),
}

type Reply<T> = oneshot::Sender<Result<T, EngineError>>;

enum Job {
    Step(Task),
    Truncate { slot: u32, len: u32, reply: Reply<()> },
    Rest { slot: u32 },
    Release { slot: u32 },
    Snapshot { slot: u32, reply: Reply<Vec<u8>> },
    Restore { slot: u32, len: u32, state: Vec<u8>, reply: Reply<()> },
}

/// A step and how far it has come.
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
    /// Whether it is prefill rather than a token or a window of guesses.
    fn is_long(&self) -> bool {
        self.job.rows.len() > JOINT_ROWS
    }

    /// Its session's slot, or the first of several.
    fn slot(&self) -> Option<u32> {
        self.job.rows.first().map(|row| row.slot)
    }
}

impl Job {
    /// What the schedule needs to know.
    fn waiting(&self) -> Waiting {
        match self {
            Self::Step(task) => {
                let slot = task.slot().filter(|slot| task.job.rows.iter().all(|row| row.slot == *slot));
                // States are not logits, so that they cannot be computed with them.
                let free = slot.is_some() && !task.job.exact && task.job.reduce != Reduce::State;
                let (rows, long) = (task.job.rows.len() - task.done, task.is_long());
                let kind = if free { Kind::Free { rows, long } } else { Kind::Alone };
                Waiting { slot, kind }
            }
            Self::Truncate { slot, .. }
            | Self::Rest { slot }
            | Self::Release { slot }
            | Self::Snapshot { slot, .. }
            | Self::Restore { slot, .. } => Waiting { slot: Some(*slot), kind: Kind::Control },
        }
    }

    fn is_step(&self) -> bool {
        matches!(self, Self::Step(_))
    }

    /// A step that nobody waits for any more.
    fn is_abandoned(&self) -> bool {
        matches!(self, Self::Step(task) if task.reply.is_closed())
    }
}

/// A loaded stage. Clones share it; when the last is dropped the thread unloads the stage and ends.
#[derive(Debug, Clone)]
pub struct StageHandle {
    jobs: mpsc::Sender<Job>,
    spec: Arc<StageSpec>,
}

impl StageHandle {
    /// Starts a thread and loads a stage on it with `load`, which may block.
    ///
    /// Cancel-safe: where the future is dropped, the stage is unloaded as soon as it has been loaded.
    pub async fn spawn(
        load: impl FnOnce() -> Result<Box<dyn Stage>, EngineError> + Send + 'static,
    ) -> Result<Self, EngineError> {
        Self::spawn_counted(load, Arc::default()).await
    }

    /// As [`spawn`](Self::spawn); the thread holds `alive` until it has unloaded its stage.
    pub(crate) async fn spawn_counted(
        load: impl FnOnce() -> Result<Box<dyn Stage>, EngineError> + Send + 'static,
        alive: Arc<()>,
    ) -> Result<Self, EngineError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (reply, loaded) = oneshot::channel();
        let run = move || {
            match catch_unwind(AssertUnwindSafe(|| load_inside(load))) {
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
            .map_err(|error| not_loaded(format!("its thread was not started: {error}")))?;
        let spec = loaded.await.map_err(|_| EngineError::Gone)??;
        Ok(Self { jobs, spec })
    }

    /// What the stage is.
    pub fn spec(&self) -> &StageSpec {
        &self.spec
    }

    /// Computes one step, and gives with it the microseconds that [`Stage::step`] took; a shared computation counts in
    /// full for each that took part.
    ///
    /// Awaits room where the queue is full. Cancel-safe: a step that was not begun when its future was dropped is
    /// skipped, one that was begun is given up or comes to its end. Either way the session's next position is then unknown
    /// to the caller, who truncates or releases it.
    pub async fn step(&self, job: StepJob) -> Result<(StepOutput, u32), EngineError> {
        let (hidden, logits) = (Vec::new(), Vec::new());
        let task = |reply| Task { job, done: 0, hidden, logits, micros: 0, reply };
        self.ask(|reply| Job::Step(task(reply))).await
    }

    /// Keeps the first `len` positions of a session. Once sent it is done, even where the future is dropped.
    pub async fn truncate(&self, slot: u32, len: u32) -> Result<(), EngineError> {
        self.ask(|reply| Job::Truncate { slot, len, reply }).await
    }

    /// Says that a session is over whose KV stays, after all jobs sent before: others need no longer make way for it.
    pub async fn rest(&self, slot: u32) -> Result<(), EngineError> {
        self.jobs.send(Job::Rest { slot }).await.map_err(|_| EngineError::Gone)
    }

    /// Forgets a session, after all jobs sent before. Returns as soon as the job is in the queue.
    pub async fn release(&self, slot: u32) -> Result<(), EngineError> {
        self.jobs.send(Job::Release { slot }).await.map_err(|_| EngineError::Gone)
    }

    /// The session's KV state. See [`Stage::snapshot`].
    pub async fn snapshot(&self, slot: u32) -> Result<Vec<u8>, EngineError> {
        self.ask(|reply| Job::Snapshot { slot, reply }).await
    }

    /// Replaces the session's KV state. See [`Stage::restore`].
    pub async fn restore(&self, slot: u32, len: u32, state: Vec<u8>) -> Result<(), EngineError> {
        self.ask(|reply| Job::Restore { slot, len, state, reply }).await
    }

    async fn ask<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| EngineError::Gone)?;
        answer.await.map_err(|_| EngineError::Gone)?
    }
}

fn load_inside(load: impl FnOnce() -> Result<Box<dyn Stage>, EngineError>) -> Result<Box<dyn Stage>, EngineError> {
    let _pass = GATE.enter().ok_or(EngineError::Gone)?;
    load()
}

fn unload(stage: Box<dyn Stage>) {
    let Some(_pass) = GATE.enter() else {
        // The process is ending, and takes the memory back by itself.
        return std::mem::forget(stage);
    };
    // What an engine leaves behind after a panic is not to be trusted with anything, its drop included.
    if catch_unwind(AssertUnwindSafe(|| drop(stage))).is_err() {
        tracing::error!("a stage panicked while it was unloaded");
    }
}

fn not_loaded(reason: String) -> EngineError {
    EngineError::Load { engine: "stage thread", layers: LayerRange::new(0, 0), reason }
}

/// The text of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("no message"))
}

/// How rows are computed: what becomes of logits, whether they are of a long step, whether bits matter, and whether
/// nobody waits for them any more.
#[derive(Clone, Copy)]
struct How<'a> {
    reduce: Reduce,
    long: bool,
    exact: bool,
    abandoned: &'a (dyn Fn() -> bool + Sync),
}

/// The thread's side.
struct Worker {
    stage: Box<dyn Stage>,
    waiting: Vec<Job>,
    schedule: Schedule,
    /// Input of a computation that several steps share.
    joint: Vec<f32>,
    /// Output of a computation.
    out: Vec<f32>,
    best: Vec<Candidate>,
    /// The computation whose answers are being given.
    took: Option<Took>,
    /// Keeps the cores awake between steps.
    awake: Awake,
    /// The engine has panicked.
    broken: bool,
}

/// What a computation took.
struct Took {
    slots: Vec<u32>,
    /// Of those, the ones that are given no token by it.
    riders: Vec<u32>,
    rows: usize,
    long: bool,
    micros: u32,
}

impl Worker {
    fn new(stage: Box<dyn Stage>) -> Self {
        let (waiting, joint, out, best) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let StageConfig { threads, keep_awake, .. } = stage.spec().config;
        let (awake, schedule) = (Awake::new(if keep_awake { threads } else { 0 }), Schedule::default());
        Self { stage, waiting, schedule, joint, out, best, took: None, awake, broken: false }
    }

    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let user = User::new(self.stage.spec().config.threads);
        while self.await_job(&mut queue, &user) {
            // Taken before the choice: whatever comes until there are cores can be computed together.
            let cores = self.waiting.iter().any(Job::is_step).then(|| user.take());
            self.fill(&mut queue);
            if !self.serve(cores.as_ref().and_then(|cores| cores.others)) {
                // Asleep and without cores, so that whoever carries the token has one.
                cores.into_iter().for_each(Taken::unused);
                std::thread::sleep(LOOK);
            }
            if self.broken {
                // The queue is dropped with the jobs in it, whose senders then see that the stage is gone.
                break;
            }
        }
        unload(self.stage);
    }

    /// Waits until a job is there; false where none will come any more.
    fn await_job(&mut self, queue: &mut mpsc::Receiver<Job>, user: &User<'_>) -> bool {
        self.fill(queue);
        if self.waiting.is_empty() {
            let Some(job) = queue.blocking_recv() else { return false };
            if job.is_step() {
                self.awake.waited(user.idle());
            }
            self.waiting.push(job);
        }
        true
    }

    /// Takes in what has been sent.
    fn fill(&mut self, queue: &mut mpsc::Receiver<Job>) {
        while self.waiting.len() < QUEUE {
            match queue.try_recv() {
                Ok(job) => self.waiting.push(job),
                Err(_) => break,
            }
        }
        self.waiting.retain(|job| !job.is_abandoned());
    }

    /// Does what is next; false where it is better to wait a moment. `others` is until when another stage computed on the
    /// same cores.
    fn serve(&mut self, others: Option<Instant>) -> bool {
        let waiting: Vec<Waiting> = self.waiting.iter().map(Job::waiting).collect();
        let max_rows = self.stage.spec().config.max_rows as usize;
        match self.schedule.pick(&waiting, max_rows, others, Instant::now()) {
            None => {}
            Some(Pick::One(index)) => self.one(index),
            Some(Pick::Joint(indices)) => self.together(&indices, &[]),
            Some(Pick::Ride(indices, riders)) => self.together(&indices, &riders),
            Some(Pick::Slice(index, rows)) => self.slice(index, rows),
            Some(Pick::Wait) => return false,
        }
        // Told once all answers are out, of which each takes a while: from then on their sessions may ask again.
        match self.took.take() {
            Some(Took { slots, riders, .. }) if !riders.is_empty() => {
                let given = slots.into_iter().filter(|slot| !riders.contains(slot));
                self.schedule.rode(given, Instant::now());
            }
            Some(Took { slots, rows, long, micros, .. }) => {
                self.schedule.took(slots.into_iter(), rows, long, micros, Instant::now());
            }
            None => {}
        }
        true
    }

    fn one(&mut self, index: usize) {
        // A caller that is gone has no use for the answer.
        match self.waiting.remove(index) {
            Job::Step(task) => {
                let rows = task.job.rows.len();
                self.advance(task, rows);
            }
            Job::Truncate { slot, len, reply } => {
                let _ = reply.send(self.guard(|stage| stage.truncate(slot, len)));
            }
            Job::Rest { slot } => self.schedule.rests(slot),
            Job::Release { slot } => {
                self.schedule.rests(slot);
                let _ = self.guard(|stage| {
                    stage.release(slot);
                    Ok(())
                });
            }
            Job::Snapshot { slot, reply } => drop(reply.send(self.guard(|stage| stage.snapshot(slot)))),
            Job::Restore { slot, len, state, reply } => {
                let _ = reply.send(self.guard(|stage| stage.restore(slot, len, &state)));
            }
        }
    }

    fn slice(&mut self, index: usize, rows: usize) {
        if let Job::Step(task) = self.waiting.remove(index)
            && let Some(rest) = self.advance(task, rows)
        {
            // In its old place: what came after it in its session stays behind it.
            self.waiting.insert(index, Job::Step(rest));
        }
    }

    /// Computes the next rows of a step; answers where it is done or has failed, else gives it back.
    fn advance(&mut self, mut task: Task, rows: usize) -> Option<Task> {
        let width = self.stage.spec().width as usize;
        let (done, end) = (task.done, (task.done + rows.max(1)).min(task.job.rows.len()));
        let whole = done == 0 && end == task.job.rows.len();
        let ready = match (whole, done) {
            (true, _) => self.rewind(&task.job),
            // Checked whole before its first slice, so that a refused step changes nothing.
            (false, 0) => self.admit(&task.job),
            _ => Ok(()),
        };
        let hidden = match whole {
            true => std::mem::take(&mut task.job.hidden),
            false => task.job.hidden.get(done * width..end * width).unwrap_or_default().to_vec(),
        };
        let abandoned = || task.reply.is_closed();
        let StepJob { reduce, exact, .. } = task.job;
        let how = How { reduce, long: task.is_long(), exact, abandoned: &abandoned };
        let computed = ready.and_then(|()| self.compute(&hidden, &task.job.rows[done..end], how));
        self.settle(task, end, 0, computed)
    }

    /// Takes over what a task's rows up to `end` gave, which begins at float `from` of `out`; answers where it is done or has
    /// failed, else gives it back.
    fn settle(&mut self, mut task: Task, end: usize, from: usize, computed: Result<u32, EngineError>) -> Option<Task> {
        let taken = computed.and_then(|micros| {
            self.take(&mut task, end, from)?;
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

    /// Computes steps of different sessions at once, and the next row of each rider.
    fn together(&mut self, indices: &[usize], riders: &[usize]) {
        let mut tasks = self.take_part(indices, riders);
        if tasks.len() < 2 {
            if let Some((task, end)) = tasks.pop() {
                let rows = end - task.done;
                let rest = self.advance(task, rows);
                self.put_back(rest);
            }
            return;
        }
        let width = self.stage.spec().width as usize;
        let mut hidden = std::mem::take(&mut self.joint);
        hidden.clear();
        let mut rows = Vec::new();
        for (task, end) in &tasks {
            hidden.extend_from_slice(task.job.hidden.get(task.done * width..end * width).unwrap_or_default());
            let wanted = task.job.reduce != Reduce::Hidden;
            rows.extend(task.job.rows[task.done..*end].iter().map(|row| Row { want: row.want && wanted, ..*row }));
        }
        let abandoned = || tasks.iter().all(|(task, _)| task.reply.is_closed());
        let how = How { reduce: Reduce::Full, long: false, exact: false, abandoned: &abandoned };
        let computed = self.compute(&hidden, &rows, how);
        self.joint = hidden;
        if let Err(error @ EngineError::Step { .. }) = &computed
            && !self.broken
        {
            return self.apart(tasks, error);
        }
        if let Some(took) = &mut self.took {
            took.riders = tasks.iter().filter(|(task, _)| task.is_long()).filter_map(|(task, _)| task.slot()).collect();
        }
        let mut from = 0;
        for (task, end) in tasks {
            let floats = self.floats(&task.job.rows[task.done..end], task.job.reduce);
            let rest = self.settle(task, end, from, computed.clone());
            self.put_back(rest);
            from += floats;
        }
    }

    /// Computes steps one by one that failed together, so that only those fail that fail by themselves. A session that the
    /// engine cannot take back to where the step began fails as all did.
    fn apart(&mut self, tasks: Vec<(Task, usize)>, error: &EngineError) {
        tracing::warn!(%error, sessions = tasks.len(), "a shared step failed; each session's is computed by itself");
        for (task, end) in tasks {
            let Row { slot, pos, .. } = task.job.rows[task.done];
            let rows = end - task.done;
            let rest = match self.guard(|stage| stage.truncate(slot, pos)) {
                Ok(()) => self.advance(task, rows),
                Err(_) => self.settle(task, end, 0, Err(error.clone())),
            };
            self.put_back(rest);
        }
    }

    /// Takes steps out of what waits, by slot, with the row up to which each is computed now. One that the stage refuses
    /// takes no part.
    fn take_part(&mut self, indices: &[usize], riders: &[usize]) -> Vec<(Task, usize)> {
        let mut all: Vec<usize> = indices.iter().chain(riders).copied().collect();
        all.sort_unstable();
        let mut tasks = Vec::with_capacity(all.len());
        for index in all.into_iter().rev() {
            let Job::Step(task) = self.waiting.remove(index) else { continue };
            let end = if task.is_long() { task.done + 1 } else { task.job.rows.len() };
            // Checked whole before its first row, so that a refused step changes nothing.
            let ready = if task.done == 0 { self.admit(&task.job) } else { Ok(()) };
            match ready {
                Ok(()) => tasks.push((task, end)),
                Err(error) => drop(task.reply.send(Err(error))),
            }
        }
        tasks.sort_unstable_by_key(|(task, _)| task.slot());
        tasks
    }

    /// What is left of a step waits again, before all that came after it.
    fn put_back(&mut self, rest: Option<Task>) {
        if let Some(rest) = rest {
            self.waiting.insert(0, Job::Step(rest));
        }
    }

    /// Forgets what a step is to replace.
    fn rewind(&mut self, job: &StepJob) -> Result<(), EngineError> {
        match job.rows.first().copied().filter(|_| job.rewind) {
            Some(Row { slot, pos, .. }) => self.guard(|stage| stage.truncate(slot, pos)),
            None => Ok(()),
        }
    }

    /// Refuses a step before any of it is computed.
    fn admit(&mut self, job: &StepJob) -> Result<(), EngineError> {
        self.rewind(job)?;
        self.guard(|stage| stage.check(&job.hidden, &job.rows))
    }

    /// Floats of output that rows give.
    fn floats(&self, rows: &[Row], reduce: Reduce) -> usize {
        let spec = self.stage.spec();
        match spec.vocab {
            None => rows.len() * spec.width as usize,
            Some(_) if reduce == Reduce::Hidden => 0,
            Some(vocab) => rows.iter().filter(|row| row.want).count() * self.output(vocab, reduce),
        }
    }

    /// Floats that one wanted row gives.
    fn output(&self, vocab: u32, reduce: Reduce) -> usize {
        if reduce == Reduce::State { self.stage.spec().width as usize } else { vocab as usize }
    }

    /// Computes rows into `out`; gives the microseconds.
    fn compute(&mut self, hidden: &[f32], rows: &[Row], how: How<'_>) -> Result<u32, EngineError> {
        let unwanted: Vec<Row>;
        let How { reduce, long, exact, abandoned } = how;
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
        let terms = Terms { states: reduce == Reduce::State, free: !exact, abandoned: Some(abandoned) };
        let computed = self.guard(|stage| stage.compute(hidden, rows, terms, &mut out));
        let now = Instant::now();
        self.out = out;
        computed?;
        let micros = u32::try_from((now - begun).as_micros()).unwrap_or(u32::MAX);
        let slots = rows.chunk_by(|one, next| one.slot == next.slot).map(|run| run[0].slot).collect();
        self.took = Some(Took { slots, riders: Vec::new(), rows: rows.len(), long, micros });
        let (given, expected) = (self.out.len(), self.floats(rows, reduce));
        if given != expected {
            let reason = format!("it gave {given} floats where {expected} were expected");
            return Err(EngineError::Step { engine: self.stage.spec().engine, reason });
        }
        Ok(micros)
    }

    /// Takes the output of a task's rows `done..end` over, which begins at float `from` of `out`.
    fn take(&mut self, task: &mut Task, end: usize, from: usize) -> Result<(), EngineError> {
        let rows = &task.job.rows[task.done..end];
        let floats = self.floats(rows, task.job.reduce);
        let spec = self.stage.spec();
        let Some(vocab) = spec.vocab else {
            // Of this task alone: a neighbour's infinities are no reason to end its session.
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
        let output = self.output(vocab, task.job.reduce);
        let wanted = rows.iter().enumerate().filter(|(_, row)| row.want).map(|(index, _)| index);
        for (row, values) in wanted.zip(self.out[from..from + floats].chunks_exact(output)) {
            let reduced = reduce_row(values, task.job.reduce, &mut self.best).ok_or_else(|| {
                // Not `NotFinite`, which would say that nothing changed: the rows are in the KV already.
                EngineError::Step { engine: spec.engine, reason: format!("logits of row {row} are not finite") }
            })?;
            task.logits.push(reduced);
        }
        Ok(())
    }

    /// Lets the stage work; a panic becomes an error, after which the stage is given up and touched no more.
    fn guard<T>(&mut self, work: impl FnOnce(&mut dyn Stage) -> Result<T, EngineError>) -> Result<T, EngineError> {
        let pass = GATE.enter().filter(|_| !self.broken);
        let Some(_pass) = pass else { return Err(EngineError::Gone) };
        let engine = self.stage.spec().engine;
        let result = catch_unwind(AssertUnwindSafe(|| work(self.stage.as_mut())));
        result.unwrap_or_else(|panic| {
            self.broken = true;
            let reason = panic_message(panic.as_ref());
            tracing::error!(engine, %reason, "a stage is given up");
            Err(EngineError::Step { engine, reason })
        })
    }
}

/// Answers a step that is done.
fn finish(task: Task, head: bool) {
    let output = if head { StepOutput::Logits(task.logits) } else { StepOutput::Hidden(task.hidden) };
    let _ = task.reply.send(Ok((output, task.micros)));
}

/// Reduces one row of logits, or takes a state as it is; nothing where it holds NaN or infinity.
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
