//! The links to peers: one persistent outbound stage stream per peer, opened on demand and shared by all sessions.
//!
//! A link is a task that owns its stream and a queue before it, bounded in number and in bytes
//! ([`outgoing`](super::outgoing)); frames to one peer keep their order.
//!
//! Written frames may be lost with a stream although its peer stays connected, and then no answer ever comes. So a link
//! detects the end of its stream and missing acknowledgements ([`connection`]), and the pool reports the
//! peer to the link's opener and to the receivers of [`LinkPool::broken`].

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, NodeId};
use crate::net::{Channel, NetError, NetHandle, Stream};
use crate::pipeline::link::connection::{self, LinkMonitor};
use crate::pipeline::link::locked;
use crate::pipeline::link::outgoing::{LinkQueue, OutgoingFrames};
use crate::pipeline::link::request::ANSWER_TIMEOUT;
use crate::rt::{FairPool, PoolLimits, TaskSet};

/// Time for a named peer to connect by itself, and how often that is checked.
const INBOUND_WAIT: Duration = Duration::from_secs(3);
const INBOUND_POLL: Duration = Duration::from_millis(50);
/// Concurrent dials of hosts that were named as the previous stage: a session of three stages has two, and a dial ends
/// within seconds.
const PREVIOUS_DIALS: PoolLimits = PoolLimits { total: 32, per_key: 4, reserve: 32 };
/// Reports of broken links that a receiver may lag behind.
const BROKEN_QUEUE: usize = 256;

/// The addresses that a node announces for itself, and the peer that passed the announcement on where it did not come
/// over a direct connection.
pub type AnnouncedAddresses = Box<dyn Fn(NodeId) -> (Vec<String>, Option<NodeId>) + Send + Sync>;

/// The links to all peers. Clones are the same pool.
#[derive(Clone)]
pub(super) struct LinkPool {
    inner: Arc<Inner>,
}

struct Inner {
    local: NodeId,
    net: Option<NetHandle>,
    tasks: TaskSet,
    links: Mutex<HashMap<NodeId, Link>>,
    /// Memory of the frames that wait to be written.
    outgoing: OutgoingFrames,
    announced: OnceLock<AnnouncedAddresses>,
    /// Running dials of previous hosts, by the coordinator that named them.
    previous_dials: FairPool<NodeId>,
    /// Peers to which a link broke.
    broken: broadcast::Sender<NodeId>,
}

/// The sending half of a link's task.
#[derive(Clone)]
struct Link {
    queue: LinkQueue,
    /// Notified when an answer over this link is late.
    answer_late: Arc<Notify>,
}

impl LinkPool {
    /// An empty pool; without a network no link can be opened.
    pub fn new(local: NodeId, net: Option<NetHandle>, tasks: TaskSet) -> Self {
        let (broken, _) = broadcast::channel(BROKEN_QUEUE);
        let inner = Inner {
            local,
            net,
            tasks,
            links: Mutex::default(),
            outgoing: OutgoingFrames::new(),
            announced: OnceLock::new(),
            previous_dials: FairPool::new(PREVIOUS_DIALS),
            broken,
        };
        Self { inner: Arc::new(inner) }
    }

    /// This node.
    pub fn local(&self) -> NodeId {
        self.inner.local
    }

    /// Sets the source of announced addresses. Only the first call has an effect.
    pub fn set_announced(&self, announced: AnnouncedAddresses) {
        let _ = self.inner.announced.set(announced);
    }

    /// The link to a peer, opened if there is none that works. `on_break` runs when a link that this call opened
    /// breaks.
    pub async fn link(
        &self,
        to: NodeId,
        addresses: &[String],
        on_break: impl FnOnce() + Send + 'static,
    ) -> Result<LinkQueue, Fault> {
        let known = locked(&self.inner.links).get(&to).cloned();
        match known.filter(|link| !link.queue.is_closed()) {
            Some(link) => Ok(link.queue),
            None => self.open(to, addresses, on_break).await,
        }
    }

    async fn open(
        &self,
        to: NodeId,
        addresses: &[String],
        on_break: impl FnOnce() + Send + 'static,
    ) -> Result<LinkQueue, Fault> {
        let Some(net) = &self.inner.net else {
            return Err(Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network"));
        };
        let fault = |error: NetError| Fault::new(error.kind(), error);
        net.ensure_connected(to, addresses).await.map_err(fault)?;
        let stream = open_stream(net, to).await.map_err(fault)?;
        let (queue, receiver) = self.inner.outgoing.queue(to);
        let answer_late = Arc::<Notify>::default();
        let mut links = locked(&self.inner.links);
        // Two sessions may open concurrently; both use the first working link, which keeps the order within a session.
        if let Some(link) = links.get(&to).filter(|link| !link.queue.is_closed()) {
            return Ok(link.queue.clone());
        }
        links.insert(to, Link { queue: queue.clone(), answer_late: answer_late.clone() });
        drop(links);
        let net = net.clone();
        self.inner.tasks.spawn("stage-link", async move {
            let monitor = LinkMonitor { answer_late, rtt: || rtt(&net, to), suspect: || net.suspect(to) };
            if let Err(error) = connection::write(stream, receiver, monitor).await {
                tracing::debug!(peer = %to, %error, "a stage link broke");
                on_break();
            }
        });
        Ok(queue)
    }

    /// Ensures a connection to a peer that another peer has named. Dials only the addresses that the named peer
    /// announces for itself, then waits for it to connect. The error names no reason: it would tell the naming peer
    /// what answers at an address.
    pub async fn reach_named(&self, to: NodeId) -> Result<(), Fault> {
        let Some(net) = self.inner.net.as_ref().filter(|_| to != self.inner.local) else { return Ok(()) };
        let (addresses, via) = self.inner.announced.get().map(|announced| announced(to)).unwrap_or_default();
        let dialled = net.ensure_reported(to, &addresses, via.unwrap_or(to)).await;
        let Err(error) = dialled else { return Ok(()) };
        tracing::debug!(peer = %to, %error, "a named peer could not be dialled");
        let identified = || net.peers().lookup(to).is_some_and(|peer| peer.connected && peer.identified);
        let connects = async {
            while !identified() {
                tokio::time::sleep(INBOUND_POLL).await;
            }
        };
        tokio::time::timeout(INBOUND_WAIT, connects).await.map_err(|_| unreachable(to))
    }

    /// Connects to the peer that will send a session's steps, until `over` is cancelled. Of two hosts that have not
    /// met, the host with the other's announcement dials: the younger host does not have the elder's yet. Where a
    /// coordinator's share of concurrent dials is used up, the host must connect by itself.
    pub fn connect_previous(&self, previous: NodeId, coordinator: NodeId, over: &CancellationToken) {
        let Some(permit) = self.inner.previous_dials.take(coordinator) else { return };
        let (pool, over) = (self.clone(), over.clone());
        self.inner.tasks.spawn("stage-previous", async move {
            let _permit = permit;
            if let Some(Err(fault)) = over.run_until_cancelled(pool.reach_named(previous)).await {
                tracing::debug!(peer = %previous, %fault, "the previous host is not connected yet");
            }
        });
    }

    /// The peers to which a link breaks from now on: the last frames sent there may be lost.
    pub fn broken(&self) -> broadcast::Receiver<NodeId> {
        self.inner.broken.subscribe()
    }

    /// Reports a broken link to the receivers of [`LinkPool::broken`].
    pub fn report_broken(&self, peer: NodeId) {
        let _ = self.inner.broken.send(peer);
    }

    /// Removes the link to a peer whose last connection is gone.
    pub fn remove(&self, peer: NodeId) {
        locked(&self.inner.links).remove(&peer);
    }

    /// Tells a peer's link that an answer over it is late.
    pub fn answer_is_late(&self, peer: NodeId) {
        locked(&self.inner.links).get(&peer).inspect(|link| link.answer_late.notify_one());
    }
}

fn rtt(net: &NetHandle, peer: NodeId) -> Duration {
    net.peers().lookup(peer).and_then(|peer| peer.rtt).unwrap_or_default()
}

/// Opens a stage stream. A connection that is slow to open a stream is suspected, as after a frame without
/// acknowledgement; where another connection replaces it, the stream is opened there.
async fn open_stream(net: &NetHandle, to: NodeId) -> Result<Stream, NetError> {
    let (mut opening, mut suspected) = (pin!(net.open(to, Channel::Stage)), false);
    loop {
        match tokio::time::timeout(ANSWER_TIMEOUT, &mut opening).await {
            Ok(Err(NetError::PeerLost { .. })) if suspected => return net.open(to, Channel::Stage).await,
            Ok(opened) => return opened,
            Err(_) => {
                suspected = true;
                net.suspect(to);
            }
        }
    }
}

/// The error for a named peer without a connection.
pub(super) fn unreachable(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::PeerUnreachable, format!("peer {} cannot be reached from here", peer.short()))
}

/// The error for a broken link.
pub(super) fn lost(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::PeerLost, format!("the link to peer {} broke", peer.short()))
}

#[cfg(test)]
impl LinkPool {
    /// A link to a peer that reads nothing, with a full queue, until the receiver is dropped.
    pub(in crate::pipeline) fn stalled(
        &self,
        to: NodeId,
        frame: impl Fn() -> crate::pipeline::link::message::Message,
    ) -> tokio::sync::mpsc::Receiver<crate::pipeline::link::outgoing::QueuedFrame> {
        use futures::FutureExt;
        let (queue, unread) = self.inner.outgoing.queue(to);
        while queue.send(frame()).now_or_never().is_some() {}
        locked(&self.inner.links).insert(to, Link { queue, answer_late: Arc::default() });
        unread
    }
}
