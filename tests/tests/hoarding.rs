//! A coordinator that holds idle slots and memory cannot starve others.

use std::time::Duration;

use futures::AsyncWriteExt;
use swarmllm_core::base::{ErrorKind, LayerRange, ModelId, NodeId, SessionId};
use swarmllm_core::net::{NetHandle, Stream};
use swarmllm_core::node::{GenerateError, Parts};
use swarmllm_core::pipeline::link::message::Message;
use swarmllm_core::pipeline::link::request::request;
use swarmllm_core::wire::codec::Codec;
use swarmllm_core::wire::control::{Reply, Request};
use swarmllm_core::wire::job::{RowOutput, StageHeader, StepHeader};
use swarmllm_tests::cluster::{Member, THREADS, Transport, answer, await_plan, builder, join, unique_network};
use swarmllm_tests::in_time;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::reference::ReferenceModel;
use swarmllm_tests::rogue::{Rogue, frame};
use tempfile::TempDir;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
/// Width of the model's hidden states.
const WIDTH: u32 = 576;
/// Tokens of an answer.
const TOKENS: u32 = 16;
/// Deadline of a request.
const DEADLINE: Duration = Duration::from_secs(60);
/// Interval of the rogue's probes, which keep its sessions alive.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Context length with little memory: the text and its answer.
const CONTEXT: u32 = 256;

fn expected() -> Vec<u32> {
    let whole = ReferenceModel::load(&MODEL.path(), THREADS);
    whole.greedy(&whole.tokenize(TEXT), TOKENS)
}

/// A coordinator without layers, connected to a host.
async fn asker_of(network: &str, host: &Member, model: ModelId) -> Member {
    let asker = Member::start(network, Transport::Tcp).await;
    asker.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    join(&asker.node, &host.node.addresses(), Transport::Tcp).await;
    await_plan(&asker.node, model).await;
    asker
}

/// Opens a rogue session for these layers at a host and computes one step; `None` if the host has no memory.
async fn begin(
    rogue: &mut Rogue,
    host: NodeId,
    stream: &mut Stream,
    model: ModelId,
    layers: LayerRange,
    number: u8,
) -> Option<SessionId> {
    let session = rogue.session(number);
    let mut open = rogue.open_request(model, MODEL.layers(), session);
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
        want: RowOutput::Top { k: 1 },
        committed: 1,
        compute_us: Vec::new(),
    };
    stream.write_all(&frame(&StageHeader::Step(header), &[0; 4 * WIDTH as usize])).await.expect("the stream is open");
    stream.flush().await.expect("the stream is open");
    let computed = in_time("a computed step", rogue.received.recv()).await;
    assert!(matches!(computed, Some(Message::Logits { .. } | Message::Step { .. })), "{computed:?}");
    Some(session)
}

/// Number of a rogue's sessions that a host still serves.
async fn served(net: &NetHandle, host: NodeId, sessions: &[SessionId]) -> usize {
    let mut count = 0;
    for session in sessions {
        let alive = Request::Alive { session: *session, epoch: 0, stage: 0 };
        let reply = request(net, host, &alive, DEADLINE).await;
        count += usize::from(matches!(reply, Ok(Reply::Alive { serves: true })));
    }
    count
}

/// Probes all sessions of a rogue repeatedly, as if their answers were late.
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
async fn an_idle_session_yields_its_slot_to_another_coordinator() {
    const SLOTS: u8 = 4;
    let network = unique_network();
    let host = Member::start(&network, Transport::Tcp).await;
    let model = host.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    let asker = asker_of(&network, &host, model).await;
    let mut rogue = Rogue::start(&network, Transport::Tcp, None).await;
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
    assert_eq!(left, usize::from(SLOTS) - 1, "it keeps unneeded slots");
    let failure = in_time("a failure message", rogue.received.recv()).await;
    assert!(
        matches!(&failure, Some(Message::Failed { fault, .. }) if fault.kind() == ErrorKind::Overloaded),
        "{failure:?}"
    );
    keeping.abort();
    for member in [asker, host] {
        member.stop().await;
    }
}

/// A host with this memory budget in bytes.
async fn host_with_memory(dir: TempDir, network: &str, memory: u64) -> Member {
    let node = builder(dir.path(), network, Transport::Tcp).context(CONTEXT).memory(memory).start().await;
    Member { node: node.expect("a node starts"), dir }
}

/// Memory of a stage of the whole model in bytes, with the directory of a host of it.
async fn measured() -> (TempDir, ModelId, u64) {
    let network = unique_network();
    let host = host_with_memory(TempDir::new().expect("a directory"), &network, u64::MAX).await;
    let model = host.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    answer(&host.node, model, TEXT, 1).await.expect("it answers itself");
    let bytes = host.node.status().memory_used;
    (host.stop().await, model, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_sessions_yield_memory_beyond_their_coordinators_share() {
    let network = unique_network();
    let (dir, model, whole) = measured().await;
    let budget = whole * 11 / 5;
    let host = host_with_memory(dir, &network, budget).await;
    let asker = asker_of(&network, &host, model).await;
    let mut rogue = Rogue::start(&network, Transport::Tcp, None).await;
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
