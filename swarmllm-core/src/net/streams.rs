//! Streams of our channels: opened on a named connection, taken in by bounded queues.
//!
//! The swarm's part ([`Behaviour`]) only names connections and counts; each connection's part ([`Handler`]) negotiates
//! streams and hands them over by itself, so that no stream waits for the swarm task.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use futures::io::{AsyncRead, AsyncWrite, IoSlice, IoSliceMut};
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::swarm::handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, DialFailure,
    FromSwarm, ListenFailure, NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, ToSwarm,
};
use libp2p::{PeerId, StreamProtocol};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::address::node_of;
use super::config::{INCOMING_QUEUE, MAX_STREAMS_PER_PEER, OPEN_DEADLINE};
use super::meter::Meter;
use super::protocols::protocol;
use super::{Channel, NetError};
use crate::base::NodeId;

/// A stream to a peer, of either transport. Closing ends our side alone. Dropping it gives it up: over TCP the peer sees
/// a reset, over QUIC an end like any other, so an end between messages is no proof that all was said.
pub struct Stream {
    inner: libp2p::Stream,
    channel: Channel,
    meter: Arc<Meter>,
    /// Counts as open until dropped.
    _permit: OwnedSemaphorePermit,
}

impl Stream {
    fn read(&self, read: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = read {
            self.meter.received(self.channel, bytes);
        }
        read
    }

    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = written {
            self.meter.sent(self.channel, bytes);
        }
        written
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Stream")
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        self.read(read)
    }

    fn poll_read_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
    ) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.inner).poll_read_vectored(cx, buffers);
        self.read(read)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buffer);
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, buffers);
        self.written(written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

/// The receiving ends of the channels' queues.
pub(super) struct Outlets {
    pub control: mpsc::Receiver<(NodeId, Stream)>,
    pub stage: mpsc::Receiver<(NodeId, Stream)>,
    pub shard: mpsc::Receiver<(NodeId, Stream)>,
}

/// Where incoming streams go.
#[derive(Clone)]
struct Inlets {
    control: mpsc::Sender<(NodeId, Stream)>,
    stage: mpsc::Sender<(NodeId, Stream)>,
    shard: mpsc::Sender<(NodeId, Stream)>,
    dropped: Arc<AtomicU64>,
}

impl Inlets {
    /// Hands a stream over, or resets it where nobody takes it in time.
    fn give(&self, node: NodeId, channel: Channel, stream: Stream) {
        let queue = match channel {
            Channel::Control => &self.control,
            Channel::Stage => &self.stage,
            Channel::Shard => &self.shard,
        };
        if queue.try_send((node, stream)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(node = %node.short(), %channel, "an incoming stream was reset: its queue is full");
        }
    }
}

/// A channel with its protocol name.
#[derive(Debug, Clone)]
pub(super) struct Name {
    channel: Channel,
    protocol: StreamProtocol,
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        self.protocol.as_ref()
    }
}

/// Offers one or more channels; yields the stream and which it is for.
#[derive(Debug, Clone)]
pub(super) struct Offer(Vec<Name>);

impl UpgradeInfo for Offer {
    type Info = Name;
    type InfoIter = std::vec::IntoIter<Name>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<libp2p::Stream> for Offer {
    type Output = (libp2p::Stream, Channel);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, name: Name) -> Self::Future {
        ready(Ok((stream, name.channel)))
    }
}

impl OutboundUpgrade<libp2p::Stream> for Offer {
    type Output = (libp2p::Stream, Channel);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: libp2p::Stream, name: Name) -> Self::Future {
        ready(Ok((stream, name.channel)))
    }
}

pub(super) type OpenReply = oneshot::Sender<Result<Stream, NetError>>;

/// A stream to be opened. Dropped unanswered, its connection is gone.
#[derive(Debug)]
pub(super) struct Open {
    channel: Channel,
    permit: OwnedSemaphorePermit,
    reply: OpenReply,
}

/// What the swarm's part tells a connection's part.
#[derive(Debug)]
pub(super) enum Order {
    /// Keep the connection although it is idle, or not any more.
    Keep(bool),
    /// Open a stream.
    Open(Open),
}

/// Slots of one peer's streams, shared by all connections to it.
struct Slots {
    inbound: Arc<Semaphore>,
    outbound: Arc<Semaphore>,
    connections: usize,
}

impl Slots {
    fn new() -> Self {
        let slots = || Arc::new(Semaphore::new(MAX_STREAMS_PER_PEER));
        Self { inbound: slots(), outbound: slots(), connections: 0 }
    }
}

/// The swarm's part.
pub(super) struct Behaviour {
    names: Offer,
    inlets: Inlets,
    meter: Arc<Meter>,
    peers: HashMap<PeerId, Slots>,
    orders: VecDeque<(PeerId, ConnectionId, Order)>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// The protocol of `network`, its queues, and the count of streams that nobody took.
    pub fn new(network: &str, meter: Arc<Meter>) -> Result<(Self, Outlets, Arc<AtomicU64>), NetError> {
        let name = |channel: Channel| {
            StreamProtocol::try_from_owned(protocol(network, channel.name()))
                .map(|protocol| Name { channel, protocol })
                .map_err(|error| NetError::Setup { reason: error.to_string() })
        };
        let names = Offer(Channel::ALL.into_iter().map(name).collect::<Result<_, _>>()?);
        let (control, control_out) = mpsc::channel(INCOMING_QUEUE);
        let (stage, stage_out) = mpsc::channel(INCOMING_QUEUE);
        let (shard, shard_out) = mpsc::channel(INCOMING_QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let inlets = Inlets { control, stage, shard, dropped: dropped.clone() };
        let outlets = Outlets { control: control_out, stage: stage_out, shard: shard_out };
        let behaviour = Self { names, inlets, meter, peers: HashMap::new(), orders: VecDeque::new(), waker: None };
        Ok((behaviour, outlets, dropped))
    }

    /// Opens a stream on this connection and answers `reply`. Too many open streams are refused at once.
    pub fn open(&mut self, node: NodeId, peer: PeerId, connection: ConnectionId, channel: Channel, reply: OpenReply) {
        let Some(slots) = self.peers.get(&peer) else {
            let _ = reply.send(Err(NetError::NotConnected { node }));
            return;
        };
        match slots.outbound.clone().try_acquire_owned() {
            Ok(permit) => self.order(peer, connection, Order::Open(Open { channel, permit, reply })),
            Err(_) => {
                let _ = reply.send(Err(NetError::TooManyStreams { node, max: MAX_STREAMS_PER_PEER }));
            }
        }
    }

    /// Whether a connection stays open from now on, however idle it is. Streams keep theirs open in any case.
    pub fn keep(&mut self, peer: PeerId, connection: ConnectionId, keep: bool) {
        self.order(peer, connection, Order::Keep(keep));
    }

    fn order(&mut self, peer: PeerId, connection: ConnectionId, order: Order) {
        self.orders.push_back((peer, connection, order));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn handler(&mut self, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        let node = node_of(&peer).ok_or_else(|| ConnectionDenied::new(NotEd25519(peer)))?;
        let inbound = self.peers.entry(peer).or_insert_with(Slots::new).inbound.clone();
        Ok(Handler {
            node,
            names: self.names.clone(),
            inlets: self.inlets.clone(),
            meter: self.meter.clone(),
            inbound,
            keep: false,
            opens: VecDeque::new(),
        })
    }

    /// Forgets a peer without connections: one whose connection another protocol has denied.
    fn forget_unconnected(&mut self, peer: &PeerId) {
        if self.peers.get(peer).is_some_and(|slots| slots.connections == 0) {
            self.peers.remove(peer);
        }
    }
}

/// The peer's key is of another kind than every node's.
#[derive(Debug, thiserror::Error)]
#[error("peer {0} has no Ed25519 key")]
struct NotEd25519(PeerId);

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<Handler, ConnectionDenied> {
        self.handler(peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.peers.entry(established.peer_id).or_insert_with(Slots::new).connections += 1;
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, .. }) => {
                if let Some(slots) = self.peers.get_mut(&peer_id) {
                    slots.connections = slots.connections.saturating_sub(1);
                }
                self.forget_unconnected(&peer_id);
            }
            FromSwarm::DialFailure(DialFailure { peer_id: Some(peer), .. })
            | FromSwarm::ListenFailure(ListenFailure { peer_id: Some(peer), .. }) => self.forget_unconnected(&peer),
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: Infallible) {
        match event {}
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Infallible, Order>> {
        if let Some((peer_id, connection, event)) = self.orders.pop_front() {
            return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event });
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// One connection's part; runs in the connection's own task.
pub(super) struct Handler {
    node: NodeId,
    names: Offer,
    inlets: Inlets,
    meter: Arc<Meter>,
    inbound: Arc<Semaphore>,
    keep: bool,
    opens: VecDeque<Open>,
}

impl Handler {
    fn stream(&self, inner: libp2p::Stream, channel: Channel, permit: OwnedSemaphorePermit) -> Stream {
        Stream { inner, channel, meter: self.meter.clone(), _permit: permit }
    }

    fn accept(&self, stream: libp2p::Stream, channel: Channel) {
        match self.inbound.clone().try_acquire_owned() {
            Ok(permit) => self.inlets.give(self.node, channel, self.stream(stream, channel, permit)),
            // Dropped, that is reset: an honest peer counts too and does not open so many.
            Err(_) => {
                self.inlets.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn refuse(&self, open: Open, error: StreamUpgradeError<Infallible>) {
        let node = self.node;
        let error = match error {
            StreamUpgradeError::Timeout => {
                NetError::Timeout { what: "opening a stream", millis: OPEN_DEADLINE.as_millis() as u64 }
            }
            StreamUpgradeError::NegotiationFailed => NetError::NoChannel { node, channel: open.channel },
            StreamUpgradeError::Io(_) => NetError::PeerLost { node },
            StreamUpgradeError::Apply(never) => match never {},
        };
        let _ = open.reply.send(Err(error));
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Order;
    type ToBehaviour = Infallible;
    type InboundProtocol = Offer;
    type OutboundProtocol = Offer;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = Open;

    fn listen_protocol(&self) -> SubstreamProtocol<Offer, ()> {
        SubstreamProtocol::new(self.names.clone(), ()).with_timeout(OPEN_DEADLINE)
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<Offer, Open, Infallible>> {
        // No waker is kept: opens arrive by `on_behaviour_event`, after which the connection polls again.
        while let Some(open) = self.opens.pop_front() {
            if open.reply.is_closed() {
                continue;
            }
            let channel = open.channel;
            let offer = Offer(self.names.0.iter().filter(|name| name.channel == channel).cloned().collect());
            let protocol = SubstreamProtocol::new(offer, open).with_timeout(OPEN_DEADLINE);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, order: Order) {
        match order {
            Order::Keep(keep) => self.keep = keep,
            Order::Open(open) => self.opens.push_back(open),
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Offer, Offer, (), Open>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (stream, channel), .. }) => {
                self.accept(stream, channel);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: (stream, _), info: open }) => {
                let Open { permit, reply, channel } = open;
                let _ = reply.send(Ok(self.stream(stream, channel, permit)));
            }
            ConnectionEvent::DialUpgradeError(failed) => self.refuse(failed.info, failed.error),
            _ => {}
        }
    }
}
