//! A session whose steps find no room on the way to the first stage.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::base::{ErrorKind, LayerRange};
use crate::engine::echo::{ECHO, EchoEmbedder};
use crate::engine::sample::{Sampled, Sampler, SamplingParams};
use crate::ledger::Tabs;
use crate::pipeline::links::{Agreed, Links};
use crate::pipeline::outgoing::Outgoing;
use crate::pipeline::plan::PlanStage;
use crate::pipeline::prefix::Namer;
use crate::pipeline::route::{RouteStage, Routes};
use crate::pipeline::serve::Serving;
use crate::pipeline::stages::tests::Bench;
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
/// Long enough for what would happen at once.
const SHORT: Duration = Duration::from_millis(50);

/// Finds no route, and tells that one was looked for.
#[derive(Default)]
struct Nowhere(Notify);

impl Routes for Nowhere {
    fn find(&self, _: Vec<NodeId>) -> BoxFuture<'_, Result<Route, Fault>> {
        self.0.notify_one();
        std::future::ready(Err(Fault::new(ErrorKind::NoPlan, "there is no other"))).boxed()
    }

    fn rouse(&self) {}
}

/// Reads all, and counts how often a session begins to wait.
#[derive(Default)]
struct Reader(Arc<AtomicUsize>);

impl TokenSink for Reader {
    async fn token(&mut self, _: Sampled) -> ControlFlow<()> {
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

fn coordinator(links: &Links, tasks: &TaskSet, bench: &Bench) -> Coordinator {
    let (links, tasks, tabs) = (links.clone(), tasks.clone(), Tabs::new(None));
    Coordinator {
        serving: Serving::new(bench.table.clone(), links.clone(), tabs.clone(), tasks.clone()),
        links,
        net: None,
        tasks,
        namer: Namer::new([0; 32]),
        overlap: Arc::default(),
        lessons: Arc::default(),
        speeds: Arc::default(),
        failures: Arc::default(),
        tabs,
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
        guess: false,
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

/// The session over one stage at [`HOST`], open.
fn begun(coordinator: &Coordinator, job: &Job) -> Begun {
    let stage = PlanStage { node: HOST, layers: LayerRange::new(0, 1), head: true };
    let stages = vec![RouteStage::new(stage, Vec::new(), 1, None)];
    let route = Route { model: MODEL, stages, token_us: 0 };
    let opened = Opened { width: WIDTH, vocab: Some(VOCAB), max_rows: 8, cached: 0, context: 64, load_ms: 0 };
    let (opened, nodes) = (vec![opened], vec![HOST]);
    let lost = BTreeSet::new();
    Begun {
        routes: RouteManager::new(job.open_params(), LOCAL),
        open: OpenRoute { epoch: 0, route, opened, following: vec![None], nodes, lost },
        inbox: coordinator.links.register_coordinator(SESSION),
        losses: Losses::new(coordinator),
        began: Instant::now(),
        opened_in: Duration::ZERO,
    }
}

#[tokio::test]
async fn a_session_whose_host_reads_nothing_hears_cancel_deadline_and_the_loss_of_the_host() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let links = Links::new(LOCAL, None, tasks.clone());
    let (bench, unread) = (Bench::new(1, 8, 1 << 20), links.stalled(HOST));
    let coordinator = coordinator(&links, &tasks, &bench);
    let limits = |deadline| Limits { deadline, cancel: CancellationToken::new() };
    let ends = async |limits: &Limits, act: &dyn Fn()| {
        let job = job(Arc::default(), limits.clone());
        let (begun, mut sink) = (begun(&coordinator, &job), Reader::default());
        let mut running = Box::pin(run(&coordinator, job, begun, &mut sink));
        let outcome = match running.as_mut().now_or_never() {
            Some(outcome) => outcome,
            None => {
                act();
                timeout(LONG, running).await.expect("it hears nothing")
            }
        };
        outcome.end.map_err(|fault| fault.kind())
    };
    let (cancelled, late) = (limits(None), limits(Some(Instant::now() + Duration::from_millis(20))));
    assert_eq!(ends(&cancelled, &|| cancelled.cancel.cancel()).await, Ok(End::Cancelled));
    assert_eq!(ends(&late, &|| ()).await, Err(ErrorKind::Timeout));
    assert!(coordinator.tabs.balances().is_empty(), "nothing is owed for what was not sent");

    let routes = Arc::<Nowhere>::default();
    let job = job(routes.clone(), limits(None));
    let (begun, mut sink) = (begun(&coordinator, &job), Reader::default());
    let mut running = Box::pin(run(&coordinator, job, begun, &mut sink));
    assert!(running.as_mut().now_or_never().is_none());
    drop(unread);
    tokio::select! {
        outcome = running => panic!("it does not look for another route: {:?}", outcome.end),
        sought = timeout(LONG, routes.0.notified()) => sought.expect("it hears nothing"),
    }
}

/// A link to [`HOST`] that takes what is sent.
fn takes_all(links: &Links) -> mpsc::Receiver<Outgoing> {
    let mut queue = links.stalled(HOST);
    while queue.try_recv().is_ok() {}
    queue
}

#[tokio::test]
async fn a_link_that_broke_before_a_route_was_opened_takes_nothing_from_that_route() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let links = Links::new(LOCAL, None, tasks.clone());
    let (bench, taken) = (Bench::new(1, 8, 1 << 20), takes_all(&links));
    let (coordinator, routes) = (coordinator(&links, &tasks, &bench), Arc::<Nowhere>::default());
    let job = job(routes.clone(), Limits { deadline: None, cancel: CancellationToken::new() });
    let (begun, mut sink) = (begun(&coordinator, &job), Reader::default());
    let mut running = Box::pin(run(&coordinator, job, begun, &mut sink));
    assert!(timeout(SHORT, running.as_mut()).await.is_err());
    links.broke(HOST);
    assert!(timeout(SHORT, running.as_mut()).await.is_err());
    assert!(routes.0.notified().now_or_never().is_none(), "the link that this route uses stands");
    drop(taken);
    links.broke(HOST);
    tokio::select! {
        outcome = running => panic!("it does not look for another route: {:?}", outcome.end),
        sought = timeout(LONG, routes.0.notified()) => sought.expect("it hears nothing"),
    }
}

#[tokio::test]
async fn a_host_that_ends_its_stage_for_want_of_room_comes_last_for_other_sessions() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let links = Links::new(LOCAL, None, tasks.clone());
    let (bench, _taken) = (Bench::new(1, 8, 1 << 20), takes_all(&links));
    let (coordinator, routes) = (coordinator(&links, &tasks, &bench), Arc::<Nowhere>::default());
    let job = job(routes.clone(), Limits { deadline: None, cancel: CancellationToken::new() });
    let (begun, mut sink) = (begun(&coordinator, &job), Reader::default());
    let mut running = Box::pin(run(&coordinator, job, begun, &mut sink));
    assert!(timeout(SHORT, running.as_mut()).await.is_err());
    let fault = Fault::new(ErrorKind::Overloaded, "no more room");
    links.deliver(HOST, Message::Failed { session: SESSION, epoch: 0, stage: 0, fault });
    tokio::select! {
        outcome = running => panic!("it does not look for another route: {:?}", outcome.end),
        sought = timeout(LONG, routes.0.notified()) => sought.expect("it hears nothing"),
    }
    assert_eq!(coordinator.failures.now(), [HOST].into());
}

#[tokio::test]
async fn who_was_asked_to_follow_and_cannot_is_released_when_the_route_begins() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let links = Links::new(LOCAL, None, tasks.clone());
    let (bench, _taken) = (Bench::new(1, 8, 1 << 20), takes_all(&links));
    let coordinator = coordinator(&links, &tasks, &bench);
    let job = job(Arc::default(), Limits { deadline: None, cancel: CancellationToken::new() });
    let stage = SessionStage { session: SESSION, epoch: 0, stage: 0 };
    let agreed = Agreed { previous: LOCAL, next: LOCAL, width: WIDTH, max_rows: 8, stands_by: true };
    let _follows = links.begin(stage, LOCAL).unwrap().register(agreed).unwrap();
    let mut begun = begun(&coordinator, &job);
    begun.open.nodes.push(LOCAL);
    let mut sink = Reader::default();
    let mut running = Box::pin(run(&coordinator, job, begun, &mut sink));
    assert!(timeout(SHORT, running.as_mut()).await.is_err());
    assert!(!links.serves(stage, LOCAL));
}

#[tokio::test]
async fn what_others_do_does_not_begin_the_watch_over_hosts_anew() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let links = Links::new(LOCAL, None, tasks.clone());
    let (bench, _taken) = (Bench::new(1, 8, 1 << 20), takes_all(&links));
    let coordinator = coordinator(&links, &tasks, &bench);
    let job = job(Arc::default(), Limits { deadline: None, cancel: CancellationToken::new() });
    let (begun, mut sink) = (begun(&coordinator, &job), Reader::default());
    let waits = sink.0.clone();
    let mut running = Box::pin(run(&coordinator, job, begun, &mut sink));
    assert!(timeout(SHORT, running.as_mut()).await.is_err());
    let before = waits.load(Ordering::Relaxed);
    for _ in 0..8 {
        links.broke(NodeId([9; 32]));
        let fault = Fault::new(ErrorKind::Internal, "so");
        // Of an earlier route, and of a stage that it does not have.
        links.deliver(HOST, Message::Failed { session: SESSION, epoch: 7, stage: 0, fault: fault.clone() });
        links.deliver(HOST, Message::Failed { session: SESSION, epoch: 0, stage: 5, fault });
    }
    assert!(timeout(SHORT, running.as_mut()).await.is_err());
    assert_eq!(waits.load(Ordering::Relaxed), before);
}
