//! Who holds what: the newest announcement of each peer, and what follows from them.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::base::{LayerRange, ModelId, NodeId};
use crate::rt::{Watched, WatchedWriter};
use crate::wire::announce::{Announcement, Holding};

/// Peers whose announcements are kept; beyond that the oldest version goes.
const MAX_PEERS: usize = 4096;

/// Versions begin at the milliseconds of its node's clock and grow by one with each announcement. What a peer itself says now
/// and is older than the known by this much is of a later life, before which its clock was put back.
const LIFE: u64 = 60_000;

/// Announcements by peer.
pub(crate) type Known = HashMap<NodeId, Announcement>;

/// The one writer of the view, and its readers.
pub(crate) struct Registry {
    writer: Mutex<WatchedWriter<Known>>,
    view: Watched<Known>,
}

impl Registry {
    pub fn new() -> Self {
        let (writer, view) = Watched::new(Known::new());
        Self { writer: Mutex::new(writer), view }
    }

    fn writer(&self) -> MutexGuard<'_, WatchedWriter<Known>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a peer itself has just said, and was checked. What it said in an earlier life counts no more.
    pub fn hear(&self, node: NodeId, announcement: Announcement) {
        if self.view.get().get(&node).is_some_and(|known| known.version > announcement.version.saturating_add(LIFE)) {
            self.forget(node);
        }
        self.learn(node, announcement);
    }

    /// Takes an announcement that has been checked; an older version than the known one is ignored.
    pub fn learn(&self, node: NodeId, announcement: Announcement) {
        let mut writer = self.writer();
        if self.view.get().get(&node).is_some_and(|known| known.version >= announcement.version) {
            return;
        }
        writer.update(|known| {
            let mut known = known.clone();
            known.insert(node, announcement);
            if known.len() > MAX_PEERS {
                let oldest = known.iter().min_by_key(|(_, announcement)| announcement.version).map(|(node, _)| *node);
                oldest.and_then(|node| known.remove(&node));
            }
            known
        });
    }

    /// Forgets a peer, so that a restarted one is believed again.
    pub fn forget(&self, node: NodeId) {
        self.writer().update(|known| {
            let mut known = known.clone();
            known.remove(&node);
            known
        });
    }

    /// The view as it stands.
    pub fn snapshot(&self) -> std::sync::Arc<Known> {
        self.view.get()
    }

    /// What a peer says that it holds of a model.
    pub fn holding(known: &Known, node: NodeId, model: ModelId) -> Option<&Holding> {
        known.get(&node)?.holdings.iter().find(|holding| holding.model == model)
    }

    /// Models that any peer names so, or whose id begins so.
    pub fn find(known: &Known, text: &str) -> Vec<ModelId> {
        /// Shortest prefix of an id that is taken as one.
        const PREFIX: usize = 8;
        let matches = |holding: &&Holding| {
            holding.name == text || (text.len() >= PREFIX && holding.model.to_string().starts_with(text))
        };
        let holdings = known.values().flat_map(|announcement| &announcement.holdings);
        let mut models: Vec<ModelId> = holdings.filter(matches).map(|holding| holding.model).collect();
        models.sort_unstable();
        models.dedup();
        models
    }
}

/// Layers of all `ranges` together, merged.
pub(crate) fn union(ranges: impl Iterator<Item = LayerRange>) -> Vec<LayerRange> {
    /// A model with more layers than this is none; a peer's range cannot make us count longer.
    const MAX_LAYER: u32 = 4096;
    let layers = ranges.flat_map(|range| range.start.min(MAX_LAYER)..range.end.min(MAX_LAYER));
    crate::base::merge_ranges(layers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn announcement(version: u64, name: &str) -> Announcement {
        let holding = Holding {
            model: ModelId([9; 32]),
            name: name.to_owned(),
            layers: vec![LayerRange::new(0, 2)],
            metadata: false,
            embedding: false,
            head: false,
        };
        Announcement {
            version,
            agent: String::new(),
            serves: true,
            free_memory: 0,
            in_use: Vec::new(),
            addresses: Vec::new(),
            round_trips: Vec::new(),
            holdings: vec![holding],
        }
    }

    #[test]
    fn the_newest_announcement_counts() {
        let registry = Registry::new();
        let node = NodeId([1; 32]);
        registry.learn(node, announcement(2, "new"));
        registry.learn(node, announcement(1, "old"));
        assert_eq!(Registry::find(&registry.snapshot(), "new"), [ModelId([9; 32])]);
        assert!(Registry::find(&registry.snapshot(), "old").is_empty());
        registry.forget(node);
        assert!(Registry::find(&registry.snapshot(), "new").is_empty());
    }

    #[test]
    fn a_node_whose_clock_was_put_back_is_heard_again_though_older_gossip_is_not() {
        const HOUR: u64 = 3_600_000;
        let (registry, node) = (Registry::new(), NodeId([1; 32]));
        let named = |name| Registry::find(&registry.snapshot(), name).len();
        registry.hear(node, announcement(9 * HOUR, "before"));
        registry.learn(node, announcement(2 * HOUR, "after"));
        assert_eq!((named("before"), named("after")), (1, 0), "gossip may be repeated by anybody");
        registry.hear(node, announcement(2 * HOUR, "after"));
        assert_eq!((named("before"), named("after")), (0, 1));
        registry.hear(node, announcement(2 * HOUR - 1, "late"));
        assert_eq!((named("after"), named("late")), (1, 0), "an answer that was overtaken by the next announcement");
    }

    #[test]
    fn peers_beyond_the_bound_push_out_the_oldest() {
        let registry = Registry::new();
        for index in 0..=MAX_PEERS as u32 {
            let mut id = [0u8; 32];
            id[..4].copy_from_slice(&index.to_le_bytes());
            registry.learn(NodeId(id), announcement(u64::from(index) + 1, "model"));
        }
        let known = registry.snapshot();
        assert_eq!(known.len(), MAX_PEERS);
        assert!(!known.contains_key(&NodeId([0; 32])));
    }

    #[test]
    fn a_peer_cannot_make_the_union_long() {
        let merged = union([LayerRange::new(0, u32::MAX)].into_iter());
        assert!(merged[0].len() <= 4096);
    }
}
