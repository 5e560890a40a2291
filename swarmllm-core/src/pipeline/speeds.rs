//! How fast hosts compute, as this node has seen it: what a plan's prediction is made of.
//!
//! A host tells with each answer how long it computed. It is believed as far as the answer's time allows: what the route
//! took beyond all that was told and the links' round trips is laid on its stages alike, so that who tells less than it
//! takes gains nothing by it. What hosts say of themselves before they have computed anything is not asked for.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use crate::base::{ModelId, NodeId};
use crate::store::{SpeedRecord, limits};

/// Pairs of host and model that are remembered, as many as are stored; the one not seen for longest makes room.
const PAIRS: usize = limits::SPEEDS as usize;
/// Nanoseconds for a unit of weight (a million parameters, one token) where nothing is known of the model at all: what two
/// cores of a server take for a model of 135 million parameters in 4 bits.
const UNKNOWN_NS: u64 = 65_000;
/// Weight of a new measurement.
const FRESH: f64 = 0.3;

/// See the module.
#[derive(Debug, Default)]
pub struct Speeds {
    known: Mutex<HashMap<(ModelId, NodeId), Pace>>,
    learnt: Notify,
}

#[derive(Debug, Clone, Copy)]
struct Pace {
    ns: f64,
    /// Milliseconds since 1970.
    seen_ms: u64,
    /// Whether it is not stored yet.
    fresh: bool,
}

/// A stage as an answer has shown it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Its host.
    pub node: NodeId,
    /// What the ledger prices it by.
    pub weight: u64,
    /// Microseconds of a decoded token, as the host told.
    pub told_us: u32,
    /// Microseconds to its host and back.
    pub rtt_us: u32,
}

impl Speeds {
    /// Nanoseconds that a host takes for a unit of weight: as measured, or as the other hosts of the model take.
    pub fn pace_ns(&self, model: ModelId, node: NodeId) -> u64 {
        let known = self.locked();
        if let Some(pace) = known.get(&(model, node)) {
            return pace.ns as u64;
        }
        let others = known.iter().filter(|((of, _), _)| *of == model).map(|(_, pace)| pace.ns);
        let (count, sum) = others.fold((0_u32, 0.0), |(count, sum), pace| (count + 1, sum + pace));
        if count == 0 { UNKNOWN_NS } else { (sum / f64::from(count)) as u64 }
    }

    /// Takes what an answer has shown: its stages, and the time from one token to the next.
    pub fn learn(&self, model: ModelId, stages: &[Seen], token_us: u32) {
        let explained: u64 = stages.iter().map(|seen| u64::from(seen.told_us) + u64::from(seen.rtt_us)).sum();
        let left = u64::from(token_us).saturating_sub(explained) / (stages.len() as u64).max(1);
        let (mut known, seen_ms) = (self.locked(), now_ms());
        for seen in stages.iter().filter(|seen| seen.weight > 0) {
            let measured = (u64::from(seen.told_us.min(token_us)) + left) as f64 * 1e3 / seen.weight as f64;
            let pace = known.entry((model, seen.node)).or_insert(Pace { ns: measured, seen_ms, fresh: true });
            let ns = pace.ns + FRESH * (measured - pace.ns);
            *pace = Pace { ns, seen_ms, fresh: true };
        }
        while known.len() > PAIRS {
            let oldest = known.iter().min_by_key(|(_, pace)| pace.seen_ms).map(|(pair, _)| *pair);
            oldest.and_then(|pair| known.remove(&pair));
        }
        self.learnt.notify_one();
    }

    /// Takes what was learnt before this node was started.
    pub fn restore(&self, records: Vec<SpeedRecord>) {
        let pace = |record: &SpeedRecord| Pace { ns: record.pace_ns as f64, seen_ms: record.seen_ms, fresh: false };
        let restored = records.iter().take(PAIRS).map(|record| ((record.model, record.node), pace(record)));
        self.locked().extend(restored);
    }

    /// Waits until something has been learnt since it returned last. Cancel-safe.
    pub async fn learnt(&self) {
        self.learnt.notified().await;
    }

    /// What has been learnt since this was asked last.
    pub fn take_fresh(&self) -> Vec<SpeedRecord> {
        let mut known = self.locked();
        let record = |((model, node), pace): (&(ModelId, NodeId), &mut Pace)| {
            let (pace_ns, seen_ms) = (pace.ns as u64, pace.seen_ms);
            let record = SpeedRecord { model: *model, node: *node, pace_ns, seen_ms };
            std::mem::take(&mut pace.fresh).then_some(record)
        };
        known.iter_mut().filter_map(record).collect()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<(ModelId, NodeId), Pace>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: ModelId = ModelId([7; 32]);

    fn seen(name: u8, told_us: u32) -> Seen {
        Seen { node: NodeId([name; 32]), weight: 100, told_us, rtt_us: 500 }
    }

    #[test]
    fn a_host_has_the_pace_that_its_answers_show_and_others_that_of_the_model() {
        let speeds = Speeds::default();
        assert_eq!(speeds.pace_ns(MODEL, NodeId([1; 32])), UNKNOWN_NS);
        speeds.learn(MODEL, &[seen(1, 2000), seen(2, 6000)], 9000);
        // 2 ms for 100 units are 20 microseconds a unit.
        assert_eq!(speeds.pace_ns(MODEL, NodeId([1; 32])), 20_000);
        assert_eq!(speeds.pace_ns(MODEL, NodeId([2; 32])), 60_000);
        assert_eq!(speeds.pace_ns(MODEL, NodeId([3; 32])), 40_000, "between those that are known");
        assert_eq!(speeds.pace_ns(ModelId([8; 32]), NodeId([1; 32])), UNKNOWN_NS, "another model is another matter");
    }

    #[test]
    fn who_tells_less_than_the_answer_took_is_not_believed() {
        let speeds = Speeds::default();
        speeds.learn(MODEL, &[seen(1, 0)], 10_500);
        assert_eq!(speeds.pace_ns(MODEL, NodeId([1; 32])), 100_000);
        // Nor who tells more.
        speeds.learn(MODEL, &[seen(2, u32::MAX)], 10_000);
        assert_eq!(speeds.pace_ns(MODEL, NodeId([2; 32])), 100_000);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let speeds = Speeds::default();
        for name in 0..=PAIRS as u32 {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&name.to_le_bytes());
            speeds.learn(MODEL, &[Seen { node: NodeId(id), ..seen(0, 5) }], 1000);
        }
        assert!(speeds.locked().len() <= PAIRS);
    }
}
