//! A coordinator that keeps slots and memory without using them leaves others what they need.

use std::time::Duration;

use futures::AsyncWriteExt;
use swarmllm_core::base::{ErrorKind, LayerRange, ModelId, NodeId, SessionId};
use swarmllm_core::net::{NetHandle, Stream};
use swarmllm_core::node::{GenerateError, Parts};
use swarmllm_core::pipeline::control::request;
use swarmllm_core::pipeline::message::Message;
use swarmllm_core::wire::codec::Codec;
use swarmllm_core::wire::control::{Reply, Request};
use swarmllm_core::wire::job::{StageHeader, StepHeader, Want};
use swarmllm_tests::cluster::{Carrier, Member, THREADS, answer, await_plan, builder, join, lonely_network};
use swarmllm_tests::in_time;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::rogue::{Rogue, frame};
use swarmllm_tests::whole::Whole;
use tempfile::TempDir;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
/// As in the model.
const WIDTH: u32 = 576;
/// Tokens of an answer.
const TOKENS: u32 = 16;
/// Time that a request has.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often the rogue asks for its sessions, so that they are kept.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Positions of a session where memory is short: the text and its answer.
const CONTEXT: u32 = 256;

fn expected() -> Vec<u32> {
    let whole = Whole::load(&MODEL.path(), THREADS);
    whole.greedy(&whole.tokenize(TEXT), TOKENS)
}

/// A node that can only ask, and the host that it asks.
async fn asker_of(network: &str, host: &Member, model: ModelId) -> Member {
    let asker = Member::start(network, Carrier::Tcp).await;
    asker.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    join(&asker.node, &host.node.addresses(), Carrier::Tcp).await;
    await_plan(&asker.node, model).await;
    asker
}

/// A session of a rogue for these layers at a host, with one step computed; nothing where the host has no memory for it.
async fn begin(
    rogue: &mut Rogue,
    host: NodeId,
    stream: &mut Stream,
    model: ModelId,
    layers: LayerRange,
    number: u8,
) -> Option<SessionId> {
    let session = rogue.session(number);
    let mut open = rogue.order(model, MODEL.layers(), session);
    (open.layers, open.head) = (layers, layers.end == MODEL.layers());
    match request(&rogue.net, host, &Request::Open(open), DEADLINE).await {
        Ok(Reply::Opened(_)) => {}
        Err(fault) if fault.kind() == ErrorKind::OutOfMemory => return None,
        other => panic!("an honest host opens a session for anyone: {other:?}"),
    }
    let header = StepHeader {
        session,
        epoch: 0,
        stage: 0,
        step: 0,
        pos: 0,
        rows: 1,
        width: WIDTH,
        codec: Codec::F32,
        want_from: 0,
        want: Want::Top { k: 1 },
        certain: 1,
        compute_us: Vec::new(),
    };
    stream.write_all(&frame(&StageHeader::Step(header), &[0; 4 * WIDTH as usize])).await.expect("the stream is open");
    stream.flush().await.expect("the stream is open");
    let computed = in_time("what is computed", rogue.received.recv()).await;
    assert!(matches!(computed, Some(Message::Logits { .. } | Message::Step { .. })), "{computed:?}");
    Some(session)
}

/// How many of a rogue's sessions a host serves.
async fn served(net: &NetHandle, host: NodeId, sessions: &[SessionId]) -> usize {
    let mut count = 0;
    for session in sessions {
        let alive = Request::Alive { session: *session, epoch: 0, stage: 0 };
        let reply = request(net, host, &alive, DEADLINE).await;
        count += usize::from(matches!(reply, Ok(Reply::Alive { serves: true })));
    }
    count
}

/// Asks for all of a rogue's sessions again and again, as if their answers were late.
fn keep(rogue: &Rogue, host: NodeId, sessions: &[SessionId]) -> tokio::task::JoinHandle<()> {
    let (net, sessions) = (rogue.net.clone(), sessions.to_vec());
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(KEEP_ALIVE).await;
            served(&net, host, &sessions).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_idle_sessions_have_every_slot_loses_one_to_another() {
    const SLOTS: u8 = 4;
    let network = lonely_network();
    let host = Member::start(&network, Carrier::Tcp).await;
    let model = host.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    let asker = asker_of(&network, &host, model).await;
    let mut rogue = Rogue::start(&network, Carrier::Tcp, None).await;
    let id = rogue.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
    let (mut stream, mut sessions) = (rogue.stage_stream(id).await, Vec::new());
    for number in 1..=SLOTS {
        let whole = LayerRange::new(0, MODEL.layers());
        sessions.extend(begin(&mut rogue, id, &mut stream, model, whole, number).await);
    }
    let keeping = keep(&rogue, id, &sessions);
    assert_eq!(served(&rogue.net, id, &sessions).await, usize::from(SLOTS), "all slots of the stage are taken");
    let completion = answer(&asker.node, model, TEXT, TOKENS).await.expect("the host answers");
    assert_eq!(completion.tokens, expected());
    let left = served(&rogue.net, id, &sessions).await;
    assert_eq!(left, usize::from(SLOTS) - 1, "it keeps what nobody else wants");
    let told = in_time("what it is told", rogue.received.recv()).await;
    assert!(matches!(&told, Some(Message::Failed { fault, .. }) if fault.kind() == ErrorKind::Overloaded), "{told:?}");
    keeping.abort();
    for member in [asker, host] {
        member.stop().await;
    }
}

/// A host with memory for so many bytes of stages.
async fn host_with_memory(dir: TempDir, network: &str, memory: u64) -> Member {
    let node = builder(dir.path(), network, Carrier::Tcp).context(CONTEXT).memory(memory).start().await;
    Member { node: node.expect("a node starts"), dir }
}

/// Bytes of a stage of the whole model, with the directory of a host that has it.
async fn measured() -> (TempDir, ModelId, u64) {
    let network = lonely_network();
    let host = host_with_memory(TempDir::new().expect("a directory"), &network, u64::MAX).await;
    let model = host.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    answer(&host.node, model, TEXT, 1).await.expect("it answers itself");
    let bytes = host.node.status().memory_used;
    (host.stop().await, model, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_whose_idle_sessions_have_all_memory_loses_what_is_beyond_its_share() {
    let network = lonely_network();
    let (dir, model, whole) = measured().await;
    let budget = whole * 11 / 5;
    let host = host_with_memory(dir, &network, budget).await;
    let asker = asker_of(&network, &host, model).await;
    let mut rogue = Rogue::start(&network, Carrier::Tcp, None).await;
    let id = rogue.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
    let (mut stream, mut sessions) = (rogue.stage_stream(id).await, Vec::new());
    for len in [14, 4, 1] {
        for start in 0..MODEL.layers() - len {
            let (layers, number) = (LayerRange::new(start, start + len), sessions.len() as u8 + 1);
            let Some(session) = begin(&mut rogue, id, &mut stream, model, layers, number).await else { break };
            sessions.push(session);
        }
    }
    let keeping = keep(&rogue, id, &sessions);
    let (used, count) = (host.node.status().memory_used, sessions.len());
    assert!(used + whole / 2 > budget && count > 3, "{count} stages have {used} bytes of {budget}");
    let completion = in_time("an answer", async {
        loop {
            match answer(&asker.node, model, TEXT, TOKENS).await {
                Ok(completion) => return completion,
                Err(GenerateError::Interrupted { cause, .. }) => panic!("it ended before its end: {cause}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    });
    assert_eq!(completion.await.tokens, expected());
    let left = served(&rogue.net, id, &sessions).await;
    assert!((1..count).contains(&left), "{left} of {count} stages are left: a share is kept");
    keeping.abort();
    for member in [asker, host] {
        member.stop().await;
    }
}
