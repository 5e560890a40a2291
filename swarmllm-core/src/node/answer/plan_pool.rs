//! Bounded concurrency of planning: a plan over thousands of hosts takes a core for tenths of a second, and stages need the
//! other cores.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

use crate::base::{ErrorKind, Fault};
use crate::node::blocking::blocking;

/// Cores per concurrent plan.
const CORES_OF_A_PLAN: usize = 2;

/// Permits to plan, granted in order of request.
pub(crate) struct PlanPool(Arc<Semaphore>);

impl Default for PlanPool {
    /// One permit per two cores, at least one.
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self::new((cores / CORES_OF_A_PLAN).max(1))
    }
}

impl PlanPool {
    fn new(plans: usize) -> Self {
        Self(Arc::new(Semaphore::new(plans)))
    }

    /// Runs the planner off the runtime once a permit is free. Cancel-safe: dropped before that, it does not run.
    pub async fn run<T: Send + 'static>(
        &self,
        plan: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let permit = self.0.clone().acquire_owned().await.map_err(|closed| Fault::new(ErrorKind::Closed, closed))?;
        // The work keeps the permit: it cannot be stopped.
        blocking(move || {
            let _permit = permit;
            plan()
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use futures::FutureExt;
    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn concurrent_plans_are_bounded() {
        let (pool, [now, most]) = (PlanPool::new(2), [(); 2].map(|()| Arc::new(AtomicUsize::new(0))));
        let plan = |_| {
            let (now, most) = (now.clone(), most.clone());
            pool.run(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Long enough for every other permitted plan to begin.
                std::thread::sleep(std::time::Duration::from_millis(10));
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            })
        };
        assert!(join_all((0..12).map(plan)).await.iter().all(Result::is_ok));
        assert!(most.load(Ordering::SeqCst) <= 2, "{} at once", most.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_plan_dropped_before_its_permit_does_not_run() {
        let pool = PlanPool::new(1);
        let (end, ended) = mpsc::channel::<()>();
        let mut first = Box::pin(pool.run(move || {
            let _ = ended.recv();
            Ok("first")
        }));
        assert!(first.as_mut().now_or_never().is_none());
        let (made, was_made) = mpsc::channel();
        let mut left = Box::pin(pool.run(move || {
            let _ = made.send("left");
            Ok("left")
        }));
        assert!(left.as_mut().now_or_never().is_none(), "the plan waits for a permit");
        let mut last = Box::pin(pool.run(|| Ok("last")));
        assert!(last.as_mut().now_or_never().is_none());
        drop((left, first, end));
        // The first plan's caller left too; the plan keeps its permit until it ends.
        assert_eq!(last.await, Ok("last"));
        assert_eq!(was_made.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        assert_eq!(pool.0.available_permits(), 1);
    }
}
