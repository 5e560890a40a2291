//! Links: one persistent outbound stage stream per peer, and the table that says whose message is whose.
//!
//! A link is a task that owns its stream and a bounded queue before it; messages of all sessions to that peer share it,
//! in order. A message to the node itself never touches a stream. Inbound streams are read by one task each and
//! delivered here. A queue that is full means a peer that ignores the window of its session: that session ends.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::net::{Channel, NetHandle, Stream};
use crate::pipeline::message::Message;
use crate::rt::TaskSet;
use crate::wire::frame::{FrameLimits, encode_head, read_frame};
use crate::wire::job::{MAX_BODY_BYTES, MAX_HEADER_BYTES, StageHeader};
use crate::wire::prefix::Prefix;

/// Messages that may wait for one peer's stream.
const LINK_QUEUE: usize = 64;
/// Messages that are taken out of it at once.
const TOGETHER: usize = 16;
/// Messages that may wait for one session: a window of chunks, its confirmations and a few control words.
pub const SESSION_QUEUE: usize = 32;
/// Bounds of a stage frame.
const LIMITS: FrameLimits = FrameLimits { header: MAX_HEADER_BYTES, body: MAX_BODY_BYTES };
/// A peer that does not take what is written at once, a frame at most, within this time is gone.
const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// Ended sessions that are remembered, so that a stage which was still loading does not begin one that is over.
const ENDED: usize = 1024;

/// A message and who sent it.
pub type Delivery = (NodeId, Message);

/// See the module.
#[derive(Clone)]
pub struct Links {
    inner: Arc<Inner>,
}

struct Inner {
    local: NodeId,
    net: Option<NetHandle>,
    tasks: TaskSet,
    peers: Mutex<HashMap<NodeId, mpsc::Sender<Message>>>,
    stages: Mutex<Stages>,
    coordinators: Mutex<HashMap<SessionId, mpsc::Sender<Delivery>>>,
}

/// The stages of sessions on this node.
#[derive(Default)]
struct Stages {
    live: HashMap<(SessionId, u32), StageEntry>,
    /// Sessions that their coordinators ended, the newest last; at most [`ENDED`].
    ended: VecDeque<(SessionId, NodeId)>,
}

/// A stage's queue, and whose session it is. Its end tells the stage that the session is over.
struct StageEntry {
    coordinator: NodeId,
    queue: mpsc::Sender<Delivery>,
    keep: Arc<Mutex<Prefix>>,
    _over: DropGuard,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only insertions and removals run under these locks; a panic cannot leave them half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// Links of this node; without a network only messages to itself can be sent.
    pub fn new(local: NodeId, net: Option<NetHandle>, tasks: TaskSet) -> Self {
        let (peers, stages, coordinators) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { inner: Arc::new(Inner { local, net, tasks, peers, stages, coordinators }) }
    }

    /// This node.
    pub fn local(&self) -> NodeId {
        self.inner.local
    }

    /// Sends a message, waiting for room in the link's queue. Opens the link if there is none.
    pub async fn send(&self, to: NodeId, addresses: &[String], message: Message) -> Result<(), Fault> {
        if to == self.inner.local {
            self.deliver(to, message);
            return Ok(());
        }
        let known = locked(&self.inner.peers).get(&to).cloned();
        let message = match known {
            Some(link) => match link.send(message).await {
                Ok(()) => return Ok(()),
                Err(refused) => refused.0,
            },
            None => message,
        };
        let link = self.open(to, addresses).await?;
        link.send(message).await.map_err(|_| lost(to))
    }

    async fn open(&self, to: NodeId, addresses: &[String]) -> Result<mpsc::Sender<Message>, Fault> {
        let Some(net) = &self.inner.net else {
            return Err(Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network"));
        };
        let fault = |error: crate::net::NetError| Fault::new(error.kind(), error);
        net.ensure_connected(to, addresses).await.map_err(fault)?;
        let stream = net.open(to, Channel::Stage).await.map_err(fault)?;
        let (sender, receiver) = mpsc::channel(LINK_QUEUE);
        let mut peers = locked(&self.inner.peers);
        // Two sessions may open at once; the first link that stands is used, so that order within a session holds.
        if let Some(link) = peers.get(&to).filter(|link| !link.is_closed()) {
            return Ok(link.clone());
        }
        peers.insert(to, sender.clone());
        drop(peers);
        self.inner.tasks.spawn("stage-link", write_link(stream, receiver));
        Ok(sender)
    }

    /// Forgets the link to a peer whose last connection is gone, and ends the sessions that it coordinated here.
    pub fn disconnected(&self, peer: NodeId) {
        locked(&self.inner.peers).remove(&peer);
        locked(&self.inner.stages).live.retain(|_, entry| entry.coordinator != peer);
    }

    /// Takes the messages of one stage of one session until the inbox is dropped. Refuses a second stage of that number,
    /// and a session that its coordinator has ended meanwhile.
    pub fn register_stage(&self, session: SessionId, stage: u32, coordinator: NodeId) -> Result<StageInbox, Fault> {
        let (queue, receiver) = mpsc::channel(SESSION_QUEUE);
        let mut stages = locked(&self.inner.stages);
        if stages.ended.contains(&(session, coordinator)) {
            return Err(Fault::new(ErrorKind::Cancelled, format!("session {session} has ended before it began")));
        }
        if stages.live.contains_key(&(session, stage)) {
            let text = format!("session {session} has a stage {stage} here already");
            return Err(Fault::new(ErrorKind::InvalidArgument, text));
        }
        let (keep, over) = (Arc::<Mutex<Prefix>>::default(), CancellationToken::new());
        let entry = StageEntry { coordinator, queue, keep: keep.clone(), _over: over.clone().drop_guard() };
        stages.live.insert((session, stage), entry);
        Ok(StageInbox { links: self.clone(), key: (session, stage), receiver, keep, over })
    }

    /// Ends the stages of a session on this node, those that are yet to begin included, whatever still waits for them;
    /// [`StageInbox::keep`] says then what may be kept. Only its coordinator ends a session.
    pub fn end_session(&self, session: SessionId, coordinator: NodeId, keep: &Prefix) {
        let mut stages = locked(&self.inner.stages);
        stages.live.retain(|key, entry| {
            let ended = key.0 == session && entry.coordinator == coordinator;
            if ended {
                *locked(&entry.keep) = keep.clone();
            }
            !ended
        });
        if stages.ended.len() >= ENDED {
            stages.ended.pop_front();
        }
        stages.ended.push_back((session, coordinator));
    }

    /// Takes the answers of a session that this node coordinates until the inbox is dropped.
    pub fn register_coordinator(&self, session: SessionId) -> CoordinatorInbox {
        let (sender, receiver) = mpsc::channel(SESSION_QUEUE);
        locked(&self.inner.coordinators).insert(session, sender);
        CoordinatorInbox { links: self.clone(), session, receiver }
    }

    /// How many sessions this node coordinates now.
    pub fn coordinated(&self) -> usize {
        locked(&self.inner.coordinators).len()
    }

    /// Hands a message to its session. Messages of unknown sessions are dropped: they are late, or foreign.
    pub fn deliver(&self, from: NodeId, message: Message) {
        let session = message.session();
        match &message {
            Message::Step { header, .. } => self.deliver_stage((session, header.stage), from, message),
            Message::Logits { .. } | Message::Failed { .. } => {
                let queue = locked(&self.inner.coordinators).get(&session).cloned();
                if queue.is_some_and(|queue| queue.try_send((from, message)).is_err()) {
                    tracing::warn!(session = %session, "an answer was dropped and its session with it");
                    locked(&self.inner.coordinators).remove(&session);
                }
            }
        }
    }

    fn deliver_stage(&self, key: (SessionId, u32), from: NodeId, message: Message) {
        let queue = locked(&self.inner.stages).live.get(&key).map(|entry| entry.queue.clone());
        if queue.is_some_and(|queue| queue.try_send((from, message)).is_err()) {
            tracing::warn!(session = %key.0, "a step was dropped and its session with it");
            locked(&self.inner.stages).live.remove(&key);
        }
    }

    /// Reads one inbound stage stream until it ends or breaks the protocol.
    pub async fn read(&self, from: NodeId, mut stream: Stream) {
        loop {
            let frame = match read_frame::<_, StageHeader>(&mut stream, LIMITS).await {
                Ok(Some(frame)) => frame,
                Ok(None) => return,
                Err(error) => return tracing::debug!(peer = %from, %error, "a stage stream ended"),
            };
            let session = session_of(&frame.header);
            match Message::decode(frame) {
                Ok(message) => self.deliver(from, message),
                Err(error) => self.refuse(from, session, error.to_string()),
            }
        }
    }

    /// A frame that is well-formed but wrong ends its session, not the stream of the others.
    fn refuse(&self, from: NodeId, header: (SessionId, Option<(u32, u32)>), reason: String) {
        tracing::warn!(peer = %from, reason, "a frame was refused");
        let fault = Fault::new(ErrorKind::BadFrame, format!("peer {} sent a bad frame: {reason}", from.short()));
        let (session, stage) = header;
        let epoch = stage.map_or(0, |(_, epoch)| epoch);
        let failed = Message::Failed { session, epoch, stage: stage.map_or(0, |(stage, _)| stage), fault };
        match stage {
            // The stage's task passes it on to the coordinator.
            Some((stage, _)) => self.deliver_stage((session, stage), from, failed),
            None => self.deliver(from, failed),
        }
    }
}

fn session_of(header: &StageHeader) -> (SessionId, Option<(u32, u32)>) {
    match header {
        StageHeader::Step(step) => (step.session, Some((step.stage, step.epoch))),
        StageHeader::Logits(logits) => (logits.session, None),
        StageHeader::Failed { session, .. } => (*session, None),
    }
}

fn lost(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::PeerLost, format!("the link to peer {} broke", peer.short()))
}

/// The messages of one stage of one session.
pub struct StageInbox {
    links: Links,
    key: (SessionId, u32),
    receiver: mpsc::Receiver<Delivery>,
    keep: Arc<Mutex<Prefix>>,
    over: CancellationToken,
}

impl StageInbox {
    /// Is cancelled when the session is over: what has not been computed then is wanted no more.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// What the coordinator named when it ended the session; nothing where it did not.
    pub fn keep(&self) -> Prefix {
        std::mem::take(&mut locked(&self.keep))
    }

    /// The next message; `None` once all were read of a session that is over. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.receiver.recv().await
    }
}

impl Drop for StageInbox {
    fn drop(&mut self) {
        locked(&self.links.inner.stages).live.remove(&self.key);
    }
}

/// The answers of one coordinated session.
pub struct CoordinatorInbox {
    links: Links,
    session: SessionId,
    receiver: mpsc::Receiver<Delivery>,
}

impl CoordinatorInbox {
    /// The next answer; `None` where the queue overflowed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Delivery> {
        self.receiver.recv().await
    }
}

impl Drop for CoordinatorInbox {
    fn drop(&mut self) {
        locked(&self.links.inner.coordinators).remove(&self.session);
    }
}

/// Writes a link's messages; ends, and closes its queue, when the stream fails.
async fn write_link(mut stream: Stream, mut queue: mpsc::Receiver<Message>) {
    let mut messages = Vec::new();
    while queue.recv_many(&mut messages, TOGETHER).await > 0 {
        if let Err(error) = write_frames(&mut stream, messages.drain(..).map(Message::encode)).await {
            return tracing::debug!(%error, "a stage link broke");
        }
    }
}

/// Writes frames. Short ones go out together, so that the tokens of a step cost one packet.
async fn write_frames(
    stream: &mut Stream,
    frames: impl Iterator<Item = (StageHeader, Vec<u8>)>,
) -> Result<(), crate::wire::WireError> {
    /// Bytes that are gathered for one write.
    const ONE_WRITE: usize = 64 * 1024;
    let mut bytes = Vec::new();
    for (header, body) in frames {
        bytes.extend_from_slice(&encode_head(&header, body.len(), LIMITS)?);
        if bytes.len() + body.len() <= ONE_WRITE {
            bytes.extend_from_slice(&body);
            continue;
        }
        write(stream, &bytes).await?;
        write(stream, &body).await?;
        bytes.clear();
    }
    write(stream, &bytes).await
}

/// Writes and flushes bytes, which a peer that is there takes within [`WRITE_DEADLINE`].
async fn write(stream: &mut Stream, bytes: &[u8]) -> Result<(), crate::wire::WireError> {
    use futures::AsyncWriteExt;
    let written = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    let written = tokio::time::timeout(WRITE_DEADLINE, written).await;
    Ok(written.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))?)
}
