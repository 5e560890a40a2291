//! Conversion between node ids and libp2p peer ids, and parsing and scope of addresses.

use std::net::IpAddr;

use libp2p::identity::{PublicKey, ed25519};
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId};

use super::NetError;
use crate::base::NodeId;

/// Maximum length of an address text.
const MAX_ADDRESS_BYTES: usize = 512;
/// Multihash code of an inlined public key.
const IDENTITY_HASH: u64 = 0;

/// The node of a peer id. An Ed25519 peer id contains the public key; other key types are not nodes.
pub(super) fn node_of(peer: &PeerId) -> Option<NodeId> {
    let hash = peer.as_ref();
    if hash.code() != IDENTITY_HASH {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?;
    Some(NodeId(key.try_into_ed25519().ok()?.to_bytes()))
}

/// The peer id of a node; `None` if the id is not a valid public key.
pub(super) fn peer_of(node: &NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(node.as_bytes()).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// Transport of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// TCP with Noise and Yamux.
    Tcp,
    /// QUIC.
    Quic,
    /// Relayed by another peer, which cannot read the bytes: Noise and Yamux over TCP or QUIC to that peer.
    Relay,
}

impl TransportKind {
    /// `tcp`, `quic` or `relay`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
            Self::Relay => "relay",
        }
    }

    pub(super) fn of(address: &Multiaddr) -> Self {
        let has = |wanted: fn(&Protocol<'_>) -> bool| address.iter().any(|part| wanted(&part));
        match (has(|part| matches!(part, Protocol::P2pCircuit)), has(|part| matches!(part, Protocol::QuicV1))) {
            (true, _) => Self::Relay,
            (false, true) => Self::Quic,
            (false, false) => Self::Tcp,
        }
    }
}

impl std::fmt::Display for TransportKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

fn bad_address(address: &str, reason: impl Into<String>) -> NetError {
    NetError::BadAddress { address: address.chars().take(MAX_ADDRESS_BYTES).collect(), reason: reason.into() }
}

/// Parses an address of a supported form: `/ip4|ip6|dns../tcp/N` or `/../udp/N/quic-v1`, each optionally followed by
/// `/p2p/RELAY/p2p-circuit`, with an optional `/p2p/` at the end.
fn parse(text: &str) -> Result<Multiaddr, NetError> {
    if text.len() > MAX_ADDRESS_BYTES {
        return Err(bad_address(text, "it is too long"));
    }
    let address: Multiaddr = text.parse().map_err(|error| bad_address(text, format!("{error}")))?;
    if !is_usable(&address) {
        return Err(bad_address(
            text,
            "it is neither /…/tcp/PORT nor /…/udp/PORT/quic-v1, nor a relayed address over one of them",
        ));
    }
    Ok(address)
}

fn is_usable(address: &Multiaddr) -> bool {
    let parts: Vec<Protocol<'_>> = address.iter().collect();
    let (host, rest) = match parts.split_first() {
        Some(split) => split,
        None => return false,
    };
    use Protocol::{Dns, Dns4, Dns6, Ip4, Ip6, P2p, P2pCircuit, QuicV1, Tcp, Udp};
    let beyond = match rest {
        [Tcp(_), beyond @ ..] | [Udp(_), QuicV1, beyond @ ..] => beyond,
        _ => return false,
    };
    matches!(host, Ip4(_) | Ip6(_) | Dns(_) | Dns4(_) | Dns6(_))
        && matches!(beyond, [] | [P2p(_)] | [P2p(_), P2pCircuit] | [P2p(_), P2pCircuit, P2p(_)])
}

/// An address to listen on: an IP without a peer id.
pub(super) fn parse_listen(text: &str) -> Result<Multiaddr, NetError> {
    let address = parse(text)?;
    match (ip(&address), peer_in(&address)) {
        (None, _) => Err(bad_address(text, "a listen address must be an IP address")),
        (_, Some(_)) => Err(bad_address(text, "a listen address has no peer id")),
        _ if is_relayed(&address) => Err(bad_address(
            text,
            "relayed addresses cannot be listened on; relays among the bootstrap peers are used automatically",
        )),
        _ => Ok(address),
    }
}

/// An address to dial, with or without `/p2p/` at the end.
pub(super) fn parse_dial(text: &str) -> Result<Multiaddr, NetError> {
    let address = parse(text)?;
    if port(&address) == 0 {
        return Err(bad_address(text, "port 0 cannot be dialled"));
    }
    if ip(&address).is_some_and(|ip| ip.is_unspecified()) {
        return Err(bad_address(text, "the unspecified address cannot be dialled"));
    }
    if peer_in(&address).is_some_and(|peer| node_of(&peer).is_none()) {
        return Err(bad_address(text, "its peer id is not an Ed25519 key"));
    }
    Ok(address)
}

/// The peer id at the end.
pub(super) fn peer_in(address: &Multiaddr) -> Option<PeerId> {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => Some(peer),
        _ => None,
    }
}

/// The address with its final peer id set to this one.
pub(super) fn with_peer(address: &Multiaddr, peer: PeerId) -> Multiaddr {
    without_peer(address).with(Protocol::P2p(peer))
}

/// The address without its final peer id.
pub(super) fn without_peer(address: &Multiaddr) -> Multiaddr {
    let mut address = address.clone();
    if matches!(address.iter().last(), Some(Protocol::P2p(_))) {
        address.pop();
    }
    address
}

/// Whether the address goes through a relay.
pub(super) fn is_relayed(address: &Multiaddr) -> bool {
    TransportKind::of(address) == TransportKind::Relay
}

/// The listen address for connections relayed by the relay at this address.
pub(super) fn relay_listen_address(relay: &Multiaddr, peer: PeerId) -> Multiaddr {
    with_peer(relay, peer).with(Protocol::P2pCircuit)
}

/// The IP address at the start.
pub(super) fn ip(address: &Multiaddr) -> Option<IpAddr> {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => Some(ip.into()),
        Some(Protocol::Ip6(ip)) => Some(ip.into()),
        _ => None,
    }
}

/// The TCP or UDP port, 0 without one.
pub(super) fn port(address: &Multiaddr) -> u16 {
    let port = |part| match part {
        Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
        _ => None,
    };
    address.iter().find_map(port).unwrap_or(0)
}

/// Whether to store an address claimed by a peer that is connected from `seen`: of a supported form, dialable, and not a
/// loopback address unless the peer is on this machine.
pub(super) fn is_worth_storing(claimed: &Multiaddr, seen: &Multiaddr) -> bool {
    let loopback = |address| ip(address).is_some_and(|ip: IpAddr| ip.is_loopback());
    is_usable(claimed)
        && port(claimed) != 0
        && !ip(claimed).is_some_and(|ip| ip.is_unspecified() || ip.is_multicast())
        && (!loopback(claimed) || loopback(seen))
}

/// Reach of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Scope {
    /// This machine, or unknown.
    Machine,
    /// The local site.
    Site,
    /// The same destination from everywhere.
    Global,
}

fn scope(ip: IpAddr) -> Scope {
    // Carrier-grade NAT: 100.64.0.0/10.
    let is_shared = |[first, second, ..]: [u8; 4]| first == 100 && second & 0xc0 == 64;
    let ip = ip.to_canonical();
    let on_site = match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_broadcast() || is_shared(ip.octets()),
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    };
    match (ip.is_loopback() || ip.is_unspecified() || ip.is_multicast(), on_site) {
        (true, _) => Scope::Machine,
        (false, true) => Scope::Site,
        (false, false) => Scope::Global,
    }
}

/// Whether the address is globally routable.
pub(super) fn is_global(ip: IpAddr) -> bool {
    scope(ip) == Scope::Global
}

/// Whether an address reported by a peer connected from `seen` may be dialled. A remote peer may not report addresses of
/// this machine or site, nor names, which can resolve to either.
pub(super) fn may_report(seen: Option<&Multiaddr>, reported: &Multiaddr) -> bool {
    let reporter = seen.and_then(ip).map_or(Scope::Global, scope);
    ip(reported).map_or(Scope::Machine, scope) >= reporter
}

/// The DNS name at the start of an address, and whether IPv4 and IPv6 results are accepted. A relayed address returns
/// `None`: the name of the relay is resolved when the relay is dialled.
pub(super) fn dns_name(address: &Multiaddr) -> Option<(String, bool, bool)> {
    if is_relayed(address) {
        return None;
    }
    match address.iter().next() {
        Some(Protocol::Dns(name)) => Some((name.into_owned(), true, true)),
        Some(Protocol::Dns4(name)) => Some((name.into_owned(), true, false)),
        Some(Protocol::Dns6(name)) => Some((name.into_owned(), false, true)),
        _ => None,
    }
}

/// The address with its host replaced.
pub(super) fn with_ip(address: &Multiaddr, ip: IpAddr) -> Multiaddr {
    std::iter::once(Protocol::from(ip)).chain(address.iter().skip(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Keypair;

    #[test]
    fn node_and_peer_ids_convert_both_ways() {
        let node = Keypair::from_seed(&[3; 32]).node_id();
        let peer = peer_of(&node).unwrap();
        assert_eq!(node_of(&peer), Some(node));
    }

    #[test]
    fn peer_ids_of_other_key_types_are_not_nodes() {
        // A SHA-256 multihash, as for RSA keys.
        let hash = libp2p::multihash::Multihash::<64>::wrap(0x12, &[5; 32]).unwrap();
        assert_eq!(node_of(&PeerId::from_multihash(hash).unwrap()), None);
        // An inlined secp256k1 key.
        let mut inline = vec![8, 2, 18, 33, 2];
        inline.extend([9; 32]);
        let hash = libp2p::multihash::Multihash::<64>::wrap(IDENTITY_HASH, &inline).unwrap();
        assert_eq!(PeerId::from_multihash(hash).ok().and_then(|peer| node_of(&peer)), None);
    }

    #[test]
    fn only_dialable_addresses_are_parsed() {
        let peer = peer_of(&Keypair::from_seed(&[3; 32]).node_id()).unwrap();
        for good in [
            "/ip4/10.0.0.1/tcp/1".to_string(),
            "/ip6/::1/udp/9/quic-v1".to_string(),
            format!("/dns4/host.example/tcp/8810/p2p/{peer}"),
            format!("/ip4/10.0.0.1/udp/1/quic-v1/p2p/{peer}/p2p-circuit/p2p/{peer}"),
        ] {
            assert_eq!(parse_dial(&good).unwrap().to_string(), good);
        }
        for bad_address in [
            "",
            "10.0.0.1:80",
            "/ip4/10.0.0.1",
            "/ip4/10.0.0.1/udp/1",
            "/ip4/10.0.0.1/tcp/0",
            "/ip4/0.0.0.0/tcp/1",
            "/ip4/10.0.0.1/tcp/1/ws",
            "/ip4/10.0.0.1/tcp/99999",
            "/ip4/10.0.0.1/tcp/1/p2p-circuit",
            &format!("/ip4/10.0.0.1/tcp/1/p2p/{peer}/p2p-circuit/p2p/{peer}/p2p-circuit"),
            &format!("/ip4/10.0.0.1/tcp/1/p2p/{peer}/p2p-circuit/ip4/10.0.0.2/tcp/1"),
            &"/ip4/10.0.0.1/tcp/1".repeat(100),
        ] {
            assert!(matches!(parse_dial(bad_address), Err(NetError::BadAddress { .. })), "{bad_address}");
        }
    }

    #[test]
    fn a_relayed_address_keeps_its_relay_without_the_peer() {
        let [relay, peer] = [3, 4].map(|seed| peer_of(&Keypair::from_seed(&[seed; 32]).node_id()).unwrap());
        let through = relay_listen_address(&"/ip4/10.0.0.1/tcp/1".parse().unwrap(), relay);
        assert!(is_relayed(&through) && through.to_string().ends_with(&format!("{relay}/p2p-circuit")));
        let whole = with_peer(&through, peer);
        assert_eq!((peer_in(&whole), without_peer(&whole)), (Some(peer), through));
        assert!(parse_listen(&without_peer(&whole).to_string()).is_err());
    }

    #[test]
    fn remote_peers_may_not_report_local_addresses() {
        let read = |text: &str| text.parse::<Multiaddr>().unwrap();
        let reports = |seen: &str, reported: &str| may_report(Some(&read(seen)), &read(reported));
        let (machine, site, world) = ("/ip4/127.0.0.1/tcp/7", "/ip4/192.168.1.2/tcp/7", "/ip4/8.8.4.4/tcp/7");
        for near in [machine, "/ip6/::1/tcp/7", "/ip6/::ffff:127.0.0.1/tcp/7", "/ip4/0.0.0.0/tcp/7", "/dns4/home/tcp/7"]
        {
            assert!(reports(machine, near) && !reports(site, near) && !reports(world, near), "{near}");
        }
        for on_site in
            [site, "/ip4/100.64.0.1/tcp/7", "/ip4/169.254.0.1/tcp/7", "/ip6/fd00::1/tcp/7", "/ip6/fe80::1/tcp/7"]
        {
            assert!(reports(machine, on_site) && reports(site, on_site) && !reports(world, on_site), "{on_site}");
        }
        assert!(reports(machine, world) && reports(site, world) && reports(world, world));
        assert!(reports("/dns4/far.example/tcp/7", world) && !reports("/dns4/far.example/tcp/7", site));
        assert!(
            may_report(None, &read(world)) && !may_report(None, &read(site)),
            "a disconnected reporter counts as remote"
        );
    }

    #[test]
    fn the_loopback_address_of_a_remote_peer_is_not_stored() {
        let read = |text: &str| text.parse::<Multiaddr>().unwrap();
        let (loopback, lan) = (read("/ip4/127.0.0.1/tcp/7"), read("/ip4/192.168.1.2/tcp/7"));
        assert!(!is_worth_storing(&loopback, &lan));
        assert!(is_worth_storing(&loopback, &loopback));
        assert!(is_worth_storing(&lan, &lan));
        assert!(!is_worth_storing(&read("/ip4/0.0.0.0/tcp/7"), &lan));
    }
}
