//! Control messages: one request and one reply over a stream of its own, separate from activations.

use serde::{Deserialize, Serialize};

use crate::base::{Fault, LayerRange, ModelId, NodeId, SessionId};
use crate::wire::WireError;
use crate::wire::announce::Announcement;
use crate::wire::prefix::Prefix;

/// A request on a control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// First request on a connection; the reply is the other node's announcement.
    Hello(Announcement),
    /// Requests a manifest's canonical bytes.
    Manifest { model: ModelId },
    /// Opens a session at a stage; loads the stage if needed.
    Open(OpenSession),
    /// Ends a session at this host, in this epoch and earlier ones. Unknown sessions are ignored. Frees its KV except for
    /// the prefix `keep`, which the host may cache for the coordinator's next session.
    Release { session: SessionId, epoch: u32, keep: Prefix },
    /// Exchanges the newest records of both accounts of the two nodes, before a payment.
    Heads(AccountHeads),
    /// Pays for work with a ledger proposal in its own encoding.
    Pay { proposal: Vec<u8> },
    /// Probes the host, and whether it still has this stage of the sender's session.
    Alive { session: SessionId, epoch: u32, stage: u32 },
    /// Requests addresses of other nodes.
    Peers,
}

/// The reply to a [`Request`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Hello`.
    Hello(Announcement),
    /// To `Manifest`.
    Manifest { bytes: Vec<u8> },
    /// To `Open`.
    Opened(Opened),
    /// To `Release`.
    Released,
    /// To any request.
    Refused(Fault),
    /// To `Heads`: the records after newer ones were adopted.
    Heads(AccountHeads),
    /// To `Pay`: the record in its own encoding.
    Paid { record: Vec<u8> },
    /// To `Alive`: whether the host has the stage.
    Alive { serves: bool },
    /// To `Peers`: nodes connected to the replying one. Checked by [`check_peers`].
    Peers(Vec<Host>),
    /// To any request beyond the capacity: the sender may retry after `millis` milliseconds.
    Busy { millis: u32 },
}

/// The newest records of two accounts, in the ledger's own encoding.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AccountHeads {
    /// Record of the account with the sender as debtor.
    pub debit: Option<Vec<u8>>,
    /// Record of the account with the sender as creditor.
    pub credit: Option<Vec<u8>>,
}

/// The parameters of a session for the host of one stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    /// The session.
    pub session: SessionId,
    /// Increases with each new route of the session; frames of other epochs are dropped.
    pub epoch: u32,
    /// The model.
    pub model: ModelId,
    /// Required engine: results of engines differ, so a route never mixes them.
    pub engine: String,
    /// Layers to compute.
    pub layers: LayerRange,
    /// Whether to compute the head.
    pub head: bool,
    /// Index of the stage in the plan, from 0.
    pub stage: u32,
    /// Maximum positions of the session.
    pub context: u32,
    /// Minimum positions: the text and one token. The host replies with the granted number.
    pub least: u32,
    /// Whether steps keep their shapes: no batching with other sessions, no splitting.
    pub exact: bool,
    /// Prefix of the prompt.
    pub prefix: Prefix,
    /// Receiver of results: the next stage's host, or the coordinator after the last stage. Addresses given by a coordinator
    /// are not dialled.
    pub next: Host,
    /// Standby of the next stage; receives a copy of each result.
    pub copy: Option<Host>,
    /// Whether this host is a hot standby: it computes the steps of the stage and sends no results.
    pub is_standby: bool,
    /// Receiver of failures.
    pub coordinator: Host,
    /// Sender of steps: the previous stage's host, or the coordinator for the first stage.
    pub previous: NodeId,
}

/// A node and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The node.
    pub node: NodeId,
    /// Its addresses, as multiaddr text.
    pub addresses: Vec<String>,
}

/// A stage host's acceptance of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Floats in one hidden state.
    pub width: u32,
    /// Logits per row, if the host computes the head.
    pub vocab: Option<u32>,
    /// Maximum rows of a step.
    pub max_rows: u32,
    /// Prompt positions with cached KV; steps may start at this position or earlier.
    pub cached: u32,
    /// Granted positions, from `least` to `context` of the request.
    pub context: u32,
    /// Milliseconds to load the stage; 0 if it was loaded.
    pub load_ms: u32,
}

/// Random bytes in a session id.
pub const SESSION_NONCE_BYTES: usize = 8;

/// The id of a session: random bytes, followed by the same number of bytes of a digest of them and the coordinator. Hosts
/// accept the id only from that coordinator, so that other nodes that have seen it cannot occupy the session's next route.
/// Finding another key that matches takes 2^64 attempts.
pub fn session_id(coordinator: NodeId, nonce: [u8; SESSION_NONCE_BYTES]) -> SessionId {
    let digest = blake3::Hasher::new_derive_key("swarmllm session id").update(&coordinator.0).update(&nonce).finalize();
    let mut id = SessionId([0; 16]);
    id.0[..SESSION_NONCE_BYTES].copy_from_slice(&nonce);
    id.0[SESSION_NONCE_BYTES..].copy_from_slice(&digest.as_bytes()[..16 - SESSION_NONCE_BYTES]);
    id
}

/// Whether a session id belongs to this coordinator.
pub fn is_session_of(session: SessionId, coordinator: NodeId) -> bool {
    let mut nonce = [0; SESSION_NONCE_BYTES];
    nonce.copy_from_slice(&session.0[..SESSION_NONCE_BYTES]);
    session_id(coordinator, nonce) == session
}

/// Maximum length of a request in bytes. An announcement has at most 63 KiB, the hashes of a prompt prefix 60 KiB.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Maximum length of a reply in bytes: a manifest of 10,000 tensors is about 1 MiB.
pub const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// Maximum peers in a reply.
pub const MAX_PEERS: usize = 32;
/// Maximum addresses per peer.
pub const MAX_PEER_ADDRESSES: usize = 4;

/// Checks the limits of a reply to `Peers`. Addresses are validated when dialled.
pub fn check_peers(peers: &[Host]) -> Result<(), WireError> {
    let refuse = |what: &str| Err(WireError::Body(format!("the peer list {what}")));
    if peers.len() > MAX_PEERS {
        return refuse("has too many peers");
    }
    if peers.iter().any(|peer| peer.addresses.len() > MAX_PEER_ADDRESSES) {
        return refuse("has a peer with too many addresses");
    }
    let mut addresses = peers.iter().flat_map(|peer| &peer.addresses);
    match addresses.any(|text| text.len() > Announcement::MAX_TEXT) {
        true => refuse("has an address that is too long"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_id_belongs_to_one_coordinator() {
        let [ours, other] = [1, 2].map(|name| NodeId([name; 32]));
        let session = session_id(ours, [7; SESSION_NONCE_BYTES]);
        assert!(is_session_of(session, ours) && !is_session_of(session, other));
        assert_ne!(session, session_id(ours, [8; SESSION_NONCE_BYTES]));
        assert!(!is_session_of(SessionId([7; 16]), ours));
    }

    #[test]
    fn too_many_peers_or_addresses_are_refused() {
        let of = |count, addresses, length| {
            check_peers(&vec![Host { node: NodeId([1; 32]), addresses: vec!["x".repeat(length); addresses] }; count])
        };
        assert!(of(MAX_PEERS, MAX_PEER_ADDRESSES, Announcement::MAX_TEXT).is_ok());
        assert!(of(MAX_PEERS + 1, 1, 1).is_err());
        assert!(of(1, MAX_PEER_ADDRESSES + 1, 1).is_err());
        assert!(of(1, 1, Announcement::MAX_TEXT + 1).is_err());
    }
}
