//! The model registry: the newest announcement of each node, with its origin.
//!
//! A node that said hello over a connection is *greeted*. A node known by gossip alone is a candidate: it may be invented,
//! so it is greeted before a plan uses it. Announcements that are not repeated expire after [`LIFETIME`].

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::base::names::{NameResolution, NamedModel, matched_name, resolve_name};
use crate::base::{LayerRange, ModelId, NodeId};
use crate::wire::announce::{Announcement, Holding};

/// Most nodes in the registry. Connections are limited to 512, so every connected node fits.
const MAX_NODES: usize = 4096;

/// Most candidates relayed by one peer: a quarter. A larger swarm is known through several peers and the DHT. Candidates of
/// a flooding peer evict each other beyond this, before the registry is full.
const MAX_RELAYED: usize = MAX_NODES / 4;

/// Memory of all announcements: `4096 * 16 KiB`. An announcement of a few models takes about 1 KiB. The longest possible
/// takes 200 KiB, since a layer range takes two to four bytes on the wire and eight in memory; 4,096 of those would take 800
/// MiB. Announcements of connected nodes count and may exceed the limit: 512 of them take at most 100 MiB.
const MAX_BYTES: usize = 64 << 20;

/// Interval at which a node repeats its announcement.
pub(crate) const REPEAT: Duration = Duration::from_secs(5 * 60);

/// Age at which a gossiped announcement expires: three repetitions may be lost. Clocks of two nodes may differ by as much. A
/// hello of a node with a worse clock still counts; from then on, gossip about it is judged by the node's own clock.
const LIFETIME: Duration = Duration::from_secs(16 * 60);

/// Milliseconds. An announcement's version is its creation time in milliseconds since 1970. A hello older than the known
/// announcement by more than this means that the node's clock was set back.
pub(crate) const CLOCK_TOLERANCE_MS: u64 = 60_000;

/// Least time between two warnings about clocks: peers can reconnect at will.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// The newest announcement of a node, with its origin.
#[derive(Debug, Clone)]
pub(crate) struct KnownNode {
    announcement: Arc<Announcement>,
    /// Bytes of the announcement in memory.
    bytes: usize,
    received: Instant,
    /// The peer that relayed it; `None` if the node sent it in a hello.
    via: Option<NodeId>,
    /// Milliseconds by which the node's clock was ahead of this machine's at its hello; 0 without a hello.
    clock_ahead: i64,
}

impl KnownNode {
    fn new(announcement: Arc<Announcement>, received: Instant, via: Option<NodeId>, clock_ahead: i64) -> Self {
        Self { bytes: announcement.memory(), announcement, received, via, clock_ahead }
    }

    /// Seconds by which the node's clock is ahead of this machine's; `None` without a hello.
    pub fn clock_ahead_s(&self) -> Option<i64> {
        self.greeted().then_some(self.clock_ahead / 1000)
    }

    /// Whether the known announcement is newer than one in a hello. A much older hello means that the clock was set back, so
    /// it counts as newer.
    fn is_newer_than(&self, announcement: &Announcement) -> bool {
        let version = announcement.version;
        (version..=version.saturating_add(CLOCK_TOLERANCE_MS)).contains(&self.version)
    }

    /// Whether the node said hello over a connection.
    pub fn greeted(&self) -> bool {
        self.via.is_none()
    }

    /// What the node announces to hold of a model.
    pub fn holding(&self, model: ModelId) -> Option<&Holding> {
        self.holdings.iter().find(|holding| holding.model == model)
    }

    /// The peer that relayed the announcement, unless the node is greeted.
    pub fn via(&self) -> Option<NodeId> {
        self.via
    }
}

impl Deref for KnownNode {
    type Target = Announcement;

    fn deref(&self) -> &Announcement {
        &self.announcement
    }
}

/// Known nodes by id.
pub(crate) type KnownNodes = HashMap<NodeId, KnownNode>;

/// One moment on the process's monotonic clock and on the machine's wall clock.
#[derive(Debug, Clone, Copy)]
struct ClockReading {
    at: Instant,
    millis: u64,
}

impl ClockReading {
    fn read() -> Self {
        Self { at: Instant::now(), millis: millis() }
    }

    /// Milliseconds by which the clock of a node that sends this now is ahead of this machine's.
    fn clock_ahead(&self, announcement: &Announcement) -> i64 {
        let ahead = i128::from(announcement.version) - i128::from(self.millis);
        ahead.clamp(i64::MIN.into(), i64::MAX.into()) as i64
    }
}

/// Milliseconds since 1970, by the machine's clock.
pub(crate) fn millis() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    now.as_millis().try_into().unwrap_or(u64::MAX / 2)
}

/// A warning about a node whose clock differs by more than [`LIFETIME`]: only nodes connected to it accept its
/// announcements.
pub(crate) fn clock_warning(node: NodeId, ahead_s: i64) -> Option<String> {
    let (apart, direction) = (ahead_s.unsigned_abs(), if ahead_s > 0 { "ahead of" } else { "behind" });
    (apart > LIFETIME.as_secs())
        .then(|| format!("the clock of peer {} is {} minutes {direction} this machine's", node.short(), apart / 60))
}

/// The registry. A write copies the map only if a reader still holds the previous snapshot.
#[derive(Default)]
pub(crate) struct ModelRegistry {
    view: Mutex<View>,
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct View {
    known: Arc<KnownNodes>,
    /// Memory of all announcements.
    bytes: usize,
    /// Time of the last warning about a clock.
    warned: Option<Instant>,
}

impl ModelRegistry {
    pub fn new() -> Self {
        Self::default()
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores a checked announcement from a peer's hello. It replaces announcements from before the clock was set back.
    pub fn on_hello(&self, node: NodeId, announcement: Announcement) {
        self.on_hello_at(node, announcement, ClockReading::read());
    }

    fn on_hello_at(&self, node: NodeId, mut announcement: Announcement, now: ClockReading) {
        announcement.clean();
        let mut view = self.view();
        let (known, clock_ahead) = (view.known.get(&node), now.clock_ahead(&announcement));
        let new = !known.is_some_and(KnownNode::greeted);
        let (announcement, clock_ahead) = match known {
            Some(known) if known.is_newer_than(&announcement) => (known.announcement.clone(), known.clock_ahead),
            _ => (Arc::new(announcement), clock_ahead),
        };
        let announced = KnownNode::new(announcement, now.at, None, clock_ahead);
        if new {
            view.warn_of_clock(node, &announced);
        }
        view.insert(node, announced);
        drop(view);
        self.changes.send_replace(());
    }

    /// Stores a checked announcement that `via` relayed. Ignores announcements that are not newer than the known or older
    /// than [`LIFETIME`]: anyone may replay old gossip. Age is judged by this machine's clock and, after a hello, by the
    /// node's own. Gossip over the node's own connection is stored whatever the clocks say.
    pub fn on_gossip(&self, node: NodeId, announcement: Announcement, via: NodeId) {
        self.on_gossip_at(node, announcement, via, ClockReading::read());
    }

    fn on_gossip_at(&self, node: NodeId, mut announcement: Announcement, via: NodeId, now: ClockReading) {
        announcement.clean();
        let mut view = self.view();
        let (known, direct) = (view.known.get(&node), via == node);
        let clock_ahead = match known {
            _ if direct => now.clock_ahead(&announcement),
            known => known.map_or(0, |known| known.clock_ahead),
        };
        let fits = |clock: u64| clock.abs_diff(announcement.version) <= LIFETIME.as_millis() as u64;
        let (there, clock_ahead) = match now.millis.saturating_add_signed(clock_ahead) {
            // The node's clock was corrected after its hello.
            there if !fits(there) && fits(now.millis) => (now.millis, 0),
            there => (there, clock_ahead),
        };
        let fresh = direct || fits(there);
        let older = |known: &KnownNode| match direct {
            true => known.is_newer_than(&announcement),
            false => known.version >= announcement.version,
        };
        if !fresh || known.is_some_and(older) {
            return;
        }
        let via = if known.is_some_and(KnownNode::greeted) { None } else { Some(via) };
        let age = Duration::from_millis(there.saturating_sub(announcement.version));
        let received = now.at.checked_sub(age).unwrap_or(now.at);
        view.insert(node, KnownNode::new(Arc::new(announcement), received, via, clock_ahead));
        drop(view);
        self.changes.send_replace(());
    }

    /// Removes a peer whose last connection closed.
    pub fn forget(&self, node: NodeId) {
        self.view().remove(node);
        self.changes.send_replace(());
    }

    /// Removes expired announcements, except those of connected nodes.
    pub fn sweep(&self, connected: impl Fn(NodeId) -> bool) {
        self.sweep_at(Instant::now(), connected);
    }

    fn sweep_at(&self, now: Instant, connected: impl Fn(NodeId) -> bool) {
        let mut view = self.view();
        let over =
            |node: &NodeId, known: &KnownNode| now.duration_since(known.received) > LIFETIME && !connected(*node);
        let ended: Vec<NodeId> =
            view.known.iter().filter(|(node, known)| over(node, known)).map(|(node, _)| *node).collect();
        if !ended.is_empty() {
            ended.into_iter().for_each(|node| view.remove(node));
            drop(view);
            self.changes.send_replace(());
        }
    }

    /// Notified after each change of the registry.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The current state. Later writes do not change it.
    pub fn snapshot(&self) -> Arc<KnownNodes> {
        self.view().known.clone()
    }

    /// What a peer announces to hold of a model.
    pub fn holding(known: &KnownNodes, node: NodeId, model: ModelId) -> Option<&Holding> {
        known.get(&node)?.holding(model)
    }

    /// Resolves a text by names and ids that peers announce. Names are untrusted hints.
    pub fn find(known: &KnownNodes, text: &str) -> NameResolution {
        let holdings = known.values().flat_map(|announcement| &announcement.holdings);
        resolve_name(text, holdings.map(|held| NamedModel { id: held.model, names: &held.names, alias_count: 0 }))
    }

    /// The announced name by which a text matches a model.
    pub fn matched_name(known: &KnownNodes, text: &str, model: ModelId) -> Option<String> {
        let holdings = known.values().flat_map(|announcement| &announcement.holdings);
        let mut of_it = holdings.filter(|held| held.model == model);
        of_it.find_map(|held| {
            matched_name(text, &NamedModel { id: model, names: &held.names, alias_count: 0 }).map(str::to_owned)
        })
    }

    /// Announced models, once per holder.
    pub fn models(known: &KnownNodes) -> impl Iterator<Item = ModelId> {
        known.values().flat_map(|announcement| &announcement.holdings).map(|held| held.model)
    }

    /// Announced names.
    pub fn names(known: &KnownNodes) -> impl Iterator<Item = &str> {
        let holdings = known.values().flat_map(|announcement| &announcement.holdings);
        holdings.flat_map(|held| held.names.iter().map(String::as_str))
    }
}

impl View {
    fn warn_of_clock(&mut self, node: NodeId, announced: &KnownNode) {
        let Some(warning) = announced.clock_ahead_s().and_then(|ahead| clock_warning(node, ahead)) else { return };
        if self.warned.is_none_or(|warned| announced.received.duration_since(warned) >= WARN_EVERY) {
            self.warned = Some(announced.received);
            tracing::warn!("{warning}: only nodes connected to it accept its announcements");
        }
    }

    fn insert(&mut self, node: NodeId, announced: KnownNode) {
        self.remove(node);
        if let Some(via) = announced.via
            && relayed_by(&self.known, via).count() >= MAX_RELAYED
            && let Some(oldest) = oldest(relayed_by(&self.known, via))
        {
            self.remove(oldest);
        }
        while self.known.len() >= MAX_NODES {
            let Some(victim) = victim(&self.known, |_| 1) else { break };
            self.remove(victim);
        }
        while self.bytes + announced.bytes > MAX_BYTES {
            // Connected nodes are at most 512 and stay, however long the announcements of others are.
            let Some(victim) = victim(&self.known, |known| known.bytes) else { break };
            if self.known.get(&victim).is_some_and(KnownNode::greeted) {
                break;
            }
            self.remove(victim);
        }
        self.bytes += announced.bytes;
        Arc::make_mut(&mut self.known).insert(node, announced);
    }

    fn remove(&mut self, node: NodeId) {
        if self.known.contains_key(&node)
            && let Some(removed) = Arc::make_mut(&mut self.known).remove(&node)
        {
            self.bytes -= removed.bytes;
        }
    }
}

/// Candidates that this peer relayed.
fn relayed_by(view: &KnownNodes, via: NodeId) -> impl Iterator<Item = (&NodeId, &KnownNode)> {
    view.iter().filter(move |(_, known)| known.via == Some(via))
}

fn oldest<'a>(known: impl Iterator<Item = (&'a NodeId, &'a KnownNode)>) -> Option<NodeId> {
    known.min_by_key(|(_, known)| known.received).map(|(node, _)| *node)
}

/// The node to evict: the oldest candidate of the peer that relayed most, by this weight. A peer that invents nodes thus
/// evicts its own; a greeted node is evicted only if there are no candidates.
fn victim(known: &KnownNodes, weight: impl Fn(&KnownNode) -> usize) -> Option<NodeId> {
    let mut relayed: HashMap<Option<NodeId>, usize> = HashMap::new();
    known.values().for_each(|known| *relayed.entry(known.via).or_default() += weight(known));
    let most = relayed.into_iter().max_by_key(|(via, weight)| (via.is_some(), *weight))?.0;
    oldest(known.iter().filter(|(_, known)| known.via == most))
}

/// Union of layer ranges, merged.
pub(crate) fn union(ranges: impl Iterator<Item = LayerRange>) -> Vec<LayerRange> {
    /// No model has more layers. Bounds the work that a peer's range can cause.
    const MAX_LAYER: u32 = 4096;
    let layers = ranges.flat_map(|range| range.start.min(MAX_LAYER)..range.end.min(MAX_LAYER));
    crate::base::merge_ranges(layers.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    /// A peer that relays gossip.
    const VIA: NodeId = NodeId([7; 32]);

    fn announcement(version: u64, name: &str) -> Announcement {
        let holding = Holding {
            model: ModelId([9; 32]),
            names: vec![name.to_owned()],
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

    fn numbered(index: u32) -> NodeId {
        let mut id = [0u8; 32];
        id[..4].copy_from_slice(&index.to_le_bytes());
        NodeId(id)
    }

    fn now() -> ClockReading {
        ClockReading { at: Instant::now(), millis: 9 * HOUR }
    }

    fn named(registry: &ModelRegistry, name: &str) -> usize {
        usize::from(ModelRegistry::find(&registry.snapshot(), name) != NameResolution::Unknown)
    }

    #[test]
    fn changes_are_notified_and_known_announcements_are_not() {
        let (registry, node, now) = (ModelRegistry::new(), NodeId([1; 32]), now());
        let mut changes = registry.changes();
        let mut changed = || std::mem::replace(&mut changes, registry.changes()).has_changed().unwrap();
        registry.on_gossip_at(node, announcement(now.millis, "new"), VIA, now);
        assert!(changed());
        registry.on_gossip_at(node, announcement(now.millis, "the same"), VIA, now);
        registry.sweep_at(now.at, |_| true);
        assert!(!changed());
        registry.on_hello_at(node, announcement(now.millis, "itself"), now);
        assert!(changed());
        registry.sweep_at(now.at + LIFETIME * 2, |_| false);
        assert!(changed());
        registry.on_hello_at(node, announcement(now.millis, "again"), now);
        assert!(changed());
        registry.forget(node);
        assert!(changed());
    }

    #[test]
    fn the_newest_announcement_counts() {
        let (registry, node, now) = (ModelRegistry::new(), NodeId([1; 32]), now());
        registry.on_gossip_at(node, announcement(now.millis + 1, "new"), VIA, now);
        registry.on_gossip_at(node, announcement(now.millis, "old"), VIA, now);
        assert_eq!((named(&registry, "new"), named(&registry, "old")), (1, 0));
        registry.forget(node);
        assert_eq!(named(&registry, "new"), 0);
    }

    #[test]
    fn invisible_characters_of_announced_names_are_removed() {
        let (registry, now) = (ModelRegistry::new(), now());
        registry.on_hello_at(NodeId([1; 32]), announcement(now.millis, "ad\u{200b}min"), now);
        registry.on_gossip_at(NodeId([2; 32]), announcement(now.millis, "\u{202e}nimda"), VIA, now);
        registry.on_gossip_at(NodeId([3; 32]), announcement(now.millis, "\u{2066}"), VIA, now);
        let known = registry.snapshot();
        let mut names: Vec<&str> = ModelRegistry::names(&known).collect();
        names.sort_unstable();
        assert_eq!(names, ["admin", "nimda"]);
    }

    #[test]
    fn a_hello_after_a_clock_was_set_back_counts_and_old_gossip_does_not() {
        let (registry, node, now) = (ModelRegistry::new(), NodeId([1; 32]), now());
        let named = |name| named(&registry, name);
        registry.on_hello_at(node, announcement(9 * HOUR, "before"), now);
        let after = 9 * HOUR - 2 * CLOCK_TOLERANCE_MS;
        registry.on_gossip_at(node, announcement(after, "after"), VIA, now);
        assert_eq!((named("before"), named("after")), (1, 0), "anyone may replay gossip");
        registry.on_hello_at(node, announcement(after, "after"), now);
        assert_eq!((named("before"), named("after")), (0, 1));
        registry.on_hello_at(node, announcement(after - 1, "late"), now);
        assert_eq!((named("after"), named("late")), (1, 0), "the next announcement overtook this answer");
    }

    #[test]
    fn gossip_about_a_greeted_node_is_judged_by_its_own_clock() {
        for there in [5 * HOUR, 13 * HOUR] {
            let (registry, now) = (ModelRegistry::new(), now());
            let [met, gossips, stranger] = [1, 2, 3].map(|name| NodeId([name; 32]));
            let named = |name| named(&registry, name);
            registry.on_hello_at(met, announcement(there, "hello"), now);
            assert_eq!(registry.snapshot()[&met].clock_ahead_s(), Some((there as i64 - 9 * HOUR as i64) / 1000));
            let later =
                ClockReading { at: now.at + LIFETIME / 2, millis: now.millis + LIFETIME.as_millis() as u64 / 2 };
            registry.on_gossip_at(met, announcement(there + 1, "passed on"), VIA, later);
            assert_eq!((named("hello"), named("passed on")), (0, 1), "recent by the node's own clock");
            registry.on_gossip_at(met, announcement(there + 3 * HOUR, "of the future"), VIA, later);
            assert_eq!(named("of the future"), 0);
            registry.on_gossip_at(met, announcement(later.millis, "set right"), VIA, later);
            // Its version is lower than the known if the clock was ahead; the next hello counts.
            assert_eq!(named("set right"), usize::from(there < later.millis));
            registry.on_gossip_at(gossips, announcement(there, "itself"), gossips, now);
            registry.on_gossip_at(stranger, announcement(there, "stranger"), VIA, now);
            assert_eq!((named("itself"), named("stranger")), (1, 0));
            assert!(!registry.snapshot()[&gossips].greeted(), "gossip is no hello");
            registry.on_gossip_at(gossips, announcement(9 * HOUR, "clock set right"), gossips, now);
            assert_eq!(named("clock set right"), 1);
        }
    }

    #[test]
    fn a_clock_off_by_more_than_the_lifetime_causes_a_warning() {
        let (node, apart) = (NodeId([0xab; 32]), LIFETIME.as_secs() as i64);
        assert_eq!((clock_warning(node, apart), clock_warning(node, -apart)), (None, None));
        let warning = |ahead| clock_warning(node, ahead).unwrap();
        assert_eq!(warning(7_200), "the clock of peer abababab is 120 minutes ahead of this machine's");
        assert_eq!(warning(-7_200), "the clock of peer abababab is 120 minutes behind this machine's");
        assert!(clock_warning(node, i64::MIN).is_some());
    }

    #[test]
    fn a_gossiped_node_is_a_candidate_until_its_hello() {
        let (registry, node, now) = (ModelRegistry::new(), NodeId([1; 32]), now());
        let state = || registry.snapshot().get(&node).map(|known| (known.greeted(), known.via()));
        registry.on_gossip_at(node, announcement(now.millis, "model"), VIA, now);
        assert_eq!(state(), Some((false, Some(VIA))));
        registry.on_hello_at(node, announcement(now.millis, "model"), now);
        assert_eq!(state(), Some((true, None)));
        registry.on_gossip_at(node, announcement(now.millis + 1, "model"), VIA, now);
        assert_eq!(state(), Some((true, None)));
    }

    #[test]
    fn invented_announcements_evict_no_connected_node() {
        let (registry, honest, now) = (ModelRegistry::new(), NodeId([0xff; 32]), now());
        registry.on_hello_at(honest, announcement(1, "honest"), now);
        for index in 0..MAX_RELAYED as u32 + 100 {
            let later = ClockReading { at: now.at + Duration::from_millis(index.into()), ..now };
            registry.on_gossip_at(numbered(index), announcement(now.millis + HOUR / 10, "fake"), VIA, later);
            registry.on_gossip_at(numbered(u32::MAX - index), announcement(u64::MAX, "never"), VIA, later);
        }
        assert_eq!(registry.snapshot().len(), MAX_RELAYED + 1, "a peer has a share");
        for index in 0..3 * MAX_RELAYED as u32 + 100 {
            let via = NodeId([10 + (index % 4) as u8; 32]);
            registry.on_gossip_at(numbered(index + MAX_NODES as u32 * 2), announcement(now.millis, "fake"), via, now);
        }
        assert_eq!(registry.snapshot().len(), MAX_NODES);
        assert_eq!((named(&registry, "honest"), named(&registry, "never")), (1, 0));
        let second = ClockReading { at: now.at + Duration::from_secs(60), ..now };
        registry.on_gossip_at(NodeId([0xfe; 32]), announcement(now.millis, "another"), NodeId([8; 32]), second);
        assert_eq!(named(&registry, "another"), 1, "a full registry still takes honest gossip");
    }

    #[test]
    fn a_flooding_peer_evicts_only_its_own_candidates() {
        let (registry, honest, now) = (ModelRegistry::new(), NodeId([0xff; 32]), now());
        registry.on_gossip_at(honest, announcement(now.millis, "honest"), NodeId([8; 32]), now);
        for index in 0..MAX_NODES as u32 + 50 {
            let later = ClockReading { at: now.at + Duration::from_millis(1), ..now };
            registry.on_gossip_at(numbered(index), announcement(now.millis, "fake"), VIA, later);
        }
        assert_eq!((registry.snapshot().len(), named(&registry, "honest")), (MAX_RELAYED + 1, 1));
    }

    #[test]
    fn long_announcements_evict_candidates_of_the_same_peer() {
        let (registry, honest, now) = (ModelRegistry::new(), NodeId([0xff; 32]), now());
        registry.on_gossip_at(honest, announcement(now.millis, "honest"), NodeId([8; 32]), now);
        let mut long = announcement(now.millis, "fake");
        long.holdings[0].layers = vec![LayerRange::new(0, 2); MAX_BYTES / 16 / size_of::<LayerRange>()];
        for index in 0..40 {
            let later = ClockReading { at: now.at + Duration::from_millis(1), ..now };
            registry.on_gossip_at(numbered(index), long.clone(), VIA, later);
        }
        let known = registry.snapshot();
        let bytes: usize = known.values().map(|known| known.announcement.memory()).sum();
        assert!(bytes <= MAX_BYTES && known.len() > 10, "{bytes}");
        assert!(named(&registry, "honest") == 1 && registry.view().bytes == bytes);
        known.keys().for_each(|node| registry.forget(*node));
        assert_eq!(registry.view().bytes, 0);
    }

    #[test]
    fn connected_nodes_stay_beyond_the_memory_limit() {
        let (registry, honest, now) = (ModelRegistry::new(), NodeId([0xff; 32]), now());
        registry.on_hello_at(honest, announcement(now.millis, "honest"), now);
        let mut long = announcement(now.millis, "fake");
        long.holdings[0].layers = vec![LayerRange::new(0, 2); MAX_BYTES / 16 / size_of::<LayerRange>()];
        let later = ClockReading { at: now.at + Duration::from_millis(1), ..now };
        (0..20).for_each(|index| registry.on_hello_at(numbered(index), long.clone(), later));
        registry.on_gossip_at(numbered(20), long, VIA, later);
        assert_eq!((named(&registry, "honest"), registry.snapshot().len()), (1, 22));
    }

    #[test]
    fn an_announcement_expires_and_its_replay_is_ignored() {
        let (registry, [gone, here], begun) = (ModelRegistry::new(), [1, 2].map(|name| NodeId([name; 32])), now());
        registry.on_gossip_at(gone, announcement(begun.millis, "gone"), VIA, begun);
        registry.on_hello_at(here, announcement(begun.millis, "here"), begun);
        let connected = |node| node == here;
        registry.sweep_at(begun.at + LIFETIME, connected);
        assert_eq!((named(&registry, "gone"), named(&registry, "here")), (1, 1));
        let passed = LIFETIME + Duration::from_secs(1);
        let later = ClockReading { at: begun.at + passed, millis: begun.millis + passed.as_millis() as u64 };
        registry.sweep_at(later.at, connected);
        assert_eq!((named(&registry, "gone"), named(&registry, "here")), (0, 1));
        registry.on_gossip_at(gone, announcement(begun.millis, "gone"), VIA, later);
        assert_eq!(named(&registry, "gone"), 0, "anyone may replay it");
        registry.on_gossip_at(gone, announcement(later.millis, "gone"), VIA, later);
        assert_eq!(named(&registry, "gone"), 1);
    }

    #[test]
    fn a_write_copies_only_while_a_reader_holds_a_snapshot() {
        let (registry, now) = (ModelRegistry::new(), now());
        let on_gossip = |index| registry.on_gossip_at(numbered(index), announcement(now.millis, "model"), VIA, now);
        on_gossip(0);
        let before = Arc::as_ptr(&registry.snapshot());
        on_gossip(1);
        assert_eq!(Arc::as_ptr(&registry.snapshot()), before);
        let read = registry.snapshot();
        on_gossip(2);
        assert_eq!((read.len(), registry.snapshot().len()), (2, 3));
        let shared = |view: &KnownNodes| Arc::as_ptr(&view[&numbered(0)].announcement);
        assert_eq!(shared(&read), shared(&registry.snapshot()), "announcements are shared");
    }

    #[test]
    fn a_peer_cannot_make_the_union_long() {
        let merged = union([LayerRange::new(0, u32::MAX)].into_iter());
        assert!(merged[0].len() <= 4096);
    }
}
