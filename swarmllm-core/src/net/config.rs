//! What a host may set, and every limit that it may not.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use libp2p::Multiaddr;

use super::NetError;
use super::address::{self, TransportKind};
use crate::identity::SwarmKey;

/// How a node meets others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Name of the swarm, 1 to 64 of `[a-z0-9._-]`; part of every protocol name, so that swarms cannot mix.
    pub network: String,
    /// What the nodes of a private swarm prove to each other to have, before anything else is said. Such a swarm speaks TCP
    /// only: QUIC's handshake has no room for it, and its addresses are left out.
    pub key: Option<SwarmKey>,
    /// Addresses to listen on, multiaddr text; port 0 is an ephemeral one. Empty: dial only.
    pub listen: Vec<String>,
    /// Peers to dial at start and whenever they are not connected, multiaddr text.
    pub bootstrap: Vec<String>,
    /// Where peers were before, multiaddr text with `/p2p/`: dialled at the start, and given up after some failures. Those
    /// that cannot be read are left out.
    pub known: Vec<String>,
    /// Whether to find peers on the LAN by mDNS.
    pub mdns: bool,
    /// Whether to carry circuits for peers that nobody can connect to, and to try whether peers can be reached. Others make
    /// use of it where this node is one of their bootstrap peers.
    pub relay: bool,
    /// Addresses under which others reach this node although it does not listen there: forwarded ports, names.
    pub external: Vec<String>,
    /// Whether to ask the router to forward the ports, by UPnP.
    pub upnp: bool,
    /// Most bytes a second that may go over the wire, both ways together, in all that this node does. `None`: no ceiling.
    pub ceiling: Option<NonZeroU64>,
    /// Most connections at once, to all peers together.
    pub max_connections: u32,
    /// Most connections that may come from one address: many nodes may be behind one router. Three times as many may come from its
    /// network (/24 of IPv4, /48 of IPv6). Without effect with a key: those who have it are trusted so far.
    pub max_per_address: u32,
    /// Whether connections from this machine are bounded so, too.
    pub count_loopback: bool,
    /// Longest wait for a dialled peer to be connected and identified.
    pub dial_deadline: Duration,
    /// What peers are told that runs here; at most [`MAX_AGENT_BYTES`] bytes.
    pub agent: String,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            network: "main".into(),
            key: None,
            listen: vec!["/ip4/0.0.0.0/tcp/0".into(), "/ip4/0.0.0.0/udp/0/quic-v1".into()],
            bootstrap: Vec::new(),
            known: Vec::new(),
            mdns: true,
            relay: false,
            external: Vec::new(),
            upnp: false,
            ceiling: None,
            max_connections: 512,
            max_per_address: MAX_PER_ADDRESS,
            count_loopback: false,
            dial_deadline: Duration::from_secs(10),
            agent: concat!("swarmllm/", env!("CARGO_PKG_VERSION")).into(),
        }
    }
}

/// Connections that may come from one address, of the 448 that may come in all. Each node has one, or two for a moment.
pub const MAX_PER_ADDRESS: u32 = 64;
/// Those that may come from one network, of which somebody may have all addresses, in shares of one address: /24 of IPv4 and
/// /48 of IPv6. Three shares of 64 are 192, less than half of the 448: one network leaves more than half to the others. Behind a
/// carrier's router one address is shared by up to some hundred customers, and a carrier has many such networks.
pub(super) const NETWORK_SHARES: u32 = 3;
/// Longest network name.
pub const MAX_NETWORK_BYTES: usize = 64;
/// Longest agent text, given or received.
pub const MAX_AGENT_BYTES: usize = 64;
/// Most addresses to listen on.
pub const MAX_LISTEN: usize = 16;
/// Most external addresses.
pub const MAX_EXTERNAL: usize = 16;
/// Most bootstrap addresses.
pub const MAX_BOOTSTRAP: usize = 128;
/// Longest gossip message, in bytes.
pub const MAX_GOSSIP_BYTES: usize = 64 * 1024;
/// Most streams of our channels that a peer may have open to us at once, and we to it.
pub const MAX_STREAMS_PER_PEER: usize = 128;

/// Connections to one peer: one is wanted, simultaneous dials may make two.
pub(super) const MAX_CONNECTIONS_PER_PEER: u32 = 4;
/// Connections that are being set up, each way.
pub(super) const MAX_CONNECTIONS_PENDING: u32 = 64;
/// Part of all connections that others may fill: the rest stays for our own dials.
pub(super) const INBOUND_SHARE: (u32, u32) = (7, 8);
/// Share of the machine's memory in use by this process from which no connection is accepted.
pub(super) const MAX_MEMORY_SHARE: f64 = 0.95;

/// Streams of one connection: ours both ways, and those of the protocols below (ping, identify, gossip, routing).
pub(super) const MAX_STREAMS_PER_CONNECTION: usize = 2 * MAX_STREAMS_PER_PEER + 32;
/// Yamux gives each stream 256 KiB at least; what is above that total is what busy streams can grow by.
pub(super) const YAMUX_WINDOW_TOTAL: usize = MAX_STREAMS_PER_CONNECTION * 256 * 1024 + 24 * 1024 * 1024;
/// Yamux frames: small enough that a short message waits little behind a long one.
pub(super) const YAMUX_SPLIT: usize = 16 * 1024;
/// Unread bytes of one QUIC stream, and of one QUIC connection: the product of bandwidth and delay that can be filled.
pub(super) const QUIC_STREAM_WINDOW: u32 = 6 * 1024 * 1024;
pub(super) const QUIC_CONNECTION_WINDOW: u32 = 24 * 1024 * 1024;
/// A killed process says nothing on UDP: its peers notice after this long. TCP is reset at once.
pub(super) const QUIC_IDLE: Duration = Duration::from_secs(5);
/// Keeps idle QUIC connections alive; at least two may be lost within [`QUIC_IDLE`].
pub(super) const QUIC_KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// Longest dial of one address, handshakes included; it is what QUIC has for its own. What was dialled through a cut line is
/// given up soon, so that what comes up when the line is back is one connection and not all that were tried.
pub(super) const DIAL_LONGEST: Duration = Duration::from_secs(6);
/// After this time a dial begins once more beside itself: TCP tries again after 1, 3 and 7 s.
pub(super) const DIAL_AGAIN: Duration = Duration::from_secs(1);
/// Longest handshake of a new connection.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(20);

/// Time between two pings of a connection. With each of 19 neighbours every 5 s they were four fifths of the 1.7 KB/s that an
/// idle node said; that a host is silent is found out by asking it, when an answer is late.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Longest wait for one answer.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that has answered no ping for this long is given up.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(40);
/// A peer that does not answer is dialled anew this often: a connection that hangs in the system's ever longer waits before
/// it tries again, up to as long as its line was cut, may be of no use for as long again.
pub(super) const DOUBT_AGAIN: Duration = Duration::from_secs(2);
/// A new connection within this time of a doubt replaces the doubted ones.
pub(super) const DOUBT_LASTS: Duration = Duration::from_secs(10);
/// A connected peer that has not said who it is by then is disconnected.
pub(super) const IDENTIFY_DEADLINE: Duration = Duration::from_secs(10);
/// How long a peer of another network stays connected, so that it can learn the reason as well.
pub(super) const REFUSAL_GRACE: Duration = Duration::from_secs(1);
/// Connections to peers that do not speak our protocol are closed when idle for this long. Ours are kept.
pub(super) const IDLE_CONNECTION: Duration = Duration::from_secs(30);
/// Longest wait for a stream to be opened.
pub(super) const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Longest wait for all listeners to be up.
pub(super) const LISTEN_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for a name to be resolved.
pub(super) const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest search in the routing table of the swarm.
pub(super) const QUERY_DEADLINE: Duration = Duration::from_secs(10);
/// Longest goodbye at shutdown.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_millis(500);
/// How often the routing table is refreshed: libp2p's own interval.
pub(super) const REFRESH: Duration = Duration::from_secs(5 * 60);
/// How often deadlines are looked at.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// Commands waiting for the swarm task.
pub(super) const COMMAND_QUEUE: usize = 256;
/// Acts (dials, searches) that wait for their end.
pub(super) const MAX_PENDING: usize = 1024;
/// Incoming streams of one channel that nobody has taken yet; more are reset. A burst of one peer fits.
pub(super) const INCOMING_QUEUE: usize = 2 * MAX_STREAMS_PER_PEER;
/// Gossip messages that nobody has taken yet; more are dropped. Times [`MAX_GOSSIP_BYTES`] is the memory they may use.
pub(super) const GOSSIP_QUEUE: usize = 64;
/// Notices of peers coming and going kept for a slow reader.
pub(super) const NOTICE_QUEUE: usize = 1024;
/// Peers that are remembered after they have left.
pub(super) const MAX_PEERS_REMEMBERED: usize = 1024;
/// Addresses kept of one peer.
pub(super) const MAX_ADDRESSES_PER_PEER: usize = 16;
/// Peers found on the LAN that are kept in mind.
pub(super) const MAX_DISCOVERED: usize = 256;
/// Keys that the routing table's store holds for others and ourselves, and providers of each.
pub(super) const MAX_PROVIDED_KEYS: usize = 8 * 1024;
pub(super) const MAX_PROVIDERS_PER_KEY: usize = 20;
/// Providers returned by one search.
pub(super) const MAX_PROVIDERS_FOUND: usize = 64;
/// Longest message of the routing protocol.
pub(super) const MAX_ROUTING_BYTES: usize = 16 * 1024;

/// Waits between two dials of a peer that ought to be connected.
pub(super) const REDIAL_FIRST: Duration = Duration::from_secs(1);
pub(super) const REDIAL_LONGEST: Duration = Duration::from_secs(60);
/// Whoever ought to be connected is dialled at once where somebody asks for that, this often at most; and so many of the peers
/// that left last.
pub(super) const RECONNECT_AGAIN: Duration = Duration::from_secs(1);
pub(super) const MAX_RECONNECTED: usize = 16;
/// Of two nodes that discover each other the one with the larger id waits this long, so that one connection results.
pub(super) const DISCOVERY_YIELD: Duration = Duration::from_secs(2);

/// Relays with which a node that nobody can connect to keeps a reservation: a second one, for when the first goes.
pub(super) const RELAYS_USED: usize = 2;
/// Relays that are kept in mind.
pub(super) const MAX_RELAYS: usize = MAX_BOOTSTRAP;
/// How often addresses that have not been tried are given to a peer to try.
pub(super) const TRY_INTERVAL: Duration = Duration::from_secs(3);

/// What a relay carries. Peers that keep a reservation with it, each with one connection out of the default 512; a
/// reservation is kept for this long and then asked for again.
pub(super) const MAX_RESERVATIONS: usize = 448;
pub(super) const RESERVATION_KEPT: Duration = Duration::from_secs(60 * 60);
/// Circuits at once, and those from one peer: each is a stream on two connections, of which one carries at most
/// [`MAX_STREAMS_PER_CONNECTION`].
pub(super) const MAX_CIRCUITS: usize = 2048;
pub(super) const MAX_CIRCUITS_PER_PEER: usize = 128;
/// Bytes and time of one circuit; who needs more asks again. Hidden states of 4,096 floats are 16 KiB a token each way, so
/// 16 GiB are a million tokens.
pub(super) const CIRCUIT_BYTES: u64 = 16 * 1024 * 1024 * 1024;
pub(super) const CIRCUIT_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// What one peer may ask for at once, and how often once more.
pub(super) const ASK_BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(127);
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Dials that a peer made us try and that failed, before its circuits are closed: an honest one asks for three.
pub(super) const MAX_PUNCHES: u32 = 16;

/// A configuration whose texts were read.
pub(super) struct Checked {
    pub listen: Vec<Multiaddr>,
    pub bootstrap: Vec<Multiaddr>,
    pub external: Vec<Multiaddr>,
}

impl NetConfig {
    /// Refuses what a start would refuse for its texts and counts alone, without touching the network.
    pub fn validate(&self) -> Result<(), NetError> {
        self.check().map(drop)
    }

    pub(super) fn check(&self) -> Result<Checked, NetError> {
        check_network(&self.network)?;
        at_most("addresses to listen on", self.listen.len(), MAX_LISTEN)?;
        at_most("bootstrap addresses", self.bootstrap.len(), MAX_BOOTSTRAP)?;
        at_most("bytes of agent text", self.agent.len(), MAX_AGENT_BYTES)?;
        let mut listen: Vec<Multiaddr> =
            self.listen.iter().map(|text| address::parse_listen(text)).collect::<Result<_, _>>()?;
        let asked = listen.len();
        if self.key.is_some() {
            listen.retain(|address| TransportKind::of(address) != TransportKind::Quic);
        }
        if listen.is_empty() && asked > 0 {
            return Err(NetError::PrivateNeedsTcp);
        }
        at_most("external addresses", self.external.len(), MAX_EXTERNAL)?;
        let dialled = |texts: &[String]| texts.iter().map(|text| address::parse_dial(text)).collect::<Result<_, _>>();
        Ok(Checked { listen, bootstrap: dialled(&self.bootstrap)?, external: dialled(&self.external)? })
    }
}

fn check_network(name: &str) -> Result<(), NetError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    if (1..=MAX_NETWORK_BYTES).contains(&name.len()) && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(NetError::BadNetwork { name: name.chars().take(MAX_NETWORK_BYTES).collect() })
}

fn at_most(what: &'static str, given: usize, max: usize) -> Result<(), NetError> {
    if given > max { Err(NetError::TooMany { what, given, max }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_network_names_are_accepted() {
        for good in ["a", "main", "lab-1.test_x", &"n".repeat(MAX_NETWORK_BYTES)] {
            check_network(good).unwrap();
        }
        for bad in ["", "Main", "a/b", "a b", "ä", &"n".repeat(MAX_NETWORK_BYTES + 1)] {
            assert!(matches!(check_network(bad), Err(NetError::BadNetwork { .. })), "{bad}");
        }
    }

    #[test]
    fn the_default_configuration_is_valid() {
        assert_eq!(NetConfig::default().check().map(|checked| checked.listen.len()).unwrap_or_default(), 2);
    }

    #[test]
    fn a_bad_address_is_named() {
        let config = NetConfig { listen: vec!["/ip4/1.2.3.4/sctp/1".into()], ..NetConfig::default() };
        assert!(matches!(config.check(), Err(NetError::BadAddress { .. })));
    }
}
