//! Links: one persistent outbound stage stream per peer, and the table that says whose message is whose.
//!
//! A link is a task that owns its stream and a queue before it, bounded in number and in bytes ([`outgoing`](super::outgoing)); messages of all sessions to that peer share it,
//! in order. A message to the node itself never touches a stream. Inbound streams are read by one task each and
//! delivered here. A queue that is full means a peer that ignores the window of its session: that session ends.
//!
//! What was written may be lost with a stream although its peer stays connected, and no answer would ever come. So a link
//! notices when its stream ends or what it wrote is not acknowledged, and all whose messages went there are told. Until they
//! have heard it they send no more: the frames of a session go to a peer by one link alone ([`Outlet`]), or those behind a
//! loss would arrive, and look as if they were out of turn.

mod inboxes;

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, broadcast, mpsc};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::engine::WANTED_ROWS;
use crate::net::{Channel, NetError, NetHandle, Stream};
use crate::pipeline::bodies::{Bodies, Held, HeldBodies, NoMemory};
use crate::pipeline::link::{self, Inlet, Watching};
use crate::pipeline::message::{ANSWERING, Message};
use crate::pipeline::outgoing::{LinkQueue, OutgoingFrames};
use crate::pipeline::watch::ANSWERS;
use crate::rt::{Bounds, Shares, TaskSet};
use crate::wire::control::Host;
use crate::wire::frame::Frame;
use crate::wire::job::{StageHeader, StepHeader};
use crate::wire::prefix::Prefix;

use inboxes::Ending;
pub use inboxes::{CoordinatorInbox, Opening, StageInbox};

/// Time that a peer has to connect by itself that another one has named, and how often it is looked for.
const NAMED_COMES: Duration = Duration::from_secs(3);
const LOOK_FOR_NAMED: Duration = Duration::from_millis(50);
/// Hosts that are dialled at once because they were named as the one before: a session of three stages has two, and a dial ends
/// within seconds.
const MEETINGS: Bounds = Bounds { all: 32, each: 4, reserve: 32 };
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

/// The same with the memory that its body takes.
type Queued = (Delivery, Option<Held>);

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
    coordinators: Mutex<HashMap<SessionId, Coordinated>>,
    /// Memory for the bodies of frames that came, and for frames that are to be written.
    held: HeldBodies,
    outgoing: OutgoingFrames,
    /// Where nodes say that they are.
    announced: OnceLock<Announced>,
    /// Whom hosts are dialled for that were named as the one before, for as long as that takes.
    meetings: Shares<NodeId>,
    /// Peers to which a link broke.
    broken: broadcast::Sender<NodeId>,
}

/// A session that this node coordinates.
struct Coordinated {
    queue: mpsc::Sender<Queued>,
    bodies: Bodies,
    hosts: Hosts,
}

/// The hosts of a session's present route, and what the last of them may answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    /// Which of the session's routes.
    pub epoch: u32,
    /// Those that have a stage or follow one, with its number: each may say once that it failed.
    pub parts: Vec<(NodeId, u32)>,
    /// Who answers.
    pub last: Option<NodeId>,
    /// Bytes of the longest answer.
    pub longest: usize,
}

/// Where a node says itself that it may be dialled, and who passed that on where it was not said over a connection.
pub type Announced = Box<dyn Fn(NodeId) -> (Vec<String>, Option<NodeId>) + Send + Sync>;

/// The way into a link's task.
#[derive(Clone)]
struct Link {
    queue: LinkQueue,
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

/// What a stage and its coordinator have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Who sends the steps.
    pub previous: NodeId,
    /// Where results go.
    pub next: NodeId,
    /// Floats of a row.
    pub width: u32,
    /// Rows of a step at most.
    pub max_rows: u32,
    /// Whether it only follows a stage.
    pub stands_by: bool,
}

impl Agreed {
    /// Why a step with a body of so many bytes is none that was agreed on.
    fn refuses(&self, step: &StepHeader, body: usize) -> Option<String> {
        let row = step.codec.row_bytes(self.width as usize);
        let fits = step.width == self.width && (1..=self.max_rows).contains(&step.rows);
        let refused = || {
            let StepHeader { rows, width, .. } = step;
            let Agreed { max_rows, width: agreed, .. } = self;
            format!("{body} bytes for {rows} rows of {width} numbers, where steps have up to {max_rows} of {agreed}")
        };
        // At most 512 rows of a width that a model of ours has.
        (!fits || row.saturating_mul(step.rows as usize) != body).then(refused)
    }

    /// Bytes of the longest body, decoded.
    fn longest(&self) -> usize {
        floats(self.max_rows, self.width)
    }
}

/// Bytes of so many rows, decoded.
fn floats(rows: u32, width: u32) -> usize {
    (rows as usize).saturating_mul(width as usize).saturating_mul(size_of::<f32>())
}

/// A stage's queue, and whose session it is. Its end tells the stage that the session is over.
struct StageEntry {
    coordinator: NodeId,
    agreed: Agreed,
    /// When its coordinator last asked for it.
    asked: Arc<Mutex<Instant>>,
    queue: mpsc::Sender<Queued>,
    bodies: Bodies,
    ending: Arc<Mutex<Ending>>,
    /// Whether the loss of the next host's link is queued and not read yet: a link may break any number of times.
    told: Arc<AtomicBool>,
    _over: DropGuard,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Only insertions and removals run under these locks; a panic cannot leave them half-done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Links {
    /// Links of this node; without a network only messages to itself can be sent.
    pub fn new(local: NodeId, net: Option<NetHandle>, tasks: TaskSet) -> Self {
        Self::holding(local, net, tasks, HeldBodies::new())
    }

    fn holding(local: NodeId, net: Option<NetHandle>, tasks: TaskSet, held: HeldBodies) -> Self {
        let (peers, stages, coordinators) = (Mutex::default(), Mutex::default(), Mutex::default());
        let (broken, _) = broadcast::channel(BROKEN_QUEUE);
        let announced = OnceLock::new();
        let meetings = Shares::new(MEETINGS);
        Self {
            inner: Arc::new(Inner {
                local,
                net,
                tasks,
                peers,
                stages,
                coordinators,
                held,
                outgoing: OutgoingFrames::new(),
                announced,
                meetings,
                broken,
            }),
        }
    }

    /// Says where nodes announce that they are. Counts once.
    pub fn set_announced(&self, announced: Announced) {
        let _ = self.inner.announced.set(announced);
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
        Outlet { links: self.clone(), to, link: None, named: false }
    }

    /// The same to a peer that another one has named: it is dialled only where it says itself that it is.
    pub fn outlet_to_named(&self, node: NodeId) -> Outlet {
        Outlet { links: self.clone(), to: Host { node, addresses: Vec::new() }, link: None, named: true }
    }

    /// The link to a peer, opened if there is none that stands.
    async fn link(&self, to: NodeId, addresses: &[String]) -> Result<LinkQueue, Fault> {
        let known = locked(&self.inner.peers).get(&to).cloned();
        match known.filter(|link| !link.queue.is_closed()) {
            Some(link) => Ok(link.queue),
            None => self.open(to, addresses).await,
        }
    }

    async fn open(&self, to: NodeId, addresses: &[String]) -> Result<LinkQueue, Fault> {
        let Some(net) = &self.inner.net else {
            return Err(Fault::new(ErrorKind::PeerUnreachable, "this node runs without a network"));
        };
        let fault = |error: NetError| Fault::new(error.kind(), error);
        net.ensure_connected(to, addresses).await.map_err(fault)?;
        let stream = open_stream(net, to).await.map_err(fault)?;
        let (queue, receiver) = self.inner.outgoing.queue(to);
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

    /// Is connected to a peer that another one has named. It is dialled where it says itself that it is; and it may be about to
    /// connect by itself. Who named it learns no reason: that would tell him what there is at an address.
    async fn reach_named(&self, to: NodeId) -> Result<(), Fault> {
        let Some(net) = self.inner.net.as_ref().filter(|_| to != self.inner.local) else { return Ok(()) };
        let (addresses, via) = self.inner.announced.get().map(|announced| announced(to)).unwrap_or_default();
        let dialled = net.ensure_as_told(to, &addresses, via.unwrap_or(to)).await;
        let Err(error) = dialled else { return Ok(()) };
        tracing::debug!(peer = %to, %error, "a peer that was named could not be dialled");
        let speaks = || net.peers().lookup(to).is_some_and(|peer| peer.connected && peer.speaks);
        let comes = async {
            while !speaks() {
                tokio::time::sleep(LOOK_FOR_NAMED).await;
            }
        };
        tokio::time::timeout(NAMED_COMES, comes).await.map_err(|_| unreachable(to))
    }

    /// Makes sure of a connection to the peer that will send the steps of a session of `coordinator`, until that is over. Of two
    /// hosts that have not met, the one that has heard the other's announcement dials: the younger of them has not heard the
    /// elder's yet. A coordinator that names more hosts at once than has its share of dials must let them come by themselves.
    pub fn meet(&self, from: NodeId, coordinator: NodeId, over: &CancellationToken) {
        let Some(place) = self.inner.meetings.take(coordinator) else { return };
        let (links, over) = (self.clone(), over.clone());
        self.inner.tasks.spawn("stage-previous", async move {
            let _place = place;
            if let Some(Err(fault)) = over.run_until_cancelled(links.reach_named(from)).await {
                tracing::debug!(peer = %from, %fault, "the host before is not connected yet");
            }
        });
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
        let concerned = |entry: &&StageEntry| entry.agreed.next == peer && !entry.told.swap(true, Ordering::AcqRel);
        for (key, entry) in stages.live.iter().filter(|(_, entry)| concerned(entry)) {
            let SessionStage { session, epoch, stage } = *key;
            // Where the queue is full, whoever fills it has broken the window of the session, which ends for that.
            let failed = Message::Failed { session, epoch, stage, fault: lost(peer) };
            let _ = entry.queue.try_send(((self.inner.local, failed), None));
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
        let next = stage.agreed.next;
        *locked(&stage.asked) = Instant::now();
        drop(stages);
        locked(&self.inner.peers).get(&next).inspect(|link| link.asked.notify_one());
        true
    }

    /// Ends the stages of a session on this node, of this epoch and those before, those that are yet to begin included,
    /// whatever still waits for them; [`StageInbox::end`] says then what may be kept. Only its coordinator ends a session.
    pub fn end_session(&self, session: SessionId, epoch: u32, coordinator: NodeId, keep: &Prefix) {
        let mut stages = locked(&self.inner.stages);
        stages.live.retain(|key, entry| {
            let ended = key.session == session && key.epoch <= epoch && entry.coordinator == coordinator;
            if ended {
                *locked(&entry.ending) = Ending::Released(keep.clone());
            }
            !ended
        });
        stages.opening.retain(|key, (owner, over)| {
            let ended = key.session == session && key.epoch <= epoch && *owner == coordinator;
            !ended || end(over)
        });
        stages.remember(session, epoch, coordinator);
    }

    /// Ends one stage of a session that its coordinator does not know to have begun, and no other of that session.
    pub fn end_stage(&self, key: SessionStage, coordinator: NodeId) {
        let mut stages = locked(&self.inner.stages);
        if stages.live.get(&key).is_some_and(|entry| entry.coordinator == coordinator) {
            stages.live.remove(&key);
        }
    }

    /// Takes the answers of a session that this node coordinates until the inbox is dropped.
    pub fn register_coordinator(&self, session: SessionId) -> CoordinatorInbox {
        let (queue, receiver) = mpsc::channel(SESSION_QUEUE);
        let coordinated = Coordinated { queue, bodies: Bodies::new(), hosts: Hosts::default() };
        locked(&self.inner.coordinators).insert(session, coordinated);
        CoordinatorInbox { links: self.clone(), session, receiver }
    }

    /// Takes over the network what these hosts say of a session that this node coordinates, and what no others say.
    pub fn set_hosts(&self, session: SessionId, hosts: Hosts) {
        if let Some(coordinated) = locked(&self.inner.coordinators).get_mut(&session) {
            coordinated.hosts = hosts;
        }
    }

    /// How many sessions this node coordinates now.
    pub fn coordinated(&self) -> usize {
        locked(&self.inner.coordinators).len()
    }

    /// Hands a message to its session. Messages of unknown sessions are dropped: they are late, or foreign.
    pub fn deliver(&self, from: NodeId, message: Message) {
        self.queue((from, message), None);
    }

    fn queue(&self, delivery: Delivery, held: Option<Held>) {
        let session = delivery.1.session();
        match &delivery.1 {
            Message::Step { header, .. } => {
                let key = SessionStage { session, epoch: header.epoch, stage: header.stage };
                self.queue_stage(key, delivery, held);
            }
            Message::Logits { .. } | Message::Failed { .. } => {
                let queue = locked(&self.inner.coordinators).get(&session).map(|session| session.queue.clone());
                if queue.is_some_and(|queue| is_full(queue.try_send((delivery, held)))) {
                    let key = SessionStage { session, epoch: 0, stage: ANSWERING };
                    self.drop_session(key, false, NoRoom::Overfull);
                }
            }
        }
    }

    fn queue_stage(&self, key: SessionStage, delivery: Delivery, held: Option<Held>) {
        let queue = locked(&self.inner.stages).live.get(&key).map(|entry| entry.queue.clone());
        if queue.is_some_and(|queue| is_full(queue.try_send((delivery, held)))) {
            self.drop_session(key, true, NoRoom::Overfull);
        }
    }

    /// Reads one inbound stage stream until it ends or breaks the protocol.
    pub async fn read(&self, from: NodeId, stream: Stream) {
        if let Err(error) = link::read(stream, Reader { links: self, from }).await {
            tracing::debug!(peer = %from, %error, "a stage stream ended");
        }
    }

    /// Whether a frame of this peer is of a session that is open here and to which the peer sends, within what was agreed; or
    /// else why it ends that session, where it does.
    fn admits(&self, from: NodeId, header: &StageHeader, body: usize) -> Result<bool, String> {
        let (key, _) = key_of(header);
        match header {
            StageHeader::Step(step) => {
                let stages = locked(&self.inner.stages);
                let Some(stage) = stages.live.get(&key).filter(|stage| stage.agreed.previous == from) else {
                    return Ok(false);
                };
                stage.agreed.refuses(step, body).map_or(Ok(true), Err)
            }
            StageHeader::Logits(logits) => {
                let coordinated = locked(&self.inner.coordinators);
                let session = coordinated.get(&key.session).filter(|session| session.hosts.last == Some(from));
                match session.map(|session| session.hosts.longest) {
                    None => Ok(false),
                    // Rows of a few bytes each would become long in memory.
                    Some(_) if logits.rows > WANTED_ROWS => {
                        Err(format!("an answer of {} rows, where one has {WANTED_ROWS} at most", logits.rows))
                    }
                    Some(longest) if body <= longest => Ok(true),
                    Some(longest) => Err(format!("an answer of {body} bytes, where one has {longest} at most")),
                }
            }
            StageHeader::Failed { .. } => {
                let mut coordinated = locked(&self.inner.coordinators);
                let session = coordinated.get_mut(&key.session).filter(|session| session.hosts.epoch == key.epoch);
                let parts = session.filter(|_| body == 0).map(|session| &mut session.hosts.parts);
                let part = |parts: &mut Vec<_>| {
                    Some(parts.swap_remove(parts.iter().position(|part| *part == (from, key.stage))?))
                };
                Ok(parts.and_then(part).is_some())
            }
        }
    }

    /// Waits for the memory for a frame's body; nothing where its session has ended, or ends for having too much unread.
    async fn hold(&self, from: NodeId, header: &StageHeader, body: usize) -> Option<Held> {
        let (key, is_step) = key_of(header);
        let (by, bodies, bytes, longest) = match header {
            StageHeader::Step(step) => {
                let stages = locked(&self.inner.stages);
                let stage = stages.live.get(&key)?;
                (stage.coordinator, stage.bodies.share(), floats(step.rows, step.width), stage.agreed.longest())
            }
            StageHeader::Logits(_) | StageHeader::Failed { .. } => {
                let coordinated = locked(&self.inner.coordinators);
                let session = coordinated.get(&key.session)?;
                (from, session.bodies.share(), body, session.hosts.longest)
            }
        };
        match self.inner.held.wait(by, bodies, bytes, longest).await {
            Ok(held) => return Some(held),
            Err(NoMemory::Ended) => {}
            Err(NoMemory::Overfull) => self.drop_session(key, is_step, NoRoom::Overfull),
            Err(NoMemory::Late) => self.drop_session(key, is_step, NoRoom::Late),
        }
        None
    }

    /// Ends a session for which there is no room. The task of a stage hears why, and tells its coordinator: nobody else would,
    /// of a host that only follows a stage.
    fn drop_session(&self, key: SessionStage, is_step: bool, reason: NoRoom) {
        tracing::debug!(session = %key.session, %reason, "a frame was dropped and its session with it");
        if !is_step {
            return drop(locked(&self.inner.coordinators).remove(&key.session));
        }
        let dropped = locked(&self.inner.stages).live.remove(&key);
        if let Some(stage) = dropped {
            *locked(&stage.ending) = Ending::Dropped(reason.fault(&stage.agreed));
        }
    }

    /// A frame that is well-formed but wrong ends its session, not the stream of the others.
    fn refuse(&self, from: NodeId, (key, is_step): (SessionStage, bool), reason: String) {
        tracing::debug!(peer = %from, reason, "a frame was refused");
        let fault = Fault::new(ErrorKind::BadFrame, format!("peer {} sent a bad frame: {reason}", from.short()));
        let SessionStage { session, epoch, stage } = key;
        let failed = Message::Failed { session, epoch, stage, fault };
        match is_step {
            // The stage's task passes it on to the coordinator.
            true => self.queue_stage(key, (from, failed), None),
            false => self.deliver(from, failed),
        }
    }
}

/// Reads a peer's frames.
struct Reader<'a> {
    links: &'a Links,
    from: NodeId,
}

impl Inlet for Reader<'_> {
    type Room = Held;

    fn admits(&self, header: &StageHeader, body: usize) -> bool {
        self.links.admits(self.from, header, body).unwrap_or_else(|reason| {
            self.links.refuse(self.from, key_of(header), reason);
            false
        })
    }

    async fn room(&self, header: &StageHeader, body: usize) -> Option<Held> {
        self.links.hold(self.from, header, body).await
    }

    fn take(&self, frame: Frame<StageHeader>, held: Held) {
        let key = key_of(&frame.header);
        match Message::decode(frame) {
            Ok(message) => self.links.queue((self.from, message), Some(held)),
            Err(error) => self.links.refuse(self.from, key, error.to_string()),
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
        StageHeader::Logits(logits) => (key(logits.session, logits.epoch, ANSWERING), false),
        StageHeader::Failed { session, epoch, stage, .. } => (key(*session, *epoch, *stage), false),
    }
}

/// Why a session has no room for a frame.
#[derive(Debug, Clone, Copy, thiserror::Error)]
enum NoRoom {
    /// More than a window of its frames is unread.
    #[error("more than a window of its frames is unread")]
    Overfull,
    /// Frames of its coordinator held all memory for long.
    #[error("its coordinator's frames held all memory for long")]
    Late,
}

impl NoRoom {
    /// What a stage's coordinator hears. Nobody waits for a stand-by, so that a slow one is overrun; who overruns a stage has not
    /// kept to the window.
    fn fault(self, agreed: &Agreed) -> Fault {
        match self {
            NoRoom::Overfull if !agreed.stands_by => {
                Fault::new(ErrorKind::BadFrame, format!("peer {} keeps to no window: {self}", agreed.previous.short()))
            }
            _ => Fault::new(ErrorKind::Overloaded, format!("no more room: {self}")),
        }
    }
}

/// Whether a queue had no room. One that is closed belongs to a session that has ended, or whose next route has another.
fn is_full<T>(sent: Result<(), mpsc::error::TrySendError<T>>) -> bool {
    matches!(sent, Err(mpsc::error::TrySendError::Full(_)))
}

/// Ends a stage that is being opened: it stays no longer.
fn end(over: &CancellationToken) -> bool {
    over.cancel();
    false
}

fn ended(session: SessionId) -> Fault {
    Fault::new(ErrorKind::Cancelled, format!("session {session} has ended before it began"))
}

fn unreachable(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::PeerUnreachable, format!("peer {} cannot be reached from here", peer.short()))
}

fn lost(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::PeerLost, format!("the link to peer {} broke", peer.short()))
}

/// The way of one session's frames to one peer, by one link from the first to the last.
pub struct Outlet {
    links: Links,
    to: Host,
    link: Option<LinkQueue>,
    /// Whether another peer has named it.
    named: bool,
}

impl Outlet {
    /// Whether the link that its frames went by has ended.
    pub fn has_ended(&self) -> bool {
        self.link.as_ref().is_some_and(LinkQueue::is_closed)
    }

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
            none => {
                if self.named {
                    self.links.reach_named(*node).await?;
                }
                let link = self.links.link(*node, addresses).await;
                none.insert(link.map_err(|fault| if self.named { unreachable(*node) } else { fault })?)
            }
        };
        link.send(message).await.map_err(|_| lost(*node))
    }
}

#[cfg(test)]
mod tests;
