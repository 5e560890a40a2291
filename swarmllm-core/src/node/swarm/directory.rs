//! Who holds what: the newest announcement of each node, who it came from, and what follows from it.
//!
//! A node that has said hello over a connection is *greeted*. What came by gossip alone is a candidate: its author may be made
//! up, so that it is asked itself before a plan counts on it. Announcements that nobody repeats end after [`LIFETIME`].

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::base::names::{Meaning, Named, matched, meaning};
use crate::base::{LayerRange, ModelId, NodeId};
use crate::wire::announce::{Announcement, Holding};

/// Nodes whose announcements are kept. Connections are far fewer (512), so that each connected node has its place.
const MAX_NODES: usize = 4096;

/// Those that one peer has passed on and that have not been greeted: a quarter. A swarm of more is known by several peers, and
/// through the swarm's table. Of who floods all but these push out each other, before the registry is full.
const MAX_PASSED_ON: usize = MAX_NODES / 4;

/// Bytes that all announcements may take: `4096 * 16 KiB`. One of a few models takes about 1 KiB. The longest that a stranger can
/// make takes some 200 KiB, since a range of layers takes two to four bytes on the wire and eight in memory; 4,096 of those
/// would take 800 MiB. Those of connected nodes count, and are kept beyond it: 512 of them take 100 MiB at most.
const MAX_BYTES: usize = 64 << 20;

/// An announcement is repeated this often.
pub(crate) const REPEAT: Duration = Duration::from_secs(5 * 60);

/// An announcement that came by gossip is forgotten this long after it was made: three repetitions may be lost. Clocks of two
/// nodes may differ by as much. What a node with a worse clock says itself over a connection counts all the same, and from then
/// on what others pass on of it is judged by its own clock.
const LIFETIME: Duration = Duration::from_secs(16 * 60);

/// The version of an announcement is the time at which it was made, in milliseconds since 1970. What a peer itself says now
/// and is older than the known by this much was made after its clock had been put back.
pub(crate) const CLOCK_PUT_BACK: u64 = 60_000;

/// The log is told of a wrong clock once in this time at most: peers can come and go as often as they like.
const WARN_EVERY: Duration = Duration::from_secs(60);

/// What is known of a node.
#[derive(Debug, Clone)]
pub(crate) struct Announced {
    announcement: Arc<Announcement>,
    /// Its bytes in memory.
    bytes: usize,
    heard: Instant,
    /// The peer that passed it on; nothing where the node itself said it.
    via: Option<NodeId>,
    /// Milliseconds by which the node's clock was ahead of this machine's when it said hello; 0 where it has not.
    clock_ahead: i64,
}

impl Announced {
    fn new(announcement: Arc<Announcement>, heard: Instant, via: Option<NodeId>, clock_ahead: i64) -> Self {
        Self { bytes: announcement.memory(), announcement, heard, via, clock_ahead }
    }

    /// Seconds by which the node's clock is ahead of this machine's, where the node has said hello.
    pub fn clock_ahead_s(&self) -> Option<i64> {
        self.greeted().then_some(self.clock_ahead / 1000)
    }

    /// Whether it was made after this one, which the node itself says now. One that is older by far was made after the node's
    /// clock had been put back.
    fn overtakes(&self, announcement: &Announcement) -> bool {
        let version = announcement.version;
        (version..=version.saturating_add(CLOCK_PUT_BACK)).contains(&self.version)
    }

    /// Whether the node itself has said it, over a connection.
    pub fn greeted(&self) -> bool {
        self.via.is_none()
    }

    /// What the node says that it holds of a model.
    pub fn holding(&self, model: ModelId) -> Option<&Holding> {
        self.holdings.iter().find(|holding| holding.model == model)
    }

    /// The peer that passed it on, where the node itself has said nothing yet.
    pub fn via(&self) -> Option<NodeId> {
        self.via
    }
}

impl Deref for Announced {
    type Target = Announcement;

    fn deref(&self) -> &Announcement {
        &self.announcement
    }
}

/// What is known of each node.
pub(crate) type Known = HashMap<NodeId, Announced>;

/// When something happens: by this process's clock, and by the machine's.
#[derive(Debug, Clone, Copy)]
struct Now {
    at: Instant,
    millis: u64,
}

impl Now {
    fn read() -> Self {
        Self { at: Instant::now(), millis: millis() }
    }

    /// Milliseconds by which the clock of a node that says this now is ahead of this machine's.
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

/// A sentence about a node whose clock differs so much that its announcements reach only nodes that it is connected to.
pub(crate) fn clock_warning(node: NodeId, ahead_s: i64) -> Option<String> {
    let (apart, direction) = (ahead_s.unsigned_abs(), if ahead_s > 0 { "ahead of" } else { "behind" });
    (apart > LIFETIME.as_secs())
        .then(|| format!("the clock of peer {} is {} minutes {direction} this machine's", node.short(), apart / 60))
}

/// The view: written by messages, copied only where a reader still looks at the version before.
#[derive(Default)]
pub(crate) struct Registry {
    view: Mutex<View>,
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct View {
    known: Arc<Known>,
    /// Bytes of all announcements.
    bytes: usize,
    /// When the log was last told of a clock.
    warned: Option<Instant>,
}

impl Registry {
    pub fn new() -> Self {
        Self::default()
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what a peer itself has just said, and was checked. What it said before its clock was put back counts no more.
    pub fn hear(&self, node: NodeId, announcement: Announcement) {
        self.hear_at(node, announcement, Now::read());
    }

    fn hear_at(&self, node: NodeId, mut announcement: Announcement, now: Now) {
        announcement.clean();
        let mut view = self.view();
        let (known, clock_ahead) = (view.known.get(&node), now.clock_ahead(&announcement));
        let new = !known.is_some_and(Announced::greeted);
        let (announcement, clock_ahead) = match known {
            Some(known) if known.overtakes(&announcement) => (known.announcement.clone(), known.clock_ahead),
            _ => (Arc::new(announcement), clock_ahead),
        };
        let announced = Announced::new(announcement, now.at, None, clock_ahead);
        if new {
            view.warn_of_clock(node, &announced);
        }
        view.insert(node, announced);
        drop(view);
        self.changes.send_replace(());
    }

    /// Takes an announcement that `via` passed on and that was checked. Ignores one that is not newer than the known, or not
    /// of the last minutes: anybody may repeat what a node said long ago. The clocks that count are this
    /// machine's and, where the node has said hello, the node's own. What a node gossips over its own connection is taken whatever the clocks say.
    pub fn learn(&self, node: NodeId, announcement: Announcement, via: NodeId) {
        self.learn_at(node, announcement, via, Now::read());
    }

    fn learn_at(&self, node: NodeId, mut announcement: Announcement, via: NodeId, now: Now) {
        announcement.clean();
        let mut view = self.view();
        let (known, itself) = (view.known.get(&node), via == node);
        let clock_ahead = match known {
            _ if itself => now.clock_ahead(&announcement),
            known => known.map_or(0, |known| known.clock_ahead),
        };
        let fits = |clock: u64| clock.abs_diff(announcement.version) <= LIFETIME.as_millis() as u64;
        let (there, clock_ahead) = match now.millis.saturating_add_signed(clock_ahead) {
            // Since it said hello its clock was set right.
            there if !fits(there) && fits(now.millis) => (now.millis, 0),
            there => (there, clock_ahead),
        };
        let fresh = itself || fits(there);
        let older = |known: &Announced| match itself {
            true => known.overtakes(&announcement),
            false => known.version >= announcement.version,
        };
        if !fresh || known.is_some_and(older) {
            return;
        }
        let via = if known.is_some_and(Announced::greeted) { None } else { Some(via) };
        let age = Duration::from_millis(there.saturating_sub(announcement.version));
        let heard = now.at.checked_sub(age).unwrap_or(now.at);
        view.insert(node, Announced::new(Arc::new(announcement), heard, via, clock_ahead));
        drop(view);
        self.changes.send_replace(());
    }

    /// Forgets a peer whose last connection is gone.
    pub fn forget(&self, node: NodeId) {
        self.view().remove(node);
        self.changes.send_replace(());
    }

    /// Forgets announcements that have ended, but for those of connected nodes.
    pub fn sweep(&self, connected: impl Fn(NodeId) -> bool) {
        self.sweep_at(Instant::now(), connected);
    }

    fn sweep_at(&self, now: Instant, connected: impl Fn(NodeId) -> bool) {
        let mut view = self.view();
        let over = |node: &NodeId, known: &Announced| now.duration_since(known.heard) > LIFETIME && !connected(*node);
        let ended: Vec<NodeId> =
            view.known.iter().filter(|(node, known)| over(node, known)).map(|(node, _)| *node).collect();
        if !ended.is_empty() {
            ended.into_iter().for_each(|node| view.remove(node));
            drop(view);
            self.changes.send_replace(());
        }
    }

    /// Changes after what is known has.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The view as it stands.
    pub fn snapshot(&self) -> Arc<Known> {
        self.view().known.clone()
    }

    /// What a peer says that it holds of a model.
    pub fn holding(known: &Known, node: NodeId, model: ModelId) -> Option<&Holding> {
        known.get(&node)?.holding(model)
    }

    /// Which model a text means by what peers say. Their names are hints.
    pub fn find(known: &Known, text: &str) -> Meaning {
        let holdings = known.values().flat_map(|announcement| &announcement.holdings);
        meaning(text, holdings.map(|held| Named { id: held.model, names: &held.names, given: 0 }))
    }

    /// The name at some peer by which a text means a model.
    pub fn matched(known: &Known, text: &str, model: ModelId) -> Option<String> {
        let holdings = known.values().flat_map(|announcement| &announcement.holdings);
        let mut of_it = holdings.filter(|held| held.model == model);
        of_it.find_map(|held| matched(text, &Named { id: model, names: &held.names, given: 0 }).map(str::to_owned))
    }

    /// The models that peers hold, once for each peer.
    pub fn models(known: &Known) -> impl Iterator<Item = ModelId> {
        known.values().flat_map(|announcement| &announcement.holdings).map(|held| held.model)
    }

    /// The names that peers use.
    pub fn names(known: &Known) -> impl Iterator<Item = &str> {
        let holdings = known.values().flat_map(|announcement| &announcement.holdings);
        holdings.flat_map(|held| held.names.iter().map(String::as_str))
    }
}

impl View {
    fn warn_of_clock(&mut self, node: NodeId, announced: &Announced) {
        let Some(warning) = announced.clock_ahead_s().and_then(|ahead| clock_warning(node, ahead)) else { return };
        if self.warned.is_none_or(|warned| announced.heard.duration_since(warned) >= WARN_EVERY) {
            self.warned = Some(announced.heard);
            tracing::warn!("{warning}: nodes that are not connected to it take no announcement of it");
        }
    }

    fn insert(&mut self, node: NodeId, announced: Announced) {
        self.remove(node);
        if let Some(via) = announced.via
            && passed_on(&self.known, via).count() >= MAX_PASSED_ON
            && let Some(first) = heard_first(passed_on(&self.known, via))
        {
            self.remove(first);
        }
        while self.known.len() >= MAX_NODES {
            let Some(least) = least_missed(&self.known, |_| 1) else { break };
            self.remove(least);
        }
        while self.bytes + announced.bytes > MAX_BYTES {
            // Connected nodes are few (512) and have their place, however long the others' announcements are.
            let Some(least) = least_missed(&self.known, |known| known.bytes) else { break };
            if self.known.get(&least).is_some_and(Announced::greeted) {
                break;
            }
            self.remove(least);
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

/// What this peer has passed on.
fn passed_on(view: &Known, via: NodeId) -> impl Iterator<Item = (&NodeId, &Announced)> {
    view.iter().filter(move |(_, known)| known.via == Some(via))
}

fn heard_first<'a>(known: impl Iterator<Item = (&'a NodeId, &'a Announced)>) -> Option<NodeId> {
    known.min_by_key(|(_, known)| known.heard).map(|(node, _)| *node)
}

/// The node that makes room for another: of the peer that has passed on most by this weight, the one heard longest ago. So a
/// peer that makes up nodes pushes out its own; a greeted node goes only where there are no others.
fn least_missed(known: &Known, weight: impl Fn(&Announced) -> usize) -> Option<NodeId> {
    let mut passed_on: HashMap<Option<NodeId>, usize> = HashMap::new();
    known.values().for_each(|known| *passed_on.entry(known.via).or_default() += weight(known));
    let most = passed_on.into_iter().max_by_key(|(via, weight)| (via.is_some(), *weight))?.0;
    heard_first(known.iter().filter(|(_, known)| known.via == most))
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

    const HOUR: u64 = 3_600_000;
    /// A peer that passes gossip on.
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

    fn now() -> Now {
        Now { at: Instant::now(), millis: 9 * HOUR }
    }

    fn named(registry: &Registry, name: &str) -> usize {
        usize::from(Registry::find(&registry.snapshot(), name) != Meaning::Unknown)
    }

    #[test]
    fn who_waits_for_changes_hears_of_each_and_not_of_what_is_known() {
        let (registry, node, now) = (Registry::new(), NodeId([1; 32]), now());
        let mut changes = registry.changes();
        let mut changed = || std::mem::replace(&mut changes, registry.changes()).has_changed().unwrap();
        registry.learn_at(node, announcement(now.millis, "new"), VIA, now);
        assert!(changed());
        registry.learn_at(node, announcement(now.millis, "the same"), VIA, now);
        registry.sweep_at(now.at, |_| true);
        assert!(!changed());
        registry.hear_at(node, announcement(now.millis, "itself"), now);
        assert!(changed());
        registry.sweep_at(now.at + LIFETIME * 2, |_| false);
        assert!(changed());
        registry.hear_at(node, announcement(now.millis, "again"), now);
        assert!(changed());
        registry.forget(node);
        assert!(changed());
    }

    #[test]
    fn the_newest_announcement_counts() {
        let (registry, node, now) = (Registry::new(), NodeId([1; 32]), now());
        registry.learn_at(node, announcement(now.millis + 1, "new"), VIA, now);
        registry.learn_at(node, announcement(now.millis, "old"), VIA, now);
        assert_eq!((named(&registry, "new"), named(&registry, "old")), (1, 0));
        registry.forget(node);
        assert_eq!(named(&registry, "new"), 0);
    }

    #[test]
    fn what_nobody_sees_of_a_peers_names_is_gone_however_the_announcement_came() {
        let (registry, now) = (Registry::new(), now());
        registry.hear_at(NodeId([1; 32]), announcement(now.millis, "ad\u{200b}min"), now);
        registry.learn_at(NodeId([2; 32]), announcement(now.millis, "\u{202e}nimda"), VIA, now);
        registry.learn_at(NodeId([3; 32]), announcement(now.millis, "\u{2066}"), VIA, now);
        let known = registry.snapshot();
        let mut names: Vec<&str> = Registry::names(&known).collect();
        names.sort_unstable();
        assert_eq!(names, ["admin", "nimda"]);
    }

    #[test]
    fn a_node_whose_clock_was_put_back_is_heard_again_though_older_gossip_is_not() {
        let (registry, node, now) = (Registry::new(), NodeId([1; 32]), now());
        let named = |name| named(&registry, name);
        registry.hear_at(node, announcement(9 * HOUR, "before"), now);
        let after = 9 * HOUR - 2 * CLOCK_PUT_BACK;
        registry.learn_at(node, announcement(after, "after"), VIA, now);
        assert_eq!((named("before"), named("after")), (1, 0), "gossip may be repeated by anybody");
        registry.hear_at(node, announcement(after, "after"), now);
        assert_eq!((named("before"), named("after")), (0, 1));
        registry.hear_at(node, announcement(after - 1, "late"), now);
        assert_eq!((named("after"), named("late")), (1, 0), "an answer that was overtaken by the next announcement");
    }

    #[test]
    fn a_connected_node_is_heard_whatever_its_clock_says_and_what_others_pass_on_is_judged_by_that_clock() {
        for there in [5 * HOUR, 13 * HOUR] {
            let (registry, now) = (Registry::new(), now());
            let [met, gossips, stranger] = [1, 2, 3].map(|name| NodeId([name; 32]));
            let named = |name| named(&registry, name);
            registry.hear_at(met, announcement(there, "hello"), now);
            assert_eq!(registry.snapshot()[&met].clock_ahead_s(), Some((there as i64 - 9 * HOUR as i64) / 1000));
            let later = Now { at: now.at + LIFETIME / 2, millis: now.millis + LIFETIME.as_millis() as u64 / 2 };
            registry.learn_at(met, announcement(there + 1, "passed on"), VIA, later);
            assert_eq!((named("hello"), named("passed on")), (0, 1), "by its own clock it is of the last minutes");
            registry.learn_at(met, announcement(there + 3 * HOUR, "of the future"), VIA, later);
            assert_eq!(named("of the future"), 0);
            registry.learn_at(met, announcement(later.millis, "set right"), VIA, later);
            // Its version is less than the known where the clock was ahead; the next hello is heard.
            assert_eq!(named("set right"), usize::from(there < later.millis));
            registry.learn_at(gossips, announcement(there, "itself"), gossips, now);
            registry.learn_at(stranger, announcement(there, "stranger"), VIA, now);
            assert_eq!((named("itself"), named("stranger")), (1, 0));
            assert!(!registry.snapshot()[&gossips].greeted(), "gossip is no hello");
            registry.learn_at(gossips, announcement(9 * HOUR, "clock set right"), gossips, now);
            assert_eq!(named("clock set right"), 1);
        }
    }

    #[test]
    fn a_clock_that_differs_by_more_than_an_announcement_lives_is_warned_of() {
        let (node, apart) = (NodeId([0xab; 32]), LIFETIME.as_secs() as i64);
        assert_eq!((clock_warning(node, apart), clock_warning(node, -apart)), (None, None));
        let warning = |ahead| clock_warning(node, ahead).unwrap();
        assert_eq!(warning(7_200), "the clock of peer abababab is 120 minutes ahead of this machine's");
        assert_eq!(warning(-7_200), "the clock of peer abababab is 120 minutes behind this machine's");
        assert!(clock_warning(node, i64::MIN).is_some());
    }

    #[test]
    fn gossip_is_a_candidate_until_its_author_says_hello() {
        let (registry, node, now) = (Registry::new(), NodeId([1; 32]), now());
        let state = || registry.snapshot().get(&node).map(|known| (known.greeted(), known.via()));
        registry.learn_at(node, announcement(now.millis, "model"), VIA, now);
        assert_eq!(state(), Some((false, Some(VIA))));
        registry.hear_at(node, announcement(now.millis, "model"), now);
        assert_eq!(state(), Some((true, None)));
        registry.learn_at(node, announcement(now.millis + 1, "model"), VIA, now);
        assert_eq!(state(), Some((true, None)));
    }

    #[test]
    fn made_up_announcements_push_out_no_connected_node_whatever_their_version() {
        let (registry, honest, now) = (Registry::new(), NodeId([0xff; 32]), now());
        registry.hear_at(honest, announcement(1, "honest"), now);
        for index in 0..MAX_PASSED_ON as u32 + 100 {
            let later = Now { at: now.at + Duration::from_millis(index.into()), ..now };
            registry.learn_at(numbered(index), announcement(now.millis + HOUR / 10, "fake"), VIA, later);
            registry.learn_at(numbered(u32::MAX - index), announcement(u64::MAX, "never"), VIA, later);
        }
        assert_eq!(registry.snapshot().len(), MAX_PASSED_ON + 1, "a peer has a share");
        for index in 0..3 * MAX_PASSED_ON as u32 + 100 {
            let via = NodeId([10 + (index % 4) as u8; 32]);
            registry.learn_at(numbered(index + MAX_NODES as u32 * 2), announcement(now.millis, "fake"), via, now);
        }
        assert_eq!(registry.snapshot().len(), MAX_NODES);
        assert_eq!((named(&registry, "honest"), named(&registry, "never")), (1, 0));
        let second = Now { at: now.at + Duration::from_secs(60), ..now };
        registry.learn_at(NodeId([0xfe; 32]), announcement(now.millis, "another"), NodeId([8; 32]), second);
        assert_eq!(named(&registry, "another"), 1, "a full registry still takes honest gossip");
    }

    #[test]
    fn a_peer_that_floods_pushes_out_what_it_passed_on_itself() {
        let (registry, honest, now) = (Registry::new(), NodeId([0xff; 32]), now());
        registry.learn_at(honest, announcement(now.millis, "honest"), NodeId([8; 32]), now);
        for index in 0..MAX_NODES as u32 + 50 {
            let later = Now { at: now.at + Duration::from_millis(1), ..now };
            registry.learn_at(numbered(index), announcement(now.millis, "fake"), VIA, later);
        }
        assert_eq!((registry.snapshot().len(), named(&registry, "honest")), (MAX_PASSED_ON + 1, 1));
    }

    #[test]
    fn long_announcements_are_bounded_in_bytes_and_push_out_what_their_peer_passed_on() {
        let (registry, honest, now) = (Registry::new(), NodeId([0xff; 32]), now());
        registry.learn_at(honest, announcement(now.millis, "honest"), NodeId([8; 32]), now);
        let mut long = announcement(now.millis, "fake");
        long.holdings[0].layers = vec![LayerRange::new(0, 2); MAX_BYTES / 16 / size_of::<LayerRange>()];
        for index in 0..40 {
            let later = Now { at: now.at + Duration::from_millis(1), ..now };
            registry.learn_at(numbered(index), long.clone(), VIA, later);
        }
        let known = registry.snapshot();
        let bytes: usize = known.values().map(|known| known.announcement.memory()).sum();
        assert!(bytes <= MAX_BYTES && known.len() > 10, "{bytes}");
        assert!(named(&registry, "honest") == 1 && registry.view().bytes == bytes);
        known.keys().for_each(|node| registry.forget(*node));
        assert_eq!(registry.view().bytes, 0);
    }

    #[test]
    fn a_connected_node_stays_however_long_the_announcements_of_other_connected_nodes_are() {
        let (registry, honest, now) = (Registry::new(), NodeId([0xff; 32]), now());
        registry.hear_at(honest, announcement(now.millis, "honest"), now);
        let mut long = announcement(now.millis, "fake");
        long.holdings[0].layers = vec![LayerRange::new(0, 2); MAX_BYTES / 16 / size_of::<LayerRange>()];
        let later = Now { at: now.at + Duration::from_millis(1), ..now };
        (0..20).for_each(|index| registry.hear_at(numbered(index), long.clone(), later));
        registry.learn_at(numbered(20), long, VIA, later);
        assert_eq!((named(&registry, "honest"), registry.snapshot().len()), (1, 22));
    }

    #[test]
    fn an_announcement_that_nobody_repeats_ends_and_an_old_one_is_not_taken_again() {
        let (registry, [gone, here], begun) = (Registry::new(), [1, 2].map(|name| NodeId([name; 32])), now());
        registry.learn_at(gone, announcement(begun.millis, "gone"), VIA, begun);
        registry.hear_at(here, announcement(begun.millis, "here"), begun);
        let connected = |node| node == here;
        registry.sweep_at(begun.at + LIFETIME, connected);
        assert_eq!((named(&registry, "gone"), named(&registry, "here")), (1, 1));
        let passed = LIFETIME + Duration::from_secs(1);
        let later = Now { at: begun.at + passed, millis: begun.millis + passed.as_millis() as u64 };
        registry.sweep_at(later.at, connected);
        assert_eq!((named(&registry, "gone"), named(&registry, "here")), (0, 1));
        registry.learn_at(gone, announcement(begun.millis, "gone"), VIA, later);
        assert_eq!(named(&registry, "gone"), 0, "anybody may repeat it");
        registry.learn_at(gone, announcement(later.millis, "gone"), VIA, later);
        assert_eq!(named(&registry, "gone"), 1);
    }

    #[test]
    fn a_message_copies_nothing_where_nobody_looks_and_readers_keep_their_version() {
        let (registry, now) = (Registry::new(), now());
        let learn = |index| registry.learn_at(numbered(index), announcement(now.millis, "model"), VIA, now);
        learn(0);
        let before = Arc::as_ptr(&registry.snapshot());
        learn(1);
        assert_eq!(Arc::as_ptr(&registry.snapshot()), before);
        let read = registry.snapshot();
        learn(2);
        assert_eq!((read.len(), registry.snapshot().len()), (2, 3));
        let shared = |view: &Known| Arc::as_ptr(&view[&numbered(0)].announcement);
        assert_eq!(shared(&read), shared(&registry.snapshot()), "announcements are shared");
    }

    #[test]
    fn a_peer_cannot_make_the_union_long() {
        let merged = union([LayerRange::new(0, u32::MAX)].into_iter());
        assert!(merged[0].len() <= 4096);
    }
}
