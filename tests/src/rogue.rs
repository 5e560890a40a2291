//! A malicious peer that follows the protocol with false content: the network of a node without the node.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};
use swarmllm_core::base::{LayerRange, ModelId, NodeId, SessionId};
use swarmllm_core::identity::Keypair;
use swarmllm_core::net::{self, Channel, Incoming, NetConfig, NetHandle, Stream};
use swarmllm_core::pipeline::link::message::Message;
use swarmllm_core::pipeline::link::request::{read_request, request, write_reply};
use swarmllm_core::rt::{EventBus, TaskSet};
use swarmllm_core::wire::announce::{Announcement, Holding};
use swarmllm_core::wire::control::{Host, OpenSession, Opened, Reply, Request, SESSION_NONCE_BYTES, session_id};
use swarmllm_core::wire::frame::{FrameLimits, encode_head, read_frame};
use swarmllm_core::wire::job::{MAX_BODY_BYTES, MAX_HEADER_BYTES, StageHeader, StepHeader};
use swarmllm_core::wire::prefix::Prefix;
use tokio::sync::mpsc;

use crate::cluster::{Member, Transport};

/// Limits of a stage frame, as in honest nodes.
const LIMITS: FrameLimits = FrameLimits { header: MAX_HEADER_BYTES, body: MAX_BODY_BYTES };
/// Interval of gossip announcements.
const GOSSIP_AGAIN: Duration = Duration::from_millis(300);
/// Delay before a failed open of a stream is repeated.
const OPEN_AGAIN: Duration = Duration::from_millis(50);
/// Deadline of a control request.
const DEADLINE: Duration = Duration::from_secs(60);

/// A malicious peer, see the module. Ends on drop.
pub struct Rogue {
    /// Its network.
    pub net: NetHandle,
    /// Messages from honest peers on stage streams.
    pub received: mpsc::UnboundedReceiver<Message>,
    tasks: TaskSet,
    gossip_stopped: Arc<AtomicBool>,
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.tasks.abort();
    }
}

/// Builds the bytes of a forged reply to a step; empty for no reply.
pub type ForgedReply = fn(&StepHeader) -> Vec<u8>;

/// The claims of a rogue host.
#[derive(Clone)]
pub struct Claim {
    /// Its claimed shards.
    pub holding: Holding,
    /// Its reply to an open request.
    pub opened: Opened,
    /// Its replies to steps.
    pub forge: ForgedReply,
}

impl Rogue {
    /// Starts a rogue; with a claim it acts as a host.
    pub async fn start(network: &str, transport: Transport, claim: Option<Claim>) -> Rogue {
        let listen = vec![transport.listen().to_owned()];
        let config = NetConfig { network: network.to_owned(), listen, mdns: false, ..NetConfig::default() };
        let (mut rogue, incoming) = Self::start_net(config).await;
        let (sender, received) = mpsc::unbounded_channel();
        rogue.received = received;
        rogue.tasks.spawn("rogue", serve(rogue.net.clone(), incoming, claim, sender, rogue.tasks.clone()));
        rogue
    }

    /// Starts a rogue without a claim and connects it to `host`; also returns the host's id.
    pub async fn connected_to(network: &str, host: &Member) -> (Rogue, NodeId) {
        let rogue = Self::start(network, Transport::Tcp, None).await;
        let id = rogue.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
        (rogue, id)
    }

    async fn start_net(config: NetConfig) -> (Rogue, Incoming) {
        let tasks = TaskSet::new(tokio::runtime::Handle::current());
        let key = Keypair::generate().expect("chance");
        let (net, incoming) = net::start(config, &key, EventBus::new(), tasks.clone()).await.expect("a network");
        (Rogue { net, received: mpsc::unbounded_channel().1, tasks, gossip_stopped: Arc::default() }, incoming)
    }

    /// A node connected to the peer at `to` that answers no requests, so that it is known through gossip only.
    pub async fn gossip_only(network: &str, to: &str) -> Rogue {
        let config = NetConfig { network: network.to_owned(), listen: Vec::new(), mdns: false, ..NetConfig::default() };
        let (rogue, mut incoming) = Self::start_net(config).await;
        rogue.tasks.spawn("rogue-mute", async move { while incoming.control.recv().await.is_some() {} });
        rogue.net.dial(to).await.expect("the peer is reached");
        rogue
    }

    /// Stops the gossip.
    pub fn stop_gossip(&self) {
        self.gossip_stopped.store(true, Ordering::Relaxed);
    }

    /// Gossips with increasing versions until stopped: subscriptions propagate in the background.
    pub fn gossip(&self, mut announcement: Announcement) {
        let (net, gossip_stopped) = (self.net.clone(), self.gossip_stopped.clone());
        self.tasks.spawn("rogue-gossip", async move {
            while !gossip_stopped.load(Ordering::Relaxed)
                && net.publish(announcement.encode().expect("short")).await.is_ok()
            {
                tokio::time::sleep(GOSSIP_AGAIN).await;
                announcement.version += 1;
            }
        });
    }

    /// The id of a session of this node.
    pub fn session(&self, number: u8) -> SessionId {
        session_id(self.net.local(), [number; SESSION_NONCE_BYTES])
    }

    /// An open request for all layers of a model, with results sent to this node.
    pub fn open_request(&self, model: ModelId, layers: u32, session: SessionId) -> OpenSession {
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
            is_standby: false,
            previous: own.node,
            coordinator: own,
        }
    }

    /// Sends a valid control request.
    pub async fn ask(&self, peer: NodeId, ask: Request) -> Reply {
        request(&self.net, peer, &ask, DEADLINE).await.expect("the peer answers")
    }

    /// Opens `count` streams to a peer without sending anything; reopens closed ones.
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

    /// Opens a stage stream to a peer.
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
                let forge = claim.as_ref().map(|claim| claim.forge);
                tasks.spawn("rogue-stage", listen(net.clone(), peer, stream, forge, received.clone()));
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

/// Reads and acknowledges the frames of a stage stream; a rogue host answers each step with its forged reply.
async fn listen(
    net: NetHandle,
    peer: NodeId,
    mut stream: Stream,
    forge: Option<ForgedReply>,
    received: mpsc::UnboundedSender<Message>,
) {
    let (mut back, mut read_count) = (None, 0_u32);
    while let Ok(Some(frame)) = read_frame::<_, StageHeader>(&mut stream, LIMITS).await {
        if let (StageHeader::Step(step), Some(forge)) = (&frame.header, forge) {
            if back.is_none() {
                back = net.open(peer, Channel::Stage).await.ok();
            }
            let Some(back) = &mut back else { return };
            if back.write_all(&forge(step)).await.is_err() || back.flush().await.is_err() {
                return;
            }
        }
        if let Ok(message) = Message::decode(frame) {
            let _ = received.send(message);
        }
        read_count += 1;
        if stream.write_all(&read_count.to_le_bytes()).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// A frame with this header and any body, valid or not.
pub fn frame(header: &StageHeader, body: &[u8]) -> Vec<u8> {
    let mut bytes = encode_head(header, body.len(), LIMITS).expect("within the limits of a frame");
    bytes.extend_from_slice(body);
    bytes
}
