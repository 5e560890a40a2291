//! The stage thread on the echo engine and on faulty stages.

use super::*;
use crate::engine::echo::{EchoFaults, EchoStage};
use crate::engine::{KvType, StageConfig};

const WIDTH: u32 = 3;
const VOCAB: u32 = 50;

fn config() -> StageConfig {
    StageConfig { context: 256, max_sessions: 2, max_rows: 8, threads: 1, kv: KvType::Full, ..StageConfig::default() }
}

async fn spawn(vocab: Option<u32>, faults: EchoFaults) -> StageHandle {
    let stage = EchoStage::new(1, LayerRange::new(0, 2), WIDTH, vocab, config()).with_faults(faults);
    StageHandle::spawn(move || Ok(Box::new(stage) as Box<dyn Stage>)).await.unwrap()
}

fn job(pos: u32, rows: u32, reduce: Reduce) -> StepJob {
    let hidden = (0..rows * WIDTH).map(|index| (pos * WIDTH + index) as f32).collect();
    let rows = (pos..pos + rows).map(|pos| Row { slot: 0, pos, want: true }).collect();
    StepJob { hidden, rows, reduce, exact: true, rewind: false }
}

async fn logits(stage: &StageHandle, reduce: Reduce) -> Vec<LogitRow> {
    stage.truncate(0, 0).await.unwrap();
    match stage.step(job(0, 2, reduce)).await.unwrap().0 {
        StepOutput::Logits(rows) => rows,
        StepOutput::Hidden(_) => panic!("the stage with the head returned hidden states"),
    }
}

#[tokio::test]
async fn a_stage_without_the_head_ignores_the_reduction() {
    let stage = spawn(None, EchoFaults::default()).await;
    let (output, _) = stage.step(job(0, 2, Reduce::Top(4))).await.unwrap();
    assert!(matches!(output, StepOutput::Hidden(hidden) if hidden.len() == 2 * WIDTH as usize));
}

#[tokio::test]
async fn a_reduced_row_is_the_top_k_and_log_sum_exp_of_the_full_row() {
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
async fn top_k_is_capped_at_the_vocabulary_and_hidden_gives_no_logits() {
    let stage = spawn(Some(VOCAB), EchoFaults::default()).await;
    let all = logits(&stage, Reduce::Top(u32::MAX)).await;
    assert!(matches!(&all[0], LogitRow::Top { ids, .. } if ids.len() == VOCAB as usize));
    assert_eq!(logits(&stage, Reduce::Hidden).await, []);
}

#[tokio::test]
async fn a_refused_step_changes_nothing() {
    let stage = spawn(None, EchoFaults::default()).await;
    let refused = stage.step(job(1, 1, Reduce::Hidden)).await;
    assert_eq!(refused, Err(EngineError::Position { given: 1, expected: 0 }));
    assert!(stage.step(job(0, 1, Reduce::Hidden)).await.is_ok());
}

#[tokio::test]
async fn a_panic_ends_the_stage_and_not_the_process() {
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
async fn a_dropped_step_is_skipped_and_a_release_is_not() {
    let faults = EchoFaults { delay: Duration::from_millis(50), ..EchoFaults::default() };
    let stage = spawn(None, faults).await;
    let mut first = tokio::spawn({
        let stage = stage.clone();
        async move { stage.step(job(0, 1, Reduce::Hidden)).await.map(|_| ()) }
    });
    // The first step is running or queued; the second is queued behind it when its future is dropped.
    assert!(tokio::time::timeout(Duration::from_millis(10), &mut first).await.is_err());
    let second = stage.step(job(1, 1, Reduce::Hidden));
    assert!(tokio::time::timeout(Duration::from_millis(1), second).await.is_err());
    assert_eq!(first.await.unwrap(), Ok(()));
    // Position 1 is still free.
    assert!(stage.step(job(1, 1, Reduce::Hidden)).await.is_ok());
    stage.release(0).await.unwrap();
    assert!(stage.step(job(0, 1, Reduce::Hidden)).await.is_ok());
}

#[tokio::test]
async fn a_step_that_is_dropped_while_running_changes_nothing() {
    let faults = EchoFaults { delay: Duration::from_millis(500), ..EchoFaults::default() };
    let stage = spawn(None, faults).await;
    let step = stage.step(job(0, 1, Reduce::Hidden));
    assert!(tokio::time::timeout(Duration::from_millis(10), step).await.is_err());
    // A computed step would have filled position 0.
    assert!(stage.step(job(0, 1, Reduce::Hidden)).await.is_ok());
}

/// A stage that reports its drop.
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
    fn check(&self, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError> {
        self.0.check(hidden, rows)
    }
    fn compute(
        &mut self,
        hidden: &[f32],
        rows: &[Row],
        options: StepOptions,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.0.compute(hidden, rows, options, out)
    }
    fn truncate(&mut self, slot: u32, len: u32) -> Result<(), EngineError> {
        self.0.truncate(slot, len)
    }
    fn release(&mut self, slot: u32) {
        self.0.release(slot);
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

/// Fault of every step with rows of slot 1.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    /// The session's values overflow.
    Overflows,
    /// The step fails after it has computed its rows.
    Fails,
    /// The step fails, and its sessions cannot be rolled back.
    Forgets,
}

/// A stage with a fault at slot 1.
struct Flawed(EchoStage, Flaw);

impl Stage for Flawed {
    fn spec(&self) -> &StageSpec {
        self.0.spec()
    }
    fn check(&self, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError> {
        self.0.check(hidden, rows)
    }
    fn compute(
        &mut self,
        hidden: &[f32],
        rows: &[Row],
        options: StepOptions,
        out: &mut Vec<f32>,
    ) -> Result<(), EngineError> {
        self.0.compute(hidden, rows, options, out)?;
        if !rows.iter().any(|row| row.slot == 1) {
            return Ok(());
        }
        if self.1 == Flaw::Overflows {
            let infinite = rows.iter().zip(out.chunks_exact_mut(WIDTH as usize)).filter(|(row, _)| row.slot == 1);
            infinite.for_each(|(_, values)| values[0] = f32::INFINITY);
            return Ok(());
        }
        if self.1 == Flaw::Forgets {
            rows.iter().for_each(|row| self.0.release(row.slot));
        }
        Err(EngineError::Step { engine: "flawed", reason: "slot 1".to_owned() })
    }
    fn truncate(&mut self, slot: u32, len: u32) -> Result<(), EngineError> {
        if self.1 == Flaw::Forgets && len > 0 {
            return Err(EngineError::Position { given: len, expected: 0 });
        }
        self.0.truncate(slot, len)
    }
    fn release(&mut self, slot: u32) {
        self.0.release(slot);
    }
}

#[tokio::test]
async fn a_faulty_session_does_not_end_others_in_its_batch() {
    let faults = EchoFaults { delay: Duration::from_millis(50), ..EchoFaults::default() };
    let stage = EchoStage::new(1, LayerRange::new(0, 2), WIDTH, None, config()).with_faults(faults);
    let stage =
        StageHandle::spawn(move || Ok(Box::new(Flawed(stage, Flaw::Overflows)) as Box<dyn Stage>)).await.unwrap();
    let of = |slot: u32, pos: u32| {
        let rows = vec![Row { slot, pos, want: true }];
        StepJob { hidden: vec![0.5; WIDTH as usize], rows, reduce: Reduce::Hidden, exact: false, rewind: false }
    };
    // The other steps are queued while the first is computed.
    let (first, good, overflows) = tokio::join!(stage.step(of(0, 0)), stage.step(of(0, 1)), stage.step(of(1, 0)));
    assert!(first.is_ok() && good.is_ok());
    assert!(matches!(overflows, Err(EngineError::Step { reason, .. }) if reason.contains("not finite")));
    stage.release(1).await.unwrap();
    let (first, good, refused) = tokio::join!(stage.step(of(0, 2)), stage.step(of(0, 3)), stage.step(of(1, 7)));
    assert!(first.is_ok() && good.is_ok());
    assert_eq!(refused, Err(EngineError::Position { given: 7, expected: 0 }));
}

type Answer = oneshot::Receiver<Result<(StepOutput, u32), EngineError>>;

/// A queued step and the receiver of its result.
fn sent(job: StepJob) -> (Job, Answer) {
    let (reply, answer) = oneshot::channel();
    let (hidden, logits) = (Vec::new(), Vec::new());
    (Job::Step(Task { job, done: 0, hidden, logits, micros: 0, reply }), answer)
}

#[test]
fn a_piggybacked_prompt_gives_the_same_output_as_alone() {
    const PROMPT: u32 = 40;
    let token = |pos: u32| {
        let rows = vec![Row { slot: 1, pos, want: true }];
        StepJob { hidden: vec![0.5; WIDTH as usize], rows, reduce: Reduce::Full, exact: false, rewind: false }
    };
    let prompt = || StepJob { exact: false, ..job(0, PROMPT, Reduce::Full) };
    for vocab in [None, Some(VOCAB)] {
        let config = StageConfig { max_rows: 64, ..config() };
        let worker = || Worker::new(Box::new(EchoStage::new(1, LayerRange::new(0, 2), WIDTH, vocab, config.clone())));
        let mut by_itself = worker();
        let (job, mut expected) = sent(prompt());
        by_itself.waiting.push(job);
        by_itself.run_next(None);
        let mut worker = worker();
        worker.scheduler.record([0].into_iter(), 4, true, 24_000, Instant::now());
        worker.scheduler.record([1].into_iter(), 1, false, 8_000, Instant::now());
        let (job, mut answer) = sent(prompt());
        worker.waiting.push(job);
        for pos in 0..PROMPT {
            assert!(answer.try_recv().is_err(), "token {pos} carries one row");
            let (job, mut token) = sent(token(pos));
            worker.waiting.push(job);
            worker.run_next(None);
            assert!(token.try_recv().expect("a token is not delayed").is_ok());
        }
        let (answer, expected) = (answer.try_recv().unwrap().unwrap().0, expected.try_recv().unwrap().unwrap().0);
        assert_eq!(answer, expected, "{vocab:?}");
        assert!(worker.waiting.is_empty());
    }
}

/// A step of one token.
fn token(slot: u32, pos: u32) -> StepJob {
    let rows = vec![Row { slot, pos, want: true }];
    let hidden = vec![(slot * 100 + pos) as f32; WIDTH as usize];
    StepJob { hidden, rows, reduce: Reduce::Full, exact: false, rewind: false }
}

#[test]
fn a_failed_batch_ends_only_the_faulty_session() {
    let stage =
        || EchoStage::new(1, LayerRange::new(0, 2), WIDTH, Some(VOCAB), StageConfig { max_sessions: 3, ..config() });
    let mut alone = Worker::new(Box::new(stage()));
    let mut shared = Worker::new(Box::new(Flawed(stage(), Flaw::Fails)));
    for pos in 0..4 {
        // The faulty session starts over each time.
        let all = [token(0, pos), token(1, 0), token(2, pos)];
        let (jobs, mut answers): (Vec<_>, Vec<_>) = all.map(sent).into_iter().unzip();
        shared.waiting.extend(jobs);
        shared.run_batch(&[0, 1, 2], &[]);
        for slot in [0, 2] {
            let (job, mut expected) = sent(token(slot, pos));
            alone.waiting.push(job);
            alone.run_job(0);
            let (output, _) = answers[slot as usize].try_recv().unwrap().expect("the other sessions continue");
            assert_eq!(output, expected.try_recv().unwrap().unwrap().0, "slot {slot} at {pos}");
        }
        assert!(matches!(answers[1].try_recv().unwrap(), Err(EngineError::Step { engine: "flawed", .. })));
        shared.stage.release(1);
    }
    assert!(shared.waiting.is_empty());
}

#[test]
fn a_session_that_cannot_be_rolled_back_fails_with_its_batch() {
    let stage = EchoStage::new(1, LayerRange::new(0, 2), WIDTH, Some(VOCAB), config());
    let mut worker = Worker::new(Box::new(Flawed(stage, Flaw::Forgets)));
    let (job, mut first) = sent(token(0, 0));
    worker.waiting.push(job);
    worker.run_job(0);
    assert!(first.try_recv().unwrap().is_ok());
    let (jobs, mut answers): (Vec<_>, Vec<_>) = [sent(token(0, 1)), sent(token(1, 0))].into_iter().unzip();
    worker.waiting.extend(jobs);
    worker.run_batch(&[0, 1], &[]);
    for answer in &mut answers {
        assert!(matches!(answer.try_recv().unwrap(), Err(EngineError::Step { engine: "flawed", .. })));
    }
}
