//! Known peers: a registry for all readers, written only by the swarm task.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use libp2p::swarm::ConnectionId;
use libp2p::{Multiaddr, PeerId};

use super::address::{self, TransportKind};
use super::config::{
    MAX_ADDRESSES_PER_PEER, MAX_AGENT_BYTES, MAX_FAILED_HOLE_PUNCHES, MAX_PEERS_REMEMBERED, SUSPECT_REDIAL_INTERVAL,
    SUSPECT_WINDOW,
};
use crate::base::NodeId;

/// Maximum relayed addresses of a peer that are dialled: a relay with many addresses would get as many requests.
const MAX_RELAYED_ADDRESSES: usize = 2;
/// Maximum dialled addresses stored per peer.
const MAX_DIALLED: usize = 4;

/// Public state of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The peer.
    pub node: NodeId,
    /// Dialled addresses, then claimed ones, with `/p2p/`.
    pub addresses: Vec<String>,
    /// Whether a connection is open.
    pub connected: bool,
    /// Whether the peer has identified as a node of this network.
    pub identified: bool,
    /// Round-trip time of the connection in use, smoothed over recent pings.
    pub rtt: Option<Duration>,
    /// Transport of the connection in use.
    pub transport: Option<TransportKind>,
    /// Agent text of the peer; at most 64 bytes of printable text. Unverified.
    pub agent: Option<String>,
}

/// Read access to all peers. Clones share the state; results are copies, so no lock is held.
#[derive(Debug, Clone, Default)]
pub struct PeerRegistry {
    peers: Arc<DashMap<NodeId, PeerInfo>>,
}

impl PeerRegistry {
    /// The state of `node`.
    pub fn lookup(&self, node: NodeId) -> Option<PeerInfo> {
        self.peers.get(&node).map(|info| info.value().clone())
    }

    /// All peers, sorted by id.
    pub fn snapshot(&self) -> Vec<PeerInfo> {
        let mut peers: Vec<PeerInfo> = self.peers.iter().map(|info| info.value().clone()).collect();
        peers.sort_unstable_by_key(|info| info.node);
        peers
    }

    /// Whether the connection in use is relayed.
    pub(super) fn is_relayed(&self, node: NodeId) -> bool {
        self.peers.get(&node).is_some_and(|info| info.transport == Some(TransportKind::Relay))
    }

    /// Connected nodes of this network.
    pub fn connected(&self) -> Vec<NodeId> {
        self.peers.iter().filter(|info| info.connected && info.identified).map(|info| info.node).collect()
    }
}

/// Time within which the connections of two nodes that dial each other are established.
const SIMULTANEOUS: Duration = Duration::from_secs(2);

/// An open connection.
#[derive(Debug, Clone)]
pub(super) struct PeerConnection {
    pub id: ConnectionId,
    pub address: Multiaddr,
    pub dialled: bool,
    pub kind: TransportKind,
    /// Whether it is a reachability probe beside another connection.
    pub probe: bool,
    pub since: Instant,
    pub last_pong: Instant,
    /// When to close it, for a peer of another network.
    pub close_at: Option<Instant>,
    rtt: Option<Duration>,
}

struct Peer {
    node: NodeId,
    connections: Vec<PeerConnection>,
    identified: bool,
    agent: Option<String>,
    /// Dialled addresses, most recent first.
    dialled_addresses: VecDeque<Multiaddr>,
    /// Listen addresses of its last identify message.
    claimed: Vec<Multiaddr>,
    /// Failed hole punches that it requested.
    hole_punches: u32,
    /// Time of the last redial of a suspected connection.
    suspected: Option<Instant>,
}

/// Origin of a connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionOrigin {
    pub dialled: bool,
    /// Whether this node requested it, or the peer dialled; false for probes.
    pub requested: bool,
    /// Whether it goes through a relay.
    pub relayed: bool,
}

/// Changes by an identify message.
pub(super) struct IdentifyChange {
    /// The node, with its first message since it connected.
    pub first: Option<NodeId>,
    /// Its addresses, if changed.
    pub addresses: Option<Vec<Multiaddr>>,
}

/// The writing side of the registry, with the private state of the swarm task.
pub(super) struct PeerTable {
    published: Arc<DashMap<NodeId, PeerInfo>>,
    peers: HashMap<PeerId, Peer>,
    /// Disconnected peers, oldest first.
    left: VecDeque<PeerId>,
}

impl PeerTable {
    pub fn new() -> (Self, PeerRegistry) {
        let published = Arc::new(DashMap::new());
        let registry = PeerRegistry { peers: published.clone() };
        (Self { published, peers: HashMap::new(), left: VecDeque::new() }, registry)
    }

    /// A connection was established.
    pub fn connected(
        &mut self,
        peer: PeerId,
        node: NodeId,
        id: ConnectionId,
        address: &Multiaddr,
        origin: ConnectionOrigin,
    ) {
        let now = Instant::now();
        self.left.retain(|left| *left != peer);
        let entry = self.peers.entry(peer).or_insert_with(|| Peer {
            node,
            connections: Vec::new(),
            identified: false,
            agent: None,
            dialled_addresses: VecDeque::new(),
            claimed: Vec::new(),
            hole_punches: 0,
            suspected: None,
        });
        let address = address::without_peer(address);
        let kind = if origin.relayed { TransportKind::Relay } else { TransportKind::of(&address) };
        let (dialled, probe) = (origin.dialled, !origin.requested && entry.has_direct());
        if dialled {
            entry.dialled_addresses.retain(|known| *known != address);
            entry.dialled_addresses.push_front(address.clone());
            entry.dialled_addresses.truncate(MAX_DIALLED);
        }
        let (last_pong, close_at, rtt) = (now, None, None);
        entry.connections.push(PeerConnection {
            id,
            address,
            dialled,
            kind,
            probe,
            since: now,
            last_pong,
            close_at,
            rtt,
        });
        self.publish(peer);
    }

    /// A connection was closed. Returns the node if it was the last one of an identified peer.
    pub fn disconnected(&mut self, peer: PeerId, id: ConnectionId) -> Option<NodeId> {
        let entry = self.peers.get_mut(&peer)?;
        let before = entry.connections.len();
        entry.connections.retain(|connection| connection.id != id);
        if !entry.connections.is_empty() || before == 0 {
            self.publish(peer);
            return None;
        }
        let (node, identified) = (entry.node, std::mem::take(&mut entry.identified));
        if identified {
            self.remember(peer);
            self.publish(peer);
            return Some(node);
        }
        // Not identified on this connection: remember it only if it had identified earlier.
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
            self.published.remove(&entry.node);
        }
    }

    /// The peer has identified as a node of this network; `None` if it is no longer connected.
    pub fn record_identify(&mut self, peer: PeerId, agent: &str, claimed: &[Multiaddr]) -> Option<IdentifyChange> {
        let entry = self.peers.get_mut(&peer)?;
        let seen = entry.connections.first()?.address.clone();
        entry.agent = Some(bounded(agent));
        let before = entry.addresses();
        entry.claimed = claimed
            .iter()
            .map(address::without_peer)
            .filter(|address| address::is_worth_storing(address, &seen))
            .take(MAX_ADDRESSES_PER_PEER)
            .collect();
        let (node, first) = (entry.node, !std::mem::replace(&mut entry.identified, true));
        let addresses = entry.addresses();
        self.publish(peer);
        let addresses = (first || addresses != before).then_some(addresses);
        Some(IdentifyChange { first: first.then_some(node), addresses })
    }

    /// A ping was answered.
    pub fn record_ping(&mut self, peer: PeerId, id: ConnectionId, rtt: Duration) {
        let connection = self
            .peers
            .get_mut(&peer)
            .and_then(|entry| entry.connections.iter_mut().find(|connection| connection.id == id));
        if let Some(connection) = connection {
            connection.last_pong = Instant::now();
            connection.rtt = Some(connection.rtt.map_or(rtt, |old| (old * 3 + rtt) / 4));
            self.publish(peer);
        }
    }

    /// Each connection of a peer, and whether to keep it when idle: not a relayed one beside a direct one.
    pub fn keep_alive(&self, peer: &PeerId) -> Vec<(ConnectionId, bool)> {
        let Some(entry) = self.peers.get(peer) else { return Vec::new() };
        let keep = |connection: &PeerConnection| match entry.has_direct() {
            true => connection.kind != TransportKind::Relay && !connection.probe,
            false => true,
        };
        let any = entry.connections.iter().any(keep);
        entry.connections.iter().map(|connection| (connection.id, keep(connection) || !any)).collect()
    }

    /// Disconnected peers, most recent first.
    pub fn recently_left(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.left.iter().rev().copied()
    }

    /// A connected peer does not answer. Returns whether to redial it now.
    pub fn suspect(&mut self, peer: &PeerId, now: Instant) -> bool {
        let Some(entry) = self.peers.get_mut(peer).filter(|entry| !entry.connections.is_empty()) else { return false };
        let due = entry.suspected.is_none_or(|before| now.duration_since(before) >= SUSPECT_REDIAL_INTERVAL);
        if due {
            entry.suspected = Some(now);
        }
        due
    }

    /// The connections that the new one, `id`, replaces: all others of a suspected peer. Ends the suspicion.
    pub fn take_replaced(&mut self, peer: &PeerId, id: ConnectionId, now: Instant) -> Vec<ConnectionId> {
        let Some(entry) = self.peers.get_mut(peer) else { return Vec::new() };
        if entry.suspected.take().is_none_or(|suspected| now.duration_since(suspected) > SUSPECT_WINDOW) {
            return Vec::new();
        }
        entry.connections.iter().map(|connection| connection.id).filter(|old| *old != id).collect()
    }

    /// A hole punch requested by the peer failed. Returns whether the limit is exceeded.
    pub fn hole_punch_failed(&mut self, peer: &PeerId) -> bool {
        let Some(entry) = self.peers.get_mut(peer) else { return false };
        entry.hole_punches = entry.hole_punches.saturating_add(1);
        entry.hole_punches > MAX_FAILED_HOLE_PUNCHES
    }

    /// Marks a connection to be closed at `when`.
    pub fn close_at(&mut self, peer: PeerId, id: ConnectionId, when: Instant) {
        let connection = self
            .peers
            .get_mut(&peer)
            .and_then(|entry| entry.connections.iter_mut().find(|connection| connection.id == id));
        if let Some(connection) = connection {
            connection.close_at.get_or_insert(when);
        }
    }

    /// Whether the peer is connected and identified.
    pub fn is_identified(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|entry| entry.identified && !entry.connections.is_empty())
    }

    /// Whether a connection is open.
    pub fn is_connected(&self, peer: &PeerId) -> bool {
        self.peers.get(peer).is_some_and(|entry| !entry.connections.is_empty())
    }

    /// The preferred connection.
    pub fn preferred_connection(&self, peer: &PeerId) -> Option<ConnectionId> {
        let peer = self.peers.get(peer)?;
        peer.preferred().or_else(|| peer.connections.first()).map(|connection| connection.id)
    }

    /// The remote address of the preferred connection.
    pub fn seen(&self, peer: &PeerId) -> Option<&Multiaddr> {
        self.connection(peer, self.preferred_connection(peer)?).map(|connection| &connection.address)
    }

    /// The connection with this id.
    pub fn connection(&self, peer: &PeerId, id: ConnectionId) -> Option<&PeerConnection> {
        self.peers.get(peer)?.connections.iter().find(|connection| connection.id == id)
    }

    /// Known addresses of a peer.
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.peers.get(peer).map(Peer::addresses).unwrap_or_default()
    }

    /// Connections for which `judge` is true, given the connection and whether the peer has identified.
    pub fn connections_where(&self, judge: impl Fn(&PeerConnection, bool) -> bool) -> Vec<(PeerId, ConnectionId)> {
        let all = self
            .peers
            .iter()
            .flat_map(|(peer, entry)| entry.connections.iter().map(move |connection| (*peer, entry, connection)));
        all.filter(|(_, entry, connection)| judge(connection, entry.identified))
            .map(|(peer, _, connection)| (peer, connection.id))
            .collect()
    }

    fn publish(&self, peer: PeerId) {
        let Some(entry) = self.peers.get(&peer) else { return };
        let connection = entry.preferred().or_else(|| entry.connections.first());
        let info = PeerInfo {
            node: entry.node,
            addresses: entry.addresses().iter().map(|known| address::with_peer(known, peer).to_string()).collect(),
            connected: !entry.connections.is_empty(),
            identified: entry.identified,
            rtt: connection.and_then(|connection| connection.rtt),
            transport: connection.map(|connection| connection.kind),
            agent: entry.agent.clone(),
        };
        self.published.insert(entry.node, info);
    }
}

impl Peer {
    /// Dialled addresses first, relayed ones last, without duplicates.
    fn addresses(&self) -> Vec<Multiaddr> {
        let mut all: Vec<Multiaddr> = self.dialled_addresses.iter().cloned().collect();
        for claimed in &self.claimed {
            if all.len() < MAX_ADDRESSES_PER_PEER && !all.contains(claimed) {
                all.push(claimed.clone());
            }
        }
        all.sort_by_key(address::is_relayed);
        let direct = all.iter().filter(|address| !address::is_relayed(address)).count();
        all.truncate(direct + MAX_RELAYED_ADDRESSES);
        all
    }

    fn has_direct(&self) -> bool {
        self.connections
            .iter()
            .any(|connection| connection.kind != TransportKind::Relay && connection.close_at.is_none())
    }

    /// The connection to use, of those not about to close: a direct one before a relayed one, and one with an answered ping
    /// before one without. A much newer connection takes precedence: the peer has lost its side of the older ones, which
    /// QUIC does not signal.
    fn preferred(&self) -> Option<&PeerConnection> {
        let direct = self.has_direct();
        let usable = || {
            let open = self.connections.iter().filter(|connection| connection.close_at.is_none());
            open.filter(move |connection| !direct || connection.kind != TransportKind::Relay)
        };
        let newest = usable().map(|connection| connection.since).max()?;
        let fresh = || usable().filter(|connection| newest.duration_since(connection.since) < SIMULTANEOUS);
        fresh().find(|connection| connection.rtt.is_some()).or_else(|| fresh().next())
    }
}

/// Printable characters up to the length limit.
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

    const DIALLED: ConnectionOrigin = ConnectionOrigin { dialled: true, requested: true, relayed: false };
    const ACCEPTED: ConnectionOrigin = ConnectionOrigin { dialled: false, requested: true, relayed: false };

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    #[test]
    fn closing_the_last_identified_connection_is_a_disconnect() {
        let (mut table, registry) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), DIALLED);
        table.connected(peer, node, id(2), &place(), ACCEPTED);
        assert_eq!(table.record_identify(peer, "agent", &[]).unwrap().first, Some(node));
        assert_eq!(table.record_identify(peer, "agent", &[]).unwrap().first, None, "reported once");
        assert_eq!(table.disconnected(peer, id(1)), None);
        assert_eq!(table.disconnected(peer, id(2)), Some(node));
        assert_eq!(table.disconnected(peer, id(2)), None);
        let info = registry.lookup(node).unwrap();
        assert!(!info.connected && !info.identified);
    }

    #[test]
    fn unidentified_peers_are_not_remembered() {
        let (mut table, registry) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), ACCEPTED);
        assert!(registry.lookup(node).is_some_and(|info| info.connected && !info.identified));
        assert_eq!(table.disconnected(peer, id(1)), None);
        assert!(registry.snapshot().is_empty() && table.peers.is_empty());
    }

    #[test]
    fn the_number_of_remembered_peers_is_bounded() {
        let (mut table, registry) = PeerTable::new();
        for number in 0..MAX_PEERS_REMEMBERED + 5 {
            let (peer, node) = someone(number as u16);
            table.connected(peer, node, id(number), &place(), DIALLED);
            table.record_identify(peer, "agent", &[]);
            table.disconnected(peer, id(number));
        }
        assert_eq!(registry.snapshot().len(), MAX_PEERS_REMEMBERED);
        assert!(registry.lookup(someone(4).1).is_none() && registry.lookup(someone(5).1).is_some());
    }

    #[test]
    fn claimed_addresses_and_agent_are_bounded() {
        let (mut table, registry) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), DIALLED);
        let claimed: Vec<Multiaddr> =
            (1..100).map(|port| format!("/ip4/192.168.1.9/tcp/{port}").parse().unwrap()).collect();
        table.record_identify(peer, &"é\u{1b}".repeat(1000), &claimed);
        let info = registry.lookup(node).unwrap();
        assert_eq!(info.addresses.len(), MAX_ADDRESSES_PER_PEER);
        assert!(info.addresses[0].contains("/tcp/7/"), "the dialled address comes first");
        let agent = info.agent.unwrap();
        assert!(agent.len() <= MAX_AGENT_BYTES && !agent.contains('\u{1b}'));
    }

    #[test]
    fn a_new_identify_message_replaces_the_previous_one() {
        let (mut table, registry) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), ACCEPTED);
        for port in 1..100 {
            let said = format!("/ip4/192.168.1.9/tcp/{port}").parse().unwrap();
            let known = table.record_identify(peer, "agent", &[said]).unwrap().addresses.unwrap();
            assert_eq!(known.len(), 1);
        }
        let last = registry.lookup(node).unwrap().addresses;
        assert!(last.len() == 1 && last[0].contains("/tcp/99/"), "{last:?}");
        let again = table.record_identify(peer, "agent", &table.addresses(&peer)).unwrap();
        assert!(again.addresses.is_none() && again.first.is_none());
    }

    #[test]
    fn the_connection_with_an_answered_ping_is_preferred() {
        let (mut table, registry) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &place(), DIALLED);
        table.connected(peer, node, id(2), &"/ip4/192.168.1.9/udp/7/quic-v1".parse().unwrap(), DIALLED);
        assert_eq!(table.preferred_connection(&peer), Some(id(1)));
        table.record_ping(peer, id(2), Duration::from_millis(4));
        assert_eq!(table.preferred_connection(&peer), Some(id(2)));
        let info = registry.lookup(node).unwrap();
        assert_eq!((info.rtt, info.transport), (Some(Duration::from_millis(4)), Some(TransportKind::Quic)));
        // A connection after a restart of the peer.
        table.connected(peer, node, id(3), &place(), ACCEPTED);
        assert_eq!(table.preferred_connection(&peer), Some(id(2)));
        let connections = &mut table.peers.get_mut(&peer).unwrap().connections;
        connections[2].since += SIMULTANEOUS;
        assert_eq!(table.preferred_connection(&peer), Some(id(3)));
    }

    #[test]
    fn a_relayed_connection_is_used_only_without_a_direct_one() {
        let (mut table, registry) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &Multiaddr::empty(), ConnectionOrigin { relayed: true, ..ACCEPTED });
        table.record_ping(peer, id(1), Duration::from_millis(4));
        assert_eq!(registry.lookup(node).unwrap().transport, Some(TransportKind::Relay));
        assert_eq!(table.keep_alive(&peer), [(id(1), true)]);
        table.connected(peer, node, id(2), &place(), ConnectionOrigin { requested: false, ..DIALLED });
        assert_eq!(
            (table.preferred_connection(&peer), table.keep_alive(&peer)),
            (Some(id(2)), vec![(id(1), false), (id(2), true)])
        );
        table.connected(peer, node, id(3), &place(), ConnectionOrigin { requested: false, ..DIALLED });
        assert_eq!(table.keep_alive(&peer)[2], (id(3), false), "a probe beside a connection is not kept");
        table.disconnected(peer, id(2));
        assert_eq!(table.keep_alive(&peer), [(id(1), true), (id(3), true)], "remaining connections are kept");
    }

    #[test]
    fn a_suspected_peer_is_redialled_and_its_connections_replaced() {
        let (mut table, _) = PeerTable::new();
        let ((peer, node), now) = (someone(1), Instant::now());
        assert!(!table.suspect(&peer, now), "not connected");
        table.connected(peer, node, id(1), &place(), DIALLED);
        assert!(table.suspect(&peer, now) && !table.suspect(&peer, now));
        assert!(table.suspect(&peer, now + SUSPECT_REDIAL_INTERVAL));
        table.connected(peer, node, id(2), &place(), DIALLED);
        assert_eq!(table.take_replaced(&peer, id(2), now + SUSPECT_REDIAL_INTERVAL), [id(1)]);
        table.connected(peer, node, id(3), &place(), DIALLED);
        assert!(
            table.take_replaced(&peer, id(3), now + SUSPECT_REDIAL_INTERVAL).is_empty(),
            "a suspicion ends with the first replacement"
        );
    }

    #[test]
    fn failed_hole_punches_are_limited_per_peer() {
        let (mut table, _) = PeerTable::new();
        let (peer, node) = someone(1);
        table.connected(peer, node, id(1), &Multiaddr::empty(), ConnectionOrigin { relayed: true, ..ACCEPTED });
        assert!((0..MAX_FAILED_HOLE_PUNCHES).all(|_| !table.hole_punch_failed(&peer)));
        assert!(table.hole_punch_failed(&peer));
    }
}
