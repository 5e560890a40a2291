//! Where this node listens.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use libp2p::{Multiaddr, PeerId};

use super::NetError;
use super::address::{self, TransportKind};
use crate::rt::{Watched, WatchedWriter};

/// The addresses that are bound, kept by the swarm task for everyone to see.
pub(super) struct Addresses {
    local: PeerId,
    bound: WatchedWriter<Vec<String>>,
}

impl Addresses {
    pub fn new(local: PeerId) -> (Self, Watched<Vec<String>>) {
        let (bound, view) = Watched::new(Vec::new());
        (Self { local, bound }, view)
    }

    /// Adds an address; returns its text where it is new.
    pub fn add(&mut self, address: &Multiaddr) -> Option<String> {
        let text = self.text(address);
        if self.bound.watch().get().contains(&text) {
            return None;
        }
        self.bound.update(|list| list.iter().cloned().chain([text.clone()]).collect());
        Some(text)
    }

    /// Takes an address away.
    pub fn remove(&mut self, address: &Multiaddr) {
        let text = self.text(address);
        self.bound.update(|list| list.iter().filter(|known| **known != text).cloned().collect());
    }

    /// Takes all away.
    pub fn clear(&mut self) {
        self.bound.set(Vec::new());
    }

    fn text(&self, address: &Multiaddr) -> String {
        address::with_peer(address, self.local).to_string()
    }
}

/// Whether the port is free. libp2p's TCP listeners share ports (SO_REUSEPORT), so that a second node on one port would
/// start and then get half of the connections: a listener that does not share finds out.
pub(super) fn probe(address: &Multiaddr) -> Result<(), NetError> {
    let Some(ip) = address::ip(address) else { return Ok(()) };
    let port = address::port(address);
    if port == 0 {
        return Ok(());
    }
    let socket = SocketAddr::new(ip, port);
    let free = match TransportKind::of(address) {
        TransportKind::Tcp | TransportKind::Relay => TcpListener::bind(socket).map(drop),
        TransportKind::Quic => UdpSocket::bind(socket).map(drop),
    };
    let address = address.to_string();
    free.map_err(|error| match error.kind() {
        io::ErrorKind::AddrInUse => NetError::PortInUse { address },
        _ => NetError::Listen { address, reason: error.to_string() },
    })
}
