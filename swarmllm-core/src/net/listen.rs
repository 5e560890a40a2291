//! The addresses of this node.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use libp2p::{Multiaddr, PeerId};

use super::NetError;
use super::address::{self, TransportKind};
use crate::rt::{WatchReader, WatchWriter};

/// The published addresses, written by the swarm task.
pub(super) struct Addresses {
    local: PeerId,
    bound: WatchWriter<Vec<String>>,
}

impl Addresses {
    pub fn new(local: PeerId) -> (Self, WatchReader<Vec<String>>) {
        let (bound, view) = WatchReader::new(Vec::new());
        (Self { local, bound }, view)
    }

    /// Adds an address; returns its text if it is new.
    pub fn add(&mut self, address: &Multiaddr) -> Option<String> {
        let text = self.text(address);
        if self.bound.watch().get().contains(&text) {
            return None;
        }
        self.bound.update(|list| list.iter().cloned().chain([text.clone()]).collect());
        Some(text)
    }

    /// Removes an address.
    pub fn remove(&mut self, address: &Multiaddr) {
        let text = self.text(address);
        self.bound.update(|list| list.iter().filter(|known| **known != text).cloned().collect());
    }

    /// Removes all addresses.
    pub fn clear(&mut self) {
        self.bound.set(Vec::new());
    }

    fn text(&self, address: &Multiaddr) -> String {
        address::with_peer(address, self.local).to_string()
    }
}

/// Checks that the port is free. libp2p's TCP listeners share ports (SO_REUSEPORT): a second node on one port would start
/// and receive half of the connections. A bind without sharing detects that.
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
