//! Readiness of models: whether a request would find a plan, cached, and why not.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::{ErrorKind, Fault, ModelId};
use crate::node::models::loaded::LoadedModel;
use crate::pipeline::host::context::Savings;
use crate::pipeline::plan::NoPlan;

/// Time to cache a result, per millisecond that it took: recomputation then takes at most an eighth of a core.
const CACHED_PER_MILLISECOND: Duration = Duration::from_millis(7);

/// Why there is no plan, and which settings would help if memory is short.
#[derive(Debug)]
pub(crate) struct PlanFailure {
    pub reason: NoPlan,
    /// Computed from this node's settings, which its plans assume.
    pub savings: Savings,
}

impl PlanFailure {
    /// The fault of a request for the model.
    pub fn fault(&self, model: &LoadedModel) -> Fault {
        Fault::new(ErrorKind::NoPlan, format!("no plan for {}: {self}", model.name))
    }
}

impl fmt::Display for PlanFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PlanFailure { reason, savings } = self;
        match reason {
            NoPlan::NoMemory { .. } => write!(f, "{reason}; give them {savings}, or let more nodes hold its layers"),
            _ => write!(f, "{reason}"),
        }
    }
}

/// Cached readiness of models. One result is computed at a time and cached for seven times its computation, which is
/// negligible unless strangers announce hundreds of hosts with little memory each.
#[derive(Debug, Default)]
pub(crate) struct ReadinessCache {
    last: Mutex<HashMap<ModelId, CachedReadiness>>,
}

#[derive(Debug)]
struct CachedReadiness {
    until: Instant,
    failure: Option<Arc<PlanFailure>>,
}

impl ReadinessCache {
    /// Why a request for the model would find no plan, or `None`. Blocks while `compute` runs.
    pub fn get(&self, model: ModelId, compute: impl FnOnce() -> Option<PlanFailure>) -> Option<Arc<PlanFailure>> {
        // A panic in `compute` leaves the cache unchanged.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        last.retain(|_, cached| cached.until > begun);
        if let Some(cached) = last.get(&model) {
            return cached.failure.clone();
        }
        let failure = compute().map(Arc::new);
        let until =
            Instant::now() + CACHED_PER_MILLISECOND * begun.elapsed().as_millis().try_into().unwrap_or(u32::MAX);
        last.insert(model, CachedReadiness { until, failure: failure.clone() });
        failure
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_result_is_cached_in_proportion_to_its_computation() {
        let (readiness, made) = (ReadinessCache::default(), Cell::new(0));
        let compute = |took: u64| {
            made.set(made.get() + 1);
            std::thread::sleep(Duration::from_millis(took));
            None
        };
        let [quick, slow] = [1, 2].map(|name| ModelId([name; 32]));
        (0..2).for_each(|_| assert!(readiness.get(quick, || compute(0)).is_none()));
        assert_eq!(made.get(), 2);
        // On any machine, the second call comes within seven times the duration of the first.
        let begun = Instant::now();
        readiness.get(slow, || compute(200));
        let (took, asked) = (begun.elapsed(), Instant::now());
        readiness.get(slow, || compute(0));
        assert!(made.get() == 3 || asked.elapsed() > took, "{} computations", made.get());
        assert!(readiness.last.lock().unwrap().len() <= 2);
    }

    #[test]
    fn one_result_is_computed_at_a_time() {
        /// Longer than another thread needs to enter.
        const OVERLAP: Duration = Duration::from_millis(100);
        let (readiness, inside, met) = (ReadinessCache::default(), AtomicUsize::new(0), AtomicBool::new(false));
        let compute = || {
            met.fetch_or(inside.fetch_add(1, Ordering::SeqCst) > 0, Ordering::SeqCst);
            std::thread::sleep(OVERLAP);
            inside.fetch_sub(1, Ordering::SeqCst);
            None
        };
        std::thread::scope(|scope| {
            for name in 0..3 {
                let (readiness, compute) = (&readiness, &compute);
                scope.spawn(move || readiness.get(ModelId([name; 32]), compute));
            }
        });
        assert!(!met.load(Ordering::SeqCst), "computations do not overlap");
    }

    #[test]
    fn expired_results_are_removed() {
        let readiness = ReadinessCache::default();
        let expired = |name| (ModelId([name; 32]), CachedReadiness { until: Instant::now(), failure: None });
        readiness.last.lock().unwrap().extend((0..9).map(expired));
        readiness.get(ModelId([9; 32]), || None);
        assert_eq!(readiness.last.lock().unwrap().len(), 1);
    }
}
