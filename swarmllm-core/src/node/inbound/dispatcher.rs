//! Inbound dispatcher: control requests, stage streams, shard requests, gossip, connects and disconnects of peers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::base::{ErrorKind, Event, Fault, NodeId};
use crate::net::{Gossip, Incoming, Stream};
use crate::node::inbound::pools::{InboundPools, Permit};
use crate::node::models::transfer;
use crate::node::shared::SharedState;
use crate::node::swarm::peer_exchange;
use crate::node::swarm::registry::ModelRegistry;
use crate::pipeline::link::request::{read_request, write_reply};
use crate::pipeline::link::router::SessionStage;
use crate::wire::announce::Announcement;
use crate::wire::control::{Reply, Request};
use crate::wire::prefix::Prefix;

/// Deadline of the request after a peer opened a control stream.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Deadline for a peer to read the reply.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// Pause that a busy reply asks of a peer.
const RETRY_AFTER: Duration = Duration::from_millis(200);

/// Serves peers until the node stops.
pub(crate) async fn run(shared: Arc<SharedState>, mut incoming: Incoming) {
    let (stopping, pools) = (shared.tasks.stopping(), Arc::new(InboundPools::new()));
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            Some((peer, stream)) = incoming.control.recv() => {
                let Some(permit) = pools.take(&pools.reading, peer, "control") else { continue };
                shared.tasks.spawn("control", serve_control(shared.clone(), pools.clone(), peer, stream, permit));
            }
            Some((peer, stream)) = incoming.stage.recv() => {
                let Some(permit) = pools.take(&pools.stage_streams, peer, "stage") else { continue };
                let router = shared.coordinator.router.clone();
                shared.tasks.spawn("stage-reader", async move {
                    router.read(peer, stream).await;
                    drop(permit);
                });
            }
            Some((peer, stream)) = incoming.shard.recv() => serve_shard(&shared, &pools, peer, stream),
            Some(gossip) = incoming.gossip.recv() => on_gossip(&shared.registry, &gossip),
            else => return,
        }
    }
}

/// Sends a shard, or a busy reply.
fn serve_shard(shared: &SharedState, pools: &InboundPools, peer: NodeId, stream: Stream) {
    if let Some(permit) = pools.uploads.take(peer) {
        let work = transfer::serve_shard(shared.models.catalog.clone(), peer, stream);
        return shared.tasks.spawn("shard-upload", async move {
            work.await;
            drop(permit);
        });
    }
    let Some(permit) = pools.take(&pools.busy_replies, peer, "shard") else { return };
    shared.tasks.spawn("shard-busy", async move {
        transfer::reply_busy(stream).await;
        drop(permit);
    });
}

fn on_gossip(registry: &ModelRegistry, Gossip { author, via, bytes }: &Gossip) {
    match Announcement::decode(bytes) {
        Ok(announcement) => registry.on_gossip(*author, announcement, *via),
        Err(error) => tracing::debug!(peer = %author, %error, "gossip was refused"),
    }
}

async fn serve_control(
    shared: Arc<SharedState>,
    pools: Arc<InboundPools>,
    peer: NodeId,
    mut stream: Stream,
    permit: Permit,
) {
    let request = match tokio::time::timeout(REQUEST_DEADLINE, read_request(&mut stream)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a control request was refused"),
    };
    let opens = match &request {
        Request::Open(open) => Some(SessionStage { session: open.session, epoch: open.epoch, stage: open.stage }),
        _ => None,
    };
    // A slow request returns its reading permit: `Alive` and `Release` of the same peer may need it.
    let permit = if is_quick(&request) {
        Some(permit)
    } else {
        drop(permit);
        pools.working.take(peer)
    };
    let reply = match &permit {
        Some(_) => reply_to(&shared, peer, request).await.unwrap_or_else(Reply::Refused),
        None => Reply::Busy { millis: RETRY_AFTER.as_millis() as u32 },
    };
    if !matches!(tokio::time::timeout(REPLY_DEADLINE, write_reply(&mut stream, &reply)).await, Ok(Ok(()))) {
        tracing::debug!(%peer, "a peer did not read a reply");
        // The coordinator does not know of the opened stage, so it never releases it. A coordinator that left was cleaned up
        // before the stage was loaded; one that is still connected may run without this standby and use another stage here.
        if let (Some(stage), Reply::Opened(_)) = (opens, reply) {
            shared.stage_server.end_stage(stage, peer);
        }
    }
}

/// Whether a request is answered without waiting and so needs no working permit.
fn is_quick(request: &Request) -> bool {
    match request {
        Request::Alive { .. } | Request::Release { .. } | Request::Hello(_) | Request::Peers => true,
        Request::Manifest { .. } | Request::Open(_) | Request::Heads(_) | Request::Pay { .. } => false,
    }
}

async fn reply_to(shared: &Arc<SharedState>, peer: NodeId, request: Request) -> Result<Reply, Fault> {
    match request {
        Request::Hello(announcement) => {
            announcement.check().map_err(|error| Fault::new(ErrorKind::BadFrame, error))?;
            shared.registry.on_hello(peer, announcement);
            Ok(Reply::Hello(shared.announcer.current()))
        }
        Request::Manifest { model } => match shared.models.catalog.manifest(model) {
            Some(manifest) => Ok(Reply::Manifest { bytes: manifest.encode() }),
            None => Err(Fault::new(ErrorKind::ModelNotFound, format!("model {} is not known here", model.short()))),
        },
        Request::Open(_) if !shared.config.serve => {
            Err(Fault::new(ErrorKind::Refused, "this node does not compute for others"))
        }
        Request::Open(open) => Ok(Reply::Opened(shared.stage_server.open(peer, open).await?)),
        Request::Release { session, epoch, keep } => {
            let keep = if keep.is_valid() { keep } else { Prefix::default() };
            shared.stage_server.release(session, epoch, peer, &keep);
            Ok(Reply::Released)
        }
        Request::Alive { session, epoch, stage } => {
            Ok(Reply::Alive { serves: shared.stage_server.serves(SessionStage { session, epoch, stage }, peer) })
        }
        Request::Peers => Ok(Reply::Peers(peer_exchange::peers_for(peer, shared.peers.snapshot()))),
        Request::Heads(theirs) => shared.credits.on_heads(peer, &theirs).await,
        Request::Pay { proposal } => shared.credits.on_pay(peer, &proposal).await,
    }
}

/// Greets connecting peers and cleans up after disconnected ones until the node stops.
pub(crate) async fn watch_peers(
    shared: Arc<SharedState>,
    mut connects: broadcast::Receiver<NodeId>,
    mut disconnects: broadcast::Receiver<NodeId>,
) {
    let stopping = shared.tasks.stopping();
    for peer in shared.peers.snapshot() {
        greet(&shared, peer.node);
    }
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            connected = connects.recv() => match connected {
                Ok(peer) => greet(&shared, peer),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            disconnected = disconnects.recv() => match disconnected {
                Ok(peer) => clean_up(&shared, peer),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
        }
    }
}

fn greet(shared: &Arc<SharedState>, peer: NodeId) {
    let greeting = shared.clone();
    shared.tasks.spawn("hello", async move {
        let Some(net) = &greeting.net else { return };
        match greeting.announcer.hello(peer).await {
            Ok(()) => greeting.peer_exchange.ask(net, peer, &greeting.tasks.stopping()).await,
            Err(fault) => tracing::debug!(%peer, %fault, "a hello was not answered"),
        }
    });
    shared.events.send(Event::PeerConnected { node: peer });
}

fn clean_up(shared: &Arc<SharedState>, peer: NodeId) {
    shared.coordinator.router.disconnected(peer);
    shared.credits.disconnected(peer);
    shared.registry.forget(peer);
    shared.events.send(Event::PeerDisconnected { node: peer });
}
