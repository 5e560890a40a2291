//! Limits inbound connections per address, independently of the number of keys.
//!
//! Keys are free, addresses are not: without this limit, 112 keys of one machine fill a node. A whole subnet is cheap too,
//! so subnets that one party can own are limited as well. Relayed connections are limited at the relay.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::task::{Context, Poll};

use libp2p::PeerId;
use libp2p::core::transport::PortUse;
use libp2p::core::{ConnectedPoint, Endpoint, Multiaddr};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, dummy,
};

use super::address;
use super::config::NETWORK_FACTOR;

/// The behaviour, see the module.
pub(super) struct Behaviour {
    /// Maximum connections per address; `None`: no limit.
    max: Option<u32>,
    /// Whether connections from this machine are counted.
    loopback: bool,
    connections: HashMap<Subnet, u32>,
}

/// A subnet that is counted as a unit: its first address and its prefix length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Subnet {
    first: IpAddr,
    bits: u32,
}

impl Subnet {
    fn of(ip: IpAddr, bits: u32) -> Self {
        let first = match ip {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & !u32::MAX.checked_shr(bits).unwrap_or(0)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::MAX.checked_shr(bits).unwrap_or(0)).into(),
        };
        Self { first, bits }
    }
}

/// The connection limit of an address or subnet is reached.
#[derive(Debug, thiserror::Error)]
#[error("{count} connections from {}/{} are open, the maximum", .subnet.first, .subnet.bits)]
struct TooMany {
    count: u32,
    subnet: Subnet,
}

impl Behaviour {
    pub fn new(max: Option<u32>, loopback: bool) -> Self {
        Self { max, loopback, connections: HashMap::new() }
    }

    /// The subnets that an address counts towards, each with its limit in multiples of the limit of one address: the IPv4
    /// address or the IPv6 /64, which one machine can own; and the surrounding network, which one party can own. For private
    /// addresses only the former: all nodes of a site share one network.
    fn subnets(&self, remote: &Multiaddr) -> impl Iterator<Item = (Subnet, u32)> + use<> {
        let ip = address::ip(remote).filter(|_| !address::is_relayed(remote)).map(|ip| ip.to_canonical());
        let ip = ip.filter(|ip| self.loopback || !ip.is_loopback());
        ip.into_iter().flat_map(|ip| {
            let (machine, network) = if ip.is_ipv4() { (32, 24) } else { (64, 48) };
            let network = address::is_global(ip).then(|| (Subnet::of(ip, network), NETWORK_FACTOR));
            std::iter::once((Subnet::of(ip, machine), 1)).chain(network)
        })
    }

    fn check(&self, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let Some(max) = self.max else { return Ok(()) };
        for (subnet, factor) in self.subnets(remote) {
            let count = self.connections.get(&subnet).copied().unwrap_or(0);
            if count >= max.saturating_mul(factor) {
                return Err(ConnectionDenied::new(TooMany { count, subnet }));
            }
        }
        Ok(())
    }

    fn add(&mut self, remote: &Multiaddr) {
        for (subnet, _) in self.subnets(remote) {
            *self.connections.entry(subnet).or_default() += 1;
        }
    }

    fn remove(&mut self, remote: &Multiaddr) {
        for (subnet, _) in self.subnets(remote) {
            if let Some(count) = self.connections.get_mut(&subnet) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.connections.remove(&subnet);
                }
            }
        }
    }
}

/// The remote address of an inbound connection.
fn inbound(endpoint: &ConnectedPoint) -> Option<&Multiaddr> {
    match endpoint {
        ConnectedPoint::Listener { send_back_addr, .. } => Some(send_back_addr),
        ConnectedPoint::Dialer { .. } => None,
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.check(remote)
    }

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.check(remote)?;
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(new) => {
                inbound(new.endpoint).into_iter().for_each(|remote| self.add(remote));
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { endpoint, .. }) => {
                inbound(endpoint).into_iter().for_each(|remote| self.remove(remote));
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_ipv6_64_counts_once_and_loopback_and_relayed_never() {
        let subnets = |text: &str| Behaviour::new(Some(1), false).subnets(&read(text)).next();
        assert_eq!(subnets("/ip4/8.8.4.4/tcp/1"), subnets("/ip4/8.8.4.4/udp/2/quic-v1"));
        assert_ne!(subnets("/ip4/8.8.4.4/tcp/1"), subnets("/ip4/8.8.4.5/tcp/1"));
        assert_eq!(subnets("/ip6/2001:db8::1/tcp/1"), subnets("/ip6/2001:db8::2:1/tcp/1"));
        assert_ne!(subnets("/ip6/2001:db8::1/tcp/1"), subnets("/ip6/2001:db8:0:1::1/tcp/1"));
        let relay = "/ip4/8.8.4.4/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit";
        assert_eq!([subnets("/ip4/127.0.0.1/tcp/1"), subnets("/ip6/::1/tcp/1"), subnets(relay)], [None; 3]);
    }

    /// Number of admitted connections, one attempted from each address.
    fn taken(addresses: impl Iterator<Item = String>) -> u32 {
        let mut behaviour = Behaviour::new(Some(2), false);
        let taken = addresses.map(|text| read(&text)).filter(|remote| {
            let admitted = behaviour.check(remote).is_ok();
            if admitted {
                behaviour.add(remote);
            }
            admitted
        });
        taken.count() as u32
    }

    #[test]
    fn public_subnets_are_limited_and_private_ones_are_not() {
        assert_eq!(taken((1..=100).map(|host| format!("/ip4/8.8.4.{host}/tcp/1"))), 2 * NETWORK_FACTOR);
        assert_eq!(taken((1..=100).map(|net| format!("/ip6/2001:db8:0:{net}::1/tcp/1"))), 2 * NETWORK_FACTOR);
        assert_eq!(
            taken((1..=100).map(|net| format!("/ip6/2001:db8:{net}::1/tcp/1"))),
            100,
            "each has a /48 of its own"
        );
        assert_eq!(taken((1..=100).map(|net| format!("/ip4/8.8.{net}.1/tcp/1"))), 100);
        for site in ["192.168.1", "10.0.0", "100.64.0", "169.254.3"] {
            assert_eq!(taken((1..=100).map(|host| format!("/ip4/{site}.{host}/tcp/1"))), 100, "{site}");
        }
        assert_eq!(taken((1..=100).map(|_| "/ip4/127.0.0.1/tcp/1".to_owned())), 100);
    }

    #[test]
    fn a_closed_connection_frees_its_place() {
        let (mut behaviour, at) =
            (Behaviour::new(Some(1), false), |host: u32| read(&format!("/ip4/8.8.4.{host}/tcp/1")));
        (1..=NETWORK_FACTOR).for_each(|host| behaviour.add(&at(host)));
        assert!(behaviour.check(&at(9)).is_err());
        behaviour.remove(&at(1));
        assert!(behaviour.check(&at(9)).is_ok());
        (2..=NETWORK_FACTOR).for_each(|host| behaviour.remove(&at(host)));
        assert!(behaviour.connections.is_empty());
    }
}
