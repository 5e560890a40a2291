//! Persists measured speeds of hosts, so the first plan after a restart is as good as the last before it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::pipeline::plan::speeds::{Speeds, now_ms};
use crate::store::Store;

/// Measurements within this time are stored together.
const DEBOUNCE: Duration = Duration::from_secs(5);
/// Age at which a speed is discarded: the machine may have changed.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);

/// Stored speeds. Empty if the store fails: the first plans then lack measurements. Blocks.
pub(crate) fn load(store: &Store) -> Arc<Speeds> {
    let speeds = Speeds::default();
    match store.speeds() {
        Ok(mut records) => {
            let oldest = oldest_ms();
            records.retain(|record| record.seen_ms >= oldest);
            speeds.restore(records);
        }
        Err(error) => tracing::warn!(%error, "the speeds of hosts could not be read"),
    }
    Arc::new(speeds)
}

/// Stores new measurements until the node stops.
pub(crate) async fn run(speeds: Arc<Speeds>, store: Store, stopping: CancellationToken) {
    loop {
        let work = async {
            speeds.measured().await;
            sleep(DEBOUNCE).await;
        };
        let stopped = stopping.run_until_cancelled(work).await.is_none();
        let (store, fresh) = (store.clone(), speeds.take_unsaved());
        if !fresh.is_empty() {
            match tokio::task::spawn_blocking(move || store.put_speeds(&fresh, oldest_ms())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the speeds of hosts could not be stored"),
                Err(error) => tracing::error!(%error, "storing the speeds of hosts panicked"),
            }
        }
        if stopped {
            return;
        }
    }
}

fn oldest_ms() -> u64 {
    now_ms().saturating_sub(MAX_AGE.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::base::{ModelId, NodeId};
    use crate::node::{Node, Preset};
    use crate::pipeline::plan::speeds::StageTiming;
    use crate::store::SpeedRecord;

    const MODEL: ModelId = ModelId([7; 32]);

    async fn node(dir: &TempDir) -> Node {
        let builder = Node::builder().data_dir(dir.path().join("data")).preset(Preset::Offline).engines(Vec::new());
        builder.start().await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_restarted_node_predicts_with_its_measured_speeds() {
        let (dir, host) = (TempDir::new().unwrap(), NodeId([1; 32]));
        let first = node(&dir).await;
        let seen = StageTiming { node: host, weight: 100, reported_us: 2000, rtt_us: 500 };
        first.shared().coordinator.speeds.record(MODEL, &[seen], 2500);
        first.shutdown(Duration::from_secs(5)).await;
        let again = node(&dir).await;
        assert_eq!(again.shared().coordinator.speeds.ns_per_unit(MODEL, host), 20_000);
        again.shutdown(Duration::from_secs(5)).await;
    }

    #[test]
    fn old_speeds_are_discarded() {
        let dir = TempDir::new().unwrap();
        let store = Store::open(&dir.path().join("store.redb")).unwrap();
        let record = |name, seen_ms| SpeedRecord { model: MODEL, node: NodeId([name; 32]), ns_per_unit: 9, seen_ms };
        store.put_speeds(&[record(1, now_ms()), record(2, 5)], 0).unwrap();
        let speeds = load(&store);
        store.put_speeds(&[record(1, 6)], 0).unwrap();
        assert_eq!(speeds.ns_per_unit(MODEL, NodeId([1; 32])), 9);
        let without = load(&store).ns_per_unit(MODEL, NodeId([2; 32]));
        assert_eq!(without, Speeds::default().ns_per_unit(MODEL, NodeId([2; 32])));
    }
}
