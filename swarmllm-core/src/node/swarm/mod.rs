//! The node among its peers: who is there, what they hold, and what this node tells them. Imports no other folder of the node.

pub(super) mod announce;
pub(super) mod directory;
pub(super) mod greeting;
pub(super) mod invite;
pub(super) mod lookup;
pub(super) mod membership;
pub(super) mod peer_cache;
pub(super) mod peer_exchange;
pub(super) mod speed_cache;
pub(super) mod table_keys;
