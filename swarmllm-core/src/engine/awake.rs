//! Cores that are kept awake between the steps of far answers.
//!
//! A core that has nothing to do sleeps, and wakes late: a real one by some hundredths of a millisecond, a virtual one by
//! some tenths, at each of the dozen times that a token on its way round wakes somebody. Loops that give way to all else
//! keep them awake. That costs power, so that it is done only where the host asks for it, while steps come, and only where
//! a stage waits for them so long that cores would sleep.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A step that comes when the cores had nothing to do for so long comes from afar; after a longer time it is a user's.
const FAR: Range<Duration> = Duration::from_millis(2)..Duration::from_millis(300);
/// Steps that come from afar one after another before loops begin: a neighbour that computes may once be late.
const IN_A_ROW: u32 = 2;
/// Cores are kept awake for so long after a step.
const AWAKE: Duration = FAR.end;
/// Name of the threads, at most the 15 bytes that Linux shows.
const THREAD_NAME: &str = "swarmllm-awake";

/// The loops of this process. One for each core is best: three on each brought nothing on a machine of two cores.
static ALL: LazyLock<Arc<Loops>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    Arc::new(Loops::new(cores.try_into().unwrap_or(u32::MAX)))
});

/// One of those who may want the cores to be awake.
#[derive(Debug)]
pub(super) struct Awake {
    loops: Arc<Loops>,
    /// Cores that it wants awake.
    threads: u32,
    /// The last steps that came from afar.
    far: u32,
}

#[derive(Debug)]
struct Loops {
    cores: u32,
    began: Instant,
    /// Until when they run, in microseconds since the beginning.
    until: AtomicU64,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    users: u32,
    running: u32,
}

impl Awake {
    /// A stage that wants so many of this machine's cores to be awake, which may be none.
    pub fn new(threads: u32) -> Self {
        Self::of(ALL.clone(), threads)
    }

    fn of(loops: Arc<Loops>, threads: u32) -> Self {
        loops.counts().users += 1;
        Self { threads: threads.min(loops.cores), loops, far: 0 }
    }

    /// A step has come for which the cores have waited so long.
    pub fn waited(&mut self, idle: Duration) {
        self.far = if FAR.contains(&idle) { self.far.saturating_add(1) } else { 0 };
        if self.threads > 0 && self.far >= IN_A_ROW {
            let until = self.loops.now().saturating_add(AWAKE.as_micros() as u64);
            self.loops.until.store(until, Ordering::Relaxed);
            self.start();
        }
    }

    /// Begins what loops are lacking.
    fn start(&self) {
        let mut counts = self.loops.counts();
        while counts.running < self.threads {
            let loops = self.loops.clone();
            let spawned = std::thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || run(&loops));
            // Without it answers only take a little longer.
            let Ok(_) = spawned else { return };
            counts.running += 1;
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        let mut counts = self.loops.counts();
        counts.users -= 1;
        if counts.users == 0 {
            self.loops.until.store(0, Ordering::Relaxed);
        }
    }
}

impl Loops {
    fn new(cores: u32) -> Self {
        Self { cores, began: Instant::now(), until: AtomicU64::new(0), counts: Mutex::default() }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    fn is_over(&self) -> bool {
        self.now() >= self.until.load(Ordering::Relaxed)
    }
}

fn run(loops: &Loops) {
    if !gives_way() {
        // It stays counted, so that it is not tried at each step.
        return;
    }
    loop {
        // Without the processor's hint for waiting loops: a hypervisor may take it for leave to let the core go.
        while !loops.is_over() {}
        let mut counts = loops.counts();
        if loops.is_over() {
            counts.running -= 1;
            return;
        }
    }
}

/// Lets all other threads go before this one; false where the system has nothing for that.
#[cfg(target_os = "linux")]
fn gives_way() -> bool {
    use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    let this = thread_priority::thread_native_id();
    thread_priority::set_thread_priority_and_policy(this, ThreadPriority::Min, idle).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn gives_way() -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn wait_until_none_runs(loops: &Loops) {
        let begun = Instant::now();
        while loops.counts().running > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "loops go on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn far(awake: &mut Awake) {
        (0..IN_A_ROW).for_each(|_| awake.waited(FAR.start));
    }

    #[test]
    fn loops_run_while_far_steps_come_and_end_soon_after() {
        let loops = Arc::new(Loops::new(2));
        let mut awake = Awake::of(loops.clone(), 7);
        for idle in [FAR.start, FAR.start / 2, FAR.start, FAR.end, FAR.start] {
            awake.waited(idle);
            assert_eq!(loops.counts().running, 0, "another stage computes between, or somebody asks");
        }
        for _ in 0..3 {
            awake.waited(FAR.start);
            assert_eq!(loops.counts().running, 2, "one for each core");
        }
        wait_until_none_runs(&loops);
        assert!(loops.began.elapsed() >= AWAKE);
        awake.waited(FAR.start);
        assert_eq!(loops.counts().running, 2);
    }

    #[test]
    fn they_end_with_the_last_stage_and_are_none_where_nobody_wants_them() {
        let loops = Arc::new(Loops::new(2));
        let [mut none, mut one, mut two] = [0, 1, 2].map(|threads| Awake::of(loops.clone(), threads));
        far(&mut none);
        assert_eq!(loops.counts().running, 0);
        far(&mut one);
        far(&mut two);
        assert_eq!(loops.counts().running, 2, "both stages share them");
        drop((none, one));
        assert!(!loops.is_over());
        drop(two);
        assert!(loops.is_over());
        wait_until_none_runs(&loops);
    }
}
