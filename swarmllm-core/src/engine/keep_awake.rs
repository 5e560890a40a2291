//! Keeps cores awake between the steps of distributed generations.
//!
//! An idle core sleeps and wakes late: by some hundredths of a millisecond on a physical machine, by some tenths on a
//! virtual one, for each of the dozen threads that one token wakes on its round trip. Spin threads of the lowest priority
//! keep the cores awake. That costs power, so they run only if the configuration asks for it, only while steps arrive, and
//! only if a stage waits between steps for so long that cores would sleep.

use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Idle time of the cores before a step of a distributed generation; a longer pause is a user's.
const REMOTE_STEP_GAP: Range<Duration> = Duration::from_millis(2)..Duration::from_millis(300);
/// Consecutive such steps before spin threads start, because a single step of another stage may be late.
const MIN_REMOTE_STEPS: u32 = 2;
/// How long the spin threads run after a step.
const SPIN_TIME: Duration = REMOTE_STEP_GAP.end;
/// Name of the threads; Linux shows 15 bytes.
const THREAD_NAME: &str = "swarmllm-awake";

/// The spin threads of this process. One for each core is best: three for each gained nothing on a machine of two cores.
static SPIN_THREADS: LazyLock<Arc<SpinThreads>> = LazyLock::new(|| {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    Arc::new(SpinThreads::new(cores.try_into().unwrap_or(u32::MAX)))
});

/// A stage's request to keep cores awake.
#[derive(Debug)]
pub(super) struct KeepAwake {
    spin: Arc<SpinThreads>,
    /// Cores to keep awake.
    threads: u32,
    /// Consecutive steps of a distributed generation.
    remote_steps: u32,
}

#[derive(Debug)]
struct SpinThreads {
    cores: u32,
    began: Instant,
    /// When the threads end, in microseconds since `began`.
    until: AtomicU64,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    users: u32,
    running: u32,
}

impl KeepAwake {
    /// Keeps `threads` cores of this machine awake; 0 for none.
    pub fn new(threads: u32) -> Self {
        Self::with_threads(SPIN_THREADS.clone(), threads)
    }

    fn with_threads(spin: Arc<SpinThreads>, threads: u32) -> Self {
        spin.counts().users += 1;
        Self { threads: threads.min(spin.cores), spin, remote_steps: 0 }
    }

    /// Records a step that arrived after the cores had been idle for `idle`.
    pub fn step_arrived(&mut self, idle: Duration) {
        self.remote_steps = if REMOTE_STEP_GAP.contains(&idle) { self.remote_steps.saturating_add(1) } else { 0 };
        if self.threads > 0 && self.remote_steps >= MIN_REMOTE_STEPS {
            let until = self.spin.now().saturating_add(SPIN_TIME.as_micros() as u64);
            self.spin.until.store(until, Ordering::Relaxed);
            self.start();
        }
    }

    /// Starts the missing threads.
    fn start(&self) {
        let mut counts = self.spin.counts();
        while counts.running < self.threads {
            let spin = self.spin.clone();
            let spawned = std::thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(move || run(&spin));
            // Without the thread tokens only take a little longer.
            let Ok(_) = spawned else { return };
            counts.running += 1;
        }
    }
}

impl Drop for KeepAwake {
    fn drop(&mut self) {
        let mut counts = self.spin.counts();
        counts.users -= 1;
        if counts.users == 0 {
            self.spin.until.store(0, Ordering::Relaxed);
        }
    }
}

impl SpinThreads {
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

fn run(spin: &SpinThreads) {
    if !set_idle_priority() {
        // The count stays, so that the start is not retried at each step.
        return;
    }
    loop {
        // Without the CPU's pause instruction: a hypervisor may deschedule the core at it.
        while !spin.is_over() {}
        let mut counts = spin.counts();
        if spin.is_over() {
            counts.running -= 1;
            return;
        }
    }
}

/// Gives this thread the lowest scheduling class; false if the system has none.
#[cfg(target_os = "linux")]
fn set_idle_priority() -> bool {
    use thread_priority::{NormalThreadSchedulePolicy, ThreadPriority, ThreadSchedulePolicy};
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    let this = thread_priority::thread_native_id();
    thread_priority::set_thread_priority_and_policy(this, ThreadPriority::Min, idle).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn set_idle_priority() -> bool {
    false
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    fn wait_until_none_runs(spin: &SpinThreads) {
        let begun = Instant::now();
        while spin.counts().running > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "the threads do not end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn remote_steps(keep_awake: &mut KeepAwake) {
        (0..MIN_REMOTE_STEPS).for_each(|_| keep_awake.step_arrived(REMOTE_STEP_GAP.start));
    }

    #[test]
    fn spin_threads_run_while_remote_steps_arrive_and_end_soon_after() {
        let spin = Arc::new(SpinThreads::new(2));
        let mut keep_awake = KeepAwake::with_threads(spin.clone(), 7);
        for idle in [
            REMOTE_STEP_GAP.start,
            REMOTE_STEP_GAP.start / 2,
            REMOTE_STEP_GAP.start,
            REMOTE_STEP_GAP.end,
            REMOTE_STEP_GAP.start,
        ] {
            keep_awake.step_arrived(idle);
            assert_eq!(spin.counts().running, 0, "another stage computed in between, or a user paused");
        }
        for _ in 0..3 {
            keep_awake.step_arrived(REMOTE_STEP_GAP.start);
            assert_eq!(spin.counts().running, 2, "one for each core");
        }
        wait_until_none_runs(&spin);
        assert!(spin.began.elapsed() >= SPIN_TIME);
        keep_awake.step_arrived(REMOTE_STEP_GAP.start);
        assert_eq!(spin.counts().running, 2);
    }

    #[test]
    fn spin_threads_end_with_the_last_stage_that_requests_them() {
        let spin = Arc::new(SpinThreads::new(2));
        let [mut none, mut one, mut two] = [0, 1, 2].map(|threads| KeepAwake::with_threads(spin.clone(), threads));
        remote_steps(&mut none);
        assert_eq!(spin.counts().running, 0);
        remote_steps(&mut one);
        remote_steps(&mut two);
        assert_eq!(spin.counts().running, 2, "stages share the threads");
        drop((none, one));
        assert!(!spin.is_over());
        drop(two);
        assert!(spin.is_over());
        wait_until_none_runs(&spin);
    }
}
