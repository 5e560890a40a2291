//! Number of compute threads of a step. Pure: measured times determine the number.
//!
//! llama.cpp's threads meet at a barrier after each operation and spin there. If another program uses one of the cores,
//! each barrier waits for the thread without a core: on two cores, one of them busy, two threads decode at less than half
//! the speed of one. A library is not notified of other load, so it measures: it tries one thread fewer now and then, and
//! at once when steps become slow, and keeps it while it is faster.

/// Steps between two trials of the other count: one thread fewer, and all threads. On a quiet machine a trial is wasted: 3
/// of 512 steps at less than twice the time, half a per cent. Trials of one thread fewer start early, and each failed trial
/// doubles the interval: the core may have been busy from the start, when no step looks slow, and a trial may be unlucky.
const TRIAL_INTERVALS: [u32; 2] = [512, 64];
const FIRST_INTERVAL: u32 = 24;
/// Steps of a trial.
const TRIAL_STEPS: u32 = 3;
/// Steps that take this multiple of the usual time start a trial if they are more than a third of the last steps: each adds
/// two, each other step subtracts one, and three in a row suffice. Beside a busy core not every step is slow.
const SLOW: f64 = 1.5;
const SLOW_COUNT: u32 = 6;
/// Fewest steps between such trials; doubled after each failed one, because then the slowness has another cause.
const ALARM_COOLDOWN: u32 = 12;
/// Weight of a new measurement in the moving averages of usual times and of recent relative times.
const EWMA_WEIGHT: f64 = 0.25;
/// The other count must take less than this share of the time to be chosen, because measurements are noisy.
const MARGIN: f64 = 0.88;

/// Chooses between all threads and one fewer, for steps of one size class. Times are relative to the usual time of as many
/// rows with the current count.
#[derive(Debug, Clone)]
struct Chooser {
    threads: u32,
    /// Whether one thread fewer is in use.
    one_fewer: bool,
    /// Average relative time of the last steps.
    recent: f64,
    since: u32,
    /// Steps between two trials of one thread fewer.
    interval: u32,
    cooldown: u32,
    slow: u32,
    /// Remaining steps of a trial.
    trial: u32,
    /// Whether slow steps started the trial.
    alarmed: bool,
    /// Total time of the trial's counted steps.
    trial_time: f64,
}

impl Chooser {
    fn new(threads: u32) -> Self {
        let (one_fewer, alarmed) = (false, false);
        Self {
            threads,
            one_fewer,
            recent: 1.0,
            since: 0,
            interval: FIRST_INTERVAL,
            cooldown: ALARM_COOLDOWN,
            slow: 0,
            trial: 0,
            alarmed,
            trial_time: 0.0,
        }
    }

    fn choose(&self) -> u32 {
        let less = self.one_fewer != (self.trial > 0);
        if less { self.threads.saturating_sub(1).max(1) } else { self.threads }
    }

    /// Records a step's time. If a trial ends in favour of the other count, returns the relative time with that count.
    fn record(&mut self, time: f64) -> Option<f64> {
        self.since = self.since.saturating_add(1);
        if self.trial > 0 {
            // The first step of a trial wakes or parks a thread and is not counted.
            self.trial_time += if self.trial < TRIAL_STEPS { time } else { 0.0 };
            self.trial -= 1;
            return if self.trial == 0 { self.end_trial() } else { None };
        }
        // Capped, so that a single long preemption does not dominate.
        self.recent += EWMA_WEIGHT * (time.min(2.0) - self.recent);
        self.slow = if time > SLOW { self.slow + 2 } else { self.slow.saturating_sub(1) };
        self.alarmed = self.slow >= SLOW_COUNT && self.since >= self.cooldown;
        if self.alarmed {
            self.recent = time;
        }
        if self.alarmed || self.since >= if self.one_fewer { TRIAL_INTERVALS[1] } else { self.interval } {
            (self.trial, self.trial_time, self.slow) = (TRIAL_STEPS, 0.0, 0);
        }
        None
    }

    /// Ends a trial: the faster count stays.
    fn end_trial(&mut self) -> Option<f64> {
        let tried = self.trial_time / f64::from(TRIAL_STEPS - 1);
        let better = tried < MARGIN * self.recent;
        self.cooldown = match self.alarmed && !better {
            true => (2 * self.cooldown).min(TRIAL_INTERVALS[0]),
            false => ALARM_COOLDOWN,
        };
        if !self.one_fewer {
            self.interval = if better { FIRST_INTERVAL } else { (2 * self.interval).min(TRIAL_INTERVALS[0]) };
        }
        (self.since, self.recent) = (0, 1.0);
        self.one_fewer ^= better;
        better.then_some(tried)
    }
}

/// Upper bounds of the size classes, in rows. Longer steps take too long for trials and get all threads: their work is
/// distributed in small parts, so that a thread without a core delays the others much less. (A trial of three draft windows
/// of 32 tokens took a tenth of a generation.)
const SIZE_CLASSES: [usize; 2] = [1, MAX_CHOSEN_ROWS];
/// Most rows of a step whose thread count is chosen.
const MAX_CHOSEN_ROWS: usize = 8;

/// Thread counts of a stage.
#[derive(Debug, Clone)]
pub(super) struct Threads {
    threads: u32,
    sizes: [Chooser; SIZE_CLASSES.len()],
    /// Usual microseconds of a step by its number of rows, with the current count.
    usual: [Option<f64>; MAX_CHOSEN_ROWS + 1],
}

impl Threads {
    /// At most `threads`.
    pub fn new(threads: u32) -> Self {
        Self { threads, sizes: std::array::from_fn(|_| Chooser::new(threads)), usual: [None; MAX_CHOSEN_ROWS + 1] }
    }

    fn size(rows: usize) -> Option<usize> {
        SIZE_CLASSES.iter().position(|most| rows <= *most)
    }

    /// Threads for a step of `rows` rows.
    pub fn choose(&self, rows: usize) -> u32 {
        match Self::size(rows) {
            Some(size) => self.sizes[size].choose(),
            None => self.threads,
        }
    }

    /// Records a step's time.
    pub fn record(&mut self, rows: usize, micros: u32) {
        let Some(size) = Self::size(rows).filter(|_| self.threads > 1) else { return };
        let (chooser, micros) = (&mut self.sizes[size], f64::from(micros.max(1)));
        let tried = chooser.trial > 0;
        let usual = match self.usual[rows] {
            Some(usual) => usual,
            // Without a usual time the trial waits for a step with another number of rows.
            None if tried => return,
            None => *self.usual[rows].insert(micros),
        };
        if let Some(factor) = chooser.record(micros / usual) {
            let from = if size == 0 { 0 } else { SIZE_CLASSES[size - 1] + 1 };
            self.usual[from..=SIZE_CLASSES[size]].iter_mut().flatten().for_each(|usual| *usual *= factor);
        } else if !tried {
            self.usual[rows] = Some(usual + EWMA_WEIGHT * (micros.min(2.0 * usual) - usual));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs steps; returns how often each of the two counts was used in the second half.
    fn run(threads: &mut Threads, steps: u32, micros: impl Fn(u32) -> u32) -> (u32, u32) {
        let (mut all, mut less) = (0, 0);
        for step in 0..steps {
            let chosen = threads.choose(1);
            if step >= steps / 2 {
                if chosen == 2 { all += 1 } else { less += 1 }
            }
            threads.record(1, micros(chosen));
        }
        (all, less)
    }

    #[test]
    fn one_thread_fewer_is_used_beside_a_busy_core_only() {
        let mut threads = Threads::new(2);
        let (all, less) = run(&mut threads, 400, |threads| if threads == 2 { 10_000 } else { 18_000 });
        assert!(all > 180 && less < 20, "{all} {less}");
        let (all, less) = run(&mut threads, 400, |threads| if threads == 2 { 40_000 } else { 18_000 });
        assert!(less > 180 && all < 20, "{all} {less}");
        assert_eq!(threads.choose(512), 2, "prefill gets all threads");
        let (all, less) = run(&mut threads, 400, |threads| if threads == 2 { 10_000 } else { 18_000 });
        assert!(all > 180 && less < 20, "{all} {less}");
    }

    #[test]
    fn a_half_busy_core_is_noticed_and_rare_spikes_are_ignored() {
        let step = std::cell::Cell::new(0);
        let every = |slow: u32| {
            let step = &step;
            move |threads| {
                step.set(step.get() + 1);
                match (threads, step.get() % slow) {
                    (2, 0) => 40_000,
                    (2, _) => 10_000,
                    _ => 18_000,
                }
            }
        };
        let mut threads = Threads::new(2);
        run(&mut threads, 100, |_| 10_000);
        let (all, less) = run(&mut threads, 400, every(9));
        assert!(all > 180 && less < 20, "{all} {less}");
        let (all, less) = run(&mut threads, 400, every(2));
        assert!(less > 170, "{all} {less}");
    }

    #[test]
    fn unrelated_slowness_triggers_ever_fewer_trials() {
        let step = std::cell::Cell::new(0_u32);
        let mut threads = Threads::new(2);
        let (all, less) = run(&mut threads, 4000, |threads| {
            step.set(step.get() + 1);
            let slow = if step.get() % 20 < 8 { 3 } else { 1 };
            slow * if threads == 2 { 10_000 } else { 18_000 }
        });
        assert!(less < all / 50, "{all} {less}");
    }

    #[test]
    fn a_core_busy_from_the_start_is_found_after_an_unlucky_trial() {
        let tried = std::cell::Cell::new(0);
        let mut threads = Threads::new(2);
        let (all, less) = run(&mut threads, 200, |threads| {
            tried.set(tried.get() + u32::from(threads == 1));
            if threads == 2 || tried.get() <= TRIAL_STEPS { 36_000 } else { 14_000 }
        });
        assert!(less > 80, "{all} {less}");
    }

    #[test]
    fn steps_with_more_rows_do_not_count_as_slow() {
        let mut threads = Threads::new(2);
        let mut less = 0;
        for step in 0..1000_usize {
            // Two rows cost nearly as much as eight.
            let rows = [2, 8, 8, 2, 2, 3, 8, 2][step % 8];
            less += u32::from(threads.choose(rows) == 1);
            threads.record(rows, 10_000 + 500 * rows as u32);
        }
        // 24, 48, 96, 192 and 384 steps after one another.
        assert!(less <= 5 * TRIAL_STEPS, "{less}");
    }

    #[test]
    fn a_core_that_becomes_busy_is_noticed_within_a_few_steps() {
        let mut threads = Threads::new(4);
        for _ in 0..40 {
            threads.record(1, 10_000);
        }
        let noticed = (0..10).position(|_| {
            threads.record(1, 40_000);
            threads.choose(1) == 3
        });
        assert!(noticed.is_some_and(|steps| steps < 6), "{noticed:?}");
    }

    #[test]
    fn a_single_thread_stays_and_size_classes_are_independent() {
        let mut one = Threads::new(1);
        (0..300).for_each(|step| one.record(1, 1000 + step));
        assert_eq!(one.choose(1), 1);
        let mut two = Threads::new(2);
        let (_, less) = run(&mut two, 200, |threads| if threads == 2 { 40_000 } else { 18_000 });
        assert!(less > 50);
        assert_eq!(two.choose(5), 2);
    }
}
