//! What peers ask of the node: control requests, stage streams, shard requests, gossip, comings and goings.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast;

use crate::base::{ErrorKind, Event, Fault, NodeId};
use crate::net::{Gossip, Incoming, NetHandle, Stream};
use crate::node::inbound::pools::{InboundPools, Placed};
use crate::node::models::transfer;
use crate::node::shared::Shared;
use crate::node::swarm::peer_exchange;
use crate::pipeline::control::{read_request, write_reply};
use crate::pipeline::links::SessionStage;
use crate::pipeline::settle::Settler;
use crate::wire::announce::Announcement;
use crate::wire::control::{Reply, Request};
use crate::wire::prefix::Prefix;

/// A peer that opens a control stream asks within this time.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// It takes the answer within this time.
const REPLY_DEADLINE: Duration = Duration::from_secs(10);
/// A peer whose request has no place may come back after this time.
const COME_BACK: Duration = Duration::from_millis(200);

/// Answers peers until the node stops.
pub(crate) async fn run(shared: Arc<Shared>, mut incoming: Incoming) {
    let (stopping, pools) = (shared.tasks.stopping(), Arc::new(InboundPools::new()));
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            Some((peer, stream)) = incoming.control.recv() => {
                let Some(place) = pools.take(&pools.reading, peer, "control") else { continue };
                shared.tasks.spawn("control", answer(shared.clone(), pools.clone(), peer, stream, place));
            }
            Some((peer, stream)) = incoming.stage.recv() => {
                let Some(place) = pools.take(&pools.stage_streams, peer, "stage") else { continue };
                let links = shared.coordinator.links.clone();
                shared.tasks.spawn("stage-reader", async move {
                    links.read(peer, stream).await;
                    drop(place);
                });
            }
            Some((peer, stream)) = incoming.shard.recv() => give(&shared, &pools, peer, stream),
            Some(gossip) = incoming.gossip.recv() => heard(&shared, &gossip),
            else => return,
        }
    }
}

/// Gives a shard, or tells the peer to come back.
fn give(shared: &Shared, pools: &InboundPools, peer: NodeId, stream: Stream) {
    if let Some(place) = pools.uploads.take(peer) {
        let work = transfer::give(shared.catalog.clone(), peer, stream);
        return shared.tasks.spawn("shard-upload", async move {
            work.await;
            drop(place);
        });
    }
    let Some(place) = pools.take(&pools.telling, peer, "shard") else { return };
    shared.tasks.spawn("shard-busy", async move {
        transfer::refuse_busy(stream).await;
        drop(place);
    });
}

fn heard(shared: &Shared, Gossip { author, via, bytes }: &Gossip) {
    match Announcement::decode(bytes) {
        Ok(announcement) => shared.registry.learn(*author, announcement, *via),
        Err(error) => tracing::debug!(peer = %author, %error, "gossip was refused"),
    }
}

async fn answer(shared: Arc<Shared>, pools: Arc<InboundPools>, peer: NodeId, mut stream: Stream, place: Placed) {
    let request = match tokio::time::timeout(ASK_DEADLINE, read_request(&mut stream)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a control request was refused"),
    };
    let opens = match &request {
        Request::Open(open) => Some(SessionStage { session: open.session, epoch: open.epoch, stage: open.stage }),
        _ => None,
    };
    // One that takes long gives its place among those that are read back: its peer's `Alive` and `Release` may need it.
    let place = if is_quick(&request) {
        Some(place)
    } else {
        drop(place);
        pools.working.take(peer)
    };
    let reply = match &place {
        Some(_) => reply_to(&shared, peer, request).await.unwrap_or_else(Reply::Refused),
        None => Reply::Busy { millis: COME_BACK.as_millis() as u32 },
    };
    if !matches!(tokio::time::timeout(REPLY_DEADLINE, write_reply(&mut stream, &reply)).await, Ok(Ok(()))) {
        tracing::debug!(%peer, "a reply was not taken");
        // Who went while a stage was loaded has been cleaned up after, and will not end what it does not know to have begun. Who
        // is there may have begun without this stand-by, and have another stage of the session here.
        if let (Some(stage), Reply::Opened(_)) = (opens, reply) {
            shared.serving.end_stage(stage, peer);
        }
    }
}

/// Whether a request is answered without a wait: it needs no place among those that are not.
fn is_quick(request: &Request) -> bool {
    match request {
        Request::Alive { .. } | Request::Release { .. } | Request::Hello(_) | Request::Peers => true,
        Request::Manifest { .. } | Request::Open(_) | Request::Heads(_) | Request::Pay { .. } => false,
    }
}

async fn reply_to(shared: &Arc<Shared>, peer: NodeId, request: Request) -> Result<Reply, Fault> {
    match request {
        Request::Hello(announcement) => {
            announcement.check().map_err(|error| Fault::new(ErrorKind::BadFrame, error))?;
            shared.registry.hear(peer, announcement);
            Ok(Reply::Hello(shared.announcer.current()))
        }
        Request::Manifest { model } => match shared.catalog.manifest(model) {
            Some(manifest) => Ok(Reply::Manifest { bytes: manifest.encode() }),
            None => Err(Fault::new(ErrorKind::ModelNotFound, format!("model {} is not known here", model.short()))),
        },
        Request::Open(_) if !shared.config.serve => {
            Err(Fault::new(ErrorKind::Refused, "this node does not compute for others"))
        }
        Request::Open(open) => Ok(Reply::Opened(shared.serving.open(peer, open).await?)),
        Request::Release { session, epoch, keep } => {
            let keep = if keep.is_sound() { keep } else { Prefix::default() };
            shared.serving.release(session, epoch, peer, &keep);
            Ok(Reply::Released)
        }
        Request::Alive { session, epoch, stage } => {
            Ok(Reply::Alive { serves: shared.serving.serves(SessionStage { session, epoch, stage }, peer) })
        }
        Request::Peers => {
            let known = shared.net.as_ref().map(|net| net.peers().snapshot()).unwrap_or_default();
            Ok(Reply::Peers(peer_exchange::peers_for(peer, known)))
        }
        Request::Heads(theirs) => settler(shared)?.on_heads(peer, &theirs).await,
        Request::Pay { proposal } => settler(shared)?.on_pay(peer, &proposal).await,
    }
}

/// Whoever is asked over a network has one.
fn settler(shared: &Shared) -> Result<&Settler, Fault> {
    shared.settler.as_ref().ok_or_else(|| Fault::new(ErrorKind::Internal, "this node settles nothing"))
}

/// Greets peers that come and cleans up after peers that go, until the node stops.
pub(crate) async fn watch_peers(
    shared: Arc<Shared>,
    net: NetHandle,
    mut connects: broadcast::Receiver<NodeId>,
    mut disconnects: broadcast::Receiver<NodeId>,
) {
    let stopping = shared.tasks.stopping();
    for peer in net.peers().snapshot() {
        greet(&shared, peer.node);
    }
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            came = connects.recv() => match came {
                Ok(peer) => greet(&shared, peer),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
            went = disconnects.recv() => match went {
                Ok(peer) => leave(&shared, peer),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return,
            },
        }
    }
}

fn greet(shared: &Arc<Shared>, peer: NodeId) {
    let greeting = shared.clone();
    shared.tasks.spawn("hello", async move {
        let Some(net) = &greeting.net else { return };
        match greeting.announcer.hello(peer).await {
            Ok(()) => greeting.exchange.ask(net, peer, &greeting.tasks.stopping()).await,
            Err(fault) => tracing::debug!(%peer, %fault, "a hello was not answered"),
        }
    });
    shared.events.send(Event::PeerConnected { node: peer });
}

fn leave(shared: &Arc<Shared>, peer: NodeId) {
    shared.coordinator.links.disconnected(peer);
    shared.settler.iter().for_each(|settler| settler.left(peer));
    shared.registry.forget(peer);
    shared.events.send(Event::PeerDisconnected { node: peer });
}
