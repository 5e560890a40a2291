//! Whether models would have a plan, as it was judged last, and why they would have none.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::{ErrorKind, Fault, ModelId};
use crate::node::models::loaded::LoadedModel;
use crate::pipeline::context::Savings;
use crate::pipeline::plan::NoPlan;

/// For how long a judgement counts, for each millisecond that it took: all together take an eighth of a core.
const JUDGED_FOR: Duration = Duration::from_millis(7);

/// Why there is no plan, and what would help where memory is short.
#[derive(Debug)]
pub(crate) struct Unplanned {
    pub reason: NoPlan,
    /// By the settings of this node, which plans go by.
    pub savings: Savings,
}

impl Unplanned {
    /// As the fault of who asked for the model.
    pub fn of(&self, model: &LoadedModel) -> Fault {
        Fault::new(ErrorKind::NoPlan, format!("no plan for {}: {self}", model.name))
    }
}

impl fmt::Display for Unplanned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Unplanned { reason, savings } = self;
        match reason {
            NoPlan::NoMemory { .. } => write!(f, "{reason}; give them {savings}, or let more nodes hold its layers"),
            _ => write!(f, "{reason}"),
        }
    }
}

/// Whether models would have a plan, as it was judged last: one judgement at a time, and each counts for several times as long as
/// it took. That is no time at all, unless strangers have announced hundreds of hosts with little memory each.
#[derive(Debug, Default)]
pub(crate) struct Judged {
    last: Mutex<HashMap<ModelId, Judgement>>,
}

#[derive(Debug)]
struct Judgement {
    until: Instant,
    unplanned: Option<Arc<Unplanned>>,
}

impl Judged {
    /// Why a model would have no plan, where it would have none; `judge` says it anew. Blocks for as long as that takes.
    pub fn of(&self, model: ModelId, judge: impl FnOnce() -> Option<Unplanned>) -> Option<Arc<Unplanned>> {
        // A panic in a judgement leaves the one before.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        last.retain(|_, judgement| judgement.until > begun);
        if let Some(judgement) = last.get(&model) {
            return judgement.unplanned.clone();
        }
        let unplanned = judge().map(Arc::new);
        let until = Instant::now() + JUDGED_FOR * begun.elapsed().as_millis().try_into().unwrap_or(u32::MAX);
        last.insert(model, Judgement { until, unplanned: unplanned.clone() });
        unplanned
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn a_judgement_that_took_long_counts_for_several_times_as_long_and_one_that_took_no_time_does_not() {
        let (judged, made) = (Judged::default(), Cell::new(0));
        let judge = |took: u64| {
            made.set(made.get() + 1);
            std::thread::sleep(Duration::from_millis(took));
            None
        };
        let [quick, slow] = [1, 2].map(|name| ModelId([name; 32]));
        (0..2).for_each(|_| assert!(judged.of(quick, || judge(0)).is_none()));
        assert_eq!(made.get(), 2);
        // Whatever the machine does meanwhile, the second comes within seven times what the first took.
        let begun = Instant::now();
        judged.of(slow, || judge(200));
        let (took, asked) = (begun.elapsed(), Instant::now());
        judged.of(slow, || judge(0));
        assert!(made.get() == 3 || asked.elapsed() > took, "{} judgements", made.get());
        assert!(judged.last.lock().unwrap().len() <= 2);
    }

    #[test]
    fn one_judgement_is_made_at_a_time_whatever_the_model() {
        /// Longer than a thread takes to come in beside another.
        const BESIDE: Duration = Duration::from_millis(100);
        let (judged, inside, met) = (Judged::default(), AtomicUsize::new(0), AtomicBool::new(false));
        let judge = || {
            met.fetch_or(inside.fetch_add(1, Ordering::SeqCst) > 0, Ordering::SeqCst);
            std::thread::sleep(BESIDE);
            inside.fetch_sub(1, Ordering::SeqCst);
            None
        };
        std::thread::scope(|scope| {
            for name in 0..3 {
                let (judged, judge) = (&judged, &judge);
                scope.spawn(move || judged.of(ModelId([name; 32]), judge));
            }
        });
        assert!(!met.load(Ordering::SeqCst), "judgements share one core");
    }

    #[test]
    fn judgements_that_count_no_more_are_forgotten() {
        let judged = Judged::default();
        let over = |name| (ModelId([name; 32]), Judgement { until: Instant::now(), unplanned: None });
        judged.last.lock().unwrap().extend((0..9).map(over));
        judged.of(ModelId([9; 32]), || None);
        assert_eq!(judged.last.lock().unwrap().len(), 1);
    }
}
