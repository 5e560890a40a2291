//! Streams of the channels: opened on a given connection, accepted into bounded queues.
//!
//! [`Behaviour`] runs in the swarm task, selects connections and counts streams. [`Handler`] runs in each connection's task,
//! negotiates streams and delivers them itself, so that no stream waits for the swarm task.

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

/// A stream to a peer over any transport. Closing ends the writing side only. Dropping aborts it: the peer sees a reset over
/// TCP and a regular end over QUIC, so an end of stream does not prove that all messages were sent.
pub struct Stream {
    inner: libp2p::Stream,
    channel: Channel,
    meter: Arc<Meter>,
    /// Counts the stream as open until dropped.
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

/// The receivers of the channels' queues.
pub(super) struct IncomingQueues {
    pub control: mpsc::Receiver<(NodeId, Stream)>,
    pub stage: mpsc::Receiver<(NodeId, Stream)>,
    pub shard: mpsc::Receiver<(NodeId, Stream)>,
}

/// The senders of the channels' queues.
#[derive(Clone)]
struct IncomingSenders {
    control: mpsc::Sender<(NodeId, Stream)>,
    stage: mpsc::Sender<(NodeId, Stream)>,
    shard: mpsc::Sender<(NodeId, Stream)>,
    dropped: Arc<AtomicU64>,
}

impl IncomingSenders {
    /// Queues a stream, or resets it if the queue is full.
    fn enqueue(&self, node: NodeId, channel: Channel, stream: Stream) {
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
pub(super) struct ChannelProtocol {
    channel: Channel,
    protocol: StreamProtocol,
}

impl AsRef<str> for ChannelProtocol {
    fn as_ref(&self) -> &str {
        self.protocol.as_ref()
    }
}

/// The upgrade for one or more channels; returns the stream and its channel.
#[derive(Debug, Clone)]
pub(super) struct ChannelUpgrade(Vec<ChannelProtocol>);

impl UpgradeInfo for ChannelUpgrade {
    type Info = ChannelProtocol;
    type InfoIter = std::vec::IntoIter<ChannelProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.clone().into_iter()
    }
}

impl InboundUpgrade<libp2p::Stream> for ChannelUpgrade {
    type Output = (libp2p::Stream, Channel);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_inbound(self, stream: libp2p::Stream, protocol: ChannelProtocol) -> Self::Future {
        ready(Ok((stream, protocol.channel)))
    }
}

impl OutboundUpgrade<libp2p::Stream> for ChannelUpgrade {
    type Output = (libp2p::Stream, Channel);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Infallible>>;

    fn upgrade_outbound(self, stream: libp2p::Stream, protocol: ChannelProtocol) -> Self::Future {
        ready(Ok((stream, protocol.channel)))
    }
}

pub(super) type OpenReply = oneshot::Sender<Result<Stream, NetError>>;

/// A stream to open. Dropped without a reply when its connection closes.
#[derive(Debug)]
pub(super) struct OpenRequest {
    channel: Channel,
    permit: OwnedSemaphorePermit,
    reply: OpenReply,
}

/// A command from [`Behaviour`] to a connection's [`Handler`].
#[derive(Debug)]
pub(super) enum HandlerCommand {
    /// Whether to keep the connection when idle.
    KeepAlive(bool),
    /// Open a stream.
    Open(OpenRequest),
}

/// Stream permits of a peer, shared by all its connections.
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

/// The part in the swarm task.
pub(super) struct Behaviour {
    protocols: ChannelUpgrade,
    senders: IncomingSenders,
    meter: Arc<Meter>,
    peers: HashMap<PeerId, Slots>,
    commands: VecDeque<(PeerId, ConnectionId, HandlerCommand)>,
    waker: Option<Waker>,
}

impl Behaviour {
    /// The behaviour for `network`, its queues, and the counter of streams reset at a full queue.
    pub fn new(network: &str, meter: Arc<Meter>) -> Result<(Self, IncomingQueues, Arc<AtomicU64>), NetError> {
        let protocol = |channel: Channel| {
            StreamProtocol::try_from_owned(protocol(network, channel.name()))
                .map(|protocol| ChannelProtocol { channel, protocol })
                .map_err(|error| NetError::Setup { reason: error.to_string() })
        };
        let protocols = ChannelUpgrade(Channel::ALL.into_iter().map(protocol).collect::<Result<_, _>>()?);
        let (control, control_out) = mpsc::channel(INCOMING_QUEUE);
        let (stage, stage_out) = mpsc::channel(INCOMING_QUEUE);
        let (shard, shard_out) = mpsc::channel(INCOMING_QUEUE);
        let dropped = Arc::new(AtomicU64::new(0));
        let senders = IncomingSenders { control, stage, shard, dropped: dropped.clone() };
        let queues = IncomingQueues { control: control_out, stage: stage_out, shard: shard_out };
        let behaviour =
            Self { protocols, senders, meter, peers: HashMap::new(), commands: VecDeque::new(), waker: None };
        Ok((behaviour, queues, dropped))
    }

    /// Opens a stream on this connection and answers `reply`; refuses at once beyond the stream limit.
    pub fn open(&mut self, node: NodeId, peer: PeerId, connection: ConnectionId, channel: Channel, reply: OpenReply) {
        let Some(slots) = self.peers.get(&peer) else {
            let _ = reply.send(Err(NetError::NotConnected { node }));
            return;
        };
        match slots.outbound.clone().try_acquire_owned() {
            Ok(permit) => {
                self.send_command(peer, connection, HandlerCommand::Open(OpenRequest { channel, permit, reply }))
            }
            Err(_) => {
                let _ = reply.send(Err(NetError::TooManyStreams { node, max: MAX_STREAMS_PER_PEER }));
            }
        }
    }

    /// Sets whether a connection stays open when idle. Open streams keep their connection in any case.
    pub fn keep_alive(&mut self, peer: PeerId, connection: ConnectionId, keep_alive: bool) {
        self.send_command(peer, connection, HandlerCommand::KeepAlive(keep_alive));
    }

    fn send_command(&mut self, peer: PeerId, connection: ConnectionId, command: HandlerCommand) {
        self.commands.push_back((peer, connection, command));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn handler(&mut self, peer: PeerId) -> Result<Handler, ConnectionDenied> {
        let node = node_of(&peer).ok_or_else(|| ConnectionDenied::new(NotEd25519(peer)))?;
        let inbound = self.peers.entry(peer).or_insert_with(Slots::new).inbound.clone();
        Ok(Handler {
            node,
            protocols: self.protocols.clone(),
            senders: self.senders.clone(),
            meter: self.meter.clone(),
            inbound,
            keep_alive: false,
            opens: VecDeque::new(),
        })
    }

    /// Removes a peer without connections, after another protocol denied its connection.
    fn forget_unconnected(&mut self, peer: &PeerId) {
        if self.peers.get(peer).is_some_and(|slots| slots.connections == 0) {
            self.peers.remove(peer);
        }
    }
}

/// The peer's key is not an Ed25519 key.
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

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<ToSwarm<Infallible, HandlerCommand>> {
        if let Some((peer_id, connection, event)) = self.commands.pop_front() {
            return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler: NotifyHandler::One(connection), event });
        }
        self.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// The part in each connection's task.
pub(super) struct Handler {
    node: NodeId,
    protocols: ChannelUpgrade,
    senders: IncomingSenders,
    meter: Arc<Meter>,
    inbound: Arc<Semaphore>,
    keep_alive: bool,
    opens: VecDeque<OpenRequest>,
}

impl Handler {
    fn stream(&self, inner: libp2p::Stream, channel: Channel, permit: OwnedSemaphorePermit) -> Stream {
        Stream { inner, channel, meter: self.meter.clone(), _permit: permit }
    }

    fn accept(&self, stream: libp2p::Stream, channel: Channel) {
        match self.inbound.clone().try_acquire_owned() {
            Ok(permit) => self.senders.enqueue(self.node, channel, self.stream(stream, channel, permit)),
            // Dropping resets the stream: an honest peer observes the same limit.
            Err(_) => {
                self.senders.dropped.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn refuse(&self, open: OpenRequest, error: StreamUpgradeError<Infallible>) {
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
    type FromBehaviour = HandlerCommand;
    type ToBehaviour = Infallible;
    type InboundProtocol = ChannelUpgrade;
    type OutboundProtocol = ChannelUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = OpenRequest;

    fn listen_protocol(&self) -> SubstreamProtocol<ChannelUpgrade, ()> {
        SubstreamProtocol::new(self.protocols.clone(), ()).with_timeout(OPEN_DEADLINE)
    }

    fn connection_keep_alive(&self) -> bool {
        self.keep_alive
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ConnectionHandlerEvent<ChannelUpgrade, OpenRequest, Infallible>> {
        // No waker needed: requests arrive by `on_behaviour_event`, after which the connection polls again.
        while let Some(open) = self.opens.pop_front() {
            if open.reply.is_closed() {
                continue;
            }
            let channel = open.channel;
            let upgrade = ChannelUpgrade(
                self.protocols.0.iter().filter(|protocol| protocol.channel == channel).cloned().collect(),
            );
            let protocol = SubstreamProtocol::new(upgrade, open).with_timeout(OPEN_DEADLINE);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, command: HandlerCommand) {
        match command {
            HandlerCommand::KeepAlive(keep_alive) => self.keep_alive = keep_alive,
            HandlerCommand::Open(open) => self.opens.push_back(open),
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, ChannelUpgrade, ChannelUpgrade, (), OpenRequest>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: (stream, channel), .. }) => {
                self.accept(stream, channel);
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol: (stream, _), info: open }) => {
                let OpenRequest { permit, reply, channel } = open;
                let _ = reply.send(Ok(self.stream(stream, channel, permit)));
            }
            ConnectionEvent::DialUpgradeError(failed) => self.refuse(failed.info, failed.error),
            _ => {}
        }
    }
}
