//! The task that owns the swarm. It never blocks on a consumer: commands arrive over a bounded queue; replies and
//! notifications leave over channels that drop instead of block.

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
use super::command::{Command, EnsureOptions, Reply};
use super::config;
use super::dial_errors::{dial_error, listen_error};
use super::discovery::Discovery;
use super::peers::{ConnectionOrigin, PeerTable};
use super::pending::{Pending, Query, Waiter};
use super::reachability::Reachability;
use super::{Gossip, NetError, listen, protocols};
use crate::base::{Event, NodeId};
use crate::rt::EventBus;

/// Counters of messages dropped at full queues.
#[derive(Debug, Default)]
pub(super) struct DropCounters {
    pub gossip: AtomicU64,
}

/// Outputs of the driver.
pub(super) struct DriverOutputs {
    pub gossip: mpsc::Sender<Gossip>,
    pub connects: broadcast::Sender<NodeId>,
    pub disconnects: broadcast::Sender<NodeId>,
    pub events: EventBus,
    pub drops: Arc<DropCounters>,
}

pub(super) struct Driver {
    pub swarm: Swarm<Behaviour>,
    pub commands: mpsc::Receiver<Command>,
    pub table: PeerTable,
    pub outputs: DriverOutputs,
    pub addresses: listen::Addresses,
    pub stop: CancellationToken,
    pub topic: IdentTopic,
    pub identify_protocol: String,
    pub dial_deadline: Duration,
    pub pending: Pending<ConnectionId, PeerId, kad::QueryId>,
    pub discovery: Discovery<ConnectionId, PeerId, Multiaddr>,
    pub reachability: Reachability<PeerId, Multiaddr, ListenerId>,
    /// Time of the last requested reconnect.
    pub reconnected: Option<Instant>,
    /// Time of the next refresh of the routing table.
    pub refresh: Instant,
    /// Whether this node is a relay: its listen addresses are assumed reachable.
    pub is_relay: bool,
    /// Ends the tasks of all connections after `close`.
    pub _connections: DropGuard,
}

/// Classification of a peer's identify protocol version.
enum PeerProtocol {
    Ours,
    OtherNetwork,
    OtherProtocol,
}

impl Driver {
    /// Starts the listeners, reports to `ready`, and runs until stopped or until the last handle is dropped.
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
            // An unspecified address resolves to several addresses, reported one by one.
            while let Some(event) = self.swarm.select_next_some().now_or_never() {
                self.on_event(event);
            }
            Ok(())
        };
        let late = NetError::Timeout { what: "listening", millis: config::LISTEN_DEADLINE.as_millis() as u64 };
        tokio::time::timeout(config::LISTEN_DEADLINE, all_up).await.unwrap_or(Err(late))
    }

    /// Closes all connections gracefully, so that peers notice at once. Bounded, since peers may not respond.
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
            Command::Dial { address, force, reply } => self.dial(address, force, reply),
            Command::Ensure {
                node,
                peer,
                mut addresses,
                options: EnsureOptions { reported_by, cancellable },
                reply,
            } => {
                if let Some(reporter) = reported_by {
                    addresses.retain(|reported| address::may_report(self.table.seen(&reporter), reported));
                }
                self.ensure(node, peer, addresses, cancellable, reply);
            }
            Command::Open { node, peer, channel, reply } => match self.table.preferred_connection(&peer) {
                Some(connection) => self.swarm.behaviour_mut().streams.open(node, peer, connection, channel, reply),
                None => drop(reply.send(Err(NetError::NotConnected { node }))),
            },
            Command::Publish { message, reply } => drop(reply.send(self.publish(message))),
            Command::Provide { key, reply } => self.provide(key.as_bytes(), reply),
            Command::Withdraw { key } => {
                self.swarm.behaviour_mut().routing.stop_providing(&kad::RecordKey::new(key.as_bytes()));
            }
            Command::FindProviders { key, reply } => self.find_providers(key.as_bytes(), reply),
            Command::Reconnect { reply } => drop(reply.send(Ok(self.reconnect(Instant::now())))),
            Command::Suspect { peer } => self.suspect(peer),
            Command::Disconnect { peer } => drop(self.swarm.disconnect_peer_id(peer)),
            // Handled in `run`.
            Command::Shutdown => {}
        }
    }

    // --- dialling -------------------------------------------------------------------------------------------------

    fn waiter(&self, address: String, reply: Reply<NodeId>) -> Option<Waiter> {
        if !self.pending.has_capacity() {
            let _ = reply.send(Err(NetError::Busy { max: config::MAX_PENDING }));
            return None;
        }
        let allowed = self.dial_deadline;
        Some(Waiter { address, reply, deadline: Instant::now() + allowed, allowed, cancellable: false })
    }

    /// Connects to the peer at the address.
    fn dial(&mut self, address: Multiaddr, force: bool, reply: Reply<NodeId>) {
        let peer = address::peer_in(&address);
        if peer == Some(*self.swarm.local_peer_id()) {
            let _ = reply.send(Err(NetError::SelfDial { address: address.to_string() }));
            return;
        }
        if let Some(node) = peer.filter(|peer| !force && self.table.is_identified(peer)).as_ref().and_then(node_of) {
            let _ = reply.send(Ok(node));
            return;
        }
        let Some(waiter) = self.waiter(address.to_string(), reply) else { return };
        self.start_dial(peer, vec![address], waiter);
    }

    fn ensure(
        &mut self,
        node: NodeId,
        peer: PeerId,
        mut addresses: Vec<Multiaddr>,
        cancellable: bool,
        reply: Reply<NodeId>,
    ) {
        if peer == *self.swarm.local_peer_id() {
            let _ = reply.send(Err(NetError::SelfDial { address: node.to_string() }));
            return;
        }
        if self.table.is_identified(&peer) {
            let _ = reply.send(Ok(node));
            return;
        }
        let Some(waiter) = self.waiter(node.to_string(), reply) else { return };
        let waiter = Waiter { cancellable, ..waiter };
        if self.table.is_connected(&peer) {
            return self.pending.await_identify(peer, waiter);
        }
        if let Some(dial) = self.pending.dial_to(peer) {
            return self.pending.join(dial, waiter);
        }
        addresses.extend(self.table.addresses(&peer));
        self.start_dial(Some(peer), addresses, waiter);
    }

    /// Starts a dial; an immediate failure is reported to the waiter.
    fn start_dial(&mut self, peer: Option<PeerId>, addresses: Vec<Multiaddr>, waiter: Waiter) {
        let Some(options) = dial_options(peer, addresses) else { return };
        self.pending.dialling(options.connection_id(), peer, vec![waiter]);
        self.dial_now(peer, options);
    }

    fn dial_now(&mut self, peer: Option<PeerId>, options: DialOpts) {
        let dial = options.connection_id();
        match self.swarm.dial(options) {
            Ok(()) => {}
            // The swarm filters its own listen addresses: without a peer id, the only address was one of them.
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

    /// Dials all targets and recently disconnected peers. Returns the number of dials under way.
    fn reconnect(&mut self, now: Instant) -> usize {
        let left: Vec<PeerId> = self.table.recently_left().take(config::MAX_RECONNECTED).collect();
        if self.reconnected.is_none_or(|before| now.duration_since(before) >= config::RECONNECT_INTERVAL) {
            self.reconnected = Some(now);
            self.discovery.make_due(now);
            self.dial_due(now);
            for peer in left.iter().copied().filter(|peer| !self.pending.is_dialling(*peer)).collect::<Vec<_>>() {
                let Some(options) = dial_options(Some(peer), self.table.addresses(&peer)) else { continue };
                self.pending.dialling(options.connection_id(), Some(peer), Vec::new());
                self.dial_now(Some(peer), options);
            }
        }
        self.discovery.dial_count() + left.into_iter().filter(|peer| self.pending.is_dialling(*peer)).count()
    }

    fn on_dial_failed(&mut self, dial: ConnectionId, error: &DialError) {
        self.pending.dial_failed(dial, &|address| dial_error(address, error));
        match error {
            DialError::LocalPeerId { .. } => self.discovery.is_self(dial),
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
            // No subscribers yet: announcements are repeated anyway.
            Ok(_) | Err(PublishError::NoPeersSubscribedToTopic | PublishError::Duplicate) => Ok(()),
            Err(PublishError::AllQueuesFull(max)) => Err(NetError::Busy { max }),
            Err(PublishError::MessageTooLarge) => Err(NetError::TooLong { given, max }),
            Err(error) => Err(NetError::Setup { reason: format!("gossip: {error}") }),
        }
    }

    fn provide(&mut self, key: &[u8; 32], reply: Reply<()>) {
        if !self.pending.has_capacity() {
            return drop(reply.send(Err(NetError::Busy { max: config::MAX_PENDING })));
        }
        match self.swarm.behaviour_mut().routing.start_providing(kad::RecordKey::new(key)) {
            Ok(id) => self.pending.query_started(id, Instant::now() + config::QUERY_DEADLINE, Query::Provide(reply)),
            Err(error) => drop(reply.send(Err(NetError::NotAnnounced { reason: error.to_string() }))),
        }
    }

    fn find_providers(&mut self, key: &[u8; 32], reply: Reply<Vec<NodeId>>) {
        if !self.pending.has_capacity() {
            return drop(reply.send(Err(NetError::Busy { max: config::MAX_PENDING })));
        }
        let id = self.swarm.behaviour_mut().routing.get_providers(kad::RecordKey::new(key));
        let query = Query::Find { found: Vec::new(), reply };
        self.pending.query_started(id, Instant::now() + config::QUERY_DEADLINE, query);
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
            self.pending.query_ended(id, error);
        }
    }

    fn on_gossip(&mut self, event: gossipsub::Event) {
        let gossipsub::Event::Message { propagation_source, message, .. } = event else { return };
        let author = message.source.as_ref().and_then(node_of);
        let (Some(author), Some(via)) = (author, node_of(&propagation_source)) else { return };
        if self.outputs.gossip.try_send(Gossip { author, via, bytes: message.data }).is_err() {
            self.outputs.drops.gossip.fetch_add(1, Ordering::Relaxed);
        }
    }

    // --- swarm events ---------------------------------------------------------------------------------------------

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
                    self.on_hole_punch_failed(peer_id);
                }
                self.on_dial_failed(connection_id, &error);
            }
            SwarmEvent::NewListenAddr { address, listener_id } => {
                self.reachability.granted(listener_id);
                if self.is_relay {
                    self.swarm.add_external_address(address.clone());
                }
                self.on_address(&address);
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.addresses.remove(&address);
                self.reachability.addresses_expired();
            }
            SwarmEvent::ListenerClosed { listener_id, addresses, reason } => {
                tracing::debug!(?addresses, ?reason, "a listener was closed");
                self.reachability.closed(listener_id, Instant::now());
                addresses.iter().for_each(|address| self.addresses.remove(address));
            }
            SwarmEvent::ExternalAddrConfirmed { address } => self.on_external_address(address),
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
                self.table.record_ping(peer, connection, rtt);
            }
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Routing(event) => self.on_routing(event),
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => self.on_discovered(found),
            _ => {}
        }
    }

    /// Publishes a further address of this node.
    fn on_address(&mut self, address: &Multiaddr) {
        if let Some(address) = self.addresses.add(address) {
            self.outputs.events.send(Event::Listening { address });
        }
    }

    /// An external address was confirmed by an inbound connection or by port forwarding: drops the reservations.
    fn on_external_address(&mut self, address: Multiaddr) {
        if !address::is_relayed(&address) {
            tracing::debug!(%address, "an external address was confirmed");
            self.on_address(&address);
            for reservation in self.reachability.address_confirmed(address) {
                self.swarm.remove_listener(reservation);
            }
        }
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        // Peers without an Ed25519 key were denied before.
        let Some(node) = node_of(&peer) else { return };
        let dialled = endpoint.is_dialer();
        let requested = !dialled || self.pending.is_ours(id);
        let origin = ConnectionOrigin { dialled, requested, relayed: endpoint.is_relayed() };
        // Of an inbound relayed connection only the relay's address is known.
        let seen = match endpoint {
            ConnectedPoint::Listener { local_addr, .. } if origin.relayed => local_addr,
            other => other.get_remote_address(),
        };
        tracing::debug!(peer = %node.short(), %id, dialled, %seen, "a connection was established");
        self.table.connected(peer, node, id, seen, origin);
        self.pending.connected(id, peer);
        self.discovery.connected(id, peer);
        // A further connection of an identified peer.
        if self.table.is_identified(&peer) {
            for old in self.table.take_replaced(&peer, id, Instant::now()) {
                tracing::debug!(peer = %node.short(), %old, by = %id, "an unresponsive connection is replaced");
                self.swarm.close_connection(old);
                self.on_closed(peer, old);
            }
            self.update_keep_alive(peer);
            self.pending.identified(peer, node);
        }
    }

    fn update_keep_alive(&mut self, peer: PeerId) {
        for (id, keep) in self.table.keep_alive(&peer) {
            self.swarm.behaviour_mut().streams.keep_alive(peer, id, keep);
        }
    }

    /// A dial failed that was started by a hole punch, by routing or by an AutoNAT probe.
    fn on_hole_punch_failed(&mut self, peer: Option<PeerId>) {
        let Some(peer) = peer.filter(|peer| self.table.hole_punch_failed(peer)) else { return };
        let relayed = self.table.connections_where(|connection, _| connection.kind == TransportKind::Relay);
        for (_, id) in relayed.into_iter().filter(|(of, _)| *of == peer) {
            self.swarm.close_connection(id);
        }
    }

    fn on_closed(&mut self, peer: PeerId, id: ConnectionId) {
        let left = self.table.disconnected(peer, id);
        if self.table.is_connected(&peer) {
            return self.update_keep_alive(peer);
        }
        let lost = |address| NetError::Unreachable { address, reason: "the peer closed the connection".into() };
        self.pending.refused(peer, &lost);
        self.discovery.lost(peer, Instant::now());
        if let Some(node) = left {
            tracing::debug!(peer = %node.short(), "the last connection to a peer closed");
            let _ = self.outputs.disconnects.send(node);
            self.outputs.events.send(Event::PeerDisconnected { node });
        }
    }

    fn on_identified(&mut self, peer: PeerId, id: ConnectionId, info: &identify::Info) {
        let protocol: String = info.protocol_version.chars().take(config::MAX_NETWORK_BYTES * 2).collect();
        match self.classify(&protocol) {
            PeerProtocol::Ours => self.on_peer_identified(peer, id, info),
            PeerProtocol::OtherNetwork => {
                self.refuse(peer, id, &|address| NetError::WrongNetwork { address, theirs: protocol.clone() });
            }
            PeerProtocol::OtherProtocol => {
                self.refuse(peer, id, &|address| NetError::NotSwarmllm { address, theirs: protocol.clone() });
            }
        }
    }

    fn classify(&self, protocol: &str) -> PeerProtocol {
        match protocol {
            ours if ours == self.identify_protocol => PeerProtocol::Ours,
            other if other.starts_with(protocols::PROTOCOL_PREFIX) => PeerProtocol::OtherNetwork,
            _ => PeerProtocol::OtherProtocol,
        }
    }

    fn on_peer_identified(&mut self, peer: PeerId, id: ConnectionId, info: &identify::Info) {
        let Some(known) = self.table.record_identify(peer, &info.agent_version, &info.listen_addrs) else { return };
        self.update_keep_alive(peer);
        self.record_relay(peer, id, info);
        let behaviour = self.swarm.behaviour_mut();
        if let Some(addresses) = known.addresses {
            // The routing table only adds addresses: replace the entry, or a peer could fill it with ever new ones.
            behaviour.routing.remove_peer(&peer);
            for address in addresses {
                behaviour.routing.add_address(&peer, address);
            }
        }
        let Some(node) = known.first else { return };
        self.dial_back(peer, id);
        self.discovery.identified(peer);
        self.pending.identified(peer, node);
        let _ = self.outputs.connects.send(node);
        self.outputs.events.send(Event::PeerConnected { node });
    }

    /// Dials a peer that connected over a relay: the peer may be reachable directly although this node is not.
    fn dial_back(&mut self, peer: PeerId, id: ConnectionId) {
        let inbound_relayed = self
            .table
            .connection(&peer, id)
            .is_some_and(|connection| connection.kind == TransportKind::Relay && !connection.dialled);
        let addresses =
            self.table.addresses(&peer).into_iter().filter(|address| !address::is_relayed(address)).collect();
        if inbound_relayed {
            self.redial(peer, addresses);
        }
    }

    /// Dials a connected peer at these addresses only.
    fn redial(&mut self, peer: PeerId, addresses: Vec<Multiaddr>) {
        if addresses.is_empty() {
            return;
        }
        let options = DialOpts::peer_id(peer).condition(PeerCondition::Always).addresses(addresses);
        let options = options.allocate_new_port().build();
        self.pending.dialling(options.connection_id(), Some(peer), Vec::new());
        self.dial_now(Some(peer), options);
    }

    /// Redials a connected peer that does not answer.
    fn suspect(&mut self, peer: PeerId) {
        if !self.pending.is_dialling(peer) && self.table.suspect(&peer, Instant::now()) {
            let (relayed, direct): (Vec<_>, Vec<_>) =
                self.table.addresses(&peer).into_iter().partition(address::is_relayed);
            self.redial(peer, if direct.is_empty() { relayed } else { direct });
        }
    }

    /// Records a bootstrap peer that offers relaying as a candidate for a reservation.
    fn record_relay(&mut self, peer: PeerId, id: ConnectionId, info: &identify::Info) {
        let carries = info.protocols.contains(&relay::HOP_PROTOCOL_NAME) && self.discovery.is_bootstrap(&peer);
        let Some(connection) = self.table.connection(&peer, id).filter(|connection| carries && connection.dialled)
        else {
            return;
        };
        if connection.kind != TransportKind::Relay {
            self.reachability.relay_available(
                peer,
                address::relay_listen_address(&connection.address, peer),
                Instant::now(),
            );
        }
    }

    fn ask_for_reservations(&mut self, now: Instant) {
        for (index, address) in self.reachability.due(now, |peer| self.table.is_identified(peer)) {
            let listener = self.swarm.listen_on(address);
            let listener =
                listener.inspect_err(|error| tracing::warn!(%error, "failed to request a relay reservation")).ok();
            self.reachability.requested(index, listener, now);
        }
    }

    /// Disconnects a peer of another network. The dialled side waits briefly, so that the dialling side gets the reason too.
    fn refuse(&mut self, peer: PeerId, id: ConnectionId, error: &dyn Fn(String) -> NetError) {
        let now = Instant::now();
        tracing::debug!(%peer, reason = %error(peer.to_string()), "a peer was refused");
        self.pending.refused(peer, error);
        self.discovery.refused(peer, now);
        let dialled = self.table.connection(&peer, id).is_some_and(|connection| connection.dialled);
        match dialled {
            true => drop(self.swarm.close_connection(id)),
            false => self.table.close_at(peer, id, now + config::REFUSAL_GRACE),
        }
    }

    /// After mutual discovery the node with the smaller id dials; the other dials only if that fails.
    fn on_discovered(&mut self, found: Vec<(PeerId, Multiaddr)>) {
        let (now, local) = (Instant::now(), *self.swarm.local_peer_id());
        for (peer, address) in found {
            if peer == local || node_of(&peer).is_none() || !address::is_worth_storing(&address, &address) {
                continue;
            }
            let due = if local < peer { now } else { now + config::DISCOVERY_DELAY };
            self.discovery.discovered(peer, address::without_peer(&address), due);
        }
    }

    fn on_tick(&mut self, now: Instant) {
        for peer in self.pending.sweep(now) {
            // Cancels its dials: it has no connection.
            if !self.table.is_connected(&peer) {
                let _ = self.swarm.disconnect_peer_id(peer);
            }
        }
        let gone = self
            .table
            .connections_where(|connection, _| now.duration_since(connection.last_pong) > config::SILENCE_LIMIT);
        for (peer, id) in gone {
            tracing::debug!(%peer, "a silent connection is closed");
            self.swarm.close_connection(id);
            // The close may take as long as the peer is silent: treat the connection as closed now.
            self.on_closed(peer, id);
        }
        let strangers = self.table.connections_where(|connection, identified| {
            let anonymous = !identified && now.duration_since(connection.since) > config::IDENTIFY_DEADLINE;
            anonymous || connection.close_at.is_some_and(|when| when <= now)
        });
        for (peer, id) in strangers {
            self.pending.refused(peer, &|address| NetError::NotSwarmllm { address, theirs: String::new() });
            self.swarm.close_connection(id);
        }
        self.dial_due(now);
        self.ask_for_reservations(now);
        if now >= self.refresh {
            self.refresh = now + config::REFRESH;
            // Fails only if the table is empty.
            let _ = self.swarm.behaviour_mut().routing.bootstrap();
        }
    }
}

/// Dials this peer at these addresses and those of the routing table, or any peer at the single address. Uses a new port:
/// from the listen port, simultaneous TCP dials of two nodes would meet (simultaneous open), with no side as the listener.
fn dial_options(peer: Option<PeerId>, mut addresses: Vec<Multiaddr>) -> Option<DialOpts> {
    match peer {
        Some(peer) => {
            let options = DialOpts::peer_id(peer).condition(PeerCondition::Always);
            Some(options.addresses(addresses).extend_addresses_through_behaviour().allocate_new_port().build())
        }
        None => addresses.pop().map(|address| DialOpts::unknown_peer_id().address(address).allocate_new_port().build()),
    }
}
