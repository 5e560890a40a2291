//! The network as other rooms see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use libp2p::{Multiaddr, PeerId, Swarm, identity, relay, swarm};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::address::{self, peer_of};
use super::behaviour::Behaviour;
use super::command::{Command, Dial, Reply};
use super::config::{self, Checked};
use super::discovery::Discovery;
use super::driver::{Driver, Drops, Outlets};
use super::listen::Addresses;
use super::meter::Meter;
use super::peers::PeerTable;
use super::pending::Pending;
use super::reach::Reach;
use super::{Channel, NetConfig, NetError, PeerRegistry, Stream, Traffic, protocols, streams, transport};
use crate::base::{Hash, NodeId};
use crate::identity::Keypair;
use crate::rt::{EventBus, TaskSet, Watched};

/// What peers send. Each queue is bounded: streams that nobody takes are reset, gossip is dropped, both are counted.
pub struct Incoming {
    /// Streams of [`Channel::Control`], with who opened them.
    pub control: mpsc::Receiver<(NodeId, Stream)>,
    /// Streams of [`Channel::Stage`].
    pub stage: mpsc::Receiver<(NodeId, Stream)>,
    /// Streams of [`Channel::Shard`].
    pub shard: mpsc::Receiver<(NodeId, Stream)>,
    /// Gossip.
    pub gossip: mpsc::Receiver<Gossip>,
}

/// A message that went round the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gossip {
    /// Who wrote it; the signature was checked.
    pub author: NodeId,
    /// The connected peer that passed it on.
    pub via: NodeId,
    /// At most [`MAX_GOSSIP_BYTES`](super::MAX_GOSSIP_BYTES).
    pub bytes: Vec<u8>,
}

/// What was not taken in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Incoming streams that were reset.
    pub streams: u64,
    /// Gossip messages.
    pub gossip: u64,
}

/// The network. Clones are handles of the same one; when the last is dropped, it ends by itself.
#[derive(Clone)]
pub struct NetHandle {
    local: NodeId,
    commands: mpsc::Sender<Command>,
    registry: PeerRegistry,
    addresses: Watched<Vec<String>>,
    connects: broadcast::WeakSender<NodeId>,
    disconnects: broadcast::WeakSender<NodeId>,
    dropped_streams: Arc<AtomicU64>,
    drops: Arc<Drops>,
    meter: Arc<Meter>,
}

impl std::fmt::Debug for NetHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NetHandle({})", self.local.short())
    }
}

/// Starts the network on the runtime of `tasks`, and returns when all listeners are up: a few milliseconds. Discovery
/// and bootstrap go on behind. If the call is dropped, nothing stays behind.
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
    // Sockets and timers register with the runtime that is entered here.
    let _context = tasks.handle().enter();
    let key = identity::Keypair::ed25519_from_bytes(*keypair.seed())
        .map_err(|error| NetError::Setup { reason: error.to_string() })?;
    let local = key.public().to_peer_id();
    let meter = Arc::new(Meter::new(config.ceiling));
    let (streams, outlets, dropped_streams) = streams::Behaviour::new(&config.network, meter.clone())?;
    let (circuits, circuit_client) = relay::client::new(local);
    let behaviour = Behaviour::new(&config, &key, streams, circuit_client)?;
    // A connection that cannot be closed, because its peer is frozen, ends with the driver all the same.
    let (executor, connections) = (tasks.clone(), CancellationToken::new());
    let over = connections.clone();
    let run = move |task| {
        let over = over.clone();
        executor.spawn("connection", async move { over.run_until_cancelled(task).await.unwrap_or(()) });
    };
    let swarm_config = swarm::Config::with_executor(run).with_idle_connection_timeout(config::IDLE_CONNECTION);
    let (table, registry) = PeerTable::new();
    let transport = transport::build(&key, config.key.as_ref(), circuits, &meter, &registry)?;
    let swarm = Swarm::new(transport, behaviour, local, swarm_config);

    let (commands, queue) = mpsc::channel(config::COMMAND_QUEUE);
    let (gossip, gossip_out) = mpsc::channel(config::GOSSIP_QUEUE);
    let (connects, disconnects) =
        (broadcast::Sender::new(config::NOTICE_QUEUE), broadcast::Sender::new(config::NOTICE_QUEUE));
    let (addresses, bound) = Addresses::new(local);
    let drops = Arc::new(Drops::default());
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
            discovery.found(peer, address, Instant::now());
        }
    }
    let driver = Driver {
        swarm,
        commands: queue,
        table,
        outlets: Outlets { gossip, connects, disconnects, events, drops },
        addresses,
        stop: tasks.stopping(),
        topic: protocols::topic(&config.network),
        greeting: protocols::greeting(&config.network),
        dial_deadline: config.dial_deadline,
        pending: Pending::new(),
        discovery,
        reconnected: None,
        refresh: Instant::now() + config::REFRESH,
        reach: Reach::new(),
        relays: config.relay,
        _connections: connections.drop_guard(),
    };
    let incoming =
        Incoming { control: outlets.control, stage: outlets.stage, shard: outlets.shard, gossip: gossip_out };
    Ok((driver, handle, incoming))
}

impl NetHandle {
    /// This node.
    pub fn local(&self) -> NodeId {
        self.local
    }

    /// Addresses with real ports and `/p2p/`, to be given to others: bound ones, those at which this node was reached from
    /// outside, and circuits of relays where there is no such one. Empty without listeners or after shutdown.
    pub fn addresses(&self) -> Vec<String> {
        self.addresses.get().to_vec()
    }

    /// The same, as they come and go.
    pub fn watch_addresses(&self) -> Watched<Vec<String>> {
        let mut addresses = self.addresses.clone();
        addresses.pass();
        addresses
    }

    /// Who is there.
    pub fn peers(&self) -> PeerRegistry {
        self.registry.clone()
    }

    /// What nobody took in time, since the start.
    pub fn dropped(&self) -> Dropped {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Dropped { streams: count(&self.dropped_streams), gossip: count(&self.drops.gossip) }
    }

    /// What went over the wire since the start.
    pub fn traffic(&self) -> Traffic {
        self.meter.traffic()
    }

    /// Nodes from now on as they connect and have identified themselves as ours. A reader that lags is told so.
    pub fn connects(&self) -> broadcast::Receiver<NodeId> {
        subscribe(&self.connects)
    }

    /// Nodes from now on as they lose their last connection.
    pub fn disconnects(&self) -> broadcast::Receiver<NodeId> {
        subscribe(&self.disconnects)
    }

    /// Dials an address, with or without `/p2p/`, and waits until the peer is connected and has identified itself as
    /// a node of this network. A node that is connected already is not dialled again.
    pub async fn dial(&self, address: &str) -> Result<NodeId, NetError> {
        let address = address::parse_dial(address)?;
        self.ask(|reply| Command::Dial { address, anew: false, reply }).await
    }

    /// The same for a peer whose connection, if there is one, does not answer.
    pub async fn dial_anew(&self, address: &str) -> Result<NodeId, NetError> {
        let address = address::parse_dial(address)?;
        self.ask(|reply| Command::Dial { address, anew: true, reply }).await
    }

    /// Waits until `node` is connected and identified, dialling it where it is not: at these addresses, of which the
    /// unusable are skipped, and at those known from before.
    pub async fn ensure_connected(&self, node: NodeId, addresses: &[String]) -> Result<(), NetError> {
        self.ensure(node, addresses, Dial { told_by: None, brief: false }).await
    }

    /// The same at addresses that another peer has told. Those of this machine and its site are skipped where that peer
    /// itself is farther away.
    pub async fn ensure_as_told(&self, node: NodeId, addresses: &[String], by: NodeId) -> Result<(), NetError> {
        self.ensure(node, addresses, Dial { told_by: Some(teller(by)?), brief: false }).await
    }

    /// The same with a dial that ends with the call: where it is dropped, within a quarter of a second.
    pub async fn try_as_told(&self, node: NodeId, addresses: &[String], by: NodeId) -> Result<(), NetError> {
        self.ensure(node, addresses, Dial { told_by: Some(teller(by)?), brief: true }).await
    }

    async fn ensure(&self, node: NodeId, addresses: &[String], dial: Dial) -> Result<(), NetError> {
        let peer = peer_of(&node).ok_or(NetError::NotConnected { node })?;
        let usable = addresses.iter().filter_map(|text| address::parse_dial(text).ok());
        let of_node = usable.filter(|address| address::peer_in(address).is_none_or(|named| named == peer));
        let addresses = of_node.take(config::MAX_ADDRESSES_PER_PEER).collect();
        self.ask(|reply| Command::Ensure { node, peer, addresses, dial, reply }).await.map(drop)
    }

    /// Opens a stream to a connected node, at most within 10 s. Never dials: see
    /// [`ensure_connected`](Self::ensure_connected). Dropping the call leaves no stream open.
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

    /// Gossips a message to the network; succeeds also where nobody listens yet.
    pub async fn publish(&self, message: Vec<u8>) -> Result<(), NetError> {
        self.ask(|reply| Command::Publish { message, reply }).await
    }

    /// Announces in the swarm's table that this node has what `key` stands for, and repeats it until withdrawn.
    pub async fn provide(&self, key: Hash) -> Result<(), NetError> {
        self.ask(|reply| Command::Provide { key, reply }).await
    }

    /// Ends an announcement; others forget it within half an hour.
    pub async fn withdraw(&self, key: Hash) -> Result<(), NetError> {
        self.send(Command::Withdraw { key }).await
    }

    /// Other nodes that announced `key`, at most 64. Never believed: they are asked.
    pub async fn find_providers(&self, key: Hash) -> Result<Vec<NodeId>, NetError> {
        self.ask(|reply| Command::FindProviders { key, reply }).await
    }

    /// Dials at once whoever ought to be connected, and the peers that left last: for who misses them. Tells how many are being
    /// dialled; it does not wait for them.
    pub async fn reconnect(&self) -> Result<usize, NetError> {
        self.ask(|reply| Command::Reconnect { reply }).await
    }

    /// Says that a connected node does not answer. It is dialled anew, every few seconds at most; a connection that comes
    /// up takes the place of the ones before, whose streams end.
    pub fn doubt(&self, node: NodeId) {
        if let Some(peer) = peer_of(&node) {
            // A network that is busy or has ended is told again by who still waits.
            let _ = self.commands.try_send(Command::Doubt { peer });
        }
    }

    /// Closes all connections to a node. Nothing keeps it from connecting again.
    pub async fn disconnect(&self, node: NodeId) -> Result<(), NetError> {
        let peer = peer_of(&node).ok_or(NetError::NotConnected { node })?;
        self.send(Command::Disconnect { peer }).await
    }

    /// Closes connections and sockets and waits for it, at most about half a second. Idempotent.
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

fn teller(by: NodeId) -> Result<PeerId, NetError> {
    peer_of(&by).ok_or(NetError::NotConnected { node: by })
}

/// A reader, at its end at once where the network has ended.
fn subscribe(sender: &broadcast::WeakSender<NodeId>) -> broadcast::Receiver<NodeId> {
    match sender.upgrade() {
        Some(sender) => sender.subscribe(),
        None => broadcast::channel(1).1,
    }
}
