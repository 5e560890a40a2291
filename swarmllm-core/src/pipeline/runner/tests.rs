//! Sessions over real links whose other end is held by the test.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::base::{ErrorKind, LayerRange};
use crate::engine::echo::{ECHO, EchoEmbedder};
use crate::engine::sample::{SampledToken, Sampler, SamplingParams};
use crate::ledger::Balances;
use crate::pipeline::host::serve::StageServer;
use crate::pipeline::host::stages::tests::Bench;
use crate::pipeline::link::outgoing::QueuedFrame;
use crate::pipeline::link::router::{SessionRouter, StageAgreement};
use crate::pipeline::plan::PlanStage;
use crate::pipeline::route::{RouteStage, Routes};
use crate::pipeline::session::prefix::PrefixHasher;
use crate::rt::{EventBus, TaskSet};
use crate::wire::codec::Codec;
use crate::wire::control::Opened;

const SESSION: SessionId = SessionId([1; 16]);
const MODEL: ModelId = ModelId([2; 32]);
const LOCAL: NodeId = NodeId([0; 32]);
/// The host of the only stage.
const HOST: NodeId = NodeId([3; 32]);
const VOCAB: u32 = 11;
const WIDTH: u32 = 4;
/// Longer than any test waits.
const LONG: Duration = Duration::from_secs(60);
/// Long enough for any event that would happen at once.
const SHORT: Duration = Duration::from_millis(50);

/// Finds no route, and notifies of each search.
#[derive(Default)]
struct Nowhere(Notify);

impl Routes for Nowhere {
    fn find(&self, _: Vec<NodeId>) -> BoxFuture<'_, Result<Route, Fault>> {
        self.0.notify_one();
        std::future::ready(Err(Fault::new(ErrorKind::NoPlan, "there is no other route"))).boxed()
    }

    fn probe_all(&self) {}
}

/// Reads all tokens, and counts how often a session begins to wait.
#[derive(Default)]
struct Reader(Arc<AtomicUsize>);

impl TokenSink for Reader {
    async fn token(&mut self, _: SampledToken) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }

    fn has_room(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed);
        true
    }

    async fn room(&self) -> Result<(), Fault> {
        Ok(())
    }
}

fn coordinator(router: &SessionRouter, tasks: &TaskSet, bench: &Bench) -> Coordinator {
    let (router, tasks, balances) = (router.clone(), tasks.clone(), Balances::new(None));
    Coordinator {
        stage_server: StageServer::new(bench.table.clone(), router.clone(), balances.clone(), tasks.clone()),
        router,
        net: None,
        tasks,
        prefix_hasher: PrefixHasher::new([0; 32]),
        chunk_policy: Arc::default(),
        speculation: Arc::default(),
        speeds: Arc::default(),
        failures: Arc::default(),
        balances,
        events: EventBus::new(),
    }
}

fn job(routes: Arc<Nowhere>, limits: Limits) -> Job {
    Job {
        session: SESSION,
        model: MODEL,
        routes,
        engine: ECHO.to_owned(),
        prompt: vec![1, 2, 3],
        exact: false,
        codec: Codec::F32,
        speculate: false,
        drafter: None,
        guide: None,
        pooling: None,
        max_tokens: 4,
        vocab: VOCAB,
        embedder: Arc::new(EchoEmbedder::new(7, WIDTH, VOCAB)),
        sampler: Sampler::new(SamplingParams::default(), VOCAB).unwrap(),
        is_end: Box::new(|_| false),
        deadline: limits.deadline,
        cancel: limits.cancel,
    }
}

/// The session with its only stage open at [`HOST`].
fn opened(coordinator: &Coordinator, job: &Job) -> OpenedSession {
    let stage = PlanStage { node: HOST, layers: LayerRange::new(0, 1), head: true };
    let stages = vec![RouteStage::new(stage, Vec::new(), 1, None)];
    let route = Route { model: MODEL, stages, token_us: 0 };
    let opened = Opened { width: WIDTH, vocab: Some(VOCAB), max_rows: 8, cached: 0, context: 64, load_ms: 0 };
    let (opened, nodes) = (vec![opened], vec![HOST]);
    let lost = BTreeSet::new();
    OpenedSession {
        routes: RouteManager::new(job.open_params(), LOCAL),
        open: OpenRoute { epoch: 0, route, opened, standby_replies: vec![None], nodes, lost },
        inbox: coordinator.router.register_coordinator(SESSION),
        losses: LossWatcher::new(coordinator.net.as_ref(), &coordinator.router),
        began: Instant::now(),
        opened_in: Duration::ZERO,
    }
}

/// A coordinator whose link to [`HOST`] is held by the test.
struct Fixture {
    router: SessionRouter,
    coordinator: Coordinator,
    /// Frames of the link; dropping them ends it.
    frames: Option<mpsc::Receiver<QueuedFrame>>,
    routes: Arc<Nowhere>,
    _bench: Bench,
}

type Running<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;

impl Fixture {
    /// The link has no room.
    fn blocked() -> Self {
        let tasks = TaskSet::new(tokio::runtime::Handle::current());
        let router = SessionRouter::new(LOCAL, None, tasks.clone());
        let (bench, frames) = (Bench::new(1, 8, 1 << 20), router.stalled(HOST));
        let coordinator = coordinator(&router, &tasks, &bench);
        Self { router, coordinator, frames: Some(frames), routes: Arc::default(), _bench: bench }
    }

    /// The link has room for all frames.
    fn unblocked() -> Self {
        let mut fixture = Self::blocked();
        fixture.frames.iter_mut().for_each(|frames| while frames.try_recv().is_ok() {});
        fixture
    }

    /// A session with these limits, without its first poll.
    fn session<'a>(
        &'a self,
        limits: Limits,
        sink: &'a mut Reader,
        change: impl FnOnce(&mut OpenedSession),
    ) -> Running<'a> {
        let job = job(self.routes.clone(), limits);
        let mut opened = opened(&self.coordinator, &job);
        change(&mut opened);
        Box::pin(run(&self.coordinator, job, opened, sink))
    }

    /// A session that has sent its prompt and waits.
    async fn waiting<'a>(&'a self, sink: &'a mut Reader) -> Running<'a> {
        let mut running = self.session(no_limits(), sink, |_| ());
        still_waits(&mut running).await;
        running
    }

    /// Asserts that the session searches for another route.
    async fn searches(&self, running: Running<'_>) {
        tokio::select! {
            outcome = running => panic!("no search for another route: {:?}", outcome.end),
            search = timeout(LONG, self.routes.0.notified()) => search.expect("no search for another route"),
        }
    }
}

fn no_limits() -> Limits {
    Limits { deadline: None, cancel: CancellationToken::new() }
}

async fn still_waits(running: &mut Running<'_>) {
    assert!(timeout(SHORT, running.as_mut()).await.is_err());
}

#[tokio::test]
async fn a_blocked_session_handles_cancellation_deadline_and_losses() {
    let fixture = Fixture::blocked();
    let end = async |limits: &Limits, act: &dyn Fn()| {
        let mut sink = Reader::default();
        let mut running = fixture.session(limits.clone(), &mut sink, |_| ());
        let outcome = match running.as_mut().now_or_never() {
            Some(outcome) => outcome,
            None => {
                act();
                timeout(LONG, running).await.expect("the session does not end")
            }
        };
        outcome.end.map_err(|fault| fault.kind())
    };
    let cancelled = no_limits();
    let late = Limits { deadline: Some(Instant::now() + Duration::from_millis(20)), ..no_limits() };
    assert_eq!(end(&cancelled, &|| cancelled.cancel.cancel()).await, Ok(SessionEnd::Cancelled));
    assert_eq!(end(&late, &|| ()).await, Err(ErrorKind::Timeout));
    assert!(fixture.coordinator.balances.snapshot().is_empty(), "an unsent step is not owed");

    let (mut fixture, mut sink) = (fixture, Reader::default());
    let unread = fixture.frames.take();
    let mut running = fixture.session(no_limits(), &mut sink, |_| ());
    assert!(running.as_mut().now_or_never().is_none());
    drop(unread);
    fixture.searches(running).await;
}

#[tokio::test]
async fn a_link_that_broke_before_a_route_does_not_affect_it() {
    let (mut fixture, mut sink) = (Fixture::unblocked(), Reader::default());
    let frames = fixture.frames.take();
    let mut running = fixture.waiting(&mut sink).await;
    fixture.router.link_broke(HOST);
    still_waits(&mut running).await;
    assert!(fixture.routes.0.notified().now_or_never().is_none(), "the link of this route stands");
    drop(frames);
    fixture.router.link_broke(HOST);
    fixture.searches(running).await;
}

#[tokio::test]
async fn a_host_without_room_comes_last_for_later_sessions() {
    let (fixture, mut sink) = (Fixture::unblocked(), Reader::default());
    let running = fixture.waiting(&mut sink).await;
    let fault = Fault::new(ErrorKind::Overloaded, "no more room");
    fixture.router.deliver(HOST, Message::Failed { session: SESSION, epoch: 0, stage: 0, fault });
    fixture.searches(running).await;
    assert_eq!(fixture.coordinator.failures.now(), [HOST].into());
}

#[tokio::test]
async fn a_standby_that_cannot_replicate_is_released_at_once() {
    let (fixture, mut sink) = (Fixture::unblocked(), Reader::default());
    let stage = SessionStage { session: SESSION, epoch: 0, stage: 0 };
    let agreed = StageAgreement { previous: LOCAL, next: LOCAL, width: WIDTH, max_rows: 8, is_standby: true };
    let _standby = fixture.router.reserve(stage, LOCAL).unwrap().register(agreed).unwrap();
    let mut running = fixture.session(no_limits(), &mut sink, |opened| opened.open.nodes.push(LOCAL));
    still_waits(&mut running).await;
    assert!(!fixture.router.serves(stage, LOCAL));
}

#[tokio::test]
async fn unrelated_events_do_not_restart_the_watch_over_hosts() {
    let (fixture, mut sink) = (Fixture::unblocked(), Reader::default());
    let waits = sink.0.clone();
    let mut running = fixture.waiting(&mut sink).await;
    let before = waits.load(Ordering::Relaxed);
    for _ in 0..8 {
        fixture.router.link_broke(NodeId([9; 32]));
        let fault = Fault::new(ErrorKind::Internal, "so");
        // Messages of an earlier route, and of a stage that the host does not have.
        let stale = Message::Failed { session: SESSION, epoch: 7, stage: 0, fault: fault.clone() };
        fixture.router.deliver(HOST, stale);
        fixture.router.deliver(HOST, Message::Failed { session: SESSION, epoch: 0, stage: 5, fault });
    }
    still_waits(&mut running).await;
    assert_eq!(waits.load(Ordering::Relaxed), before);
}
