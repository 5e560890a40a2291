//! How many compute threads a step gets. Pure: times go in, a number comes out.
//!
//! llama.cpp's threads meet at a barrier after each operation and spin there. Where another program uses one of the
//! cores, each meeting waits for the thread that has no core: on two cores with one of them busy, two threads decode at
//! less than half of the speed of one. Nobody tells a library that its host has become busy, so it measures: one thread
//! less is tried now and then, and at once where steps have become slow, and kept while it is faster.

/// Steps between two trials of the count that is not in use, where that is one less and where it is all: on a quiet
/// machine a trial is wasted, 3 steps of 512 at less than twice the time, half a per cent.
const BETWEEN: [u32; 2] = [512, 64];
/// Steps of a trial.
const TRIAL: u32 = 3;
/// Steps that take so many times the usual begin a trial where they are more than a third of the last ones: each counts
/// two, each other takes one back, and three in a row are enough. Beside a busy core not every step is slow.
const SLOW: f64 = 1.5;
const SLOW_COUNT: u32 = 6;
/// But not sooner after the last one than so many steps.
const REST: u32 = 12;
/// Steps before the first trial.
const FIRST: u32 = 24;
/// Weight of a new measurement in the running ones.
const FRESH: f64 = 0.25;
/// The other count must be so much faster to be taken: measurements are noisy.
const MARGIN: f64 = 0.88;

/// Chooses between all threads and one less, for steps of one size.
#[derive(Debug, Clone)]
struct Chooser {
    threads: u32,
    /// Whether one less is in use.
    less: bool,
    /// Microseconds of a row with all threads, and with one less.
    micros: [Option<f64>; 2],
    since: u32,
    trial: u32,
    slow: u32,
}

impl Chooser {
    fn new(threads: u32) -> Self {
        // A first trial comes soon: the neighbour may have been busy before the first step.
        Self { threads, less: false, micros: [None; 2], since: BETWEEN[0] - FIRST, trial: 0, slow: 0 }
    }

    fn pick(&self) -> u32 {
        let less = self.less != (self.trial > 0);
        if less { self.threads.saturating_sub(1).max(1) } else { self.threads }
    }

    fn took(&mut self, micros: f64) {
        if self.threads < 2 {
            return;
        }
        let tried = self.trial > 0;
        let index = usize::from(self.less != tried);
        let usual = self.micros[index];
        let slow = !tried && usual.is_some_and(|usual| micros > SLOW * usual);
        self.slow = if slow { self.slow + 2 } else { self.slow.saturating_sub(1) };
        // The first step of a trial wakes or parks a thread: it is not counted, so that it cannot decide.
        if !tried || self.trial < TRIAL {
            self.micros[index] = Some(match usual {
                // One step that lost its core for long is not the rule.
                Some(usual) if !tried => usual + FRESH * (micros.min(2.0 * usual) - usual),
                Some(usual) if self.trial < TRIAL - 1 => usual + FRESH * (micros - usual),
                // A trial begins anew: what was measured long ago says nothing.
                _ => micros,
            });
        }
        self.since += 1;
        if tried {
            self.trial -= 1;
            if self.trial == 0 {
                self.settle();
            }
            return;
        }
        let became_slow = self.since >= REST && self.slow >= SLOW_COUNT;
        if became_slow {
            self.micros[index] = Some(micros);
        }
        if became_slow || self.since >= BETWEEN[usize::from(self.less)] {
            (self.trial, self.slow) = (TRIAL, 0);
        }
    }

    /// Ends a trial: the faster count stays.
    fn settle(&mut self) {
        self.since = 0;
        let [all, less] = self.micros;
        if let (Some(all), Some(less)) = (all, less) {
            let (current, other) = if self.less { (less, all) } else { (all, less) };
            if other < MARGIN * current {
                self.less = !self.less;
            }
        }
    }
}

/// Steps of up to so many rows are of one size. Longer ones are prefill, which takes too long for trials and gets all
/// threads: its work is handed out in small parts, so that a thread without a core holds the others up much less.
const SIZES: [usize; 3] = [1, 8, 32];

/// The thread counts of a stage.
#[derive(Debug, Clone)]
pub(super) struct Threads {
    threads: u32,
    sizes: [Chooser; SIZES.len()],
}

impl Threads {
    /// At most `threads`.
    pub fn new(threads: u32) -> Self {
        Self { threads, sizes: std::array::from_fn(|_| Chooser::new(threads)) }
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
        if let Some(size) = Self::size(rows) {
            self.sizes[size].took(f64::from(micros) / rows.max(1) as f64);
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
