//! The handle to the network, and its start.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use libp2p::{Multiaddr, PeerId, Swarm, identity, relay, swarm};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::address::{self, peer_of};
use super::behaviour::Behaviour;
use super::command::{Command, EnsureOptions, Reply};
use super::config::{self, Checked};
use super::discovery::Discovery;
use super::driver::{Driver, DriverOutputs, DropCounters};
use super::listen::Addresses;
use super::meter::Meter;
use super::peers::PeerTable;
use super::pending::Pending;
use super::reachability::Reachability;
use super::{Channel, NetConfig, NetError, PeerRegistry, Stream, Traffic, protocols, streams, transport};
use crate::base::{Hash, NodeId};
use crate::identity::Keypair;
use crate::rt::{EventBus, TaskSet, WatchReader};

/// Incoming streams and gossip. Each queue is bounded: excess streams are reset, excess gossip is dropped; both are counted.
pub struct Incoming {
    /// Streams of [`Channel::Control`], with the peer that opened them.
    pub control: mpsc::Receiver<(NodeId, Stream)>,
    /// Streams of [`Channel::Stage`].
    pub stage: mpsc::Receiver<(NodeId, Stream)>,
    /// Streams of [`Channel::Shard`].
    pub shard: mpsc::Receiver<(NodeId, Stream)>,
    /// Gossip messages.
    pub gossip: mpsc::Receiver<Gossip>,
}

/// A gossip message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gossip {
    /// The author, verified by signature.
    pub author: NodeId,
    /// The connected peer that forwarded it.
    pub via: NodeId,
    /// The content, at most [`MAX_GOSSIP_BYTES`](super::MAX_GOSSIP_BYTES).
    pub bytes: Vec<u8>,
}

/// Counts of dropped input since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DropCounts {
    /// Incoming streams reset at a full queue.
    pub streams: u64,
    /// Gossip messages dropped at a full queue.
    pub gossip: u64,
}

/// A handle to the network. Clones share it; the network ends with the last handle.
#[derive(Clone)]
pub struct NetHandle {
    local: NodeId,
    commands: mpsc::Sender<Command>,
    registry: PeerRegistry,
    addresses: WatchReader<Vec<String>>,
    connects: broadcast::WeakSender<NodeId>,
    disconnects: broadcast::WeakSender<NodeId>,
    dropped_streams: Arc<AtomicU64>,
    drops: Arc<DropCounters>,
    meter: Arc<Meter>,
}

impl std::fmt::Debug for NetHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NetHandle({})", self.local.short())
    }
}

/// Starts the network on the runtime of `tasks` and returns once all listeners are up, after a few milliseconds. Discovery
/// and bootstrap continue in the background. Cancel-safe: a dropped call leaves no task or socket.
pub async fn start(
    config: NetConfig,
    keypair: &Keypair,
    events: EventBus,
    tasks: TaskSet,
) -> Result<(NetHandle, Incoming), NetError> {
    let Checked { listen, bootstrap, external } = config.check()?;
    let (mut driver, handle, incoming) = build(config, bootstrap, keypair, events, &tasks)?;
    external.into_iter().for_each(|address| driver.swarm.add_external_address(address));
    let (ready, up) = oneshot::channel();
    tasks.spawn("net", driver.run(listen, ready));
    up.await.unwrap_or(Err(NetError::Closed))?;
    Ok((handle, incoming))
}

fn build(
    config: NetConfig,
    bootstrap: Vec<Multiaddr>,
    keypair: &Keypair,
    events: EventBus,
    tasks: &TaskSet,
) -> Result<(Driver, NetHandle, Incoming), NetError> {
    // Sockets and timers register with the entered runtime.
    let _context = tasks.handle().enter();
    let key = identity::Keypair::ed25519_from_bytes(*keypair.seed())
        .map_err(|error| NetError::Setup { reason: error.to_string() })?;
    let local = key.public().to_peer_id();
    let meter = Arc::new(Meter::new(config.ceiling));
    let (streams, queues, dropped_streams) = streams::Behaviour::new(&config.network, meter.clone())?;
    let (relay_transport, relay_client) = relay::client::new(local);
    let behaviour = Behaviour::new(&config, &key, streams, relay_client)?;
    // Connections that cannot close because the peer is frozen end with the driver.
    let (executor, connections) = (tasks.clone(), CancellationToken::new());
    let over = connections.clone();
    let run = move |task| {
        let over = over.clone();
        executor.spawn("connection", async move { over.run_until_cancelled(task).await.unwrap_or(()) });
    };
    let swarm_config = swarm::Config::with_executor(run).with_idle_connection_timeout(config::IDLE_CONNECTION);
    let (table, registry) = PeerTable::new();
    let transport = transport::build(&key, config.key.as_ref(), relay_transport, &meter, &registry)?;
    let swarm = Swarm::new(transport, behaviour, local, swarm_config);

    let (commands, queue) = mpsc::channel(config::COMMAND_QUEUE);
    let (gossip, gossip_out) = mpsc::channel(config::GOSSIP_QUEUE);
    let (connects, disconnects) =
        (broadcast::Sender::new(config::NOTICE_QUEUE), broadcast::Sender::new(config::NOTICE_QUEUE));
    let (addresses, bound) = Addresses::new(local);
    let drops = Arc::new(DropCounters::default());
    let handle = NetHandle {
        local: keypair.node_id(),
        commands,
        registry,
        addresses: bound,
        connects: connects.downgrade(),
        disconnects: disconnects.downgrade(),
        dropped_streams,
        drops: drops.clone(),
        meter,
    };
    let given = bootstrap.into_iter().map(|address| (address::peer_in(&address), address));
    let mut discovery = Discovery::new(given, Instant::now());
    for address in config.known.iter().filter_map(|text| address::parse_dial(text).ok()) {
        if let Some(peer) = address::peer_in(&address).filter(|peer| *peer != local) {
            discovery.discovered(peer, address, Instant::now());
        }
    }
    let driver = Driver {
        swarm,
        commands: queue,
        table,
        outputs: DriverOutputs { gossip, connects, disconnects, events, drops },
        addresses,
        stop: tasks.stopping(),
        topic: protocols::topic(&config.network),
        identify_protocol: protocols::identify_protocol(&config.network),
        dial_deadline: config.dial_deadline,
        pending: Pending::new(),
        discovery,
        reconnected: None,
        refresh: Instant::now() + config::REFRESH,
        reachability: Reachability::new(),
        is_relay: config.relay,
        _connections: connections.drop_guard(),
    };
    let incoming = Incoming { control: queues.control, stage: queues.stage, shard: queues.shard, gossip: gossip_out };
    Ok((driver, handle, incoming))
}

impl NetHandle {
    /// The id of this node.
    pub fn local(&self) -> NodeId {
        self.local
    }

    /// Addresses of this node with actual ports and `/p2p/`: listen addresses, confirmed external addresses, and relayed
    /// addresses if there is no external one. Empty without listeners or after shutdown.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.get().to_vec()
    }

    /// Watches [`addresses`](Self::addresses).
    pub fn watch_addresses(&self) -> WatchReader<Vec<String>> {
        let mut addresses = self.addresses.clone();
        addresses.pass();
        addresses
    }

    /// The registry of peers.
    pub fn peers(&self) -> PeerRegistry {
        self.registry.clone()
    }

    /// Counts of dropped input since the start.
    pub fn dropped(&self) -> DropCounts {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DropCounts { streams: count(&self.dropped_streams), gossip: count(&self.drops.gossip) }
    }

    /// Bytes sent and received since the start.
    pub fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    /// Nodes that connect and identify from now on. A slow receiver gets a `Lagged` error.
    pub fn connects(&self) -> broadcast::Receiver<NodeId> {
        subscribe(&self.connects)
    }

    /// Nodes that lose their last connection from now on.
    pub fn disconnects(&self) -> broadcast::Receiver<NodeId> {
        subscribe(&self.disconnects)
    }

    /// Dials an address, with or without `/p2p/`, and waits until the peer has identified as a node of this network. A
    /// connected node is not dialled again.
    pub async fn dial(&self, address: &str) -> Result<NodeId, NetError> {
        let address = address::parse_dial(address)?;
        self.ask(|reply| Command::Dial { address, force: false, reply }).await
    }

    /// Like [`dial`](Self::dial), but dials a connected peer too, for a connection that does not answer.
    pub async fn redial(&self, address: &str) -> Result<NodeId, NetError> {
        let address = address::parse_dial(address)?;
        self.ask(|reply| Command::Dial { address, force: true, reply }).await
    }

    /// Waits until `node` is connected and identified. Dials it if needed, at these addresses and at known ones; invalid
    /// addresses are skipped.
    pub async fn ensure_connected(&self, node: NodeId, addresses: &[String]) -> Result<(), NetError> {
        self.ensure(node, addresses, EnsureOptions { reported_by: None, cancellable: false }).await
    }

    /// Like [`ensure_connected`](Self::ensure_connected) with addresses reported by another peer. Skips addresses of this
    /// machine and site if that peer is outside.
    pub async fn ensure_reported(&self, node: NodeId, addresses: &[String], by: NodeId) -> Result<(), NetError> {
        self.ensure(node, addresses, EnsureOptions { reported_by: Some(reporter(by)?), cancellable: false }).await
    }

    /// Like [`ensure_reported`](Self::ensure_reported); dropping the call cancels the dial within a quarter of a second.
    pub async fn try_reported(&self, node: NodeId, addresses: &[String], by: NodeId) -> Result<(), NetError> {
        self.ensure(node, addresses, EnsureOptions { reported_by: Some(reporter(by)?), cancellable: true }).await
    }

    async fn ensure(&self, node: NodeId, addresses: &[String], options: EnsureOptions) -> Result<(), NetError> {
        let peer = peer_of(&node).ok_or(NetError::NotConnected { node })?;
        let usable = addresses.iter().filter_map(|text| address::parse_dial(text).ok());
        let of_node = usable.filter(|address| address::peer_in(address).is_none_or(|named| named == peer));
        let addresses = of_node.take(config::MAX_ADDRESSES_PER_PEER).collect();
        self.ask(|reply| Command::Ensure { node, peer, addresses, options, reply }).await.map(drop)
    }

    /// Opens a stream to a connected node within 10 s. Never dials, see [`ensure_connected`](Self::ensure_connected).
    /// Cancel-safe: a dropped call leaves no stream open.
    pub async fn open(&self, node: NodeId, channel: Channel) -> Result<Stream, NetError> {
        let peer = peer_of(&node).ok_or(NetError::NotConnected { node })?;
        let (reply, outcome) = oneshot::channel();
        self.send(Command::Open { node, peer, channel, reply }).await?;
        match outcome.await {
            Ok(outcome) => outcome,
            Err(_) if self.commands.is_closed() => Err(NetError::Closed),
            Err(_) => Err(NetError::PeerLost { node }),
        }
    }

    /// Publishes a gossip message. Succeeds without subscribers too.
    pub async fn publish(&self, message: Vec<u8>) -> Result<(), NetError> {
        self.ask(|reply| Command::Publish { message, reply }).await
    }

    /// Announces this node in the DHT as a provider of `key`, and repeats that until withdrawn.
    pub async fn provide(&self, key: Hash) -> Result<(), NetError> {
        self.ask(|reply| Command::Provide { key, reply }).await
    }

    /// Withdraws an announcement; it expires at other nodes within half an hour.
    pub async fn withdraw(&self, key: Hash) -> Result<(), NetError> {
        self.send(Command::Withdraw { key }).await
    }

    /// Other nodes that announced `key`, at most 64. Unverified: ask each node.
    pub async fn find_providers(&self, key: Hash) -> Result<Vec<NodeId>, NetError> {
        self.ask(|reply| Command::FindProviders { key, reply }).await
    }

    /// Dials all targets and recently disconnected peers at once. Returns the number of dials under way without waiting for
    /// them.
    pub async fn reconnect(&self) -> Result<usize, NetError> {
        self.ask(|reply| Command::Reconnect { reply }).await
    }

    /// Reports that a connected node does not answer. The node is redialled every few seconds at most; a new connection
    /// replaces the old ones, whose streams end.
    pub fn suspect(&self, node: NodeId) {
        if let Some(peer) = peer_of(&node) {
            // A lost command is harmless: the caller repeats it while it waits.
            let _ = self.commands.try_send(Command::Suspect { peer });
        }
    }

    /// Closes all connections to a node. The node may connect again.
    pub async fn disconnect(&self, node: NodeId) -> Result<(), NetError> {
        let peer = peer_of(&node).ok_or(NetError::NotConnected { node })?;
        self.send(Command::Disconnect { peer }).await
    }

    /// Closes connections and sockets; takes at most about half a second. Idempotent.
    pub async fn shutdown(&self) {
        if self.commands.send(Command::Shutdown).await.is_ok() {
            self.commands.closed().await;
        }
    }

    async fn send(&self, command: Command) -> Result<(), NetError> {
        self.commands.send(command).await.map_err(|_| NetError::Closed)
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, NetError> {
        let (reply, outcome) = oneshot::channel();
        self.send(command(reply)).await?;
        outcome.await.unwrap_or(Err(NetError::Closed))
    }
}

fn reporter(by: NodeId) -> Result<PeerId, NetError> {
    peer_of(&by).ok_or(NetError::NotConnected { node: by })
}

/// A receiver; closed at once if the network has ended.
fn subscribe(sender: &broadcast::WeakSender<NodeId>) -> broadcast::Receiver<NodeId> {
    match sender.upgrade() {
        Some(sender) => sender.subscribe(),
        None => broadcast::channel(1).1,
    }
}
