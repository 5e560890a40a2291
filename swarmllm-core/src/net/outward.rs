//! Dials: names are resolved, and who answers must be who was meant.
//!
//! An address that a peer has at home may be another machine's here, or this one. libp2p would give up all addresses of the
//! peer when one of them leads to somebody else; here that one has failed and the others are tried on.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, PeerId, Transport};

use super::address;
use super::config::{DIAL_LONGEST, RESOLVE_DEADLINE};

/// Addresses of one name that are tried.
const MAX_TRIED: usize = 4;

type Output = (PeerId, StreamMuxerBox);
type Inner = Boxed<Output>;

/// Who answered a dial to somebody else.
#[derive(Debug, thiserror::Error)]
#[error("another peer answers ({0})")]
pub(super) struct SomebodyElse(pub PeerId);

/// The transports below, dialled our way.
pub(super) struct Outward {
    inner: Arc<Mutex<Inner>>,
}

impl Outward {
    pub fn new(inner: Inner) -> Self {
        Self { inner: Arc::new(Mutex::new(inner)) }
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
        let Some((name, four, six)) = address::dns_name(&address) else {
            let dial = self.lock().dial(address, options)?;
            return Ok(Box::pin(async move { check(in_time(dial).await?, meant) }));
        };
        let inner = self.inner.clone();
        Ok(Box::pin(async move {
            let mut failure = io::Error::new(io::ErrorKind::NotFound, format!("`{name}` has no suitable address"));
            for ip in resolve(&name, four, six).await? {
                let dial = lock(&inner).dial(address::with_ip(&address, ip), options);
                match dial {
                    Ok(dial) => match in_time(dial).await {
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

async fn in_time(dial: impl Future<Output = io::Result<Output>>) -> io::Result<Output> {
    tokio::time::timeout(DIAL_LONGEST, dial).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
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
