//! Bounds the connections that come from one address, however many keys are behind it.
//!
//! Keys cost nothing, addresses do: without this bound 112 keys of one machine fill a node. Networks of addresses cost little,
//! so that those that somebody may have to himself are bounded, too. Circuits come from a relay's address and are bounded there.

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
use super::config::NETWORK_SHARES;

/// See the module.
pub(super) struct Behaviour {
    /// Nothing: no bound.
    most: Option<u32>,
    /// Whether nodes on this machine are counted, too.
    loopback: bool,
    connections: HashMap<Block, u32>,
}

/// Addresses that are counted as one: the first of them, and the bits that they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Block {
    first: IpAddr,
    bits: u32,
}

impl Block {
    fn of(ip: IpAddr, bits: u32) -> Self {
        let first = match ip {
            IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & !u32::MAX.checked_shr(bits).unwrap_or(0)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & !u128::MAX.checked_shr(bits).unwrap_or(0)).into(),
        };
        Self { first, bits }
    }
}

/// Too many connections come from one address or one network.
#[derive(Debug, thiserror::Error)]
#[error("{count} connections come from the network {}/{}, which are as many as it may have", .block.first, .block.bits)]
struct TooMany {
    count: u32,
    block: Block,
}

impl Behaviour {
    pub fn new(most: Option<u32>, loopback: bool) -> Self {
        Self { most, loopback, connections: HashMap::new() }
    }

    /// What is counted of an address, and in how many shares of one address: the address, or of IPv6 the network of 64 bits,
    /// which one machine may have to itself; and the network around it that somebody may have to himself. On a site, whose
    /// nodes all have addresses of one such network, only the former.
    fn counted(&self, remote: &Multiaddr) -> impl Iterator<Item = (Block, u32)> + use<> {
        let ip = address::ip(remote).filter(|_| !address::is_circuit(remote)).map(|ip| ip.to_canonical());
        let ip = ip.filter(|ip| self.loopback || !ip.is_loopback());
        ip.into_iter().flat_map(|ip| {
            let (machine, network) = if ip.is_ipv4() { (32, 24) } else { (64, 48) };
            let network = address::is_global(ip).then(|| (Block::of(ip, network), NETWORK_SHARES));
            std::iter::once((Block::of(ip, machine), 1)).chain(network)
        })
    }

    fn check(&self, remote: &Multiaddr) -> Result<(), ConnectionDenied> {
        let Some(most) = self.most else { return Ok(()) };
        for (block, shares) in self.counted(remote) {
            let count = self.connections.get(&block).copied().unwrap_or(0);
            if count >= most.saturating_mul(shares) {
                return Err(ConnectionDenied::new(TooMany { count, block }));
            }
        }
        Ok(())
    }

    fn add(&mut self, remote: &Multiaddr) {
        for (block, _) in self.counted(remote) {
            *self.connections.entry(block).or_default() += 1;
        }
    }

    fn remove(&mut self, remote: &Multiaddr) {
        for (block, _) in self.counted(remote) {
            if let Some(count) = self.connections.get_mut(&block) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.connections.remove(&block);
                }
            }
        }
    }
}

/// Where an inbound connection comes from.
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
    fn an_ipv6_network_counts_as_one_and_loopback_and_circuits_do_not() {
        let counted = |text: &str| Behaviour::new(Some(1), false).counted(&read(text)).next();
        assert_eq!(counted("/ip4/8.8.4.4/tcp/1"), counted("/ip4/8.8.4.4/udp/2/quic-v1"));
        assert_ne!(counted("/ip4/8.8.4.4/tcp/1"), counted("/ip4/8.8.4.5/tcp/1"));
        assert_eq!(counted("/ip6/2001:db8::1/tcp/1"), counted("/ip6/2001:db8::2:1/tcp/1"));
        assert_ne!(counted("/ip6/2001:db8::1/tcp/1"), counted("/ip6/2001:db8:0:1::1/tcp/1"));
        let relay = "/ip4/8.8.4.4/tcp/1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN/p2p-circuit";
        assert_eq!([counted("/ip4/127.0.0.1/tcp/1"), counted("/ip6/::1/tcp/1"), counted(relay)], [None; 3]);
    }

    /// How many connections are taken that come one each from these addresses.
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
    fn a_network_of_many_addresses_takes_no_more_than_its_shares_and_a_site_is_no_such_network() {
        assert_eq!(taken((1..=100).map(|host| format!("/ip4/8.8.4.{host}/tcp/1"))), 2 * NETWORK_SHARES);
        assert_eq!(taken((1..=100).map(|net| format!("/ip6/2001:db8:0:{net}::1/tcp/1"))), 2 * NETWORK_SHARES);
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
    fn a_connection_that_ends_gives_its_place_back_to_its_network() {
        let (mut behaviour, at) =
            (Behaviour::new(Some(1), false), |host: u32| read(&format!("/ip4/8.8.4.{host}/tcp/1")));
        (1..=NETWORK_SHARES).for_each(|host| behaviour.add(&at(host)));
        assert!(behaviour.check(&at(9)).is_err());
        behaviour.remove(&at(1));
        assert!(behaviour.check(&at(9)).is_ok());
        (2..=NETWORK_SHARES).for_each(|host| behaviour.remove(&at(host)));
        assert!(behaviour.connections.is_empty());
    }
}
