//! Who is there: a view for everyone, written by the swarm task alone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};

use super::address::{self, TransportKind};
use super::config::{
    DOUBT_AGAIN, DOUBT_LASTS, MAX_ADDRESSES_PER_PEER, MAX_AGENT_BYTES, MAX_PEERS_REMEMBERED, MAX_PUNCHES,
};
use crate::base::NodeId;

/// Circuits to one peer that are tried at once: a relay with many addresses would be asked for as many.
const MAX_CIRCUITS_TRIED: usize = 2;
/// Addresses kept where a peer was reached.
const MAX_REACHED: usize = 4;

/// What is known of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The peer.
    pub node: NodeId,
    /// Where it was reached or says that it listens, with `/p2p/`; the ones that were reached first.
    pub addresses: Vec<String>,
    /// Whether a connection to it is open.
    pub connected: bool,
    /// Whether it has identified itself as a node of this network.
    pub speaks: bool,
    /// Round-trip time, smoothed over the last pings of the connection in use.
    pub rtt: Option<Duration>,
    /// Transport of the connection in use.
    pub transport: Option<TransportKind>,
    /// What it says that it runs; at most 64 bytes of printable text. Never believed.
    pub agent: Option<String>,
}

/// The view. Clones are the same one; what is returned is a copy, so nothing is held while it is used.
#[derive(Debug, Clone)]
pub struct PeerRegistry {
    peers: Arc<DashMap<NodeId, PeerInfo>>,
}

impl PeerRegistry {
    /// What is known of `node`.
    pub fn lookup(&self, node: NodeId) -> Option<PeerInfo> {
        self.peers.get(&node).map(|info| info.value().clone())
    }

    /// All peers, in the order of their ids.
    pub fn snapshot(&self) -> Vec<PeerInfo> {
        let mut peers: Vec<PeerInfo> = self.peers.iter().map(|info| info.value().clone()).collect();
        peers.sort_unstable_by_key(|info| info.node);
        peers
    }

    /// Whether the connection in use to a peer is a circuit.
    pub(super) fn is_over_circuit(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|info| info.transport == Some(TransportKind::Relay))
    }

    /// Nodes of this network that are connected.
    pub fn connected(&self) -> Vec<NodeId> {
        self.peers.iter().filter(|info| info.connected && info.speaks).map(|info| info.node).collect()
    }
}

/// Connections of two nodes that dial each other at once come up within this time.
const SIMULTANEOUS: Duration = Duration::from_secs(2);

/// One open connection.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub id: ConnectionId,
    pub address: Multiaddr,
    pub dialled: bool,
    pub kind: TransportKind,
    /// One beside another, made to find out whether the peer can be reached.
    pub spare: bool,
    pub since: Instant,
    pub heard: Instant,
    /// When to close it, where it has been found to be no peer of ours.
    pub close_at: Option<Instant>,
    rtt: Option<Duration>,
}

struct Peer {
    node: NodeId,
    links: Vec<Link>,
    speaks: bool,
    agent: Option<String>,
    /// Where it was reached, the last one first.
    reached: VecDeque<Multiaddr>,
    /// Where it says that it listens, as it said last.
    claimed: Vec<Multiaddr>,
    /// Dials that it made us try in vain.
    punches: u32,
    /// When it was last dialled because somebody had asked it in vain.
    doubted: Option<Instant>,
}

/// How a connection came about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    pub dialled: bool,
    /// Whether this node itself wanted it, or the peer dialled.
    pub wanted: bool,
    /// Whether it goes through a relay.
    pub relayed: bool,
}

/// What a peer's identification has changed.
pub(super) struct Identified {
    /// The node, the first time since it connected.
    pub first: Option<NodeId>,
    /// Its addresses, where they are others than before.
    pub addresses: Option<Vec<Multiaddr>>,
}

/// The writing side, with what only the swarm task needs to know.
pub(super) struct PeerTable {
    view: Arc<DashMap<NodeId, PeerInfo>>,
    peers: HashMap<PeerId, Peer>,
    /// Peers that have left, the oldest first.
    left: VecDeque<PeerId>,
}

impl PeerTable {
    pub fn new() -> (Self, PeerRegistry) {
        let view = Arc::new(DashMap::new());
        let registry = PeerRegistry { peers: view.clone() };
        (Self { view, peers: HashMap::new(), left: VecDeque::new() }, registry)
    }

    /// A connection is open.
    pub fn connected(&mut self, peer: PeerId, node: NodeId, id: ConnectionId, address: &Multiaddr, way: Way) {
        let now = Instant::now();
        self.left.retain(|left| *left != peer);
        let entry = self.peers.entry(peer).or_insert_with(|| Peer {
            node,
            links: Vec::new(),
            speaks: false,
            agent: None,
            reached: VecDeque::new(),
            claimed: Vec::new(),
            punches: 0,
            doubted: None,
        });
        let address = address::without_peer(address);
        let kind = if way.relayed { TransportKind::Relay } else { TransportKind::of(&address) };
        let (dialled, spare) = (way.dialled, !way.wanted && entry.has_direct());
        if dialled {
            entry.reached.retain(|known| *known != address);
            entry.reached.push_front(address.clone());
            entry.reached.truncate(MAX_REACHED);
        }
        let (heard, close_at, rtt) = (now, None, None);
        entry.links.push(Link { id, address, dialled, kind, spare, since: now, heard, close_at, rtt });
        self.publish(peer);
    }

    /// A connection is gone, or given up. Returns the node when that was the last one of a peer that spoke.
    pub fn disconnected(&mut self, peer: PeerId, id: ConnectionId) -> Option<NodeId> {
        let entry = self.peers.get_mut(&peer)?;
        let before = entry.links.len();
        entry.links.retain(|link| link.id != id);
        if !entry.links.is_empty() || before == 0 {
            self.publish(peer);
            return None;
        }
        let (node, spoke) = (entry.node, std::mem::take(&mut entry.speaks));
        if spoke {
            self.remember(peer);
            self.publish(peer);
            return Some(node);
        }
        // A stranger, or a peer of ours that left before it spoke again: kept only if it was known before.
        match entry.agent.is_some() {
            true => {
                self.remember(peer);
                self.publish(peer);
            }
            false => self.forget(peer),
        }
        None
    }

    fn remember(&mut self, peer: PeerId) {
        self.left.push_back(peer);
        while self.left.len() > MAX_PEERS_REMEMBERED {
            if let Some(oldest) = self.left.pop_front() {
                self.forget(oldest);
            }
        }
    }

    fn forget(&mut self, peer: PeerId) {
        if let Some(entry) = self.peers.remove(&peer) {
            self.view.remove(&entry.node);
        }
    }

    /// The peer has identified itself as one of ours; `None` where it is not connected any more.
    pub fn identified(&mut self, peer: PeerId, agent: &str, claimed: &[Multiaddr]) -> Option<Identified> {
        let entry = self.peers.get_mut(&peer)?;
        let seen = entry.links.first()?.address.clone();
        entry.agent = Some(bounded(agent));
        let before = entry.addresses();
        entry.claimed = claimed
            .iter()
            .map(address::without_peer)
            .filter(|address| address::is_worth_keeping(address, &seen))
            .take(MAX_ADDRESSES_PER_PEER)
            .collect();
        let (node, first) = (entry.node, !std::mem::replace(&mut entry.speaks, true));
        let addresses = entry.addresses();
        self.publish(peer);
        let addresses = (first || addresses != before).then_some(addresses);
        Some(Identified { first: first.then_some(node), addresses })
    }

    /// A ping was answered.
    pub fn heard(&mut self, peer: PeerId, id: ConnectionId, rtt: Duration) {
        let link = self.peers.get_mut(&peer).and_then(|entry| entry.links.iter_mut().find(|link| link.id == id));
        if let Some(link) = link {
            link.heard = Instant::now();
            link.rtt = Some(link.rtt.map_or(rtt, |old| (old * 3 + rtt) / 4));
            self.publish(peer);
        }
    }

    /// Each connection of a peer, and whether it is to be kept when it is idle: a circuit not beside a connection of its own.
    pub fn keepers(&self, peer: &PeerId) -> Vec<(ConnectionId, bool)> {
        let Some(entry) = self.peers.get(peer) else { return Vec::new() };
        let keep = |link: &Link| match entry.has_direct() {
            true => link.kind != TransportKind::Relay && !link.spare,
            false => true,
        };
        let any = entry.links.iter().any(keep);
        entry.links.iter().map(|link| (link.id, keep(link) || !any)).collect()
    }

    /// The peers that left, the last one first.
    pub fn left(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.left.iter().rev().copied()
    }

    /// A connected peer does not answer. Whether it is to be dialled anew now.
    pub fn doubt(&mut self, peer: &PeerId, now: Instant) -> bool {
        let Some(entry) = self.peers.get_mut(peer).filter(|entry| !entry.links.is_empty()) else { return false };
        let due = entry.doubted.is_none_or(|before| now.duration_since(before) >= DOUBT_AGAIN);
        if due {
            entry.doubted = Some(now);
        }
        due
    }

    /// The connections that a new one, `id`, replaces: those of a peer that was doubted.
    pub fn replaced(&mut self, peer: &PeerId, id: ConnectionId, now: Instant) -> Vec<ConnectionId> {
        let Some(entry) = self.peers.get_mut(peer) else { return Vec::new() };
        if entry.doubted.take().is_none_or(|doubted| now.duration_since(doubted) > DOUBT_LASTS) {
            return Vec::new();
        }
        entry.links.iter().map(|link| link.id).filter(|old| *old != id).collect()
    }

    /// A dial that the peer asked for over a circuit has failed. Whether it asks too often.
    pub fn punched(&mut self, peer: &PeerId) -> bool {
        let Some(entry) = self.peers.get_mut(peer) else { return false };
        entry.punches = entry.punches.saturating_add(1);
        entry.punches > MAX_PUNCHES
    }

    /// Marks a connection to be closed at `when`.
    pub fn close_at(&mut self, peer: PeerId, id: ConnectionId, when: Instant) {
        let link = self.peers.get_mut(&peer).and_then(|entry| entry.links.iter_mut().find(|link| link.id == id));
        if let Some(link) = link {
            link.close_at.get_or_insert(when);
        }
    }

    /// Whether a connection is open and the peer has identified itself as ours.
    pub fn speaks(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|entry| entry.speaks && !entry.links.is_empty())
    }

    /// Whether a connection is open.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|entry| !entry.links.is_empty())
    }

    /// The connection to use.
    pub fn link(&self, peer: &PeerId) -> Option<ConnectionId> {
        let peer = self.peers.get(peer)?;
        peer.preferred().or_else(|| peer.links.first()).map(|link| link.id)
    }

    /// Where a peer is seen, over the link in use.
    pub fn seen(&self, peer: &PeerId) -> Option<&Multiaddr> {
        self.find(peer, self.link(peer)?).map(|link| &link.address)
    }

    /// The link with this id.
    pub fn find(&self, peer: &PeerId, id: ConnectionId) -> Option<&Link> {
        self.peers.get(peer)?.links.iter().find(|link| link.id == id)
    }

    /// Addresses that are known of a peer.
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.peers.get(peer).map(Peer::addresses).unwrap_or_default()
    }

    /// Connections that `judge` wants closed, given the link and whether the peer speaks.
    pub fn links_where(&self, judge: impl Fn(&Link, bool) -> bool) -> Vec<(PeerId, ConnectionId)> {
        let all = self.peers.iter().flat_map(|(peer, entry)| entry.links.iter().map(move |link| (*peer, entry, link)));
        all.filter(|(_, entry, link)| judge(link, entry.speaks)).map(|(peer, _, link)| (peer, link.id)).collect()
    }

    fn publish(&self, peer: PeerId) {
        let Some(entry) = self.peers.get(&peer) else { return };
        let link = entry.preferred().or_else(|| entry.links.first());
        let info = PeerInfo {
            node: entry.node,
            addresses: entry.addresses().iter().map(|known| address::with_peer(known, peer).to_string()).collect(),
            connected: !entry.links.is_empty(),
            speaks: entry.speaks,
            rtt: link.and_then(|link| link.rtt),
            transport: link.map(|link| link.kind),
            agent: entry.agent.clone(),
        };
        self.view.insert(entry.node, info);
    }
}

impl Peer {
    /// Reached ones first, circuits last, each once.
    fn addresses(&self) -> Vec<Multiaddr> {
        let mut all: Vec<Multiaddr> = self.reached.iter().cloned().collect();
        for claimed in &self.claimed {
            if all.len() < MAX_ADDRESSES_PER_PEER && !all.contains(claimed) {
                all.push(claimed.clone());
            }
        }
        all.sort_by_key(address::is_circuit);
        let direct = all.iter().filter(|address| !address::is_circuit(address)).count();
        all.truncate(direct + MAX_CIRCUITS_TRIED);
        all
    }

    fn has_direct(&self) -> bool {
        self.links.iter().any(|link| link.kind != TransportKind::Relay && link.close_at.is_none())
    }

    /// The connection to use, if one is not about to be closed: none through a relay where there is another, and one that
    /// has answered before one that has not. But a peer that connects again long after does so because its side of the
    /// older ones is gone, which QUIC is told by nobody.
    fn preferred(&self) -> Option<&Link> {
        let direct = self.has_direct();
        let usable = || {
            let open = self.links.iter().filter(|link| link.close_at.is_none());
            open.filter(move |link| !direct || link.kind != TransportKind::Relay)
        };
        let newest = usable().map(|link| link.since).max()?;
        let fresh = || usable().filter(|link| newest.duration_since(link.since) < SIMULTANEOUS);
        fresh().find(|link| link.rtt.is_some()).or_else(|| fresh().next())
    }
}

/// Printable, and not longer than an honest one.
fn bounded(agent: &str) -> String {
    let mut text: String = agent.chars().filter(|char| !char.is_control()).take(MAX_AGENT_BYTES).collect();
    while text.len() > MAX_AGENT_BYTES {
        text.pop();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::address::peer_of;
    use super::*;
    use crate::identity::Keypair;

    fn someone(seed: u16) -> (PeerId, NodeId) {
        let mut bytes = [7; 32];
        bytes[..2].copy_from_slice(&seed.to_le_bytes());
        let node = Keypair::from_seed(&bytes).node_id();
        (peer_of(&node).unwrap(), node)
    }

    fn place() -> Multiaddr {
        "/ip4/192.168.1.9/tcp/7".parse().unwrap()
    }

    const DIALLED: Way = Way { dialled: true, wanted: true, relayed: false };
    const ACCEPTED: Way = Way { dialled: false, wanted: true, relayed: false };

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    #[test]
    fn only_the_last_connection_of_a_peer_that_spoke_is_a_disconnect() {
        let (mut table, view) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), DIALLED);
        table.connected(peer, node, id(2), &place(), ACCEPTED);
        assert_eq!(table.identified(peer, "agent", &[]).unwrap().first, Some(node));
        assert_eq!(table.identified(peer, "agent", &[]).unwrap().first, None, "the first time counts");
        assert_eq!(table.disconnected(peer, id(1)), None);
        assert_eq!(table.disconnected(peer, id(2)), Some(node));
        assert_eq!(table.disconnected(peer, id(2)), None);
        let info = view.lookup(node).unwrap();
        assert!(!info.connected && !info.speaks);
    }

    #[test]
    fn strangers_leave_nothing_behind() {
        let (mut table, view) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), ACCEPTED);
        assert!(view.lookup(node).is_some_and(|info| info.connected && !info.speaks));
        assert_eq!(table.disconnected(peer, id(1)), None);
        assert!(view.snapshot().is_empty() && table.peers.is_empty());
    }

    #[test]
    fn peers_that_left_are_remembered_up_to_a_bound() {
        let (mut table, view) = PeerTable::new();
        for number in 0..MAX_PEERS_REMEMBERED + 5 {
            let (peer, node) = someone(number as u16);
            table.connected(peer, node, id(number), &place(), DIALLED);
            table.identified(peer, "agent", &[]);
            table.disconnected(peer, id(number));
        }
        assert_eq!(view.snapshot().len(), MAX_PEERS_REMEMBERED);
        assert!(view.lookup(someone(4).1).is_none() && view.lookup(someone(5).1).is_some());
    }

    #[test]
    fn what_a_peer_says_of_itself_is_bounded() {
        let (mut table, view) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), DIALLED);
        let claimed: Vec<Multiaddr> =
            (1..100).map(|port| format!("/ip4/192.168.1.9/tcp/{port}").parse().unwrap()).collect();
        table.identified(peer, &"é\u{1b}".repeat(1000), &claimed);
        let info = view.lookup(node).unwrap();
        assert_eq!(info.addresses.len(), MAX_ADDRESSES_PER_PEER);
        assert!(info.addresses[0].contains("/tcp/7/"), "the address that was reached comes first");
        let agent = info.agent.unwrap();
        assert!(agent.len() <= MAX_AGENT_BYTES && !agent.contains('\u{1b}'));
    }

    #[test]
    fn what_a_peer_says_last_replaces_what_it_said_before() {
        let (mut table, view) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), ACCEPTED);
        for port in 1..100 {
            let said = format!("/ip4/192.168.1.9/tcp/{port}").parse().unwrap();
            let known = table.identified(peer, "agent", &[said]).unwrap().addresses.unwrap();
            assert_eq!(known.len(), 1);
        }
        let last = view.lookup(node).unwrap().addresses;
        assert!(last.len() == 1 && last[0].contains("/tcp/99/"), "{last:?}");
        let again = table.identified(peer, "agent", &table.addresses(&peer)).unwrap();
        assert!(again.addresses.is_none() && again.first.is_none());
    }

    #[test]
    fn the_connection_that_has_answered_is_used() {
        let (mut table, view) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), DIALLED);
        table.connected(peer, node, id(2), &"/ip4/192.168.1.9/udp/7/quic-v1".parse().unwrap(), DIALLED);
        assert_eq!(table.link(&peer), Some(id(1)));
        table.heard(peer, id(2), Duration::from_millis(4));
        assert_eq!(table.link(&peer), Some(id(2)));
        let info = view.lookup(node).unwrap();
        assert_eq!((info.rtt, info.transport), (Some(Duration::from_millis(4)), Some(TransportKind::Quic)));
        // One of a later life of the peer.
        table.connected(peer, node, id(3), &place(), ACCEPTED);
        assert_eq!(table.link(&peer), Some(id(2)));
        let links = &mut table.peers.get_mut(&peer).unwrap().links;
        links[2].since += SIMULTANEOUS;
        assert_eq!(table.link(&peer), Some(id(3)));
    }

    #[test]
    fn a_circuit_is_used_and_kept_only_while_there_is_no_connection_of_its_own() {
        let (mut table, view) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &Multiaddr::empty(), Way { relayed: true, ..ACCEPTED });
        table.heard(peer, id(1), Duration::from_millis(4));
        assert_eq!(view.lookup(node).unwrap().transport, Some(TransportKind::Relay));
        assert_eq!(table.keepers(&peer), [(id(1), true)]);
        table.connected(peer, node, id(2), &place(), Way { wanted: false, ..DIALLED });
        assert_eq!((table.link(&peer), table.keepers(&peer)), (Some(id(2)), vec![(id(1), false), (id(2), true)]));
        table.connected(peer, node, id(3), &place(), Way { wanted: false, ..DIALLED });
        assert_eq!(table.keepers(&peer)[2], (id(3), false), "a try beside a connection is not kept");
        table.disconnected(peer, id(2));
        assert_eq!(table.keepers(&peer), [(id(1), true), (id(3), true)], "what is left is kept");
    }

    #[test]
    fn a_doubted_peer_is_dialled_now_and_then_and_a_new_connection_replaces_the_old() {
        let (mut table, _) = PeerTable::new();
        let ((peer, node), now) = (someone(1), Instant::now());
        assert!(!table.doubt(&peer, now), "it is not connected");
        table.connected(peer, node, id(1), &place(), DIALLED);
        assert!(table.doubt(&peer, now) && !table.doubt(&peer, now));
        assert!(table.doubt(&peer, now + DOUBT_AGAIN));
        table.connected(peer, node, id(2), &place(), DIALLED);
        assert_eq!(table.replaced(&peer, id(2), now + DOUBT_AGAIN), [id(1)]);
        table.connected(peer, node, id(3), &place(), DIALLED);
        assert!(table.replaced(&peer, id(3), now + DOUBT_AGAIN).is_empty(), "a doubt is settled once");
    }

    #[test]
    fn a_peer_that_makes_us_dial_in_vain_is_found_out() {
        let (mut table, _) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &Multiaddr::empty(), Way { relayed: true, ..ACCEPTED });
        assert!((0..MAX_PUNCHES).all(|_| !table.punched(&peer)));
        assert!(table.punched(&peer));
    }
}
