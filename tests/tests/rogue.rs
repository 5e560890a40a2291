//! A peer that lies costs the answer that it took part in, with a typed error, and nothing else.

use std::time::Duration;

use futures::AsyncWriteExt;
use swarmllm_core::base::{ErrorKind, LayerRange, ModelId, NodeId, SessionId};
use swarmllm_core::node::{Delta, GenerateOptions, GenerateRequest, ImportOptions, Node, Parts, Prompt};
use swarmllm_core::pipeline::control::request;
use swarmllm_core::pipeline::message::Message;
use swarmllm_core::wire::announce::Holding;
use swarmllm_core::wire::codec::Codec;
use swarmllm_core::wire::control::{Host, OpenSession, Opened, Reply, Request};
use swarmllm_core::wire::job::{LogitShape, LogitsHeader, StageHeader, StepHeader, Want};
use swarmllm_core::wire::prefix::Prefix;
use swarmllm_tests::cluster::{Carrier, Member, THREADS, answer, await_plan, greedy, join, lonely_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::rogue::{Claim, Lie, Rogue, frame};
use swarmllm_tests::whole::Whole;
use swarmllm_tests::{eventually, in_time};

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
/// As in the model.
const WIDTH: u32 = 576;
const VOCAB: u32 = 49_152;
/// Where the rogue's layers begin.
const HALF: u32 = 15;

fn expected(tokens: u32) -> Vec<u32> {
    let whole = Whole::load(&MODEL.path(), THREADS);
    whole.greedy(&whole.tokenize(TEXT), tokens)
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

/// One row of the largest logit: log-sum-exp, token, logit.
fn row(token: u32, logit: f32) -> Vec<u8> {
    [1.0_f32.to_le_bytes(), token.to_le_bytes(), logit.to_le_bytes()].concat()
}

const TOP: LogitShape = LogitShape::Top { k: 1 };

fn not_a_number(step: &StepHeader) -> Vec<u8> {
    frame(&logits(step, 1, TOP), &row(1, f32::NAN))
}

fn a_token_that_is_none(step: &StepHeader) -> Vec<u8> {
    frame(&logits(step, 1, TOP), &row(VOCAB, 0.5))
}

fn two_rows_for_one(step: &StepHeader) -> Vec<u8> {
    frame(&logits(step, 2, TOP), &[row(1, 0.5), row(2, 0.5)].concat())
}

fn a_body_that_is_too_short(step: &StepHeader) -> Vec<u8> {
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

fn claim(model: ModelId, lie: Lie, opened: Opened) -> Claim {
    let layers = vec![LayerRange::new(HALF, MODEL.layers())];
    let name = MODEL.name().to_owned();
    Claim { holding: Holding { model, name, layers, metadata: false, embedding: false, head: true }, opened, lie }
}

fn honest_opened() -> Opened {
    Opened { width: WIDTH, vocab: Some(VOCAB), max_rows: 512, cached: 0, load_ms: 0 }
}

/// A coordinator with the first half of the layers.
async fn half_a_node(network: &str) -> (Member, ModelId) {
    let member = Member::start(network, Carrier::Tcp).await;
    let parts = vec![Parts::Coordinator, Parts::Stage { layers: LayerRange::new(0, HALF), head: false }];
    let options = ImportOptions { name: Some(MODEL.name().to_owned()), parts: Some(parts), progress: None };
    let info = member.node.import(&MODEL.path(), options).await.expect("the model is imported");
    (member, info.id)
}

async fn ask(node: &Node, model: ModelId, deadline: Duration) -> ErrorKind {
    let options = GenerateOptions { deadline: Some(deadline), ..greedy(16) };
    let request = GenerateRequest { model: model.to_string(), prompt: Prompt::Text(TEXT.to_owned()), options };
    let outcome = in_time("an answer", async { node.generate(request).await?.finish().await }).await;
    let error = outcome.expect_err("a lie is no answer");
    assert!(!error.to_string().is_empty(), "an error says something");
    error.kind()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_stage_that_lies_ends_its_answers_with_a_typed_error_and_an_honest_one_takes_over() {
    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_secs(1);
    let network = lonely_network();
    let (member, model) = half_a_node(&network).await;
    let other_width = Opened { width: WIDTH + 1, ..honest_opened() };
    let headless = Opened { vocab: None, ..honest_opened() };
    let lies: [(&str, Lie, Opened, Duration, ErrorKind); 11] = [
        ("NaN", not_a_number, honest_opened(), LONG, ErrorKind::BadFrame),
        ("a foreign token", a_token_that_is_none, honest_opened(), LONG, ErrorKind::BadFrame),
        ("two rows", two_rows_for_one, honest_opened(), LONG, ErrorKind::BadFrame),
        ("a short body", a_body_that_is_too_short, honest_opened(), LONG, ErrorKind::BadFrame),
        ("a shape that overflows", a_shape_that_overflows, honest_opened(), LONG, ErrorKind::BadFrame),
        ("another step", another_step, honest_opened(), LONG, ErrorKind::BadFrame),
        ("a flood", a_flood, honest_opened(), LONG, ErrorKind::BadFrame),
        ("4 GiB", an_announced_body_of_four_gib, honest_opened(), SHORT, ErrorKind::Timeout),
        ("silence", silence, honest_opened(), SHORT, ErrorKind::Timeout),
        ("another width", silence, other_width, LONG, ErrorKind::BadFrame),
        ("no head", silence, headless, LONG, ErrorKind::BadFrame),
    ];
    for (what, lie, opened, deadline, kind) in lies {
        let rogue = Rogue::start(&network, Carrier::Tcp, Some(claim(model, lie, opened))).await;
        join(&member.node, &rogue.net.addresses(), Carrier::Tcp).await;
        await_plan(&member.node, model).await;
        assert_eq!(ask(&member.node, model, deadline).await, kind, "{what}");
        eventually("no session is left", || member.node.status().sessions == 0).await;
        // A flood begins with an answer.
        let owed = member.node.balances().into_iter().find(|balance| balance.peer == rogue.net.local());
        let nothing = owed.is_none_or(|balance| (balance.spent, balance.unsigned_spent) == (0, 0));
        assert!(nothing || what == "a flood", "{what} is paid for");
        rogue.net.shutdown().await;
        eventually("the liar is gone", || member.node.status().peers_connected == 0).await;
    }
    let honest = Member::start(&network, Carrier::Tcp).await;
    let rest = Parts::Stage { layers: LayerRange::new(HALF, MODEL.layers()), head: true };
    honest.import(&MODEL.path(), MODEL.name(), rest).await;
    join(&member.node, &honest.node.addresses(), Carrier::Tcp).await;
    await_plan(&member.node, model).await;
    let completion = answer(&member.node, model, TEXT, 16).await.expect("the honest peer answers");
    assert_eq!(completion.tokens, expected(16));
    honest.stop().await;
    member.stop().await;
}

/// A liar who claims to hold everything: it is asked first, since that is one stage.
async fn whole_liar(network: &str, asker: &Member, model: ModelId, lie: Lie) -> Rogue {
    let mut claim = claim(model, lie, honest_opened());
    claim.holding.layers = vec![LayerRange::new(0, MODEL.layers())];
    let rogue = Rogue::start(network, Carrier::Tcp, Some(claim)).await;
    join(&asker.node, &rogue.net.addresses(), Carrier::Tcp).await;
    in_time("the liar's claim", async {
        while asker.node.plan(&model.to_string()).await.expect("a plan").stages[0].node != rogue.net.local() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    rogue
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_is_left_out_where_an_honest_host_can_do_its_work() {
    let network = lonely_network();
    let (member, model) = half_a_node(&network).await;
    let honest = Member::start(&network, Carrier::Tcp).await;
    let rest = Parts::Stage { layers: LayerRange::new(HALF, MODEL.layers()), head: true };
    honest.import(&MODEL.path(), MODEL.name(), rest).await;
    join(&member.node, &honest.node.addresses(), Carrier::Tcp).await;
    await_plan(&member.node, model).await;
    let lies: [(&str, Lie); 4] = [
        ("NaN", not_a_number),
        ("a foreign token", a_token_that_is_none),
        ("two rows", two_rows_for_one),
        ("a flood", a_flood),
    ];
    for (what, lie) in lies {
        let rogue = whole_liar(&network, &member, model, lie).await;
        let completion = answer(&member.node, model, TEXT, 16).await;
        let completion = completion.unwrap_or_else(|error| panic!("{what}: {error}"));
        // What a flood begins with is an answer, which nobody can tell from an honest one; what follows is left out.
        let right = completion.tokens == expected(16) || what == "a flood";
        assert!(right && completion.completion_tokens == 16, "{what}: {:?}", completion.tokens);
        rogue.net.shutdown().await;
        eventually("the liar is gone", || member.node.status().peers_connected == 1).await;
    }
    honest.stop().await;
    member.stop().await;
}

/// What a rogue coordinator asks of an honest host.
fn order(rogue: &Rogue, model: ModelId, session: SessionId) -> Request {
    let own = Host { node: rogue.net.local(), addresses: rogue.net.addresses() };
    Request::Open(OpenSession {
        session,
        epoch: 0,
        model,
        engine: "llama.cpp".to_owned(),
        layers: LayerRange::new(0, MODEL.layers()),
        head: true,
        stage: 0,
        context: 64,
        exact: true,
        prefix: Prefix::default(),
        next: own.clone(),
        copy: None,
        stands_by: false,
        coordinator: own,
    })
}

/// A rogue coordinator's session at an honest host.
async fn open(rogue: &Rogue, host: NodeId, model: ModelId, number: u8) -> SessionId {
    let session = SessionId([number; 16]);
    match rogue.ask(host, order(rogue, model, session)).await {
        Reply::Opened(_) => session,
        other => panic!("an honest host opens a session for anyone: {other:?}"),
    }
}

type Spoil = fn(&mut StepHeader, &mut Vec<u8>);

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_knows_a_session_cannot_spoil_it_with_a_bad_frame() {
    let network = lonely_network();
    let host = Member::start(&network, Carrier::Tcp).await;
    let model = host.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    let asker = Member::start(&network, Carrier::Tcp).await;
    asker.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    join(&asker.node, &host.node.addresses(), Carrier::Tcp).await;
    await_plan(&asker.node, model).await;
    let rogue = Rogue::start(&network, Carrier::Tcp, None).await;
    let id = rogue.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
    let prompt = Prompt::Text(TEXT.to_owned());
    let request = GenerateRequest { model: model.to_string(), prompt, options: greedy(160) };
    let mut answer = asker.node.generate(request).await.expect("the host answers");
    assert!(matches!(answer.next().await, Some(Ok(Delta::Text(_)))), "the answer has begun");
    let step = StepHeader {
        session: answer.session(),
        epoch: 0,
        stage: 0,
        step: 1,
        pos: 1,
        rows: 1,
        width: WIDTH,
        codec: Codec::F32,
        want_from: 0,
        want: Want::Full,
        certain: 2,
        compute_us: Vec::new(),
    };
    let mut stream = rogue.stage_stream(id).await;
    stream.write_all(&frame(&StageHeader::Step(step), &[0; 4])).await.expect("the stream is open");
    stream.flush().await.expect("the stream is open");
    let completion = in_time("the answer", answer.finish()).await.expect("it is not touched");
    assert_eq!(completion.tokens, expected(160));
    rogue.net.shutdown().await;
    for member in [asker, host] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_frame_ends_its_own_session_and_no_other() {
    let network = lonely_network();
    let host = Member::start(&network, Carrier::Tcp).await;
    let model = host.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&host.node, model).await;
    let asker = Member::start(&network, Carrier::Tcp).await;
    asker.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    join(&asker.node, &host.node.addresses(), Carrier::Tcp).await;
    await_plan(&asker.node, model).await;
    let mut rogue = Rogue::start(&network, Carrier::Tcp, None).await;
    let id = rogue.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
    let honest = tokio::spawn({
        let node = asker.node.clone();
        async move { answer(&node, model, TEXT, 160).await.expect("the host goes on").tokens }
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
        let want = Want::Top { k: 1 };
        let mut step = StepHeader {
            session,
            epoch: 0,
            stage: 0,
            step: 0,
            pos: 0,
            rows: 1,
            width: WIDTH,
            codec: Codec::F32,
            want_from: 0,
            want,
            certain: 1,
            compute_us: Vec::new(),
        };
        let mut body = vec![0; 4 * WIDTH as usize];
        spoil(&mut step, &mut body);
        stream.write_all(&frame(&StageHeader::Step(step), &body)).await.expect("the stream is open");
        stream.flush().await.expect("the stream is open");
        let told = in_time("the host's word", rogue.received.recv()).await;
        let Some(Message::Failed { session: failed, fault, .. }) = told else { panic!("{what}: {told:?}") };
        assert_eq!((failed, fault.kind()), (session, kind), "{what}: {fault}");
    }
    // What is no frame at all ends the stream; the session goes with its coordinator.
    open(&rogue, id, model, 200).await;
    stream.write_all(&[0xff; 64]).await.expect("the stream is open");
    stream.flush().await.expect("the stream is open");
    rogue.net.shutdown().await;
    assert_eq!(honest.await.expect("no panic"), expected(160), "an honest answer beside it is not touched");
    eventually("no session is left", || host.node.status().sessions == 0).await;
    asker.stop().await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_coordinator_ends_a_session_even_before_it_began() {
    let network = lonely_network();
    let host = Member::start(&network, Carrier::Tcp).await;
    let model = host.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    let owner = Rogue::start(&network, Carrier::Tcp, None).await;
    let other = Rogue::start(&network, Carrier::Tcp, None).await;
    let id = owner.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
    other.net.dial(&host.node.addresses()[0]).await.expect("the host is reached");
    let session = open(&owner, id, model, 1).await;
    other.ask(id, Request::Release { session, epoch: 0, keep: Prefix::default() }).await;
    assert_eq!(host.node.status().sessions, 1, "a stranger's word ends nothing");
    owner.ask(id, Request::Release { session, epoch: 0, keep: Prefix::default() }).await;
    eventually("the session has ended", || host.node.status().sessions == 0).await;
    let late = SessionId([2; 16]);
    owner.ask(id, Request::Release { session: late, epoch: 0, keep: Prefix::default() }).await;
    let refused = request(&owner.net, id, &order(&owner, model, late), Duration::from_secs(60)).await;
    assert_eq!(refused.expect_err("it has ended").kind(), ErrorKind::Cancelled);
    eventually("nothing is held for it", || host.node.status().sessions == 0).await;
    host.stop().await;
}
