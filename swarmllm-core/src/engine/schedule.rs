//! What a stage computes next. Pure: waiting jobs and the time go in, a pick comes out.
//!
//! Three kinds of steps take turns. *Joint* ones, short steps of sessions that may share a computation, go together: the
//! weights are then read once for all. *Alone* ones, of sessions that keep the step shapes of a plain run, go one by one.
//! *Long* ones, prefill that need not keep its shape, are cut into slices: while other sessions are waiting for their next
//! token a slice takes about as long as a token does, for each prompt that waits, so that a long prompt never stalls a
//! running answer. Where that is less than the rows that pay for a computation of their own, prompts *ride*: each gives a
//! row to every joint computation of tokens. Whoever waited longest goes first within a kind; jobs of one session keep
//! their order.

use std::time::{Duration, Instant};

/// Most rows of a step that goes together with others: a token, or a window of guesses.
pub(super) const JOINT_ROWS: usize = 32;
/// Most rows of one joint computation; llama.cpp gives logits of so many.
pub(super) const JOINT_TOTAL: usize = 64;
/// Fewest rows of a slice: fewer would spend more on reading weights than on rows.
const MIN_SLICE: usize = 2;
/// Longer slices are a multiple of this: llama.cpp's products take rows by fours, and 7 cost more than 8.
const EVEN_ROWS: usize = 4;
/// A slice's part of the time of a token: the answer's gap is then below twice the usual one.
const SLICE_SHARE: f64 = 0.8;
/// An answer whose last token is older than this is not waiting for the next one here.
const LIVE: Duration = Duration::from_millis(500);
/// How long a step waits for sessions that are about to ask for their next token: about what a token takes to go round on
/// this machine, or a share of what a short step takes where that is more. A short step would otherwise go before the
/// others that came with it, and two steps cost up to twice what one does; a long one would take the cores from the very
/// threads that carry the token.
const PATIENCE: Duration = Duration::from_micros(1500);
const PATIENCE_SHARE: f64 = 0.15;
/// But no longer than this.
const MOST_PATIENCE: Duration = Duration::from_millis(20);
/// Weight of a new measurement in the running ones.
const FRESH: f64 = 0.25;

/// A job as the schedule sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The session's slot; `None` where a job concerns several, and goes before all that came after it.
    pub slot: Option<u32>,
    /// What it is.
    pub kind: Kind,
}

/// See [`Waiting`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Not a step: done at once when its turn within the session has come.
    Control,
    /// A step that keeps its shape.
    Alone,
    /// A step that may be computed with others, or in slices: its rows that are left, and whether it began as a long one.
    Free { rows: usize, long: bool },
}

/// What to do next, by index of the waiting jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Pick {
    /// Do this job as it is.
    One(usize),
    /// Compute these steps, of equally many rows, together.
    Joint(Vec<usize>),
    /// Compute these steps of one row, and the next row of each of those long ones.
    Ride(Vec<usize>, Vec<usize>),
    /// Compute the next so many rows of this step.
    Slice(usize, usize),
    /// Nothing yet: a session that was given its token is about to ask for the next one.
    Wait,
}

/// The kinds of steps in the order of their turns.
const TURNS: usize = 3;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    turn: usize,
    last_long: Option<u32>,
    /// Until when another stage computed on the same cores.
    others: Option<Instant>,
    /// Sessions that were given a token and wait for the next one.
    live: Vec<Live>,
    /// Microseconds of a short computation, and of one row of a slice.
    short_us: Option<f64>,
    row_us: Option<f64>,
}

/// A session that was given a token.
#[derive(Debug)]
struct Live {
    slot: u32,
    given: Instant,
    /// Whether it has asked for the next one.
    asked: bool,
}

/// The first jobs of each session, by kind.
#[derive(Default)]
struct Ready {
    control: Option<usize>,
    joint: Vec<(usize, usize)>,
    alone: Option<usize>,
    long: Vec<(u32, usize)>,
}

impl Schedule {
    /// The next pick; `None` where nothing waits. `max_rows` is the longest step that the stage admits; `others` is until
    /// when another stage computed on the same cores.
    pub fn pick(
        &mut self,
        waiting: &[Waiting],
        max_rows: usize,
        others: Option<Instant>,
        now: Instant,
    ) -> Option<Pick> {
        let asks = |live: &Live| waiting.iter().any(|job| job.slot == Some(live.slot));
        self.live.iter_mut().for_each(|live| live.asked |= asks(live));
        self.others = others;
        let ready = ready(waiting);
        if let Some(index) = ready.control {
            return Some(Pick::One(index));
        }
        let first = self.turn;
        for turn in (first..first + TURNS).map(|turn| turn % TURNS) {
            let pick = match turn {
                0 => self.joint(&ready, max_rows, now),
                1 => ready.alone.map(Pick::One),
                _ => self.long(&ready, waiting, max_rows, now),
            };
            if pick.is_some() {
                // Who waits keeps the turn: a prompt that gave it away would starve beside answers.
                self.turn = if pick == Some(Pick::Wait) { turn } else { (turn + 1) % TURNS };
                return pick;
            }
        }
        None
    }

    /// A session has ended, or rests: it waits for no token here.
    pub fn rests(&mut self, slot: u32) {
        self.live.retain(|live| live.slot != slot);
    }

    /// A token was computed for these sessions, with which others rode: it says nothing of what tokens or slices take.
    pub fn rode(&mut self, slots: impl Iterator<Item = u32>, now: Instant) {
        self.live.retain(|live| is_live(live, now));
        for slot in slots {
            self.rests(slot);
            self.live.push(Live { slot, given: now, asked: false });
        }
    }

    /// What a computation of `rows` rows of these sessions took; `long` says that they were of a long step.
    pub fn took(&mut self, slots: impl Iterator<Item = u32>, rows: usize, long: bool, micros: u32, now: Instant) {
        self.live.retain(|live| is_live(live, now));
        for slot in slots {
            self.rests(slot);
            if !long {
                self.live.push(Live { slot, given: now, asked: false });
            }
        }
        let (known, value) = match long {
            true => (&mut self.row_us, f64::from(micros) / rows.max(1) as f64),
            false => (&mut self.short_us, f64::from(micros)),
        };
        *known = Some(known.map_or(value, |known| known + FRESH * (value - known)));
    }

    /// The step that waited longest, and those that have as many rows.
    fn joint(&self, ready: &Ready, max_rows: usize, now: Instant) -> Option<Pick> {
        let (_, rows) = *ready.joint.first()?;
        // However long it has waited: sessions that once fell out of step would otherwise never be computed together again.
        if self.live.iter().any(|live| self.returns(live, now)) {
            return Some(Pick::Wait);
        }
        let most = (JOINT_TOTAL.min(max_rows) / rows.max(1)).max(1);
        let alike = ready.joint.iter().filter(|(_, other)| *other == rows).map(|(index, _)| *index);
        let alike: Vec<usize> = alike.take(most).collect();
        if rows == 1 && !ready.long.is_empty() && self.rides(ready.long.len()) {
            let riders = ready.long.iter().map(|(_, index)| *index).take(most - alike.len()).collect();
            return Some(Pick::Ride(alike, riders));
        }
        Some(Pick::Joint(alike))
    }

    /// Whether prompts come forward with the tokens of others rather than in slices of their own. Several that wait may
    /// take longer together, which pays for a slice: its rows are cheaper than those that ride.
    fn rides(&self, long: usize) -> bool {
        self.affordable(long).is_some_and(|rows| rows < EVEN_ROWS)
    }

    fn long(&mut self, ready: &Ready, waiting: &[Waiting], max_rows: usize, now: Instant) -> Option<Pick> {
        // In turns by slot, so that two long prompts come forward side by side.
        let after = |slot: u32| self.last_long.is_none_or(|last| slot > last);
        let next = ready.long.iter().filter(|(slot, _)| after(*slot)).min().or_else(|| ready.long.iter().min());
        let (slot, index) = *next?;
        let others = || self.live.iter().filter(|live| live.slot != slot && is_live(live, now));
        if others().any(|live| self.returns(live, now)) {
            return Some(Pick::Wait);
        }
        let live = others().count();
        if live > 0 && ready.joint.iter().any(|(_, rows)| *rows == 1) && self.rides(ready.long.len()) {
            return None;
        }
        self.last_long = Some(slot);
        let Kind::Free { rows, .. } = waiting[index].kind else { return None };
        Some(Pick::Slice(index, rows.min(self.slice(ready.long.len(), live, max_rows))))
    }

    /// Whether a session that was given a token will ask for the next one in a moment, where it has not yet.
    ///
    /// The moment begins when the token was given, or when another stage computed last on the same cores, through which
    /// the token may go: apart, its step and the one that waits would cost up to twice what they do together. Stages on
    /// cores of their own are better off with different sessions at a time.
    fn returns(&self, live: &Live, now: Instant) -> bool {
        let share = PATIENCE_SHARE * self.short_us.unwrap_or(0.0);
        let patience = Duration::from_micros(share as u64).clamp(PATIENCE, MOST_PATIENCE);
        let since = self.others.map_or(live.given, |others| others.max(live.given));
        !live.asked && is_live(live, now) && now.saturating_duration_since(since) < patience
    }

    /// Rows of a slice: all that the stage admits where nobody waits for a token. Else as many as take about as long as a
    /// token does, for each prompt that waits: so every session comes forward by as much time in a round.
    fn slice(&self, long: usize, live: usize, max_rows: usize) -> usize {
        match self.affordable(long) {
            _ if live == 0 => max_rows,
            Some(rows) => {
                let whole = if rows > EVEN_ROWS { rows / EVEN_ROWS * EVEN_ROWS } else { rows };
                whole.max(MIN_SLICE).min(max_rows)
            }
            // Not measured yet: a first small slice measures it.
            None => MIN_SLICE.min(max_rows),
        }
    }

    /// Rows that take as long as answers can wait for `long` prompts; nothing where that was not measured.
    fn affordable(&self, long: usize) -> Option<usize> {
        let row = self.row_us.filter(|row| *row > 0.0)?;
        Some((SLICE_SHARE * self.short_us? / row * long as f64) as usize)
    }
}

/// Whether a session that was given a token still waits for more.
fn is_live(live: &Live, now: Instant) -> bool {
    now.saturating_duration_since(live.given) < LIVE
}

/// The first job of each session.
fn ready(waiting: &[Waiting]) -> Ready {
    let mut ready = Ready::default();
    let mut seen: Vec<u32> = Vec::with_capacity(waiting.len());
    for (index, job) in waiting.iter().enumerate() {
        let Some(slot) = job.slot else {
            // A job of several sessions waits for all before it and holds back all behind it.
            if index == 0 {
                match job.kind {
                    Kind::Control => ready.control = Some(index),
                    _ => ready.alone = Some(index),
                }
            }
            break;
        };
        if seen.contains(&slot) {
            continue;
        }
        seen.push(slot);
        match job.kind {
            Kind::Control => {
                ready.control.get_or_insert(index);
            }
            Kind::Alone => {
                ready.alone.get_or_insert(index);
            }
            Kind::Free { rows, long: false } => ready.joint.push((index, rows)),
            Kind::Free { .. } => ready.long.push((slot, index)),
        }
    }
    ready
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_ROWS: usize = 512;

    fn free(slot: u32, rows: usize) -> Waiting {
        Waiting { slot: Some(slot), kind: Kind::Free { rows, long: rows > JOINT_ROWS } }
    }

    fn alone(slot: u32) -> Waiting {
        Waiting { slot: Some(slot), kind: Kind::Alone }
    }

    fn control(slot: u32) -> Waiting {
        Waiting { slot: Some(slot), kind: Kind::Control }
    }

    fn pick(schedule: &mut Schedule, waiting: &[Waiting]) -> Pick {
        schedule.pick(waiting, MAX_ROWS, None, Instant::now()).expect("something waits")
    }

    #[test]
    fn short_steps_of_equal_length_go_together_and_others_wait_for_their_turn() {
        let mut schedule = Schedule::default();
        let waiting = [free(0, 1), free(3, 5), free(1, 1), free(2, 1)];
        assert_eq!(pick(&mut schedule, &waiting), Pick::Joint(vec![0, 2, 3]));
        assert_eq!(pick(&mut schedule, &waiting[1..2]), Pick::Joint(vec![0]));
        assert_eq!(schedule.pick(&[], MAX_ROWS, None, Instant::now()), None);
    }

    #[test]
    fn a_short_step_waits_a_moment_for_those_that_will_come_with_it() {
        let mut schedule = Schedule::default();
        let now = Instant::now();
        schedule.took([0, 1].into_iter(), 2, false, 9_000, now);
        let came = |slot| free(slot, 1);
        assert_eq!(schedule.pick(&[came(0)], MAX_ROWS, None, now), Some(Pick::Wait));
        assert_eq!(schedule.pick(&[came(0), came(1)], MAX_ROWS, None, now), Some(Pick::Joint(vec![0, 1])));
        assert_eq!(schedule.pick(&[came(0)], MAX_ROWS, None, now + PATIENCE), Some(Pick::Joint(vec![0])));
        schedule.rests(1);
        assert_eq!(schedule.pick(&[came(0)], MAX_ROWS, None, now), Some(Pick::Joint(vec![0])));
        // Sessions that fell out of step come together again: whoever waits waits for the one that was just computed.
        schedule.took([0].into_iter(), 1, false, 9_000, now + PATIENCE);
        assert_eq!(schedule.pick(&[came(2), came(3)], MAX_ROWS, None, now + PATIENCE), Some(Pick::Wait));
        let all = schedule.pick(&[came(2), came(3), came(0)], MAX_ROWS, None, now + PATIENCE);
        assert_eq!(all, Some(Pick::Joint(vec![0, 1, 2])));
    }

    #[test]
    fn sessions_that_come_through_another_stage_on_the_same_cores_are_waited_for_when_it_has_computed() {
        let mut schedule = Schedule::default();
        let given = Instant::now();
        let at = |millis| given + Duration::from_millis(millis);
        schedule.took([0, 1].into_iter(), 2, false, 9_000, given);
        let mut pick = |others: Option<u64>, millis| {
            schedule.pick(&[free(0, 1)], MAX_ROWS, others.map(at), at(millis)).expect("a session waits")
        };
        let alone = Pick::Joint(vec![0]);
        assert_eq!(pick(None, 30), alone, "other stages work at the same time");
        assert_eq!(pick(Some(30), 31), Pick::Wait, "the other one is about to come");
        assert_eq!(pick(Some(30), 32), alone, "it does not come");
        assert_eq!(pick(Some(900), 901), alone, "it has not come for long");
    }

    #[test]
    fn a_joint_step_is_bounded() {
        let waiting: Vec<Waiting> = (0..20).map(|slot| free(slot, JOINT_ROWS)).collect();
        let Pick::Joint(together) = pick(&mut Schedule::default(), &waiting) else { panic!("short steps") };
        assert_eq!(together.len(), JOINT_TOTAL / JOINT_ROWS);
    }

    #[test]
    fn steps_of_the_three_kinds_take_turns() {
        let mut schedule = Schedule::default();
        let waiting = [free(0, 2048), alone(1), free(2, 1)];
        assert_eq!(pick(&mut schedule, &waiting), Pick::Joint(vec![2]));
        assert_eq!(pick(&mut schedule, &waiting), Pick::One(1));
        assert!(matches!(pick(&mut schedule, &waiting), Pick::Slice(0, _)));
        assert_eq!(pick(&mut schedule, &waiting), Pick::Joint(vec![2]));
    }

    #[test]
    fn jobs_of_one_session_keep_their_order() {
        let mut schedule = Schedule::default();
        assert_eq!(pick(&mut schedule, &[free(0, 600), control(0), alone(0)]), Pick::Slice(0, MAX_ROWS));
        assert_eq!(pick(&mut schedule, &[alone(1), free(0, 1), control(0), control(2)]), Pick::One(3));
        let of_all = Waiting { slot: None, kind: Kind::Alone };
        assert_eq!(pick(&mut schedule, &[of_all, alone(1)]), Pick::One(0));
        assert_eq!(pick(&mut schedule, &[alone(1), of_all, control(2)]), Pick::One(0));
    }

    #[test]
    fn a_slice_takes_as_long_as_a_token_while_others_wait_and_all_it_can_otherwise() {
        let mut schedule = Schedule::default();
        let now = Instant::now();
        let long = [free(0, 2048)];
        assert_eq!(schedule.pick(&long, MAX_ROWS, None, now), Some(Pick::Slice(0, MAX_ROWS)));
        schedule.took([0].into_iter(), MAX_ROWS, true, 512_000, now);
        schedule.took([1].into_iter(), 1, false, 20_000, now);
        assert_eq!(schedule.pick(&long, MAX_ROWS, None, now + PATIENCE), Some(Pick::Wait), "15 % of a step are more");
        let later = now + 2 * PATIENCE;
        assert_eq!(schedule.pick(&long, MAX_ROWS, None, later), Some(Pick::Slice(0, 16)));
        // Three prompts and one answer.
        let three = [free(0, 2048), free(2, 2048), free(3, 2048)];
        assert_eq!(schedule.pick(&three, MAX_ROWS, None, later), Some(Pick::Slice(1, 48)));
        assert_eq!(schedule.pick(&long, MAX_ROWS, None, now + 2 * LIVE), Some(Pick::Slice(0, MAX_ROWS)));
        schedule.rests(1);
        assert_eq!(schedule.pick(&long, MAX_ROWS, None, now), Some(Pick::Slice(0, MAX_ROWS)));
    }

    #[test]
    fn prompts_ride_with_tokens_where_slices_of_their_own_would_stall_them() {
        let mut schedule = Schedule::default();
        let now = Instant::now();
        schedule.took([0].into_iter(), 4, true, 24_000, now);
        schedule.took([1].into_iter(), 1, false, 8_000, now);
        // 6 ms a row: 0.8 of a token pay for one.
        let waiting = [free(0, 2048), free(1, 1), free(2, 600), free(3, 5)];
        for _ in 0..3 {
            let ride = Pick::Ride(vec![1], vec![0, 2]);
            assert_eq!(schedule.pick(&waiting, MAX_ROWS, None, now), Some(ride));
            schedule.rode([1].into_iter(), now);
            schedule.live.iter_mut().for_each(|live| live.asked = true);
        }
        // Four prompts may take as long as four rows do.
        let four = [free(0, 64), free(2, 64), free(4, 64), free(5, 64), free(1, 1)];
        assert!(matches!(schedule.pick(&four, MAX_ROWS, None, now), Some(Pick::Slice(_, 4))));
        assert_eq!(schedule.pick(&four, MAX_ROWS, None, now), Some(Pick::Joint(vec![4])));
        // With a window of guesses nobody rides, and where no answer is under way a prompt goes on by itself.
        assert_eq!(schedule.pick(&waiting[3..], MAX_ROWS, None, now), Some(Pick::Joint(vec![0])));
        schedule.rests(1);
        assert_eq!(schedule.pick(&waiting[..1], MAX_ROWS, None, now), Some(Pick::Slice(0, MAX_ROWS)));
    }

    #[test]
    fn a_prompt_comes_forward_beside_answers_that_ask_again_at_once() {
        let mut schedule = Schedule::default();
        let mut now = Instant::now();
        schedule.took([9].into_iter(), 64, true, 64_000, now);
        let mut slices = 0;
        for _ in 0..20 {
            // Two answers: each asks for its next token a moment after it got the last one.
            schedule.took([0, 1].into_iter(), 2, false, 20_000, now);
            assert_eq!(schedule.pick(&[free(9, 2048)], MAX_ROWS, None, now), Some(Pick::Wait));
            now += PATIENCE / 4;
            let waiting = [free(9, 2048), free(1, 1), free(0, 1)];
            if let Some(Pick::Slice(0, rows)) = schedule.pick(&waiting, MAX_ROWS, None, now) {
                schedule.took([9].into_iter(), rows, true, rows as u32 * 1000, now);
                slices += 1;
                assert_eq!(schedule.pick(&waiting, MAX_ROWS, None, now), Some(Pick::Joint(vec![1, 2])));
            }
            now += Duration::from_millis(20);
        }
        assert!(slices >= 18, "{slices}");
    }

    #[test]
    fn long_prompts_come_forward_side_by_side() {
        let mut schedule = Schedule::default();
        let waiting = [free(4, 2048), free(1, 2048), free(7, 2048)];
        let order: Vec<Pick> = (0..4).map(|_| pick(&mut schedule, &waiting)).collect();
        let slice = |index| Pick::Slice(index, MAX_ROWS);
        assert_eq!(order, [slice(1), slice(0), slice(2), slice(1)]);
    }
}
