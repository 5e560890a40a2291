//! A malicious peer can only fail answers that it takes part in, with a typed error.

use std::time::{Duration, Instant};

use futures::AsyncWriteExt;
use swarmllm_core::base::{ErrorKind, Fault, LayerRange, ModelId, NodeId, SessionId};
use swarmllm_core::net::{Channel, Stream};
use swarmllm_core::node::{Delta, GenerateOptions, GenerateRequest, ImportOptions, Node, Parts, Prompt};
use swarmllm_core::pipeline::link::message::Message;
use swarmllm_core::pipeline::link::request::request;
use swarmllm_core::wire::announce::{Announcement, Holding};
use swarmllm_core::wire::codec::Codec;
use swarmllm_core::wire::control::{Host, Opened, Reply, Request};
use swarmllm_core::wire::frame::{FrameLimits, encode_head};
use swarmllm_core::wire::job::{LogitShape, LogitsHeader, RowOutput, StageHeader, StepHeader};
use swarmllm_core::wire::prefix::Prefix;
use swarmllm_tests::cluster::{
    Member, THREADS, Transport, answer, await_plan, greedy, host_and_coordinator, join, stop_all, unique_network,
};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::reference::ReferenceModel;
use swarmllm_tests::rogue::{Claim, ForgedReply, Rogue, frame};
use swarmllm_tests::{eventually, in_time};
use tokio::net::TcpListener;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
/// Width of the model's hidden states.
const WIDTH: u32 = 576;
const VOCAB: u32 = 49_152;
/// First layer of the rogue.
const HALF: u32 = 15;

fn expected(tokens: u32) -> Vec<u32> {
    let whole = ReferenceModel::load(&MODEL.path(), THREADS);
    whole.greedy(&whole.tokenize(TEXT), tokens)
}

/// The first step of a session: one row.
fn first_step(session: SessionId) -> StepHeader {
    StepHeader {
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
    }
}

/// The hidden state of a row.
fn one_row() -> Vec<u8> {
    vec![0; 4 * WIDTH as usize]
}

async fn write(stream: &mut Stream, bytes: &[u8]) {
    stream.write_all(bytes).await.expect("the stream is open");
    stream.flush().await.expect("the stream is open");
}

fn logits(step: &StepHeader, rows: u32, shape: LogitShape) -> StageHeader {
    StageHeader::Logits(LogitsHeader {
        session: step.session,
        epoch: step.epoch,
        step: step.step,
        rows,
        shape,
        compute_us: Vec::new(),
    })
}

/// A row with the largest logit: log-sum-exp, token, logit.
fn row(token: u32, logit: f32) -> Vec<u8> {
    [1.0_f32.to_le_bytes(), token.to_le_bytes(), logit.to_le_bytes()].concat()
}

const TOP: LogitShape = LogitShape::Top { k: 1 };

fn not_a_number(step: &StepHeader) -> Vec<u8> {
    frame(&logits(step, 1, TOP), &row(1, f32::NAN))
}

fn an_invalid_token(step: &StepHeader) -> Vec<u8> {
    frame(&logits(step, 1, TOP), &row(VOCAB, 0.5))
}

fn two_rows_for_one(step: &StepHeader) -> Vec<u8> {
    frame(&logits(step, 2, TOP), &[row(1, 0.5), row(2, 0.5)].concat())
}

fn a_short_body(step: &StepHeader) -> Vec<u8> {
    frame(&logits(step, 1, TOP), &row(1, 0.5)[..7])
}

fn a_shape_that_overflows(step: &StepHeader) -> Vec<u8> {
    frame(&logits(step, u32::MAX, LogitShape::Full { vocab: u32::MAX }), &row(1, 0.5))
}

fn another_step(step: &StepHeader) -> Vec<u8> {
    let later = StepHeader { step: step.step + 1, ..step.clone() };
    frame(&logits(&later, 1, TOP), &row(1, 0.5))
}

fn a_flood(step: &StepHeader) -> Vec<u8> {
    frame(&logits(step, 1, TOP), &row(1, 0.5)).repeat(200)
}

fn an_announced_body_of_four_gib(_: &StepHeader) -> Vec<u8> {
    [8_u32.to_le_bytes(), u32::MAX.to_le_bytes()].concat()
}

fn silence(_: &StepHeader) -> Vec<u8> {
    Vec::new()
}

fn claim(model: ModelId, forge: ForgedReply, opened: Opened) -> Claim {
    let layers = vec![LayerRange::new(HALF, MODEL.layers())];
    let names = vec![MODEL.name().to_owned()];
    Claim { holding: Holding { model, names, layers, metadata: false, embedding: false, head: true }, opened, forge }
}

fn honest_opened() -> Opened {
    Opened { width: WIDTH, vocab: Some(VOCAB), max_rows: 512, cached: 0, context: 2048, load_ms: 0 }
}

/// A coordinator with the first half of the layers.
async fn half_a_node(network: &str) -> (Member, ModelId) {
    let member = Member::start(network, Transport::Tcp).await;
    let parts = vec![Parts::Coordinator, Parts::Stage { layers: LayerRange::new(0, HALF), head: false }];
    let options = ImportOptions { name: Some(MODEL.name().to_owned()), parts: Some(parts), ..ImportOptions::default() };
    let info = member.node.import(&MODEL.path(), options).await.expect("the model is imported");
    (member, info.id)
}

async fn ask(node: &Node, model: ModelId, deadline: Duration) -> ErrorKind {
    let options = GenerateOptions { deadline: Some(deadline), ..greedy(16) };
    let request = GenerateRequest { model: model.to_string(), prompt: Prompt::Text(TEXT.to_owned()), options };
    let outcome = in_time("an answer", async { node.generate(request).await?.finish().await }).await;
    let error = outcome.expect_err("a forged reply is not an answer");
    assert!(!error.to_string().is_empty(), "an error has a text");
    error.kind()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_last_stage_yields_a_typed_error() {
    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_secs(1);
    let network = unique_network();
    let (member, model) = half_a_node(&network).await;
    let other_width = Opened { width: WIDTH + 1, ..honest_opened() };
    let headless = Opened { vocab: None, ..honest_opened() };
    let lies: [(&str, ForgedReply, Opened, Duration, ErrorKind); 11] = [
        ("NaN", not_a_number, honest_opened(), LONG, ErrorKind::BadFrame),
        ("a foreign token", an_invalid_token, honest_opened(), LONG, ErrorKind::BadFrame),
        ("two rows", two_rows_for_one, honest_opened(), LONG, ErrorKind::BadFrame),
        ("a short body", a_short_body, honest_opened(), LONG, ErrorKind::BadFrame),
        ("a shape that overflows", a_shape_that_overflows, honest_opened(), LONG, ErrorKind::BadFrame),
        ("another step", another_step, honest_opened(), LONG, ErrorKind::BadFrame),
        ("a flood", a_flood, honest_opened(), LONG, ErrorKind::BadFrame),
        ("4 GiB", an_announced_body_of_four_gib, honest_opened(), SHORT, ErrorKind::Timeout),
        ("silence", silence, honest_opened(), SHORT, ErrorKind::Timeout),
        ("another width", silence, other_width, LONG, ErrorKind::BadFrame),
        ("no head", silence, headless, LONG, ErrorKind::BadFrame),
    ];
    for (what, lie, opened, deadline, kind) in lies {
        let rogue = Rogue::start(&network, Transport::Tcp, Some(claim(model, lie, opened))).await;
        join(&member.node, &rogue.net.addresses(), Transport::Tcp).await;
        await_plan(&member.node, model).await;
        assert_eq!(ask(&member.node, model, deadline).await, kind, "{what}");
        eventually("no session is left", || member.node.status().sessions == 0).await;
        // A flood starts with a valid answer.
        let owed = member.node.balances().into_iter().find(|balance| balance.peer == rogue.net.local());
        let nothing = owed.is_none_or(|balance| (balance.spent, balance.unsigned_spent) == (0, 0));
        assert!(nothing || what == "a flood", "{what} was paid for");
        rogue.net.shutdown().await;
        eventually("the rogue host is gone", || member.node.status().peers_connected == 0).await;
    }
    let honest = Member::stage_host(&network, MODEL, LayerRange::new(HALF, MODEL.layers()), &member).await;
    await_plan(&member.node, model).await;
    let completion = answer(&member.node, model, TEXT, 16).await.expect("the honest peer answers");
    assert_eq!(completion.tokens, expected(16));
    stop_all([honest, member]).await;
}

/// A rogue that claims all layers: planned first, since that is a single stage.
async fn rogue_with_all_layers(network: &str, asker: &Member, model: ModelId, forge: ForgedReply) -> Rogue {
    let mut claim = claim(model, forge, honest_opened());
    claim.holding.layers = vec![LayerRange::new(0, MODEL.layers())];
    let rogue = Rogue::start(network, Transport::Tcp, Some(claim)).await;
    join(&asker.node, &rogue.net.addresses(), Transport::Tcp).await;
    in_time("the rogue host's claim", async {
        while asker.node.plan(&model.to_string()).await.expect("a plan").stages[0].node != rogue.net.local() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    rogue
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_forged_a_reply_is_avoided() {
    let network = unique_network();
    let (member, model) = half_a_node(&network).await;
    let honest = Member::stage_host(&network, MODEL, LayerRange::new(HALF, MODEL.layers()), &member).await;
    await_plan(&member.node, model).await;
    let lies: [(&str, ForgedReply); 4] = [
        ("NaN", not_a_number),
        ("a foreign token", an_invalid_token),
        ("two rows", two_rows_for_one),
        ("a flood", a_flood),
    ];
    for (what, lie) in lies {
        let rogue = rogue_with_all_layers(&network, &member, model, lie).await;
        let completion = answer(&member.node, model, TEXT, 16).await;
        let completion = completion.unwrap_or_else(|error| panic!("{what}: {error}"));
        // The start of a flood is a valid answer; the rest is discarded.
        let right = completion.tokens == expected(16) || what == "a flood";
        assert!(right && completion.completion_tokens == 16, "{what}: {:?}", completion.tokens);
        rogue.net.shutdown().await;
        eventually("the rogue host is gone", || member.node.status().peers_connected == 1).await;
    }
    stop_all([honest, member]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_failed_to_open_is_the_last_choice() {
    let network = unique_network();
    let (host, asker, model) = host_and_coordinator(&network, MODEL).await;
    let mut claim = claim(model, silence, Opened { width: WIDTH + 1, ..honest_opened() });
    claim.holding.layers = vec![LayerRange::new(0, MODEL.layers())];
    let rogue_host = Rogue::start(&network, Transport::Tcp, Some(claim)).await;
    join(&asker.node, &rogue_host.net.addresses(), Transport::Tcp).await;
    await_holding(&asker, rogue_host.net.local()).await;
    let first = async || asker.node.plan(&model.to_string()).await.map(|plan| plan.stages[0].node);
    // Of two equal hosts, a measured speed could favour the honest one: it is not used until the other has failed.
    host.stop().await;
    eventually("the honest host is gone", || asker.node.status().peers_connected == 1).await;
    assert_eq!(first().await.expect("a plan"), rogue_host.net.local());
    let refused = answer(&asker.node, model, TEXT, 4).await.expect_err("it opens another stage than was asked for");
    assert_eq!(refused.kind(), ErrorKind::BadFrame);
    assert_eq!(first().await.expect("a plan"), rogue_host.net.local(), "the only host");
    let (honest, _) = Member::host(&network, MODEL).await;
    join(&asker.node, &honest.node.addresses(), Transport::Tcp).await;
    await_holding(&asker, honest.node.id()).await;
    assert_eq!(first().await.expect("a plan"), honest.node.id());
    println!("an answer took {:?} beside a host that did not open before", timed(&asker, model).await);
    stop_all([asker, honest]).await;
}

/// Milliseconds since 1970.
fn millis() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis() as u64
}

/// The announcement of a fake node with the best claims for a plan, and with a model of its own that shows its reception.
fn fake(model: ModelId, number: u8, address: &str) -> Announcement {
    let whole = vec![LayerRange::new(0, MODEL.layers())];
    let holding = |model, name: String| Holding {
        model,
        names: vec![name],
        layers: whole.clone(),
        metadata: true,
        embedding: true,
        head: true,
    };
    Announcement {
        // One minute ahead.
        version: millis() + 60_000,
        agent: "made up".to_owned(),
        serves: true,
        free_memory: u64::MAX,
        in_use: Vec::new(),
        addresses: vec![address.to_owned()],
        round_trips: Vec::new(),
        holdings: vec![
            holding(model, MODEL.name().to_owned()),
            holding(ModelId([number; 32]), format!("made up {number}")),
        ],
    }
}

/// Fake nodes that claim the whole model, at an address that accepts connections silently.
struct FakeNodes {
    nodes: Vec<Rogue>,
    deaf: TcpListener,
}

impl FakeNodes {
    /// Announces `count` fake nodes through `by` until `heard_by` knows all of them.
    async fn announce(network: &str, model: ModelId, count: u8, by: &Member, heard_by: &Member) -> FakeNodes {
        let deaf = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("/ip4/127.0.0.1/tcp/{}", deaf.local_addr().expect("bound").port());
        let to = by.node.addresses().remove(0);
        let nodes = (1..=count).map(|number| {
            let (to, announcement) = (&to, fake(model, number, &address));
            async move {
                let node = Rogue::gossip_only(network, to).await;
                node.gossip(announcement);
                node
            }
        });
        let nodes = futures::future::join_all(nodes).await;
        await_fake(heard_by, count.into()).await;
        // Stop announcing before the measurement.
        nodes.iter().for_each(Rogue::stop_gossip);
        FakeNodes { nodes, deaf }
    }

    /// Runs `until`; returns its result and the number of dials to the fake nodes meanwhile.
    async fn dialled<T>(&self, until: impl Future<Output = T>) -> (usize, T) {
        let (mut dialled, mut taken) = (0, Vec::new());
        tokio::pin!(until);
        loop {
            tokio::select! {
                done = &mut until => return (dialled, done),
                came = self.deaf.accept() => {
                    dialled += 1;
                    taken.push(came);
                }
            }
        }
    }
}

async fn await_fake(member: &Member, count: usize) {
    let heard = || member.node.models().iter().filter(|info| info.name.starts_with("made up")).count();
    eventually("all are heard of", || heard() == count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fake_nodes_known_only_by_gossip_are_in_no_plan() {
    const FAKES: u8 = 60;
    let network = unique_network();
    let asker = Member::start(&network, Transport::Tcp).await;
    let model = asker.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    let hosts = [
        Member::stage_host(&network, MODEL, LayerRange::new(0, HALF), &asker).await,
        Member::stage_host(&network, MODEL, LayerRange::new(HALF, MODEL.layers()), &asker).await,
    ];
    await_plan(&asker.node, model).await;
    let ids = hosts.each_ref().map(|host| host.node.id());
    let timed = async || {
        let begun = Instant::now();
        let completion = answer(&asker.node, model, TEXT, 16).await.expect("the hosts answer");
        assert_eq!(completion.tokens, expected(16));
        assert_eq!(completion.route.iter().map(|stage| stage.node).collect::<Vec<_>>(), ids);
        begun.elapsed()
    };
    timed().await;
    let before = median(&timed).await;
    let fakes = FakeNodes::announce(&network, model, FAKES, &hosts[0], &asker).await;
    let plan = asker.node.plan(&model.to_string()).await.expect("a plan");
    assert_eq!(plan.stages.iter().map(|stage| stage.node).collect::<Vec<_>>(), ids);
    let (dialled, beside) = fakes.dialled(median(&timed)).await;
    for node in fakes.nodes {
        node.net.shutdown().await;
    }
    let after = median(&timed).await;
    println!("an answer took {before:?}, {beside:?} beside {FAKES} made-up nodes ({dialled} dials), {after:?} after");
    stop_all(hosts.into_iter().chain([asker])).await;
}

/// The median time of five answers.
async fn median(timed: &impl AsyncFn() -> Duration) -> Duration {
    let mut took = Vec::new();
    for _ in 0..5 {
        took.push(timed().await);
    }
    took.sort_unstable();
    took[2]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_host_is_dialled_before_gossip_only_nodes() {
    // Four rounds of dials.
    const FAKES: u8 = 60;
    let network = unique_network();
    let (host, model) = Member::host(&network, MODEL).await;
    let asker = Member::start(&network, Transport::Tcp).await;
    asker.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    // The host dials: a dialled node is not redialled automatically.
    join(&host.node, &asker.node.addresses(), Transport::Tcp).await;
    await_plan(&asker.node, model).await;
    let address = host.node.addresses().remove(0);
    let port: u16 = address.split('/').nth(4).and_then(|port| port.parse().ok()).expect("/ip4/127.0.0.1/tcp/PORT");
    host.stop().await;
    eventually("the host is lost", || asker.node.status().peers_connected == 0).await;
    let place = TcpListener::bind(("127.0.0.1", port)).await.expect("the host's port");
    let hub = Member::start(&network, Transport::Tcp).await;
    join(&asker.node, &hub.node.addresses(), Transport::Tcp).await;
    let fakes = FakeNodes::announce(&network, model, FAKES, &hub, &asker).await;
    let plan = tokio::spawn({
        let node = asker.node.clone();
        async move { node.plan(&model.to_string()).await }
    });
    let (dialled, _) = fakes.dialled(in_time("a dial", place.accept())).await;
    assert!(dialled < FAKES.into(), "the host was dialled after all {dialled} fake nodes");
    plan.abort();
    stop_all([asker, hub]).await;
}

/// The open request of a rogue coordinator to an honest host.
fn order(rogue: &Rogue, model: ModelId, session: SessionId) -> Request {
    Request::Open(rogue.open_request(model, MODEL.layers(), session))
}

/// Opens a session of a rogue coordinator at an honest host.
async fn open(rogue: &Rogue, host: NodeId, model: ModelId, number: u8) -> SessionId {
    let session = rogue.session(number);
    match rogue.ask(host, order(rogue, model, session)).await {
        Reply::Opened(_) => session,
        other => panic!("an honest host opens a session for anyone: {other:?}"),
    }
}

type Spoil = fn(&mut StepHeader, &mut Vec<u8>);

#[tokio::test(flavor = "multi_thread")]
async fn another_peer_cannot_break_a_session_with_a_bad_frame() {
    let network = unique_network();
    let (host, asker, model) = host_and_coordinator(&network, MODEL).await;
    let (rogue, id) = Rogue::connected_to(&network, &host).await;
    let prompt = Prompt::Text(TEXT.to_owned());
    let request = GenerateRequest { model: model.to_string(), prompt, options: greedy(160) };
    let mut answer = asker.node.generate(request).await.expect("the host answers");
    assert!(matches!(answer.next().await, Some(Ok(Delta::Text(_)))), "the answer has started");
    let step = StepHeader { step: 1, pos: 1, want: RowOutput::Full, committed: 2, ..first_step(answer.session()) };
    let mut stream = rogue.stage_stream(id).await;
    write(&mut stream, &frame(&StageHeader::Step(step), &[0; 4])).await;
    let completion = in_time("the answer", answer.finish()).await.expect("it is not touched");
    assert_eq!(completion.tokens, expected(160));
    rogue.net.shutdown().await;
    stop_all([asker, host]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_frame_ends_only_its_own_session() {
    let network = unique_network();
    let (host, asker, model) = host_and_coordinator(&network, MODEL).await;
    let (mut rogue, id) = Rogue::connected_to(&network, &host).await;
    let honest = tokio::spawn({
        let node = asker.node.clone();
        async move { answer(&node, model, TEXT, 160).await.expect("the host continues").tokens }
    });
    let spoils: [(&str, Spoil, ErrorKind); 9] = [
        ("too few floats", |_, body| body.truncate(4), ErrorKind::BadFrame),
        ("a byte too many", |_, body| body.push(0), ErrorKind::BadFrame),
        ("NaN", |_, body| body[..4].copy_from_slice(&f32::NAN.to_le_bytes()), ErrorKind::BadFrame),
        ("another width", |step, body| (step.width, *body) = (4, vec![0; 16]), ErrorKind::BadFrame),
        ("a later step", |step, _| step.step = 7, ErrorKind::PeerLost),
        ("a gap", |step, _| step.pos = 5, ErrorKind::BadFrame),
        ("no rows", |step, body| (step.rows, *body) = (0, Vec::new()), ErrorKind::BadFrame),
        ("rows past the context", |step, _| step.pos = u32::MAX, ErrorKind::ContextOverflow),
        ("a shape that overflows", |step, _| (step.rows, step.width) = (u32::MAX, u32::MAX), ErrorKind::BadFrame),
    ];
    let mut stream = rogue.stage_stream(id).await;
    for (number, (what, spoil, kind)) in (1..).zip(spoils) {
        let session = open(&rogue, id, model, number).await;
        let (mut step, mut body) = (first_step(session), one_row());
        spoil(&mut step, &mut body);
        write(&mut stream, &frame(&StageHeader::Step(step), &body)).await;
        let told = in_time("the host's word", rogue.received.recv()).await;
        let Some(Message::Failed { session: failed, fault, .. }) = told else { panic!("{what}: {told:?}") };
        assert_eq!((failed, fault.kind()), (session, kind), "{what}: {fault}");
    }
    // An undecodable frame ends the stream; the session ends with its coordinator.
    open(&rogue, id, model, 200).await;
    write(&mut stream, &[0xff; 64]).await;
    rogue.net.shutdown().await;
    assert_eq!(honest.await.expect("no panic"), expected(160), "a concurrent honest answer is unaffected");
    eventually("no session is left", || host.node.status().sessions == 0).await;
    stop_all([asker, host]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_coordinator_can_end_a_session() {
    let network = unique_network();
    let (host, model) = Member::host(&network, MODEL).await;
    let (owner, id) = Rogue::connected_to(&network, &host).await;
    let (other, _) = Rogue::connected_to(&network, &host).await;
    let session = open(&owner, id, model, 1).await;
    other.ask(id, Request::Release { session, epoch: 0, keep: Prefix::default() }).await;
    assert_eq!(host.node.status().sessions, 1, "another peer cannot end the session");
    owner.ask(id, Request::Release { session, epoch: 0, keep: Prefix::default() }).await;
    eventually("the session has ended", || host.node.status().sessions == 0).await;
    let late = owner.session(2);
    owner.ask(id, Request::Release { session: late, epoch: 0, keep: Prefix::default() }).await;
    let refused = request(&owner.net, id, &order(&owner, model, late), Duration::from_secs(60)).await;
    assert_eq!(refused.expect_err("it has ended").kind(), ErrorKind::Cancelled);
    eventually("nothing is held for it", || host.node.status().sessions == 0).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_peer_cannot_occupy_a_sessions_next_route() {
    let network = unique_network();
    let host = Member::start(&network, Transport::Tcp).await;
    let model = host.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    let owner = Rogue::start(&network, Transport::Tcp, None).await;
    let stranger = Rogue::start(&network, Transport::Tcp, None).await;
    let id = owner.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
    stranger.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
    let session = open(&owner, id, model, 1).await;
    let next = |rogue: &Rogue| {
        let mut next = rogue.open_request(model, MODEL.layers(), session);
        next.epoch = 1;
        Request::Open(next)
    };
    let taken = request(&stranger.net, id, &next(&stranger), Duration::from_secs(60)).await;
    assert_eq!(taken.expect_err("the session belongs to another coordinator").kind(), ErrorKind::InvalidArgument);
    assert!(matches!(owner.ask(id, next(&owner)).await, Reply::Opened(_)), "the owner can open it");
    host.stop().await;
}

/// The time of an honest answer.
async fn timed(asker: &Member, model: ModelId) -> Duration {
    let begun = Instant::now();
    let completion = answer(&asker.node, model, TEXT, 16).await.expect("the host answers");
    assert_eq!(completion.tokens, expected(16));
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_streams_of_one_peer_do_not_block_others() {
    let network = unique_network();
    let (host, asker, model) = host_and_coordinator(&network, MODEL).await;
    timed(&asker, model).await;
    let alone = timed(&asker, model).await;
    let (rogue, id) = Rogue::connected_to(&network, &host).await;
    rogue.open_silent(id, Channel::Control, 100);
    rogue.open_silent(id, Channel::Stage, 20);
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("an answer took {alone:?}, and {:?} beside 120 silent streams", timed(&asker, model).await);
    // A new node gets its hello and its replies.
    let late = Member::coordinator(&network, MODEL, &host).await;
    timed(&late, model).await;
    stop_all([late, asker, host]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_without_steps_release_their_slots_within_seconds() {
    let network = unique_network();
    let (host, asker, model) = host_and_coordinator(&network, MODEL).await;
    let (rogue, id) = Rogue::connected_to(&network, &host).await;
    const SLOTS: u32 = 4;
    for number in 1..=SLOTS as u8 {
        open(&rogue, id, model, number).await;
    }
    assert_eq!(host.node.status().sessions, SLOTS, "all slots of the stage are taken");
    println!("an answer took {:?} behind {SLOTS} silent sessions", timed(&asker, model).await);
    timed(&host, model).await;
    stop_all([asker, host]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_waits_while_its_source_is_busy() {
    let network = unique_network();
    let (host, model) = Member::host(&network, MODEL).await;
    let mut rogues = Vec::new();
    for _ in 0..4 {
        let (rogue, id) = Rogue::connected_to(&network, &host).await;
        rogue.open_silent(id, Channel::Shard, 8);
        rogues.push(rogue);
    }
    let puller = Member::start(&network, Transport::Tcp).await;
    join(&puller.node, &host.node.addresses(), Transport::Tcp).await;
    await_holding(&puller, host.node.id()).await;
    let begun = Instant::now();
    let stage = Parts::Stage { layers: LayerRange::new(0, 4), head: false };
    let pulled = in_time("a pull", puller.node.pull(&model.to_string(), stage, None)).await.expect("it is given");
    assert_eq!(pulled.held, [LayerRange::new(0, 4)]);
    println!("a pull took {:?} beside 32 silent readers", begun.elapsed());
    stop_all([puller, host]).await;
}

async fn await_holding(member: &Member, peer: NodeId) {
    let holds = || member.node.peers().iter().any(|known| known.id == peer && !known.holdings.is_empty());
    eventually("the peer says what it holds", holds).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_of_a_peer_is_reported_and_not_required() {
    let network = unique_network();
    let host = Member::start(&network, Transport::Tcp).await;
    // The rogue's clock is at 1970.
    let claim = claim(ModelId([9; 32]), silence, honest_opened());
    let peer = Rogue::start(&network, Transport::Tcp, Some(claim)).await;
    join(&host.node, &peer.net.addresses(), Transport::Tcp).await;
    await_holding(&host, peer.net.local()).await;
    let peers = host.node.peers();
    let warning = peers[0].clock_warning().expect("it is far behind");
    assert!(peers[0].clock_ahead_s < Some(-86_400) && warning.ends_with("minutes behind this machine's"), "{warning}");
    stop_all([host]).await;
}

/// Resident memory of this process in bytes.
#[cfg(target_os = "linux")]
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    status.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn bodies_for_unknown_sessions_take_no_memory() {
    const STREAMS: u64 = 8;
    const BODY: usize = 128 << 20;
    const SENT: u64 = 24 << 20;
    let network = unique_network();
    let (host, asker, model) = host_and_coordinator(&network, MODEL).await;
    timed(&asker, model).await;
    let (rogue, id) = Rogue::connected_to(&network, &host).await;
    let before = memory();
    let mut streams = Vec::new();
    for number in 0..STREAMS as u8 {
        let failed = Fault::new(ErrorKind::Internal, "half of it");
        let header = StageHeader::Failed { session: SessionId([number; 16]), epoch: 0, stage: 0, fault: failed };
        let mut stream = rogue.stage_stream(id).await;
        let head = encode_head(&header, BODY, FrameLimits { header: 8192, body: BODY }).expect("within the bounds");
        write(&mut stream, &head).await;
        let part = vec![0; 1 << 20];
        for _ in 0..SENT >> 20 {
            write(&mut stream, &part).await;
        }
        streams.push(stream);
    }
    let grown = memory().saturating_sub(before);
    println!("{STREAMS} half frames of {} MiB each took {} MiB", SENT >> 20, grown >> 20);
    assert!(grown < STREAMS * SENT / 2, "{grown} bytes");
    timed(&asker, model).await;
    stop_all([asker, host]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_from_a_coordinator_are_not_dialled() {
    let network = unique_network();
    let (host, model) = Member::host(&network, MODEL).await;
    let (mut rogue, id) = Rogue::connected_to(&network, &host).await;
    let target = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let ports = [&target, &closed].map(|listener| listener.local_addr().expect("bound").port());
    drop(closed);
    let nobody = swarmllm_core::identity::Keypair::generate().expect("chance").node_id();
    let mut stream = rogue.stage_stream(id).await;
    for (number, port) in (1..).zip(ports) {
        let session = rogue.session(number);
        let Request::Open(mut order) = order(&rogue, model, session) else { panic!("it opens") };
        order.next = Host { node: nobody, addresses: vec![format!("/ip4/127.0.0.1/tcp/{port}")] };
        assert!(matches!(rogue.ask(id, Request::Open(order)).await, Reply::Opened(_)));
        write(&mut stream, &frame(&StageHeader::Step(first_step(session)), &one_row())).await;
    }
    let mut told = Vec::new();
    for _ in ports {
        let word = in_time("the host's word", rogue.received.recv()).await;
        let Some(Message::Failed { fault, .. }) = word else { panic!("{word:?}") };
        told.push((fault.kind(), fault.message().to_owned()));
    }
    assert_eq!(told[0].0, ErrorKind::PeerUnreachable, "{told:?}");
    assert_eq!(told[0], told[1], "open and closed ports yield the same error");
    assert!(!told[0].1.contains("127.0.0.1"), "{told:?}");
    let dialled = tokio::time::timeout(Duration::from_millis(100), target.accept()).await;
    assert!(dialled.is_err(), "no connection arrives");
    host.stop().await;
}
