//! Routers between nodes on loopback, and the admission and delivery of frames.

use futures::FutureExt;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use std::time::{Duration, Instant};

use super::admission::PeerFrames;
use super::ended::ENDED;
use super::*;
use crate::base::ErrorKind;
use crate::engine::MAX_OUTPUT_ROWS;
use crate::identity::Keypair;
use crate::net::{self, Channel, Incoming, NetConfig};
use crate::pipeline::link::connection::{self, FrameHandler, LinkMonitor};
use crate::pipeline::link::message::ANSWERING_STAGE;
use crate::pipeline::link::outgoing::{OutgoingFrames, QueuedFrame};
use crate::pipeline::link::pool::lost;
use crate::rt::{EventBus, PoolLimits};
use crate::wire::codec::Codec;
use crate::wire::control::Host;
use crate::wire::frame::Frame;
use crate::wire::job::{LogitShape, LogitsHeader, RowOutput, StageHeader, StepHeader};

const STAGE: SessionStage = SessionStage { session: SessionId([1; 16]), epoch: 2, stage: 3 };

fn node(name: u8) -> NodeId {
    NodeId([name; 32])
}

fn agreed(previous: u8, next: u8) -> StageAgreement {
    StageAgreement { previous: node(previous), next: node(next), width: 4, max_rows: 8, is_standby: false }
}

/// A step of rows of four numbers.
fn step(to: SessionStage, rows: u32, codec: Codec) -> StepHeader {
    let SessionStage { session, epoch, stage } = to;
    StepHeader {
        session,
        epoch,
        stage,
        step: 0,
        pos: 0,
        rows,
        width: 4,
        codec,
        want_from: 0,
        want: RowOutput::Full,
        committed: 0,
        compute_us: Vec::new(),
    }
}

impl SessionRouter {
    /// A link to a peer that reads nothing, with a full queue, until the receiver is dropped.
    pub(in crate::pipeline) fn stalled(&self, to: NodeId) -> mpsc::Receiver<QueuedFrame> {
        self.inner.pool.stalled(to, frame)
    }
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
async fn a_stage_serves_its_coordinator_until_either_ends_it() {
    let router = SessionRouter::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let inbox = router.reserve(STAGE, node(1)).unwrap().register(agreed(1, 1)).unwrap();
    assert!(router.serves(STAGE, node(1)));
    assert!(!router.serves(STAGE, node(2)), "only its coordinator may ask");
    assert!(!router.serves(SessionStage { epoch: 3, ..STAGE }, node(1)));
    router.disconnected(node(1));
    assert!(!router.serves(STAGE, node(1)));
    drop(inbox);
}

#[tokio::test]
async fn a_frame_is_admitted_from_its_sessions_sender_within_the_agreement() {
    let router = SessionRouter::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let _inbox = router.reserve(STAGE, node(1)).unwrap().register(agreed(2, 3)).unwrap();
    let step = |rows, codec| step(STAGE, rows, codec);
    let SessionStage { session, epoch, .. } = STAGE;
    let check = |from, header: &StageHeader, body| PeerFrames { router: &router, from: node(from) }.check(header, body);
    let admits = |from, step, body| check(from, &StageHeader::Step(step), body);
    assert_eq!(admits(2, step(8, Codec::F32), 8 * 16), Ok(true));
    assert_eq!(admits(2, step(8, Codec::Bf16), 8 * 8), Ok(true));
    assert_eq!(admits(1, step(8, Codec::F32), 8 * 16), Ok(false), "the coordinator is not before this stage");
    assert_eq!(admits(2, StepHeader { epoch: 9, ..step(8, Codec::F32) }, 8 * 16), Ok(false));
    assert!(admits(2, step(9, Codec::F32), 9 * 16).is_err());
    assert!(admits(2, step(8, Codec::F32), 8 * 16 + 1).is_err());
    assert!(admits(2, StepHeader { width: u32::MAX, ..step(1, Codec::F32) }, 16).is_err());
    let answer = |rows, body| {
        let shape = LogitShape::Top { k: 1 };
        let header = LogitsHeader { session, epoch, step: 0, rows, shape, compute_us: Vec::new() };
        check(3, &StageHeader::Logits(header), body)
    };
    let logits = |body| answer(1, body);
    assert_eq!(logits(12), Ok(false), "it is not coordinated here");
    let _answers = router.register_coordinator(session);
    assert_eq!(logits(12), Ok(false), "no host answers yet");
    let stages = vec![(node(2), STAGE.stage), (node(3), STAGE.stage + 1)];
    router.set_hosts(session, RouteHosts { epoch, stages, answering: Some(node(3)), max_answer_bytes: 12 });
    assert_eq!(logits(12), Ok(true));
    assert!(logits(13).is_err());
    assert!(answer(MAX_OUTPUT_ROWS + 1, 12).is_err(), "short rows take more memory");
    let failed = |from, epoch, stage| {
        let message = Message::Failed { session, epoch, stage, fault: lost(node(9)) };
        check(from, &message.encode().0, 0)
    };
    assert_eq!((failed(9, epoch, 3), failed(2, epoch, 4), failed(2, epoch - 1, 3)), (Ok(false), Ok(false), Ok(false)));
    assert_eq!((failed(2, epoch, 3), failed(2, epoch, 3)), (Ok(true), Ok(false)), "a host fails once");
    assert_eq!(failed(3, epoch, 4), Ok(true));
}

#[tokio::test]
async fn a_link_that_breaks_repeatedly_fills_no_queue() {
    let router = SessionRouter::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let mut inbox = router.reserve(STAGE, node(1)).unwrap().register(agreed(1, 3)).unwrap();
    let mut reported = || std::iter::from_fn(|| inbox.next().now_or_never().flatten()).count();
    (0..2 * SESSION_QUEUE).for_each(|_| router.link_broke(node(3)));
    assert_eq!(reported(), 1);
    router.link_broke(node(3));
    assert_eq!(reported(), 1, "the next break is reported, too");
    assert!(router.serves(STAGE, node(1)));
}

#[tokio::test]
async fn a_closed_stage_still_serves_until_its_inbox_is_dropped() {
    let router = SessionRouter::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let mut inbox = router.reserve(STAGE, node(1)).unwrap().register(agreed(9, 3)).unwrap();
    inbox.close();
    router.deliver(node(9), Message::Step { header: step(STAGE, 1, Codec::F32), hidden: vec![0.0; 4] });
    assert!(router.serves(STAGE, node(1)) && dropped(&inbox).is_none());
    drop(inbox);
    assert!(!router.serves(STAGE, node(1)));
}

#[tokio::test]
async fn ending_one_stage_leaves_the_sessions_other_stages() {
    let router = SessionRouter::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let other = SessionStage { stage: 4, ..STAGE };
    let open = |stage| router.reserve(stage, node(1)).unwrap().register(agreed(1, 3)).unwrap();
    let (_late, _used) = (open(STAGE), open(other));
    router.end_stage(STAGE, node(2));
    assert!(router.serves(STAGE, node(1)), "only its coordinator ends it");
    router.end_stage(STAGE, node(1));
    assert_eq!((router.serves(STAGE, node(1)), router.serves(other, node(1))), (false, true));
}

/// Receives a step of 8 rows; returns whether it was queued, or nothing where it waits for memory.
fn receive(router: &SessionRouter, from: u8, to: SessionStage) -> Option<bool> {
    let frames = PeerFrames { router, from: node(from) };
    let header = StageHeader::Step(step(to, 8, Codec::F32));
    let memory = frames.reserve(&header, BODY).now_or_never()?;
    let queue = |memory| frames.handle(Frame { header: header.clone(), body: vec![0; BODY] }, memory);
    Some(memory.map(queue).is_some())
}

/// Receives steps until one is not queued, at most as many as a queue holds; returns their number.
fn fill(router: &SessionRouter, from: u8, to: SessionStage) -> usize {
    (0..SESSION_QUEUE).take_while(|_| receive(router, from, to) == Some(true)).count()
}

/// The fault with which this node dropped a session, if it did.
fn dropped(inbox: &StageInbox) -> Option<ErrorKind> {
    inbox.end().1.map(|fault| fault.kind())
}

/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(600);
/// Bytes of a step of 8 rows.
const BODY: usize = 8 * 4 * 4;

#[tokio::test]
async fn unread_frames_are_bounded_and_delay_no_other_coordinator() {
    let limits = PoolLimits { total: 5 * BODY, per_key: 3 * BODY, reserve: 0 };
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let router = SessionRouter::with_bodies(node(0), None, tasks, BodyPool::with_limits(limits, LONG));
    let stage = |number| SessionStage { stage: number, ..STAGE };
    // Each stage has a coordinator of its own; all frames come over one peer's stream.
    let open = |number| router.reserve(stage(number), node(number as u8)).unwrap().register(agreed(9, 3)).unwrap();
    let mut slow = open(1);
    // One body in the session's own memory, three in its coordinator's share.
    assert_eq!((fill(&router, 9, stage(1)), slow.receiver.len()), (4, 4));
    let (_other, _late) = (open(2), open(3));
    assert_eq!(fill(&router, 9, stage(2)), 3);
    let mut honest = open(4);
    assert_eq!(fill(&router, 9, stage(4)), 1, "the pool is used up, and the session has memory of its own");
    for _ in 0..SESSION_QUEUE {
        assert!(honest.next().await.is_some());
        assert_eq!(fill(&router, 9, stage(4)), 1, "it goes on");
    }
    let frames = PeerFrames { router: &router, from: node(9) };
    let header = StageHeader::Step(step(stage(1), 8, Codec::F32));
    let mut waiting = Box::pin(frames.reserve(&header, BODY));
    assert!(waiting.as_mut().now_or_never().is_none(), "its stream is not read further");
    slow.next().await.unwrap();
    assert!(waiting.await.is_some(), "until the session takes a frame");
    assert_eq!(fill(&router, 9, stage(1)), 1);
    let waiting = tokio::spawn({
        let (router, header) = (router.clone(), header.clone());
        async move { PeerFrames { router: &router, from: node(9) }.reserve(&header, BODY).await.is_some() }
    });
    tokio::task::yield_now().await;
    router.end_session(STAGE.session, STAGE.epoch, node(1), &Prefix::default());
    assert!(!waiting.await.unwrap(), "a frame of an ended session is skipped");
    drop((slow, _other, _late));
    let next = SessionStage { epoch: STAGE.epoch + 1, ..STAGE };
    let _next = router.reserve(next, node(1)).unwrap().register(agreed(9, 3)).unwrap();
    assert_eq!(fill(&router, 9, next), 4, "the ended wait has freed its memory");
}

#[tokio::test]
async fn where_memory_is_short_a_session_beyond_its_window_ends() {
    // A window is eight bodies.
    let limits = PoolLimits { total: 10 * BODY, per_key: 10 * BODY, reserve: 0 };
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let router = SessionRouter::with_bodies(node(0), None, tasks, BodyPool::with_limits(limits, LONG));
    let stage = |number| SessionStage { stage: number, ..STAGE };
    let open = |number| router.reserve(stage(number), node(1)).unwrap().register(agreed(9, 3)).unwrap();
    let (mut greedy, _modest) = (open(1), open(2));
    assert_eq!(
        std::iter::repeat_with(|| receive(&router, 9, stage(1))).take(11).flatten().filter(|queued| *queued).count(),
        11
    );
    assert_eq!([0; 2].map(|_| receive(&router, 9, stage(2))), [Some(true), None], "a session within its window waits");
    assert_eq!(receive(&router, 9, stage(1)), Some(false), "and the other session ends");
    assert!(greedy.over().is_cancelled() && !router.serves(stage(1), node(1)));
    assert_eq!(dropped(&greedy), Some(ErrorKind::BadFrame), "its task reads the reason");
    assert!(router.serves(stage(2), node(1)));
    assert_eq!(
        std::iter::from_fn(|| greedy.next().now_or_never().flatten()).count(),
        11,
        "its queued frames are still read"
    );
    assert_eq!(receive(&router, 9, stage(2)), Some(true));
}

#[tokio::test]
async fn an_overrun_stage_is_a_bad_frame_and_an_overrun_standby_is_overload() {
    let router = SessionRouter::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let ends = |number, is_standby| {
        let stage = SessionStage { stage: number, ..STAGE };
        let inbox =
            router.reserve(stage, node(1)).unwrap().register(StageAgreement { is_standby, ..agreed(9, 3) }).unwrap();
        let overruns =
            || router.deliver(node(9), Message::Step { header: step(stage, 1, Codec::F32), hidden: vec![0.0; 4] });
        (0..SESSION_QUEUE).for_each(|_| overruns());
        assert!(router.serves(stage, node(1)), "a queue is longer than a window");
        overruns();
        dropped(&inbox)
    };
    assert_eq!((ends(1, false), ends(2, true)), (Some(ErrorKind::BadFrame), Some(ErrorKind::Overloaded)));
}

#[tokio::test]
async fn a_malformed_answer_is_a_failure_of_the_answering_stage() {
    let router = SessionRouter::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let mut inbox = router.register_coordinator(STAGE.session);
    let shape = LogitShape::Top { k: 1 };
    let header = StageHeader::Logits(LogitsHeader {
        session: STAGE.session,
        epoch: 2,
        step: 0,
        rows: 1,
        shape,
        compute_us: Vec::new(),
    });
    PeerFrames { router: &router, from: node(3) }.handle(Frame { header, body: vec![0; 11] }, BodyMemory::Empty);
    let (from, message) = inbox.next().now_or_never().flatten().unwrap();
    let Message::Failed { stage, fault, .. } = message else { panic!("{message:?}") };
    assert_eq!((from, stage, fault.kind()), (node(3), ANSWERING_STAGE, ErrorKind::BadFrame));
}

#[tokio::test]
async fn a_memory_timeout_ends_the_session_not_the_stream() {
    let limits = PoolLimits { total: 20 * BODY, per_key: 4 * BODY, reserve: 0 };
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let router =
        SessionRouter::with_bodies(node(0), None, tasks, BodyPool::with_limits(limits, Duration::from_millis(50)));
    let stage = |number| SessionStage { stage: number, ..STAGE };
    let open = |number, from| router.reserve(stage(number), node(from)).unwrap().register(agreed(9, 3)).unwrap();
    let (one, two, _honest) = (open(1, 1), open(2, 1), open(3, 2));
    assert_eq!((fill(&router, 9, stage(1)), fill(&router, 9, stage(2))), (5, 1), "the share is taken");
    let frames = PeerFrames { router: &router, from: node(9) };
    let header = StageHeader::Step(step(stage(2), 8, Codec::F32));
    assert!(frames.reserve(&header, BODY).await.is_none(), "its frame is skipped");
    assert!(two.over().is_cancelled() && router.serves(stage(1), node(1)));
    assert_eq!((dropped(&two), dropped(&one)), (Some(ErrorKind::Overloaded), None));
    assert_eq!(receive(&router, 9, stage(3)), Some(true), "the stream goes on for other sessions");
}

#[tokio::test]
async fn a_reserved_stage_does_not_begin_once_its_session_is_over() {
    let router = SessionRouter::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let (session, none) = (STAGE.session, Prefix::default());
    let opening = router.reserve(STAGE, node(1)).unwrap();
    assert!(router.reserve(STAGE, node(1)).is_err(), "the stage is reserved");
    router.end_session(session, STAGE.epoch, node(2), &none);
    router.end_session(session, STAGE.epoch - 1, node(1), &none);
    assert!(!opening.over().is_cancelled(), "neither another coordinator nor an earlier route ends it");
    router.end_session(session, STAGE.epoch, node(1), &none);
    // However many sessions end meanwhile.
    let others = (0..2 * ENDED as u128).map(|other| SessionId(other.to_le_bytes()));
    others.for_each(|other| router.end_session(other, 0, node(1), &none));
    assert!(opening.over().is_cancelled());
    assert_eq!(opening.register(agreed(1, 1)).err().unwrap().kind(), ErrorKind::Cancelled);
    let opening = router.reserve(STAGE, node(1)).unwrap();
    router.disconnected(node(1));
    assert!(opening.register(agreed(1, 1)).is_err(), "its coordinator is gone");
    drop(router.reserve(STAGE, node(1)).unwrap());
    router.reserve(STAGE, node(1)).unwrap().register(agreed(1, 1)).unwrap();
}

#[tokio::test]
async fn an_end_that_overtakes_the_opening_counts_however_often_it_comes() {
    let router = SessionRouter::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let end = |session, epoch| router.end_session(session, epoch, node(1), &Prefix::default());
    end(STAGE.session, STAGE.epoch);
    for _ in 0..2 * ENDED {
        end(SessionId([7; 16]), 1);
    }
    end(STAGE.session, 0);
    assert_eq!(router.reserve(STAGE, node(1)).err().unwrap().kind(), ErrorKind::Cancelled);
    assert!(router.reserve(SessionStage { epoch: STAGE.epoch + 1, ..STAGE }, node(1)).is_ok());
}

#[tokio::test]
async fn a_sessions_frames_do_not_move_to_another_link() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let ((near, _near), (far, mut incoming)) = (start(&tasks).await, start(&tasks).await);
    let router = SessionRouter::new(near.local(), Some(near), tasks.clone());
    let host = Host { node: far.local(), addresses: far.addresses() };
    let mut sender = router.sender(host.clone());
    sender.send(frame()).await.unwrap();
    // The peer ends the stream; it stays connected.
    drop(incoming.stage.recv().await.unwrap());
    let begun = Instant::now();
    let broken = loop {
        match sender.send(frame()).await {
            Err(fault) => break fault,
            Ok(()) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "the broken link is not detected");
    };
    assert_eq!(broken.kind(), ErrorKind::PeerLost);
    assert!(sender.send(frame()).await.is_err(), "it stays broken");
    router.sender(host).send(frame()).await.expect("a new route has a new link");
    tasks.abort();
}

#[tokio::test]
async fn unread_frames_keep_their_memory_until_they_are_written() {
    const FRAME: usize = 2 << 20;
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let ((near, _near), (far, mut incoming)) = (start(&tasks).await, start(&tasks).await);
    near.ensure_connected(far.local(), &far.addresses()).await.unwrap();
    let stream = near.open(far.local(), Channel::Stage).await.unwrap();
    let frames = OutgoingFrames::with_limits(PoolLimits { total: 3 * FRAME, per_key: 3 * FRAME, reserve: 0 });
    let (queue, receiver) = frames.queue(far.local());
    let monitor = LinkMonitor { answer_late: Arc::default(), rtt: || Duration::ZERO, suspect: || () };
    tasks.spawn("writes", async move { connection::write(stream, receiver, monitor).await.unwrap_or_default() });
    let rows = FRAME as u32 / 16;
    let frame = || Message::Step { header: step(STAGE, rows, Codec::F32), hidden: vec![1.0; FRAME / 4] };
    for _ in 0..3 {
        queue.send(frame()).await.unwrap();
    }
    let (_, mut unread) = incoming.stage.recv().await.unwrap();
    let mut fourth = Box::pin(queue.send(frame()));
    // Without a frames no more is written than the stream's windows hold.
    assert!(tokio::time::timeout(Duration::from_millis(300), fourth.as_mut()).await.is_err());
    let reads = async {
        let mut bytes = vec![0; 64 * 1024];
        while futures::AsyncReadExt::read(&mut unread, &mut bytes).await.is_ok_and(|read| read > 0) {}
    };
    tokio::select! {
        sent = fourth => sent.unwrap(),
        () = reads => panic!("the stream ended"),
    }
    tasks.abort();
}

/// A proxy of `to` that carries nothing once it is cut, and keeps its connections.
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
async fn a_link_is_opened_anew_where_its_connection_hangs() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let ((near, _near), (far, mut incoming)) = (start(&tasks).await, start(&tasks).await);
    let cut = CancellationToken::new();
    near.dial(&line(&far.addresses()[0], cut.clone()).await).await.unwrap();
    let (router, host) = (SessionRouter::new(near.local(), Some(near), tasks.clone()), far.local());
    cut.cancel();
    let begun = Instant::now();
    router.sender(Host { node: host, addresses: Vec::new() }).send(frame()).await.expect("another connection");
    // By itself the open would fail after ten seconds.
    assert!(begun.elapsed() < Duration::from_secs(8), "it waits for the hanging connection");
    incoming.stage.recv().await.unwrap();
    tasks.abort();
}

#[tokio::test]
async fn a_late_answer_makes_an_unacknowledged_connection_suspect_sooner() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let ((near, _near), (far, mut incoming)) = (start(&tasks).await, start(&tasks).await);
    let router = SessionRouter::new(near.local(), Some(near), tasks.clone());
    let mut broken = router.broken();
    let host = Host { node: far.local(), addresses: far.addresses() };
    let _stage =
        router.reserve(STAGE, node(1)).unwrap().register(StageAgreement { next: far.local(), ..agreed(1, 1) }).unwrap();
    router.sender(host).send(frame()).await.unwrap();
    let _unread = incoming.stage.recv().await.unwrap();
    let begun = Instant::now();
    while broken.try_recv().is_err() {
        // By itself the link would begin to suspect after two seconds and a half.
        assert!(begun.elapsed() < Duration::from_secs(2), "the connection is not suspected");
        assert!(router.serves(STAGE, node(1)));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tasks.abort();
}

#[tokio::test]
async fn a_stage_dials_its_previous_host_at_the_announced_addresses() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let [(near, _near), (between, _between), (far, _far)] =
        [start(&tasks).await, start(&tasks).await, start(&tasks).await];
    // A peer that passes on addresses of this machine runs on this machine.
    let by = near.dial(&between.addresses()[0]).await.unwrap();
    let router = SessionRouter::new(near.local(), Some(near.clone()), tasks.clone());
    let (host, addresses) = (far.local(), far.addresses());
    router.set_announced(Box::new(move |node| (if node == host { addresses.clone() } else { Vec::new() }, Some(by))));
    router.connect_previous(host, by, &CancellationToken::new());
    let begun = Instant::now();
    while !near.peers().lookup(host).is_some_and(|peer| peer.connected) {
        assert!(begun.elapsed() < Duration::from_secs(30), "no host is dialled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tasks.abort();
}
