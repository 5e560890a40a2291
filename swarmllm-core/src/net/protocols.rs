//! What this network's protocols are called.

use libp2p::gossipsub;

use crate::wire::PROTOCOL_VERSION;

/// The name of one of this network's protocols.
pub(super) fn protocol(network: &str, what: &str) -> String {
    format!("/swarmllm/{PROTOCOL_VERSION}/{network}/{what}")
}

/// What peers of this network say in identify.
pub(super) fn greeting(network: &str) -> String {
    protocol(network, "node")
}

/// The start of every version's and network's greeting.
pub(super) const GREETING_START: &str = "/swarmllm/";

/// The one gossip topic.
pub(super) fn topic(network: &str) -> gossipsub::IdentTopic {
    gossipsub::IdentTopic::new(format!("{network}/announce"))
}
