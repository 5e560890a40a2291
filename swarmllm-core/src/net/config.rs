//! The configuration, and all fixed limits.

use std::num::{NonZeroU32, NonZeroU64};
use std::time::Duration;

use libp2p::Multiaddr;

use super::NetError;
use super::address::{self, TransportKind};
use crate::identity::SwarmKey;

/// Configuration of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConfig {
    /// Name of the swarm, 1 to 64 of `[a-z0-9._-]`; part of every protocol name, so that swarms cannot mix.
    pub network: String,
    /// Secret of a private swarm; nodes without the secret cannot complete a handshake. A private swarm uses TCP only, since
    /// QUIC's handshake does not support the secret; QUIC addresses are ignored.
    pub key: Option<SwarmKey>,
    /// Addresses to listen on, as multiaddr text; port 0 selects a free port. Empty: dial only.
    pub listen: Vec<String>,
    /// Peers to dial at the start and whenever they are not connected, as multiaddr text.
    pub bootstrap: Vec<String>,
    /// Earlier addresses of peers, as multiaddr text with `/p2p/`: dialled at the start and dropped after some failures.
    /// Invalid ones are ignored.
    pub known: Vec<String>,
    /// Whether to discover peers on the LAN by mDNS.
    pub mdns: bool,
    /// Whether to act as a relay and to probe the reachability of peers. Nodes use it if this node is among their bootstrap
    /// peers.
    pub relay: bool,
    /// Addresses at which others reach this node without a listener of its own there: forwarded ports, names.
    pub external: Vec<String>,
    /// Whether to request port forwarding from the router by UPnP.
    pub upnp: bool,
    /// Maximum bytes per second, both directions together, of all traffic of this node. `None`: no limit.
    pub ceiling: Option<NonZeroU64>,
    /// Maximum open connections to all peers together.
    pub max_connections: u32,
    /// Maximum inbound connections from one address: many nodes may be behind one router. The limit of its network (/24 of
    /// IPv4, /48 of IPv6) is three times as high. Without effect with a key, since holders of the key are trusted.
    pub max_per_address: u32,
    /// Whether `max_per_address` also applies to connections from this machine.
    pub count_loopback: bool,
    /// Maximum time until a dialled peer is connected and has identified.
    pub dial_deadline: Duration,
    /// Agent text sent to peers; at most [`MAX_AGENT_BYTES`] bytes.
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

/// Maximum inbound connections from one address, of 448 in total. A node has one connection, or two for a moment.
pub const MAX_PER_ADDRESS: u32 = 64;
/// Maximum inbound connections from one network (/24 of IPv4, /48 of IPv6), in multiples of the limit of one address: one
/// party may own the whole network. Three times 64 is 192, so one network leaves more than half of the 448 to others. A
/// carrier's NAT address is shared by up to some hundred customers, and a carrier has many of these networks.
pub(super) const NETWORK_FACTOR: u32 = 3;
/// Maximum length of a network name.
pub const MAX_NETWORK_BYTES: usize = 64;
/// Maximum length of an agent text, sent or received.
pub const MAX_AGENT_BYTES: usize = 64;
/// Maximum number of listen addresses.
pub const MAX_LISTEN: usize = 16;
/// Maximum number of external addresses.
pub const MAX_EXTERNAL: usize = 16;
/// Maximum number of bootstrap addresses.
pub const MAX_BOOTSTRAP: usize = 128;
/// Maximum length of a gossip message, in bytes.
pub const MAX_GOSSIP_BYTES: usize = 64 * 1024;
/// Maximum open streams with a peer, per direction, over all channels.
pub const MAX_STREAMS_PER_PEER: usize = 128;

/// Maximum connections to one peer: normally one, two after simultaneous dials.
pub(super) const MAX_CONNECTIONS_PER_PEER: u32 = 4;
/// Maximum pending connections per direction.
pub(super) const MAX_CONNECTIONS_PENDING: u32 = 64;
/// Share of all connections that may be inbound; the rest is reserved for outbound dials.
pub(super) const INBOUND_SHARE: (u32, u32) = (7, 8);
/// Share of the machine's memory in use by this process above which connections are refused.
pub(super) const MAX_MEMORY_SHARE: f64 = 0.95;

/// Maximum streams of one connection: channels in both directions, and those of ping, identify, gossip and routing.
pub(super) const MAX_STREAMS_PER_CONNECTION: usize = 2 * MAX_STREAMS_PER_PEER + 32;
/// Receive window of one Yamux connection. Each stream has at least 256 KiB; busy streams share the excess.
pub(super) const YAMUX_WINDOW_TOTAL: usize = MAX_STREAMS_PER_CONNECTION * 256 * 1024 + 24 * 1024 * 1024;
/// Maximum Yamux frame: small, so that a short message does not wait long behind a long one.
pub(super) const YAMUX_SPLIT: usize = 16 * 1024;
/// Receive windows of a QUIC stream and of a QUIC connection: the maximum bandwidth-delay product.
pub(super) const QUIC_STREAM_WINDOW: u32 = 6 * 1024 * 1024;
pub(super) const QUIC_CONNECTION_WINDOW: u32 = 24 * 1024 * 1024;
/// Idle timeout of QUIC: a killed process sends nothing over UDP, while TCP is reset at once.
pub(super) const QUIC_IDLE: Duration = Duration::from_secs(5);
/// Keep-alive interval of QUIC; two keep-alives may be lost within [`QUIC_IDLE`].
pub(super) const QUIC_KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// Timeout of a dial of one address including handshakes; equal to QUIC's own. Short, so that a restored line brings up one
/// connection and not every attempt made while it was down.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(6);
/// Time after which a dial starts another attempt in parallel: TCP retransmits after 1, 3 and 7 s.
pub(super) const DIAL_RETRY_AFTER: Duration = Duration::from_secs(1);
/// Timeout of the handshakes of a new connection.
pub(super) const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(20);

/// Ping interval of a connection. At 5 s with 19 neighbours, pings made up four fifths of the 1.7 KB/s that an idle node
/// sent. A silent host is detected by a request to it when an answer is late.
pub(super) const PING_INTERVAL: Duration = Duration::from_secs(15);
/// Timeout of one ping.
pub(super) const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Time without an answered ping after which a connection is closed.
pub(super) const SILENCE_LIMIT: Duration = Duration::from_secs(40);
/// Redial interval of a suspected peer: after an outage, TCP's retransmission backoff can stall a connection for as long as
/// the outage lasted.
pub(super) const SUSPECT_REDIAL_INTERVAL: Duration = Duration::from_secs(2);
/// Time after a suspicion within which a new connection replaces the old ones.
pub(super) const SUSPECT_WINDOW: Duration = Duration::from_secs(10);
/// Time for a connected peer to identify before it is disconnected.
pub(super) const IDENTIFY_DEADLINE: Duration = Duration::from_secs(10);
/// Time that a peer of another network stays connected, so that it can receive the reason as well.
pub(super) const REFUSAL_GRACE: Duration = Duration::from_secs(1);
/// Idle timeout of connections to peers of other protocols. Connections of this network are kept.
pub(super) const IDLE_CONNECTION: Duration = Duration::from_secs(30);
/// Timeout of opening a stream.
pub(super) const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// Timeout of starting all listeners.
pub(super) const LISTEN_DEADLINE: Duration = Duration::from_secs(5);
/// Timeout of a DNS lookup.
pub(super) const RESOLVE_DEADLINE: Duration = Duration::from_secs(5);
/// Timeout of a DHT query.
pub(super) const QUERY_DEADLINE: Duration = Duration::from_secs(10);
/// Maximum time to close connections at shutdown.
pub(super) const CLOSE_DEADLINE: Duration = Duration::from_millis(500);
/// Refresh interval of the routing table; equal to libp2p's.
pub(super) const REFRESH: Duration = Duration::from_secs(5 * 60);
/// Interval of deadline checks.
pub(super) const TICK: Duration = Duration::from_millis(250);

/// Capacity of the command queue.
pub(super) const COMMAND_QUEUE: usize = 256;
/// Maximum pending operations (dials, queries).
pub(super) const MAX_PENDING: usize = 1024;
/// Capacity of a channel's queue of incoming streams; further streams are reset. Fits a burst of one peer.
pub(super) const INCOMING_QUEUE: usize = 2 * MAX_STREAMS_PER_PEER;
/// Capacity of the gossip queue; further messages are dropped. Times [`MAX_GOSSIP_BYTES`] is the memory bound.
pub(super) const GOSSIP_QUEUE: usize = 64;
/// Capacity of the broadcasts of connects and disconnects.
pub(super) const NOTICE_QUEUE: usize = 1024;
/// Maximum disconnected peers remembered.
pub(super) const MAX_PEERS_REMEMBERED: usize = 1024;
/// Maximum addresses stored per peer.
pub(super) const MAX_ADDRESSES_PER_PEER: usize = 16;
/// Maximum discovered peers stored.
pub(super) const MAX_DISCOVERED: usize = 256;
/// Maximum keys in the provider store, and providers per key.
pub(super) const MAX_PROVIDED_KEYS: usize = 8 * 1024;
pub(super) const MAX_PROVIDERS_PER_KEY: usize = 20;
/// Maximum providers returned by one query.
pub(super) const MAX_PROVIDERS_FOUND: usize = 64;
/// Maximum message of the routing protocol, in bytes.
pub(super) const MAX_ROUTING_BYTES: usize = 16 * 1024;

/// Backoff between dials of a disconnected target.
pub(super) const REDIAL_MIN: Duration = Duration::from_secs(1);
pub(super) const REDIAL_MAX: Duration = Duration::from_secs(60);
/// Minimum interval of requested reconnects, and the maximum number of recently disconnected peers that one dials.
pub(super) const RECONNECT_INTERVAL: Duration = Duration::from_secs(1);
pub(super) const MAX_RECONNECTED: usize = 16;
/// Delay of the node with the larger id after mutual discovery, so that one connection results.
pub(super) const DISCOVERY_DELAY: Duration = Duration::from_secs(2);

/// Number of relay reservations of an unreachable node: a second one for when the first relay fails.
pub(super) const RELAYS_USED: usize = 2;
/// Maximum relays stored.
pub(super) const MAX_RELAYS: usize = MAX_BOOTSTRAP;
/// Interval of AutoNAT probes of untested addresses.
pub(super) const AUTONAT_PROBE_INTERVAL: Duration = Duration::from_secs(3);

/// Maximum reservations of a relay, each with one connection out of the default 512, and their duration before renewal.
pub(super) const MAX_RESERVATIONS: usize = 448;
pub(super) const RESERVATION_TIME: Duration = Duration::from_secs(60 * 60);
/// Maximum relayed connections, in total and per peer. Each is a stream on two connections, and a connection carries at
/// most [`MAX_STREAMS_PER_CONNECTION`].
pub(super) const MAX_RELAYED: usize = 2048;
pub(super) const MAX_RELAYED_PER_PEER: usize = 128;
/// Maximum bytes and duration of one relayed connection; a peer may open another. Hidden states of 4,096 floats are 16 KiB
/// per token and direction, so 16 GiB are a million tokens.
pub(super) const MAX_RELAYED_BYTES: u64 = 16 * 1024 * 1024 * 1024;
pub(super) const MAX_RELAYED_TIME: Duration = Duration::from_secs(24 * 60 * 60);
/// Rate limit of a peer's relay requests: burst, and refill interval.
pub(super) const RELAY_REQUEST_BURST: NonZeroU32 = NonZeroU32::MIN.saturating_add(127);
pub(super) const RELAY_REQUEST_INTERVAL: Duration = Duration::from_secs(1);
/// Failed hole punches of a peer before its relayed connections are closed: an honest peer requests three.
pub(super) const MAX_FAILED_HOLE_PUNCHES: u32 = 16;

/// The parsed addresses of a configuration.
pub(super) struct Checked {
    pub listen: Vec<Multiaddr>,
    pub bootstrap: Vec<Multiaddr>,
    pub external: Vec<Multiaddr>,
}

impl NetConfig {
    /// Validates texts and counts as the start does, without network access.
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
