//! Links between nodes on loopback, and the table of whose message is whose.

use futures::FutureExt;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::identity::Keypair;
use crate::net::{self, Incoming, NetConfig};
use crate::pipeline::outgoing::Outgoing;
use crate::rt::{Bounds, EventBus};
use crate::wire::codec::Codec;
use crate::wire::job::{LogitShape, LogitsHeader, Want};

const STAGE: SessionStage = SessionStage { session: SessionId([1; 16]), epoch: 2, stage: 3 };

fn node(name: u8) -> NodeId {
    NodeId([name; 32])
}

fn agreed(previous: u8, next: u8) -> Agreed {
    Agreed { previous: node(previous), next: node(next), width: 4, max_rows: 8, stands_by: false }
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
        want: Want::Full,
        certain: 0,
        compute_us: Vec::new(),
    }
}

impl Links {
    /// A link to a peer that reads nothing, with no room left, until what is given is dropped.
    pub(in crate::pipeline) fn stalled(&self, to: NodeId) -> mpsc::Receiver<Outgoing> {
        let (queue, unread) = self.inner.outgoing.queue(to);
        while queue.send(frame()).now_or_never().is_some() {}
        locked(&self.inner.peers).insert(to, Link { queue, asked: Arc::default() });
        unread
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
async fn a_stage_is_served_to_its_coordinator_until_either_ends_it() {
    let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let inbox = links.begin(STAGE, node(1)).unwrap().register(agreed(1, 1)).unwrap();
    assert!(links.serves(STAGE, node(1)));
    assert!(!links.serves(STAGE, node(2)), "another's session is nobody's business");
    assert!(!links.serves(SessionStage { epoch: 3, ..STAGE }, node(1)));
    links.disconnected(node(1));
    assert!(!links.serves(STAGE, node(1)));
    drop(inbox);
}

#[tokio::test]
async fn the_body_of_a_frame_is_read_for_an_open_session_from_who_sends_to_it_and_no_longer_than_was_agreed() {
    let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let _inbox = links.begin(STAGE, node(1)).unwrap().register(agreed(2, 3)).unwrap();
    let step = |rows, codec| step(STAGE, rows, codec);
    let SessionStage { session, epoch, .. } = STAGE;
    let admits = |from, step, body| links.admits(node(from), &StageHeader::Step(step), body);
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
        links.admits(node(3), &StageHeader::Logits(header), body)
    };
    let logits = |body| answer(1, body);
    assert_eq!(logits(12), Ok(false), "it is not coordinated here");
    let _answers = links.register_coordinator(session);
    assert_eq!(logits(12), Ok(false), "nobody answers yet");
    let parts = vec![(node(2), STAGE.stage), (node(3), STAGE.stage + 1)];
    links.set_hosts(session, Hosts { epoch, parts, last: Some(node(3)), longest: 12 });
    assert_eq!(logits(12), Ok(true));
    assert!(logits(13).is_err());
    assert!(answer(WANTED_ROWS + 1, 12).is_err(), "short rows are long in memory");
    let failed = |from, epoch, stage| {
        let message = Message::Failed { session, epoch, stage, fault: lost(node(9)) };
        links.admits(node(from), &message.encode().0, 0)
    };
    assert_eq!((failed(9, epoch, 3), failed(2, epoch, 4), failed(2, epoch - 1, 3)), (Ok(false), Ok(false), Ok(false)));
    assert_eq!((failed(2, epoch, 3), failed(2, epoch, 3)), (Ok(true), Ok(false)), "a host fails once");
    assert_eq!(failed(3, epoch, 4), Ok(true));
}

#[tokio::test]
async fn a_link_that_breaks_again_and_again_fills_no_queue() {
    let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let mut inbox = links.begin(STAGE, node(1)).unwrap().register(agreed(1, 3)).unwrap();
    let mut told = || std::iter::from_fn(|| inbox.next().now_or_never().flatten()).count();
    (0..2 * SESSION_QUEUE).for_each(|_| links.broke(node(3)));
    assert_eq!(told(), 1);
    links.broke(node(3));
    assert_eq!(told(), 1, "the next break is told, too");
    assert!(links.serves(STAGE, node(1)));
}

#[tokio::test]
async fn a_stage_that_takes_no_more_is_here_until_its_end_was_told() {
    let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let mut inbox = links.begin(STAGE, node(1)).unwrap().register(agreed(9, 3)).unwrap();
    inbox.close();
    links.deliver(node(9), Message::Step { header: step(STAGE, 1, Codec::F32), hidden: vec![0.0; 4] });
    assert!(links.serves(STAGE, node(1)) && dropped(&inbox).is_none());
    drop(inbox);
    assert!(!links.serves(STAGE, node(1)));
}

#[tokio::test]
async fn a_stage_that_nobody_waits_for_any_more_ends_alone() {
    let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let other = SessionStage { stage: 4, ..STAGE };
    let open = |stage| links.begin(stage, node(1)).unwrap().register(agreed(1, 3)).unwrap();
    let (_late, _used) = (open(STAGE), open(other));
    links.end_stage(STAGE, node(2));
    assert!(links.serves(STAGE, node(1)), "it is not another's to end");
    links.end_stage(STAGE, node(1));
    assert_eq!((links.serves(STAGE, node(1)), links.serves(other, node(1))), (false, true));
}

/// A step of 8 rows comes: whether it is queued; nothing where it waits for memory.
fn come(links: &Links, from: u8, to: SessionStage) -> Option<bool> {
    let reader = Reader { links, from: node(from) };
    let header = StageHeader::Step(step(to, 8, Codec::F32));
    let held = reader.room(&header, BODY).now_or_never()?;
    let queue = |held| reader.take(Frame { header: header.clone(), body: vec![0; BODY] }, held);
    Some(held.map(queue).is_some())
}

/// Steps that are queued until one is not. Nobody reads: more than a queue has room for is not tried.
fn fill(links: &Links, from: u8, to: SessionStage) -> usize {
    (0..SESSION_QUEUE).take_while(|_| come(links, from, to) == Some(true)).count()
}

/// What this node has ended a session with, if it has.
fn dropped(inbox: &StageInbox) -> Option<ErrorKind> {
    inbox.end().1.map(|fault| fault.kind())
}

/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(600);
/// Bytes of a step of 8 rows.
const BODY: usize = 8 * 4 * 4;

#[tokio::test]
async fn frames_that_wait_for_a_slow_session_are_bounded_in_bytes_and_delay_no_other_coordinator() {
    let bounds = Bounds { all: 5 * BODY, each: 3 * BODY, reserve: 0 };
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let links = Links::holding(node(0), None, tasks, HeldBodies::within(bounds, LONG));
    let stage = |number| SessionStage { stage: number, ..STAGE };
    // Each stage is a coordinator's of its own; all frames come over one peer's stream.
    let open = |number| links.begin(stage(number), node(number as u8)).unwrap().register(agreed(9, 3)).unwrap();
    let mut slow = open(1);
    // One in the session's own place, three in its coordinator's share.
    assert_eq!((fill(&links, 9, stage(1)), slow.receiver.len()), (4, 4));
    let (_other, _late) = (open(2), open(3));
    assert_eq!(fill(&links, 9, stage(2)), 3);
    let mut honest = open(4);
    assert_eq!(fill(&links, 9, stage(4)), 1, "the pool is empty, and the session has a place of its own");
    for _ in 0..SESSION_QUEUE {
        assert!(honest.next().await.is_some());
        assert_eq!(fill(&links, 9, stage(4)), 1, "it goes on");
    }
    let reader = Reader { links: &links, from: node(9) };
    let header = StageHeader::Step(step(stage(1), 8, Codec::F32));
    let mut waiting = Box::pin(reader.room(&header, BODY));
    assert!(waiting.as_mut().now_or_never().is_none(), "its stream is not read further");
    slow.next().await.unwrap();
    assert!(waiting.await.is_some(), "until the session takes a frame");
    assert_eq!(fill(&links, 9, stage(1)), 1);
    let waiting = tokio::spawn({
        let (links, header) = (links.clone(), header.clone());
        async move { Reader { links: &links, from: node(9) }.room(&header, BODY).await.is_some() }
    });
    tokio::task::yield_now().await;
    links.end_session(STAGE.session, STAGE.epoch, node(1), &Prefix::default());
    assert!(!waiting.await.unwrap(), "a frame of a session that has ended is passed over");
    drop((slow, _other, _late));
    let next = SessionStage { epoch: STAGE.epoch + 1, ..STAGE };
    let _next = links.begin(next, node(1)).unwrap().register(agreed(9, 3)).unwrap();
    assert_eq!(fill(&links, 9, next), 4, "what waited has given its memory back");
}

#[tokio::test]
async fn a_session_with_more_than_a_window_unread_ends_where_memory_is_short_and_one_within_it_waits() {
    // A window is eight bodies.
    let bounds = Bounds { all: 10 * BODY, each: 10 * BODY, reserve: 0 };
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let links = Links::holding(node(0), None, tasks, HeldBodies::within(bounds, LONG));
    let stage = |number| SessionStage { stage: number, ..STAGE };
    let open = |number| links.begin(stage(number), node(1)).unwrap().register(agreed(9, 3)).unwrap();
    let (mut greedy, _modest) = (open(1), open(2));
    assert_eq!(
        std::iter::repeat_with(|| come(&links, 9, stage(1))).take(11).flatten().filter(|queued| *queued).count(),
        11
    );
    assert_eq!([0; 2].map(|_| come(&links, 9, stage(2))), [Some(true), None], "one within its window waits");
    assert_eq!(come(&links, 9, stage(1)), Some(false), "and this one ends");
    assert!(greedy.over().is_cancelled() && !links.serves(stage(1), node(1)));
    assert_eq!(dropped(&greedy), Some(ErrorKind::BadFrame), "its task hears why");
    assert!(links.serves(stage(2), node(1)));
    assert_eq!(std::iter::from_fn(|| greedy.next().now_or_never().flatten()).count(), 11, "what it had is read");
    assert_eq!(come(&links, 9, stage(2)), Some(true));
}

#[tokio::test]
async fn who_overruns_a_stage_breaks_its_window_and_a_stand_by_that_is_overrun_has_no_room() {
    let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let ends = |number, stands_by| {
        let stage = SessionStage { stage: number, ..STAGE };
        let inbox = links.begin(stage, node(1)).unwrap().register(Agreed { stands_by, ..agreed(9, 3) }).unwrap();
        let overruns =
            || links.deliver(node(9), Message::Step { header: step(stage, 1, Codec::F32), hidden: vec![0.0; 4] });
        (0..SESSION_QUEUE).for_each(|_| overruns());
        assert!(links.serves(stage, node(1)), "a queue is longer than a window");
        overruns();
        dropped(&inbox)
    };
    assert_eq!((ends(1, false), ends(2, true)), (Some(ErrorKind::BadFrame), Some(ErrorKind::Overloaded)));
}

#[tokio::test]
async fn an_answer_that_is_none_is_of_the_stage_that_answers() {
    let links = Links::new(node(0), None, TaskSet::new(tokio::runtime::Handle::current()));
    let mut inbox = links.register_coordinator(STAGE.session);
    let shape = LogitShape::Top { k: 1 };
    let header = StageHeader::Logits(LogitsHeader {
        session: STAGE.session,
        epoch: 2,
        step: 0,
        rows: 1,
        shape,
        compute_us: Vec::new(),
    });
    Reader { links: &links, from: node(3) }.take(Frame { header, body: vec![0; 11] }, Held::Nothing);
    let (from, message) = inbox.next().now_or_never().flatten().unwrap();
    let Message::Failed { stage, fault, .. } = message else { panic!("{message:?}") };
    assert_eq!((from, stage, fault.kind()), (node(3), ANSWERING, ErrorKind::BadFrame));
}

#[tokio::test]
async fn a_session_that_waits_long_for_its_coordinators_memory_ends_and_not_the_stream_of_all() {
    let bounds = Bounds { all: 20 * BODY, each: 4 * BODY, reserve: 0 };
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let links = Links::holding(node(0), None, tasks, HeldBodies::within(bounds, Duration::from_millis(50)));
    let stage = |number| SessionStage { stage: number, ..STAGE };
    let open = |number, from| links.begin(stage(number), node(from)).unwrap().register(agreed(9, 3)).unwrap();
    let (one, two, _honest) = (open(1, 1), open(2, 1), open(3, 2));
    assert_eq!((fill(&links, 9, stage(1)), fill(&links, 9, stage(2))), (5, 1), "the share is taken");
    let reader = Reader { links: &links, from: node(9) };
    let header = StageHeader::Step(step(stage(2), 8, Codec::F32));
    assert!(reader.room(&header, BODY).await.is_none(), "its frame is passed over");
    assert!(two.over().is_cancelled() && links.serves(stage(1), node(1)));
    assert_eq!((dropped(&two), dropped(&one)), (Some(ErrorKind::Overloaded), None));
    assert_eq!(come(&links, 9, stage(3)), Some(true), "the stream goes on for others");
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
    assert_eq!(opening.register(agreed(1, 1)).err().unwrap().kind(), ErrorKind::Cancelled);
    let opening = links.begin(STAGE, node(1)).unwrap();
    links.disconnected(node(1));
    assert!(opening.register(agreed(1, 1)).is_err(), "who is to have the answer is gone");
    drop(links.begin(STAGE, node(1)).unwrap());
    links.begin(STAGE, node(1)).unwrap().register(agreed(1, 1)).unwrap();
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

#[tokio::test]
async fn what_a_peer_does_not_read_keeps_its_memory_until_it_is_written() {
    const FRAME: usize = 2 << 20;
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let ((near, _near), (far, mut incoming)) = (start(&tasks).await, start(&tasks).await);
    near.ensure_connected(far.local(), &far.addresses()).await.unwrap();
    let stream = near.open(far.local(), Channel::Stage).await.unwrap();
    let frames = OutgoingFrames::within(Bounds { all: 3 * FRAME, each: 3 * FRAME, reserve: 0 });
    let (queue, receiver) = frames.queue(far.local());
    let watching = Watching { asked: Arc::default(), rtt: || Duration::ZERO, doubt: || () };
    tasks.spawn("writes", async move { link::write(stream, receiver, watching).await.unwrap_or_default() });
    let rows = FRAME as u32 / 16;
    let frame = || Message::Step { header: step(STAGE, rows, Codec::F32), hidden: vec![1.0; FRAME / 4] };
    for _ in 0..3 {
        queue.send(frame()).await.unwrap();
    }
    let (_, mut unread) = incoming.stage.recv().await.unwrap();
    let mut fourth = Box::pin(queue.send(frame()));
    // More than the stream's windows hold is not written, however long nobody reads.
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
    let _stage = links.begin(STAGE, node(1)).unwrap().register(Agreed { next: far.local(), ..agreed(1, 1) }).unwrap();
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

#[tokio::test]
async fn a_stage_connects_to_the_host_before_it_at_the_addresses_that_this_announces() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let [(near, _near), (between, _between), (far, _far)] =
        [start(&tasks).await, start(&tasks).await, start(&tasks).await];
    // Who passes addresses of this machine on is on it.
    let by = near.dial(&between.addresses()[0]).await.unwrap();
    let links = Links::new(near.local(), Some(near.clone()), tasks.clone());
    let (host, addresses) = (far.local(), far.addresses());
    links.set_announced(Box::new(move |node| (if node == host { addresses.clone() } else { Vec::new() }, Some(by))));
    links.meet(host, by, &CancellationToken::new());
    let begun = Instant::now();
    while !near.peers().lookup(host).is_some_and(|peer| peer.connected) {
        assert!(begun.elapsed() < Duration::from_secs(30), "nobody is dialled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tasks.abort();
}
