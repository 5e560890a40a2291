//! The speeds of hosts as this node has measured them, from which a plan's time is predicted.
//!
//! A host reports its compute time with each answer. The answer's own time bounds the trust in the report: the time of
//! the route beyond all reported times and round trips is spread evenly over the route's stages, so that a host gains
//! nothing by reporting less than it takes. Hosts are not asked for their speed before they have computed anything.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use crate::base::{ModelId, NodeId};
use crate::store::{SpeedRecord, limits};

/// Pairs of host and model that are kept, as many as are stored; the pair not measured for longest is evicted.
const MAX_PAIRS: usize = limits::SPEEDS as usize;
/// Nanoseconds per unit of weight (a million parameters, one token) for a model without measurements: the time of two
/// cores of a server for a model of 135 million parameters in 4 bits.
const DEFAULT_NS_PER_UNIT: u64 = 65_000;
/// Weight of a new measurement in the moving average.
const SMOOTHING: f64 = 0.3;

/// The measured speeds of hosts.
#[derive(Debug, Default)]
pub struct Speeds {
    known: Mutex<HashMap<(ModelId, NodeId), HostSpeed>>,
    measured: Notify,
}

#[derive(Debug, Clone, Copy)]
struct HostSpeed {
    /// Nanoseconds per unit of weight.
    ns: f64,
    /// When it was last measured, in milliseconds since 1970.
    seen_ms: u64,
    /// Whether it is not stored yet.
    unsaved: bool,
}

/// The timing of a stage in an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTiming {
    /// Its host.
    pub node: NodeId,
    /// Its units of weight, as the ledger prices them.
    pub weight: u64,
    /// Microseconds per decoded token, as the host reported them.
    pub reported_us: u32,
    /// Microseconds of the round trip to its host.
    pub rtt_us: u32,
}

impl Speeds {
    /// Nanoseconds that a host takes per unit of weight: as measured, else the mean of the model's other hosts.
    pub fn ns_per_unit(&self, model: ModelId, node: NodeId) -> u64 {
        let known = self.locked();
        if let Some(speed) = known.get(&(model, node)) {
            return speed.ns as u64;
        }
        let others = known.iter().filter(|((of, _), _)| *of == model).map(|(_, speed)| speed.ns);
        let (count, sum) = others.fold((0_u32, 0.0), |(count, sum), ns| (count + 1, sum + ns));
        if count == 0 { DEFAULT_NS_PER_UNIT } else { (sum / f64::from(count)) as u64 }
    }

    /// Records an answer's stages, and its time from one token to the next.
    pub fn record(&self, model: ModelId, stages: &[StageTiming], token_us: u32) {
        let explained: u64 = stages.iter().map(|stage| u64::from(stage.reported_us) + u64::from(stage.rtt_us)).sum();
        let unexplained = u64::from(token_us).saturating_sub(explained) / (stages.len() as u64).max(1);
        let (mut known, seen_ms) = (self.locked(), now_ms());
        for stage in stages.iter().filter(|stage| stage.weight > 0) {
            let us = u64::from(stage.reported_us.min(token_us)) + unexplained;
            let measured = us as f64 * 1e3 / stage.weight as f64;
            let first = HostSpeed { ns: measured, seen_ms, unsaved: true };
            let speed = known.entry((model, stage.node)).or_insert(first);
            let ns = speed.ns + SMOOTHING * (measured - speed.ns);
            *speed = HostSpeed { ns, seen_ms, unsaved: true };
        }
        while known.len() > MAX_PAIRS {
            let oldest = known.iter().min_by_key(|(_, speed)| speed.seen_ms).map(|(pair, _)| *pair);
            oldest.and_then(|pair| known.remove(&pair));
        }
        self.measured.notify_one();
    }

    /// Inserts the stored speeds of earlier runs of this node.
    pub fn restore(&self, records: Vec<SpeedRecord>) {
        let speed =
            |record: &SpeedRecord| HostSpeed { ns: record.ns_per_unit as f64, seen_ms: record.seen_ms, unsaved: false };
        let restored = records.iter().take(MAX_PAIRS).map(|record| ((record.model, record.node), speed(record)));
        self.locked().extend(restored);
    }

    /// Waits for a measurement since it last returned. Cancel-safe.
    pub async fn measured(&self) {
        self.measured.notified().await;
    }

    /// Returns the speeds that were measured since the last call.
    pub fn take_unsaved(&self) -> Vec<SpeedRecord> {
        let mut known = self.locked();
        let record = |((model, node), speed): (&(ModelId, NodeId), &mut HostSpeed)| {
            let (ns_per_unit, seen_ms) = (speed.ns as u64, speed.seen_ms);
            let record = SpeedRecord { model: *model, node: *node, ns_per_unit, seen_ms };
            std::mem::take(&mut speed.unsaved).then_some(record)
        };
        known.iter_mut().filter_map(record).collect()
    }

    fn locked(&self) -> MutexGuard<'_, HashMap<(ModelId, NodeId), HostSpeed>> {
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

    fn timing(name: u8, reported_us: u32) -> StageTiming {
        StageTiming { node: NodeId([name; 32]), weight: 100, reported_us, rtt_us: 500 }
    }

    #[test]
    fn a_host_has_its_measured_speed_and_others_the_models_mean() {
        let speeds = Speeds::default();
        assert_eq!(speeds.ns_per_unit(MODEL, NodeId([1; 32])), DEFAULT_NS_PER_UNIT);
        speeds.record(MODEL, &[timing(1, 2000), timing(2, 6000)], 9000);
        // 2 ms for 100 units are 20 microseconds a unit.
        assert_eq!(speeds.ns_per_unit(MODEL, NodeId([1; 32])), 20_000);
        assert_eq!(speeds.ns_per_unit(MODEL, NodeId([2; 32])), 60_000);
        assert_eq!(speeds.ns_per_unit(MODEL, NodeId([3; 32])), 40_000, "the mean of the known speeds");
        assert_eq!(
            speeds.ns_per_unit(ModelId([8; 32]), NodeId([1; 32])),
            DEFAULT_NS_PER_UNIT,
            "another model has its own speeds"
        );
    }

    #[test]
    fn a_report_below_the_answers_time_is_not_believed() {
        let speeds = Speeds::default();
        speeds.record(MODEL, &[timing(1, 0)], 10_500);
        assert_eq!(speeds.ns_per_unit(MODEL, NodeId([1; 32])), 100_000);
        // Nor is a report above it.
        speeds.record(MODEL, &[timing(2, u32::MAX)], 10_000);
        assert_eq!(speeds.ns_per_unit(MODEL, NodeId([2; 32])), 100_000);
    }

    #[test]
    fn known_speeds_are_bounded() {
        let speeds = Speeds::default();
        for name in 0..=MAX_PAIRS as u32 {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&name.to_le_bytes());
            speeds.record(MODEL, &[StageTiming { node: NodeId(id), ..timing(0, 5) }], 1000);
        }
        assert!(speeds.locked().len() <= MAX_PAIRS);
    }
}
