//! The scheduler of a stage: continuous batching with chunked prefill. Pure: waiting jobs and the time give a decision.
//!
//! Three kinds of steps take turns. *Batched* steps, short steps of sessions that need not be exact, are computed together,
//! so that the weights are read once for all. *Exclusive* steps, which keep the shapes of a plain run, are computed one by
//! one. *Prefill* steps that need not be exact are split into chunks. While other sessions wait for their next token, a
//! chunk takes about as long as a token for each waiting prompt, so that a long prompt never stalls a running generation.
//! If such a chunk is too small to be worth its own computation, prompts are *piggybacked*: each adds one row to every
//! batch of tokens. Within a kind the oldest step goes first; jobs of one session keep their order.

use std::time::{Duration, Instant};

/// Most rows of a batched step: a token, or a window of draft tokens.
pub(super) const MAX_DECODE_ROWS: usize = 32;
/// Most rows of a batch; llama.cpp gives logits of at most as many.
pub(super) const MAX_BATCH_ROWS: usize = 64;
/// Fewest rows of a chunk: with fewer, reading weights costs more than the rows.
const MIN_CHUNK_ROWS: usize = 2;
/// Longer chunks are a multiple of this: llama.cpp's products take rows by fours, and 7 cost more than 8.
const CHUNK_ROW_MULTIPLE: usize = 4;
/// Time of a chunk as a share of a token's, so that the gap between tokens stays below twice the usual one.
const CHUNK_TIME_SHARE: f64 = 0.8;
/// A session whose last token is older than this is not decoding.
const DECODING_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a step waits for sessions that are about to send their next step: about the time in which a token returns on
/// this machine, or this share of a short step if that is longer. Otherwise a short step runs before the others that
/// come with it, and two steps cost up to twice as much as one; a prefill chunk takes the cores from the threads that
/// transport the token.
const MIN_BATCH_WAIT: Duration = Duration::from_micros(1500);
const BATCH_WAIT_SHARE: f64 = 0.15;
/// Upper bound of that wait.
const MAX_BATCH_WAIT: Duration = Duration::from_millis(20);
/// Weight of a new measurement in the moving averages.
const EWMA_WEIGHT: f64 = 0.25;

/// The scheduler's view of a waiting job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WaitingJob {
    /// The session's slot; `None` for a job of several sessions, which runs before all later jobs.
    pub slot: Option<u32>,
    pub kind: JobKind,
}

/// Kind of a waiting job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JobKind {
    /// Not a step: runs at once, in the order of its session.
    Control,
    /// A step that is computed alone and whole.
    Exclusive,
    /// A step that may be batched or split into chunks: its remaining rows, and whether it is prefill.
    Batchable { rows: usize, prefill: bool },
}

/// What to run next, by index of the waiting jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Decision {
    /// Run this job alone and whole.
    Run(usize),
    /// Compute these steps, of equally many rows, in one batch.
    Batch(Vec<usize>),
    /// Compute these steps of one row, and the next row of each of these prefill steps, in one batch.
    Piggyback(Vec<usize>, Vec<usize>),
    /// Compute the next rows of this prefill step: index and number of rows.
    Chunk(usize, usize),
    /// Wait: a session that got its token is about to send its next step.
    Wait,
}

/// Number of the step kinds that take turns.
const STEP_KINDS: usize = 3;

/// The scheduler of one stage.
#[derive(Debug, Default)]
pub(super) struct Scheduler {
    turn: usize,
    last_prefill: Option<u32>,
    /// When another stage last computed on the same cores.
    contended_until: Option<Instant>,
    /// Sessions that got a token and will send the next step.
    decoding: Vec<DecodingSession>,
    /// Average microseconds of a short computation, and of one row of a chunk.
    decode_us: Option<f64>,
    prefill_row_us: Option<f64>,
}

/// A session that got a token.
#[derive(Debug)]
struct DecodingSession {
    slot: u32,
    token_sent: Instant,
    /// Whether it has sent its next step.
    next_step_sent: bool,
}

/// The first job of each session, by kind.
#[derive(Default)]
struct ReadyJobs {
    control: Option<usize>,
    batchable: Vec<(usize, usize)>,
    exclusive: Option<usize>,
    prefill: Vec<(u32, usize)>,
}

impl Scheduler {
    /// The next decision; `None` if no job waits. `max_rows` is the longest step that the stage accepts; `contended_until`
    /// is when another stage last computed on the same cores.
    pub fn decide(
        &mut self,
        waiting: &[WaitingJob],
        max_rows: usize,
        contended_until: Option<Instant>,
        now: Instant,
    ) -> Option<Decision> {
        let sent_next_step = |session: &DecodingSession| waiting.iter().any(|job| job.slot == Some(session.slot));
        self.decoding.iter_mut().for_each(|session| session.next_step_sent |= sent_next_step(session));
        self.contended_until = contended_until;
        let ready = ready(waiting);
        if let Some(index) = ready.control {
            return Some(Decision::Run(index));
        }
        let first = self.turn;
        for turn in (first..first + STEP_KINDS).map(|turn| turn % STEP_KINDS) {
            let decision = match turn {
                0 => self.next_batch(&ready, max_rows, now),
                1 => ready.exclusive.map(Decision::Run),
                _ => self.next_chunk(&ready, waiting, max_rows, now),
            };
            if decision.is_some() {
                // Waiting keeps the turn; otherwise prefill would starve beside decoding sessions.
                self.turn = if decision == Some(Decision::Wait) { turn } else { (turn + 1) % STEP_KINDS };
                return decision;
            }
        }
        None
    }

    /// Marks a session as not decoding.
    pub fn mark_idle(&mut self, slot: u32) {
        self.decoding.retain(|session| session.slot != slot);
    }

    /// Records a piggybacked batch that gave these sessions a token. Its time is neither that of tokens nor of chunks.
    pub fn record_piggyback(&mut self, slots: impl Iterator<Item = u32>, now: Instant) {
        self.decoding.retain(|session| is_decoding(session, now));
        for slot in slots {
            self.mark_idle(slot);
            self.decoding.push(DecodingSession { slot, token_sent: now, next_step_sent: false });
        }
    }

    /// Records the time of a computation of `rows` rows of these sessions; `prefill` for a prefill chunk.
    pub fn record(&mut self, slots: impl Iterator<Item = u32>, rows: usize, prefill: bool, micros: u32, now: Instant) {
        self.decoding.retain(|session| is_decoding(session, now));
        for slot in slots {
            self.mark_idle(slot);
            if !prefill {
                self.decoding.push(DecodingSession { slot, token_sent: now, next_step_sent: false });
            }
        }
        let (known, value) = match prefill {
            true => (&mut self.prefill_row_us, f64::from(micros) / rows.max(1) as f64),
            false => (&mut self.decode_us, f64::from(micros)),
        };
        *known = Some(known.map_or(value, |known| known + EWMA_WEIGHT * (value - known)));
    }

    /// Batches the oldest step with those of equally many rows.
    fn next_batch(&self, ready: &ReadyJobs, max_rows: usize, now: Instant) -> Option<Decision> {
        let (_, rows) = *ready.batchable.first()?;
        // However long the step has waited: otherwise sessions that fell out of step are never batched again.
        if self.decoding.iter().any(|session| self.is_expected(session, now)) {
            return Some(Decision::Wait);
        }
        let most = (MAX_BATCH_ROWS.min(max_rows) / rows.max(1)).max(1);
        let equal_rows = ready.batchable.iter().filter(|(_, other)| *other == rows).map(|(index, _)| *index);
        let equal_rows: Vec<usize> = equal_rows.take(most).collect();
        if rows == 1 && !ready.prefill.is_empty() && self.should_piggyback(ready.prefill.len()) {
            let piggybacked = ready.prefill.iter().map(|(_, index)| *index).take(most - equal_rows.len()).collect();
            return Some(Decision::Piggyback(equal_rows, piggybacked));
        }
        Some(Decision::Batch(equal_rows))
    }

    /// Whether prompts are piggybacked rather than computed in chunks. Several waiting prompts may take more time together,
    /// which makes a chunk worthwhile: its rows are cheaper than piggybacked rows.
    fn should_piggyback(&self, prompts: usize) -> bool {
        self.affordable_rows(prompts).is_some_and(|rows| rows < CHUNK_ROW_MULTIPLE)
    }

    fn next_chunk(
        &mut self,
        ready: &ReadyJobs,
        waiting: &[WaitingJob],
        max_rows: usize,
        now: Instant,
    ) -> Option<Decision> {
        // Round robin by slot, so that several prompts progress side by side.
        let after = |slot: u32| self.last_prefill.is_none_or(|last| slot > last);
        let next = ready.prefill.iter().filter(|(slot, _)| after(*slot)).min().or_else(|| ready.prefill.iter().min());
        let (slot, index) = *next?;
        let other_sessions =
            || self.decoding.iter().filter(|session| session.slot != slot && is_decoding(session, now));
        if other_sessions().any(|session| self.is_expected(session, now)) {
            return Some(Decision::Wait);
        }
        let sessions = other_sessions().count();
        if sessions > 0
            && ready.batchable.iter().any(|(_, rows)| *rows == 1)
            && self.should_piggyback(ready.prefill.len())
        {
            return None;
        }
        self.last_prefill = Some(slot);
        let JobKind::Batchable { rows, .. } = waiting[index].kind else { return None };
        Some(Decision::Chunk(index, rows.min(self.chunk_rows(ready.prefill.len(), sessions, max_rows))))
    }

    /// Whether a session that got a token is expected to send its next step at once and has not yet.
    ///
    /// The wait begins when the token was sent, or when another stage last computed on the same cores, because the token
    /// may pass through that stage: computed separately, its step and the waiting one cost up to twice as much as in one
    /// batch. Stages on separate cores are better off with different sessions at a time.
    fn is_expected(&self, session: &DecodingSession, now: Instant) -> bool {
        let share = BATCH_WAIT_SHARE * self.decode_us.unwrap_or(0.0);
        let batch_wait = Duration::from_micros(share as u64).clamp(MIN_BATCH_WAIT, MAX_BATCH_WAIT);
        let since =
            self.contended_until.map_or(session.token_sent, |contended_until| contended_until.max(session.token_sent));
        !session.next_step_sent && is_decoding(session, now) && now.saturating_duration_since(since) < batch_wait
    }

    /// Rows of a chunk: the stage's maximum if no session is decoding. Else the rows that take about as long as a token for
    /// each waiting prompt, so that every session gets equal time in a round.
    fn chunk_rows(&self, prompts: usize, sessions: usize, max_rows: usize) -> usize {
        match self.affordable_rows(prompts) {
            _ if sessions == 0 => max_rows,
            Some(rows) => {
                let whole =
                    if rows > CHUNK_ROW_MULTIPLE { rows / CHUNK_ROW_MULTIPLE * CHUNK_ROW_MULTIPLE } else { rows };
                whole.max(MIN_CHUNK_ROWS).min(max_rows)
            }
            // Not measured yet: a small first chunk measures it.
            None => MIN_CHUNK_ROWS.min(max_rows),
        }
    }

    /// Rows that `prompts` prompts may compute between two tokens; `None` before the first measurement.
    fn affordable_rows(&self, prompts: usize) -> Option<usize> {
        let row = self.prefill_row_us.filter(|row| *row > 0.0)?;
        Some((CHUNK_TIME_SHARE * self.decode_us? / row * prompts as f64) as usize)
    }
}

/// Whether a session that got a token is still decoding.
fn is_decoding(session: &DecodingSession, now: Instant) -> bool {
    now.saturating_duration_since(session.token_sent) < DECODING_TIMEOUT
}

/// The first job of each session.
fn ready(waiting: &[WaitingJob]) -> ReadyJobs {
    let mut ready = ReadyJobs::default();
    let mut seen: Vec<u32> = Vec::with_capacity(waiting.len());
    for (index, job) in waiting.iter().enumerate() {
        let Some(slot) = job.slot else {
            // A job of several sessions waits for all earlier jobs and blocks all later ones.
            if index == 0 {
                match job.kind {
                    JobKind::Control => ready.control = Some(index),
                    _ => ready.exclusive = Some(index),
                }
            }
            break;
        };
        if seen.contains(&slot) {
            continue;
        }
        seen.push(slot);
        match job.kind {
            JobKind::Control => {
                ready.control.get_or_insert(index);
            }
            JobKind::Exclusive => {
                ready.exclusive.get_or_insert(index);
            }
            JobKind::Batchable { rows, prefill: false } => ready.batchable.push((index, rows)),
            JobKind::Batchable { .. } => ready.prefill.push((slot, index)),
        }
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_ROWS: usize = 512;

    fn batchable(slot: u32, rows: usize) -> WaitingJob {
        WaitingJob { slot: Some(slot), kind: JobKind::Batchable { rows, prefill: rows > MAX_DECODE_ROWS } }
    }

    fn exclusive(slot: u32) -> WaitingJob {
        WaitingJob { slot: Some(slot), kind: JobKind::Exclusive }
    }

    fn control(slot: u32) -> WaitingJob {
        WaitingJob { slot: Some(slot), kind: JobKind::Control }
    }

    fn decide(scheduler: &mut Scheduler, waiting: &[WaitingJob]) -> Decision {
        scheduler.decide(waiting, MAX_ROWS, None, Instant::now()).expect("something waits")
    }

    #[test]
    fn short_steps_of_equal_length_are_batched() {
        let mut scheduler = Scheduler::default();
        let waiting = [batchable(0, 1), batchable(3, 5), batchable(1, 1), batchable(2, 1)];
        assert_eq!(decide(&mut scheduler, &waiting), Decision::Batch(vec![0, 2, 3]));
        assert_eq!(decide(&mut scheduler, &waiting[1..2]), Decision::Batch(vec![0]));
        assert_eq!(scheduler.decide(&[], MAX_ROWS, None, Instant::now()), None);
    }

    #[test]
    fn a_short_step_waits_briefly_for_decoding_sessions() {
        let mut scheduler = Scheduler::default();
        let now = Instant::now();
        scheduler.record([0, 1].into_iter(), 2, false, 9_000, now);
        let arrived = |slot| batchable(slot, 1);
        assert_eq!(scheduler.decide(&[arrived(0)], MAX_ROWS, None, now), Some(Decision::Wait));
        assert_eq!(scheduler.decide(&[arrived(0), arrived(1)], MAX_ROWS, None, now), Some(Decision::Batch(vec![0, 1])));
        assert_eq!(
            scheduler.decide(&[arrived(0)], MAX_ROWS, None, now + MIN_BATCH_WAIT),
            Some(Decision::Batch(vec![0]))
        );
        scheduler.mark_idle(1);
        assert_eq!(scheduler.decide(&[arrived(0)], MAX_ROWS, None, now), Some(Decision::Batch(vec![0])));
        // Sessions that fell out of step are batched again: the waiting ones wait for the one that was just computed.
        scheduler.record([0].into_iter(), 1, false, 9_000, now + MIN_BATCH_WAIT);
        assert_eq!(
            scheduler.decide(&[arrived(2), arrived(3)], MAX_ROWS, None, now + MIN_BATCH_WAIT),
            Some(Decision::Wait)
        );
        let all = scheduler.decide(&[arrived(2), arrived(3), arrived(0)], MAX_ROWS, None, now + MIN_BATCH_WAIT);
        assert_eq!(all, Some(Decision::Batch(vec![0, 1, 2])));
    }

    #[test]
    fn a_step_waits_for_sessions_of_another_stage_on_the_same_cores() {
        let mut scheduler = Scheduler::default();
        let token_sent = Instant::now();
        let at = |millis| token_sent + Duration::from_millis(millis);
        scheduler.record([0, 1].into_iter(), 2, false, 9_000, token_sent);
        let mut decide = |contended_until: Option<u64>, millis| {
            scheduler
                .decide(&[batchable(0, 1)], MAX_ROWS, contended_until.map(at), at(millis))
                .expect("a session waits")
        };
        let exclusive = Decision::Batch(vec![0]);
        assert_eq!(decide(None, 30), exclusive, "other stages have cores of their own");
        assert_eq!(decide(Some(30), 31), Decision::Wait, "the other session is expected");
        assert_eq!(decide(Some(30), 32), exclusive, "the other session is late");
        assert_eq!(decide(Some(900), 901), exclusive, "the other session is not decoding");
    }

    #[test]
    fn a_batch_is_bounded() {
        let waiting: Vec<WaitingJob> = (0..20).map(|slot| batchable(slot, MAX_DECODE_ROWS)).collect();
        let Decision::Batch(together) = decide(&mut Scheduler::default(), &waiting) else { panic!("short steps") };
        assert_eq!(together.len(), MAX_BATCH_ROWS / MAX_DECODE_ROWS);
    }

    #[test]
    fn steps_of_the_three_kinds_take_turns() {
        let mut scheduler = Scheduler::default();
        let waiting = [batchable(0, 2048), exclusive(1), batchable(2, 1)];
        assert_eq!(decide(&mut scheduler, &waiting), Decision::Batch(vec![2]));
        assert_eq!(decide(&mut scheduler, &waiting), Decision::Run(1));
        assert!(matches!(decide(&mut scheduler, &waiting), Decision::Chunk(0, _)));
        assert_eq!(decide(&mut scheduler, &waiting), Decision::Batch(vec![2]));
    }

    #[test]
    fn jobs_of_one_session_keep_their_order() {
        let mut scheduler = Scheduler::default();
        assert_eq!(
            decide(&mut scheduler, &[batchable(0, 600), control(0), exclusive(0)]),
            Decision::Chunk(0, MAX_ROWS)
        );
        assert_eq!(decide(&mut scheduler, &[exclusive(1), batchable(0, 1), control(0), control(2)]), Decision::Run(3));
        let of_all = WaitingJob { slot: None, kind: JobKind::Exclusive };
        assert_eq!(decide(&mut scheduler, &[of_all, exclusive(1)]), Decision::Run(0));
        assert_eq!(decide(&mut scheduler, &[exclusive(1), of_all, control(2)]), Decision::Run(0));
    }

    #[test]
    fn a_chunk_takes_as_long_as_a_token_while_sessions_decode() {
        let mut scheduler = Scheduler::default();
        let now = Instant::now();
        let prefill = [batchable(0, 2048)];
        assert_eq!(scheduler.decide(&prefill, MAX_ROWS, None, now), Some(Decision::Chunk(0, MAX_ROWS)));
        scheduler.record([0].into_iter(), MAX_ROWS, true, 512_000, now);
        scheduler.record([1].into_iter(), 1, false, 20_000, now);
        assert_eq!(
            scheduler.decide(&prefill, MAX_ROWS, None, now + MIN_BATCH_WAIT),
            Some(Decision::Wait),
            "15 % of a step is longer"
        );
        let later = now + 2 * MIN_BATCH_WAIT;
        assert_eq!(scheduler.decide(&prefill, MAX_ROWS, None, later), Some(Decision::Chunk(0, 16)));
        // Three prompts and one decoding session.
        let three = [batchable(0, 2048), batchable(2, 2048), batchable(3, 2048)];
        assert_eq!(scheduler.decide(&three, MAX_ROWS, None, later), Some(Decision::Chunk(1, 48)));
        assert_eq!(
            scheduler.decide(&prefill, MAX_ROWS, None, now + 2 * DECODING_TIMEOUT),
            Some(Decision::Chunk(0, MAX_ROWS))
        );
        scheduler.mark_idle(1);
        assert_eq!(scheduler.decide(&prefill, MAX_ROWS, None, now), Some(Decision::Chunk(0, MAX_ROWS)));
    }

    #[test]
    fn prompts_are_piggybacked_if_chunks_would_stall_decoding() {
        let mut scheduler = Scheduler::default();
        let now = Instant::now();
        scheduler.record([0].into_iter(), 4, true, 24_000, now);
        scheduler.record([1].into_iter(), 1, false, 8_000, now);
        // 6 ms a row: 0.8 of a token is one row.
        let waiting = [batchable(0, 2048), batchable(1, 1), batchable(2, 600), batchable(3, 5)];
        for _ in 0..3 {
            let piggyback = Decision::Piggyback(vec![1], vec![0, 2]);
            assert_eq!(scheduler.decide(&waiting, MAX_ROWS, None, now), Some(piggyback));
            scheduler.record_piggyback([1].into_iter(), now);
            scheduler.decoding.iter_mut().for_each(|session| session.next_step_sent = true);
        }
        // Four prompts may take the time of four rows.
        let four = [batchable(0, 64), batchable(2, 64), batchable(4, 64), batchable(5, 64), batchable(1, 1)];
        assert!(matches!(scheduler.decide(&four, MAX_ROWS, None, now), Some(Decision::Chunk(_, 4))));
        assert_eq!(scheduler.decide(&four, MAX_ROWS, None, now), Some(Decision::Batch(vec![4])));
        // Draft windows carry no piggybacked rows; without a decoding session prefill runs in whole chunks.
        assert_eq!(scheduler.decide(&waiting[3..], MAX_ROWS, None, now), Some(Decision::Batch(vec![0])));
        scheduler.mark_idle(1);
        assert_eq!(scheduler.decide(&waiting[..1], MAX_ROWS, None, now), Some(Decision::Chunk(0, MAX_ROWS)));
    }

    #[test]
    fn a_prompt_progresses_beside_sessions_that_decode_without_pause() {
        let mut scheduler = Scheduler::default();
        let mut now = Instant::now();
        scheduler.record([9].into_iter(), 64, true, 64_000, now);
        let mut chunks = 0;
        for _ in 0..20 {
            // Two sessions: each sends its next step shortly after it got its token.
            scheduler.record([0, 1].into_iter(), 2, false, 20_000, now);
            assert_eq!(scheduler.decide(&[batchable(9, 2048)], MAX_ROWS, None, now), Some(Decision::Wait));
            now += MIN_BATCH_WAIT / 4;
            let waiting = [batchable(9, 2048), batchable(1, 1), batchable(0, 1)];
            if let Some(Decision::Chunk(0, rows)) = scheduler.decide(&waiting, MAX_ROWS, None, now) {
                scheduler.record([9].into_iter(), rows, true, rows as u32 * 1000, now);
                chunks += 1;
                assert_eq!(scheduler.decide(&waiting, MAX_ROWS, None, now), Some(Decision::Batch(vec![1, 2])));
            }
            now += Duration::from_millis(20);
        }
        assert!(chunks >= 18, "{chunks}");
    }

    #[test]
    fn long_prompts_progress_side_by_side() {
        let mut scheduler = Scheduler::default();
        let waiting = [batchable(4, 2048), batchable(1, 2048), batchable(7, 2048)];
        let order: Vec<Decision> = (0..4).map(|_| decide(&mut scheduler, &waiting)).collect();
        let chunk = |index| Decision::Chunk(index, MAX_ROWS);
        assert_eq!(order, [chunk(1), chunk(0), chunk(2), chunk(1)]);
    }
}
