//! How many compute threads a step gets. Pure: times go in, a number comes out.
//!
//! llama.cpp's threads meet at a barrier after each operation and spin there. Where another program uses one of the
//! cores, each meeting waits for the thread that has no core: on two cores with one of them busy, two threads decode at
//! less than half of the speed of one. Nobody tells a library that its host has become busy, so it measures: one thread
//! less is tried now and then, and at once where steps have become slow, and kept while it is faster.

/// Steps between two trials of the count that is not in use, where that is one less and where it is all: on a quiet
/// machine a trial is wasted, 3 steps of 512 at less than twice the time, half a per cent. Trials of one less begin soon,
/// and each in vain doubles the steps to the next: the neighbour may have been busy from the beginning, where nothing looks
/// slow, and a trial may have had bad luck.
const BETWEEN: [u32; 2] = [512, 64];
const FIRST: u32 = 24;
/// Steps of a trial.
const TRIAL: u32 = 3;
/// Steps that take so many times the usual begin a trial where they are more than a third of the last ones: each counts
/// two, each other takes one back, and three in a row are enough. Beside a busy core not every step is slow.
const SLOW: f64 = 1.5;
const SLOW_COUNT: u32 = 6;
/// But not sooner after the last one than so many steps; twice as many after each that slowness began in vain, since then
/// something else is slow.
const REST: u32 = 12;
/// Weight of a new measurement in the running ones: what is usual of a number of rows, and how steps do against it.
const FRESH: f64 = 0.25;
/// The other count must be so much faster to be taken: measurements are noisy.
const MARGIN: f64 = 0.88;

/// Chooses between all threads and one less, for steps of one size. Times come as multiples of what is usual for as many
/// rows with the count in use.
#[derive(Debug, Clone)]
struct Chooser {
    threads: u32,
    /// Whether one less is in use.
    less: bool,
    /// How the last steps did.
    recent: f64,
    since: u32,
    /// Steps from one trial of one less to the next.
    between: u32,
    rest: u32,
    slow: u32,
    /// Steps that are left of a trial.
    trial: u32,
    /// Whether slowness began it.
    alarmed: bool,
    /// What the steps of the trial that count took together.
    tried: f64,
}

impl Chooser {
    fn new(threads: u32) -> Self {
        let (less, alarmed) = (false, false);
        Self {
            threads,
            less,
            recent: 1.0,
            since: 0,
            between: FIRST,
            rest: REST,
            slow: 0,
            trial: 0,
            alarmed,
            tried: 0.0,
        }
    }

    fn pick(&self) -> u32 {
        let less = self.less != (self.trial > 0);
        if less { self.threads.saturating_sub(1).max(1) } else { self.threads }
    }

    /// Takes a step's time. Where a trial ended with the other count as the better one, says what is usual with that.
    fn took(&mut self, time: f64) -> Option<f64> {
        self.since = self.since.saturating_add(1);
        if self.trial > 0 {
            // The first step of a trial wakes or parks a thread: it is not counted, so that it cannot decide.
            self.tried += if self.trial < TRIAL { time } else { 0.0 };
            self.trial -= 1;
            return if self.trial == 0 { self.settle() } else { None };
        }
        // One step that lost its core for long is not the rule.
        self.recent += FRESH * (time.min(2.0) - self.recent);
        self.slow = if time > SLOW { self.slow + 2 } else { self.slow.saturating_sub(1) };
        self.alarmed = self.slow >= SLOW_COUNT && self.since >= self.rest;
        if self.alarmed {
            self.recent = time;
        }
        if self.alarmed || self.since >= if self.less { BETWEEN[1] } else { self.between } {
            (self.trial, self.tried, self.slow) = (TRIAL, 0.0, 0);
        }
        None
    }

    /// Ends a trial: the faster count stays.
    fn settle(&mut self) -> Option<f64> {
        let tried = self.tried / f64::from(TRIAL - 1);
        let better = tried < MARGIN * self.recent;
        self.rest = match self.alarmed && !better {
            true => (2 * self.rest).min(BETWEEN[0]),
            false => REST,
        };
        if !self.less {
            self.between = if better { FIRST } else { (2 * self.between).min(BETWEEN[0]) };
        }
        (self.since, self.recent) = (0, 1.0);
        self.less ^= better;
        better.then_some(tried)
    }
}

/// Steps of up to so many rows are of one size. Longer ones take too long for trials and get all threads: their work is
/// handed out in small parts, so that a thread without a core holds the others up much less. (A trial of three windows of
/// 32 guesses took a tenth of an answer.)
const SIZES: [usize; 2] = [1, LONGEST];
/// Most rows of a step whose threads are chosen.
const LONGEST: usize = 8;

/// The thread counts of a stage.
#[derive(Debug, Clone)]
pub(super) struct Threads {
    threads: u32,
    sizes: [Chooser; SIZES.len()],
    /// Microseconds that steps of each number of rows usually take, with the count in use.
    usual: [Option<f64>; LONGEST + 1],
}

impl Threads {
    /// At most `threads`.
    pub fn new(threads: u32) -> Self {
        Self { threads, sizes: std::array::from_fn(|_| Chooser::new(threads)), usual: [None; LONGEST + 1] }
    }

    fn size(rows: usize) -> Option<usize> {
        SIZES.iter().position(|most| rows <= *most)
    }

    /// Threads for a step of so many rows.
    pub fn pick(&self, rows: usize) -> u32 {
        match Self::size(rows) {
            Some(size) => self.sizes[size].pick(),
            None => self.threads,
        }
    }

    /// What that step took.
    pub fn took(&mut self, rows: usize, micros: u32) {
        let Some(size) = Self::size(rows).filter(|_| self.threads > 1) else { return };
        let (chooser, micros) = (&mut self.sizes[size], f64::from(micros.max(1)));
        let tried = chooser.trial > 0;
        let usual = match self.usual[rows] {
            Some(usual) => usual,
            // Nothing to hold it against: a trial waits for a step of another number of rows.
            None if tried => return,
            None => *self.usual[rows].insert(micros),
        };
        if let Some(factor) = chooser.took(micros / usual) {
            let from = if size == 0 { 0 } else { SIZES[size - 1] + 1 };
            self.usual[from..=SIZES[size]].iter_mut().flatten().for_each(|usual| *usual *= factor);
        } else if !tried {
            self.usual[rows] = Some(usual + FRESH * (micros.min(2.0 * usual) - usual));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs steps; gives how often each of the two counts was used in the second half.
    fn run(threads: &mut Threads, steps: u32, micros: impl Fn(u32) -> u32) -> (u32, u32) {
        let (mut all, mut less) = (0, 0);
        for step in 0..steps {
            let picked = threads.pick(1);
            if step >= steps / 2 {
                if picked == 2 { all += 1 } else { less += 1 }
            }
            threads.took(1, micros(picked));
        }
        (all, less)
    }

    #[test]
    fn all_threads_are_used_on_a_quiet_machine_and_one_less_beside_a_busy_core() {
        let mut threads = Threads::new(2);
        let (all, less) = run(&mut threads, 400, |threads| if threads == 2 { 10_000 } else { 18_000 });
        assert!(all > 180 && less < 20, "{all} {less}");
        let (all, less) = run(&mut threads, 400, |threads| if threads == 2 { 40_000 } else { 18_000 });
        assert!(less > 180 && all < 20, "{all} {less}");
        assert_eq!(threads.pick(512), 2, "prefill has all");
        let (all, less) = run(&mut threads, 400, |threads| if threads == 2 { 10_000 } else { 18_000 });
        assert!(all > 180 && less < 20, "{all} {less}");
    }

    #[test]
    fn a_core_that_is_busy_half_of_the_time_is_noticed_and_a_spike_now_and_then_is_not_taken_for_it() {
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
    fn slowness_that_has_nothing_to_do_with_threads_is_asked_about_ever_more_rarely() {
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
    fn a_core_that_was_busy_from_the_beginning_is_found_although_the_first_trial_had_bad_luck() {
        let tried = std::cell::Cell::new(0);
        let mut threads = Threads::new(2);
        let (all, less) = run(&mut threads, 200, |threads| {
            tried.set(tried.get() + u32::from(threads == 1));
            if threads == 2 || tried.get() <= TRIAL { 36_000 } else { 14_000 }
        });
        assert!(less > 80, "{all} {less}");
    }

    #[test]
    fn steps_of_other_numbers_of_rows_are_not_taken_for_slow_ones() {
        let mut threads = Threads::new(2);
        let mut less = 0;
        for step in 0..1000_usize {
            // Two rows cost nearly what eight do.
            let rows = [2, 8, 8, 2, 2, 3, 8, 2][step % 8];
            less += u32::from(threads.pick(rows) == 1);
            threads.took(rows, 10_000 + 500 * rows as u32);
        }
        // 24, 48, 96, 192 and 384 steps after one another.
        assert!(less <= 5 * TRIAL, "{less}");
    }

    #[test]
    fn a_core_that_becomes_busy_is_noticed_within_a_few_steps() {
        let mut threads = Threads::new(4);
        for _ in 0..40 {
            threads.took(1, 10_000);
        }
        let noticed = (0..10).position(|_| {
            threads.took(1, 40_000);
            threads.pick(1) == 3
        });
        assert!(noticed.is_some_and(|steps| steps < 6), "{noticed:?}");
    }

    #[test]
    fn a_single_thread_stays_one_and_sizes_do_not_mix() {
        let mut one = Threads::new(1);
        (0..300).for_each(|step| one.took(1, 1000 + step));
        assert_eq!(one.pick(1), 1);
        let mut two = Threads::new(2);
        let (_, less) = run(&mut two, 200, |threads| if threads == 2 { 40_000 } else { 18_000 });
        assert!(less > 50);
        assert_eq!(two.pick(5), 2);
    }
}
