//! Dials: names are resolved, and who answers must be who was meant.
//!
//! Of TCP only the dial through routers, of a peer that a circuit leads to, begins at the port that this node listens on. The
//! first packet of a connection opens its way through the own router, and only that connection's: what came by it once the dial
//! was given up, the listener would answer with a packet that is none of that connection, which the router lets pass no more. So
//! any other dial would close the way for the later one. libp2p begins there unless it is told not to, and routing does not tell it.
//!
//! An address that a peer has at home may be another machine's here, or this one. libp2p would give up all addresses of the
//! peer when one of them leads to somebody else; here that one has failed and the others are tried on.

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
use super::config::{DIAL_AGAIN, DIAL_LONGEST, RESOLVE_DEADLINE};
use super::peers::PeerRegistry;

/// Addresses of one name that are tried.
const MAX_TRIED: usize = 4;
/// Attempts of one dial: they begin within [`DIAL_LONGEST`].
const MOST_DIALS: usize = 4;

type Output = (PeerId, StreamMuxerBox);
type Inner = Boxed<Output>;

/// Who answered a dial to somebody else.
#[derive(Debug, thiserror::Error)]
#[error("another peer answers ({0})")]
pub(super) struct SomebodyElse(pub PeerId);

/// The transports below, dialled our way.
pub(super) struct Outward {
    inner: Arc<Mutex<Inner>>,
    peers: PeerRegistry,
}

impl Outward {
    pub fn new(inner: Inner, peers: PeerRegistry) -> Self {
        Self { inner: Arc::new(Mutex::new(inner)), peers }
    }

    /// The port at which a dial of this peer begins, where libp2p would have it begin at this one.
    fn port(&self, address: &Multiaddr, meant: Option<PeerId>, wanted: PortUse) -> PortUse {
        if TransportKind::of(address) != TransportKind::Tcp {
            return wanted;
        }
        let through_routers =
            meant.and_then(|peer| node_of(&peer)).is_some_and(|node| self.peers.is_over_circuit(node));
        if through_routers { wanted } else { PortUse::New }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

/// A panic below leaves nothing half done that matters here.
fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Transport for Outward {
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
        let meant = address::peer_in(&address);
        let options = DialOpts { port_use: self.port(&address, meant, options.port_use), ..options };
        let Some((name, four, six)) = address::dns_name(&address) else {
            let (first, inner) = (self.lock().dial(address.clone(), options)?, self.inner.clone());
            return Ok(Box::pin(async move { check(connect(first, inner, address, options).await?, meant) }));
        };
        let inner = self.inner.clone();
        Ok(Box::pin(async move {
            let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("`{name}` has no suitable address"));
            for ip in resolve(&name, four, six).await? {
                let address = address::with_ip(&address, ip);
                let dial = lock(&inner).dial(address.clone(), options);
                match dial {
                    Ok(first) => match connect(first, inner.clone(), address, options).await {
                        Ok(connected) => return check(connected, meant),
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

/// Dials, and now and then once more beside that, until one has connected, all have failed, or it lasts too long: a line
/// that was cut may be back long before the system tries again by itself.
async fn connect(
    first: <Inner as Transport>::Dial,
    inner: Arc<Mutex<Inner>>,
    address: Multiaddr,
    options: DialOpts,
) -> io::Result<Output> {
    let again = || lock(&inner).dial(address.clone(), options).ok();
    let most = if address::is_circuit(&address) { 1 } else { MOST_DIALS };
    let dials = in_turns(first, again, DIAL_AGAIN, most);
    tokio::time::timeout(DIAL_LONGEST, dials).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The first attempt that succeeds of at most `most`, of which one more begins after each pause as long as any is under way.
async fn in_turns<T, F: Future<Output = io::Result<T>> + Unpin>(
    first: F,
    again: impl Fn() -> Option<F>,
    pause: Duration,
    most: usize,
) -> io::Result<T> {
    let (mut attempts, mut begun) = (FuturesUnordered::from_iter([first]), 1);
    let mut failure = io::Error::from(io::ErrorKind::TimedOut);
    loop {
        tokio::select! {
            biased;
            done = attempts.next() => match done {
                Some(Ok(connected)) => return Ok(connected),
                Some(Err(error)) => failure = error,
                None => return Err(failure),
            },
            () = tokio::time::sleep(pause), if begun < most => {
                begun += 1;
                attempts.extend(again());
            }
        }
    }
}

fn check(connected: Output, meant: Option<PeerId>) -> io::Result<Output> {
    match meant.is_none_or(|peer| peer == connected.0) {
        true => Ok(connected),
        false => Err(io::Error::other(SomebodyElse(connected.0))),
    }
}

async fn resolve(name: &str, four: bool, six: bool) -> io::Result<Vec<IpAddr>> {
    let found = tokio::time::timeout(RESOLVE_DEADLINE, tokio::net::lookup_host((name, 0)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("resolving `{name}` took too long")))??;
    let wanted = |ip: &IpAddr| if ip.is_ipv4() { four } else { six };
    Ok(found.map(|socket: SocketAddr| socket.ip()).filter(wanted).take(MAX_TRIED).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::FutureExt;
    use libp2p::core::Endpoint;
    use libp2p::swarm::ConnectionId;

    use super::super::peers::{PeerTable, Way};
    use super::*;
    use crate::identity::Keypair;

    const PAUSE: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn only_a_peer_that_a_circuit_leads_to_is_dialled_from_the_port_that_is_listened_on() {
        let (mut table, peers) = PeerTable::new();
        let node = Keypair::from_seed(&[7; 32]).node_id();
        let peer = address::peer_of(&node).unwrap();
        let inner = libp2p::core::transport::dummy::DummyTransport::<Output>::new();
        let outward = Outward::new(inner.boxed(), peers);
        let [tcp, quic] = ["/ip4/8.8.4.4/tcp/1", "/ip4/8.8.4.4/udp/1/quic-v1"].map(|text| text.parse().unwrap());
        let port = || outward.port(&tcp, Some(peer), PortUse::Reuse);
        let connect = |table: &mut PeerTable, id, relayed| {
            let way = Way { dialled: true, wanted: true, relayed };
            table.connected(peer, node, ConnectionId::new_unchecked(id), &tcp, way);
        };
        assert_eq!((port(), outward.port(&tcp, None, PortUse::Reuse)), (PortUse::New, PortUse::New));
        assert_eq!(
            outward.port(&quic, None, PortUse::Reuse),
            PortUse::Reuse,
            "it has no connections that a router knows"
        );
        connect(&mut table, 1, true);
        assert_eq!((port(), outward.port(&tcp, Some(peer), PortUse::New)), (PortUse::Reuse, PortUse::New));
        connect(&mut table, 2, false);
        assert_eq!(port(), PortUse::New, "there is a connection of its own");
        table.disconnected(peer, ConnectionId::new_unchecked(2));
        table.disconnected(peer, ConnectionId::new_unchecked(1));
        assert_eq!(port(), PortUse::New);
    }

    /// Notes from which port each dial is to begin; nobody answers.
    #[derive(Clone, Default)]
    struct Noted(Arc<Mutex<Vec<PortUse>>>);

    impl Transport for Noted {
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
    async fn a_dial_begins_at_the_port_that_is_right_for_its_peer() {
        let (mut table, peers) = PeerTable::new();
        let [met, other] = [7, 8].map(|seed| Keypair::from_seed(&[seed; 32]).node_id());
        let way = Way { dialled: true, wanted: true, relayed: true };
        let over = "/ip4/8.8.4.4/tcp/1".parse().unwrap();
        table.connected(address::peer_of(&met).unwrap(), met, ConnectionId::new_unchecked(1), &over, way);
        let noted = Noted::default();
        let mut outward = Outward::new(noted.clone().boxed(), peers);
        let options = DialOpts { role: Endpoint::Dialer, port_use: PortUse::Reuse };
        for (node, port) in [(met, PortUse::Reuse), (other, PortUse::New)] {
            for host in ["ip4/127.0.0.1", "dns4/localhost"] {
                let peer = address::peer_of(&node).unwrap();
                let address = format!("/{host}/tcp/1/p2p/{peer}").parse().unwrap();
                assert!(outward.dial(address, options).unwrap().await.is_err(), "nobody answers");
                let began = std::mem::take(&mut *noted.0.lock().unwrap());
                assert!(!began.is_empty() && began.iter().all(|began| *began == port), "{host}: {began:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_dial_that_hangs_is_tried_again_and_the_first_that_connects_counts() {
        let begun = AtomicUsize::new(1);
        let again = || match begun.fetch_add(1, Ordering::Relaxed) {
            2 => Some(async { Ok(7) }.boxed()),
            _ => Some(futures::future::pending().boxed()),
        };
        let hangs = futures::future::pending::<io::Result<u32>>().boxed();
        assert_eq!(in_turns(hangs, again, PAUSE, 3).await.unwrap(), 7);
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_dial_that_is_refused_is_not_tried_again() {
        let refused = async { Err::<u32, _>(io::Error::from(io::ErrorKind::ConnectionRefused)) }.boxed();
        let again = || panic!("once is enough");
        assert_eq!(in_turns(refused, again, PAUSE, 3).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn no_more_attempts_begin_than_are_allowed() {
        let begun = AtomicUsize::new(1);
        let again = || {
            begun.fetch_add(1, Ordering::Relaxed);
            Some(futures::future::pending().boxed())
        };
        let hangs = futures::future::pending::<io::Result<u32>>().boxed();
        assert!(tokio::time::timeout(10 * PAUSE, in_turns(hangs, again, PAUSE, 3)).await.is_err());
        assert_eq!(begun.load(Ordering::Relaxed), 3);
    }
}
