//! Links: one persistent outbound stage stream per peer, and the table that says whose message is whose.
//!
//! A link is a task that owns its stream and a bounded queue before it; messages of all sessions to that peer share it,
//! in order. A message to the node itself never touches a stream. Inbound streams are read by one task each and
//! delivered here. A queue that is full means a peer that ignores the window of its session: that session ends.
//!
//! What was written may be lost with a stream although its peer stays connected, and no answer would ever come. So a link
//! notices when its stream ends or what it wrote is not acknowledged, and all whose messages went there are told. Until they
//! have heard it they send no more: the frames of a session go to a peer by one link alone ([`Outlet`]), or those behind a
//! loss would arrive, and look as if they were out of turn.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::net::{Channel, NetError, NetHandle, Stream};
use crate::pipeline::link::{self, Watching};
use crate::pipeline::message::Message;
use crate::pipeline::watch::ANSWERS;
use crate::rt::TaskSet;
use crate::wire::control::Host;
use crate::wire::frame::Frame;
use crate::wire::job::StageHeader;
use crate::wire::prefix::Prefix;

/// Messages that may wait for one peer's stream.
const LINK_QUEUE: usize = 64;
/// Messages that may wait for one session: a window of chunks, its confirmations and a few control words.
pub const SESSION_QUEUE: usize = 32;

/// Broken links that a session may not have heard of yet.
const BROKEN_QUEUE: usize = 256;
/// Ended sessions that are remembered: the word of an end may overtake that of the beginning.
const ENDED: usize = 1024;

/// A stage of a session's route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionStage {
    /// The session.
    pub session: SessionId,
    /// Which of its routes.
    pub epoch: u32,
    /// Which stage of that, from 0.
    pub stage: u32,
}

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
    peers: Mutex<HashMap<NodeId, Link>>,
    stages: Mutex<Stages>,
    coordinators: Mutex<HashMap<SessionId, mpsc::Sender<Delivery>>>,
    /// Peers to which a link broke.
    broken: broadcast::Sender<NodeId>,
}

/// The way into a link's task.
#[derive(Clone)]
struct Link {
    queue: mpsc::Sender<Message>,
    /// Tells it that an answer is late.
    asked: Arc<Notify>,
}

/// The stages of sessions on this node.
#[derive(Default)]
struct Stages {
    live: HashMap<SessionStage, StageEntry>,
    /// Those that are about to be, whose they are, and what is cancelled when their session is over.
    opening: HashMap<SessionStage, (NodeId, CancellationToken)>,
    /// Sessions that their coordinators ended, up to which epoch, once each; the newest last, at most [`ENDED`].
    ended: VecDeque<(SessionId, u32, NodeId)>,
}

impl Stages {
    fn has_ended(&self, key: SessionStage, coordinator: NodeId) -> bool {
        let SessionStage { session, epoch, .. } = key;
        self.ended.iter().any(|ended| ended.0 == session && ended.1 >= epoch && ended.2 == coordinator)
    }

    /// Remembers an end, of this epoch or the later one that is known.
    fn remember(&mut self, session: SessionId, epoch: u32, coordinator: NodeId) {
        let known = self.ended.iter().position(|ended| ended.0 == session && ended.2 == coordinator);
        let known = known.and_then(|at| self.ended.remove(at)).map_or(0, |ended| ended.1);
        if self.ended.len() >= ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back((session, epoch.max(known), coordinator));
    }
}

/// A stage's queue, and whose session it is. Its end tells the stage that the session is over.
struct StageEntry {
    coordinator: NodeId,
    /// Where its results go.
    next: NodeId,
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
        let (broken, _) = broadcast::channel(BROKEN_QUEUE);
        Self { inner: Arc::new(Inner { local, net, tasks, peers, stages, coordinators, broken }) }
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
        self.link(to, addresses).await?.send(message).await.map_err(|_| lost(to))
    }

    /// The way of a session's frames to a peer that may be at these addresses.
    pub fn outlet(&self, to: Host) -> Outlet {
        Outlet { links: self.clone(), to, link: None }
    }

    /// The link to a peer, opened if there is none that stands.
    async fn link(&self, to: NodeId, addresses: &[String]) -> Result<mpsc::Sender<Message>, Fault> {
        let known = locked(&self.inner.peers).get(&to).cloned();
        match known.filter(|link| !link.queue.is_closed()) {
            Some(link) => Ok(link.queue),
            None => self.open(to, addresses).await,
        }
    }

    async fn open(&self, to: NodeId, addresses: &[String]) -> Result<mpsc::Sender<Message>, Fault> {
        let Some(net) = &self.inner.net else {
            return Err(Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network"));
        };
        let fault = |error: NetError| Fault::new(error.kind(), error);
        net.ensure_connected(to, addresses).await.map_err(fault)?;
        let stream = open_stream(net, to).await.map_err(fault)?;
        let (queue, receiver) = mpsc::channel(LINK_QUEUE);
        let asked = Arc::<Notify>::default();
        let mut peers = locked(&self.inner.peers);
        // Two sessions may open at once; the first link that stands is used, so that order within a session holds.
        if let Some(link) = peers.get(&to).filter(|link| !link.queue.is_closed()) {
            return Ok(link.queue.clone());
        }
        peers.insert(to, Link { queue: queue.clone(), asked: asked.clone() });
        drop(peers);
        let links = self.clone();
        self.inner.tasks.spawn("stage-link", async move {
            let watching = Watching { asked, rtt: || links.rtt(to), doubt: || links.doubt(to) };
            if let Err(error) = link::write(stream, receiver, watching).await {
                tracing::debug!(peer = %to, %error, "a stage link broke");
                links.broke(to);
            }
        });
        Ok(queue)
    }

    fn rtt(&self, peer: NodeId) -> Duration {
        let known = self.inner.net.as_ref().and_then(|net| net.peers().lookup(peer));
        known.and_then(|peer| peer.rtt).unwrap_or_default()
    }

    fn doubt(&self, peer: NodeId) {
        if let Some(net) = &self.inner.net {
            net.doubt(peer);
        }
    }

    /// Peers from now on to which a link breaks: what was sent there last may be lost.
    pub fn broken(&self) -> broadcast::Receiver<NodeId> {
        self.inner.broken.subscribe()
    }

    /// Forgets the link to a peer whose last connection is gone, and ends the sessions that it coordinated here.
    pub fn disconnected(&self, peer: NodeId) {
        locked(&self.inner.peers).remove(&peer);
        let mut stages = locked(&self.inner.stages);
        stages.live.retain(|_, entry| entry.coordinator != peer);
        stages.opening.retain(|_, (coordinator, over)| *coordinator != peer || end(over));
        drop(stages);
        self.broke(peer);
    }

    /// Stages whose results went to this peer fail: what was under way is lost, and only this node may have noticed.
    pub(super) fn broke(&self, peer: NodeId) {
        let _ = self.inner.broken.send(peer);
        let stages = locked(&self.inner.stages);
        for (key, entry) in stages.live.iter().filter(|(_, entry)| entry.next == peer) {
            let SessionStage { session, epoch, stage } = *key;
            // A full queue has ended the session already.
            let _ =
                entry.queue.try_send((self.inner.local, Message::Failed { session, epoch, stage, fault: lost(peer) }));
        }
    }

    /// Begins to open a stage of a session. Refuses a second of that number, and a session that its coordinator has ended.
    pub fn begin(&self, key: SessionStage, coordinator: NodeId) -> Result<Opening, Fault> {
        let mut stages = locked(&self.inner.stages);
        if stages.has_ended(key, coordinator) {
            return Err(ended(key.session));
        }
        if stages.live.contains_key(&key) || stages.opening.contains_key(&key) {
            let text = format!("session {} has a stage {} here already", key.session, key.stage);
            return Err(Fault::new(ErrorKind::InvalidArgument, text));
        }
        let over = CancellationToken::new();
        stages.opening.insert(key, (coordinator, over.clone()));
        Ok(Opening { links: self.clone(), key, coordinator, over })
    }

    /// Whether a stage of this coordinator's session is here. That it asks means that its answer is late: what was sent to
    /// whom this stage's results go may be, too.
    pub fn serves(&self, key: SessionStage, coordinator: NodeId) -> bool {
        let stages = locked(&self.inner.stages);
        let Some(stage) = stages.live.get(&key).filter(|entry| entry.coordinator == coordinator) else { return false };
        let next = stage.next;
        drop(stages);
        locked(&self.inner.peers).get(&next).inspect(|link| link.asked.notify_one());
        true
    }

    /// Ends the stages of a session on this node, of this epoch and those before, those that are yet to begin included,
    /// whatever still waits for them; [`StageInbox::keep`] says then what may be kept. Only its coordinator ends a session.
    pub fn end_session(&self, session: SessionId, epoch: u32, coordinator: NodeId, keep: &Prefix) {
        let mut stages = locked(&self.inner.stages);
        stages.live.retain(|key, entry| {
            let ended = key.session == session && key.epoch <= epoch && entry.coordinator == coordinator;
            if ended {
                *locked(&entry.keep) = keep.clone();
            }
            !ended
        });
        stages.opening.retain(|key, (owner, over)| {
            let ended = key.session == session && key.epoch <= epoch && *owner == coordinator;
            !ended || end(over)
        });
        stages.remember(session, epoch, coordinator);
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
            Message::Step { header, .. } => {
                let key = SessionStage { session, epoch: header.epoch, stage: header.stage };
                self.deliver_stage(key, from, message);
            }
            Message::Logits { .. } | Message::Failed { .. } => {
                let queue = locked(&self.inner.coordinators).get(&session).cloned();
                if queue.is_some_and(|queue| queue.try_send((from, message)).is_err()) {
                    tracing::warn!(session = %session, "an answer was dropped and its session with it");
                    locked(&self.inner.coordinators).remove(&session);
                }
            }
        }
    }

    fn deliver_stage(&self, key: SessionStage, from: NodeId, message: Message) {
        let queue = locked(&self.inner.stages).live.get(&key).map(|entry| entry.queue.clone());
        if queue.is_some_and(|queue| queue.try_send((from, message)).is_err()) {
            tracing::warn!(session = %key.session, "a step was dropped and its session with it");
            locked(&self.inner.stages).live.remove(&key);
        }
    }

    /// Reads one inbound stage stream until it ends or breaks the protocol.
    pub async fn read(&self, from: NodeId, stream: Stream) {
        let take = |frame: Frame<StageHeader>| {
            let key = key_of(&frame.header);
            match Message::decode(frame) {
                Ok(message) => self.deliver(from, message),
                Err(error) => self.refuse(from, key, error.to_string()),
            }
        };
        if let Err(error) = link::read(stream, take).await {
            tracing::debug!(peer = %from, %error, "a stage stream ended");
        }
    }

    /// A frame that is well-formed but wrong ends its session, not the stream of the others.
    fn refuse(&self, from: NodeId, (key, is_step): (SessionStage, bool), reason: String) {
        tracing::warn!(peer = %from, reason, "a frame was refused");
        let fault = Fault::new(ErrorKind::BadFrame, format!("peer {} sent a bad frame: {reason}", from.short()));
        let SessionStage { session, epoch, stage } = key;
        let failed = Message::Failed { session, epoch, stage, fault };
        match is_step {
            // The stage's task passes it on to the coordinator.
            true => self.deliver_stage(key, from, failed),
            false => self.deliver(from, failed),
        }
    }
}

/// Opens a stage stream. A connection that takes long over that is doubted, as one that hangs over a written frame is; where
/// another takes its place, the stream is opened on that.
async fn open_stream(net: &NetHandle, to: NodeId) -> Result<Stream, NetError> {
    let (mut opening, mut doubted) = (pin!(net.open(to, Channel::Stage)), false);
    loop {
        match tokio::time::timeout(ANSWERS, &mut opening).await {
            Ok(Err(NetError::PeerLost { .. })) if doubted => return net.open(to, Channel::Stage).await,
            Ok(opened) => return opened,
            Err(_) => {
                doubted = true;
                net.doubt(to);
            }
        }
    }
}

/// Whose frame it is, and whether it is a step.
fn key_of(header: &StageHeader) -> (SessionStage, bool) {
    let key = |session, epoch, stage| SessionStage { session, epoch, stage };
    match header {
        StageHeader::Step(step) => (key(step.session, step.epoch, step.stage), true),
        StageHeader::Logits(logits) => (key(logits.session, logits.epoch, 0), false),
        StageHeader::Failed { session, epoch, stage, .. } => (key(*session, *epoch, *stage), false),
    }
}

/// Ends a stage that is being opened: it stays no longer.
fn end(over: &CancellationToken) -> bool {
    over.cancel();
    false
}

fn ended(session: SessionId) -> Fault {
    Fault::new(ErrorKind::Cancelled, format!("session {session} has ended before it began"))
}

fn lost(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::PeerLost, format!("the link to peer {} broke", peer.short()))
}

/// The way of one session's frames to one peer, by one link from the first to the last.
pub struct Outlet {
    links: Links,
    to: Host,
    link: Option<mpsc::Sender<Message>>,
}

impl Outlet {
    /// Sends a frame, waiting for room in the link's queue; the first opens the link if there is none. Fails for good once
    /// the link has broken.
    pub async fn send(&mut self, message: Message) -> Result<(), Fault> {
        let Host { node, addresses } = &self.to;
        if *node == self.links.local() {
            self.links.deliver(*node, message);
            return Ok(());
        }
        let link = match &mut self.link {
            Some(link) => link,
            none => none.insert(self.links.link(*node, addresses).await?),
        };
        link.send(message).await.map_err(|_| lost(*node))
    }
}

/// A stage of a session that is being opened, until it is dropped.
pub struct Opening {
    links: Links,
    key: SessionStage,
    coordinator: NodeId,
    over: CancellationToken,
}

impl Opening {
    /// Is cancelled when the session is over before it began.
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Takes the stage's messages from now on, until the inbox is dropped; its results go to `next`. Fails where the session
    /// has ended meanwhile.
    pub fn register(self, next: NodeId) -> Result<StageInbox, Fault> {
        let (queue, receiver) = mpsc::channel(SESSION_QUEUE);
        let mut stages = locked(&self.links.inner.stages);
        if self.over.is_cancelled() {
            return Err(ended(self.key.session));
        }
        let (keep, over) = (Arc::<Mutex<Prefix>>::default(), CancellationToken::new());
        let (coordinator, guard) = (self.coordinator, over.clone().drop_guard());
        stages.live.insert(self.key, StageEntry { coordinator, next, queue, keep: keep.clone(), _over: guard });
        Ok(StageInbox { links: self.links.clone(), key: self.key, receiver, keep, over })
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut stages = locked(&self.links.inner.stages);
        // Once it is over it is no longer in the table, where another of that number may be.
        if !self.over.is_cancelled() {
            stages.opening.remove(&self.key);
        }
    }
}

/// The messages of one stage of one session.
pub struct StageInbox {
    links: Links,
    key: SessionStage,
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

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::copy_bidirectional;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::identity::Keypair;
    use crate::net::{self, Incoming, NetConfig};
    use crate::rt::EventBus;

    const STAGE: SessionStage = SessionStage { session: SessionId([1; 16]), epoch: 2, stage: 3 };

    fn node(name: u8) -> NodeId {
        NodeId([name; 32])
    }

    async fn start(tasks: &TaskSet) -> (NetHandle, Incoming) {
        let (listen, network) = (vec!["/ip4/127.0.0.1/tcp/0".to_owned()], format!("links-{}", std::process::id()));
        let config = NetConfig { network, listen, mdns: false, ..NetConfig::default() };
        let key = Keypair::generate().unwrap();
        net::start(config, &key, EventBus::new(), tasks.clone()).await.unwrap()
    }

    fn frame() -> Message {
        let SessionStage { session, epoch, stage } = STAGE;
        Message::Failed { session, epoch, stage, fault: lost(node(9)) }
    }

    #[tokio::test]
    async fn a_stage_is_served_to_its_coordinator_until_either_ends_it() {
        let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
        let inbox = links.begin(STAGE, node(1)).unwrap().register(node(1)).unwrap();
        assert!(links.serves(STAGE, node(1)));
        assert!(!links.serves(STAGE, node(2)), "another's session is nobody's business");
        assert!(!links.serves(SessionStage { epoch: 3, ..STAGE }, node(1)));
        links.disconnected(node(1));
        assert!(!links.serves(STAGE, node(1)));
        drop(inbox);
    }

    #[tokio::test]
    async fn a_stage_that_is_being_opened_does_not_begin_once_its_session_is_over() {
        let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
        let (session, none) = (STAGE.session, Prefix::default());
        let opening = links.begin(STAGE, node(1)).unwrap();
        assert!(links.begin(STAGE, node(1)).is_err(), "one is on its way");
        links.end_session(session, STAGE.epoch, node(2), &none);
        links.end_session(session, STAGE.epoch - 1, node(1), &none);
        assert!(!opening.over().is_cancelled(), "neither another's word nor that of an earlier route ends it");
        links.end_session(session, STAGE.epoch, node(1), &none);
        // However much ends meanwhile.
        let others = (0..2 * ENDED as u128).map(|other| SessionId(other.to_le_bytes()));
        others.for_each(|other| links.end_session(other, 0, node(1), &none));
        assert!(opening.over().is_cancelled());
        assert_eq!(opening.register(node(1)).err().unwrap().kind(), ErrorKind::Cancelled);
        let opening = links.begin(STAGE, node(1)).unwrap();
        links.disconnected(node(1));
        assert!(opening.register(node(1)).is_err(), "who is to have the answer is gone");
        drop(links.begin(STAGE, node(1)).unwrap());
        links.begin(STAGE, node(1)).unwrap().register(node(1)).unwrap();
    }

    #[tokio::test]
    async fn an_end_that_overtakes_the_beginning_counts_however_often_it_is_told() {
        let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
        let end = |session, epoch| links.end_session(session, epoch, node(1), &Prefix::default());
        end(STAGE.session, STAGE.epoch);
        for _ in 0..2 * ENDED {
            end(SessionId([7; 16]), 1);
        }
        end(STAGE.session, 0);
        assert_eq!(links.begin(STAGE, node(1)).err().unwrap().kind(), ErrorKind::Cancelled);
        assert!(links.begin(SessionStage { epoch: STAGE.epoch + 1, ..STAGE }, node(1)).is_ok());
    }

    #[tokio::test]
    async fn the_frames_of_a_session_do_not_go_on_over_another_link_than_the_one_that_broke() {
        let tasks = TaskSet::new(tokio::runtime::Handle::current());
        let ((near, _near), (far, mut incoming)) = (start(&tasks).await, start(&tasks).await);
        let links = Links::new(near.local(), Some(near), tasks.clone());
        let host = Host { node: far.local(), addresses: far.addresses() };
        let mut outlet = links.outlet(host.clone());
        outlet.send(frame()).await.unwrap();
        // The peer ends the stream; it stays connected.
        drop(incoming.stage.recv().await.unwrap());
        let begun = Instant::now();
        let broken = loop {
            match outlet.send(frame()).await {
                Err(fault) => break fault,
                Ok(()) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
            assert!(begun.elapsed() < Duration::from_secs(10), "the link is never found broken");
        };
        assert_eq!(broken.kind(), ErrorKind::PeerLost);
        assert!(outlet.send(frame()).await.is_err(), "it stays so");
        links.outlet(host).send(frame()).await.expect("a new route has a new link");
        tasks.abort();
    }

    /// A way to `to` that lets nothing through any more once it is cut, and keeps what is connected.
    async fn line(to: &str, cut: CancellationToken) -> String {
        let port = |address: &str| address.split('/').nth(4).unwrap().parse::<u16>().unwrap();
        let (listener, to) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), port(to));
        let here = format!("/ip4/127.0.0.1/tcp/{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            let mut near = listener.accept().await.unwrap().0;
            let mut far = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            let _ = cut.run_until_cancelled(copy_bidirectional(&mut near, &mut far)).await;
            std::future::pending::<()>().await;
        });
        here
    }

    #[tokio::test]
    async fn a_link_is_opened_anew_where_the_connection_hangs_over_it() {
        let tasks = TaskSet::new(tokio::runtime::Handle::current());
        let ((near, _near), (far, mut incoming)) = (start(&tasks).await, start(&tasks).await);
        let cut = CancellationToken::new();
        near.dial(&line(&far.addresses()[0], cut.clone()).await).await.unwrap();
        let (links, host) = (Links::new(near.local(), Some(near), tasks.clone()), far.local());
        cut.cancel();
        let begun = Instant::now();
        links.outlet(Host { node: host, addresses: Vec::new() }).send(frame()).await.expect("another connection");
        // By itself the open would fail after ten seconds.
        assert!(begun.elapsed() < Duration::from_secs(8), "it waits for the one that hangs");
        incoming.stage.recv().await.unwrap();
        tasks.abort();
    }

    #[tokio::test]
    async fn a_connection_without_acknowledgements_is_replaced_sooner_where_a_coordinator_asks_for_the_stage() {
        let tasks = TaskSet::new(tokio::runtime::Handle::current());
        let ((near, _near), (far, mut incoming)) = (start(&tasks).await, start(&tasks).await);
        let links = Links::new(near.local(), Some(near), tasks.clone());
        let mut broken = links.broken();
        let host = Host { node: far.local(), addresses: far.addresses() };
        let _stage = links.begin(STAGE, node(1)).unwrap().register(far.local()).unwrap();
        links.outlet(host).send(frame()).await.unwrap();
        let _unread = incoming.stage.recv().await.unwrap();
        let begun = Instant::now();
        while broken.try_recv().is_err() {
            // By itself the link would begin to doubt after two seconds and a half.
            assert!(begun.elapsed() < Duration::from_secs(2), "it is not doubted");
            assert!(links.serves(STAGE, node(1)));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        tasks.abort();
    }
}
