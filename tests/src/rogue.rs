//! A peer that speaks the protocol and lies: the network of a node, without the node.

use std::time::Duration;

use futures::AsyncWriteExt;
use swarmllm_core::base::NodeId;
use swarmllm_core::identity::Keypair;
use swarmllm_core::net::{self, Channel, Incoming, NetConfig, NetHandle, Stream};
use swarmllm_core::pipeline::control::{read_request, request, write_reply};
use swarmllm_core::pipeline::message::Message;
use swarmllm_core::rt::{EventBus, TaskSet};
use swarmllm_core::wire::announce::{Announcement, Holding};
use swarmllm_core::wire::control::{Opened, Reply, Request};
use swarmllm_core::wire::frame::{FrameLimits, encode_head, read_frame};
use swarmllm_core::wire::job::{MAX_BODY_BYTES, MAX_HEADER_BYTES, StageHeader, StepHeader};
use tokio::sync::mpsc;

use crate::cluster::Carrier;

/// Bounds of a stage frame, as honest nodes have them.
const LIMITS: FrameLimits = FrameLimits { header: MAX_HEADER_BYTES, body: MAX_BODY_BYTES };
/// Time that a control request has.
const DEADLINE: Duration = Duration::from_secs(60);

/// See the module. Ends when dropped.
pub struct Rogue {
    /// Its network.
    pub net: NetHandle,
    /// What honest peers send to it on stage streams.
    pub received: mpsc::UnboundedReceiver<Message>,
    tasks: TaskSet,
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
        let tasks = TaskSet::new(tokio::runtime::Handle::current());
        let key = Keypair::generate().expect("chance");
        let (net, incoming) = net::start(config, &key, EventBus::new(), tasks.clone()).await.expect("a network");
        let (sender, received) = mpsc::unbounded_channel();
        tasks.spawn("rogue", serve(net.clone(), incoming, claim, sender, tasks.clone()));
        Rogue { net, received, tasks }
    }

    /// Asks a peer as an honest node would.
    pub async fn ask(&self, peer: NodeId, ask: Request) -> Reply {
        request(&self.net, peer, &ask, DEADLINE).await.expect("the peer answers")
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

/// Reads a stage stream; a rogue host answers each step with its lie.
async fn listen(
    net: NetHandle,
    peer: NodeId,
    mut stream: Stream,
    lie: Option<Lie>,
    received: mpsc::UnboundedSender<Message>,
) {
    let mut back = None;
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
    }
}

/// A frame with this header and these bytes behind it, which need not fit.
pub fn frame(header: &StageHeader, body: &[u8]) -> Vec<u8> {
    let mut bytes = encode_head(header, body.len(), LIMITS).expect("within the bounds of a frame");
    bytes.extend_from_slice(body);
    bytes
}
