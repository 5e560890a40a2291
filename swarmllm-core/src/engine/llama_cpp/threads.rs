//! How many compute threads a step gets. Pure: times go in, a number comes out.
//!
//! llama.cpp's threads meet at a barrier after each operation and spin there. Where another program uses one of the
//! cores, each meeting waits for the thread that has no core: on two cores with one of them busy, two threads decode at
//! less than half of the speed of one. Nobody tells a library that its host has become busy, so it measures: one thread
//! less is tried now and then, and at once where steps have become slow, and kept while it is faster.

/// Steps between two trials of the count that is not in use, and how many steps a trial has.
const BETWEEN: u32 = 96;
const TRIAL: u32 = 3;
/// A step that takes so many times the usual begins a trial at once.
const SLOW: f64 = 1.5;
/// But not sooner after the last one than so many steps.
const REST: u32 = 12;
/// Weight of a new measurement in the running ones.
const FRESH: f64 = 0.25;
/// The other count must be so much faster to be taken: measurements are noisy.
const MARGIN: f64 = 0.95;

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
}

impl Chooser {
    fn new(threads: u32) -> Self {
        Self { threads, less: false, micros: [None; 2], since: 0, trial: 0 }
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
        // The first step of a trial wakes or parks a thread: it is not counted, so that it cannot decide.
        if !tried || self.trial < TRIAL {
            self.micros[index] = Some(match usual {
                // A trial begins anew: what was measured long ago says nothing.
                Some(usual) if !tried || self.trial < TRIAL - 1 => usual + FRESH * (micros - usual),
                _ => micros,
            });
        }
        self.since += 1;
        if tried {
            self.trial -= 1;
            if self.trial == 0 {
                self.settle();
            }
        } else if self.since >= BETWEEN || (self.since >= REST && usual.is_some_and(|usual| micros > SLOW * usual)) {
            self.trial = TRIAL;
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

/// Steps of up to so many rows are of one size; longer ones are prefill.
const SIZES: [usize; 3] = [1, 8, 64];

/// The thread counts of a stage.
#[derive(Debug, Clone)]
pub(super) struct Threads {
    sizes: [Chooser; SIZES.len() + 1],
}

impl Threads {
    /// At most `threads`.
    pub fn new(threads: u32) -> Self {
        Self { sizes: std::array::from_fn(|_| Chooser::new(threads)) }
    }

    fn size(rows: usize) -> usize {
        SIZES.iter().position(|most| rows <= *most).unwrap_or(SIZES.len())
    }

    /// Threads for a step of so many rows.
    pub fn pick(&self, rows: usize) -> u32 {
        self.sizes[Self::size(rows)].pick()
    }

    /// What that step took.
    pub fn took(&mut self, rows: usize, micros: u32) {
        self.sizes[Self::size(rows)].took(f64::from(micros) / rows.max(1) as f64);
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
        let (all, less) = run(&mut threads, 400, |threads| if threads == 2 { 10_000 } else { 18_000 });
        assert!(all > 180 && less < 20, "{all} {less}");
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
        assert!(noticed.is_some_and(|steps| steps < 3), "{noticed:?}");
    }

    #[test]
    fn a_single_thread_stays_one_and_sizes_do_not_mix() {
        let mut one = Threads::new(1);
        (0..300).for_each(|step| one.took(1, 1000 + step));
        assert_eq!(one.pick(1), 1);
        let mut two = Threads::new(2);
        let (_, less) = run(&mut two, 200, |threads| if threads == 2 { 40_000 } else { 18_000 });
        assert!(less > 50);
        assert_eq!(two.pick(512), 2);
    }
}
