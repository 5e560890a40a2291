//! Conversion of libp2p's dial and listen errors.

use libp2p::swarm::DialError;
use libp2p::{Multiaddr, PeerId};

use super::NetError;
use super::dial_transport::WrongPeer;

/// The error of a failed dial; `WrongPeer` if other peers answered at all addresses.
pub(super) fn dial_error(address: String, error: &DialError) -> NetError {
    let unreachable = |address, reason: String| NetError::Unreachable { address, reason };
    match error {
        DialError::LocalPeerId { .. } => NetError::SelfDial { address },
        DialError::WrongPeerId { obtained, .. } => NetError::WrongPeer { address, found: obtained.to_string() },
        DialError::NoAddresses => unreachable(address, "no address is known".into()),
        DialError::Denied { cause } => unreachable(address, cause.to_string()),
        DialError::Aborted | DialError::DialPeerConditionFalse(_) => {
            unreachable(address, "the dial was aborted".into())
        }
        DialError::Transport(errors) => {
            let others: Vec<PeerId> = errors.iter().filter_map(|(_, error)| wrong_peer(error)).collect();
            if let (Some(found), true) = (others.first(), others.len() == errors.len()) {
                return NetError::WrongPeer { address, found: found.to_string() };
            }
            let reasons: Vec<String> = errors.iter().map(|(_, error)| root_cause(error)).collect();
            unreachable(address, reasons.join("; "))
        }
    }
}

/// The error of a listener, with its root cause.
pub(super) fn listen_error(address: &Multiaddr, error: &(dyn std::error::Error + 'static)) -> NetError {
    NetError::Listen { address: address.to_string(), reason: root_cause(error) }
}

/// The peer that answered instead of the expected one. `source` does not return the inner error of an `io::Error`.
fn wrong_peer(error: &(dyn std::error::Error + 'static)) -> Option<PeerId> {
    if let Some(WrongPeer(peer)) = error.downcast_ref() {
        return Some(*peer);
    }
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => wrong_peer(inner),
        None => error.source().and_then(wrong_peer),
    }
}

/// The innermost message: the outer ones only state that a transport failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
