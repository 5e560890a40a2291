//! How many plans a node makes at once: a plan over thousands of hosts takes a core for tenths of a second, and requests that
//! come beside each other leave the other cores to the stages.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

use crate::base::{ErrorKind, Fault};
use crate::node::blocking::blocking;

/// Plans that are made at once, for so many cores.
const CORES_OF_A_PLAN: usize = 2;

/// The turns to make a plan, in the order in which they are asked for.
pub(crate) struct Planners(Arc<Semaphore>);

impl Default for Planners {
    /// One turn for every two of the machine's cores, and one at least.
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self::at_once((cores / CORES_OF_A_PLAN).max(1))
    }
}

impl Planners {
    fn at_once(plans: usize) -> Self {
        Self(Arc::new(Semaphore::new(plans)))
    }

    /// Makes a plan off the runtime, in its turn. Cancel-safe: dropped before its turn, it is not made.
    pub async fn make<T: Send + 'static>(
        &self,
        plan: impl FnOnce() -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Fault> {
        let turn = self.0.clone().acquire_owned().await.map_err(|closed| Fault::new(ErrorKind::Closed, closed))?;
        // The turn goes with the work, which cannot be stopped from outside.
        blocking(move || {
            let _turn = turn;
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
    async fn no_more_plans_are_made_at_once_than_there_are_turns() {
        let (planners, [now, most]) = (Planners::at_once(2), [(); 2].map(|()| Arc::new(AtomicUsize::new(0))));
        let plan = |_| {
            let (now, most) = (now.clone(), most.clone());
            planners.make(move || {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // So long that all others begin meanwhile that may.
                std::thread::sleep(std::time::Duration::from_millis(10));
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            })
        };
        assert!(join_all((0..12).map(plan)).await.iter().all(Result::is_ok));
        assert!(most.load(Ordering::SeqCst) <= 2, "{} at once", most.load(Ordering::SeqCst));
    }

    #[tokio::test]
    async fn a_plan_whose_caller_leaves_before_its_turn_is_not_made_and_holds_up_nobody() {
        let planners = Planners::at_once(1);
        let (end, ended) = mpsc::channel::<()>();
        let mut first = Box::pin(planners.make(move || {
            let _ = ended.recv();
            Ok("first")
        }));
        assert!(first.as_mut().now_or_never().is_none());
        let (made, was_made) = mpsc::channel();
        let mut left = Box::pin(planners.make(move || {
            let _ = made.send("left");
            Ok("left")
        }));
        assert!(left.as_mut().now_or_never().is_none(), "it waits for its turn");
        let mut last = Box::pin(planners.make(|| Ok("last")));
        assert!(last.as_mut().now_or_never().is_none());
        drop((left, first, end));
        // Nobody waits for the first either, which keeps its turn until it has ended.
        assert_eq!(last.await, Ok("last"));
        assert_eq!(was_made.try_recv(), Err(mpsc::TryRecvError::Disconnected));
        assert_eq!(planners.0.available_permits(), 1);
    }
}
