//! The node's doors for peers: control requests, stage streams, shard requests, gossip, comings and goings.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, broadcast};

use crate::base::{ErrorKind, Event, Fault, NodeId};
use crate::net::{Incoming, NetHandle, Stream};
use crate::node::shared::Shared;
use crate::node::{announcer, exchange, transfer};
use crate::pipeline::control::{read_request, write_reply};
use crate::pipeline::links::SessionStage;
use crate::pipeline::settle::Settler;
use crate::wire::announce::Announcement;
use crate::wire::control::{Reply, Request};
use crate::wire::prefix::Prefix;

/// A peer that opens a control stream asks within this time, and takes the answer within it.
const IO_DEADLINE: Duration = Duration::from_secs(10);
/// Control requests that are answered at once. Loading a stage holds one.
const MAX_REQUESTS: usize = 64;
/// Stage streams that are read at once: one or two per peer.
const MAX_STAGE_STREAMS: usize = 512;
/// Shards that are given away at once.
const MAX_UPLOADS: usize = 8;

/// Answers peers until the node stops.
pub(crate) async fn run(shared: Arc<Shared>, mut incoming: Incoming) {
    let stopping = shared.tasks.stopping();
    let requests = Arc::new(Semaphore::new(MAX_REQUESTS));
    let streams = Arc::new(Semaphore::new(MAX_STAGE_STREAMS));
    let uploads = Arc::new(Semaphore::new(MAX_UPLOADS));
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            Some((peer, stream)) = incoming.control.recv() => {
                let work = answer(shared.clone(), peer, stream);
                spawn_limited(&shared, "control", &requests, work);
            }
            Some((peer, stream)) = incoming.stage.recv() => {
                let links = shared.coordinator.links.clone();
                spawn_limited(&shared, "stage-reader", &streams, async move { links.read(peer, stream).await });
            }
            Some((peer, stream)) = incoming.shard.recv() => {
                let work = transfer::give(shared.catalog.clone(), peer, stream);
                spawn_limited(&shared, "shard-upload", &uploads, work);
            }
            Some((peer, bytes)) = incoming.gossip.recv() => heard(&shared, peer, &bytes),
            else => return,
        }
    }
}

/// Runs `work` if fewer than the limit run; else drops it, which resets the stream, and the peer tries again.
fn spawn_limited(
    shared: &Shared,
    name: &'static str,
    limit: &Arc<Semaphore>,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let Ok(permit) = limit.clone().try_acquire_owned() else {
        return tracing::warn!(name, "a stream was refused: too many at once");
    };
    shared.tasks.spawn(name, async move {
        work.await;
        drop(permit);
    });
}

fn heard(shared: &Shared, peer: NodeId, bytes: &[u8]) {
    match Announcement::decode(bytes) {
        Ok(announcement) => shared.registry.learn(peer, announcement),
        Err(error) => tracing::debug!(%peer, %error, "gossip was refused"),
    }
}

async fn answer(shared: Arc<Shared>, peer: NodeId, mut stream: Stream) {
    let request = match tokio::time::timeout(IO_DEADLINE, read_request(&mut stream)).await {
        Ok(Ok(Some(request))) => request,
        Ok(Ok(None)) | Err(_) => return,
        Ok(Err(error)) => return tracing::debug!(%peer, %error, "a control request was refused"),
    };
    let opens = if let Request::Open(open) = &request { Some((open.session, open.epoch)) } else { None };
    let reply = reply_to(&shared, peer, request).await.unwrap_or_else(Reply::Refused);
    if !matches!(tokio::time::timeout(IO_DEADLINE, write_reply(&mut stream, &reply)).await, Ok(Ok(()))) {
        tracing::debug!(%peer, "a reply was not taken");
        // Who went while a stage was loaded has been cleaned up after, and will not end what it does not know to have begun.
        if let (Some((session, epoch)), Reply::Opened(_)) = (opens, reply) {
            shared.serving.release(session, epoch, peer, &Prefix::default());
        }
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
            Ok(Reply::Peers(exchange::peers_for(peer, known)))
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
        match announcer::hello(&greeting, peer).await {
            Ok(()) => exchange::ask(&greeting, peer).await,
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
