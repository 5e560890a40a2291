//! The one task that owns the swarm. It never waits for a consumer: commands come in by a bounded queue, replies and
//! notices go out by channels that drop rather than block.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{FutureExt, StreamExt};
use libp2p::core::ConnectedPoint;
use libp2p::core::transport::ListenerId;
use libp2p::gossipsub::{self, IdentTopic};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, identify, kad, mdns, ping, relay};
use tokio::sync::{broadcast, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::address::{self, TransportKind, node_of};
use super::behaviour::{Behaviour, BehaviourEvent};
use super::command::{Command, Dial, Reply};
use super::config;
use super::discovery::Discovery;
use super::outward::SomebodyElse;
use super::peers::{PeerTable, Way};
use super::pending::{Pending, Query, Waiter};
use super::reach::Reach;
use super::{Gossip, NetError, listen, protocols};
use crate::base::{Event, NodeId};
use crate::rt::EventBus;

/// What peers and messages were turned away for want of room.
#[derive(Debug, Default)]
pub(super) struct Drops {
    pub gossip: AtomicU64,
}

/// Where the driver tells others what happens.
pub(super) struct Outlets {
    pub gossip: mpsc::Sender<Gossip>,
    pub connects: broadcast::Sender<NodeId>,
    pub disconnects: broadcast::Sender<NodeId>,
    pub events: EventBus,
    pub drops: Arc<Drops>,
}

pub(super) struct Driver {
    pub swarm: Swarm<Behaviour>,
    pub commands: mpsc::Receiver<Command>,
    pub table: PeerTable,
    pub outlets: Outlets,
    pub addresses: listen::Addresses,
    pub stop: CancellationToken,
    pub topic: IdentTopic,
    pub greeting: String,
    pub dial_deadline: Duration,
    pub pending: Pending<ConnectionId, PeerId, kad::QueryId>,
    pub discovery: Discovery<ConnectionId, PeerId, Multiaddr>,
    pub reach: Reach<PeerId, Multiaddr, ListenerId>,
    /// When all who ought to be connected were last dialled because somebody missed them.
    pub reconnected: Option<Instant>,
    /// When the routing table is refreshed next.
    pub refresh: Instant,
    /// Whether this node carries circuits: where it listens is where it can be reached, as far as nobody says otherwise.
    pub relays: bool,
    /// Ends the tasks of all connections, after the goodbye.
    pub _connections: DropGuard,
}

/// What a peer that identified itself is to us.
enum Greeting {
    Ours,
    OtherNetwork,
    OtherProtocol,
}

impl Driver {
    /// Listens and reports so, then runs until told to stop or until every handle is gone, then says goodbye.
    pub async fn run(mut self, listen: Vec<Multiaddr>, ready: Reply<()>) {
        let up = self.listen(listen).await;
        let failed = up.is_err();
        if ready.send(up).is_err() || failed {
            return;
        }
        let mut tick = tokio::time::interval(config::TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                command = self.commands.recv() => match command {
                    None | Some(Command::Shutdown) => break,
                    Some(command) => self.on_command(command),
                },
                event = self.swarm.select_next_some() => self.on_event(event),
                _ = tick.tick() => self.on_tick(Instant::now()),
            }
        }
        self.close().await;
    }

    /// Listens on all addresses and waits until each is up.
    async fn listen(&mut self, addresses: Vec<Multiaddr>) -> Result<(), NetError> {
        let mut waiting = HashMap::new();
        for address in addresses {
            listen::probe(&address)?;
            let id = self.swarm.listen_on(address.clone()).map_err(|error| listen_error(&address, &error))?;
            waiting.insert(id, address);
        }
        let all_up = async {
            while !waiting.is_empty() {
                let event = self.swarm.select_next_some().await;
                match &event {
                    SwarmEvent::NewListenAddr { listener_id, .. } => drop(waiting.remove(listener_id)),
                    SwarmEvent::ListenerClosed { listener_id, reason: Err(error), .. } => {
                        if let Some(address) = waiting.get(listener_id) {
                            return Err(listen_error(address, error));
                        }
                    }
                    _ => {}
                }
                self.on_event(event);
            }
            // An unspecified address stands for several, which come one after the other.
            while let Some(event) = self.swarm.select_next_some().now_or_never() {
                self.on_event(event);
            }
            Ok(())
        };
        let late = NetError::Timeout { what: "listening", millis: config::LISTEN_DEADLINE.as_millis() as u64 };
        tokio::time::timeout(config::LISTEN_DEADLINE, all_up).await.unwrap_or(Err(late))
    }

    /// Closes connections in order, so that peers notice at once. Bounded: some may not answer any more.
    async fn close(mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let goodbye = async {
            while self.swarm.connected_peers().next().is_some() {
                let event = self.swarm.select_next_some().await;
                if let SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } = event {
                    self.on_closed(peer_id, connection_id);
                }
            }
        };
        let _ = tokio::time::timeout(config::CLOSE_DEADLINE, goodbye).await;
        self.addresses.clear();
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Dial { address, anew, reply } => self.dial(address, anew, reply),
            Command::Ensure { node, peer, mut addresses, dial: Dial { told_by, brief }, reply } => {
                if let Some(teller) = told_by {
                    addresses.retain(|told| address::may_tell(self.table.seen(&teller), told));
                }
                self.ensure(node, peer, addresses, brief, reply);
            }
            Command::Open { node, peer, channel, reply } => match self.table.link(&peer) {
                Some(link) => self.swarm.behaviour_mut().streams.open(node, peer, link, channel, reply),
                None => drop(reply.send(Err(NetError::NotConnected { node }))),
            },
            Command::Publish { message, reply } => drop(reply.send(self.publish(message))),
            Command::Provide { key, reply } => self.provide(key.as_bytes(), reply),
            Command::Withdraw { key } => {
                self.swarm.behaviour_mut().routing.stop_providing(&kad::RecordKey::new(key.as_bytes()));
            }
            Command::FindProviders { key, reply } => self.find_providers(key.as_bytes(), reply),
            Command::Reconnect { reply } => drop(reply.send(Ok(self.reconnect(Instant::now())))),
            Command::Doubt { peer } => self.doubt(peer),
            Command::Disconnect { peer } => drop(self.swarm.disconnect_peer_id(peer)),
            // Ends the loop in `run`.
            Command::Shutdown => {}
        }
    }

    // --- dialling -------------------------------------------------------------------------------------------------

    fn waiter(&self, address: String, reply: Reply<NodeId>) -> Option<Waiter> {
        if !self.pending.has_room() {
            let _ = reply.send(Err(NetError::Busy { max: config::MAX_PENDING }));
            return None;
        }
        let allowed = self.dial_deadline;
        Some(Waiter { address, reply, deadline: Instant::now() + allowed, allowed, brief: false })
    }

    /// Connects to whoever is at the address.
    fn dial(&mut self, address: Multiaddr, anew: bool, reply: Reply<NodeId>) {
        let peer = address::peer_in(&address);
        if peer == Some(*self.swarm.local_peer_id()) {
            let _ = reply.send(Err(NetError::ThatIsMe { address: address.to_string() }));
            return;
        }
        if let Some(node) = peer.filter(|peer| !anew && self.table.speaks(peer)).as_ref().and_then(node_of) {
            let _ = reply.send(Ok(node));
            return;
        }
        let Some(waiter) = self.waiter(address.to_string(), reply) else { return };
        self.start_dial(peer, vec![address], waiter);
    }

    fn ensure(&mut self, node: NodeId, peer: PeerId, mut addresses: Vec<Multiaddr>, brief: bool, reply: Reply<NodeId>) {
        if peer == *self.swarm.local_peer_id() {
            let _ = reply.send(Err(NetError::ThatIsMe { address: node.to_string() }));
            return;
        }
        if self.table.speaks(&peer) {
            let _ = reply.send(Ok(node));
            return;
        }
        let Some(waiter) = self.waiter(node.to_string(), reply) else { return };
        let waiter = Waiter { brief, ..waiter };
        if self.table.is_connected(&peer) {
            return self.pending.await_greeting(peer, waiter);
        }
        if let Some(dial) = self.pending.dial_to(peer) {
            return self.pending.join(dial, waiter);
        }
        addresses.extend(self.table.addresses(&peer));
        self.start_dial(Some(peer), addresses, waiter);
    }

    /// Starts one dial. Whoever waits is told where that fails at once.
    fn start_dial(&mut self, peer: Option<PeerId>, addresses: Vec<Multiaddr>, waiter: Waiter) {
        let Some(options) = dial_options(peer, addresses) else { return };
        self.pending.dialling(options.connection_id(), peer, vec![waiter]);
        self.dial_now(peer, options);
    }

    fn dial_now(&mut self, peer: Option<PeerId>, options: DialOpts) {
        let dial = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {}
            // The swarm leaves out its own listeners: without a peer id, the one address given was such a one.
            Err(DialError::NoAddresses) if peer.is_none() => {
                self.on_dial_failed(dial, &DialError::LocalPeerId { address: Multiaddr::empty() });
            }
            Err(error) => self.on_dial_failed(dial, &error),
        }
    }

    fn dial_due(&mut self, now: Instant) {
        let due = self.discovery.due(now, |peer| self.table.is_connected(peer));
        for (index, peer, addresses) in due {
            let Some(options) = dial_options(peer, addresses) else { continue };
            let dial = options.connection_id();
            self.discovery.dialling(index, dial);
            self.pending.dialling(dial, peer, Vec::new());
            self.dial_now(peer, options);
        }
    }

    /// Dials whoever ought to be connected, and who left last. How many of them are being dialled.
    fn reconnect(&mut self, now: Instant) -> usize {
        let left: Vec<PeerId> = self.table.left().take(config::MAX_RECONNECTED).collect();
        if self.reconnected.is_none_or(|before| now.duration_since(before) >= config::RECONNECT_AGAIN) {
            self.reconnected = Some(now);
            self.discovery.hurry(now);
            self.dial_due(now);
            for peer in left.iter().copied().filter(|peer| !self.pending.is_dialling(*peer)).collect::<Vec<_>>() {
                let Some(options) = dial_options(Some(peer), self.table.addresses(&peer)) else { continue };
                self.pending.dialling(options.connection_id(), Some(peer), Vec::new());
                self.dial_now(Some(peer), options);
            }
        }
        self.discovery.dialled() + left.into_iter().filter(|peer| self.pending.is_dialling(*peer)).count()
    }

    fn on_dial_failed(&mut self, dial: ConnectionId, error: &DialError) {
        self.pending.dial_failed(dial, &|address| dial_error(address, error));
        match error {
            DialError::LocalPeerId { .. } => self.discovery.is_me(dial),
            _ => self.discovery.failed(dial, Instant::now(), rand::random()),
        }
    }

    // --- gossip and routing ---------------------------------------------------------------------------------------

    fn publish(&mut self, message: Vec<u8>) -> Result<(), NetError> {
        let (given, max) = (message.len(), config::MAX_GOSSIP_BYTES);
        if given > max {
            return Err(NetError::TooLong { given, max });
        }
        use gossipsub::PublishError;
        match self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), message) {
            // Nobody listens yet: an announcement is repeated anyway.
            Ok(_) | Err(PublishError::NoPeersSubscribedToTopic | PublishError::Duplicate) => Ok(()),
            Err(PublishError::AllQueuesFull(max)) => Err(NetError::Busy { max }),
            Err(PublishError::MessageTooLarge) => Err(NetError::TooLong { given, max }),
            Err(error) => Err(NetError::Setup { reason: format!("gossip: {error}") }),
        }
    }

    fn provide(&mut self, key: &[u8; 32], reply: Reply<()>) {
        if !self.pending.has_room() {
            return drop(reply.send(Err(NetError::Busy { max: config::MAX_PENDING })));
        }
        match self.swarm.behaviour_mut().routing.start_providing(kad::RecordKey::new(key)) {
            Ok(id) => self.pending.asked(id, Instant::now() + config::QUERY_DEADLINE, Query::Provide(reply)),
            Err(error) => drop(reply.send(Err(NetError::NotAnnounced { reason: error.to_string() }))),
        }
    }

    fn find_providers(&mut self, key: &[u8; 32], reply: Reply<Vec<NodeId>>) {
        if !self.pending.has_room() {
            return drop(reply.send(Err(NetError::Busy { max: config::MAX_PENDING })));
        }
        let id = self.swarm.behaviour_mut().routing.get_providers(kad::RecordKey::new(key));
        let query = Query::Find { found: Vec::new(), reply };
        self.pending.asked(id, Instant::now() + config::QUERY_DEADLINE, query);
    }

    fn on_routing(&mut self, event: kad::Event) {
        let kad::Event::OutboundQueryProgressed { id, result, step, .. } = event else { return };
        let timeout = || {
            let millis = config::QUERY_DEADLINE.as_millis() as u64;
            Some(NetError::Timeout { what: "searching the swarm", millis })
        };
        let error = match result {
            kad::QueryResult::GetProviders(Ok(kad::GetProvidersOk::FoundProviders { providers, .. })) => {
                let local = *self.swarm.local_peer_id();
                let others = providers.iter().filter(|peer| **peer != local).filter_map(node_of);
                self.pending.found(id, others);
                None
            }
            kad::QueryResult::GetProviders(Err(_)) | kad::QueryResult::StartProviding(Err(_)) => timeout(),
            _ => None,
        };
        if step.last {
            self.pending.answered(id, error);
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        let gossipsub::Event::Message { propagation_source, message, .. } = event else { return };
        let author = message.source.as_ref().and_then(node_of);
        let (Some(author), Some(via)) = (author, node_of(&propagation_source)) else { return };
        if self.outlets.gossip.try_send(Gossip { author, via, bytes: message.data }).is_err() {
            self.outlets.drops.gossip.fetch_add(1, Ordering::Relaxed);
        }
    }

    // --- what the swarm tells -------------------------------------------------------------------------------------

    fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, cause, .. } => {
                tracing::debug!(peer = %peer_id, ?cause, "a connection was closed");
                self.on_closed(peer_id, connection_id);
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                if !self.pending.is_ours(connection_id) {
                    self.on_punch_failed(peer_id);
                }
                self.on_dial_failed(connection_id, &error);
            }
            SwarmEvent::NewListenAddr { address, listener_id } => {
                self.reach.kept(listener_id);
                if self.relays {
                    self.swarm.add_external_address(address.clone());
                }
                self.on_address(&address);
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.addresses.remove(&address);
                self.reach.moved();
            }
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                tracing::debug!(?addresses, ?reason, "a listener was closed");
                self.reach.closed(listener_id, Instant::now());
                addresses.iter().for_each(|address| self.addresses.remove(address));
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_reached(address),
            SwarmEvent::ExternalAddrExpired { address } => self.addresses.remove(&address),
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.on_identified(peer_id, connection_id, &info);
            }
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Ok(rtt) }) => {
                self.table.heard(peer, connection, rtt);
            }
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Routing(event) => self.on_routing(event),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_discovered(found),
            _ => {}
        }
    }

    /// One more address at which others can reach this node.
    fn on_address(&mut self, address: &Multiaddr) {
        if let Some(address) = self.addresses.add(address) {
            self.outlets.events.send(Event::Listening { address });
        }
    }

    /// A connection from outside came through, or the router forwards a port: no relay is needed.
    fn on_reached(&mut self, address: Multiaddr) {
        if !address::is_circuit(&address) {
            tracing::debug!(%address, "this node can be reached from outside");
            self.on_address(&address);
            for reservation in self.reach.opened(address) {
                self.swarm.remove_listener(reservation);
            }
        }
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        // Peers without an Ed25519 key are denied before they get here.
        let Some(node) = node_of(&peer) else { return };
        let dialled = endpoint.is_dialer();
        let wanted = !dialled || self.pending.is_ours(id);
        let way = Way { dialled, wanted, relayed: endpoint.is_relayed() };
        // Of who comes over a circuit nothing is seen but the relay.
        let seen = match endpoint {
            ConnectedPoint::Listener { local_addr, .. } if way.relayed => local_addr,
            other => other.get_remote_address(),
        };
        tracing::debug!(peer = %node.short(), %id, dialled, %seen, "a connection is up");
        self.table.connected(peer, node, id, seen, way);
        self.pending.connected(id, peer);
        self.discovery.connected(id, peer);
        // A second connection of a peer that is known already.
        if self.table.speaks(&peer) {
            for old in self.table.replaced(&peer, id, Instant::now()) {
                tracing::debug!(peer = %node.short(), %old, by = %id, "a connection without an answer is replaced");
                self.swarm.close_connection(old);
                self.on_closed(peer, old);
            }
            self.keep_what_is_needed(peer);
            self.pending.greeted(peer, node);
        }
    }

    fn keep_what_is_needed(&mut self, peer: PeerId) {
        for (id, keep) in self.table.keepers(&peer) {
            self.swarm.behaviour_mut().streams.keep(peer, id, keep);
        }
    }

    /// A dial failed that another end of a circuit asked for, or that routing or a try of a peer's addresses made.
    fn on_punch_failed(&mut self, peer: Option<PeerId>) {
        let Some(peer) = peer.filter(|peer| self.table.punched(peer)) else { return };
        let circuits = self.table.links_where(|link, _| link.kind == TransportKind::Relay);
        for (_, id) in circuits.into_iter().filter(|(of, _)| *of == peer) {
            self.swarm.close_connection(id);
        }
    }

    fn on_closed(&mut self, peer: PeerId, id: ConnectionId) {
        let left = self.table.disconnected(peer, id);
        if self.table.is_connected(&peer) {
            return self.keep_what_is_needed(peer);
        }
        let lost = |address| NetError::Unreachable { address, reason: "the peer closed the connection".into() };
        self.pending.refused(peer, &lost);
        self.discovery.lost(peer, Instant::now());
        if let Some(node) = left {
            tracing::debug!(peer = %node.short(), "the last connection to a peer is gone");
            let _ = self.outlets.disconnects.send(node);
            self.outlets.events.send(Event::PeerDisconnected { node });
        }
    }

    fn on_identified(&mut self, peer: PeerId, id: ConnectionId, info: &identify::Info) {
        let said: String = info.protocol_version.chars().take(config::MAX_NETWORK_BYTES * 2).collect();
        match self.judge(&said) {
            Greeting::Ours => self.on_greeted(peer, id, info),
            Greeting::OtherNetwork => {
                self.refuse(peer, id, &|address| NetError::WrongNetwork { address, theirs: said.clone() });
            }
            Greeting::OtherProtocol => {
                self.refuse(peer, id, &|address| NetError::NotSwarmllm { address, theirs: said.clone() });
            }
        }
    }

    fn judge(&self, said: &str) -> Greeting {
        match said {
            ours if ours == self.greeting => Greeting::Ours,
            other if other.starts_with(protocols::GREETING_START) => Greeting::OtherNetwork,
            _ => Greeting::OtherProtocol,
        }
    }

    fn on_greeted(&mut self, peer: PeerId, id: ConnectionId, info: &identify::Info) {
        let Some(known) = self.table.identified(peer, &info.agent_version, &info.listen_addrs) else { return };
        self.keep_what_is_needed(peer);
        self.offer(peer, id, info);
        let behaviour = self.swarm.behaviour_mut();
        if let Some(addresses) = known.addresses {
            // The routing table only ever adds: start anew, or a peer could fill it with ever new addresses.
            behaviour.routing.remove_peer(&peer);
            for address in addresses {
                behaviour.routing.add_address(&peer, address);
            }
        }
        let Some(node) = known.first else { return };
        self.dial_back(peer, id);
        self.discovery.greeted(peer);
        self.pending.greeted(peer, node);
        let _ = self.outlets.connects.send(node);
        self.outlets.events.send(Event::PeerConnected { node });
    }

    /// A peer came in over a circuit, since nobody can connect to this node. Perhaps this node can connect to it.
    fn dial_back(&mut self, peer: PeerId, id: ConnectionId) {
        let came = self.table.find(&peer, id).is_some_and(|link| link.kind == TransportKind::Relay && !link.dialled);
        let addresses =
            self.table.addresses(&peer).into_iter().filter(|address| !address::is_circuit(address)).collect();
        if came {
            self.dial_again(peer, addresses);
        }
    }

    /// Dials a peer that is connected, at these addresses alone.
    fn dial_again(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if addresses.is_empty() {
            return;
        }
        let options = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses);
        let options = options.allocate_new_port().build();
        self.pending.dialling(options.connection_id(), Some(peer), Vec::new());
        self.dial_now(Some(peer), options);
    }

    /// Dials a peer that is connected and does not answer.
    fn doubt(&mut self, peer: PeerId) {
        if !self.pending.is_dialling(peer) && self.table.doubt(&peer, Instant::now()) {
            let (circuits, direct): (Vec<_>, Vec<_>) =
                self.table.addresses(&peer).into_iter().partition(address::is_circuit);
            self.dial_again(peer, if direct.is_empty() { circuits } else { direct });
        }
    }

    /// A bootstrap peer that carries circuits is one to keep a reservation with.
    fn offer(&mut self, peer: PeerId, id: ConnectionId, info: &identify::Info) {
        let carries = info.protocols.contains(&relay::HOP_PROTOCOL_NAME) && self.discovery.is_bootstrap(&peer);
        let Some(link) = self.table.find(&peer, id).filter(|link| carries && link.dialled) else { return };
        if link.kind != TransportKind::Relay {
            self.reach.offered(peer, address::circuit(&link.address, peer), Instant::now());
        }
    }

    fn ask_for_reservations(&mut self, now: Instant) {
        for (index, circuit) in self.reach.due(now, |peer| self.table.speaks(peer)) {
            let listener = self.swarm.listen_on(circuit);
            let listener = listener.inspect_err(|error| tracing::warn!(%error, "no circuit can be listened for")).ok();
            self.reach.asked(index, listener, now);
        }
    }

    /// Lets a peer that is none of ours go. Who was dialled waits a moment, so that the dialler learns the reason too.
    fn refuse(&mut self, peer: PeerId, id: ConnectionId, error: &dyn Fn(String) -> NetError) {
        let now = Instant::now();
        tracing::debug!(%peer, reason = %error(peer.to_string()), "a peer was refused");
        self.pending.refused(peer, error);
        self.discovery.refused(peer, now);
        let dialled = self.table.find(&peer, id).is_some_and(|link| link.dialled);
        match dialled {
            true => drop(self.swarm.close_connection(id)),
            false => self.table.close_at(peer, id, now + config::REFUSAL_GRACE),
        }
    }

    /// Of two nodes that find each other the one with the smaller id dials, the other only if that fails.
    fn on_discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let (now, local) = (Instant::now(), *self.swarm.local_peer_id());
        for (peer, address) in found {
            if peer == local || node_of(&peer).is_none() || !address::is_worth_keeping(&address, &address) {
                continue;
            }
            let due = if local < peer { now } else { now + config::DISCOVERY_YIELD };
            self.discovery.found(peer, address::without_peer(&address), due);
        }
    }

    fn on_tick(&mut self, now: Instant) {
        for peer in self.pending.sweep(now) {
            // Ends the dials to it: it has no connection.
            if !self.table.is_connected(&peer) {
                let _ = self.swarm.disconnect_peer_id(peer);
            }
        }
        let gone = self.table.links_where(|link, _| now.duration_since(link.heard) > config::SILENCE_LIMIT);
        for (peer, id) in gone {
            tracing::debug!(%peer, "a silent connection is given up");
            self.swarm.close_connection(id);
            // Closing may take as long as the peer stays silent: it counts as gone from now on.
            self.on_closed(peer, id);
        }
        let strangers = self.table.links_where(|link, speaks| {
            let anonymous = !speaks && now.duration_since(link.since) > config::IDENTIFY_DEADLINE;
            anonymous || link.close_at.is_some_and(|when| when <= now)
        });
        for (peer, id) in strangers {
            self.pending.refused(peer, &|address| NetError::NotSwarmllm { address, theirs: String::new() });
            self.swarm.close_connection(id);
        }
        self.dial_due(now);
        self.ask_for_reservations(now);
        if now >= self.refresh {
            self.refresh = now + config::REFRESH;
            // An error says that nobody is in it.
            let _ = self.swarm.behaviour_mut().routing.bootstrap();
        }
    }
}

/// To this peer at these addresses and those that routing knows of; or to whoever is at the one address. From a port of
/// its own: from the listener's, TCP dials of two nodes at once meet halfway, where neither is the listener.
fn dial_options(peer: Option<PeerId>, mut addresses: Vec<Multiaddr>) -> Option<DialOpts> {
    match peer {
        Some(peer) => {
            let options = DialOpts::peer_id(peer).condition(PeerCondition::Always);
            Some(options.addresses(addresses).extend_addresses_through_behaviour().allocate_new_port().build())
        }
        None => addresses.pop().map(|address| DialOpts::unknown_peer_id().address(address).allocate_new_port().build()),
    }
}

fn dial_error(address: String, error: &DialError) -> NetError {
    let unreachable = |address, reason: String| NetError::Unreachable { address, reason };
    match error {
        DialError::LocalPeerId { .. } => NetError::ThatIsMe { address },
        DialError::WrongPeerId { obtained, .. } => NetError::WrongPeer { address, found: obtained.to_string() },
        DialError::NoAddresses => unreachable(address, "no address of it is known".into()),
        DialError::Denied { cause } => unreachable(address, cause.to_string()),
        DialError::Aborted | DialError::DialPeerConditionFalse(_) => {
            unreachable(address, "the dial was aborted".into())
        }
        DialError::Transport(errors) => {
            let others: Vec<PeerId> = errors.iter().filter_map(|(_, error)| somebody_else(error)).collect();
            if let (Some(found), true) = (others.first(), others.len() == errors.len()) {
                return NetError::WrongPeer { address, found: found.to_string() };
            }
            let reasons: Vec<String> = errors.iter().map(|(_, error)| root_cause(error)).collect();
            unreachable(address, reasons.join("; "))
        }
    }
}

fn listen_error(address: &Multiaddr, error: &(dyn std::error::Error + 'static)) -> NetError {
    NetError::Listen { address: address.to_string(), reason: root_cause(error) }
}

/// Who answered, where that was somebody else than was meant. An `io::Error` hides the error in it from `source`.
fn somebody_else(error: &(dyn std::error::Error + 'static)) -> Option<PeerId> {
    if let Some(SomebodyElse(peer)) = error.downcast_ref() {
        return Some(*peer);
    }
    match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
        Some(inner) => somebody_else(inner),
        None => error.source().and_then(somebody_else),
    }
}

/// The innermost message: the outer ones only say that a transport failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
