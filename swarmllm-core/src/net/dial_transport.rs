//! The transport for dials: resolves names and checks the identity of the peer that answers.
//!
//! A TCP dial uses the listen port only for a hole punch, that is to a peer with a relayed connection. The first packet of a
//! dial creates a mapping in the own router for that connection. If the dial has been given up, the listener answers later
//! packets with one that does not belong to the connection, and the router then blocks the mapping. Any other dial from the
//! listen port would thus break a later hole punch. libp2p dials from the listen port by default, and routing keeps that.
//!
//! A peer's private address may belong to another machine here, or to this one. libp2p would abort the dial of all addresses
//! if one leads to another peer; here only that address fails and the others are still tried.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, PortUse, TransportError, TransportEvent};
use libp2p::{Multiaddr, PeerId, Transport};

use super::address::{self, TransportKind, node_of};
use super::config::{DIAL_RETRY_AFTER, DIAL_TIMEOUT, RESOLVE_DEADLINE};
use super::peers::PeerRegistry;

/// Maximum addresses tried per name.
const MAX_RESOLVED: usize = 4;
/// Maximum attempts of one dial; they start within [`DIAL_TIMEOUT`].
const MAX_DIALS: usize = 4;

type Output = (PeerId, StreamMuxerBox);
type Inner = Boxed<Output>;

/// The peer that answered a dial to another one.
#[derive(Debug, thiserror::Error)]
#[error("another peer answers ({0})")]
pub(super) struct WrongPeer(pub PeerId);

/// Wraps the transports, see the module.
pub(super) struct DialTransport {
    inner: Arc<Mutex<Inner>>,
    peers: PeerRegistry,
}

impl DialTransport {
    pub fn new(inner: Inner, peers: PeerRegistry) -> Self {
        Self { inner: Arc::new(Mutex::new(inner)), peers }
    }

    /// The port use of a dial to this peer, where libp2p proposes `wanted`.
    fn port(&self, address: &Multiaddr, expected: Option<PeerId>, wanted: PortUse) -> PortUse {
        if TransportKind::of(address) != TransportKind::Tcp {
            return wanted;
        }
        let is_hole_punch = expected.and_then(|peer| node_of(&peer)).is_some_and(|node| self.peers.is_relayed(node));
        if is_hole_punch { wanted } else { PortUse::New }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

/// Ignores poisoning: a panic in the transport leaves no invalid state that matters here.
fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Transport for DialTransport {
    type Output = <Inner as Transport>::Output;
    type Error = io::Error;
    type ListenerUpgrade = <Inner as Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
        self.lock().listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.lock().remove_listener(id)
    }

    fn dial(&mut self, address: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
        let expected = address::peer_in(&address);
        let options = DialOpts { port_use: self.port(&address, expected, options.port_use), ..options };
        let Some((name, ipv4, ipv6)) = address::dns_name(&address) else {
            let (first, inner) = (self.lock().dial(address.clone(), options)?, self.inner.clone());
            return Ok(Box::pin(async move { check(connect(first, inner, address, options).await?, expected) }));
        };
        let inner = self.inner.clone();
        Ok(Box::pin(async move {
            let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("`{name}` has no suitable address"));
            for ip in resolve(&name, ipv4, ipv6).await? {
                let address = address::with_ip(&address, ip);
                let dial = lock(&inner).dial(address.clone(), options);
                match dial {
                    Ok(first) => match connect(first, inner.clone(), address, options).await {
                        Ok(connected) => return check(connected, expected),
                        Err(error) => failure = error,
                    },
                    Err(TransportError::Other(error)) => failure = error,
                    Err(error) => failure = io::Error::other(error.to_string()),
                }
            }
            Err(failure)
        }))
    }

    fn poll(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut *self.lock()).poll(context)
    }
}

/// Dials with parallel retries until one attempt connects, all fail, or the timeout passes: a restored line can be usable
/// long before TCP retransmits.
async fn connect(
    first: <Inner as Transport>::Dial,
    inner: Arc<Mutex<Inner>>,
    address: Multiaddr,
    options: DialOpts,
) -> io::Result<Output> {
    let retry = || lock(&inner).dial(address.clone(), options).ok();
    let max = if address::is_relayed(&address) { 1 } else { MAX_DIALS };
    let dials = staggered(first, retry, DIAL_RETRY_AFTER, max);
    tokio::time::timeout(DIAL_TIMEOUT, dials).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The first success of at most `max` attempts. A further one starts after each pause while any is under way.
async fn staggered<T, F: Future<Output = io::Result<T>> + Unpin>(
    first: F,
    retry: impl Fn() -> Option<F>,
    pause: Duration,
    max: usize,
) -> io::Result<T> {
    let (mut attempts, mut started) = (FuturesUnordered::from_iter([first]), 1);
    let mut failure = io::Error::from(io::ErrorKind::TimedOut);
    loop {
        tokio::select! {
            biased;
            done = attempts.next() => match done {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = tokio::time::sleep(pause), if started < max => {
                started += 1;
                attempts.extend(retry());
            }
        }
    }
}

fn check(connected: Output, expected: Option<PeerId>) -> io::Result<Output> {
    match expected.is_none_or(|peer| peer == connected.0) {
        true => Ok(connected),
        false => Err(io::Error::other(WrongPeer(connected.0))),
    }
}

async fn resolve(name: &str, ipv4: bool, ipv6: bool) -> io::Result<Vec<IpAddr>> {
    let found = tokio::time::timeout(RESOLVE_DEADLINE, tokio::net::lookup_host((name, 0)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("resolving `{name}` took too long")))??;
    let wanted = |ip: &IpAddr| if ip.is_ipv4() { ipv4 } else { ipv6 };
    Ok(found.map(|socket: SocketAddr| socket.ip()).filter(wanted).take(MAX_RESOLVED).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;
    use libp2p::core::Endpoint;
    use libp2p::swarm::ConnectionId;

    use super::super::peers::{ConnectionOrigin, PeerTable};
    use super::*;
    use crate::identity::Keypair;

    const PAUSE: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn only_hole_punches_use_the_listen_port() {
        let (mut table, peers) = PeerTable::new();
        let node = Keypair::from_seed(&[7; 32]).node_id();
        let peer = address::peer_of(&node).unwrap();
        let inner = libp2p::core::transport::dummy::DummyTransport::<Output>::new();
        let transport = DialTransport::new(inner.boxed(), peers);
        let [tcp, quic] = ["/ip4/8.8.4.4/tcp/1", "/ip4/8.8.4.4/udp/1/quic-v1"].map(|text| text.parse().unwrap());
        let port = || transport.port(&tcp, Some(peer), PortUse::Reuse);
        let connect = |table: &mut PeerTable, id, relayed| {
            let origin = ConnectionOrigin { dialled: true, requested: true, relayed };
            table.connected(peer, node, ConnectionId::new_unchecked(id), &tcp, origin);
        };
        assert_eq!((port(), transport.port(&tcp, None, PortUse::Reuse)), (PortUse::New, PortUse::New));
        assert_eq!(transport.port(&quic, None, PortUse::Reuse), PortUse::Reuse, "QUIC is not affected");
        connect(&mut table, 1, true);
        assert_eq!((port(), transport.port(&tcp, Some(peer), PortUse::New)), (PortUse::Reuse, PortUse::New));
        connect(&mut table, 2, false);
        assert_eq!(port(), PortUse::New, "a direct connection exists");
        table.disconnected(peer, ConnectionId::new_unchecked(2));
        table.disconnected(peer, ConnectionId::new_unchecked(1));
        assert_eq!(port(), PortUse::New);
    }

    /// Records the port use of each dial; every dial is refused.
    #[derive(Clone, Default)]
    struct RecordingTransport(Arc<Mutex<Vec<PortUse>>>);

    impl Transport for RecordingTransport {
        type Output = Output;
        type Error = io::Error;
        type ListenerUpgrade = BoxFuture<'static, io::Result<Output>>;
        type Dial = BoxFuture<'static, io::Result<Output>>;

        fn listen_on(&mut self, _: ListenerId, address: Multiaddr) -> Result<(), TransportError<io::Error>> {
            Err(TransportError::MultiaddrNotSupported(address))
        }

        fn remove_listener(&mut self, _: ListenerId) -> bool {
            false
        }

        fn dial(&mut self, _: Multiaddr, options: DialOpts) -> Result<Self::Dial, TransportError<io::Error>> {
            self.0.lock().unwrap().push(options.port_use);
            Ok(std::future::ready(Err(io::ErrorKind::ConnectionRefused.into())).boxed())
        }

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn dials_use_the_port_for_their_peer() {
        let (mut table, peers) = PeerTable::new();
        let [met, other] = [7, 8].map(|seed| Keypair::from_seed(&[seed; 32]).node_id());
        let origin = ConnectionOrigin { dialled: true, requested: true, relayed: true };
        let over = "/ip4/8.8.4.4/tcp/1".parse().unwrap();
        table.connected(address::peer_of(&met).unwrap(), met, ConnectionId::new_unchecked(1), &over, origin);
        let recorded = RecordingTransport::default();
        let mut transport = DialTransport::new(recorded.clone().boxed(), peers);
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
        for (node, port) in [(met, PortUse::Reuse), (other, PortUse::New)] {
            for host in ["ip4/127.0.0.1", "dns4/localhost"] {
                let peer = address::peer_of(&node).unwrap();
                let address = format!("/{host}/tcp/1/p2p/{peer}").parse().unwrap();
                assert!(transport.dial(address, options).unwrap().await.is_err());
                let used = std::mem::take(&mut *recorded.0.lock().unwrap());
                assert!(!used.is_empty() && used.iter().all(|used| *used == port), "{host}: {used:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_hanging_dial_is_retried_and_the_first_success_wins() {
        let started = AtomicUsize::new(1);
        let retry = || match started.fetch_add(1, Ordering::Relaxed) {
            2 => Some(async { Ok(7) }.boxed()),
            _ => Some(futures::future::pending().boxed()),
        };
        let hangs = futures::future::pending::<io::Result<u32>>().boxed();
        assert_eq!(staggered(hangs, retry, PAUSE, 3).await.unwrap(), 7);
        assert_eq!(started.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_refused_dial_is_not_retried() {
        let refused = async { Err::<u32, _>(io::Error::from(io::ErrorKind::ConnectionRefused)) }.boxed();
        let retry = || panic!("a refused dial must not be retried");
        assert_eq!(staggered(refused, retry, PAUSE, 3).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn the_number_of_attempts_is_limited() {
        let started = AtomicUsize::new(1);
        let retry = || {
            started.fetch_add(1, Ordering::Relaxed);
            Some(futures::future::pending().boxed())
        };
        let hangs = futures::future::pending::<io::Result<u32>>().boxed();
        assert!(tokio::time::timeout(10 * PAUSE, staggered(hangs, retry, PAUSE, 3)).await.is_err());
        assert_eq!(started.load(Ordering::Relaxed), 3);
    }
}
