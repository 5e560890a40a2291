//! The protocols of the swarm task and their limits.

use std::num::NonZeroUsize;
use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::{self, MessageAuthenticity, PeerScoreParams, PeerScoreThresholds, ValidationMode};
use libp2p::kad::store::{MemoryStore, MemoryStoreConfig};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{
    PeerId, StreamProtocol, autonat, dcutr, identify, identity, kad, mdns, memory_connection_limits, ping, relay, upnp,
};

use super::config::{self, NetConfig};
use super::protocols::{identify_protocol, protocol, topic};
use super::{NetError, per_address, streams};

/// Interval of provider announcements, and their time to live.
const PROVIDE_INTERVAL: Duration = Duration::from_secs(10 * 60);
const PROVIDE_EXPIRES: Duration = Duration::from_secs(30 * 60);
/// Length of the gossip message history, in heartbeats of 1 s.
const GOSSIP_HISTORY: usize = 5;
/// Bytes allowed for signature, topic and framing of a gossip message.
const GOSSIP_OVERHEAD: usize = 1024;
/// Gossip messages queued per peer.
const GOSSIP_QUEUE_PER_PEER: usize = 64;

#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    // The limits come first: the other protocols do not see denied connections.
    limits: connection_limits::Behaviour,
    per_address: per_address::Behaviour,
    memory: memory_connection_limits::Behaviour,
    pub identify: identify::Behaviour,
    pub ping: ping::Behaviour,
    pub streams: streams::Behaviour,
    pub gossip: gossipsub::Behaviour,
    pub routing: kad::Behaviour<MemoryStore>,
    mdns: Toggle<mdns::tokio::Behaviour>,
    // NAT traversal: reachability probes, relay reservations, and the upgrade of relayed connections to direct ones.
    autonat_client: autonat::v2::client::Behaviour,
    autonat_server: Toggle<autonat::v2::server::Behaviour>,
    relay_client: relay::client::Behaviour,
    relay_server: Toggle<relay::Behaviour>,
    dcutr: dcutr::Behaviour,
    upnp: Toggle<upnp::tokio::Behaviour>,
}

fn setup(what: &str, error: impl std::fmt::Display) -> NetError {
    NetError::Setup { reason: format!("{what}: {error}") }
}

impl Behaviour {
    /// Must be called within the runtime of the swarm.
    pub fn new(
        config: &NetConfig,
        key: &identity::Keypair,
        streams: streams::Behaviour,
        relay_client: relay::client::Behaviour,
    ) -> Result<Self, NetError> {
        let local = key.public().to_peer_id();
        let identify = identify::Config::new(identify_protocol(&config.network), key.public())
            .with_agent_version(config.agent.clone())
            .with_push_listen_addr_updates(true);
        let ping = ping::Config::new().with_interval(config::PING_INTERVAL).with_timeout(config::PING_TIMEOUT);
        Ok(Self {
            limits: connection_limits::Behaviour::new(limits(config.max_connections)),
            per_address: per_address::Behaviour::new(
                config.key.is_none().then_some(config.max_per_address),
                config.count_loopback,
            ),
            memory: memory_connection_limits::Behaviour::with_max_percentage(config::MAX_MEMORY_SHARE),
            identify: identify::Behaviour::new(identify),
            ping: ping::Behaviour::new(ping),
            streams,
            gossip: gossip(&config.network, key)?,
            routing: routing(&config.network, local)?,
            mdns: discovery(config.mdns, local).into(),
            autonat_client: autonat::v2::client::Behaviour::new(rand::make_rng(), autonat_probes()),
            autonat_server: config.relay.then(autonat::v2::server::Behaviour::default).into(),
            relay_client,
            relay_server: config.relay.then(|| relay::Behaviour::new(local, relay_limits())).into(),
            dcutr: dcutr::Behaviour::new(local),
            upnp: config.upnp.then(upnp::tokio::Behaviour::default).into(),
        })
    }
}

fn limits(total: u32) -> ConnectionLimits {
    let (part, whole) = config::INBOUND_SHARE;
    ConnectionLimits::default()
        .with_max_established(Some(total))
        .with_max_established_incoming(Some((total / whole).saturating_mul(part).max(1)))
        .with_max_established_per_peer(Some(config::MAX_CONNECTIONS_PER_PEER))
        .with_max_pending_incoming(Some(config::MAX_CONNECTIONS_PENDING))
        .with_max_pending_outgoing(Some(config::MAX_CONNECTIONS_PENDING))
}

fn autonat_probes() -> autonat::v2::client::Config {
    autonat::v2::client::Config::default().with_probe_interval(config::AUTONAT_PROBE_INTERVAL)
}

fn relay_limits() -> relay::Config {
    let limits = relay::Config {
        max_reservations: config::MAX_RESERVATIONS,
        reservation_duration: config::RESERVATION_TIME,
        max_circuits: config::MAX_RELAYED,
        max_circuits_per_peer: config::MAX_RELAYED_PER_PEER,
        max_circuit_duration: config::MAX_RELAYED_TIME,
        max_circuit_bytes: config::MAX_RELAYED_BYTES,
        // Rate limits per peer only: many nodes behind one address are common.
        reservation_rate_limiters: Vec::new(),
        circuit_src_rate_limiters: Vec::new(),
        ..relay::Config::default()
    };
    limits
        .reservation_rate_per_peer(config::RELAY_REQUEST_BURST, config::RELAY_REQUEST_INTERVAL)
        .circuit_src_per_peer(config::RELAY_REQUEST_BURST, config::RELAY_REQUEST_INTERVAL)
}

fn gossip(network: &str, key: &identity::Keypair) -> Result<gossipsub::Behaviour, NetError> {
    let config = gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(protocol(network, "gossip"))
        .validation_mode(ValidationMode::Strict)
        .max_transmit_size(config::MAX_GOSSIP_BYTES + GOSSIP_OVERHEAD)
        .history_length(GOSSIP_HISTORY)
        .connection_handler_queue_len(GOSSIP_QUEUE_PER_PEER)
        .build()
        .map_err(|error| setup("gossip", error))?;
    let mut gossip = gossipsub::Behaviour::new(MessageAuthenticity::Signed(key.clone()), config)
        .map_err(|error| setup("gossip", error))?;
    // Many nodes behind one address are common (a lab, a home), so shared addresses do not lower the score.
    let score = PeerScoreParams { ip_colocation_factor_weight: 0.0, ..PeerScoreParams::default() };
    gossip.with_peer_score(score, PeerScoreThresholds::default()).map_err(|error| setup("gossip", error))?;
    gossip.subscribe(&topic(network)).map_err(|error| setup("gossip", error))?;
    Ok(gossip)
}

fn routing(network: &str, local: PeerId) -> Result<kad::Behaviour<MemoryStore>, NetError> {
    let config = routing_config(network)?;
    let store = MemoryStoreConfig {
        // Only provider records are stored.
        max_records: 0,
        max_value_bytes: 0,
        max_provided_keys: config::MAX_PROVIDED_KEYS,
        max_providers_per_key: config::MAX_PROVIDERS_PER_KEY,
    };
    let mut routing = kad::Behaviour::with_config(local, MemoryStore::with_config(local, store), config);
    routing.set_mode(Some(kad::Mode::Server));
    Ok(routing)
}

fn routing_config(network: &str) -> Result<kad::Config, NetError> {
    let name = StreamProtocol::try_from_owned(protocol(network, "kad")).map_err(|error| setup("routing", error))?;
    let mut config = kad::Config::new(name);
    config
        .disjoint_query_paths(true)
        .set_query_timeout(config::QUERY_DEADLINE)
        .set_substreams_timeout(config::QUERY_DEADLINE)
        .set_max_packet_size(config::MAX_ROUTING_BYTES)
        .set_record_ttl(None)
        .set_replication_interval(None)
        .set_publication_interval(None)
        .set_provider_record_ttl(Some(PROVIDE_EXPIRES))
        .set_provider_publication_interval(Some(PROVIDE_INTERVAL))
        // The driver refreshes the table. libp2p would also try with an empty table and log a warning each time.
        .set_periodic_bootstrap_interval(None)
        // Peers are inserted once they have identified as nodes of this network.
        .set_kbucket_inserts(kad::BucketInserts::Manual);
    if let Some(replicas) = NonZeroUsize::new(config::MAX_PROVIDERS_PER_KEY) {
        config.set_replication_factor(replicas);
    }
    Ok(config)
}

/// mDNS if enabled and available: a machine without multicast still has a network.
fn discovery(wanted: bool, local: PeerId) -> Option<mdns::tokio::Behaviour> {
    if !wanted {
        return None;
    }
    mdns::tokio::Behaviour::new(mdns::Config::default(), local)
        .inspect_err(|error| tracing::warn!(%error, "mDNS is not available; peers on the LAN are not discovered"))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libp2p_does_not_refresh_the_routing_table_itself() {
        let config = format!("{:?}", routing_config("alone").unwrap());
        assert!(config.contains("periodic_bootstrap_interval: None"), "{config}");
    }
}
