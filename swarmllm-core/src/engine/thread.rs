//! The stage thread: one OS thread owns a stage and does its jobs in order.
//!
//! A [`Stage`] is loaded, used and dropped on its own named thread, so that engines need not be `Sync`, and a long
//! computation never sits on the runtime. [`StageHandle`] sends jobs through a bounded queue and gets each answer through
//! a oneshot. Logits are reduced here, before they travel: a row of a large vocabulary becomes some hundred bytes.
//!
//! Promises: jobs are done in the order in which they were sent; a panic of an engine becomes an error and ends the
//! stage, never the process; dropping the last handle ends the thread, and nobody waits for that.

use std::any::Any;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::sample::{self, Candidate, LogitRow};
use super::{EngineError, Row, Stage, StageSpec};
use crate::base::LayerRange;

pub use super::sample::Reduce;

/// Jobs that may wait at one stage. Senders await room beyond that; sessions have one step each under way, or a few, so
/// that the queue is longer than what a stage's sessions send.
pub const QUEUE: usize = 64;

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
    Step { job: StepJob, reply: Reply<(StepOutput, u32)> },
    Truncate { slot: u32, len: u32, reply: Reply<()> },
    Release { slot: u32 },
    Snapshot { slot: u32, reply: Reply<Vec<u8>> },
    Restore { slot: u32, len: u32, state: Vec<u8>, reply: Reply<()> },
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
        let (jobs, queue) = mpsc::channel(QUEUE);
        let (reply, loaded) = oneshot::channel();
        let run = move || match catch_unwind(AssertUnwindSafe(load)) {
            Ok(Ok(stage)) => {
                if reply.send(Ok(Arc::new(stage.spec().clone()))).is_ok() {
                    Worker { stage, out: Vec::new(), best: Vec::new() }.run(queue);
                }
            }
            Ok(Err(error)) => drop(reply.send(Err(error))),
            Err(panic) => drop(reply.send(Err(not_loaded(panic_message(panic.as_ref()))))),
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

    /// Computes one step, and gives with it the microseconds that [`Stage::step`] took.
    ///
    /// Awaits room where the queue is full. Cancel-safe: a step that was not begun when its future was dropped is
    /// skipped, one that was begun runs to its end. Either way the session's next position is then unknown to the
    /// caller, who truncates or releases it.
    pub async fn step(&self, job: StepJob) -> Result<(StepOutput, u32), EngineError> {
        self.ask(|reply| Job::Step { job, reply }).await
    }

    /// Keeps the first `len` positions of a session. Once sent it is done, even where the future is dropped.
    pub async fn truncate(&self, slot: u32, len: u32) -> Result<(), EngineError> {
        self.ask(|reply| Job::Truncate { slot, len, reply }).await
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

fn not_loaded(reason: String) -> EngineError {
    EngineError::Load { engine: "stage thread", layers: LayerRange::new(0, 0), reason }
}

/// The text of a panic.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("no message"))
}

/// The thread's side.
struct Worker {
    stage: Box<dyn Stage>,
    // The output of the step; hidden states leave with it and the step's input takes its place.
    out: Vec<f32>,
    best: Vec<Candidate>,
}

impl Worker {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = queue.blocking_recv() {
            if self.serve(job).is_break() {
                // What an engine leaves behind after a panic is not to be trusted with anything, its drop included.
                // The queue is dropped with the jobs in it, whose senders then see that the stage is gone.
                let Self { stage, .. } = self;
                if catch_unwind(AssertUnwindSafe(|| drop(stage))).is_err() {
                    tracing::error!("a stage panicked again while it was unloaded");
                }
                return;
            }
        }
    }

    fn serve(&mut self, job: Job) -> ControlFlow<()> {
        match job {
            // Nobody waits for it any more.
            Job::Step { reply, .. } if reply.is_closed() => ControlFlow::Continue(()),
            Job::Step { job, reply } => self.guard(Some(reply), |worker| worker.step(job)),
            Job::Truncate { slot, len, reply } => self.guard(Some(reply), |worker| worker.stage.truncate(slot, len)),
            Job::Release { slot } => self.guard(None, |worker| {
                worker.stage.release(slot);
                Ok(())
            }),
            Job::Snapshot { slot, reply } => self.guard(Some(reply), |worker| worker.stage.snapshot(slot)),
            Job::Restore { slot, len, state, reply } => {
                self.guard(Some(reply), |worker| worker.stage.restore(slot, len, &state))
            }
        }
    }

    /// Does a job and answers; a panic becomes an error and breaks the loop.
    fn guard<T>(
        &mut self,
        reply: Option<Reply<T>>,
        work: impl FnOnce(&mut Self) -> Result<T, EngineError>,
    ) -> ControlFlow<()> {
        let engine = self.stage.spec().engine;
        let result = catch_unwind(AssertUnwindSafe(|| work(self)));
        let broken = result.is_err();
        let answer = result.unwrap_or_else(|panic| {
            let reason = panic_message(panic.as_ref());
            tracing::error!(engine, %reason, "a stage is given up");
            Err(EngineError::Step { engine, reason })
        });
        if let Some(reply) = reply {
            // A caller that is gone has no use for the answer.
            let _ = reply.send(answer);
        }
        if broken { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn step(&mut self, job: StepJob) -> Result<(StepOutput, u32), EngineError> {
        let StepJob { hidden, mut rows, reduce } = job;
        if reduce == Reduce::Hidden {
            rows.iter_mut().for_each(|row| row.want = false);
        }
        self.out.clear();
        let begun = Instant::now();
        self.stage.step(&hidden, &rows, &mut self.out)?;
        let micros = u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);

        let spec = self.stage.spec();
        let (floats_per_row, rows_out) = match spec.vocab {
            None => (spec.width as usize, rows.len()),
            Some(vocab) => (vocab as usize, rows.iter().filter(|row| row.want).count()),
        };
        if self.out.len() != floats_per_row * rows_out {
            let reason = format!("it gave {} floats for {rows_out} rows of {floats_per_row}", self.out.len());
            return Err(EngineError::Step { engine: spec.engine, reason });
        }
        if spec.vocab.is_none() {
            return Ok((StepOutput::Hidden(std::mem::replace(&mut self.out, hidden)), micros));
        }
        let mut logits = Vec::with_capacity(rows_out);
        let wanted = rows.iter().enumerate().filter(|(_, row)| row.want).map(|(index, _)| index);
        for (row, values) in wanted.zip(self.out.chunks_exact(floats_per_row)) {
            let reduced = reduce_row(values, reduce, &mut self.best).ok_or_else(|| {
                // Not `NotFinite`, which would say that nothing changed: the rows are in the KV already.
                EngineError::Step { engine: spec.engine, reason: format!("logits of row {row} are not finite") }
            })?;
            logits.push(reduced);
        }
        Ok((StepOutput::Logits(logits), micros))
    }
}

/// Reduces one row of logits; nothing where it holds NaN or +infinity.
fn reduce_row(logits: &[f32], reduce: Reduce, best: &mut Vec<Candidate>) -> Option<LogitRow> {
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
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::StageConfig;
    use crate::engine::echo::{EchoFaults, EchoStage};

    const WIDTH: u32 = 3;
    const VOCAB: u32 = 50;

    fn config() -> StageConfig {
        StageConfig { context: 256, max_sessions: 2, max_rows: 8, threads: 1 }
    }

    async fn spawn(vocab: Option<u32>, faults: EchoFaults) -> StageHandle {
        let stage = EchoStage::new(1, LayerRange::new(0, 2), WIDTH, vocab, config()).with_faults(faults);
        StageHandle::spawn(move || Ok(Box::new(stage) as Box<dyn Stage>)).await.unwrap()
    }

    fn job(pos: u32, rows: u32, reduce: Reduce) -> StepJob {
        let hidden = (0..rows * WIDTH).map(|index| (pos * WIDTH + index) as f32).collect();
        let rows = (pos..pos + rows).map(|pos| Row { slot: 0, pos, want: true }).collect();
        StepJob { hidden, rows, reduce }
    }

    async fn logits(stage: &StageHandle, reduce: Reduce) -> Vec<LogitRow> {
        stage.truncate(0, 0).await.unwrap();
        match stage.step(job(0, 2, reduce)).await.unwrap().0 {
            StepOutput::Logits(rows) => rows,
            StepOutput::Hidden(_) => panic!("a stage with the head gave hidden states"),
        }
    }

    #[tokio::test]
    async fn a_stage_without_the_head_gives_hidden_states_whatever_is_asked() {
        let stage = spawn(None, EchoFaults::default()).await;
        let (output, _) = stage.step(job(0, 2, Reduce::Top(4))).await.unwrap();
        assert!(matches!(output, StepOutput::Hidden(hidden) if hidden.len() == 2 * WIDTH as usize));
    }

    #[tokio::test]
    async fn a_reduced_row_is_the_best_of_the_full_row_with_its_log_sum_exp() {
        let stage = spawn(Some(VOCAB), EchoFaults::default()).await;
        let full = logits(&stage, Reduce::Full).await;
        let top = logits(&stage, Reduce::Top(7)).await;
        assert_eq!((full.len(), top.len()), (2, 2));
        for (full, top) in full.iter().zip(&top) {
            let LogitRow::Full(full) = full else { panic!("not a full row") };
            let mut sorted: Vec<(u32, f32)> = (0..).zip(full.iter().copied()).collect();
            sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let (ids, logits) = sorted.into_iter().take(7).unzip();
            let exact = full.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
            let LogitRow::Top { lse, .. } = top else { panic!("not a reduced row") };
            assert!((f64::from(*lse) - exact).abs() < 1e-5, "{lse} {exact}");
            assert_eq!(*top, LogitRow::Top { lse: *lse, ids, logits });
        }
    }

    #[tokio::test]
    async fn more_than_the_vocabulary_is_the_vocabulary_and_hidden_is_no_logits() {
        let stage = spawn(Some(VOCAB), EchoFaults::default()).await;
        let all = logits(&stage, Reduce::Top(u32::MAX)).await;
        assert!(matches!(&all[0], LogitRow::Top { ids, .. } if ids.len() == VOCAB as usize));
        assert_eq!(logits(&stage, Reduce::Hidden).await, []);
    }

    #[tokio::test]
    async fn a_refused_step_leaves_the_stage_as_it_was() {
        let stage = spawn(None, EchoFaults::default()).await;
        let refused = stage.step(job(1, 1, Reduce::Hidden)).await;
        assert_eq!(refused, Err(EngineError::Position { given: 1, expected: 0 }));
        assert!(stage.step(job(0, 1, Reduce::Hidden)).await.is_ok());
    }

    #[tokio::test]
    async fn an_engine_that_panics_is_given_up_and_nothing_else_is() {
        let faults = EchoFaults { panic_at: Some(1), ..EchoFaults::default() };
        let stage = spawn(None, faults).await;
        assert!(stage.step(job(0, 1, Reduce::Hidden)).await.is_ok());
        let panicked = stage.step(job(1, 1, Reduce::Hidden)).await;
        assert!(matches!(panicked, Err(EngineError::Step { reason, .. }) if reason.contains("step 1")));
        assert_eq!(stage.step(job(1, 1, Reduce::Hidden)).await, Err(EngineError::Gone));
        assert_eq!(stage.release(0).await, Err(EngineError::Gone));
    }

    #[tokio::test]
    async fn a_load_that_panics_or_fails_is_an_error() {
        let panicked = StageHandle::spawn(|| panic!("no weights")).await;
        assert!(matches!(panicked, Err(EngineError::Load { reason, .. }) if reason.contains("no weights")));
        let failed = StageHandle::spawn(|| Err(EngineError::Busy { depth: 1 })).await;
        assert!(matches!(failed, Err(EngineError::Busy { depth: 1 })));
    }

    #[tokio::test]
    async fn a_step_whose_caller_is_gone_is_skipped_and_a_release_is_not() {
        let faults = EchoFaults { delay: Duration::from_millis(50), ..EchoFaults::default() };
        let stage = spawn(None, faults).await;
        let mut first = tokio::spawn({
            let stage = stage.clone();
            async move { stage.step(job(0, 1, Reduce::Hidden)).await.map(|_| ()) }
        });
        // The first step is under way or queued; the second waits behind it when its future is dropped.
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut first).await.is_err());
        let second = stage.step(job(1, 1, Reduce::Hidden));
        assert!(tokio::time::timeout(Duration::from_millis(1), second).await.is_err());
        assert_eq!(first.await.unwrap(), Ok(()));
        // Position 1 is still free.
        assert!(stage.step(job(1, 1, Reduce::Hidden)).await.is_ok());
        stage.release(0).await.unwrap();
        assert!(stage.step(job(0, 1, Reduce::Hidden)).await.is_ok());
    }

    /// Tells when it is dropped.
    struct Watched(EchoStage, std::sync::mpsc::Sender<Option<String>>);

    impl Drop for Watched {
        fn drop(&mut self) {
            let _ = self.1.send(std::thread::current().name().map(str::to_owned));
        }
    }

    impl Stage for Watched {
        fn spec(&self) -> &StageSpec {
            self.0.spec()
        }
        fn step(&mut self, hidden: &[f32], rows: &[Row], out: &mut Vec<f32>) -> Result<(), EngineError> {
            self.0.step(hidden, rows, out)
        }
        fn truncate(&mut self, slot: u32, len: u32) -> Result<(), EngineError> {
            self.0.truncate(slot, len)
        }
        fn release(&mut self, slot: u32) {
            self.0.release(slot);
        }
        fn snapshot(&mut self, slot: u32) -> Result<Vec<u8>, EngineError> {
            self.0.snapshot(slot)
        }
        fn restore(&mut self, slot: u32, len: u32, state: &[u8]) -> Result<(), EngineError> {
            self.0.restore(slot, len, state)
        }
    }

    #[tokio::test]
    async fn dropping_the_last_handle_unloads_the_stage_on_its_own_thread() {
        let (dropped, seen) = std::sync::mpsc::channel();
        let stage = EchoStage::new(1, LayerRange::new(0, 1), WIDTH, None, config());
        let load = move || Ok(Box::new(Watched(stage, dropped)) as Box<dyn Stage>);
        let handle = StageHandle::spawn(load).await.unwrap();
        let clone = handle.clone();
        drop(handle);
        assert!(clone.step(job(0, 1, Reduce::Hidden)).await.is_ok());
        assert!(seen.try_recv().is_err());
        drop(clone);
        assert_eq!(seen.recv_timeout(Duration::from_secs(60)), Ok(Some(THREAD_NAME.to_owned())));
    }
}
