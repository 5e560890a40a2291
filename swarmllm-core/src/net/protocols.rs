//! Names of this network's protocols.

use libp2p::gossipsub;

use crate::wire::PROTOCOL_VERSION;

/// The name of one of this network's protocols.
pub(super) fn protocol(network: &str, what: &str) -> String {
    format!("/swarmllm/{PROTOCOL_VERSION}/{network}/{what}")
}

/// The identify protocol version of nodes of this network.
pub(super) fn identify_protocol(network: &str) -> String {
    protocol(network, "node")
}

/// Prefix of the identify protocol version of every version and network.
pub(super) const PROTOCOL_PREFIX: &str = "/swarmllm/";

/// The gossip topic.
pub(super) fn topic(network: &str) -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new(format!("{network}/announce"))
}
