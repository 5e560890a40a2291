//! Control: one request and one reply over a stream of its own, apart from activations.

use serde::{Deserialize, Serialize};

use crate::base::{Fault, LayerRange, ModelId, NodeId, SessionId};
use crate::wire::WireError;
use crate::wire::announce::Announcement;
use crate::wire::prefix::Prefix;

/// A request on a control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// First words after connecting, answered by the other's announcement.
    Hello(Announcement),
    /// Asks for a manifest's canonical bytes.
    Manifest { model: ModelId },
    /// Asks to load a stage (if need be) and to admit a session to it.
    Open(OpenSession),
    /// Ends a session at this host, in this epoch and those before. Unknown sessions are fine. Its KV is freed, but for
    /// what is named in `keep`, which the host may keep for as long as it has room, so that the coordinator's next
    /// session begins with it.
    Release { session: SessionId, epoch: u32, keep: Prefix },
    /// Compares the newest records of the two accounts between asker and asked, before one of them is added to.
    Heads(AccountHeads),
    /// Pays for work: a proposal of the ledger, in its own encoding.
    Pay { proposal: Vec<u8> },
    /// Asks whether somebody answers, and still has this stage of the asker's session.
    Alive { session: SessionId, epoch: u32, stage: u32 },
    /// Asks for others of the swarm.
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
    /// To `Heads`: after what was newer has been taken.
    Heads(AccountHeads),
    /// To `Pay`: the record, in its own encoding.
    Paid { record: Vec<u8> },
    /// To `Alive`: whether the stage is there.
    Alive { serves: bool },
    /// To `Peers`: some to whom the asked one is connected. Checked by [`check_peers`].
    Peers(Vec<Host>),
    /// To any request that has to wait for a place: the asker may come back in so many milliseconds.
    Busy { millis: u32 },
}

/// The newest records of two accounts, in the ledger's own encoding.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct AccountHeads {
    /// Of the account in which the sender is the debtor.
    pub debit: Option<Vec<u8>>,
    /// Of the one in which it is the creditor.
    pub credit: Option<Vec<u8>>,
}

/// A session as one stage's host needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenSession {
    /// The session.
    pub session: SessionId,
    /// Grows each time the session gets another route; frames of other epochs are dropped.
    pub epoch: u32,
    /// The model.
    pub model: ModelId,
    /// Engine that must run it: results of different engines differ, so a chain never mixes them.
    pub engine: String,
    /// Layers that this host computes.
    pub layers: LayerRange,
    /// Whether it computes the head too.
    pub head: bool,
    /// Which stage of the plan it is, from 0.
    pub stage: u32,
    /// Positions that the session may use at most.
    pub context: u32,
    /// Positions that it needs at least: its text and a token. The host says how many it grants.
    pub least: u32,
    /// Whether its steps keep their shapes: none is computed together with another session's, or in pieces.
    pub exact: bool,
    /// How its prompt begins.
    pub prefix: Prefix,
    /// Where results go: the next stage's host, or the coordinator behind the last. Addresses that a coordinator names are
    /// not dialled.
    pub next: Host,
    /// The stand-by of the next stage, which gets a copy of each result.
    pub copy: Option<Host>,
    /// Whether this host stands by: it computes the steps as the stage does, and passes nothing on.
    pub stands_by: bool,
    /// Where failures go.
    pub coordinator: Host,
    /// Who sends the steps: the host of the stage before, or the coordinator to the first.
    pub previous: NodeId,
}

/// A node, and where it may be dialled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The node.
    pub node: NodeId,
    /// Its addresses, as multiaddr text.
    pub addresses: Vec<String>,
}

/// A stage host's yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Floats in one hidden state.
    pub width: u32,
    /// Logits in one row, where the head is computed here.
    pub vocab: Option<u32>,
    /// Rows that one step may have.
    pub max_rows: u32,
    /// Positions of the prompt whose KV is there; steps may begin here, or before.
    pub cached: u32,
    /// Positions that the session may use here: at most what was asked for, at least what was needed.
    pub context: u32,
    /// Milliseconds that loading took; 0 where the stage was there.
    pub load_ms: u32,
}

/// Bytes of chance in a session's id.
pub const SESSION_CHANCE: usize = 8;

/// The id of a session: chance, and behind it as much of a digest of that and of the coordinator. Hosts admit nobody else
/// under it, so that who has seen an id cannot take its next routes' places; a stranger would need 2^64 keys for one that fits.
pub fn session_id(coordinator: NodeId, chance: [u8; SESSION_CHANCE]) -> SessionId {
    let digest =
        blake3::Hasher::new_derive_key("swarmllm session id").update(&coordinator.0).update(&chance).finalize();
    let mut id = SessionId([0; 16]);
    id.0[..SESSION_CHANCE].copy_from_slice(&chance);
    id.0[SESSION_CHANCE..].copy_from_slice(&digest.as_bytes()[..16 - SESSION_CHANCE]);
    id
}

/// Whether a session's id is of this coordinator.
pub fn is_session_of(session: SessionId, coordinator: NodeId) -> bool {
    let mut chance = [0; SESSION_CHANCE];
    chance.copy_from_slice(&session.0[..SESSION_CHANCE]);
    session_id(coordinator, chance) == session
}

/// Longest request, in bytes. An announcement has 63 KiB at most, the names of a prompt's beginning 60 KiB.
pub const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Longest reply, in bytes: a manifest of 10,000 tensors is about 1 MiB.
pub const MAX_REPLY_BYTES: usize = 16 * 1024 * 1024;

/// Most peers that one reply names.
pub const MAX_PEERS: usize = 32;
/// Most addresses of each.
pub const MAX_PEER_ADDRESSES: usize = 4;

/// Refuses a reply to `Peers` that is larger than an honest node's. Whether the addresses are any shows when they are dialled.
pub fn check_peers(peers: &[Host]) -> Result<(), WireError> {
    let refuse = |what: &str| Err(WireError::Body(format!("the answer {what}")));
    if peers.len() > MAX_PEERS {
        return refuse("names too many peers");
    }
    if peers.iter().any(|peer| peer.addresses.len() > MAX_PEER_ADDRESSES) {
        return refuse("names a peer with too many addresses");
    }
    let mut addresses = peers.iter().flat_map(|peer| &peer.addresses);
    match addresses.any(|text| text.len() > Announcement::MAX_TEXT) {
        true => refuse("holds a text that is too long"),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_s_id_is_of_one_coordinator() {
        let [ours, other] = [1, 2].map(|name| NodeId([name; 32]));
        let session = session_id(ours, [7; SESSION_CHANCE]);
        assert!(is_session_of(session, ours) && !is_session_of(session, other));
        assert_ne!(session, session_id(ours, [8; SESSION_CHANCE]));
        assert!(!is_session_of(SessionId([7; 16]), ours));
    }

    #[test]
    fn peers_that_are_many_or_have_many_or_long_addresses_are_refused() {
        let of = |count, addresses, length| {
            check_peers(&vec![Host { node: NodeId([1; 32]), addresses: vec!["x".repeat(length); addresses] }; count])
        };
        assert!(of(MAX_PEERS, MAX_PEER_ADDRESSES, Announcement::MAX_TEXT).is_ok());
        assert!(of(MAX_PEERS + 1, 1, 1).is_err());
        assert!(of(1, MAX_PEER_ADDRESSES + 1, 1).is_err());
        assert!(of(1, 1, Announcement::MAX_TEXT + 1).is_err());
    }
}
