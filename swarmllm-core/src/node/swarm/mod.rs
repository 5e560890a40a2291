//! Peers of the node: what they hold, what this node announces, membership. Imports no other folder of the node.

pub(super) mod announcer;
pub(super) mod dht_keys;
pub(super) mod greeting;
pub(super) mod invite;
pub(super) mod lookup;
pub(super) mod membership;
pub(super) mod peer_cache;
pub(super) mod peer_exchange;
pub(super) mod registry;
pub(super) mod speed_cache;
