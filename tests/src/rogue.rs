//! A peer that speaks the protocol and lies: the network of a node, without the node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use swarmllm_core::base::{LayerRange, ModelId, NodeId, SessionId};
use swarmllm_core::identity::Keypair;
use swarmllm_core::net::{self, Channel, Incoming, NetConfig, NetHandle, Stream};
use swarmllm_core::pipeline::control::{read_request, request, write_reply};
use swarmllm_core::pipeline::message::Message;
use swarmllm_core::rt::{EventBus, TaskSet};
use swarmllm_core::wire::announce::{Announcement, Holding};
use swarmllm_core::wire::control::{Host, OpenSession, Opened, Reply, Request, SESSION_CHANCE, session_id};
use swarmllm_core::wire::frame::{FrameLimits, encode_head, read_frame};
use swarmllm_core::wire::job::{MAX_BODY_BYTES, MAX_HEADER_BYTES, StageHeader, StepHeader};
use swarmllm_core::wire::prefix::Prefix;
use tokio::sync::mpsc;

use crate::cluster::{Carrier, Member};

/// Bounds of a stage frame, as honest nodes have them.
const LIMITS: FrameLimits = FrameLimits { header: MAX_HEADER_BYTES, body: MAX_BODY_BYTES };
/// Time between two announcements of a node that gossips.
const GOSSIP_AGAIN: Duration = Duration::from_millis(300);
/// Time after which a stream is opened again where that failed.
const OPEN_AGAIN: Duration = Duration::from_millis(50);
/// Time that a control request has.
const DEADLINE: Duration = Duration::from_secs(60);

/// See the module. Ends when dropped.
pub struct Rogue {
    /// Its network.
    pub net: NetHandle,
    /// What honest peers send to it on stage streams.
    pub received: mpsc::UnboundedReceiver<Message>,
    tasks: TaskSet,
    hushed: Arc<AtomicBool>,
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

/// The bytes that a rogue host answers to a step; empty: it says nothing.
pub type Lie = fn(&StepHeader) -> Vec<u8>;

/// What a rogue host claims to be.
#[derive(Clone)]
pub struct Claim {
    /// What it says that it holds.
    pub holding: Holding,
    /// What it says of the stage that it is asked to open.
    pub opened: Opened,
    /// What it answers to steps.
    pub lie: Lie,
}

impl Rogue {
    /// Starts one; with a claim it poses as a host.
    pub async fn start(network: &str, carrier: Carrier, claim: Option<Claim>) -> Rogue {
        let listen = vec![carrier.listen().to_owned()];
        let config = NetConfig { network: network.to_owned(), listen, mdns: false, ..NetConfig::default() };
        let (mut rogue, incoming) = Self::start_net(config).await;
        let (sender, received) = mpsc::unbounded_channel();
        rogue.received = received;
        rogue.tasks.spawn("rogue", serve(rogue.net.clone(), incoming, claim, sender, rogue.tasks.clone()));
        rogue
    }

    /// Starts one without a claim that is connected to `host`; gives the host's id too.
    pub async fn at(network: &str, host: &Member) -> (Rogue, NodeId) {
        let rogue = Self::start(network, Carrier::Tcp, None).await;
        let id = rogue.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
        (rogue, id)
    }

    async fn start_net(config: NetConfig) -> (Rogue, Incoming) {
        let tasks = TaskSet::new(tokio::runtime::Handle::current());
        let key = Keypair::generate().expect("chance");
        let (net, incoming) = net::start(config, &key, EventBus::new(), tasks.clone()).await.expect("a network");
        (Rogue { net, received: mpsc::unbounded_channel().1, tasks, hushed: Arc::default() }, incoming)
    }

    /// A node that is connected to the peer at `to` and answers nobody, so that it is known by gossip alone.
    pub async fn mute(network: &str, to: &str) -> Rogue {
        let config = NetConfig { network: network.to_owned(), listen: Vec::new(), mdns: false, ..NetConfig::default() };
        let (rogue, mut incoming) = Self::start_net(config).await;
        rogue.tasks.spawn("rogue-mute", async move { while incoming.control.recv().await.is_some() {} });
        rogue.net.dial(to).await.expect("the peer is reached");
        rogue
    }

    /// Gossips no more.
    pub fn hush(&self) {
        self.hushed.store(true, Ordering::Relaxed);
    }

    /// Gossips, each time with a higher version, until it is hushed: subscriptions travel in the background.
    pub fn gossip(&self, mut announcement: Announcement) {
        let (net, hushed) = (self.net.clone(), self.hushed.clone());
        self.tasks.spawn("rogue-gossip", async move {
            while !hushed.load(Ordering::Relaxed) && net.publish(announcement.encode().expect("short")).await.is_ok() {
                tokio::time::sleep(GOSSIP_AGAIN).await;
                announcement.version += 1;
            }
        });
    }

    /// The id of a session of its own.
    pub fn session(&self, number: u8) -> SessionId {
        session_id(self.net.local(), [number; SESSION_CHANCE])
    }

    /// What it asks of an honest host: a session over all of a model's layers, whose results come to it.
    pub fn order(&self, model: ModelId, layers: u32, session: SessionId) -> OpenSession {
        let own = Host { node: self.net.local(), addresses: self.net.addresses() };
        OpenSession {
            session,
            epoch: 0,
            model,
            engine: "llama.cpp".to_owned(),
            layers: LayerRange::new(0, layers),
            head: true,
            stage: 0,
            context: 64,
            least: 1,
            exact: true,
            prefix: Prefix::default(),
            next: own.clone(),
            copy: None,
            stands_by: false,
            previous: own.node,
            coordinator: own,
        }
    }

    /// Asks a peer as an honest node would.
    pub async fn ask(&self, peer: NodeId, ask: Request) -> Reply {
        request(&self.net, peer, &ask, DEADLINE).await.expect("the peer answers")
    }

    /// Opens so many streams to a peer and says nothing on them; whatever is closed is opened again.
    pub fn open_silent(&self, peer: NodeId, channel: Channel, count: usize) {
        for _ in 0..count {
            let net = self.net.clone();
            self.tasks.spawn("rogue-silent", async move {
                loop {
                    match net.open(peer, channel).await {
                        Ok(mut stream) => drop(stream.read(&mut [0; 64]).await),
                        Err(_) => tokio::time::sleep(OPEN_AGAIN).await,
                    }
                }
            });
        }
    }

    /// A stage stream to a peer.
    pub async fn stage_stream(&self, peer: NodeId) -> Stream {
        self.net.open(peer, Channel::Stage).await.expect("a stream is opened")
    }
}

async fn serve(
    net: NetHandle,
    mut incoming: Incoming,
    claim: Option<Claim>,
    received: mpsc::UnboundedSender<Message>,
    tasks: TaskSet,
) {
    loop {
        tokio::select! {
            Some((_, mut stream)) = incoming.control.recv() => {
                let Ok(Some(asked)) = read_request(&mut stream).await else { continue };
                let _ = write_reply(&mut stream, &reply(&net, claim.as_ref(), &asked)).await;
            }
            Some((peer, stream)) = incoming.stage.recv() => {
                let lie = claim.as_ref().map(|claim| claim.lie);
                tasks.spawn("rogue-stage", listen(net.clone(), peer, stream, lie, received.clone()));
            }
            Some(_) = incoming.shard.recv() => {}
            Some(_) = incoming.gossip.recv() => {}
            else => return,
        }
    }
}

fn reply(net: &NetHandle, claim: Option<&Claim>, asked: &Request) -> Reply {
    match (asked, claim) {
        (Request::Open(_), Some(claim)) => Reply::Opened(claim.opened.clone()),
        (Request::Hello(_), claim) => Reply::Hello(Announcement {
            version: 1,
            agent: "rogue".to_owned(),
            serves: claim.is_some(),
            free_memory: u64::MAX,
            in_use: Vec::new(),
            addresses: net.addresses(),
            round_trips: Vec::new(),
            holdings: claim.map(|claim| claim.holding.clone()).into_iter().collect(),
        }),
        _ => Reply::Released,
    }
}

/// Reads a stage stream and acknowledges its frames as an honest node does; a rogue host answers each step with its lie.
async fn listen(
    net: NetHandle,
    peer: NodeId,
    mut stream: Stream,
    lie: Option<Lie>,
    received: mpsc::UnboundedSender<Message>,
) {
    let (mut back, mut had) = (None, 0_u32);
    while let Ok(Some(frame)) = read_frame::<_, StageHeader>(&mut stream, LIMITS).await {
        if let (StageHeader::Step(step), Some(lie)) = (&frame.header, lie) {
            if back.is_none() {
                back = net.open(peer, Channel::Stage).await.ok();
            }
            let Some(back) = &mut back else { return };
            if back.write_all(&lie(step)).await.is_err() || back.flush().await.is_err() {
                return;
            }
        }
        if let Ok(message) = Message::decode(frame) {
            let _ = received.send(message);
        }
        had += 1;
        if stream.write_all(&had.to_le_bytes()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// A frame with this header and these bytes behind it, which need not fit.
pub fn frame(header: &StageHeader, body: &[u8]) -> Vec<u8> {
    let mut bytes = encode_head(header, body.len(), LIMITS).expect("within the bounds of a frame");
    bytes.extend_from_slice(body);
    bytes
}
