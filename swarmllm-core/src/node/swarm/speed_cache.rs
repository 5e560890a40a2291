//! Speeds outlive the node: how fast hosts were is kept in the store, so that the first plan of the next start is as good as
//! the last of this one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::node::shared::Shared;
use crate::pipeline::speeds::{Speeds, now_ms};
use crate::store::Store;

/// What is learnt within this time is stored together.
const SETTLE: Duration = Duration::from_secs(5);
/// Speeds that have not been seen for this long are forgotten: the machine may be another by then.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 3600);

/// What was learnt before; nothing where the store fails, which costs the first plans their measure. Blocks.
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

/// Stores what is learnt, until the node stops.
pub(crate) async fn run(shared: Arc<Shared>, store: Store) {
    let (stopping, speeds) = (shared.tasks.stopping(), &shared.coordinator.speeds);
    loop {
        let work = async {
            speeds.learnt().await;
            sleep(SETTLE).await;
        };
        let over = stopping.run_until_cancelled(work).await.is_none();
        let (store, fresh) = (store.clone(), speeds.take_fresh());
        if !fresh.is_empty() {
            match tokio::task::spawn_blocking(move || store.put_speeds(&fresh, oldest_ms())).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the speeds of hosts could not be stored"),
                Err(error) => tracing::error!(%error, "storing the speeds of hosts panicked"),
            }
        }
        if over {
            return;
        }
    }
}

fn oldest_ms() -> u64 {
    now_ms().saturating_sub(LONGEST.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::base::{ModelId, NodeId};
    use crate::node::{Node, Preset};
    use crate::pipeline::speeds::Seen;
    use crate::store::SpeedRecord;

    const MODEL: ModelId = ModelId([7; 32]);

    async fn node(dir: &TempDir) -> Node {
        let builder = Node::builder().data_dir(dir.path().join("data")).preset(Preset::Offline).engines(Vec::new());
        builder.start().await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_that_is_started_again_predicts_with_the_pace_that_it_had_learnt() {
        let (dir, host) = (TempDir::new().unwrap(), NodeId([1; 32]));
        let first = node(&dir).await;
        let seen = Seen { node: host, weight: 100, told_us: 2000, rtt_us: 500 };
        first.shared().coordinator.speeds.learn(MODEL, &[seen], 2500);
        first.shutdown(Duration::from_secs(5)).await;
        let again = node(&dir).await;
        assert_eq!(again.shared().coordinator.speeds.pace_ns(MODEL, host), 20_000);
        again.shutdown(Duration::from_secs(5)).await;
    }

    #[test]
    fn what_has_not_been_seen_for_long_is_not_taken() {
        let dir = TempDir::new().unwrap();
        let store = Store::open(&dir.path().join("store.redb")).unwrap();
        let record = |name, seen_ms| SpeedRecord { model: MODEL, node: NodeId([name; 32]), pace_ns: 9, seen_ms };
        store.put_speeds(&[record(1, now_ms()), record(2, 5)], 0).unwrap();
        let speeds = load(&store);
        store.put_speeds(&[record(1, 6)], 0).unwrap();
        assert_eq!(speeds.pace_ns(MODEL, NodeId([1; 32])), 9);
        let without = load(&store).pace_ns(MODEL, NodeId([2; 32]));
        assert_eq!(without, Speeds::default().pace_ns(MODEL, NodeId([2; 32])));
    }
}
